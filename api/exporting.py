"""Everything that is kept of a person, as one ZIP that says what is in it (Art. 15 and 20 GDPR)."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from api.db import (
    ACTIVE,
    AuditEntry,
    Consent,
    Export,
    Feedback,
    Generation,
    Model,
    Notice,
    Photo,
    Picture,
    Records,
    Run,
    SignIn,
    Subject,
    User,
    Webhook,
    now_ms,
)
from api.generations import prompt_label
from api.journal import SYSTEM, Journal
from photoflux.images import SUFFIXES
from photoflux.manifest import to_json
from photoflux.vault.blobs import BlobExists, BlobMissing
from photoflux.vault.objects import Objects
from photoflux.vault.sealed import Label, unseal_bytes

KEPT_MS = 7 * 24 * 3600 * 1000
SEALED = {
    (User, "profile"): "profile", (Subject, "name"): "subject-name", (Photo, "name"): "photo-name",
    (Generation, "prompt"): "prompt", (Feedback, "text"): "feedback",
    (Run, "sign_off_reason"): "sign-off", (Webhook, "address"): "webhook",
}  # fmt: skip
"""Columns with a person's words, and the kind they are sealed as."""
DOCUMENTS = ("profile", "sign_off_reason")
LEFT_OUT = ("measured", "verdict", "secret", "user_id", "login", "fingerprint")
"""Columns that say nothing to a person: what is computed from their photos, and keys."""
TABLES = (Subject, Photo, Run, Model, Generation, Picture, Feedback, Consent, Webhook, Notice, SignIn)


@dataclass(frozen=True)
class Exports:
    """Packs what an export row asks for."""

    records: Records
    objects: Objects
    journal: Journal

    def perform(self, export_id: str) -> str:
        """Pack, seal and record; what an attempt before this one packed is replaced."""
        with self.records.reading() as session:
            row = session.get(Export, export_id)
            if row is None or row.state not in ACTIVE:
                return row.state if row else "cancelled"
            files = {**self._documents(session, row.user_id), **self._pictures(session, row.user_id)}
        data = packed(files)
        self.objects.delete(row.user_id, "export", export_id)
        with suppress(BlobExists):
            self.objects.put(row.user_id, "export", export_id, data)
        with self.records.writing() as session:
            current = session.get(Export, export_id, with_for_update=True)
            if current is None:
                return "cancelled"
            current.state, current.sha256, current.stored_bytes = (
                "succeeded",
                hashlib.sha256(data).hexdigest(),
                len(data),
            )
            current.expires_ms = now_ms() + KEPT_MS
            self.journal.note(session, SYSTEM, "export.ended", export_id, "succeeded")
        return "succeeded"

    def fail(self, export_id: str) -> str:
        """Record that there is none."""
        with self.records.writing() as session:
            row = session.get(Export, export_id, with_for_update=True)
            if row is not None:
                row.state = "failed"
        return "failed"

    def _documents(self, session: Session, owner: str) -> dict[str, bytes]:
        """Every row that is about the person, words opened, and what the log says of them."""
        user = session.get_one(User, owner)
        said = {"account": [self._plain(user, owner)]}
        for kind in TABLES:
            rows = session.scalars(select(kind).where(kind.user_id == owner))
            said[kind.__tablename__] = [self._plain(row, owner) for row in rows]
        mine = select(AuditEntry).where(AuditEntry.actor == self.journal.pseudonym(owner))
        said["log"] = [_columns(entry) for entry in session.scalars(mine)]
        return {f"{name}.json": to_json(rows).encode() for name, rows in said.items()}

    def _plain(self, row: Any, owner: str) -> dict[str, Any]:
        values = _columns(row)
        for (kind, column), label in SEALED.items():
            if isinstance(row, kind) and values.get(column):
                bound = prompt_label(row) if isinstance(row, Generation) else Label(owner, label, values["id"])
                text = unseal_bytes(values[column], label=bound, keyring=self.objects.keyring).decode()
                values[column] = json.loads(text) if column in DOCUMENTS else text
        return {name: value for name, value in values.items() if name not in LEFT_OUT}

    def _pictures(self, session: Session, owner: str) -> dict[str, bytes]:
        """Photos, models and drawn pictures as files."""
        found: dict[str, bytes] = {}
        for photo in session.scalars(select(Photo).where(Photo.user_id == owner)):
            found[f"photos/{photo.id}.jpg"] = self.objects.get(owner, "photo", photo.id)
        for model in session.scalars(select(Model).where(Model.user_id == owner)):
            with suppress(BlobMissing):
                found[f"models/{model.id}.tar"] = self.objects.get(owner, "adapter", model.id)
        query = select(Picture, Generation.format).join(Generation, Generation.id == Picture.generation_id)
        for picture, fmt in session.execute(query.where(Picture.user_id == owner)):
            name = f"{picture.generation_id}.{picture.position}"
            found[f"pictures/{name}{SUFFIXES[fmt]}"] = self.objects.get(owner, "picture", name)
        return found


def _columns(row: Any) -> dict[str, Any]:
    return {column.name: getattr(row, column.name) for column in row.__table__.columns}


def packed(files: dict[str, bytes]) -> bytes:
    """A ZIP of the files and of `manifest.json`, which has the SHA-256 of each."""
    manifest = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", to_json({"sha256": manifest}))
        for name, data in sorted(files.items()):
            archive.writestr(name, data)
    return buffer.getvalue()
