"""Complaints: sent by anybody, without an account; answered by operators."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Header, Query, Request
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from api.deps import JournalDep, KeyringDep, LimitsDep, Operator, QueueDep, RecordsDep
from api.privacy.complaint_handling import close, new_complaint, take_down, words_of
from api.records.audit_log import ANYBODY
from api.records.database import Records
from api.records.service_secrets import keyed_digest
from api.records.tables import Complaint
from api.schemas import Asked, Id, Listed, Sha256, Time, Words, utc
from api.transport.idempotency import KEY, mismatch
from api.transport.paging import PageDep
from api.transport.problems import BODY, SIGNED_IN, Problem, answers
from api.transport.rate_limits import address_of
from api.transport.routing import make_router
from photoflux.vault.keyring import Keyring

router = make_router(prefix="/api/complaints", tags=["complaints"])
Outcome = Literal["removed", "dismissed"]


class ComplaintAsked(Asked):
    """What is wrong with a picture that this service drew."""

    reason: Literal["likeness", "minor", "sexual", "harassment", "copyright", "other"]
    text: Annotated[Words, Field(min_length=1, max_length=4000)]
    adapter: Sha256 | None = Field(default=None, description="`adapter` in the picture's content credentials")
    contact: Annotated[Words, Field(max_length=200)] | None = Field(default=None, description="how to reach you")


class ComplaintTaken(BaseModel):
    id: str = Field(description="to be named when you ask about it")
    created: Time


class ComplaintShown(ComplaintTaken):
    reason: str
    adapter: str | None
    text: str
    contact: str
    state: Literal["open", "removed", "dismissed"]
    closed: Time | None


class Answered(Asked):
    outcome: Outcome = Field(description="`removed` deletes the models of that adapter's subject and all its pictures")


@router.post("", operation_id="complain", status_code=201, responses=answers(*BODY, 409, 429))
def complain(
    asked: ComplaintAsked,
    request: Request,
    limits: LimitsDep,
    records: RecordsDep,
    keyring: KeyringDep,
    journal: JournalDep,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200, description=KEY)] = None,
) -> ComplaintTaken:
    """Report a picture. No account is needed."""
    limits.check("complain", address_of(request))
    row = new_complaint(asked.reason, asked.adapter, asked.text, asked.contact or "", keyring=keyring)
    if idempotency_key:
        row.request_key = keyed_digest(journal.pepper, "complaint", idempotency_key)
        row.request = keyed_digest(journal.pepper, "complaint", asked.model_dump_json())
    try:
        with records.writing() as session:
            session.add(row)
            session.flush()
            journal.note(session, ANYBODY, "complaint.sent", row.id)
    except IntegrityError:
        row = _sent_before(records, row)
    return ComplaintTaken(id=row.id, created=utc(row.created_ms))


def _sent_before(records: Records, row: Complaint) -> Complaint:
    """The complaint that came with the same key. A problem of 422 where it was another one."""
    with records.reading() as session:
        known = session.scalar(select(Complaint).where(Complaint.request_key == row.request_key))
    if known is None:
        raise Problem(409, "conflict", "The same request is being answered; send it again.")
    if known.request != row.request:
        raise mismatch()
    return known


@router.get("", operation_id="listComplaints", responses=answers(*SIGNED_IN, 403, 422))
def list_complaints(
    records: RecordsDep,
    keyring: KeyringDep,
    operator: Operator,  # noqa: ARG001
    page: PageDep,
    state: Annotated[Literal["open", "removed", "dismissed"], Query()] = "open",
) -> Listed[ComplaintShown]:
    """Complaints for operators to answer."""
    with records.reading() as session:
        rows, after = page.rows(session, select(Complaint).where(Complaint.state == state), Complaint)
    return Listed(items=[_shown(keyring, row) for row in rows], next=after)


@router.post(
    "/{complaint_id}/close", operation_id="closeComplaint", responses=answers(*SIGNED_IN, *BODY, 403, 404, 409)
)
def close_complaint(
    complaint_id: Id,
    asked: Answered,
    records: RecordsDep,
    keyring: KeyringDep,
    journal: JournalDep,
    queue: QueueDep,
    operator: Operator,
) -> ComplaintShown:
    """Answer a complaint."""
    with records.writing() as session:
        row = session.get(Complaint, complaint_id)
        if row is None:
            raise Problem(404, "not-found", "There is no such complaint here.")
        if row.state == "open":
            taken = take_down(session, row, journal) if asked.outcome == "removed" else []
            session.refresh(row, with_for_update=True)  # people and what is theirs are locked first
            if row.state != "open":
                raise Problem(409, "conflict", "Somebody else has just answered this complaint; look at it again.")
            for gone in taken:
                queue.enqueue_deletion(session, gone)
            close(row, asked.outcome)
            journal.note(session, operator.user_id, "complaint.closed", row.id, asked.outcome)
        return _shown(keyring, row)


def _shown(keyring: Keyring, row: Complaint) -> ComplaintShown:
    said = words_of(row, keyring)
    return ComplaintShown(
        id=row.id, reason=row.reason, adapter=row.about, text=said["text"], contact=said["contact"], state=row.state,  # type: ignore[arg-type]
        created=utc(row.created_ms), closed=utc(row.closed_ms),
    )  # fmt: skip
