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
    Interval,
    auc,
    cluster_weights,
    clustered_rate,
    flip_pvalue,
    group_pvalues,
    holm,
    interval,
    item_weights,
    kid,
    least_pvalue,
    mcnemar,
    mean_change_pvalue,
    sign_flips,
    weighted_mean,
)

pvalues = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def hits(shape: tuple[int, int], *cells: tuple[int, int]) -> np.ndarray:
    found = np.zeros(shape, bool)
    for cell in cells:
        found[cell] = True
    return found


def test_upper_bounds_of_the_copy_rule() -> None:
    """No copy among 25 prompts x 4 seeds stays below the limit of 5 %; a single one does not."""
    assert clustered_rate(hits((25, 4))).hi == pytest.approx(0.0460, abs=5e-4)
    assert clustered_rate(hits((25, 4), (0, 0))).hi == pytest.approx(0.0644, abs=5e-4)


def test_a_rate_of_pictures_on_their_own_is_clopper_pearsons_but_for_the_t() -> None:
    """One seed a prompt: 200 prompts, 30 hits, whose measured design effect is 200 / 199."""
    found = np.arange(200)[:, None] < 30
    t = scipy_stats.t.ppf(0.975, 199) / scipy_stats.norm.ppf(0.975)
    total = 199 / t**2
    lo, hi = scipy_stats.beta.ppf([0.025, 0.975], [0.15 * total, 0.15 * total + 1], [0.85 * total + 1, 0.85 * total])
    value = clustered_rate(found)
    assert (value.point, value.lo, value.hi) == pytest.approx((0.15, lo, hi), abs=1e-9)


def test_hits_of_one_prompt_tell_less_than_hits_of_many() -> None:
    together = clustered_rate(hits((25, 4), *((0, s) for s in range(4))))
    apart = clustered_rate(hits((25, 4), *((p, 0) for p in range(4))))
    assert together.point == apart.point
    assert together.half_width > 1.5 * apart.half_width


def test_a_rate_refuses_no_pictures() -> None:
    with pytest.raises(ValueError, match="at least one"):
        clustered_rate(np.zeros((0, 4)))


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 6))))
def test_a_rate_stays_in_bounds_and_holds_its_point(found: np.ndarray) -> None:
    value = clustered_rate(found)
    assert 0 <= value.lo <= value.point + 1e-12
    assert value.point - 1e-12 <= value.hi <= 1


def test_cluster_weights_start_equal_and_sum_to_one() -> None:
    weights = cluster_weights(7, 3, resamples=50, rng=np.random.default_rng(0))
    assert weights.shape == (51, 7, 3)
    assert np.allclose(weights[0], 1 / 21)
    assert np.allclose(weights.sum((1, 2)), 1)


def test_a_prompt_not_drawn_takes_its_seeds_with_it() -> None:
    weights = cluster_weights(5, 4, resamples=300, rng=np.random.default_rng(0))[1:]
    per_prompt = weights.sum(-1) * 5
    assert np.allclose(per_prompt, np.round(per_prompt))
    assert (per_prompt == 0).any()


def test_item_weights_can_be_held_fixed() -> None:
    rng = np.random.default_rng(0)
    assert np.allclose(item_weights(4, resamples=9, rng=rng, fixed=True), 0.25)
    assert item_weights(4, resamples=99, rng=rng)[1:].std() > 0


