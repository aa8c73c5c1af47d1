"""The audit log, for auditors."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from pydantic import BaseModel, Field
from sqlalchemy import func, select

from api.db import AuditEntry
from api.deps import Auditor, ServiceDep
from api.routing import make_router
from api.schemas import iso

router = make_router(prefix="/api/audit", tags=["audit"])


class EntryShown(BaseModel):
    """What was done, by whom (a pseudonym), to what (an id)."""

    number: int
    at: str
    actor: str
    action: str
    object: str | None
    outcome: str
    digest: str = Field(description="HMAC-SHA256 of the entry and of the digest before it, under a key of the service")


class ChainShown(BaseModel):
    entries: int
    broken: int | None = Field(description="number of the first entry that was changed or before which one is missing")


@router.get("/entries", operation_id="listAuditEntries")
def list_audit_entries(
    service: ServiceDep,
    auditor: Auditor,  # noqa: ARG001
    after: Annotated[int, Query(ge=0, lt=2**53, description="number of the last entry of the page before")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[EntryShown]:
    """Entries in the order in which they were made."""
    query = select(AuditEntry).where(AuditEntry.number > after).order_by(AuditEntry.number).limit(limit)
    with service.records.reading() as session:
        return [
            EntryShown(
                number=e.number, at=str(iso(e.at_ms)), actor=e.actor, action=e.action, object=e.object,
                outcome=e.outcome, digest=e.digest,
            )
            for e in session.scalars(query)
        ]  # fmt: skip


@router.get("/chain", operation_id="checkAuditChain")
def check_audit_chain(service: ServiceDep, auditor: Auditor) -> ChainShown:  # noqa: ARG001
    """Whether every entry is as it was written, and none that a stored head knew of is missing."""
    with service.records.reading() as session:
        count = session.scalar(select(func.count()).select_from(AuditEntry)) or 0
    return ChainShown(entries=count, broken=service.heads.first_broken())
