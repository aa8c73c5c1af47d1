"""Complaints about pictures: anybody may send one, an operator answers it, and what it is about can be taken away."""

from __future__ import annotations

import json

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.privacy.erasure import Gone, erase_models
from api.records.audit_log import Journal
from api.records.service_secrets import service_label
from api.records.tables import Complaint, Generation, Model, Subject, User, new_id, now_ms
from photoflux.vault.keyring import Keyring
from photoflux.vault.sealed import seal_bytes, unseal_bytes

REMOVED = "it was removed after a complaint"


def new_complaint(reason: str, about: str | None, text: str, contact: str, *, keyring: Keyring) -> Complaint:
    """A complaint whose words are sealed by the service's own keyset, which operators' requests open."""
    row = Complaint(id=new_id(), reason=reason, about=about, state="open")
    words = json.dumps({"text": text, "contact": contact}).encode()
    row.details = seal_bytes(words, label=service_label("complaint", row.id), keyring=keyring)
    return row


def words_of(row: Complaint, keyring: Keyring) -> dict[str, str]:
    """What it says, and how to reach who sent it."""
    return dict(json.loads(unseal_bytes(row.details, label=service_label("complaint", row.id), keyring=keyring)))


def take_down(session: Session, row: Complaint, journal: Journal) -> list[Gone]:
    """Delete the models that a complaint names by their adapter, and every picture of their subjects."""
    taken = []
    models = select(Model.subject_id).where(Model.adapter_sha256 == row.about)
    owners = select(Subject.user_id).where(Subject.id.in_(models))
    list(session.scalars(select(User.id).where(User.id.in_(owners)).order_by(User.id).with_for_update()))
    subjects = select(Subject).where(Subject.id.in_(models)).order_by(Subject.id).with_for_update()
    for subject in list(session.scalars(subjects)):
        gone = erase_models(session, subject, journal, REMOVED)
        for generation in session.scalars(select(Generation).where(Generation.subject_id == subject.id)):
            gone.add("image", f"{generation.id}.")
            session.delete(generation)
        session.flush()
        journal.note(session, subject.user_id, "subject.taken-down", subject.id)
        taken.append(gone)
    return taken


def close(row: Complaint, outcome: str) -> None:
    """Record how it was answered."""
    row.state, row.closed_ms = outcome, now_ms()
