"""Recording how a generation, a run or an export ended, in the transaction of the caller."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.records.audit_log import SYSTEM, AuditLog
from api.records.tables import ACTIVE, Export, Generation, Run, now_ms

CANCELLED = "the run was cancelled"


def end_generation(
    session: Session,
    row: Generation,
    state: str,
    audit_log: AuditLog,
    *,
    code: str | None = None,
    why: str | None = None,
) -> None:
    """Record how a generation ended; the audit log's entry notifies webhooks."""
    row.state, row.error_code, row.error, row.finished_ms = state, code, why and why[:500], now_ms()
    audit_log.record(session, SYSTEM, "generation.ended", row.id, state)


def end_run(
    session: Session, row: Run, state: str, audit_log: AuditLog, *, code: str | None = None, why: str | None = None
) -> list[Generation]:
    """Record a run's end; returns the generations that waited for it, which share its fate unless it succeeded."""
    row.state, row.error_code, row.error, row.finished_ms = state, code, why and why[:500], now_ms()
    query = select(Generation).where(Generation.run_id == row.id, Generation.state == "queued")
    waiting = list(session.scalars(query.order_by(Generation.id).with_for_update()))
    for generation in waiting if state != "succeeded" else ():
        end_generation(
            session, generation, state, audit_log, code="no-model", why=f"there is no model to draw with: {why}"
        )
    audit_log.record(session, SYSTEM, "run.ended", row.id, state)
    return waiting


def cancel_run(session: Session, row: Run, audit_log: AuditLog) -> None:
    """End a queued run; ask the worker that watches a running one to end it. A run that has ended stays as it is."""
    if row.state not in ACTIVE or row.cancel_requested_ms:
        return
    row.cancel_requested_ms = now_ms()
    if row.state == "queued":
        end_run(session, row, "cancelled", audit_log, code="cancelled", why=CANCELLED)


def end_export(
    session: Session, row: Export, state: str, audit_log: AuditLog, *, code: str | None = None, why: str | None = None
) -> None:
    """Record how an export ended; a final state stays. The audit log's entry notifies webhooks."""
    if row.state not in ACTIVE:
        return
    row.state, row.error_code, row.error = state, code, why and why[:500]
    audit_log.record(session, SYSTEM, "export.ended", row.id, state)
