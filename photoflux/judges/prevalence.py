"""Shares of classes in images, corrected for a judge that errs, and how far two such shares lie apart.

q = C^T p: what a judge reports (q) is the truth (p) seen through its confusion matrix C[i, j] = P(read j | true i).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from photoflux.judges.stats import Array, Interval, flip_pvalue, interval

EM_ROUNDS = 400
EM_TOLERANCE = 1e-6
SMOOTHING = 0.5


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


def shares(labels: Array, classes: int, weights: Array | None = None) -> Array:
    """Observed shares [K], or [resamples, K] under weights [resamples, P, S], of labels [P, S]; -1 (unknown) is left out."""
    onehot = (labels[..., None] == np.arange(classes)).astype(float)
    counts = onehot.sum((0, 1)) if weights is None else np.einsum("dps,psk->dk", weights, onehot)
    totals = counts.sum(-1, keepdims=True)
    return np.divide(counts, totals, out=np.full_like(counts, 1 / classes), where=totals > 0)


def sample_rates(confusion: Array, *, resamples: int, rng: np.random.Generator) -> Array:
    """Plausible rates [resamples, K, K]: each row from Dirichlet(counts + 0.5)."""
    gammas = rng.standard_gamma(np.asarray(confusion, float) + SMOOTHING, size=(resamples, *np.shape(confusion)))
    return gammas / gammas.sum(-1, keepdims=True)


@dataclass(frozen=True)
class Drift:
    """Shares before and after, and what lies between them; per attribute.

    `distance` is the plain total variation, `null_mean` what whole prompts swapped at random give: both shrink with the number of images.
    `excess` does not.
    """

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
    base: Array, tuned: Array, confusion: Array, *, weights: Array, signs: Array, rng: np.random.Generator
) -> Drift:
    """Compare paired labels [P, S] (-1: unknown) under cluster weights [1 + resamples, P, S] and `signs` [F, P].

    Distance is total variation of the corrected shares. Its plug-in value is positive even between equal models:
    `excess` is what two halves of the prompts agree on.
    """
    known = (base >= 0) & (tuned >= 0)
    base, tuned = np.where(known, base, -1), np.where(known, tuned, -1)
    classes, mean_rates = len(confusion), row_rates(confusion)
    rates = np.concatenate([mean_rates[None], sample_rates(confusion, resamples=len(weights) - 1, rng=rng)])
    # A prompt's own images vary with it: for the distance, whose bounds decide most, prompts alone are resampled, as is enough.
    whole = np.broadcast_to(weights.mean(-1, keepdims=True), weights.shape)
    b, t, b_whole, t_whole = (
        corrected(shares(side, classes, each), rates) for each in (weights, whole) for side in (base, tuned)
    )
    counts = _counts(base, classes), _counts(tuned, classes)
    null, pvalue = flip_test(base, tuned, mean_rates, signs=signs)
    prompts = int(known.any(1).sum())
    errors = _standard_errors(*counts, mean_rates)
    return Drift(
        base=_intervals(b, clusters=prompts),
        tuned=_intervals(t, clusters=prompts),
        change=_intervals(t - b, clusters=prompts),
        ratio=_intervals(t / np.maximum(b, 1e-9), clusters=prompts),
        distance=float(total_variation(t[0], b[0])),
        null_mean=null,
        excess=_excess(t_whole - b_whole, errors, clusters=prompts),
        pvalue=pvalue,
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


def _excess(change: Array, errors: Array, *, clusters: int) -> Interval:
    """What halves of the prompts agree on, from changes of shares [1 + resamples, K] and their errors [K], with its interval.

    The size of a draw holds chance twice, that of the data and its own, and more so the more classes there are. So a draw's errors
    are sqrt(2) as large; for the upper bound they stay as they are, which errs towards a change.
    """
    upper, lower = (_agreed(change, size * errors) for size in (1, np.sqrt(2)))
    lower[0] = point = float(upper[0])
    lo, hi = interval(lower, clusters=clusters).lo, interval(upper, clusters=clusters).hi
    return Interval(point, min(lo, point), max(hi, point))


def _agreed(change: Array, errors: Array) -> Array:
    """Total variation [resamples] that halves of the prompts agree on, from changes of shares [resamples, K] and their errors [K].

    The size of a change by chance alone is never 0. Take its direction from one half of the prompts and its size from the
    other: chance then cancels, and a true change stays whole. The mean over all halvings of a change d known to s is
    d (2 Phi(d / s) - 1) - 2 s phi(d / s).
    """
    from scipy.special import ndtr

    size = np.abs(change)
    z = np.divide(size, errors, out=np.full_like(size, np.inf), where=errors > 0)
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return (size * (2 * ndtr(z) - 1) - 2 * errors * density).sum(-1) / 2


def _standard_errors(base: Array, tuned: Array, rates: Array) -> Array:
    """Jackknife errors [K] over prompts of the change of corrected shares, from counts [P, K] per side."""
    prompts = len(base)
    without = [_shares_of(side.sum(0) - side, rates) for side in (base, tuned)]
    changes = without[1] - without[0]
    return np.sqrt((prompts - 1) / prompts * ((changes - changes.mean(0)) ** 2).sum(0))


def flip_test(base: Array, tuned: Array, rates: Array, *, signs: Array) -> tuple[float, float]:
    """Mean distance with base and tuned swapped in the prompts where `signs` [F, P] are -1, and p of the one that was seen.

    Whole prompts: what tuning does to one prompt it does to all seeds of it, so that seeds are no independent witnesses. Of equal
    distances, that counts for more whose prompts changed more evenly: each weighs less the more of its images changed, either way.
    """
    before, after = (_counts(side, len(rates)) for side in (base, tuned))
    total, moved = before.sum(0) + after.sum(0), signs @ (after - before)
    distances = total_variation(*_shares_of(np.stack([total - moved, total + moved]) / 2, rates))
    even = (after - before) / (1 + (base != tuned).sum(1, keepdims=True))
    return float(distances.mean()), flip_pvalue(distances, ties=np.abs(signs @ even).sum(-1))


def _counts(labels: Array, classes: int) -> Array:
    """How often each class is read in each prompt: [P, K] of labels [P, S], unknown left out."""
    return (labels[..., None] == np.arange(classes)).sum(1).astype(float)


def _shares_of(counts: Array, rates: Array) -> Array:
    """Corrected shares [..., K] behind counts [..., K]."""
    totals = counts.sum(-1, keepdims=True)
    return corrected(np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0), rates)


def _intervals(values: Array, *, clusters: int) -> list[Interval]:
    return [interval(values[:, k], clusters=clusters) for k in range(values.shape[1])]
