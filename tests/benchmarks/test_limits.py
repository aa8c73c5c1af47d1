"""The rule that makes a limit out of the calibration subjects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.limits import drift_kid_max, text, tolerance_factor
from photoflux.params import GateParams


def subjects(*bounds: float) -> list[dict[str, Any]]:
    return [{"ours": {"rules": {"unrelated distribution": {"value": 0.0, "lo": 0.0, "hi": hi}}}} for hi in bounds]


@pytest.mark.parametrize(("count", "factor"), [(3, 6.155), (5, 3.407), (10, 2.355), (12, 2.210), (20, 1.926)])
def test_the_tolerance_factor_is_that_of_the_tables(count: int, factor: float) -> None:
    assert tolerance_factor(count, content=0.90, confidence=0.95) == pytest.approx(factor, abs=1.5e-3)


def test_nine_in_ten_lie_below_the_limit_with_95_percent_confidence() -> None:
    """Log-normal bounds whose 90th percentile is exp(1.2816): of 1000 limits of twelve, 50 may lie below it."""
    rng = np.random.default_rng(0)
    below = [drift_kid_max(subjects(*rng.lognormal(size=12))) < np.exp(1.2816) for _ in range(1000)]
    assert 25 <= sum(below) <= 75


def test_a_limit_is_rounded_up_to_two_digits() -> None:
    assert drift_kid_max(subjects(0.01, 0.01, 0.01)) == 0.01
    assert drift_kid_max(subjects(0.01201, 0.01201)) == 0.013
    # logarithms of mean -4 and deviation sqrt(12 / 11): exp(-4 + 2.210 * 1.0445) = .184
    assert drift_kid_max(subjects(*[float(np.exp(-5))] * 6, *[float(np.exp(-3))] * 6)) == 0.19


def test_no_limit_is_made_of_one_subject_or_of_nothing() -> None:
    for some in (subjects(0.01), subjects(0.0, 0.01, 0.02)):
        with pytest.raises(ValueError, match="at least two"):
            drift_kid_max(some)


def test_what_goes_into_the_parameters_is_printed_beside_what_is_there() -> None:
    result = {
        "base": {"hash": "a" * 64},
        "hashes": {"judges": "b" * 64, "calibration": "c" * 16},
        "subjects": subjects(0.01, 0.01),
    }
    told = text(result)
    assert f"drift_kid_max: 0.01    # is {GateParams().drift_kid_max}" in told
    assert 'drift_kid_of: "aaaaaaaa bbbbbbbb"' in told
    assert 'calibration: "cccccccccccccccc"' in told
