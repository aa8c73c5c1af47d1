"""Judging on arrays alone: synthetic subjects, classes and people with known truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from photoflux.judges.sampling import JudgeOutputs
from photoflux.judges.scores import Evidence

WIDTH = 32
PLACES = 5


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@dataclass
class Studio:
    """Makes what judges would see: a subject is a direction, pictures scatter around a mix of it and its class."""

    rng: np.random.Generator
    prompts: int = 25
    seeds: int = 4

    def __post_init__(self) -> None:
        self.subject, self.kind = unit(self.rng.normal(size=(2, WIDTH)))
        self.text = unit(self.rng.normal(size=(self.prompts, WIDTH)))
        self.asked = [{"place": p % PLACES, "kind": 0} for p in range(self.prompts)]
        self.photo_structures = self.rng.normal(size=(6, 40, 40))

    def outputs(self, *, subject: float, right: float = 0.95, shape: tuple[int, ...] | None = None) -> JudgeOutputs:
        """Pictures that are `subject` parts subject and the rest class, and show what was asked with rate `right`."""
        shape = shape or (self.prompts, self.seeds)
        noise = self.rng.normal(size=(*shape, WIDTH)) * 0.5 / np.sqrt(WIDTH)
        identity = unit(subject * self.subject + (1 - subject) * self.kind + noise)
        return JudgeOutputs(
            identity=identity,
            image=unit(self.rng.normal(size=(*shape, WIDTH))),
            structure=self.rng.normal(size=(*shape, 40, 40)),
            colours=np.full((*shape, 3, 8), 1 / 8),
            quality=np.broadcast_to(np.array([0.9, 0.25, 0.95, 0.05]), (*shape, 4)).copy(),
            probabilities=self._read(shape, right),
        )

    def evidence(self, *, tuned: float = 0.9, class_prompt: float = 0.02, right: float = 0.95) -> Evidence:
        """A healthy personalisation unless told otherwise."""
        unrelated = self.outputs(subject=0)
        return Evidence(
            tuned=self.outputs(subject=tuned, right=right),
            base=self.outputs(subject=0),
            class_prompt=self.outputs(subject=class_prompt),
            unrelated=unrelated,
            unrelated_base=unrelated,
            trained=self.outputs(subject=1, shape=(4,)),
            held_out=self.outputs(subject=1, shape=(2,)),
            crops=self.photo_structures,
            expected=self.asked,
            unrelated_expected=self.asked,
            text=self.text,
            unrelated_text=self.text,
            copy_correlation=0.9,
        )

    def _read(self, shape: tuple[int, ...], right: float) -> dict[str, np.ndarray]:
        truth = {"place": np.arange(shape[0]) % PLACES, "kind": np.zeros(shape[0], int)}
        return {name: self._noisy(values, shape, right) for name, values in truth.items()}

    def _noisy(self, truth: np.ndarray, shape: tuple[int, ...], right: float) -> np.ndarray:
        wanted = np.broadcast_to(truth.reshape(-1, *[1] * (len(shape) - 1)), shape)
        wrong = self.rng.random(shape) > right
        labels = np.where(wrong, (wanted + self.rng.integers(1, PLACES, shape)) % PLACES, wanted)
        return np.eye(PLACES)[labels]


@pytest.fixture
def studio() -> Studio:
    return Studio(np.random.default_rng(7))
