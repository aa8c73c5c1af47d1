"""Deleting what is a person's: a subject with all that hangs on it, or an account.

An account goes in this order: nobody can use it any more, its keys are destroyed, which makes every copy of what they sealed
unreadable, wherever it is, and nothing is sealed for it again; what is under way for it is ended and awaited; then what was sealed is
deleted, and at last the rows that named it.
"""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from api.records.audit_log import SYSTEM, AuditLog
from api.records.database import Records
from api.records.outcomes import cancel_run, end_export, end_generation
from api.records.tables import (
    ACTIVE,
    Export,
    Generation,
    LoginSession,
    Model,
    Photo,
    Run,
    Subject,
    Tombstone,
    User,
    WebhookDelivery,
    new_id,
    now_ms,
)
from photoflux.errors import PhotoFluxError
from photoflux.vault.keyring import Keyring
from photoflux.vault.objects import Objects

if TYPE_CHECKING:
    from photoflux.tracking import ChooseVersions

log = logging.getLogger(__name__)

ACCOUNT_CLOSED = "the account was closed"


class WorkInProgress(PhotoFluxError):
    """Work for an erased person has not ended yet; to be tried again in a moment."""


@dataclass
class DeletionPlan:
    """What is to be deleted once the rows that named it are: sealed objects, files of pipelines, versions in the registry."""

    owner: str
    objects: list[tuple[str, str]] = field(default_factory=list)
    """kind and id, or kind and the beginning of ids, which then ends with a dot"""
    runs: list[str] = field(default_factory=list)
    """runs whose pipelines are ended, and whose files are deleted"""
    registered: list[str] = field(default_factory=list)
    """names in the model registry"""

    def add(self, kind: str, object_id: str) -> None:
        self.objects.append((kind, object_id))

    def delete_objects(self, objects: Objects) -> None:
        """Delete the objects; a missing one is no error."""
        for kind, name in self.objects:
            ids = objects.ids(self.owner, kind, prefix=name) if name.endswith(".") else [name]
            for object_id in ids:
                objects.delete(self.owner, kind, object_id)


def erase_subject(session: Session, subject: Subject) -> DeletionPlan:
    """Delete a subject and everything that hangs on it; runs under way are cancelled."""
    plan = DeletionPlan(subject.user_id)
    for photo in session.scalars(select(Photo).where(Photo.subject_id == subject.id)):
        plan.add("photo", photo.id)
        plan.add("thumbnail", photo.id)
    for run in session.scalars(select(Run).where(Run.subject_id == subject.id).order_by(Run.id).with_for_update()):
        run.cancel_requested_ms = run.cancel_requested_ms or now_ms()
        plan.add("set", run.id)
        plan.add("report", f"{run.id}.")
    _add_models(session, subject, plan)
    for generation in session.scalars(select(Generation).where(Generation.subject_id == subject.id)):
        plan.add("image", f"{generation.id}.")
    session.delete(subject)
    session.flush()
    return plan


def erase_models(session: Session, subject: Subject, audit_log: AuditLog, why: str) -> DeletionPlan:
    """Delete the subject's models and cancel its runs and generations; photos and pictures stay."""
    plan = DeletionPlan(subject.user_id)
    cancel_work(session, [subject], audit_log, why)
    for model in _add_models(session, subject, plan):
        session.delete(model)
    subject.champion_id = None
    session.flush()
    return plan


def cancel_work(session: Session, subjects: Sequence[Subject], audit_log: AuditLog, why: str) -> None:
    """Cancel queued and running runs and generations of subjects."""
    subject_ids = [subject.id for subject in subjects]
    runs = select(Run).where(Run.subject_id.in_(subject_ids), Run.state.in_(ACTIVE))
    for run in list(session.scalars(runs.order_by(Run.id).with_for_update())):
        cancel_run(session, run, audit_log)
    waiting = select(Generation).where(Generation.subject_id.in_(subject_ids), Generation.state.in_(ACTIVE))
    for generation in session.scalars(waiting.order_by(Generation.id).with_for_update()):
        end_generation(session, generation, "cancelled", audit_log, code="cancelled", why=why)


def _add_models(session: Session, subject: Subject, plan: DeletionPlan) -> list[Model]:
    """The subject's models; adds their adapters, registry entries and pipelines' files to the plan."""
    models = list(session.scalars(select(Model).where(Model.subject_id == subject.id)))
    for model in models:
        plan.add("adapter", model.id)
    for run in session.scalars(select(Run).where(Run.subject_id == subject.id)):
        plan.runs.append(run.id)
        run.sign_off = None  # so that no operator signs for a model of it afterwards
    plan.registered.append(subject.id)
    return models


