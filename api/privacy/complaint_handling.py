"""Complaints about pictures: made by anybody, answered by an operator, who can have the models and pictures deleted."""

from __future__ import annotations

import json

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.privacy.erasure import DeletionPlan, erase_models
from api.records.audit_log import AuditLog
from api.records.service_secrets import service_label
from api.records.tables import Complaint, Generation, Model, Subject, User, new_id, now_ms
from photoflux.vault.keyring import Keyring
from photoflux.vault.sealed import seal_bytes, unseal_bytes

REMOVED = "it was removed after a complaint"


def new_complaint(reason: str, adapter_sha256: str | None, text: str, contact: str, *, keyring: Keyring) -> Complaint:
    """A complaint; its text and contact are sealed by the service's own keyset, so that operators can read them."""
    row = Complaint(id=new_id(), reason=reason, adapter_sha256=adapter_sha256, state="open")
    details = json.dumps({"text": text, "contact": contact}).encode()
    row.details = seal_bytes(details, label=service_label("complaint", row.id), keyring=keyring)
    return row


def read_details(row: Complaint, keyring: Keyring) -> dict[str, str]:
    """The complaint's text, and how to reach its sender."""
    return dict(json.loads(unseal_bytes(row.details, label=service_label("complaint", row.id), keyring=keyring)))


def take_down(session: Session, row: Complaint, audit_log: AuditLog) -> list[DeletionPlan]:
    """Delete the models that a complaint names by their adapter, and every picture of their subjects."""
    plans = []
    models = select(Model.subject_id).where(Model.adapter_sha256 == row.adapter_sha256)
    owners = select(Subject.user_id).where(Subject.id.in_(models))
    list(session.scalars(select(User.id).where(User.id.in_(owners)).order_by(User.id).with_for_update()))
    subjects = select(Subject).where(Subject.id.in_(models)).order_by(Subject.id).with_for_update()
    for subject in list(session.scalars(subjects)):
        plan = erase_models(session, subject, audit_log, REMOVED)
        for generation in session.scalars(select(Generation).where(Generation.subject_id == subject.id)):
            plan.add("image", f"{generation.id}.")
            session.delete(generation)
        session.flush()
        audit_log.record(session, subject.user_id, "subject.taken-down", subject.id)
        plans.append(plan)
    return plans


def close(row: Complaint, outcome: str) -> None:
    """Record how it was answered."""
    row.state, row.closed_ms = outcome, now_ms()
