"""Two adapters are compared picture by picture, and the same on the arrays as by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from photoflux.judges.champion import Cells, comparable, difference, is_better_than
from photoflux.judges.scores import cells, measure
from photoflux.judges.stats import cluster_weights


def made(gain: float, *, seeds: int = 4, noise: float = 0.0, hard: float = 0.0, seed: int = 0) -> Cells:
    """25 prompts, a span of .5; `hard` is how much prompts differ for every model alike, `noise` what is each picture's own."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(99).normal(0, hard, (25, 1))
    likeness = 0.3 + 0.5 * gain + shared + rng.normal(0, noise, (25, seeds))
    flat = np.ones((25, seeds))
    return Cells(likeness, 0.3 * flat, flat, flat, 0.8)


def document(of: Cells, **changes: Any) -> dict[str, Any]:
    return {"fingerprint": "f", "cells": of.as_dict(), **changes}


def test_the_difference_by_hand() -> None:
    found = difference(made(0.8), made(0.5))
    assert (found.point, found.lo, found.hi) == pytest.approx((0.3, 0.3, 0.3))


def test_what_is_hard_for_both_cancels_out() -> None:
    """Prompts that all models find hard widen each one's interval, and not that of the difference."""
    mine, theirs = made(0.8, noise=0.02, hard=0.2, seed=1), made(0.75, noise=0.02, hard=0.2, seed=2)
    apart = difference(mine, made(0.0)).half_width
    assert difference(mine, theirs).half_width < apart / 5
    assert difference(mine, theirs).lo > 0


def test_of_two_numbers_of_seeds_those_that_both_drew_count() -> None:
    more = made(0.8, seeds=8)
    more.likeness[:, 4:] = 0.0
    assert difference(more, made(0.5)).point == pytest.approx(0.3)


def test_it_covers_the_true_difference() -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for seed in range(200):
        shared = rng.normal(0, 0.15, (25, 1))
        a, b = made(0.7, noise=0.2, seed=seed), made(0.6, noise=0.2, seed=1000 + seed)
        own = rng.normal(0, 0.05, (25, 1))
        mine = Cells(a.likeness + shared + own, a.likeness_base, a.followed, a.followed_base, a.real)
        theirs = Cells(b.likeness + shared, b.likeness_base, b.followed, b.followed_base, b.real)
        found = difference(mine, theirs, resamples=400, seed=seed)
        inside += found.lo <= 0.1 <= found.hi
    assert inside >= 182, "of 200 intervals of 95 % this few hold by chance once in a hundred"


def test_an_evaluation_and_its_cells_say_the_same(studio: Any) -> None:
    evidence = studio.evidence()
    equal = cluster_weights(*evidence.tuned.shape, resamples=1, rng=np.random.default_rng(0))[:1]
    kept = Cells.of({"cells": cells(evidence).as_dict()})
    assert kept.overall(equal)[0] == pytest.approx(
        measure(evidence, resamples=200).metrics["overall"].value.point, abs=1e-5
    )


def test_other_photos_seeds_or_code_cannot_be_compared() -> None:
    mine = document(made(0.8))
    assert comparable(mine, mine)
    for other in (document(made(0.5), fingerprint="g"), {"fingerprint": "f"}, {}, {"fingerprint": ""}):
        assert not comparable(mine, other)
        assert is_better_than(mine, other) is None
    assert not comparable({}, {})


def test_of_two_one_is_better_and_equals_are_not() -> None:
    good, bad = document(made(0.8)), document(made(0.5))
    assert (is_better_than(good, bad), is_better_than(bad, good), is_better_than(good, good)) == (True, False, False)
