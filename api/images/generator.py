"""Generations: images of a subject's model, rendered, sealed and recorded; may be repeated from the start at any time."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

from api.images.engine_client import Cancelled, EngineClient, EngineRequest, Rejected
from api.images.moderation import Moderator, UnsafeImage
from api.images.rendering import ImageRenderer, RenderRequest
from api.records.audit_log import AuditLog
from api.records.database import AccountClosed, Records, lock_owner, retry_on_rollback
from api.records.outcomes import end_generation
from api.records.tables import ACTIVE, GeneratedImage, Generation, Model, new_id, prompt_label
from photoflux.vault.keyring import KeyMissing
from photoflux.vault.objects import Objects
from photoflux.vault.sealed import unseal_bytes

log = logging.getLogger(__name__)

GENERATION_FAILED = "something went wrong while drawing; ask again"
NO_MODEL = "the model was deleted; train the subject again"
CODES: dict[type[Exception], str] = {Rejected: "refused", Cancelled: "too-late", UnsafeImage: "unsafe-image"}
"""The error codes of failed generations, for programs."""


@dataclass(frozen=True)
class ImageGenerator:
    """Generates the images of a generation row. Each attempt stores objects of its own, and deletes none but those."""

    records: Records
    objects: Objects
    engine: EngineClient
    audit_log: AuditLog
    renderer: ImageRenderer
    moderator: Moderator

    def generate(self, generation_id: str) -> str:
        """Generate, render, seal and record the images; returns the state that the generation is in then."""
        with self.records.reading() as session:
            row = session.get(Generation, generation_id)
        if row is None:
            return "cancelled"
        try:
            return self._generate(row)
        except (Rejected, Cancelled, UnsafeImage) as error:
            return self.end(generation_id, "failed", CODES[type(error)], str(error))
        except (AccountClosed, KeyMissing):  # erased meanwhile: its rows go with the account
            return self.end(generation_id, "cancelled", "cancelled", "the account is closed")

    def _generate(self, row: Generation) -> str:
        with self.records.writing_for(row.user_id) as session:
            current = session.get(Generation, row.id, with_for_update=True)
            if current is None or current.state not in ACTIVE:
                return current.state if current else "cancelled"
            current.state = "running"
            model = session.get(Model, current.model_id) if current.model_id else None
        if model is None:
            return self.end(row.id, "failed", "model-missing", NO_MODEL)
        return self._store(current, self._generated(current, model), model)

    def _generated(self, row: Generation, model: Model) -> list[bytes]:
        """The engine's images as PNG files, moderated."""
        prompt = unseal_bytes(row.prompt, label=prompt_label(row), keyring=self.objects.keyring).decode()
        seeds = [row.seed + number for number in range(row.n)]
        request = EngineRequest(row.user_id, model.id, model.adapter_sha256, prompt, seeds, row.style)
        images = self.engine.generate(request, is_wanted=lambda: self._is_wanted(row.id))
        for image in images:
            self.moderator.check(image)
        return images

    def _store(self, row: Generation, images: list[bytes], model: Model) -> str:
        """Store the rendered images under names of this attempt, then their rows; returns the state the generation is in then."""
        attempt, rows = new_id(), list[GeneratedImage]()
        try:
            for position, png in enumerate(images):
                seed = row.seed + position
                request = RenderRequest(row.size, row.format, row.style, provenance(model, seed=seed, style=row.style))
                file, object_id = self.renderer.render(png, request), f"{row.id}.{position}.{attempt}"
                rows.append(
                    GeneratedImage(
                        user_id=row.user_id,
                        generation_id=row.id,
                        position=position,
                        object_id=object_id,
                        seed=seed,
                        sha256=hashlib.sha256(file).hexdigest(),
                        stored_bytes=len(file),
                    )
                )
                self.objects.put(row.user_id, "image", object_id, file)
        except Exception:
            self._delete_stored(row, rows)
            raise
        # Where recording raises, it may have been committed all the same: retention then tells by the rows which objects are orphans.
        state, recorded = self._record(row, rows)
        if not recorded:
            self._delete_stored(row, rows)
        return state

    def _record(self, row: Generation, rows: list[GeneratedImage]) -> tuple[str, bool]:
        """Record the images, unless the generation was deleted or ended meanwhile; its state then, and whether they were recorded."""
        with self.records.writing_for(row.user_id) as session:
            current = session.get(Generation, row.id, with_for_update=True)
            if current is None or current.state not in ACTIVE:
                return current.state if current else "cancelled", False
            session.add_all(rows)
            end_generation(session, current, "succeeded", self.audit_log)
            return "succeeded", True

    def _delete_stored(self, row: Generation, rows: list[GeneratedImage]) -> None:
        for image in rows:
            self.objects.delete(row.user_id, "image", image.object_id)

    @retry_on_rollback
    def end(self, generation_id: str, state: str, code: str, why: str) -> str:
        """Record that the generation ended without images."""
        with self.records.writing() as session:
            lock_owner(session, Generation, generation_id)
            row = session.get(Generation, generation_id, with_for_update=True)
            if row is None or row.state not in ACTIVE:
                return row.state if row else "cancelled"
            end_generation(session, row, state, self.audit_log, code=code, why=why)
        return state

    def _is_wanted(self, generation_id: str) -> bool:
        with self.records.reading() as session:
            row = session.get(Generation, generation_id)
            return row is not None and row.state in ACTIVE


def provenance(model: Model, *, seed: int, style: str) -> dict[str, str]:
    """What an image file says of its making; nothing of whose it is, or of the prompt."""
    from photoflux import __version__

    return {
        "model": f"{model.registry_version}",
        "adapter": model.adapter_sha256,
        "seed": str(seed),
        "style": style,
        "software": f"PhotoFlux {__version__}",
    }
