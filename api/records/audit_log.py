"""The audit log: who did what to which thing, chained by keyed digests, with its heads kept elsewhere.

An entry's digest is an HMAC over the entry and the digest before it, under a key of the keyring: who can write to the database alone
can neither change an entry nor make one. Who deletes the newest entries is found out by the *heads*, the number and digest of the newest
entry, which are put among the sealed objects every minute, and after each erasure and sign-off. Nothing is shown against somebody who
holds database and keyring, and entries newer than the last head may vanish. The log outlives the people in it, so it names nobody: an actor
is a keyed digest, an object a random id.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from api.records.database import Records, before_commit
from api.records.service_secrets import OWNER, keyed_digest
from api.records.tables import AuditEntry, now_ms
from photoflux.errors import PhotoFluxError
from photoflux.vault.blobs import BlobExists, BlobMissing
from photoflux.vault.objects import Objects

GENESIS_DIGEST = "0" * 64
SYSTEM, ANYBODY = "system", "anybody"
UNNAMED_ACTORS = (SYSTEM, ANYBODY)
LOCK = 0x70666A  # any number that no other advisory lock of the database has
HEAD, HEAD_DIGITS = "head", 12
"""Kind of object, and digits of its id, so that ids sort as numbers do."""
DAY_MS = 24 * 3600 * 1000
FIELDS = ("number", "at_ms", "actor", "action", "object", "outcome", "previous_digest")


@dataclass(frozen=True)
class AuditLog:
    """Writes entries. `pepper` keys pseudonyms and digests; `on_entry` is called in each one's transaction with action, object, outcome."""

    pepper: bytes
    on_entry: Callable[[Session, str, str | None, str], None] = lambda *_: None

    def pseudonym(self, user_id: str) -> str:
        """The stable pseudonym of a person in the log, 32 hexadecimal digits."""
        return keyed_digest(self.pepper, "actor", user_id)[:32]

    def record(
        self, session: Session, user_id: str, action: str, obj: str | None = None, outcome: str = "done"
    ) -> None:
        """Add an entry at the end of the caller's transaction; `user_id` may be one of `UNNAMED_ACTORS`.

        Every writer waits for the log's lock, so that it is taken last, and held only while the transaction commits.
        """
        actor = user_id if user_id in UNNAMED_ACTORS else self.pseudonym(user_id)
        before_commit(session, lambda session: self.on_entry(session, action, obj, outcome))
        before_commit(session, lambda session: self._append(session, actor, action, obj, outcome), rank=1)

    def _append(self, session: Session, actor: str, action: str, obj: str | None, outcome: str) -> None:
        if session.get_bind().dialect.name == "postgresql":
            session.execute(text("select pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        last = session.scalar(select(AuditEntry).order_by(AuditEntry.number.desc()).limit(1))
        entry = AuditEntry(
            number=last.number + 1 if last else 1,
            at_ms=now_ms(),
            actor=actor,
            action=action,
            object=obj,
            outcome=outcome,
            previous_digest=last.digest if last else GENESIS_DIGEST,
        )
        entry.digest = self.digest_of(entry)
        session.add(entry)
        session.flush()

    def digest_of(self, entry: AuditEntry) -> str:
        """HMAC-SHA256 over everything in the entry, the digest before it included; 64 hexadecimal digits."""
        values: list[Any] = [getattr(entry, name) for name in FIELDS]
        return hmac.new(self._key, json.dumps(values).encode(), hashlib.sha256).hexdigest()

    def first_broken(self, session: Session) -> int | None:
        """Number of the first entry that was changed, or before which one is missing; None when the chain is whole."""
        before, number = GENESIS_DIGEST, 0
        for entry in session.scalars(select(AuditEntry).order_by(AuditEntry.number).execution_options(yield_per=1000)):
            follows = entry.number == number + 1 and entry.previous_digest == before
            if not follows or not hmac.compare_digest(entry.digest, self.digest_of(entry)):
                return number + 1
            before, number = entry.digest, entry.number
        return None

    @property
    def _key(self) -> bytes:
        """A key of its own, so that no other use of the secret makes digests of entries."""
        return hmac.new(self.pepper, b"audit-log", hashlib.sha256).digest()


@dataclass(frozen=True)
class AuditHeads:
    """Heads of the log among the sealed objects: each is stored once and never replaced."""

    records: Records
    objects: Objects
    audit_log: AuditLog

    def store(self) -> int:
        """Store the head of the log as it is now; returns its number, 0 for an empty log. One that is stored already stays."""
        with self.records.reading() as session:
            last = session.scalar(select(AuditEntry).order_by(AuditEntry.number.desc()).limit(1))
        if last is None:
            return 0
        content = json.dumps({"number": last.number, "digest": last.digest, "at_ms": now_ms()}).encode()
        with suppress(BlobExists):
            self.objects.put(OWNER, HEAD, f"{last.number:0{HEAD_DIGITS}}", content)
        return last.number

    def first_broken(self) -> int | None:
        """As `AuditLog.first_broken`, held against every stored head as well: entries that a head knew must be there as it knew them."""
        read = ((int(name), self._digest_in(name)) for name in self.objects.ids(OWNER, HEAD))
        heads = {number: digest for number, digest in read if digest is not None}
        with self.records.reading() as session:
            found = [broken] if (broken := self.audit_log.first_broken(session)) else []
            newest = session.scalar(select(func.max(AuditEntry.number))) or 0
            known = select(AuditEntry.number, AuditEntry.digest).where(AuditEntry.number.in_(heads))
            digests = dict(session.execute(known).tuples().all())
        missing = [min(newest + 1, number) for number in heads if number not in digests]
        other = [number for number, digest in digests.items() if heads[number] != digest]
        return min([*found, *missing, *other], default=None)

    def _digest_in(self, name: str) -> str | None:
        """The digest in a head; empty where the head was tampered with, None where it was thinned out meanwhile."""
        try:
            return str(json.loads(self.objects.get(OWNER, HEAD, name))["digest"])
        except BlobMissing:
            return None
        except PhotoFluxError:
            return ""

    def thin_out(self, *, older_than_ms: int) -> int:
        """Delete heads of a day but its last one, where they are older: a later head knows all that an earlier one did."""
        by_day: dict[int, list[str]] = {}
        for name in self.objects.ids(OWNER, HEAD):
            try:
                head = json.loads(self.objects.get(OWNER, HEAD, name))
            except BlobMissing:  # another sweep was faster
                continue
            if head["at_ms"] < older_than_ms:
                by_day.setdefault(head["at_ms"] // DAY_MS, []).append(name)
        superseded = [name for names in by_day.values() for name in sorted(names)[:-1]]
        for name in superseded:
            self.objects.delete(OWNER, HEAD, name)
        return len(superseded)
