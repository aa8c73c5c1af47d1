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

from api.records.audit_log import SYSTEM, Journal
from api.records.database import Records
from api.records.outcomes import cancel_run, end_export, end_generation
from api.records.tables import (
    ACTIVE,
    Export,
    Generation,
    Model,
    Notice,
    Photo,
    Run,
    SignIn,
    Subject,
    Tombstone,
    User,
    new_id,
    now_ms,
)
from photoflux.errors import PhotoFluxError
from photoflux.vault.keyring import Keyring
from photoflux.vault.objects import Objects

if TYPE_CHECKING:
    from photoflux.tracking import ChooseVersions

log = logging.getLogger(__name__)

CLOSED = "the account was closed"


class UnderWay(PhotoFluxError):
    """Work for an erased person has not ended yet; ask again in a moment."""


@dataclass
class Gone:
    """What is to be deleted once the rows that named it are."""

    owner: str
    objects: list[tuple[str, str]] = field(default_factory=list)
    """kind and id, or kind and the beginning of ids, which then ends with a dot"""
    runs: list[str] = field(default_factory=list)
    """runs whose pipelines are ended, and whose files are deleted"""
    registered: list[str] = field(default_factory=list)
    """names in the model registry"""

    def add(self, kind: str, object_id: str) -> None:
        self.objects.append((kind, object_id))

    def clear(self, objects: Objects) -> None:
        """Delete them; what is gone already is no error."""
        for kind, name in self.objects:
            ids = objects.ids(self.owner, kind, prefix=name) if name.endswith(".") else [name]
            for object_id in ids:
                objects.delete(self.owner, kind, object_id)


def erase_subject(session: Session, subject: Subject) -> Gone:
    """Delete a subject and everything that hangs on it; runs under way are cancelled."""
    gone = Gone(subject.user_id)
    for photo in session.scalars(select(Photo).where(Photo.subject_id == subject.id)):
        gone.add("photo", photo.id)
        gone.add("thumbnail", photo.id)
    for run in session.scalars(select(Run).where(Run.subject_id == subject.id).order_by(Run.id).with_for_update()):
        run.cancel_ms = run.cancel_ms or now_ms()
        gone.add("set", run.id)
        gone.add("report", f"{run.id}.")
    _add_models(session, subject, gone)
    for generation in session.scalars(select(Generation).where(Generation.subject_id == subject.id)):
        gone.add("picture", f"{generation.id}.")
    session.delete(subject)
    session.flush()
    return gone


def erase_models(session: Session, subject: Subject, journal: Journal, why: str) -> Gone:
    """Delete what was learnt of a subject and end what is being learnt or drawn; photos and pictures stay."""
    gone = Gone(subject.user_id)
    end_work(session, [subject], journal, why)
    for model in _add_models(session, subject, gone):
        session.delete(model)
    subject.champion_id = None
    session.flush()
    return gone


def end_work(session: Session, subjects: Sequence[Subject], journal: Journal, why: str) -> None:
    """Cancel what runs or waits for subjects."""
    mine = [subject.id for subject in subjects]
    runs = select(Run).where(Run.subject_id.in_(mine), Run.state.in_(ACTIVE))
    for run in list(session.scalars(runs.order_by(Run.id).with_for_update())):
        cancel_run(session, run, journal)
    waiting = select(Generation).where(Generation.subject_id.in_(mine), Generation.state.in_(ACTIVE))
    for generation in session.scalars(waiting.order_by(Generation.id).with_for_update()):
        end_generation(session, generation, "cancelled", journal, code="cancelled", why=why)


def _add_models(session: Session, subject: Subject, gone: Gone) -> list[Model]:
    """The subject's models, whose adapters, registry entries and pipelines' files are to go."""
    models = list(session.scalars(select(Model).where(Model.subject_id == subject.id)))
    for model in models:
        gone.add("adapter", model.id)
    for run in session.scalars(select(Run).where(Run.subject_id == subject.id)):
        gone.runs.append(run.id)
        run.sign_off = None  # nobody makes a model of it afterwards
    gone.registered.append(subject.id)
    return models


