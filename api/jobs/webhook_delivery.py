"""Webhooks: telling a person's own address that work of theirs has ended.

Messages are signed as Standard Webhooks 1.0 says: HMAC-SHA256 over id, time and body under a secret that only the person has. A
receiver that checks it, and that the time is of the last five minutes, and remembers ids, can be neither lied to nor told twice.
Messages hold ids and states alone; what they are about is asked for with a token.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

import httpx2
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.jobs.job_queue import JobQueue
from api.records.database import AccountClosed, Records, outlasting, retried
from api.records.tables import ACTIVE, Export, Generation, Notice, Run, User, Webhook, new_id, now_ms
from api.schemas import iso
from api.transport.addresses import Address, is_public
from photoflux.errors import InputError, PhotoFluxError
from photoflux.vault.keyring import KeyMissing, Keyring
from photoflux.vault.sealed import Label, seal_bytes, unseal_bytes

log = logging.getLogger(__name__)

EVENTS = {"run.ended": Run, "generation.ended": Generation, "export.ended": Export}
TEST = "test"
TIMEOUT_S = 10.0
"""Seconds for a delivery, from connecting to the answer's status; looking up its host takes what the system's resolver allows."""
ATTEMPTS, FIRST_PAUSE_S = 8, 2.0
"""The pause triples with each attempt: most of an hour all told."""
GONE = 410
"""What an address answers that wants to hear no more."""


class Undelivered(PhotoFluxError):
    """An address did not take a message; it is sent again later."""


@dataclass(frozen=True)
class Subscriptions:
    """Turns what the journal notes into notices for those who want to be told."""

    queue: JobQueue

    def heard(self, session: Session, action: str, object_id: str | None, outcome: str) -> None:
        """One more entry of the journal, in its transaction."""
        kind = EVENTS.get(action)
        row = session.get(kind, object_id) if kind else None
        if row is None:
            return
        person = session.get(User, row.user_id)  # type: ignore[attr-defined]
        if person is None or person.state != "active":  # nobody is told of a closed account
            return
        theirs = select(Webhook).where(Webhook.user_id == person.id).order_by(Webhook.id)
        for webhook in session.scalars(theirs.with_for_update(read=True, key_share=True)):
            self.tell(session, webhook, action, str(object_id), outcome)

    def tell(self, session: Session, webhook: Webhook, event: str, object_id: str, outcome: str) -> Notice:
        """Record a notice and put it in line."""
        notice = Notice(
            id=new_id(), user_id=webhook.user_id, webhook_id=webhook.id, event=event, object_id=object_id, outcome=outcome
        )  # fmt: skip
        session.add(notice)
        self.queue.enqueue_delivery(session, notice)
        return notice


def new_webhook(user_id: str, address: str, keyring: Keyring) -> tuple[Webhook, str]:
    """A webhook with its address and a fresh secret sealed, and the secret, which is told once."""
    secret = f"whsec_{secrets.token_urlsafe(32).replace('-', 'A').replace('_', 'B')}"
    row = Webhook(id=new_id(), user_id=user_id)
    row.address = seal_bytes(address.encode(), label=_label(row, "webhook"), keyring=keyring)
    row.secret = seal_bytes(secret.encode(), label=_label(row, "webhook-secret"), keyring=keyring)
    return row, secret


def address_of(webhook: Webhook, keyring: Keyring) -> str:
    """Where it sends to."""
    return unseal_bytes(webhook.address, label=_label(webhook, "webhook"), keyring=keyring).decode()


def _label(webhook: Webhook, kind: str) -> Label:
    return Label(webhook.user_id, kind, webhook.id)


def check_address(address: str, *, private: bool) -> tuple[SplitResult, str]:
    """An address in parts and the IP that its host has now. Raises InputError unless all its IPs are on the public internet.

    Names are looked up anew for each message, and the message goes to the very IP that was checked: a name that later points into this
    network leads nowhere. `private` allows loopback over http, for trying things out on one machine.
    """
    parts = _parts(address)
    if parts.username is not None or parts.fragment or not parts.hostname:
        raise InputError("a webhook's address has a host, and neither a name and password nor a fragment")
    found = _looked_up(parts.hostname, parts.port or 443)
    local = all(ip.is_loopback for ip in found)
    if parts.scheme != "https" and not (private and local and parts.scheme == "http"):
        raise InputError("a webhook's address begins with https://")
    if not all(is_public(ip) for ip in found) and not (private and local):
        raise InputError("a webhook's address is on the public internet")
    return parts, str(found[0])


def _parts(address: str) -> SplitResult:
    try:
        parts = urlsplit(address)
        return parts if parts.port != 0 else parts._replace(netloc="")
    except ValueError:
        raise InputError("a webhook's address is a URL such as https://example.org/photoflux") from None


def _looked_up(host: str, port: int) -> list[Address]:
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [ipaddress.ip_address(answer[4][0]) for answer in answers]
    except (OSError, ValueError):
        raise InputError("the host of this webhook's address is not known; correct it") from None


@dataclass(frozen=True)
class Messenger:
    """Sends notices. `private` and `verify`: as for one machine, and whom to trust over TLS.

    `again` is called in the transaction that records that a message was not taken, with the notice, the number of the next attempt and
    the seconds until then: nobody else's messages wait meanwhile. `require` raises where this worker's work is another's by now.
    """

    records: Records
    keyring: Keyring
    private: bool
    again: Callable[[Session, Notice, int, float], None]
    verify: Any = True
    require: Callable[[], None] = lambda: None
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def perform(self, notice_id: str, attempt: int = 1) -> str:
        """Send and record; what is not taken is sent again later, `ATTEMPTS` times at most."""
        with self.records.reading() as session:
            notice = session.get(Notice, notice_id)
            webhook = session.get(Webhook, notice.webhook_id) if notice else None
        if notice is None or webhook is None or notice.state not in ACTIVE:
            return notice.state if notice else "cancelled"
        self.require()
        try:
            status = self._send(webhook, notice)
        except (Undelivered, KeyMissing) as error:
            log.info("notice %s was not taken: %s", notice_id, type(error).__name__)
            return self._put_off(notice, attempt)
        if status == GONE:
            return self._unsubscribe(webhook)
        return self._end(notice_id, "succeeded") if 200 <= status < 300 else self._put_off(notice, attempt)

    def fail(self, notice_id: str) -> str:
        """Record that it was not taken."""
        return self._end(notice_id, "failed")

    @outlasting  # recording alone: what is sent again is a second message
    @retried
    def _put_off(self, notice: Notice, attempt: int) -> str:
        if attempt >= ATTEMPTS:
            return self.fail(notice.id)
        with suppress(AccountClosed), self.records.writing_for(notice.user_id) as session:
            current = session.get(Notice, notice.id, with_for_update=True)
            if current is not None and current.state in ACTIVE:
                self.again(session, current, attempt + 1, FIRST_PAUSE_S * 3 ** (attempt - 1))
                return "queued"
        return "cancelled"

    @outlasting
    @retried
    def _unsubscribe(self, webhook: Webhook) -> str:
        with suppress(AccountClosed), self.records.writing_for(webhook.user_id) as session:
            if row := session.get(Webhook, webhook.id, with_for_update=True):
                session.delete(row)
        return "cancelled"

    @outlasting
    @retried
    def _end(self, notice_id: str, state: str) -> str:
        with self.records.writing() as session:
            notice = session.get(Notice, notice_id, with_for_update=True)
            if notice is not None and notice.state in ACTIVE:
                notice.state, notice.finished_ms = state, now_ms()
        return state

    def _send(self, webhook: Webhook, notice: Notice) -> int:
        """The status that the address answers with; what else it says is not read. Raises Undelivered."""
        from standardwebhooks import Webhook as Signer

        try:
            parts, ip = check_address(address_of(webhook, self.keyring), private=self.private)
        except InputError as error:
            raise Undelivered(str(error)) from error
        secret = unseal_bytes(webhook.secret, label=_label(webhook, "webhook-secret"), keyring=self.keyring).decode()
        body, now = message(notice), self.clock()
        headers = {
            "webhook-id": notice.id, "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Signer(secret).sign(notice.id, now, body), "content-type": "application/json",
            "host": parts.netloc, "user-agent": "PhotoFlux",
        }  # fmt: skip
        where = urlunsplit((parts.scheme, _netloc(ip, parts.port), parts.path or "/", parts.query, ""))
        try:
            return asyncio.run(self._posted(where, body, headers, str(parts.hostname)))
        except (httpx2.HTTPError, TimeoutError) as error:
            raise Undelivered(f"the address could not be reached: {type(error).__name__}") from error

    async def _posted(self, where: str, body: str, headers: dict[str, str], host: str) -> int:
        """In `TIMEOUT_S` all told: a receiver that sends a byte now and then would hold a client's own timeouts off for ever."""
        async with (
            asyncio.timeout(TIMEOUT_S),
            httpx2.AsyncClient(timeout=TIMEOUT_S, verify=self.verify, trust_env=False) as client,
            client.stream("POST", where, content=body, headers=headers, extensions={"sni_hostname": host}) as answer,
        ):
            return answer.status_code


def _netloc(ip: str, port: int | None) -> str:
    host = f"[{ip}]" if ":" in ip else ip
    return f"{host}:{port}" if port else host


def message(notice: Notice) -> str:
    """What is told: which kind of thing ended how, by id."""
    data = {"id": notice.object_id, "state": notice.outcome}
    return json.dumps({"type": notice.event, "timestamp": iso(notice.created_ms), "data": data})
