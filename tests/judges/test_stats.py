from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats as scipy_stats
from sklearn.metrics import roc_auc_score
from sklearn.metrics.pairwise import polynomial_kernel

from photoflux.judges.stats import (
    auc,
    benjamini_hochberg,
    cluster_weights,
    holm,
    interval,
    item_weights,
    kid,
    kid_null,
    mcnemar,
    stuart_maxwell,
    weighted_mean,
    wilson,
)

pvalues = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@pytest.mark.parametrize(("hits", "total"), [(0, 100), (1, 100), (50, 100), (7, 9), (4, 4)])
def test_wilson_equals_scipy(hits: int, total: int) -> None:
    theirs = scipy_stats.binomtest(hits, total).proportion_ci(method="wilson")
    ours = wilson(hits, total)
    assert (ours.lo, ours.hi) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_wilson_upper_bounds_of_the_copy_rule() -> None:
    assert wilson(0, 100).hi == pytest.approx(0.037, abs=5e-4)
    assert wilson(1, 100).hi == pytest.approx(0.0545, abs=5e-4)


def test_wilson_refuses_no_pictures() -> None:
    with pytest.raises(ValueError, match="at least one"):
        wilson(0, 0)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_stays_in_bounds_and_holds_its_point(case: tuple[int, int]) -> None:
    value = wilson(*case)
    assert 0 <= value.lo <= value.point + 1e-12
    assert value.point - 1e-12 <= value.hi <= 1


def test_cluster_weights_start_equal_and_sum_to_one() -> None:
    weights = cluster_weights(7, 3, draws=50, rng=np.random.default_rng(0))
    assert weights.shape == (51, 7, 3)
    assert np.allclose(weights[0], 1 / 21)
    assert np.allclose(weights.sum((1, 2)), 1)


def test_a_prompt_not_drawn_takes_its_seeds_with_it() -> None:
    weights = cluster_weights(5, 4, draws=300, rng=np.random.default_rng(0))[1:]
    per_prompt = weights.sum(-1) * 5
    assert np.allclose(per_prompt, np.round(per_prompt))
    assert (per_prompt == 0).any()


def test_item_weights_can_be_held_fixed() -> None:
    rng = np.random.default_rng(0)
    assert np.allclose(item_weights(4, draws=9, rng=rng, fixed=True), 0.25)
    assert item_weights(4, draws=99, rng=rng)[1:].std() > 0


def test_cluster_bootstrap_covers_the_mean_where_prompts_differ() -> None:
    """An interval over single pictures would be far too narrow here: half the spread lies between prompts."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        values = rng.normal(size=(25, 1)) + rng.normal(size=(25, 4))
        weights = cluster_weights(25, 4, draws=300, rng=rng)
        bounds = interval(weighted_mean(values, weights))
        hits += bounds.lo <= 0 <= bounds.hi
    assert 0.89 <= hits / 200 <= 0.99


def test_point_of_an_interval_is_the_plain_mean() -> None:
    values = np.arange(12.0).reshape(4, 3)
    weights = cluster_weights(4, 3, draws=200, rng=np.random.default_rng(2))
    assert interval(weighted_mean(values, weights)).point == pytest.approx(5.5)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(8, 0) == pytest.approx(2 * 0.5**8)
    assert mcnemar(3, 3) == pytest.approx(1)


def test_stuart_maxwell_of_two_classes_is_mcnemars_chi_square() -> None:
    table = np.array([[30, 18], [6, 46]])
    expected = scipy_stats.chi2.sf((18 - 6) ** 2 / (18 + 6), 1)
    assert stuart_maxwell(table) == pytest.approx(expected)


def test_stuart_maxwell_by_hand_for_three_classes() -> None:
    """d = (2, -3, 1); V = [[10, -4, -6], [-4, 11, -7], ...]; d' V^-1 d over the first two = 85/94."""
    table = np.array([[20, 3, 3], [1, 20, 3], [3, 4, 20]])
    difference = table.sum(1) - table.sum(0)
    assert difference.tolist() == [2, -3, 1]
    by_hand = (2**2 * 11 + 2 * 2 * -3 * 4 + (-3) ** 2 * 10) / (10 * 11 - 4 * 4)
    assert stuart_maxwell(table) == pytest.approx(scipy_stats.chi2.sf(by_hand, 2))


def test_stuart_maxwell_leaves_out_unseen_classes_and_equal_margins() -> None:
    with_empty = np.array([[30, 18, 0], [6, 46, 0], [0, 0, 0]])
    assert stuart_maxwell(with_empty) == pytest.approx(stuart_maxwell(with_empty[:2, :2]))
    assert stuart_maxwell(np.diag([4, 5, 6])) == 1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@given(pvalues)
def test_benjamini_hochberg_equals_scipy(p: list[float]) -> None:
    assert benjamini_hochberg(p) == pytest.approx(scipy_stats.false_discovery_control(p, method="bh"))


@given(pvalues)
def test_adjusting_never_lowers_a_p_and_keeps_the_order(p: list[float]) -> None:
    for adjust in (holm, benjamini_hochberg):
        adjusted = adjust(p)
        assert (adjusted >= np.asarray(p) - 1e-12).all()
        assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= -1e-12).all()
    assert (holm(p) >= benjamini_hochberg(p) - 1e-12).all()


@settings(max_examples=40)
@given(arrays(float, 9, elements=st.integers(0, 5)), arrays(float, 7, elements=st.integers(0, 5)))
def test_auc_equals_sklearn(higher: np.ndarray, lower: np.ndarray) -> None:
    labels = np.r_[np.ones(len(higher)), np.zeros(len(lower))]
    assert auc(higher, lower) == pytest.approx(roc_auc_score(labels, np.r_[higher, lower]))


def test_kid_against_sklearns_kernel() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(8, 5)), rng.normal(size=(6, 5)) + 1
    xx, yy, xy = (polynomial_kernel(a, b, degree=3, gamma=1 / 5, coef0=1) for a, b in ((x, x), (y, y), (x, y)))
    np.fill_diagonal(xx, 0)
    np.fill_diagonal(yy, 0)
    assert kid(x, y) == pytest.approx(xx.sum() / 56 + yy.sum() / 30 - 2 * xy.mean())


def test_kid_is_about_zero_between_equals_and_needs_two_pictures() -> None:
    rng = np.random.default_rng(4)
    values = [kid(rng.normal(size=(50, 8)), rng.normal(size=(50, 8))) for _ in range(40)]
    assert abs(np.mean(values)) < 0.02
    assert kid(rng.normal(size=(50, 8)), rng.normal(size=(50, 8)) + 1) > 1
    with pytest.raises(ValueError, match="two pictures"):
        kid(np.ones((1, 3)), np.ones((4, 3)))


def test_kid_null_splits_seeds_not_prompts() -> None:
    """Prompts far apart must not widen the null: every prompt is on both sides of each split, so only seeds vary."""
    rng = np.random.default_rng(5)
    centres = 3 * rng.normal(size=(10, 1, 8))
    null = kid_null(centres + 0.01 * rng.normal(size=(10, 4, 8)), draws=20, rng=rng)
    assert null.shape == (20,)
    split_by_prompt = [kid(centres[order[:5], 0], centres[order[5:], 0]) for order in map(rng.permutation, [10] * 20)]
    assert null.std() < 0.001 * np.std(split_by_prompt)
    with pytest.raises(ValueError, match="two seeds"):
        kid_null(np.ones((3, 1, 4)), draws=2, rng=rng)