def begin_erasure(session: Session, user: User, audit_log: AuditLog) -> str:
    """Close an account and stop what runs for it; returns the receipt. Its keys are to be destroyed next."""
    user.state = "erasing"
    open_sessions = select(LoginSession).where(LoginSession.user_id == user.id, LoginSession.revoked_ms.is_(None))
    for login_session in session.scalars(open_sessions.order_by(LoginSession.id).with_for_update()):
        login_session.revoked_ms = now_ms()
    subjects = select(Subject).where(Subject.user_id == user.id).order_by(Subject.id).with_for_update()
    cancel_work(session, list(session.scalars(subjects)), audit_log, ACCOUNT_CLOSED)
    exports = select(Export).where(Export.user_id == user.id, Export.state.in_(ACTIVE))
    for export in session.scalars(exports.order_by(Export.id).with_for_update()):
        end_export(session, export, "cancelled", audit_log, code="cancelled", why=ACCOUNT_CLOSED)
    deliveries = select(WebhookDelivery).where(WebhookDelivery.user_id == user.id, WebhookDelivery.state.in_(ACTIVE))
    for delivery in session.scalars(deliveries.order_by(WebhookDelivery.id).with_for_update()):
        delivery.state, delivery.finished_ms = "cancelled", now_ms()
    receipt = new_id()
    session.add(Tombstone(receipt=receipt, login=user.login, user_id=user.id, erased_ms=now_ms()))
    audit_log.record(session, user.id, "account.erased", receipt, "begun")
    return receipt


@dataclass(frozen=True)
class Erasure:
    """Finishes what `begin_erasure`, `erase_subject` and `erase_models` began; may be called again until it is done.

    `forget` has the engine drop the owner's adapters, `unregister` deletes versions of a model from the registry, `discard` what the
    pipelines of a run left. `require` raises where this worker has lost its lease; `is_idle` removes an owner's queued jobs and says
    whether none is running; `recorded` is called when an erasure is in the log.
    """

    records: Records
    objects: Objects
    keyring: Keyring
    audit_log: AuditLog
    forget: Callable[[str], None]
    unregister: Callable[[str, ChooseVersions], int]
    discard: Callable[[str], None]
    cache_dir: Path
    require: Callable[[], None] = lambda: None
    is_idle: Callable[[str], bool] = lambda _: True
    recorded: Callable[[], object] = lambda: None

    def perform(self, receipt: str) -> str:
        """Delete everything that is left of an account. Raises WorkInProgress while something is still being done for it."""
        with self.records.reading() as session:
            tombstone = session.get(Tombstone, receipt)
            if tombstone is None or tombstone.done_ms:
                return "done"
            owner = tombstone.user_id
            subjects = list(session.scalars(select(Subject.id).where(Subject.user_id == owner)))
            runs = list(session.scalars(select(Run.id).where(Run.user_id == owner)))
        self.keyring.erase(owner)  # the process that accepted the erasure may have been killed before this
        if not self.is_idle(owner):
            raise WorkInProgress("work for an erased account has not ended yet")
        self.remove(DeletionPlan(owner, runs=runs, registered=subjects))
        self.objects.erase(owner)
        shutil.rmtree(self.cache_dir / "finetune" / owner, ignore_errors=True)
        self._finish(receipt, owner)
        return "done"

    def remove(self, plan: DeletionPlan) -> None:
        """Carry out a plan: in the engine, pipelines' folders, caches, the registry and the object store."""
        self.require()
        try:
            self.forget(plan.owner)
        except httpx2.HTTPError as error:
            log.warning(
                "the engine could not be told to forget (%s); it does so within half a minute", type(error).__name__
            )
        for run in plan.runs:
            self.discard(run)
            shutil.rmtree(self.cache_dir / "finetune" / plan.owner / run, ignore_errors=True)
        for name in plan.registered:
            self.unregister(name, functools.partial(self._versions_to_delete, name, plan))
        plan.delete_objects(self.objects)

    def _versions_to_delete(self, name: str, plan: DeletionPlan, versions: Sequence[int]) -> set[int]:
        """Versions of a subject's model to delete: those that no row names, since the subject may have been trained again meanwhile.

        Raises WorkInProgress while a newer run is under way, whose version no row names yet. Of an erased account all are deleted, though
        its rows exist until the end.
        """
        with self.records.reading() as session:
            owner = session.get(User, plan.owner)
            if owner is None or owner.state == "erasing":
                return set(versions)
            under_way = or_(Run.state.in_(ACTIVE), and_(Run.sign_off == "given", Run.state != "succeeded"))
            newer = select(Run.id).where(Run.subject_id == name, Run.id.not_in(plan.runs), under_way)
            if session.scalar(newer.limit(1)):
                raise WorkInProgress("a newer model of the subject is being made")
            named = session.scalars(select(Model.registry_version).where(Model.registry_name == name))
            return set(versions) - {int(version) for version in named}

    def _finish(self, receipt: str, owner: str) -> None:
        with self.records.writing() as session:
            if user := session.get(User, owner, with_for_update=True):
                session.delete(user)
        try:
            self.records.truncate_wal()
        except TimeoutError as error:
            raise WorkInProgress("somebody reads what the database has not let go of yet") from error
        with self.records.writing() as session:
            session.get_one(Tombstone, receipt, with_for_update=True).done_ms = now_ms()
            self.audit_log.record(session, SYSTEM, "account.erased", receipt, "done")
        self.recorded()
