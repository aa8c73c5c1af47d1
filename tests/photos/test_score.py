"""The score's parts and the words around it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from photoflux.params import ValidateParams
from photoflux.photos.score import names, score_parts

PARAMS = ValidateParams()


def whole(**changes) -> dict:
    base = {"files": 8, "usable": 8, "flawless": 8, "closeness": 0.3, "backgrounds": 4}
    return base | changes


def test_a_perfect_set_scores_a_hundred():
    assert sum(part["points"] for part in score_parts(whole(), params=PARAMS)) == 100


@pytest.mark.parametrize(
    ("changes", "part", "points"),
    [
        ({"usable": 4, "flawless": 4}, "number", 15),
        ({"flawless": 4}, "quality", 22.5),
        ({"flawless": 0}, "quality", 15),
        ({"closeness": 0.675}, "views", 10),
        ({"closeness": 0.95}, "views", 0),
        ({"backgrounds": 1}, "backgrounds", 6.7),
        ({"usable": 1, "flawless": 1}, "views", 0),
    ],
)
def test_parts_are_what_they_say(changes: dict, part: str, points: float):
    parts = {p["part"]: p["points"] for p in score_parts(whole(**changes), params=PARAMS)}
    assert parts[part] == pytest.approx(points, abs=0.06)


@given(
    usable=st.integers(0, 60), flawless=st.integers(0, 60), closeness=st.floats(-1, 1), backgrounds=st.integers(0, 60)
)
def test_points_stay_within_their_part(usable: int, flawless: int, closeness: float, backgrounds: int):
    row = whole(files=60, usable=usable, flawless=min(usable, flawless), closeness=closeness, backgrounds=backgrounds)
    parts = score_parts(row, params=PARAMS)
    assert all(0 <= part["points"] <= part["of"] for part in parts)
    assert sum(part["of"] for part in parts) == 100


def test_names_read_as_a_list():
    assert names(["a"]) == "a"
    assert names(["a", "b"]) == "a and b"
    assert names(["a", "b", "c", "d"]) == "a, b, c and d"
    assert names(list("abcdef")) == "a, b, c, d and 2 more"
