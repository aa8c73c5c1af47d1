"""Renders of the pocket world: streamed by worker processes, cached as latents, captions and labels.

Imports no torch, so that worker processes start quickly. Renders depend on (seed, index) alone.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from photoflux.manifest import write_json
from photoflux.pocket import world
from photoflux.pocket.tokenizers import TRIGGERS

T = TypeVar("T")

TOKEN_PX = 16
"""Side in pixels of one transformer token: 8 px per latent, packed 2x2."""

NAMED_SHARE = 0.2
"""Share of scenes with an individual that a trigger names, so that the base learns to take looks from names.

A base that ignored them would have to learn to read them again for every subject.
"""


def classes() -> dict[str, tuple[str, ...]]:
    """Attribute -> its values, in the order that judges and confusion counts use."""
    return {
        "kind": (*world.KINDS, "person"),
        "colour": tuple(world.COLOURS),
        "accent": tuple(world.COLOURS),
        "pattern": tuple(world.PATTERNS),
        "place": tuple(world.PLACES),
        "style": tuple(world.STYLES),
        "occupation": tuple(world.OCCUPATIONS),
        "gender": tuple(world.GENDERS),
        "band": tuple(world.BANDS),
        "tone": tuple(str(tone + 1) for tone in range(len(world.TONES))),
        "hair": tuple(world.HAIR),
    }


@dataclass(frozen=True)
class Batch:
    """Images with captions, labels and coverage.

    `pixels` uint8 `[N, H, W, 3]`, two captions each (the second by name, where there is one), class ids `[N, A]`, and `coverage`,
    how much of each token (16 px square) the subject covers, 0-255 as uint8 `[N, H/16 * W/16]`.
    """

    pixels: np.ndarray
    captions: list[tuple[str, str]]
    labels: np.ndarray
    coverage: np.ndarray

    def __len__(self) -> int:
        return len(self.pixels)


def render_batch(index: int, *, seed: int, count: int, size_px: int) -> Batch:
    """Scenes `index * count` to `(index + 1) * count - 1` of the endless set `seed`."""
    from photoflux.pocket.render import coverage, render

    pixels, captions, labels, coverages = [], [], [], []
    nouns = classes()["kind"]
    for number in range(index * count, (index + 1) * count):
        rng = np.random.default_rng([seed, number])
        name = str(rng.choice(TRIGGERS)) if rng.random() < NAMED_SHARE else None
        scene = world.sample_scene(rng, subject=world.named(name, str(rng.choice(nouns))) if name else None)
        pixels.append(np.asarray(render(scene, size_px=size_px)))
        captions.append((world.caption(scene, rng), world.caption(scene, rng, trigger=name)))
        labels.append(label_ids(world.labels(scene)))
        coverages.append((coverage(scene, squares=size_px // TOKEN_PX) * 255).round().astype(np.uint8).ravel())
    return Batch(np.stack(pixels), captions, np.stack(labels), np.stack(coverages))


def label_ids(labels: dict[str, str]) -> np.ndarray:
    """Class index per attribute of `classes()`, int8 `[A]`; -1 where the attribute does not apply."""
    known = classes()
    return np.array([_class_index(known[name], labels.get(name, "")) for name in known], dtype=np.int8)


def _class_index(values: tuple[str, ...], value: str) -> int:
    return values.index(value) if value else -1


def render_views(
    index: int, *, seed: int, subjects: int, views: int, size_px: int, heldout: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Several views of each subject, in different scenes: uint8 `[subjects * views, H, W, 3]`, subject numbers `[subjects * views]`.

    Half of the subjects are near twins of the one before (same kind, often the same colour), as hard negatives. With
    `heldout` things have looks that training never sees.
    """
    from photoflux.pocket.render import render

    rng = np.random.default_rng([seed, index])
    subjects_drawn: list[world.Subject | world.Person] = []
    for number in range(subjects):
        subjects_drawn.append(_subject(rng, like=subjects_drawn[-1] if number % 2 else None, heldout=heldout))
    scenes = [
        world.sample_scene(rng, subject=subject, facing_left=bool(rng.random() < 0.5), **_style(rng))  # type: ignore[arg-type]
        for subject in subjects_drawn
        for _ in range(views)
    ]
    pixels = np.stack([np.asarray(render(scene, size_px=size_px)) for scene in scenes])
    return pixels, np.repeat(np.arange(subjects), views)


