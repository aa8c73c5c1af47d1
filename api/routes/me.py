"""A person's own data: taking it along, and having it erased."""

from __future__ import annotations

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field
from sqlalchemy import select

from api.db import ACTIVE, Export, Tombstone, User, new_id, now_ms
from api.deps import Caller, Maker, ServiceDep, Viewer, owned
from api.erasing import begin_erasure
from api.problems import Problem
from api.schemas import Id, State, iso
from photoflux.vault.blobs import BlobMissing

router = APIRouter(prefix="/api", tags=["your data"])


class ExportShown(BaseModel):
    id: str
    state: State
    sha256: str | None
    bytes: int | None = Field(description="size of the ZIP")
    url: str | None
    created: str
    expires: str | None


class Receipt(BaseModel):
    """Proof that an account is being erased, or was. Keep it: nobody can look it up for you afterwards."""

    receipt: str
    state: str = Field(description="`erasing`: keys are destroyed, files are being deleted; `done`: nothing is left")
    begun: str
    done: str | None


@router.post("/me/export", operation_id="createExport", status_code=202)
def create_export(service: ServiceDep, caller: Maker) -> ExportShown:
    """Have everything that is kept of you packed into a ZIP; asked for again meanwhile, it is the same one."""
    with service.records.writing() as session:
        waiting = select(Export).where(Export.user_id == caller.user_id, Export.state.in_(ACTIVE))
        row = session.scalar(waiting)
        if row is None:
            row = Export(id=new_id(), user_id=caller.user_id, state="queued")
            session.add(row)
            session.flush()
            service.line.put_export(session, row)
            service.journal.note(session, caller.user_id, "export.created", row.id)
        return _export(row)


@router.get("/me/exports/{export_id}", operation_id="getExport")
def get_export(export_id: Id, service: ServiceDep, caller: Caller) -> ExportShown:
    """How an export stands."""
    with service.records.reading() as session:
        return _export(owned(session, Export, export_id, caller))


@router.get(
    "/media/exports/{export_id}", operation_id="downloadExport", response_class=Response,
    responses={200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}},
)  # fmt: skip
def download_export(export_id: Id, service: ServiceDep, viewer: Viewer) -> Response:
    """The ZIP, for a week after it was packed."""
    with service.records.reading() as session:
        row = owned(session, Export, export_id, viewer)
    if row.state != "succeeded" or (row.expires_ms or 0) < now_ms():
        raise Problem(404, "not-found", "This export is not ready, or has expired; ask for a new one.")
    try:
        data = service.objects.get(viewer.user_id, "export", export_id)
    except BlobMissing as error:
        raise Problem(404, "not-found", "This export is gone; ask for a new one.") from error
    headers = {
        "Content-Disposition": 'attachment; filename="photoflux-export.zip"',
        "Cache-Control": "private, no-store",
    }
    return Response(data, media_type="application/zip", headers=headers)


@router.delete("/me", operation_id="eraseMe", status_code=202)
def erase_me(service: ServiceDep, caller: Caller) -> Receipt:
    """Erase your account: its keys at once, then everything that they sealed. This cannot be undone."""
    with service.records.writing() as session:
        user = session.get_one(User, caller.user_id, with_for_update=True)
        receipt = begin_erasure(session, user, service.journal)
        service.line.put_erasure(session, receipt)
    service.keyring.erase(caller.user_id)
    return get_erasure(receipt, service)


@router.get("/erasures/{receipt}", operation_id="getErasure")
def get_erasure(receipt: Id, service: ServiceDep) -> Receipt:
    """Whether an erasure is done. Asked for without signing in: there is no account any more."""
    with service.records.reading() as session:
        row = session.get(Tombstone, receipt)
    if row is None:
        raise Problem(404, "not-found", "There is no such receipt here.")
    state = "done" if row.done_ms else "erasing"
    return Receipt(receipt=receipt, state=state, begun=str(iso(row.erased_ms)), done=iso(row.done_ms))


def _export(row: Export) -> ExportShown:
    ready = row.state == "succeeded"
    return ExportShown(
        id=row.id, state=row.state, sha256=row.sha256, bytes=row.stored_bytes,  # type: ignore[arg-type]
        url=f"/api/media/exports/{row.id}" if ready else None, created=str(iso(row.created_ms)), expires=iso(row.expires_ms),
    )  # fmt: skip