def begin_erasure(session: Session, user: User, journal: Journal) -> str:
    """Close an account and stop what runs for it; returns the receipt. Its keys are to be destroyed next."""
    user.state = "erasing"
    end_sign_ins = select(SignIn).where(SignIn.user_id == user.id, SignIn.revoked_ms.is_(None))
    for sign_in in session.scalars(end_sign_ins.order_by(SignIn.id).with_for_update()):
        sign_in.revoked_ms = now_ms()
    subjects = select(Subject).where(Subject.user_id == user.id).order_by(Subject.id).with_for_update()
    end_work(session, list(session.scalars(subjects)), journal, CLOSED)
    exports = select(Export).where(Export.user_id == user.id, Export.state.in_(ACTIVE))
    for export in session.scalars(exports.order_by(Export.id).with_for_update()):
        end_export(session, export, "cancelled", journal, code="cancelled", why=CLOSED)
    notices = select(Notice).where(Notice.user_id == user.id, Notice.state.in_(ACTIVE))
    for notice in session.scalars(notices.order_by(Notice.id).with_for_update()):
        notice.state, notice.finished_ms = "cancelled", now_ms()
    receipt = new_id()
    session.add(Tombstone(receipt=receipt, login=user.login, user_id=user.id, erased_ms=now_ms()))
    journal.note(session, user.id, "account.erased", receipt, "begun")
    return receipt


@dataclass(frozen=True)
class Erasure:
    """Finishes what `begin_erasure`, `erase_subject` and `erase_models` began; may be repeated until it is done.

    `forget` has the engine drop the owner's adapters, `unregister` deletes versions of a model from the registry, `discard` what the
    pipelines of a run left. `require` raises where this worker's work is another's by now; `is_idle` takes what waits for an owner out
    of the line and says whether nothing is being done for them; `recorded` is called when an erasure is in the log.
    """

    records: Records
    objects: Objects
    keyring: Keyring
    journal: Journal
    forget: Callable[[str], None]
    unregister: Callable[[str, ChooseVersions], int]
    discard: Callable[[str], None]
    cache_dir: Path
    require: Callable[[], None] = lambda: None
    is_idle: Callable[[str], bool] = lambda _: True
    recorded: Callable[[], object] = lambda: None

    def perform(self, receipt: str) -> str:
        """Delete everything that is left of an account. Raises UnderWay while something is still being done for it."""
        with self.records.reading() as session:
            tombstone = session.get(Tombstone, receipt)
            if tombstone is None or tombstone.done_ms:
                return "done"
            owner = tombstone.user_id
            subjects = list(session.scalars(select(Subject.id).where(Subject.user_id == owner)))
            runs = list(session.scalars(select(Run.id).where(Run.user_id == owner)))
        self.keyring.erase(owner)  # whoever accepted the erasure may have been killed before doing so
        if not self.is_idle(owner):
            raise UnderWay("work for an erased account has not ended yet")
        self.remove(Gone(owner, runs=runs, registered=subjects))
        self.objects.erase(owner)
        shutil.rmtree(self.cache_dir / "finetune" / owner, ignore_errors=True)
        self._close(receipt, owner)
        return "done"

    def remove(self, gone: Gone) -> None:
        """Delete what deleted rows named, wherever it is."""
        self.require()
        try:
            self.forget(gone.owner)
        except httpx2.HTTPError as error:
            log.warning(
                "the engine could not be told to forget (%s); it does so within half a minute", type(error).__name__
            )
        for run in gone.runs:
            self.discard(run)
            shutil.rmtree(self.cache_dir / "finetune" / gone.owner / run, ignore_errors=True)
        for name in gone.registered:
            self.unregister(name, functools.partial(self._superseded, name, gone))
        gone.clear(self.objects)

    def _superseded(self, name: str, gone: Gone, versions: Sequence[int]) -> set[int]:
        """Which versions of a subject's model are to go: it may have been trained on anew since, where a removal was put off.

        Raises UnderWay while that goes on, since a version may be there that no row names yet. Of an account that is erased all go, whose
        rows are there until the end.
        """
        with self.records.reading() as session:
            owner = session.get(User, gone.owner)
            if owner is None or owner.state == "erasing":
                return set(versions)
            under_way = or_(Run.state.in_(ACTIVE), and_(Run.sign_off == "given", Run.state != "succeeded"))
            newer = select(Run.id).where(Run.subject_id == name, Run.id.not_in(gone.runs), under_way)
            if session.scalar(newer.limit(1)):
                raise UnderWay("a newer model of the subject is being made")
            named = session.scalars(select(Model.registry_version).where(Model.registry_name == name))
            return set(versions) - {int(version) for version in named}

    def _close(self, receipt: str, owner: str) -> None:
        with self.records.writing() as session:
            if user := session.get(User, owner, with_for_update=True):
                session.delete(user)
        try:
            self.records.truncate_log()
        except TimeoutError as error:
            raise UnderWay("somebody reads what the database has not let go of yet") from error
        with self.records.writing() as session:
            session.get_one(Tombstone, receipt, with_for_update=True).done_ms = now_ms()
            self.journal.note(session, SYSTEM, "account.erased", receipt, "done")
        self.recorded()
