"""Retention: deletes what is past its period, and what a killed process left that no row names.

Periods are in the settings and in the privacy notice; one of 0 days keeps things until they are deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from api.accounts.tokens import Tokens
from api.privacy.erasure import DeletionPlan, erase_models
from api.records.audit_log import AuditHeads, AuditLog
from api.records.database import AccountClosed, Records
from api.records.service_secrets import OWNER
from api.records.tables import (
    ACTIVE,
    REPLAY_MS,
    Complaint,
    Export,
    GeneratedImage,
    Generation,
    IdempotencyKey,
    LoginFlow,
    LoginSession,
    Model,
    Photo,
    Run,
    SigningKey,
    Subject,
    Tombstone,
    Usage,
    User,
    WebhookDelivery,
    now_ms,
)
from api.settings import RetentionPeriods
from photoflux.vault.objects import KINDS, Objects

DAY_MS = 24 * 3600 * 1000
ORPHAN_AGE_S = DAY_MS / 1000
"""Age in seconds from which an object without a row is an orphan: it is stored a moment before its row."""
HEADS_KEPT_DAYS = 7
"""Days for which every head of the audit log is kept; of older ones, the last of each day."""
IDLE_MODEL = "it was not drawn with for a long time; train the subject again"


@dataclass(frozen=True)
class Retention:
    """The daily run of retention; may be repeated and interrupted.

    `discard` deletes the files of a run's pipelines; `remove` is called in the transaction that deletes rows, with the plan of what they
    named; `forget` deletes records of durable work that ended before a time (milliseconds since 1970) and returns how many.
    """

    records: Records
    objects: Objects
    audit_log: AuditLog
    tokens: Tokens
    periods: RetentionPeriods
    discard: Callable[[str], None]
    remove: Callable[[Session, DeletionPlan], None]
    forget: Callable[[int], int]
    heads: AuditHeads

    def perform(self) -> dict[str, int]:
        """Delete what is past its period or left over; returns counts by kind."""
        deleted = {
            "photos": self._old_photos(),
            "models": self._idle_models(),
            "images": self._old_images(),
            "exports": self._old_exports(),
            "rows": self._old_rows(),
            "objects": self._orphans(),
            "runs": self._old_runs(),
            "keysets": self._lost_keysets(),
            "signing keys": self._old_signing_key(),
            "heads": self.heads.thin_out(older_than_ms=_cutoff_ms(HEADS_KEPT_DAYS)),
            "work": self.forget(_cutoff_ms(self.periods.work)) if self.periods.work else 0,
        }
        return {name: count for name, count in deleted.items() if count}

    def _old_photos(self) -> int:
        count, before = 0, _cutoff_ms(self.periods.photos)
        for subject in self._subjects(before):
            plan = None
            with self._subject(subject) as (session, row):
                if (
                    row is None
                    or _newest_ms(session, Run, row.id) > before
                    or _newest_ms(session, Photo, row.id) > before
                ):
                    continue
                photos = list(session.scalars(select(Photo).where(Photo.subject_id == row.id).with_for_update()))
                row.verdict = None
                session.flush()
                for photo in photos:
                    session.delete(photo)
                plan = DeletionPlan(row.user_id, [(kind, p.id) for p in photos for kind in ("photo", "thumbnail")])
                count += len(photos)
            if plan:
                plan.delete_objects(self.objects)
        return count

    def _idle_models(self) -> int:
        count, before = 0, _cutoff_ms(self.periods.models)
        for subject in self._subjects(before):
            with self._subject(subject) as (session, row):
                if row is None or max(_newest_ms(session, kind, row.id) for kind in (Run, Generation)) > before:
                    continue
                models = session.scalar(select(func.count()).select_from(Model).where(Model.subject_id == row.id))
                if not models:
                    continue
                self.remove(session, erase_models(session, row, self.audit_log, IDLE_MODEL))
                count += models
        return count

    def _subjects(self, before: int) -> list[str]:
        with self.records.reading() as session:
            return list(session.scalars(select(Subject.id).where(Subject.created_ms < before)))

    @contextmanager
    def _subject(self, subject_id: str) -> Iterator[tuple[Session, Subject | None]]:
        """A transaction on a subject, with its owner locked first; the subject is None where there is none any more."""
        with self.records.writing() as session:
            owner = session.scalar(select(Subject.user_id).where(Subject.id == subject_id))
            user = session.get(User, owner, with_for_update=True) if owner else None
            found = session.get(Subject, subject_id, with_for_update=True) if user and user.state == "active" else None
            yield session, found

    def _old_images(self) -> int:
        """Owner by owner: a transaction that locks many people's rows would block all of them."""
        old = Generation.created_ms < _cutoff_ms(self.periods.images), Generation.state.not_in(ACTIVE)
        with self.records.reading() as session:
            owners = list(session.scalars(select(Generation.user_id).where(*old).distinct()))
        count = 0
        for owner in owners:
            plan = DeletionPlan(owner)
            with suppress(AccountClosed), self.records.writing_for(owner) as session:
                mine = select(Generation).where(*old, Generation.user_id == owner).with_for_update()
                for row in session.scalars(mine):
                    session.delete(row)
                    plan.add("image", f"{row.id}.")
            plan.delete_objects(self.objects)
            count += len(plan.objects)
        return count

    def _old_runs(self) -> int:
        """Files of pipelines; a run's reports and adapter are stored apart from them, and stay."""
        query = select(Run.id).where(
            Run.finished_ms < _cutoff_ms(self.periods.runs),
            Run.remote_id.is_not(None),
            Run.sign_off.is_distinct_from("given"),
        )
        with self.records.reading() as session:
            runs = list(session.scalars(query))
        for run in runs:
            self.discard(run)
            with self.records.writing() as session:
                if row := session.get(Run, run, with_for_update=True):
                    row.remote_id = None
        return len(runs)

    def _old_exports(self) -> int:
        with self.records.writing() as session:
            rows = list(session.scalars(select(Export).where(Export.expires_ms < now_ms()).with_for_update()))
            for row in rows:
                session.delete(row)
        for row in rows:
            if row.object_id:
                self.objects.delete(row.user_id, "export", row.object_id)
        return len(rows)

    def _old_rows(self) -> int:
        """Rows that no other row depends on, a table at a time."""
        past: list[Any] = [
            delete(IdempotencyKey).where(IdempotencyKey.created_ms < now_ms() - REPLAY_MS),
            delete(LoginFlow).where(LoginFlow.expires_ms < now_ms()),
            delete(LoginSession).where(LoginSession.expires_ms < now_ms()),
            delete(SigningKey).where(SigningKey.retired_ms < now_ms() - DAY_MS),
            delete(WebhookDelivery).where(WebhookDelivery.finished_ms < _cutoff_ms(self.periods.webhook_deliveries)),
            delete(Usage).where(Usage.created_ms < now_ms() - DAY_MS),
            delete(Complaint).where(Complaint.closed_ms < _cutoff_ms(self.periods.complaints)),
            delete(Tombstone).where(Tombstone.done_ms < _cutoff_ms(self.periods.tombstones)),
        ]
        answered = Complaint.created_ms < now_ms() - REPLAY_MS, Complaint.idempotency_key_digest.is_not(None)
        forgotten = update(Complaint).where(*answered).values(idempotency_key_digest=None, request_digest=None)
        self._executed(forgotten)
        return sum(self._executed(statement) for statement in past)

    def _executed(self, statement: Any) -> int:
        with self.records.writing() as session:
            return int(session.execute(statement).rowcount)  # type: ignore[attr-defined]

    def _old_signing_key(self) -> int:
        """Rotates the signing key after its period; tokens of the one before stay valid until they expire."""
        with self.records.reading() as session:
            made = session.scalar(select(func.max(SigningKey.created_ms)).where(SigningKey.retired_ms.is_(None)))
        if made is None or made > _cutoff_ms(self.periods.signing_keys):
            return 0
        self.tokens.rotate()
        return 1

    def _orphans(self) -> int:
        """Objects of a day ago that no row names."""
        count = 0
        for kind in KINDS:
            for name in list(self.objects.store.list(f"{kind}s/")):
                _, owner, object_id = name.split("/")
                if self._is_named(kind, object_id) or self.objects.store.age_s(name) < ORPHAN_AGE_S:
                    continue
                self.objects.delete(owner, kind, object_id)
                count += 1
        return count

    def _is_named(self, kind: str, object_id: str) -> bool:
        """Whether a row names the object. Images and exports are compared by their whole name: failed attempts left others."""
        if kind == "head":
            return True
        row_id = object_id.partition(".")[0]
        whole: dict[str, tuple[Any, Any]] = {
            "image": (GeneratedImage, GeneratedImage.generation_id),
            "export": (Export, Export.id),
        }
        tables: dict[str, Any] = {"photo": Photo, "thumbnail": Photo, "set": Run, "report": Run, "adapter": Model}
        with self.records.reading() as session:
            if kind in whole:
                table, named_by = whole[kind]
                query = select(table.id).where(named_by == row_id, table.object_id == object_id)
                return session.scalar(query) is not None
            return session.get(tables[kind], row_id) is not None

    def _lost_keysets(self) -> int:
        """Keysets that were made after their owner's erasure, by work that was still under way."""
        keyring, count = self.objects.keyring, 0
        for owner in set(keyring.owners()) - {OWNER}:
            with self.records.reading() as session:
                erased = session.scalar(select(Tombstone.receipt).where(Tombstone.user_id == owner))
                if session.get(User, owner) is not None or erased is None:
                    continue
            count += keyring.erase(owner)
        return count


def _cutoff_ms(days: int) -> int:
    return now_ms() - days * DAY_MS if days else 0


def _newest_ms(session: Session, kind: Any, subject: str) -> int:
    """When the newest row of a subject was made, in milliseconds since 1970; 0 without one."""
    return session.scalar(select(func.max(kind.created_ms)).where(kind.subject_id == subject)) or 0
