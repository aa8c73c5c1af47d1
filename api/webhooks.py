"""Webhooks: telling a person's own address that work of theirs has ended.

Messages are signed as Standard Webhooks 1.0 says: HMAC-SHA256 over id, time and body under a secret that only the person has. A
receiver that checks it, and that the time is of the last five minutes, and remembers ids, can be neither lied to nor told twice.
Messages hold ids and states alone; what they are about is asked for with a token.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit, urlunsplit

import httpx2
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.db import ACTIVE, AuditEntry, Export, Generation, Notice, Records, Run, Webhook, new_id, now_ms
from api.schemas import iso
from photoflux.errors import InputError, PhotoFluxError
from photoflux.vault.keyring import Keyring
from photoflux.vault.sealed import Label, seal_bytes, unseal_bytes

EVENTS = {"run.ended": Run, "generation.ended": Generation, "export.ended": Export}
TEST = "test"
TIMEOUT_S = 10.0
GONE = 410
"""What an address answers that wants to hear no more."""


class Undelivered(PhotoFluxError):
    """An address did not take a message; it is sent again later."""


class Line(Protocol):
    def put_notice(self, session: Session, notice: Notice) -> None: ...


@dataclass(frozen=True)
class Subscriptions:
    """Turns what the journal notes into notices for those who want to be told."""

    line: Line

    def heard(self, session: Session, entry: AuditEntry) -> None:
        """One more entry of the journal, in its transaction."""
        kind = EVENTS.get(entry.action)
        row = session.get(kind, entry.object) if kind else None
        if row is None:
            return
        for webhook in session.scalars(select(Webhook).where(Webhook.user_id == row.user_id)):  # type: ignore[attr-defined]
            self.tell(session, webhook, entry.action, str(entry.object), entry.outcome)

    def tell(self, session: Session, webhook: Webhook, event: str, object_id: str, outcome: str) -> Notice:
        """Record a notice and put it in line."""
        notice = Notice(
            id=new_id(), user_id=webhook.user_id, webhook_id=webhook.id, event=event, object_id=object_id, outcome=outcome
        )  # fmt: skip
        session.add(notice)
        self.line.put_notice(session, notice)
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
    """An address in parts and the IP that its host has now. Raises InputError for one that is not on the public internet.

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
    if not all(ip.is_global and not ip.is_multicast for ip in found) and not (private and local):
        raise InputError("a webhook's address is on the public internet")
    return parts, str(found[0])


def _parts(address: str) -> SplitResult:
    try:
        parts = urlsplit(address)
        return parts if parts.port != 0 else parts._replace(netloc="")
    except ValueError:
        raise InputError("a webhook's address is a URL such as https://example.org/photoflux") from None


def _looked_up(host: str, port: int) -> list[Any]:
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise InputError("the host of this webhook's address is not known; correct it") from None
    return [ipaddress.ip_address(answer[4][0]) for answer in answers]


@dataclass(frozen=True)
class Messenger:
    """Sends notices. `private` and `verify`: as for one machine, and whom to trust over TLS."""

    records: Records
    keyring: Keyring
    private: bool
    verify: Any = True
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def perform(self, notice_id: str) -> str:
        """Send and record. Raises Undelivered, to be tried again."""
        with self.records.reading() as session:
            notice = session.get(Notice, notice_id)
            webhook = session.get(Webhook, notice.webhook_id) if notice else None
        if notice is None or webhook is None or notice.state not in ACTIVE:
            return notice.state if notice else "cancelled"
        status = self._send(webhook, notice)
        if status == GONE:
            with self.records.writing() as session:
                session.delete(session.get_one(Webhook, webhook.id))
            return "cancelled"
        if not 200 <= status < 300:
            raise Undelivered(f"the address answered {status}")
        return self._end(notice_id, "succeeded")

    def fail(self, notice_id: str) -> str:
        """Record that it was not taken."""
        return self._end(notice_id, "failed")

    def _end(self, notice_id: str, state: str) -> str:
        with self.records.writing() as session:
            notice = session.get(Notice, notice_id, with_for_update=True)
            if notice is not None and notice.state in ACTIVE:
                notice.state, notice.finished_ms = state, now_ms()
        return state

    def _send(self, webhook: Webhook, notice: Notice) -> int:
        """The status that the address answers with; what else it says is not read."""
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
            with (
                httpx2.Client(timeout=TIMEOUT_S, verify=self.verify, trust_env=False) as client,
                client.stream(
                    "POST", where, content=body, headers=headers, extensions={"sni_hostname": parts.hostname}
                ) as answer,
            ):
                return answer.status_code
        except httpx2.HTTPError as error:
            raise Undelivered(f"the address could not be reached: {type(error).__name__}") from error


def _netloc(ip: str, port: int | None) -> str:
    host = f"[{ip}]" if ":" in ip else ip
    return f"{host}:{port}" if port else host


def message(notice: Notice) -> str:
    """What is told: which kind of thing ended how, by id."""
    data = {"id": notice.object_id, "state": notice.outcome}
    return json.dumps({"type": notice.event, "timestamp": iso(notice.created_ms), "data": data})
