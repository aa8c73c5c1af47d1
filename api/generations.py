"""Generations: pictures drawn with a subject's model, finished, sealed and recorded; safe to be done again from the start."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

from api.db import ACTIVE, Generation, Model, Picture, Records, now_ms
from api.delivery import Delivery, Order
from api.drawing import EngineClient, GivenUp, Refused, Wanted
from api.journal import SYSTEM, Journal
from api.safety import Guard, UnsafePicture
from photoflux.vault.objects import Objects
from photoflux.vault.sealed import Label, unseal_bytes

log = logging.getLogger(__name__)

FINAL_WORDS = "something went wrong while drawing; ask again"


@dataclass(frozen=True)
class Generations:
    """Does what a generation row asks for."""

    records: Records
    objects: Objects
    engine: EngineClient
    journal: Journal
    delivery: Delivery
    guard: Guard

    def perform(self, generation_id: str) -> str:
        """Draw, finish, seal and record; returns the state it ended in."""
        with self.records.writing() as session:
            row = session.get(Generation, generation_id, with_for_update=True)
            if row is None or row.state not in ACTIVE:
                return row.state if row else "cancelled"
            row.state = "running"
            model = session.get(Model, row.model_id) if row.model_id else None
        if model is None:
            return self.end(generation_id, "failed", "the model was deleted; train the subject again")
        try:
            return self._record(row, self._drawn(row, model), model)
        except (Refused, GivenUp, UnsafePicture) as error:
            return self.end(generation_id, "failed", str(error))

    def _drawn(self, row: Generation, model: Model) -> list[bytes]:
        prompt = unseal_bytes(row.prompt, label=prompt_label(row), keyring=self.objects.keyring).decode()
        seeds = [row.seed + number for number in range(row.n)]
        wanted = Wanted(row.user_id, model.id, model.adapter_sha256, prompt, seeds, row.style)
        drawn = self.engine.draw(wanted, still=lambda: self._is_wanted(row.id))
        for picture in drawn:
            self.guard.look(picture)
        return drawn

    def _record(self, row: Generation, drawn: list[bytes], model: Model) -> str:
        """Store the finished pictures, then their rows. What an attempt before this one stored is replaced."""
        self.drop_pictures(row)
        rows = []
        for position, png in enumerate(drawn):
            picture_id = f"{row.id}.{position}"
            order = Order(row.size, row.format, row.style, provenance(model, seed=row.seed + position, style=row.style))
            file = self.delivery.finished(png, order)
            self.objects.put(row.user_id, "picture", picture_id, file)
            rows.append(
                Picture(
                    user_id=row.user_id, generation_id=row.id, position=position, seed=row.seed + position,
                    sha256=hashlib.sha256(file).hexdigest(), stored_bytes=len(file),
                )
            )  # fmt: skip
        with self.records.writing() as session:
            current = session.get(Generation, row.id, with_for_update=True)
            if current is not None and current.state in ACTIVE:
                session.add_all(rows)
                current.state, current.finished_ms = "succeeded", now_ms()
                self.journal.note(session, SYSTEM, "generation.ended", row.id, "succeeded")
                return "succeeded"
        self.drop_pictures(row)  # deleted or cancelled while it was drawn
        return current.state if current else "cancelled"

    def end(self, generation_id: str, state: str, why: str) -> str:
        """Record that there will be no pictures."""
        with self.records.writing() as session:
            row = session.get(Generation, generation_id, with_for_update=True)
            if row is None or row.state not in ACTIVE:
                return row.state if row else "cancelled"
            row.state, row.error, row.finished_ms = state, why[:500], now_ms()
            self.journal.note(session, SYSTEM, "generation.ended", row.id, state)
        return state

    def drop_pictures(self, row: Generation) -> None:
        """Delete the stored pictures of a generation."""
        for name in self.objects.ids(row.user_id, "picture", prefix=f"{row.id}."):
            self.objects.delete(row.user_id, "picture", name)

    def _is_wanted(self, generation_id: str) -> bool:
        with self.records.reading() as session:
            row = session.get(Generation, generation_id)
            return row is not None and row.state in ACTIVE


def prompt_label(row: Generation) -> Label:
    """What a sealed prompt is bound to."""
    return Label(row.user_id, "prompt", row.id)


def provenance(model: Model, *, seed: int, style: str) -> dict[str, str]:
    """What a picture's file says of its making; nothing of whose it is, or what was asked for."""
    from photoflux import __version__

    return {
        "model": f"{model.registry_version}", "adapter": model.adapter_sha256, "seed": str(seed), "style": style,
        "software": f"PhotoFlux {__version__}",
    }  # fmt: skip
