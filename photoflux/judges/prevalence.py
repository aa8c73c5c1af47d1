"""Shares of classes in pictures, corrected for a judge that errs, and how far two such shares lie apart.

q = C^T p: what a judge reports (q) is the truth (p) seen through its confusion matrix C[i, j] = P(read j | true i).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from photoflux.judges.stats import Array, Interval, interval

EM_ROUNDS = 400
EM_TOLERANCE = 1e-6
SMOOTHING = 0.5
MIN_INFORMATION = 1.2
"""Sensitivity + specificity at or below which a binary share cannot be told (1 is a coin)."""


def row_rates(confusion: Array) -> Array:
    """Counts [K, K] to row-stochastic rates, with half a count added to each cell."""
    smoothed = np.asarray(confusion, float) + SMOOTHING
    return smoothed / smoothed.sum(-1, keepdims=True)


def balanced_accuracy(confusion: Array) -> float:
    """Mean over true classes of the share read right; classes nobody checked count as never right."""
    table = np.asarray(confusion, float)
    totals = table.sum(1)
    return float(np.mean(np.divide(np.diag(table), totals, out=np.zeros_like(totals), where=totals > 0)))


def corrected(observed: Array, rates: Array) -> Array:
    """Most likely true shares [..., K] behind observed shares [..., K] and rates [..., K, K].

    Expectation maximisation of sum_j q_j log (C^T p)_j over the simplex, from the uniform start, which is also the
    answer where nothing was observed.
    """
    q = np.asarray(observed, float)
    p = np.full(np.broadcast_shapes(q.shape, rates.shape[:-1]), 1 / q.shape[-1])
    for _ in range(EM_ROUNDS):
        seen = np.einsum("...k,...kj->...j", p, rates)
        ratio = np.divide(q, seen, out=np.zeros_like(seen), where=seen > 0)
        better = p * np.einsum("...kj,...j->...k", rates, ratio)
        total = better.sum(-1, keepdims=True)
        better = np.divide(better, total, out=p.copy(), where=total > 0)
        settled, p = np.abs(better - p).max() < EM_TOLERANCE, better
        if settled:
            break
    return p


def rogan_gladen(observed: float, *, sensitivity: float, specificity: float) -> float | None:
    """True share of a binary class, clipped to [0, 1]; None when the judge knows too little to say."""
    if sensitivity + specificity <= MIN_INFORMATION:
        return None
    return float(np.clip((observed + specificity - 1) / (sensitivity + specificity - 1), 0, 1))


def shares(labels: Array, classes: int, weights: Array | None = None) -> Array:
    """Observed shares [K], or [draws, K] under weights [draws, P, S], of labels [P, S]; -1 (unknown) is left out."""
    onehot = (labels[..., None] == np.arange(classes)).astype(float)
    counts = onehot.sum((0, 1)) if weights is None else np.einsum("dps,psk->dk", weights, onehot)
    totals = counts.sum(-1, keepdims=True)
    return np.divide(counts, totals, out=np.full_like(counts, 1 / classes), where=totals > 0)


def rate_draws(confusion: Array, *, draws: int, rng: np.random.Generator) -> Array:
    """Plausible rates [draws, K, K]: each row from Dirichlet(counts + 0.5)."""
    gammas = rng.standard_gamma(np.asarray(confusion, float) + SMOOTHING, size=(draws, *np.shape(confusion)))
    return gammas / gammas.sum(-1, keepdims=True)


@dataclass(frozen=True)
class Drift:
    """Shares before and after, and what lies between them; per attribute."""

    base: list[Interval]
    tuned: list[Interval]
    change: list[Interval]
    ratio: list[Interval]
    distance: float
    null_mean: float
    excess: Interval
    pvalue: float
    flips: Array


def drift(
    base: Array, tuned: Array, confusion: Array, *, weights: Array, permutations: int, rng: np.random.Generator
) -> Drift:
    """Compare paired labels [P, S] (-1: unknown) under cluster weights [1 + draws, P, S].

    Distance is total variation of the corrected shares. Its plug-in value is positive even between equal models:
    `excess` takes off the mean over same-seed sign flips, and its draws are centred on it for the same reason.
    """
    known = (base >= 0) & (tuned >= 0)
    base, tuned = np.where(known, base, -1), np.where(known, tuned, -1)
    classes, mean_rates = len(confusion), row_rates(confusion)
    rates = np.concatenate([mean_rates[None], rate_draws(confusion, draws=len(weights) - 1, rng=rng)])
    b, t = (corrected(shares(side, classes, weights), rates) for side in (base, tuned))
    distance = total_variation(t, b)
    null = _null_distances(base, tuned, mean_rates, permutations=permutations, rng=rng)
    return Drift(
        base=_intervals(b),
        tuned=_intervals(t),
        change=_intervals(t - b),
        ratio=_intervals(t / np.maximum(b, 1e-9)),
        distance=float(distance[0]),
        null_mean=float(null.mean()),
        excess=_excess(distance, float(null.mean())),
        pvalue=float((1 + (null >= distance[0] - 1e-12).sum()) / (1 + permutations)),
        flips=flip_matrix(base, tuned, classes),
    )


def total_variation(first: Array, second: Array) -> Array:
    """Half the absolute difference of two distributions, summed over the last axis: 0 equal, 1 disjoint."""
    return np.abs(first - second).sum(-1) / 2


def flip_matrix(base: Array, tuned: Array, classes: int) -> Array:
    """Counts [K, K] of pairs read as class a from the base and class b from the tuned model at the same seed."""
    known = (base >= 0) & (tuned >= 0)
    table = np.zeros((classes, classes), int)
    np.add.at(table, (base[known], tuned[known]), 1)
    return table


def _excess(distance: Array, null_mean: float) -> Interval:
    centred = distance[1:] - distance[1:].mean() + distance[0]
    return interval(np.concatenate([distance[:1], centred]) - null_mean)


def _null_distances(base: Array, tuned: Array, rates: Array, *, permutations: int, rng: np.random.Generator) -> Array:
    """Distances after swapping base and tuned at random within pairs: [permutations]."""
    classes = len(rates)
    b, t = ((side.reshape(-1, 1) == np.arange(classes)).astype(float) for side in (base, tuned))
    moved = rng.integers(0, 2, (permutations, len(b))).astype(float) @ (t - b)
    total = max(b.sum(), 1)
    return total_variation(corrected((b.sum(0) + moved) / total, rates), corrected((t.sum(0) - moved) / total, rates))


def _intervals(values: Array) -> list[Interval]:
    return [interval(values[:, k]) for k in range(values.shape[1])]
