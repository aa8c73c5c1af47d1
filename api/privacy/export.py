"""Exports: everything that is stored about a person, as one ZIP with a manifest (Art. 15 and 20 GDPR)."""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from api.records.audit_log import AuditLog
from api.records.database import AccountClosed, Records, lock_owner, retry_on_rollback
from api.records.outcomes import end_export
from api.records.tables import (
    ACTIVE,
    AuditEntry,
    Consent,
    Export,
    Feedback,
    GeneratedImage,
    Generation,
    LoginSession,
    Model,
    Photo,
    Run,
    Subject,
    Usage,
    User,
    Webhook,
    WebhookDelivery,
    new_id,
    now_ms,
    prompt_label,
)
from photoflux.errors import PhotoFluxError
from photoflux.images import SUFFIXES
from photoflux.manifest import to_json
from photoflux.vault.blobs import BlobMissing
from photoflux.vault.keyring import KeyMissing
from photoflux.vault.objects import Objects
from photoflux.vault.sealed import Label, unseal_bytes

EXPORT_TTL_MS = 7 * 24 * 3600 * 1000
SEALED_COLUMNS = {
    (User, "profile"): "profile", (Subject, "name"): "subject-name", (Photo, "name"): "photo-name",
    (Generation, "prompt"): "prompt", (Feedback, "text"): "feedback",
    (Run, "sign_off_reason"): "sign-off", (Webhook, "address"): "webhook",
}  # fmt: skip
"""Sealed columns that an export shows in the clear, and the kind of their label."""
DOCUMENTS = ("profile", "sign_off_reason")
OMITTED_COLUMNS = ("measured", "verdict", "secret", "user_id", "login", "fingerprint", "object_id")
"""Columns that an export leaves out: values computed from photos, keys, and the service's own names of files."""
INCLUDED_COLUMNS = ((WebhookDelivery, "object_id"),)
"""Exceptions to OMITTED_COLUMNS: the row that a webhook delivery was about."""
TABLES = (
    Subject,
    Photo,
    Run,
    Model,
    Generation,
    GeneratedImage,
    Feedback,
    Consent,
    Webhook,
    WebhookDelivery,
    LoginSession,
    Usage,
)
ACCOUNT_CLOSED = "the account was closed"


class ExportCancelled(PhotoFluxError):
    """The export was cancelled or deleted meanwhile."""


@dataclass(frozen=True)
class PackedExport:
    """A finished ZIP: its SHA-256, 64 hexadecimal digits, and its length in bytes."""

    sha256: str
    length: int


