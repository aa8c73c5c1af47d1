"""Deleting what is a person's: a subject with all that hangs on it, or an account.

An account goes in this order: nobody can use it any more, its keys are destroyed, which makes every copy of what they sealed
unreadable, wherever it is; then what was sealed is deleted, and at last the rows that named it.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.db import ACTIVE, Generation, Model, Photo, Records, Run, Subject, Tombstone, User, new_id, now_ms
from api.fine_tuning import cancel_run
from api.journal import SYSTEM, Journal
from photoflux.vault.keyring import Keyring
from photoflux.vault.objects import Objects

log = logging.getLogger(__name__)

PATIENCE_S, LOOK_S = 120.0, 0.3


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
    for run in session.scalars(select(Run).where(Run.subject_id == subject.id)):
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
    end_work(session, subject, journal, why)
    for model in _add_models(session, subject, gone):
        session.delete(model)
    subject.champion_id = None
    session.flush()
    return gone


def end_work(session: Session, subject: Subject, journal: Journal, why: str) -> None:
    """Cancel what runs or waits for a subject."""
    for run in session.scalars(select(Run).where(Run.subject_id == subject.id, Run.state.in_(ACTIVE))):
        cancel_run(session, run, journal)
    waiting = select(Generation).where(Generation.subject_id == subject.id, Generation.state.in_(ACTIVE))
    for generation in session.scalars(waiting):
        generation.state, generation.error, generation.finished_ms = "cancelled", why, now_ms()


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
    for run in session.scalars(select(Run).where(Run.user_id == user.id, Run.state.in_(ACTIVE))):
        cancel_run(session, run, journal)
    waiting = select(Generation).where(Generation.user_id == user.id, Generation.state.in_(ACTIVE))
    for generation in session.scalars(waiting):
        generation.state, generation.finished_ms = "cancelled", now_ms()
    receipt = new_id()
    session.add(Tombstone(receipt=receipt, login=user.login, user_id=user.id, erased_ms=now_ms()))
    journal.note(session, user.id, "account.erased", receipt, "begun")
    return receipt


@dataclass(frozen=True)
class Erasure:
    """Finishes what `begin_erasure`, `erase_subject` and `erase_models` began; may be repeated until it is done.

    `forget` has the engine drop the owner's adapters, `unregister` deletes a model from the registry, `discard` what the pipelines
    of a run left.
    """

    records: Records
    objects: Objects
    keyring: Keyring
    journal: Journal
    forget: Callable[[str], None]
    unregister: Callable[[str], int]
    discard: Callable[[str], None]
    cache_dir: Path

    def perform(self, receipt: str) -> str:
        """Delete everything that is left of an account."""
        with self.records.reading() as session:
            tombstone = session.get(Tombstone, receipt)
            if tombstone is None or tombstone.done_ms:
                return "done"
            owner = tombstone.user_id
            subjects = list(session.scalars(select(Subject.id).where(Subject.user_id == owner)))
            runs = list(session.scalars(select(Run.id).where(Run.user_id == owner)))
        self._wait_for_runs(owner)
        self.remove(Gone(owner, runs=runs, registered=subjects))
        self.objects.erase(owner)
        shutil.rmtree(self.cache_dir / "finetune" / owner, ignore_errors=True)
        self.keyring.erase(owner)  # again: what was under way may have made a new one
        self._close(receipt, owner)
        return "done"

    def remove(self, gone: Gone) -> None:
        """Delete what deleted rows named, wherever it is."""
        try:
            self.forget(gone.owner)
        except httpx2.HTTPError as error:
            log.warning("the engine could not be told to forget (%s); it does so when it stops", type(error).__name__)
        for run in gone.runs:
            self.discard(run)
        for name in gone.registered:
            self.unregister(name)
        gone.clear(self.objects)

    def _wait_for_runs(self, owner: str) -> None:
        """Runs were told to end; what they still write must be there to be deleted."""
        until = time.monotonic() + PATIENCE_S
        active = select(func.count()).select_from(Run).where(Run.user_id == owner, Run.state.in_(ACTIVE))
        while time.monotonic() < until:
            with self.records.reading() as session:
                if not session.scalar(active):
                    return
            time.sleep(LOOK_S)
        raise TimeoutError("runs of an erased account did not end")

    def _close(self, receipt: str, owner: str) -> None:
        with self.records.writing() as session:
            tombstone = session.get_one(Tombstone, receipt, with_for_update=True)
            user = session.get(User, owner)
            if user is not None:
                session.delete(user)
            tombstone.done_ms = now_ms()
            self.journal.note(session, SYSTEM, "account.erased", receipt, "done")
        try:
            self.records.truncate_log()
        except TimeoutError as error:
            log.warning("%s", error)
