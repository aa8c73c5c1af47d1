"""The audit log: who did what to which thing, chained by digests so that nothing can be taken out or changed unseen.

It outlives the people in it, so it names nobody: an actor is a keyed digest, an object a random id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from api.db import AuditEntry, now_ms
from api.secrets import keyed_digest

FIRST = "0" * 64
SYSTEM, ANYBODY = "system", "anybody"
NOBODY = (SYSTEM, ANYBODY)
LOCK = 0x70666A  # any number that no other advisory lock of the database has
FIELDS = ("number", "at_ms", "actor", "action", "object", "outcome", "before")


@dataclass(frozen=True)
class Journal:
    """Writes entries; `pepper` keys the pseudonyms. `heard` is told of each, in the same transaction."""

    pepper: bytes
    heard: Callable[[Session, AuditEntry], None] = lambda *_: None

    def pseudonym(self, user_id: str) -> str:
        """How the log calls a person: the same each time, and nobody's name."""
        return keyed_digest(self.pepper, "journal", user_id)[:32]

    def note(self, session: Session, user_id: str, action: str, obj: str | None = None, outcome: str = "done") -> None:
        """Add an entry in the caller's transaction; `user_id` may be one of `NOBODY`."""
        if session.get_bind().dialect.name == "postgresql":
            session.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        last = session.scalar(select(AuditEntry).order_by(AuditEntry.number.desc()).limit(1))
        entry = AuditEntry(
            number=last.number + 1 if last else 1, at_ms=now_ms(),
            actor=user_id if user_id in NOBODY else self.pseudonym(user_id),
            action=action, object=obj, outcome=outcome, before=last.digest if last else FIRST,
        )  # fmt: skip
        entry.digest = digest_of(entry)
        session.add(entry)
        session.flush()
        self.heard(session, entry)


def digest_of(entry: AuditEntry) -> str:
    """SHA-256 over everything in the entry, the digest before it included."""
    said: list[Any] = [getattr(entry, name) for name in FIELDS]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def first_broken(session: Session) -> int | None:
    """Number of the first entry that was changed, or before which one is missing; None when the chain is whole."""
    before, number = FIRST, 0
    for entry in session.scalars(select(AuditEntry).order_by(AuditEntry.number)):
        if entry.number != number + 1 or entry.before != before or entry.digest != digest_of(entry):
            return number + 1
        before, number = entry.digest, entry.number
    return None
