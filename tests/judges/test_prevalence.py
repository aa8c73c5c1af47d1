from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize
from sklearn.metrics import balanced_accuracy_score

from photoflux.judges.prevalence import (
    Drift,
    balanced_accuracy,
    corrected,
    drift,
    flip_matrix,
    row_rates,
    sample_rates,
    shares,
    total_variation,
)
from photoflux.judges.stats import cluster_weights, sign_flips

CONFUSION = np.array([[170, 20, 10], [12, 160, 28], [6, 18, 176]])
positive = st.floats(0.01, 1)


def simplex(values: np.ndarray) -> np.ndarray:
    return values / values.sum()


def test_balanced_accuracy_equals_sklearn() -> None:
    truth = np.repeat([0, 0, 0, 1, 1, 1, 2, 2, 2], CONFUSION.ravel())
    read = np.repeat([0, 1, 2] * 3, CONFUSION.ravel())
    assert balanced_accuracy(CONFUSION) == pytest.approx(balanced_accuracy_score(truth, read))


def test_a_class_nobody_checked_counts_as_never_right() -> None:
    assert balanced_accuracy(np.array([[10, 0], [0, 0]])) == 0.5


def test_correction_undoes_a_known_confusion() -> None:
    truth, rates = np.array([0.6, 0.3, 0.1]), row_rates(CONFUSION)
    assert corrected(truth @ rates, rates) == pytest.approx(truth, abs=1e-3)


def test_correction_is_the_maximum_of_the_likelihood() -> None:
    """Where the unconstrained inverse leaves the simplex, EM must sit on its edge like a direct optimiser."""
    observed, rates = np.array([0.02, 0.05, 0.93]), row_rates(CONFUSION)

    def loss(z: np.ndarray) -> float:
        p = np.exp(z) / np.exp(z).sum()
        return -float(observed @ np.log(p @ rates))

    best = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-10}).x
    assert corrected(observed, rates) == pytest.approx(np.exp(best) / np.exp(best).sum(), abs=2e-3)


def test_binary_correction_equals_rogan_gladen() -> None:
    """(observed + specificity - 1) / (sensitivity + specificity - 1), within 0 and 1."""
    rates = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert corrected(np.array([0.48, 0.52]), rates)[0] == pytest.approx((0.48 + 0.8 - 1) / (0.9 + 0.8 - 1), abs=1e-4)
    assert corrected(np.array([0.05, 0.95]), rates)[0] == pytest.approx(0, abs=1e-3)


@settings(max_examples=60)
@given(arrays(float, 4, elements=positive), arrays(float, (4, 4), elements=positive))
def test_corrected_shares_stay_on_the_simplex(observed: np.ndarray, counts: np.ndarray) -> None:
    p = corrected(simplex(observed), row_rates(counts * 100 + np.eye(4) * 50))
    assert p.sum() == pytest.approx(1)
    assert (p >= 0).all()


@settings(max_examples=60)
@given(st.floats(0.05, 0.95), st.floats(0.0, 0.3))
def test_correction_is_monotone_in_what_is_read(share: float, more: float) -> None:
    rates = np.array([[0.9, 0.1], [0.15, 0.85]])
    low, high = (corrected(np.array([q, 1 - q]), rates)[0] for q in (share, min(share + more, 1)))
    assert high >= low - 1e-3, "beyond what iterating leaves open at a share of 0"


def test_correction_works_in_batches() -> None:
    rng = np.random.default_rng(0)
    observed, rates = rng.dirichlet(np.ones(3), 5), sample_rates(CONFUSION, resamples=5, rng=rng)
    one_by_one = [corrected(q, r) for q, r in zip(observed, rates, strict=True)]
    assert corrected(observed, rates) == pytest.approx(np.stack(one_by_one), abs=1e-4)


