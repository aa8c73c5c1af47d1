"""The claims of `benchmarks.statistics` with few repetitions: what the judges' numbers promise, where the truth is known.

A claim breaks here when its count would come up less than once in a thousand times were it true.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from benchmarks import statistics


def broken(rows: Sequence[Any]) -> list[dict[str, Any]]:
    return [row.as_dict() for row in rows if not row.holds]


def test_the_same_shift_is_the_same_distance_at_every_number_of_pictures() -> None:
    assert broken(statistics.kid_points(20)) == []


def test_the_verdict_on_unrelated_pictures_does_not_change_with_their_number() -> None:
    assert broken(statistics.kid_verdicts(6)) == []


def test_how_far_shares_moved_does_not_depend_on_the_number_of_pictures() -> None:
    assert broken(statistics.excess_points(30)) == []


def test_no_metric_of_an_evaluation_depends_on_the_number_of_pictures_or_photos() -> None:
    assert broken(statistics.evaluation_points(25)) == []


def test_prompts_that_changed_at_random_are_called_a_change_in_a_twentieth() -> None:
    assert broken(statistics.flip_levels(300)) == []


def test_seeds_taken_for_independent_would_call_them_a_change_in_a_quarter() -> None:
    """Why whole prompts are swapped: the same null, with every picture swapped on its own."""
    rng, found = np.random.default_rng(1), []
    for _ in range(100):
        base, tuned = (side.reshape(-1, 1) for side in statistics.sample_people(rng, statistics.AUDIT, 2, effect=1.0))
        found.append(statistics._flip_p(rng, base, tuned, 2) < 0.05)
    assert np.mean(found) > 0.15


def test_a_real_change_is_found() -> None:
    assert broken(statistics.flip_power(60)) == []


def test_exploratory_cells_are_not_called_notable_for_prompts_that_changed_at_random() -> None:
    assert broken(statistics.cell_levels(100)) == []


def test_a_whole_audit_of_an_unchanged_model_raises_no_more_alarms_than_it_says() -> None:
    assert broken(statistics.audit_levels(25)) == []


@pytest.mark.parametrize(
    ("coverage", "tries"),
    [
        (statistics.kid_coverage, 50),
        (statistics.evaluation_coverage, 120),
        (statistics.following_coverage, 120),
        (statistics.champion_coverage, 60),
        (statistics.few_prompts_coverage, 200),
        (statistics.rate_coverage, 150),
        (statistics.audit_coverage, 30),
    ],
    ids=["kernel distance", "evaluation", "prompt following", "champion", "few prompts", "rates", "audit"],
)
def test_intervals_hold_the_truth(coverage: Callable[[int], list[Any]], tries: int) -> None:
    assert broken(coverage(tries)) == []


def test_more_photos_make_no_more_copies() -> None:
    rows = statistics.false_copies(3)
    assert broken(rows) == []
    plain = {row.case: row.rate for row in rows if row.about.endswith("not claimed")}
    assert plain["among 60 photos, correlation above 0.900"] > 3 * plain["among 8 photos, correlation above 0.900"]


def test_missing_people_are_found_and_nobody_else() -> None:
    assert broken(statistics.missing_people(8)) == []


def test_a_broken_claim_is_called_broken() -> None:
    assert statistics.Claim("coverage", "", 90, 100, low=0.94).holds
    assert not statistics.Claim("coverage", "", 80, 100, low=0.94).holds
    assert statistics.Claim("level", "", 12, 100, low=0.04, high=0.06).holds
    assert not statistics.Claim("level", "", 20, 100, low=0.04, high=0.06).holds
    errors = {"a": 0.01, "b": 0.01}
    assert not statistics.Points("kid", 1.0, {"a": 1.0, "b": 2.0}, errors).holds
    assert statistics.Points("kid", 1.0, {"a": 1.2, "b": 1.2}, errors).holds
    assert not statistics.Points("kid", 1.0, {"a": 1.2, "b": 1.2}, errors, unbiased=True).holds


def test_the_table_that_is_committed_is_that_of_todays_seed_and_holds() -> None:
    found = json.loads((statistics.RESULTS / "statistics.json").read_text(encoding="utf-8"))
    assert (found["seed"], found["schema_version"], found["holds"]) == (
        statistics.SEED,
        statistics.SCHEMA_VERSION,
        True,
    )
    assert (statistics.RESULTS / "statistics.md").read_text(encoding="utf-8") == statistics.page(found)
