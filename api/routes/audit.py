"""The audit log, for auditors."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, Field
from sqlalchemy import func, select

from api.deps import AuditHeadsDep, Auditor, RecordsDep
from api.records.tables import AuditEntry
from api.schemas import Page, Time, utc
from api.transport.problems import SIGNED_IN, problem_responses
from api.transport.routing import make_router

router = make_router(prefix="/api/audit", tags=["audit"], responses=problem_responses(*SIGNED_IN, 403))


class AuditEntryPublic(BaseModel):
    """What was done, by whom (a pseudonym), to what (an id)."""

    number: int
    at: Time
    actor: str
    action: str
    object: str | None
    outcome: str
    digest: str = Field(description="HMAC-SHA256 of the entry and of the digest before it, under a key of the service")


class AuditChainPublic(BaseModel):
    entries: int
    broken: int | None = Field(description="number of the first entry that was changed or before which one is missing")


@router.get("/entries", operation_id="listAuditEntries", responses=problem_responses(422))
def list_audit_entries(
    records: RecordsDep,
    auditor: Auditor,  # noqa: ARG001
    cursor: Annotated[
        int,
        Query(ge=0, lt=2**53, description="`next` of the page before, or the number of the last entry that you have"),
    ] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Page[AuditEntryPublic]:
    """Entries in the order in which they were made, oldest first."""
    query = select(AuditEntry).where(AuditEntry.number > cursor).order_by(AuditEntry.number).limit(limit + 1)
    with records.reading() as session:
        found = [
            AuditEntryPublic(
                number=e.number,
                at=utc(e.at_ms),
                actor=e.actor,
                action=e.action,
                object=e.object,
                outcome=e.outcome,
                digest=e.digest,
            )
            for e in session.scalars(query)
        ]
    entries = found[:limit]
    return Page(items=entries, next=str(entries[-1].number) if len(found) > limit else None)


@router.get("/chain", operation_id="checkAuditChain")
def check_audit_chain(records: RecordsDep, heads: AuditHeadsDep, auditor: Auditor) -> AuditChainPublic:  # noqa: ARG001
    """Whether every entry is as it was written, and none that a stored head knew of is missing."""
    with records.reading() as session:
        count = session.scalar(select(func.count()).select_from(AuditEntry)) or 0
    return AuditChainPublic(entries=count, broken=heads.first_broken())
