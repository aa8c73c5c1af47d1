"""A candidate against the champion: the one place that says which of two adapters of a subject is the better one.

Both are judged on the same prompts, seeds and photos, so that they are compared image by image. An evaluation keeps its `cells` for
that: what each image was worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from photoflux.judges.stats import Array, Interval, cluster_weights, interval, weighted_mean

DIGITS = 7
ARRAYS = ("likeness", "likeness_base", "followed", "followed_base")
SPAN_LEAST, FOLLOWED_LEAST = 5e-3, 1e-6
"""Least denominators; an evaluation that comes near them is INVALID anyway."""


@dataclass(frozen=True)
class Cells:
    """Per image [P, S], of a model and of its base at the same seeds: likeness to the held-out photos, and attributes followed.

    `real` is how alike real photos are to those photos. Scores of the same prompts, seeds and photos can be paired.
    """

    likeness: Array
    likeness_base: Array
    followed: Array
    followed_base: Array
    real: float

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Cells:
        """The cells of an evaluation."""
        stored = document["cells"]
        return cls(**{name: np.asarray(stored[name], float) for name in ARRAYS}, real=float(stored["real"]))

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes them."""
        arrays = {name: np.round(getattr(self, name), DIGITS).tolist() for name in ARRAYS}
        return {**arrays, "real": round(self.real, DIGITS)}

    def overall(self, weights: Array) -> Array:
        """The overall score [resamples] under weights [resamples, P, S]: identity gain, at least 0, times following over the base's."""
        liked, base = weighted_mean(self.likeness, weights), weighted_mean(self.likeness_base, weights)
        gain = (liked - base) / np.maximum(self.real - base, SPAN_LEAST)
        followed, followed_base = weighted_mean(self.followed, weights), weighted_mean(self.followed_base, weights)
        return np.maximum(gain, 0) * followed / np.maximum(followed_base, FOLLOWED_LEAST)

    def first(self, seeds: int) -> Cells:
        """The same with the first `seeds` seeds of each prompt."""
        return replace(self, **{name: getattr(self, name)[:, :seeds] for name in ARRAYS})


def comparable(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two evaluations measured the same photos with the same base, judges, prompts, seeds and code."""
    return bool(mine.get("fingerprint")) and mine["fingerprint"] == theirs.get("fingerprint") and "cells" in theirs


def difference(mine: Cells, theirs: Cells, *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Overall score of `mine` less that of `theirs`, paired by prompt and seed, with its 95 % interval.

    Where one drew more seeds than the other, those both drew count. The photos are the same for both and stay as they are.
    """
    seeds = min(mine.likeness.shape[1], theirs.likeness.shape[1])
    a, b = mine.first(seeds), theirs.first(seeds)
    weights = cluster_weights(*a.likeness.shape, resamples=resamples, rng=np.random.default_rng(seed))
    return interval(a.overall(weights) - b.overall(weights), clusters=a.likeness.shape[0])


def is_better_than(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool | None:
    """Whether one evaluated adapter is better than another; None where their evaluations cannot be compared."""
    if not comparable(mine, theirs):
        return None
    return difference(Cells.of(mine), Cells.of(theirs), resamples=1).point > 0
