"""Intervals and tests that judging rests on; numpy and scipy only, no images and no models.

Images lie on a grid [P, S]: P prompts times S seeds. Tuned and base images of one cell share prompt and seed, so
every resampling keeps a cell's pair together. Images of one prompt are alike, so the independent units are prompts:
tests swap whole prompts, and intervals are as wide as the number of prompts asks for.
`python -m benchmarks.statistics` measures levels and coverage of what stands here (docs/decisions/0026).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Z95 = 1.959963984540054
ROUNDING = 1e-12
LEAST_CORRELATION = 0.05
"""Correlation of the images of one prompt that a rate's interval assumes at least: none of it shows at 0 hits."""
FEW_PROMPTS = 8
"""Prompts below which an interval is a t interval, whose range does not end with the prompts seen."""
LEAST_KERNEL_PROMPTS = 5
"""Prompts that a kernel distance needs: the bootstrap-t of three has one value, and that of four holds the truth in 80 %."""


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


def interval(values: Array, *, clusters: int) -> Interval:
    """Point and 95 % interval of a statistic [1 + resamples] under `*_weights`: the first is the point.

    Percentiles, further out than 2.5 and 97.5: plain ones of `clusters` resampled units are too narrow by their (n - 1) / n, and have
    the tails of a normal where a t with n - 1 degrees of freedom is due: 86 % instead of 95 at five prompts (Hesterberg 2015, section
    5.3). Below `FEW_PROMPTS` no resampling reaches that far out (three prompts held the truth in 75 %), so that the t interval itself
    stands there, with the standard error of the resamples; one prompt counts as two, which tells next to nothing.
    """
    point, resamples, reach = float(values[0]), values[1:], _reach(clusters)
    if clusters < FEW_PROMPTS:
        half = float(reach * resamples.std())
        return Interval(point, point - half, point + half)
    lo, hi = np.quantile(resamples, _tails(reach))
    return Interval(point, float(lo), float(hi))


def _reach(clusters: int) -> float:
    """Half-width of a 95 % interval in standard deviations of a bootstrap over so many units."""
    n = max(clusters, 2)
    return float(np.sqrt(n / (n - 1))) * student_quantile(n - 1)


def _tails(deviations: float) -> tuple[float, float]:
    """Shares of a normal distribution below so many standard deviations to either side."""
    from scipy.special import ndtr

    return float(ndtr(-deviations)), float(ndtr(deviations))