def test_cluster_bootstrap_covers_the_mean_where_prompts_differ() -> None:
    """An interval over single pictures would be far too narrow here: half the spread lies between prompts."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        values = rng.normal(size=(25, 1)) + rng.normal(size=(25, 4))
        weights = cluster_weights(25, 4, resamples=300, rng=rng)
        bounds = interval(weighted_mean(values, weights), clusters=25)
        hits += bounds.lo <= 0 <= bounds.hi
    assert 0.89 <= hits / 200 <= 0.99


def test_point_of_an_interval_is_the_plain_mean() -> None:
    values = np.arange(12.0).reshape(4, 3)
    weights = cluster_weights(4, 3, resamples=200, rng=np.random.default_rng(2))
    assert interval(weighted_mean(values, weights), clusters=4).point == pytest.approx(5.5)


@pytest.mark.parametrize("prompts", [2, 3, 5, 10, 25])
def test_an_interval_is_as_wide_as_its_number_of_prompts_asks_for(prompts: int) -> None:
    """Where prompts alone differ, it is the t interval of their means, however few they are."""
    rng = np.random.default_rng(3)
    values = np.repeat(rng.normal(size=(prompts, 1)), 2, axis=1)
    bounds = interval(weighted_mean(values, cluster_weights(prompts, 2, resamples=200_000, rng=rng)), clusters=prompts)
    half = scipy_stats.t.ppf(0.975, prompts - 1) * values[:, 0].std(ddof=1) / prompts**0.5
    assert bounds.half_width == pytest.approx(half, rel=0.01 if prompts < 8 else 0.1)


@pytest.mark.parametrize("prompts", [3, 5, 7, 8, 12])
def test_few_prompts_hold_the_truth_as_often_as_many(prompts: int) -> None:
    """Means of normal prompts: of 400 intervals of 95 %, fewer than 365 hold it by chance once in a thousand."""
    rng, held = np.random.default_rng(prompts), 0
    for _ in range(400):
        values = rng.normal(size=(prompts, 1)) + 0.2 * rng.normal(size=(prompts, 3))
        bounds = interval(weighted_mean(values, cluster_weights(prompts, 3, resamples=400, rng=rng)), clusters=prompts)
        held += bounds.lo <= 0 <= bounds.hi
    assert held >= 365


def test_one_prompt_tells_next_to_nothing() -> None:
    values = np.array([[0.4, 0.5, 0.6, 0.5]])
    bounds = interval(
        weighted_mean(values, cluster_weights(1, 4, resamples=400, rng=np.random.default_rng(0))), clusters=1
    )
    assert bounds.half_width > 15 * values.std() / 2


def test_few_photos_are_resampled_as_widely_as_they_differ() -> None:
    """The bootstrap's variance of a mean of six is that of the mean itself, not five sixths of it."""
    rng = np.random.default_rng(4)
    photos = rng.normal(size=6)
    drawn = item_weights(6, resamples=40_000, rng=rng)[1:] @ photos
    assert drawn.var() == pytest.approx(photos.var(ddof=1) / 6, rel=0.05)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(8, 0) == pytest.approx(2 * 0.5**8)
    assert mcnemar(3, 3) == pytest.approx(1)


def test_flips_of_few_prompts_are_all_tried_and_of_many_drawn() -> None:
    rng = np.random.default_rng(0)
    few, many = sign_flips(4, flips=200, rng=rng), sign_flips(38, flips=200, rng=rng)
    assert few.shape == (16, 4)
    assert len(np.unique(few, axis=0)) == 16
    assert many.shape == (201, 38)
    assert (few[0] == 1).all()
    assert (many[0] == 1).all()


def test_p_of_a_mean_change_by_hand() -> None:
    """Changes 1, 2, 3: of eight sums 6, 4, 2, 0, 0, -2, -4, -6 two are as far from 0 as 6, and four as 4."""
    signs = sign_flips(3, flips=8, rng=np.random.default_rng(0))
    changes = np.tril(np.ones((3, 3)))
    assert mean_change_pvalue(changes, signs) == pytest.approx(2 / 8)
    assert mean_change_pvalue(changes * [[-1], [1], [1]], signs) == pytest.approx(4 / 8)
    assert mean_change_pvalue(np.zeros((3, 3)), signs) == 1


def test_of_equal_sums_the_more_even_change_counts_for_more() -> None:
    """Of the 16 signs of 2, 1, 1, 2 the sum is 6 in two, 4 in four, 0 in four, and 2 in two by the larger ones alone, in four by both."""
    signs = sign_flips(4, flips=16, rng=np.random.default_rng(0))
    large, small = np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0])
    changes = np.stack([large, -small, -small, large])
    assert mean_change_pvalue(changes, signs) == pytest.approx(12 / 16)
    uneven = np.stack([large, small, small, -large])
    assert mean_change_pvalue(uneven, signs) == pytest.approx(10 / 16)


def test_a_test_without_ties_rejects_what_it_should() -> None:
    """38 prompts of four pictures, a tenth of which changed either way: sums tie, and ties alone made 5 % into 2."""
    rng = np.random.default_rng(8)
    signs = sign_flips(38, flips=999, rng=rng)
    found = np.array(
        [mean_change_pvalue(rng.choice([-1, 0, 1], (38, 4), p=[0.1, 0.8, 0.1]), signs) for _ in range(2000)]
    )
    assert 0.036 <= (found <= 0.05).mean() <= 0.064


def test_no_p_is_below_the_least() -> None:
    for clusters, least in ((3, 0.25), (5, 0.0625), (6, 0.03125), (38, 1 / 201)):
        signs = sign_flips(clusters, flips=200, rng=np.random.default_rng(0))
        assert least_pvalue(signs) == least
        assert mean_change_pvalue(np.ones((clusters, 2)), signs) == pytest.approx(least)
    assert flip_pvalue(np.array([3.0, 1, 2, 3]), ties=np.zeros(4)) == 0.5
    assert flip_pvalue(np.array([3.0, 1, 2, 3]), ties=np.array([2.0, 0, 0, 1])) == 0.25


