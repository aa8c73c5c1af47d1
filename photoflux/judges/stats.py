"""Intervals and tests that judging rests on; numpy and scipy only, no pictures and no models.

Pictures lie on a grid [P, S]: P prompts times S seeds. Tuned and base pictures of one cell share prompt and seed, so
every resampling keeps a cell's pair together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Z95 = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """A point estimate and its 95 % interval."""

    point: float
    lo: float
    hi: float

    @property
    def half_width(self) -> float:
        return (self.hi - self.lo) / 2

    def as_dict(self) -> dict[str, float]:
        return {"point": self.point, "lo": self.lo, "hi": self.hi}


def interval(values: Array) -> Interval:
    """Point and percentile interval of a statistic [1 + draws] computed under `*_weights`: the first is the point."""
    lo, hi = np.quantile(values[1:], (0.025, 0.975))
    return Interval(float(values[0]), float(lo), float(hi))


def cluster_weights(prompts: int, seeds: int, *, draws: int, rng: np.random.Generator) -> Array:
    """Weights [1 + draws, P, S], each summing to 1: equal ones, then bootstrap draws.

    Prompts are resampled first, then seeds within each prompt drawn.
    """
    times = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=draws)
    within = rng.multinomial(times * seeds, np.full(seeds, 1 / seeds))
    return np.concatenate([np.ones((1, prompts, seeds)), within]) / (prompts * seeds)


def item_weights(items: int, *, draws: int, rng: np.random.Generator, fixed: bool = False) -> Array:
    """Weights [1 + draws, N], each summing to 1: equal ones, then bootstrap draws (equal ones again when `fixed`)."""
    drawn = rng.multinomial(items, np.full(items, 1 / items), size=draws)
    return np.concatenate([np.ones((1, items)), np.ones_like(drawn) if fixed else drawn]) / items


def weighted_mean(values: Array, weights: Array) -> Array:
    """Mean of a grid [P, S] under weights [draws, P, S]: [draws]."""
    return np.einsum("dps,ps->d", weights, values)


def wilson(hits: int, total: int) -> Interval:
    """Wilson score interval of a rate."""
    if total <= 0:
        raise ValueError("a rate needs at least one picture")
    rate, spread = hits / total, Z95**2 / total
    centre = (rate + spread / 2) / (1 + spread)
    half = Z95 * np.sqrt(rate * (1 - rate) / total + spread / (4 * total)) / (1 + spread)
    return Interval(rate, max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p that discordant pairs fall either way alike."""
    from scipy.special import bdtr

    total = gained + lost
    return min(1.0, 2 * float(bdtr(min(gained, lost), total, 0.5))) if total else 1.0


def stuart_maxwell(flips: Array) -> float:
    """p that both margins of a square table [K, K] of pairs are the same (chi-square, K - 1 degrees of freedom).

    Categories that neither side shows are left out; a table on its diagonal has p = 1.
    """
    from scipy.special import chdtrc

    seen = (flips.sum(0) + flips.sum(1)) > 0
    table = np.asarray(flips, float)[np.ix_(seen, seen)]
    difference = (table.sum(1) - table.sum(0))[:-1]
    if not difference.any():
        return 1.0
    covariance = np.diag(table.sum(0) + table.sum(1)) - table - table.T
    statistic = difference @ np.linalg.pinv(covariance[:-1, :-1]) @ difference
    return float(chdtrc(len(difference), statistic))


def holm(pvalues: Sequence[float]) -> Array:
    """Step-down adjusted p-values: family-wise error rate."""
    p = np.asarray(pvalues, float)
    order = np.argsort(p, kind="stable")
    scaled = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return _back(np.minimum(scaled, 1), order)


def benjamini_hochberg(pvalues: Sequence[float]) -> Array:
    """Step-up adjusted p-values: false discovery rate."""
    p = np.asarray(pvalues, float)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    return _back(np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1), order)


def auc(higher: Array, lower: Array) -> float:
    """Chance that a draw of `higher` exceeds one of `lower`; ties count half."""
    _, place, times = np.unique(np.concatenate([higher, lower]), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(times) - (times - 1) / 2)[place]
    n, m = len(higher), len(lower)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def kid(first: Array, second: Array) -> float:
    """Unbiased squared MMD of features [N, D] and [M, D] under the kernel (x.y / D + 1)^3."""
    n, m, width = len(first), len(second), first.shape[1]
    if min(n, m) < 2:
        raise ValueError("kernel distance needs at least two pictures on each side")
    xx, yy, xy = ((a @ b.T / width + 1) ** 3 for a, b in ((first, first), (second, second), (first, second)))
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def kid_null(features: Array, *, draws: int, rng: np.random.Generator) -> Array:
    """Kernel distances [draws] between seed halves of one grid of features [P, S, D], every prompt on both sides."""
    _, seeds, width = features.shape
    half = seeds // 2
    if half == 0:
        raise ValueError("a seed-split null needs at least two seeds per prompt")
    values = []
    for _ in range(draws):
        order = rng.permuted(np.tile(np.arange(seeds), (len(features), 1)), axis=1)
        parts = np.take_along_axis(features, order[..., None], axis=1)
        values.append(kid(parts[:, :half].reshape(-1, width), parts[:, half : 2 * half].reshape(-1, width)))
    return np.asarray(values)


def _back(values: Array, order: Array) -> Array:
    out = np.empty_like(values)
    out[order] = values
    return out
