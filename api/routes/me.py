"""A person's own data: taking it along, and having it erased."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal

from fastapi import Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from api.deps import (
    AuditLogDep,
    CurrentUser,
    IdempotencyDep,
    KeyringDep,
    MediaUser,
    MeteredUser,
    ObjectsDep,
    QueueDep,
    RecordsDep,
    SettingsDep,
    owned,
)
from api.jobs.job_queue import JobQueue
from api.privacy.erasure import begin_erasure
from api.records.audit_log import AuditLog
from api.records.tables import ACTIVE, Export, Tombstone, User, new_id, now_ms
from api.schemas import ExportFailure, Id, State, Time, failure, utc
from api.settings import ApiSettings
from api.transport.problems import IDEMPOTENT, SIGNED_IN, Problem, problem_responses
from api.transport.quotas import count_start
from api.transport.routing import make_router
from photoflux.vault.blobs import BlobMissing

router = make_router(prefix="/api", tags=["your data"])
ZIP: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}
}


class ExportPublic(BaseModel):
    """A ZIP of everything that is kept of you."""

    id: str
    state: State
    sha256: str | None
    bytes: int | None = Field(description="size of the ZIP")
    error: ExportFailure | None
    url: str | None = Field(description="where it is loaded from, once it is packed")
    created: Time
    expires: Time | None = Field(description="when the ZIP is deleted")


class ErasureReceipt(BaseModel):
    """Proof that an account is being erased, or was. Keep it: nobody can look it up for you afterwards."""

    receipt: str
    state: Literal["erasing", "done"] = Field(
        description="`erasing`: keys are destroyed, files are being deleted; `done`: nothing is left"
    )
    begun: Time
    done: Time | None


@router.post(
    "/me/export", operation_id="createExport", status_code=202, responses=problem_responses(*SIGNED_IN, *IDEMPOTENT)
)
def create_export(
    records: RecordsDep,
    audit_log: AuditLogDep,
    queue: QueueDep,
    settings: SettingsDep,
    current_user: MeteredUser,
    idempotency: IdempotencyDep,
) -> ExportPublic:
    """Have everything that is kept of you packed into a ZIP; asked for again meanwhile, it is the same one."""
    with records.writing_for(current_user.user_id) as session:
        if stored := idempotency.replay(session, ExportPublic):
            return stored
        waiting = select(Export).where(Export.user_id == current_user.user_id, Export.state.in_(ACTIVE))
        row = session.scalar(waiting) or _begin_export(session, audit_log, queue, settings, current_user.user_id)
        return idempotency.store(session, _to_public(row), status=202)


def _begin_export(
    session: Session, audit_log: AuditLog, queue: JobQueue, settings: ApiSettings, user_id: str
) -> Export:
    """Record and enqueue it. A problem of 429 beyond the day's quota."""
    row = Export(id=new_id(), user_id=user_id, state="queued")
    session.add(row)
    session.flush()
    count_start(session, user_id, "export", limit=settings.exports_a_day, what="exports")
    queue.enqueue_export(session, row)
    audit_log.record(session, user_id, "export.created", row.id)
    return row


@router.get("/me/exports/{export_id}", operation_id="getExport", responses=problem_responses(*SIGNED_IN, 404, 422))
def get_export(export_id: Id, records: RecordsDep, current_user: CurrentUser) -> ExportPublic:
    """How an export stands."""
    with records.reading() as session:
        return _to_public(owned(session, Export, export_id, current_user))


@router.get(
    "/media/exports/{export_id}",
    operation_id="downloadExport",
    response_class=Response,
    responses=ZIP | problem_responses(*SIGNED_IN, 404, 422),
)
def download_export(export_id: Id, records: RecordsDep, objects: ObjectsDep, current_user: MediaUser) -> Response:
    """The ZIP, for a week after it was packed or until a newer one is.

    It is opened while it is sent: a damaged one is broken off.
    """
    with records.reading() as session:
        row = owned(session, Export, export_id, current_user)
    if row.state != "succeeded" or (row.expires_ms or 0) < now_ms():
        raise Problem(404, "not-found", "This export is not ready, or has expired; ask for a new one.")
    try:
        pieces = _with_first(objects.chunks(current_user.user_id, "export", str(row.object_id)))
    except BlobMissing as error:
        raise Problem(404, "not-found", "This export is gone; ask for a new one.") from error
    headers = {
        "Content-Length": str(row.stored_bytes),
        "Content-Disposition": 'attachment; filename="photoflux-export.zip"',
        "Cache-Control": "private, no-store",
    }
    return StreamingResponse(pieces, media_type="application/zip", headers=headers)


@router.delete("/me", operation_id="eraseMe", status_code=202, responses=problem_responses(*SIGNED_IN))
def erase_me(
    records: RecordsDep, keyring: KeyringDep, audit_log: AuditLogDep, queue: QueueDep, current_user: CurrentUser
) -> ErasureReceipt:
    """Erase your account: its keys at once, then everything that they sealed. This cannot be undone."""
    with records.writing_for(current_user.user_id) as session:
        receipt = begin_erasure(session, session.get_one(User, current_user.user_id), audit_log)
        queue.enqueue_erasure(session, receipt)
    keyring.erase(current_user.user_id)
    return get_erasure(receipt, records)


@router.get("/erasures/{receipt}", operation_id="getErasure", responses=problem_responses(404, 422))
def get_erasure(receipt: Id, records: RecordsDep) -> ErasureReceipt:
    """Whether an erasure is done. Asked for without signing in: there is no account any more."""
    with records.reading() as session:
        row = session.get(Tombstone, receipt)
    if row is None:
        raise Problem(404, "not-found", "There is no such receipt here.")
    state: Literal["erasing", "done"] = "done" if row.done_ms else "erasing"
    return ErasureReceipt(receipt=receipt, state=state, begun=utc(row.erased_ms), done=utc(row.done_ms))


def _with_first(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same pieces with the first one read already, so that a missing object raises before the response begins."""
    return chain([next(pieces, b"")], pieces)


def _to_public(row: Export) -> ExportPublic:
    ready = row.state == "succeeded"
    return ExportPublic(
        id=row.id,
        state=row.state,  # type: ignore[arg-type]
        sha256=row.sha256,
        bytes=row.stored_bytes,
        error=failure(ExportFailure, row.error_code, row.error),
        url=f"/api/media/exports/{row.id}" if ready else None,
        created=utc(row.created_ms),
        expires=utc(row.expires_ms),
    )
