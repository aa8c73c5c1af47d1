from __future__ import annotations

from typing import Any

import pytest

from benchmarks import tuning
from photoflux.pocket.world import KINDS


def cell(lr: float, steps: int, passes: int, score: float) -> dict[str, Any]:
    return {"lr": lr, "steps": steps, "passes": passes, "score": score}


def test_passes_come_first_and_the_score_decides_between_equals() -> None:
    cells = [cell(1e-3, 100, 1, 0.9), cell(1e-3, 200, 2, 0.3), cell(2e-3, 100, 2, 0.4), cell(2e-3, 200, 2, 0.4)]
    assert tuning.best(cells) == {"lr": 2e-3, "steps": 100}
    assert tuning.best(cells[:2]) == {"lr": 1e-3, "steps": 200}


@pytest.mark.parametrize(("gain", "leakage", "score"), [(0.8, 0.3, 0.5), (0.8, -0.3, 0.8), (-0.1, 0.0, -0.1)])
def test_leakage_costs_and_less_than_none_gains_nothing(gain: float, leakage: float, score: float) -> None:
    row = {"metrics": {"identity_gain": {"point": gain}, "leakage": {"point": leakage}}}
    assert tuning.score(row) == pytest.approx(score)


def test_the_grid_is_round_what_was_found_before_and_its_subjects_are_of_all_sorts() -> None:
    assert 1e-3 in tuning.RATES and 200 in tuning.STEPS
    assert min(tuning.RATES) < 1e-3 < max(tuning.RATES) and min(tuning.STEPS) < 200 < max(tuning.STEPS)
    assert KINDS[:: tuning.EVERY] == ("dog", "fish", "boat", "backpack")


def test_a_best_rate_at_the_edge_is_followed_by_the_next() -> None:
    assert tuple(sorted(set(tuning.LADDER))) == tuning.LADDER and set(tuning.RATES) <= set(tuning.LADDER)
    cells = [cell(3e-4, 100, 0, 0.2), cell(1e-3, 100, 0, 0.3), cell(3e-3, 100, 0, 0.1)]
    assert tuning.next_rate(cells) == []
    assert tuning.next_rate([*cells[:2], cell(3e-3, 100, 0, 0.4)]) == [1e-2]
    assert tuning.next_rate([cell(3e-4, 100, 1, 0.2), *cells[1:]]) == [1e-4]
    assert tuning.next_rate([cell(tuning.LADDER[-1], 100, 0, 0.4), cells[0]]) == []


def test_a_cell_is_over_all_subjects() -> None:
    rows = [
        {"subject": kind, "verdict": verdict, "metrics": {name: {"point": value} for name in tuning.MEASURED}}
        for kind, verdict, value in (("dog", "PASS", 0.6), ("fish", "FAIL", 0.2))
    ]
    found = tuning._cell(rows, lr=1e-3, steps=100)
    assert (found["passes"], found["subjects"], found["identity_gain"]) == (1, 2, pytest.approx(0.4))
    assert found["score"] == pytest.approx(0.0) and found["verdicts"] == {"dog": "PASS", "fish": "FAIL"}
