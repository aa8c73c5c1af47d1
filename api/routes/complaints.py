"""Complaints: sent by anybody, without an account; answered by operators."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Header, Query, Request
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from api.deps import AuditLogDep, KeyringDep, Operator, QueueDep, RateLimiterDep, RecordsDep
from api.privacy.complaint_handling import close, new_complaint, read_details, take_down
from api.records.audit_log import ANYBODY
from api.records.database import Records
from api.records.service_secrets import keyed_digest
from api.records.tables import Complaint
from api.schemas import Id, Page, RequestBody, Sha256, Text, Time, utc
from api.transport.idempotency import KEY_DESCRIPTION, key_mismatch
from api.transport.paging import PageQueryDep
from api.transport.problems import BODY, SIGNED_IN, Problem, problem_responses
from api.transport.rate_limits import client_address
from api.transport.routing import make_router
from photoflux.vault.keyring import Keyring

router = make_router(prefix="/api/complaints", tags=["complaints"])
Outcome = Literal["removed", "dismissed"]


class ComplaintCreate(RequestBody):
    """What is wrong with a picture that this service drew."""

    reason: Literal["likeness", "minor", "sexual", "harassment", "copyright", "other"]
    text: Annotated[Text, Field(min_length=1, max_length=4000)]
    adapter: Sha256 | None = Field(default=None, description="`adapter` in the picture's content credentials")
    contact: Annotated[Text, Field(max_length=200)] | None = Field(default=None, description="how to reach you")


class ComplaintReceipt(BaseModel):
    id: str = Field(description="to be named when you ask about it")
    created: Time


class ComplaintPublic(ComplaintReceipt):
    reason: str
    adapter: str | None
    text: str
    contact: str
    state: Literal["open", "removed", "dismissed"]
    closed: Time | None


class ComplaintResolution(RequestBody):
    outcome: Outcome = Field(description="`removed` deletes the models of that adapter's subject and all its pictures")


@router.post("", operation_id="createComplaint", status_code=201, responses=problem_responses(*BODY, 409, 429))
def create_complaint(
    body: ComplaintCreate,
    request: Request,
    rate_limiter: RateLimiterDep,
    records: RecordsDep,
    keyring: KeyringDep,
    audit_log: AuditLogDep,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200, description=KEY_DESCRIPTION)] = None,
) -> ComplaintReceipt:
    """Report a picture. No account is needed."""
    rate_limiter.check("complaint", client_address(request))
    row = new_complaint(body.reason, body.adapter, body.text, body.contact or "", keyring=keyring)
    if idempotency_key:
        row.idempotency_key_digest = keyed_digest(audit_log.pepper, "complaint", idempotency_key)
        row.request_digest = keyed_digest(audit_log.pepper, "complaint", body.model_dump_json())
    try:
        with records.writing() as session:
            session.add(row)
            session.flush()
            audit_log.record(session, ANYBODY, "complaint.sent", row.id)
    except IntegrityError:
        row = _earlier_complaint(records, row)
    return ComplaintReceipt(id=row.id, created=utc(row.created_ms))


def _earlier_complaint(records: Records, row: Complaint) -> Complaint:
    """The complaint that was stored with the same key. A problem of 422 where its content differs."""
    with records.reading() as session:
        known = session.scalar(select(Complaint).where(Complaint.idempotency_key_digest == row.idempotency_key_digest))
    if known is None:
        raise Problem(409, "conflict", "The same request is being answered; send it again.")
    if known.request_digest != row.request_digest:
        raise key_mismatch()
    return known


@router.get("", operation_id="listComplaints", responses=problem_responses(*SIGNED_IN, 403, 422))
def list_complaints(
    records: RecordsDep,
    keyring: KeyringDep,
    operator: Operator,  # noqa: ARG001
    page: PageQueryDep,
    state: Annotated[Literal["open", "removed", "dismissed"], Query()] = "open",
) -> Page[ComplaintPublic]:
    """Complaints for operators to answer."""
    with records.reading() as session:
        rows, after = page.rows(session, select(Complaint).where(Complaint.state == state), Complaint)
    return Page(items=[_to_public(keyring, row) for row in rows], next=after)


@router.post(
    "/{complaint_id}/close",
    operation_id="closeComplaint",
    responses=problem_responses(*SIGNED_IN, *BODY, 403, 404, 409),
)
def close_complaint(
    complaint_id: Id,
    body: ComplaintResolution,
    records: RecordsDep,
    keyring: KeyringDep,
    audit_log: AuditLogDep,
    queue: QueueDep,
    operator: Operator,
) -> ComplaintPublic:
    """Answer a complaint."""
    with records.writing() as session:
        row = session.get(Complaint, complaint_id)
        if row is None:
            raise Problem(404, "not-found", "There is no such complaint here.")
        if row.state == "open":
            plans = take_down(session, row, audit_log) if body.outcome == "removed" else []
            session.refresh(row, with_for_update=True)  # people and what is theirs are locked first
            if row.state != "open":
                raise Problem(409, "conflict", "Somebody else has just answered this complaint; look at it again.")
            for plan in plans:
                queue.enqueue_deletion(session, plan)
            close(row, body.outcome)
            audit_log.record(session, operator.user_id, "complaint.closed", row.id, body.outcome)
        return _to_public(keyring, row)


def _to_public(keyring: Keyring, row: Complaint) -> ComplaintPublic:
    details = read_details(row, keyring)
    return ComplaintPublic(
        id=row.id,
        reason=row.reason,
        adapter=row.adapter_sha256,
        text=details["text"],
        contact=details["contact"],
        state=row.state,  # type: ignore[arg-type]
        created=utc(row.created_ms),
        closed=utc(row.closed_ms),
    )