@dataclass(frozen=True)
class Exports:
    """Packs the export of a row. Each attempt stores an object of its own, and deletes no other."""

    records: Records
    objects: Objects
    audit_log: AuditLog

    def perform(self, export_id: str) -> str:
        """Pack, seal and record; returns the state that the export is in then."""
        with self.records.reading() as session:
            row = session.get(Export, export_id)
        if row is None or row.state not in ACTIVE:
            return row.state if row else "cancelled"
        object_id = f"{export_id}.{new_id()}"
        try:
            packed = self._store(row, object_id)
        except (ExportCancelled, KeyMissing):
            if self._is_wanted(row) and not self.objects.keyring.is_erased(row.user_id):
                raise
            return self._end(export_id, "cancelled", "cancelled", ACCOUNT_CLOSED)
        # Where recording raises, it may have been committed all the same: retention then deletes what no row names.
        if self._record(row, object_id, packed):
            return "succeeded"
        self.objects.delete(row.user_id, "export", object_id)
        return self._end(export_id, "cancelled", "cancelled", ACCOUNT_CLOSED)

    def fail(self, export_id: str, code: str, why: str) -> str:
        """Record that the export failed, unless its state is final; returns the state."""
        return self._end(export_id, "failed", code, why)

    @retry_on_rollback
    def _end(self, export_id: str, state: str, code: str, why: str) -> str:
        with self.records.writing() as session:
            lock_owner(session, Export, export_id)
            row = session.get(Export, export_id, with_for_update=True)
            if row is None:
                return "cancelled"
            end_export(session, row, state, self.audit_log, code=code, why=why)
            return row.state

    @retry_on_rollback
    def _record(self, row: Export, object_id: str, packed: PackedExport) -> bool:
        """Record the stored ZIP, in place of an older export; False where the row or its owner is gone, or it has ended."""
        with suppress(AccountClosed), self.records.writing_for(row.user_id) as session:
            current = session.get(Export, row.id, with_for_update=True)
            if current is None or current.state not in ACTIVE:
                return False
            older = Export.user_id == row.user_id, Export.state == "succeeded", Export.expires_ms > now_ms()
            session.execute(update(Export).where(*older).values(expires_ms=now_ms()))
            current.object_id, current.sha256, current.stored_bytes = object_id, packed.sha256, packed.length
            current.expires_ms = now_ms() + EXPORT_TTL_MS
            end_export(session, current, "succeeded", self.audit_log)
            return True
        return False

    def _is_wanted(self, row: Export) -> bool:
        """Whether the row still waits for its export."""
        with self.records.reading() as session:
            current = session.get(Export, row.id)
            return current is not None and current.state in ACTIVE

    def _store(self, row: Export, object_id: str) -> PackedExport:
        """Pack straight into a sealed object; one document or piece of a file is in memory at a time."""
        packed = list[PackedExport]()

        def write(sink: BinaryIO) -> None:
            tee = _Tee(sink)
            with zipfile.ZipFile(tee, "w") as file:  # type: ignore[call-overload]  # it is written, never sought in
                self._pack(row, _Archive(file))
            packed.append(PackedExport(tee.sha256.hexdigest(), tee.length))

        self.objects.put_from(row.user_id, "export", object_id, write)
        return packed[0]

    def _pack(self, row: Export, archive: _Archive) -> None:
        """Add the documents as they are now, and the files that they name. Raises ExportCancelled."""
        with self.records.reading() as session:
            if session.get(User, row.user_id) is None:
                raise ExportCancelled
            for name, document in self._documents(session, row.user_id):
                archive.add(name, [document], compress=True)
            files = list(self._files(session, row.user_id))
        for name, kind, object_id in sorted(files):
            if not self._is_wanted(row):
                raise ExportCancelled
            pieces = self.objects.chunks(row.user_id, kind, object_id)
            with suppress(BlobMissing):  # deleted meanwhile; raised before the first piece
                archive.add(name, chain([next(pieces, b"")], pieces), compress=False)
        archive.finish()

    def _documents(self, session: Session, owner: str) -> Iterator[tuple[str, bytes]]:
        """The rows about a person, unsealed, and their entries in the audit log: one file for each table."""
        yield "account.json", _document([self._readable(session.get_one(User, owner), owner)])
        for kind in TABLES:
            rows = session.scalars(select(kind).where(kind.user_id == owner))
            yield f"{kind.__tablename__}.json", _document([self._readable(row, owner) for row in rows])
        entries = select(AuditEntry).where(AuditEntry.actor == self.audit_log.pseudonym(owner))
        yield "log.json", _document([_columns(entry) for entry in session.scalars(entries)])

    def _readable(self, row: Any, owner: str) -> dict[str, Any]:
        values = _columns(row)
        for (kind, column), label in SEALED_COLUMNS.items():
            if isinstance(row, kind) and values.get(column):
                bound = prompt_label(row) if isinstance(row, Generation) else Label(owner, label, values["id"])
                text = unseal_bytes(values[column], label=bound, keyring=self.objects.keyring).decode()
                values[column] = json.loads(text) if column in DOCUMENTS else text
        return {
            name: value
            for name, value in values.items()
            if name not in OMITTED_COLUMNS or (type(row), name) in INCLUDED_COLUMNS
        }

    def _files(self, session: Session, owner: str) -> Iterator[tuple[str, str, str]]:
        """Name in the ZIP, kind and object id of photos, models and pictures."""
        for photo in session.scalars(select(Photo.id).where(Photo.user_id == owner)):
            yield f"photos/{photo}.jpg", "photo", photo
        for model in session.scalars(select(Model.id).where(Model.user_id == owner)):
            yield f"models/{model}.tar", "adapter", model
        query = select(GeneratedImage, Generation.format).join(
            Generation, Generation.id == GeneratedImage.generation_id
        )
        for image, fmt in session.execute(query.where(GeneratedImage.user_id == owner)):
            name = f"images/{image.generation_id}.{image.position}{SUFFIXES[fmt]}"
            yield name, "image", image.object_id


class _Archive:
    """A ZIP that is written from front to end; `manifest.json`, its last file, has the SHA-256 of each."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self.file, self.sha256 = file, dict[str, str]()

    def add(self, name: str, pieces: Iterable[bytes], *, compress: bool) -> None:
        """Add a file. Photos, pictures and models are stored as they are: they do not get smaller."""
        about, digest = zipfile.ZipInfo(name, date_time=time.gmtime()[:6]), hashlib.sha256()
        about.compress_type = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
        with self.file.open(about, "w") as entry:
            for piece in pieces:
                digest.update(piece)
                entry.write(piece)
        self.sha256[name] = digest.hexdigest()

    def finish(self) -> None:
        """Add the manifest."""
        self.add("manifest.json", [_document({"sha256": self.sha256})], compress=True)


class _Tee(io.RawIOBase):
    """Hashes and counts what is written into a stream."""

    def __init__(self, sink: BinaryIO) -> None:
        self.sink, self.sha256, self.length = sink, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.sha256.update(data)
        self.length += len(data)
        return self.sink.write(data)


def _document(content: Any) -> bytes:
    return to_json(content).encode()


def _columns(row: Any) -> dict[str, Any]:
    return {column.name: getattr(row, column.name) for column in row.__table__.columns}