def _subject(
    rng: np.random.Generator, *, like: world.Subject | world.Person | None, heldout: bool
) -> world.Subject | world.Person:
    if isinstance(like, world.Person):
        return world.sample_person(rng, gender=like.gender)
    if like is not None:
        same = {"kind": like.kind, "colour": like.colour} if rng.random() < 0.5 else {"kind": like.kind}
        return world.sample_subject(rng, heldout=heldout, **same)
    return world.sample_person(rng) if rng.random() < 0.25 else world.sample_subject(rng, heldout=heldout)


def _style(rng: np.random.Generator) -> dict[str, str]:
    return {"style": "photo"} if rng.random() < 0.7 else {}


def stream(task: Callable[[int], T], *, start: int = 0, workers: int = 1, ahead: int = 6) -> Generator[T, None, None]:
    """`task(start), task(start + 1), …` in order, endless, computed ahead in worker processes."""
    if workers < 1:
        yield from map(task, _count(start))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=exit_with_parent) as pool:
        pending = deque(pool.submit(task, start + offset) for offset in range(ahead))
        try:
            for index in _count(start + ahead):
                yield pending.popleft().result()
                pending.append(pool.submit(task, index))
        finally:
            pool.shutdown(cancel_futures=True)  # waits too: a process that exits before its pool would hang


def exit_with_parent() -> None:
    """Exit this worker process when its parent has ended: those of a killed training would wait for work for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _count(start: int) -> Iterator[int]:
    while True:
        yield start
        start += 1


@dataclass(frozen=True)
class Cache:
    """Memory-mapped arrays of up to `capacity` images, filled in order; counters are written after the data they count."""

    folder: Path
    capacity: int
    latent_shape: tuple[int, int, int]
    text_length: int
    size_px: int

    def _array(self, name: str, shape: tuple[int, ...], dtype: str) -> np.memmap:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{name}.npy"
        if file.exists():
            return np.lib.format.open_memmap(file, mode="r+")
        return np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)

    @cached_property
    def latents(self) -> np.memmap:
        """Scaled latents, float16 `[N, 16, H/8, W/8]`."""
        return self._array("latents", (self.capacity, *self.latent_shape), "float16")

    @cached_property
    def clip_ids(self) -> np.memmap:
        """CLIP tokens of two captions, int16 `[N, 2, L]`; the second by name, where there is one."""
        return self._array("clip_ids", (self.capacity, 2, self.text_length), "int16")

    @cached_property
    def t5_ids(self) -> np.memmap:
        """T5 tokens of the same captions, int16 `[N, 2, L]`."""
        return self._array("t5_ids", (self.capacity, 2, self.text_length), "int16")

    @cached_property
    def labels(self) -> np.memmap:
        """Class ids, int8 `[N, A]`, -1 where an attribute does not apply."""
        return self._array("labels", (self.capacity, len(classes())), "int8")

    @cached_property
    def coverage(self) -> np.memmap:
        """How much of each token the subject covers, uint8 `[N, h/2 * w/2]`."""
        _, height, width = self.latent_shape
        return self._array("coverage", (self.capacity, height * width // 4), "uint8")

    @cached_property
    def pixels(self) -> np.memmap:
        """The pictures themselves, uint8 `[N, H, W, 3]`."""
        return self._array("pixels", (self.capacity, self.size_px, self.size_px, 3), "uint8")

    def create(self) -> None:
        """Make the files of all arrays where they are missing."""
        for name in ("latents", "clip_ids", "t5_ids", "labels", "coverage", "pixels"):
            getattr(self, name)

    @property
    def drawn(self) -> int:
        """Number of images with captions and labels."""
        return self._count("drawn")

    @property
    def filled(self) -> int:
        """Number of images with latents."""
        return self._count("filled")

    def _count(self, name: str) -> int:
        file = self.folder / f"{name}.json"
        return json.loads(file.read_text()) if file.exists() else 0

    def put(self, start: int, batch: Batch, *, clip_ids: np.ndarray, t5_ids: np.ndarray) -> None:
        """Write one batch at `start`, then the counter."""
        stop = start + len(batch)
        self.pixels[start:stop], self.labels[start:stop] = batch.pixels, batch.labels
        self.clip_ids[start:stop], self.t5_ids[start:stop] = clip_ids, t5_ids
        self.coverage[start:stop] = batch.coverage
        write_json(self.folder / "drawn.json", stop)

    def put_latents(self, start: int, latents: np.ndarray) -> None:
        """Write latents from `start` on, then the counter."""
        self.latents[start : start + len(latents)] = latents
        write_json(self.folder / "filled.json", start + len(latents))