def test_groups_of_few_prompts_are_judged_by_the_spread_within_all_of_them() -> None:
    """Residuals -1, 1, -2, 2 with two degrees of freedom: s^2 = 5, over sqrt(2) prompts a mean of 4 is t = 4 / sqrt(5/2)."""
    found = group_pvalues(np.array([3.0, 5, -2, 2]), np.array(["a", "a", "b", "b"]))
    assert found["a"] == pytest.approx(2 * scipy_stats.t.sf(4 / (5 / 2) ** 0.5, 2))
    # b's own spread is larger than the common one, 8 against 5
    assert found["b"] == 1
    wide = group_pvalues(np.array([3.0, 5, -1, 3]), np.array(["a", "a", "b", "b"]))
    assert wide["b"] == pytest.approx(2 * scipy_stats.t.sf(1 / (8 / 2) ** 0.5, 2))


def test_groups_say_nothing_where_nothing_varies_or_nothing_is_known() -> None:
    groups = np.array(["a", "a", "b", "b"])
    assert group_pvalues(np.zeros(4), groups) == {"a": 1, "b": 1}
    assert group_pvalues(np.array([1.0, 1, 0, 0]), groups) == {"a": 0, "b": 1}
    assert group_pvalues(np.array([1.0, np.nan, 0, np.nan]), groups) == {"a": 1, "b": 1}


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


@given(pvalues)
def test_adjusting_never_lowers_a_p_and_keeps_the_order(p: list[float]) -> None:
    adjusted = holm(p)
    assert (adjusted >= np.asarray(p) - 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= -1e-12).all()
    assert (adjusted >= scipy_stats.false_discovery_control(p) - 1e-12).all()


@settings(max_examples=40)
@given(arrays(float, 9, elements=st.integers(0, 5)), arrays(float, 7, elements=st.integers(0, 5)))
def test_auc_equals_sklearn(higher: np.ndarray, lower: np.ndarray) -> None:
    labels = np.r_[np.ones(len(higher)), np.zeros(len(lower))]
    assert auc(higher, lower) == pytest.approx(roc_auc_score(labels, np.r_[higher, lower]))


def distance(first: np.ndarray, second: np.ndarray, *, resamples: int = 400) -> Interval:
    return kid(first, second, resamples=resamples, rng=np.random.default_rng(0))


def test_kid_against_sklearns_kernel() -> None:
    """The kernel's mean over pictures of different prompts, within each side and between them."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(5, 2, 5)), rng.normal(size=(5, 2, 5)) + 1
    prompt = np.repeat(np.arange(5), 2)
    apart = prompt[:, None] != prompt
    xx, yy, xy = (
        polynomial_kernel(a.reshape(10, 5), b.reshape(10, 5), degree=3, gamma=1 / 5, coef0=1)[apart].mean()
        for a, b in ((x, x), (y, y), (x, y))
    )
    assert distance(x, y).point == pytest.approx(xx + yy - 2 * xy)


def test_kid_interval_is_that_of_a_mean_where_prompts_differ_alike() -> None:
    """Half-width about t times the jackknife's standard error."""
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(40, 1, 5))
    x, y = (centres + 0.3 * rng.normal(size=(40, 3, 5)) + move for move in (0.0, 0.5))
    without = np.array([distance(np.delete(x, p, 0), np.delete(y, p, 0), resamples=50).point for p in range(40)])
    error = np.sqrt(39 / 40 * ((without - without.mean()) ** 2).sum())
    assert distance(x, y).half_width == pytest.approx(scipy_stats.t.ppf(0.975, 39) * error, rel=0.25)


def test_kid_interval_reaches_further_up_where_few_prompts_move_far() -> None:
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(25, 1, 5))
    far = np.where(np.arange(25) < 4, 2.0, 0.1)[:, None, None]
    value = distance(centres + rng.normal(size=(25, 4, 5)), centres + rng.normal(size=(25, 4, 5)) + far)
    assert value.hi - value.point > 1.5 * (value.point - value.lo)


def test_kid_is_zero_for_a_model_and_itself_and_about_zero_for_other_seeds_of_it() -> None:
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(20, 1, 8))
    first, second = (centres + rng.normal(size=(20, 4, 8)) for _ in range(2))
    same = distance(first, first)
    assert (same.point, same.lo, same.hi) == pytest.approx((0, 0, 0), abs=1e-12)
    values = [
        distance(*(centres + rng.normal(size=(20, 4, 8)) for _ in range(2)), resamples=2).point for _ in range(200)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / 200**0.5
    assert distance(first, second + 1).lo > 1


def test_kid_needs_five_prompts_and_no_more_than_one_seed() -> None:
    """Of three, the bootstrap-t has one value, and the interval was the point."""
    rng = np.random.default_rng(6)
    value = distance(rng.normal(size=(5, 1, 4)), rng.normal(size=(5, 1, 4)) + 1)
    assert 0 < value.half_width < np.inf
    with pytest.raises(ValueError, match="5 prompts"):
        distance(np.ones((4, 4, 3)), np.ones((4, 4, 3)))