def student_quantile(degrees: int) -> float:
    """Half-width of a 95 % interval in standard errors, estimated with so many degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975))


def cluster_weights(prompts: int, seeds: int, *, resamples: int, rng: np.random.Generator) -> Array:
    """Weights [1 + resamples, P, S], each summing to 1: equal ones, then bootstrap resamples.

    Prompts are resampled first, then seeds within each of these prompts.
    """
    times = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    within = rng.multinomial(times * seeds, np.full(seeds, 1 / seeds))
    return np.concatenate([np.ones((1, prompts, seeds)), within]) / (prompts * seeds)


def item_weights(items: int, *, resamples: int, rng: np.random.Generator, fixed: bool = False) -> Array:
    """Weights [1 + resamples, N], each summing to 1: equal ones, then bootstrap resamples (equal ones again when `fixed`).

    N - 1 of the N items are resampled: as many as N would understate the spread of a mean, and N is small here.
    """
    equal = np.full((1, items), 1 / items)
    if fixed or items < 2:
        return np.repeat(equal, 1 + resamples, axis=0)
    resampled = rng.multinomial(items - 1, np.full(items, 1 / items), size=resamples)
    return np.concatenate([equal, resampled / (items - 1)])


def weighted_mean(values: Array, weights: Array) -> Array:
    """Mean of a grid [P, S] under weights [resamples, P, S]: [resamples]."""
    return np.einsum("dps,ps->d", weights, values)


def clustered_rate(hits: Array) -> Interval:
    """Share of hits [P, S] with a Korn-Graubard interval: Clopper-Pearson at the effective number of images.

    Images of one prompt hit together, so that they count for fewer: by their measured design effect, and at least as
    `LEAST_CORRELATION` has it; 100 images of 25 prompts without a hit leave a rate of up to .046.
    """
    from scipy.special import betaincinv

    if hits.size == 0:
        raise ValueError("a rate needs at least one picture")
    rate, total = float(hits.mean()), _effective_number(hits)
    count = rate * total
    lo = betaincinv(count, total - count + 1, 0.025) if count > 0 else 0.0
    hi = betaincinv(count + 1, total - count, 0.975) if count < total else 1.0
    return Interval(rate, float(lo), float(hi))


def _effective_number(hits: Array) -> float:
    """How many independent images know a rate as well as hits [P, S] do."""
    prompts, seeds = hits.shape
    rate, shares = hits.mean(), hits.mean(1)
    independent = rate * (1 - rate) / hits.size
    between = shares.var(ddof=1) / prompts if prompts > 1 else independent * seeds
    measured = between / independent if independent else 1.0
    effect = max(measured, 1 + (seeds - 1) * LEAST_CORRELATION)
    # The measured variance is itself uncertain: a t instead of a normal, as in every interval here.
    uncertain = (student_quantile(max(prompts - 1, 1)) / Z95) ** 2
    return max(hits.size / effect / uncertain, 1.0)


def sign_flips(clusters: int, *, flips: int, rng: np.random.Generator) -> Array:
    """Signs [F, clusters] by which base and tuned swap places in whole prompts; the first row swaps nothing.

    All 2^clusters of them, for an exact test, where that is no more than `flips`; else `flips` random ones after the first.
    """
    if 2**clusters <= flips:
        return 1 - 2 * (np.arange(2**clusters)[:, None] >> np.arange(clusters) & 1)
    return np.concatenate([np.ones((1, clusters), int), 1 - 2 * rng.integers(0, 2, (flips, clusters))])


def flip_pvalue(statistics: Array, *, ties: Array) -> float:
    """Two-sided p of the first of the statistics [F] computed under `sign_flips`: the share that is as large.

    Counts of few images are often equal. Those count that are no smaller in a second statistic, `ties` [F]: any order of the swaps
    gives an exact test, and one without ties rejects what it should, 5 instead of 2 to 4 %.
    """
    larger = statistics > statistics[0] + ROUNDING
    equal = ~larger & (statistics >= statistics[0] - ROUNDING)
    return float((larger | (equal & (ties >= ties[0] - ROUNDING))).mean())


def least_pvalue(signs: Array) -> float:
    """The smallest p that signs [F, clusters] can give.

    Swapping every prompt is like swapping none, so that it is 2 / 2^clusters where all are tried: no fewer than six
    prompts can confirm anything at 5 %.
    """
    flips, clusters = signs.shape
    return max(1 / flips, 2 / 2**clusters)


def mean_change_pvalue(changes: Array, signs: Array) -> float:
    """p that the changes [P, S] of images are around zero, under signs [F, P]; of equal sums the more even one counts for more."""
    sums = changes.sum(1)
    return flip_pvalue(np.abs(signs @ sums), ties=np.abs(signs @ (sums / (1 + (changes != 0).sum(1)))))


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p that discordant pairs fall either way alike, every pair on its own."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def group_pvalues(changes: Array, groups: Array) -> dict[str, float]:
    """p, per group of prompts, that its changes [P] are around zero; nan is a prompt that tells nothing.

    A group has few prompts, too few for sign flips (four give no p below .125) and for a spread of its own: its t uses the
    spread within all groups, or its own where that is larger.
    """
    from scipy.special import stdtr

    told = ~np.isnan(changes)
    changes, groups = changes[told], groups[told]
    within = {str(name): changes[groups == name] for name in dict.fromkeys(groups)}
    degrees = len(changes) - len(within)
    if degrees < 1:
        return dict.fromkeys(within, 1.0)
    pooled = sum(((x - x.mean()) ** 2).sum() for x in within.values()) / degrees
    found = {}
    for name, x in within.items():
        error = np.sqrt(max(pooled, x.var(ddof=1) if len(x) > 1 else 0.0) / len(x))
        t = np.inf if error == 0 else abs(x.mean()) / error
        found[name] = float(2 * stdtr(degrees, -t)) if x.mean() else 1.0
    return found


def holm(pvalues: Sequence[float]) -> Array:
    """Step-down adjusted p-values: family-wise error rate."""
    p = np.asarray(pvalues, float)
    order = np.argsort(p, kind="stable")
    scaled = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(scaled, 1)
    return adjusted


def auc(higher: Array, lower: Array) -> float:
    """Chance that a draw of `higher` exceeds one of `lower`; ties count half."""
    from scipy.stats import rankdata

    ranks, n, m = rankdata(np.concatenate([higher, lower])), len(higher), len(lower)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def kid(first: Array, second: Array, *, resamples: int, rng: np.random.Generator) -> Interval:
    """Unbiased squared MMD under the kernel (x.y / D + 1)^3 of the features [P, S, D] of two models on the same prompts.

    Only images of *different* prompts are compared. Images of one prompt share its words and, of one seed, its noise:
    with them, the value would depend on how many prompts and seeds there are, and two equal models would seem closer than
    equal. What is left is a U-statistic over prompts. Its interval is a bootstrap-t over prompts, with the tails of
    `interval` (2.5 % held the truth in 92): some prompts move much more than others, and a symmetric interval ends below the truth in
    up to one case of ten.
    """
    pairs = _kernel_pairs(first, second)
    prompts = len(pairs)
    if prompts < LEAST_KERNEL_PROMPTS:
        raise ValueError(
            f"kernel distance needs at least {LEAST_KERNEL_PROMPTS} prompts: an interval of fewer says nothing"
        )
    resampled = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples)
    resampled = resampled[(resampled > 0).sum(1) >= 3]
    points, errors = _mean_pairs(pairs, np.concatenate([np.ones((1, prompts)), resampled]))
    t = np.divide(points[1:] - points[0], errors[1:], out=np.zeros(len(resampled)), where=errors[1:] > 0)
    lo, hi = np.quantile(t, _tails(_reach(prompts)))
    return Interval(float(points[0]), float(points[0] - hi * errors[0]), float(points[0] - lo * errors[0]))


def _mean_pairs(pairs: Array, times: Array) -> tuple[Array, Array]:
    """Means [resamples] of pairs [P, P] of different prompts that come up `times` [resamples, P], with their standard errors."""
    prompts = len(pairs)
    beside = times @ pairs / (prompts - times)
    means = (times * (times @ pairs)).sum(1) / (prompts**2 - (times**2).sum(1))
    influence = 2 * (beside - means[:, None])
    return means, np.sqrt((times * influence**2).sum(1) / (prompts * (prompts - 1)))


def _kernel_pairs(first: Array, second: Array) -> Array:
    """Contribution [P, P] of each pair of different prompts to the squared MMD, mean over their seeds; 0 on the diagonal."""
    prompts, seeds, width = first.shape
    x, y = (side.reshape(-1, width) for side in (first, second))
    xx, yy, xy = ((a @ b.T / width + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    pairs = (xx + yy - xy - xy.T).reshape(prompts, seeds, prompts, seeds).mean((1, 3))
    np.fill_diagonal(pairs, 0)
    return pairs
