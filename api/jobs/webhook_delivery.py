"""Webhooks: messages to a person's own address when a run, generation or export of theirs has ended.

Messages are signed as Standard Webhooks 1.0 says: HMAC-SHA256 over id, time and body under a secret that only the person has. A
receiver that checks the signature, takes times of the last five minutes alone and remembers ids is safe from forged and repeated
messages. They hold ids and states alone; everything else is asked for with an access token.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import secrets
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

import httpx2
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.jobs.job_queue import JobQueue
from api.records.database import AccountClosed, Records, retry_on_outage, retry_on_rollback
from api.records.tables import ACTIVE, Export, Generation, Run, User, Webhook, WebhookDelivery, new_id, now_ms
from api.schemas import iso
from api.transport.addresses import Address, is_public
from photoflux.errors import InputError, PhotoFluxError
from photoflux.vault.keyring import KeyMissing, Keyring
from photoflux.vault.sealed import Label, seal_bytes, unseal_bytes

log = logging.getLogger(__name__)

EVENTS = {"run.ended": Run, "generation.ended": Generation, "export.ended": Export}
TEST = "test"
TIMEOUT_S = 10.0
"""Seconds for a delivery, from connecting to the answer's status; looking up the host has the system resolver's own limit."""
ATTEMPTS, FIRST_PAUSE_S = 8, 2.0
"""The pause triples with each attempt: most of an hour all told."""
GONE = 410
"""The status by which an address ends its webhook."""


class Undelivered(PhotoFluxError):
    """An address could not be reached, or may not be; another attempt follows."""


@dataclass(frozen=True)
class WebhookSubscriptions:
    """Enqueues a delivery to each webhook that an entry of the audit log concerns."""

    queue: JobQueue

    def on_entry(self, session: Session, action: str, object_id: str | None, outcome: str) -> None:
        """Called for each entry of the audit log, in its transaction."""
        for webhook in self.matching(session, action, object_id):
            self.enqueue(session, webhook, action, str(object_id), outcome)

    def matching(self, session: Session, action: str, object_id: str | None) -> Iterable[Webhook]:
        """The webhooks of the person whose run, generation or export has ended; none where the account is closed."""
        kind = EVENTS.get(action)
        row = session.get(kind, object_id) if kind else None
        if row is None:
            return ()
        person = session.get(User, row.user_id)  # type: ignore[attr-defined]
        if person is None or person.state != "active":
            return ()
        theirs = select(Webhook).where(Webhook.user_id == person.id).order_by(Webhook.id)
        return session.scalars(theirs.with_for_update(read=True, key_share=True))

    def enqueue(self, session: Session, webhook: Webhook, event: str, object_id: str, outcome: str) -> WebhookDelivery:
        """Record a delivery and enqueue it."""
        delivery = WebhookDelivery(
            id=new_id(),
            user_id=webhook.user_id,
            webhook_id=webhook.id,
            event=event,
            object_id=object_id,
            outcome=outcome,
        )
        session.add(delivery)
        self.queue.enqueue_delivery(session, delivery)
        return delivery


def new_webhook(user_id: str, address: str, keyring: Keyring) -> tuple[Webhook, str]:
    """A webhook with its address and a fresh secret sealed, and the secret itself, which its owner is shown once."""
    secret = f"whsec_{secrets.token_urlsafe(32).replace('-', 'A').replace('_', 'B')}"
    row = Webhook(id=new_id(), user_id=user_id)
    row.address = seal_bytes(address.encode(), label=_label(row, "webhook"), keyring=keyring)
    row.secret = seal_bytes(secret.encode(), label=_label(row, "webhook-secret"), keyring=keyring)
    return row, secret


def address_of(webhook: Webhook, keyring: Keyring) -> str:
    """The address that it posts to."""
    return unseal_bytes(webhook.address, label=_label(webhook, "webhook"), keyring=keyring).decode()


def _label(webhook: Webhook, kind: str) -> Label:
    return Label(webhook.user_id, kind, webhook.id)


def check_address(address: str, *, private: bool) -> tuple[SplitResult, str]:
    """An address in parts and the IP that its host has now. Raises InputError unless all its IPs are on the public internet.

    Names are looked up anew for each message, and the message goes to the very IP that was checked: a name that later points into this
    network leads nowhere. `private` allows loopback over http, for trying things out on one machine.
    """
    parts = _split(address)
    if parts.username is not None or parts.fragment or not parts.hostname:
        raise InputError("a webhook's address has a host, and neither a name and password nor a fragment")
    found = _resolve(parts.hostname, parts.port or 443)
    local = all(ip.is_loopback for ip in found)
    if parts.scheme != "https" and not (private and local and parts.scheme == "http"):
        raise InputError("a webhook's address begins with https://")
    if not all(is_public(ip) for ip in found) and not (private and local):
        raise InputError("a webhook's address is on the public internet")
    return parts, str(found[0])


def _split(address: str) -> SplitResult:
    try:
        parts = urlsplit(address)
        return parts if parts.port != 0 else parts._replace(netloc="")
    except ValueError:
        raise InputError("a webhook's address is a URL such as https://example.org/photoflux") from None


def _resolve(host: str, port: int) -> list[Address]:
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [ipaddress.ip_address(answer[4][0]) for answer in answers]
    except (OSError, ValueError):
        raise InputError("the host of this webhook's address is not known; correct it") from None


@dataclass(frozen=True)
class WebhookSender:
    """Posts deliveries. `private` allows loopback addresses, as on one machine; `verify` is whom to trust over TLS.

    `redeliver` is called in the transaction that records that a message was not taken, with the delivery, the number of the next attempt
    and the seconds until then: nobody else's messages wait meanwhile. `require` raises where this worker has lost its lease.
    """

    records: Records
    keyring: Keyring
    private: bool
    redeliver: Callable[[Session, WebhookDelivery, int, float], None]
    verify: Any = True
    require: Callable[[], None] = lambda: None
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def deliver(self, delivery_id: str, attempt: int = 1) -> str:
        """Post a message and record how it went; one that is not taken is posted again later, `ATTEMPTS` times in all."""
        with self.records.reading() as session:
            delivery = session.get(WebhookDelivery, delivery_id)
            webhook = session.get(Webhook, delivery.webhook_id) if delivery else None
        if delivery is None or webhook is None or delivery.state not in ACTIVE:
            return delivery.state if delivery else "cancelled"
        self.require()
        try:
            status = self._post(webhook, delivery)
        except (Undelivered, KeyMissing) as error:
            log.info("webhook delivery %s was not taken: %s", delivery_id, type(error).__name__)
            return self._retry_later(delivery, attempt)
        if status == GONE:
            return self._unsubscribe(webhook)
        return self._end(delivery_id, "succeeded") if 200 <= status < 300 else self._retry_later(delivery, attempt)

    def mark_failed(self, delivery_id: str) -> str:
        """Record that it was not taken."""
        return self._end(delivery_id, "failed")

    @retry_on_outage  # around the recording alone: a repeated post would be a second message
    @retry_on_rollback
    def _retry_later(self, delivery: WebhookDelivery, attempt: int) -> str:
        if attempt >= ATTEMPTS:
            return self.mark_failed(delivery.id)
        with suppress(AccountClosed), self.records.writing_for(delivery.user_id) as session:
            current = session.get(WebhookDelivery, delivery.id, with_for_update=True)
            if current is not None and current.state in ACTIVE:
                self.redeliver(session, current, attempt + 1, FIRST_PAUSE_S * 3 ** (attempt - 1))
                return "queued"
        return "cancelled"

    @retry_on_outage
    @retry_on_rollback
    def _unsubscribe(self, webhook: Webhook) -> str:
        with suppress(AccountClosed), self.records.writing_for(webhook.user_id) as session:
            if row := session.get(Webhook, webhook.id, with_for_update=True):
                session.delete(row)
        return "cancelled"

    @retry_on_outage
    @retry_on_rollback
    def _end(self, delivery_id: str, state: str) -> str:
        with self.records.writing() as session:
            delivery = session.get(WebhookDelivery, delivery_id, with_for_update=True)
            if delivery is not None and delivery.state in ACTIVE:
                delivery.state, delivery.finished_ms = state, now_ms()
        return state

    def _post(self, webhook: Webhook, delivery: WebhookDelivery) -> int:
        """The status of the address' answer, whose body is not read. Raises Undelivered."""
        from standardwebhooks import Webhook as Signer

        try:
            parts, ip = check_address(address_of(webhook, self.keyring), private=self.private)
        except InputError as error:
            raise Undelivered(str(error)) from error
        secret = unseal_bytes(webhook.secret, label=_label(webhook, "webhook-secret"), keyring=self.keyring).decode()
        body, now = message(delivery), self.clock()
        headers = {
            "webhook-id": delivery.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Signer(secret).sign(delivery.id, now, body),
            "content-type": "application/json",
            "host": parts.netloc,
            "user-agent": "PhotoFlux",
        }
        where = urlunsplit((parts.scheme, _netloc(ip, parts.port), parts.path or "/", parts.query, ""))
        try:
            return asyncio.run(self._request(where, body, headers, str(parts.hostname)))
        except (httpx2.HTTPError, TimeoutError) as error:
            raise Undelivered(f"the address could not be reached: {type(error).__name__}") from error

    async def _request(self, where: str, body: str, headers: dict[str, str], host: str) -> int:
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


def message(delivery: WebhookDelivery) -> str:
    """The JSON body: the event, its time, and id and state of what ended."""
    data = {"id": delivery.object_id, "state": delivery.outcome}
    return json.dumps({"type": delivery.event, "timestamp": iso(delivery.created_ms), "data": data})