def test_shuffled_labels_come_out_uniform() -> None:
    """Bias control: labels without information give equal shares, whatever was read before shuffling."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, (40, 50))
    assert corrected(shares(labels, 3), row_rates(CONFUSION)) == pytest.approx(np.full(3, 1 / 3), abs=0.06)
    nothing = np.full((3, 3), 100)
    assert corrected(np.array([0.9, 0.05, 0.05]), row_rates(nothing)) == pytest.approx(np.full(3, 1 / 3))


def test_naive_shares_are_biased_and_corrected_ones_are_not() -> None:
    """Mean over 200 samples of 300 pictures, judge right in 85 %, true shares known."""
    rng = np.random.default_rng(2)
    truth, rates = np.array([0.7, 0.15, 0.1, 0.05]), np.full((4, 4), 0.05) + np.eye(4) * 0.8
    counts = rng.multinomial(300, truth @ rates, size=200) / 300
    assert abs((counts - truth).mean(0)[0]) > 0.05
    assert np.abs((corrected(counts, rates) - truth).mean(0)).max() < 0.01


def test_shares_leave_unknown_pictures_out() -> None:
    labels = np.array([[0, 1, -1], [1, 1, -1]])
    assert shares(labels, 2) == pytest.approx([0.25, 0.75])
    assert shares(np.full((2, 2), -1), 2) == pytest.approx([0.5, 0.5])


@given(arrays(float, 5, elements=positive), arrays(float, 5, elements=positive), arrays(float, 5, elements=positive))
def test_total_variation_is_a_distance(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> None:
    p, q, r = simplex(p), simplex(q), simplex(r)
    assert 0 <= total_variation(p, q) <= 1
    assert total_variation(p, q) == pytest.approx(total_variation(q, p))
    assert total_variation(p, r) <= total_variation(p, q) + total_variation(q, r) + 1e-12


def test_flip_matrix_counts_known_pairs() -> None:
    base, tuned = np.array([[0, 0, 1, -1]]), np.array([[0, 1, 1, 0]])
    assert flip_matrix(base, tuned, 2).tolist() == [[1, 1], [0, 1]]


def read(truth: np.ndarray, confusion: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    cumulative = row_rates(confusion).cumsum(-1)[truth]
    return (rng.random(truth.shape)[..., None] > cumulative).sum(-1)


def compared(
    base: np.ndarray, tuned: np.ndarray, confusion: np.ndarray, *, flips: int, resamples: int, rng: np.random.Generator
) -> Drift:
    """Two models' labels [P, S], with that many bootstrap draws and swaps."""
    weights = cluster_weights(*base.shape, resamples=resamples, rng=rng)
    signs = sign_flips(len(base), flips=flips, rng=rng)
    return drift(base, tuned, confusion, weights=weights, signs=signs, rng=rng)


def test_intervals_of_a_drift_cover_the_truth() -> None:
    """Shares .5/.3/.2 become .4/.3/.3; judge and its confusion both sampled; 95 % intervals."""
    rng = np.random.default_rng(3)
    before, after, rates = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.3, 0.3]), row_rates(CONFUSION)
    hits, cells = 0, 0
    for _ in range(60):
        measured = np.stack([rng.multinomial(200, row) for row in rates])
        base, tuned = (read(rng.choice(3, (40, 10), p=p), CONFUSION, rng) for p in (before, after))
        found = compared(base, tuned, measured, flips=200, resamples=300, rng=rng)
        for intervals, truth in ((found.base, before), (found.tuned, after)):
            hits += sum(value.lo <= p <= value.hi for value, p in zip(intervals, truth, strict=True))
            cells += 3
    assert hits / cells >= 0.9


def test_excess_is_about_zero_between_equal_models_though_the_distance_is_not() -> None:
    rng = np.random.default_rng(4)
    excess, distance = [], []
    for _ in range(40):
        base, tuned = rng.integers(0, 6, (2, 20, 5))
        found = compared(base, tuned, np.eye(6) * 1e4, flips=200, resamples=200, rng=rng)
        excess.append(found.excess.point)
        distance.append(found.distance)
    assert np.mean(distance) == pytest.approx(0.126, abs=0.02)
    assert abs(np.mean(excess)) < 0.015


def test_permutation_p_is_uniform_between_equal_models_and_small_for_a_shift() -> None:
    rng = np.random.default_rng(5)
    null = []
    for _ in range(60):
        base, tuned = rng.integers(0, 2, (2, 20, 10))
        null.append(compared(base, tuned, np.eye(2) * 1e4, flips=200, resamples=200, rng=rng).pvalue)
    assert np.mean(np.asarray(null) < 0.05) <= 0.12
    assert np.mean(null) == pytest.approx(0.5, abs=0.13)
    shifted = np.where(rng.random((20, 10)) < 0.3, 1, rng.integers(0, 2, (20, 10)))
    assert compared(base, shifted, np.eye(2) * 1e4, flips=400, resamples=200, rng=rng).pvalue < 0.05


def test_p_of_few_prompts_is_exact() -> None:
    """Four prompts that all changed from 0 to 1: of 16 swaps two are as far apart, so that nothing can be confirmed."""
    rng = np.random.default_rng(6)
    base, tuned = np.zeros((4, 10), int), np.ones((4, 10), int)
    assert compared(base, tuned, np.eye(2) * 1e4, flips=200, resamples=200, rng=rng).pvalue == 2 / 16


def test_prompts_that_changed_at_random_are_no_change_of_shares() -> None:
    """A prompt's seeds all follow it: half of the prompts went one way, half the other, and no test may see 40 x 11 votes."""
    base, tuned = np.zeros((40, 11), int), np.zeros((40, 11), int)
    base[:22], tuned[22:] = 1, 1
    assert compared(base, tuned, np.eye(2) * 1e4, flips=400, resamples=200, rng=np.random.default_rng(7)).pvalue > 0.2
