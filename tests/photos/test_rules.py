"""The rule table decides: each defect by its own name, each bound on its own side, the set as a whole."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from photoflux.params import ValidateParams
from photoflux.photos.rules import REJECT, SET, WARN, broken_rules, rule_table
from photoflux.photos.table import photo_table
from photoflux.photos.verdict import judge
from tests.photos.pictures import cartoon, encoded, logo, toy_on_white

PARAMS = ValidateParams()
EXPECTED = {
    "crop-of-0.jpg": ("reject", "duplicate", "good-0.jpg"),
    "mirror-of-1.jpg": ("reject", "duplicate", "good-1.jpg"),
    "blurry.jpg": ("reject", "blurry", None),
    "blurry-copy-of-2.jpg": ("reject", "blurry", "good-2.jpg"),
    "dark.jpg": ("reject", "too_dark", None),
    "light.jpg": ("reject", "too_light", None),
    "empty.jpg": ("reject", "empty", None),
    "tiny.jpg": ("reject", "too_small", None),
    "small.jpg": ("warn", "small", None),
    "ribbon.jpg": ("reject", "too_narrow", None),
    "long.jpg": ("warn", "narrow", None),
    "enlarged.jpg": ("warn", "enlarged", None),
    "grainy.jpg": ("warn", "grainy", None),
    "burnt.jpg": ("warn", "burnt_out", None),
    "lost.jpg": ("warn", "lost_shadows", None),
    "text.jpg": ("reject", "not_a_photo", None),
    "cut.jpg": ("reject", "truncated", None),
    "bomb.png": ("reject", "too_many_pixels", None),
    "moving.webp": ("reject", "several_frames", None),
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_each_defect_is_named(name: str, defects):
    status, code, duplicate_of = EXPECTED[name]
    photo = next(p for p in judge(defects, params=PARAMS).photos if p["file"] == name)
    assert photo["status"] == status
    assert code in [reason["code"] for reason in photo["reasons"]]
    assert photo["duplicate_of"] == duplicate_of


@pytest.mark.parametrize("i", [0, 1, 2, 4, 5])
def test_good_photos_among_bad_ones_are_left_alone(i: int, defects):
    photo = next(p for p in judge(defects, params=PARAMS).photos if p["file"] == f"good-{i}.jpg")
    assert photo == {"file": f"good-{i}.jpg", "status": "ok", "reasons": [], "duplicate_of": None}


DRAWN = {
    "cartoon": cartoon(), "logo": logo(), "white logo": logo(ink="white", paper="black"), "toy": toy_on_white(),
    "dot": Image.new("RGB", (800, 800), "white"),
}  # fmt: skip
ImageDraw.Draw(DRAWN["dot"]).ellipse((340, 340, 460, 460), fill=(200, 30, 30))


@pytest.mark.parametrize("kind", DRAWN)
@pytest.mark.parametrize("fmt", ["PNG", "JPEG"])
def test_what_is_drawn_on_plain_ground_shows_something(kind: str, fmt: str):
    """Illustrations, logos and toys before nothing have few greys, and large parts that are white."""
    (row,) = photo_table([("drawn", encoded(DRAWN[kind], fmt))], params=PARAMS)
    assert judge([row], params=PARAMS).photos[0]["status"] != REJECT


def nothing() -> dict[str, Image.Image]:
    """What a camera sees that looks at nothing."""
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:800, :800] / 800
    plain = {
        "lens cap": np.full((800, 800, 3), 60.0) + rng.normal(0, 12, (800, 800, 3)),
        "wall": (170 - 200 * ((x - 0.5) ** 2 + (y - 0.5) ** 2))[..., None] + rng.normal(0, 5, (800, 800, 3)),
        "sky": np.stack([100 + 80 * y, 150 + 60 * y, 230 + 0 * y], axis=2) + rng.normal(0, 3, (800, 800, 3)),
        "one colour": np.full((800, 800, 3), 140.0),
        "speck": np.full((800, 800, 3), 200.0),
    }
    plain["speck"][400:408, 400:408] = 0
    return {name: Image.fromarray(values.clip(0, 255).astype(np.uint8)) for name, values in plain.items()}


@pytest.mark.parametrize("kind", ["lens cap", "wall", "sky", "one colour", "speck"])
def test_empty_is_empty_whatever_its_grain_and_shading(kind: str):
    (row,) = photo_table([("seen", encoded(nothing()[kind]))], params=PARAMS)
    assert "empty" in [rule.code for rule in broken_rules(row, rule_table(PARAMS))]


def test_of_equal_photos_one_stays(defects):
    photos = {p["file"]: p for p in judge(defects, params=PARAMS).photos}
    trio = [photos[name] for name in ("good-3.jpg", "exact-copy-of-3.png", "same-pixels.png")]
    assert sorted(p["status"] for p in trio) == ["ok", "reject", "reject"]
    kept = next(p["file"] for p in trio if p["status"] == "ok")
    assert {p["duplicate_of"] for p in trio} == {None, kept}


def test_reasons_say_what_to_do(defects):
    for photo in judge(defects, params=PARAMS).photos:
        for reason in photo["reasons"]:
            assert set(reason) == {"code", "message"}
            assert "{" not in reason["message"]
            assert len(reason["message"].split()) >= 4


def test_json_has_exactly_the_promised_shape(defects):
    verdict = json.loads(json.dumps(judge(defects, params=PARAMS).as_json()))
    assert set(verdict) == {"verdict", "score", "advice", "photos"}
    assert all(set(p) == {"file", "status", "reasons", "duplicate_of"} for p in verdict["photos"])
    assert isinstance(verdict["score"], int)
    assert all(isinstance(line, str) and line.endswith(".") and "{" not in line for line in verdict["advice"])


def test_a_full_varied_set_is_ok(good):
    verdict = judge(good, params=PARAMS)
    assert (verdict.verdict, verdict.advice) == ("ok", [])
    assert verdict.score >= 95
    assert len(verdict.accepted) == 8


def test_where_enough_good_photos_remain_the_run_goes_on(good, defects):
    text = next(row for row in defects if row["file"] == "text.jpg")
    verdict = judge([*good[:5], text], params=PARAMS)
    assert verdict.verdict == "warn"
    assert verdict.accepted == [f"{i}.jpg" for i in range(5)]


def test_too_few_good_photos_are_rejected_and_counted(good, defects):
    text = next(row for row in defects if row["file"] == "text.jpg")
    verdict = judge([*good[:3], text], params=PARAMS)
    assert verdict.verdict == "reject"
    assert verdict.score <= 40
    assert verdict.advice[0].startswith("Add 2 more good photos")
    assert ("", "too_few") in verdict.failures


def test_more_photos_of_equal_quality_score_higher(good):
    scores = [judge(good[:n], params=PARAMS).score for n in range(5, 9)]
    assert scores == sorted(scores)
    assert scores[0] < scores[-1]


def test_sameness_lowers_the_score_and_is_advised_on(good):
    alike = [{**row, "background": 0, "closest": 0.85} for row in good]
    verdict = judge(alike, params=PARAMS)
    assert verdict.score < judge(good, params=PARAMS).score - 20
    assert any(line.startswith("More angles") for line in verdict.advice)
    assert any(line.startswith("More backgrounds: 1 seen") for line in verdict.advice)


def test_dim_sets_are_told_to_use_more_light(good):
    verdict = judge([{**row, "luma_p50": 0.1} for row in good], params=PARAMS)
    assert any(line.startswith("More light") for line in verdict.advice)


def test_too_many_photos(good):
    many = [{**good[0], "file": f"{i}.jpg"} for i in range(PARAMS.max_photos + 1)]
    assert judge(many, params=PARAMS).verdict == "reject"
    assert judge(many[:-1], params=PARAMS).verdict == "warn"


def test_an_empty_measure_is_a_failure(good):
    verdict = judge([{**good[0], "sharpness": None}, *good[1:]], params=PARAMS)
    assert ("0.jpg", "unmeasured") in verdict.failures
    assert verdict.photos[0]["status"] == "reject"


def bounded() -> list:
    return [rule for rule in rule_table(PARAMS) if rule.level != SET and rule.allowed is None]


@pytest.mark.parametrize("rule", bounded(), ids=lambda rule: rule.code)
def test_a_bound_itself_passes_and_beyond_it_fails(rule, good):
    bound, beyond = (rule.low, -1e-6) if rule.low is not None else (rule.high, 1e-6)
    at = judge([{**good[0], rule.column: bound}, *good[1:]], params=PARAMS)
    past = judge([{**good[0], rule.column: bound + beyond}, *good[1:]], params=PARAMS)
    assert ("0.jpg", rule.code) not in at.failures
    assert ("0.jpg", rule.code) in past.failures
    assert past.photos[0]["status"] in (REJECT, WARN)


def test_bounds_come_from_the_parameters(good):
    strict = PARAMS.replace(short_side_min_px=801, short_side_advised_px=900)
    assert judge(good, params=strict).accepted == []
    assert judge(good, params=PARAMS).accepted


def test_codes_are_unique():
    codes = [rule.code for rule in rule_table(PARAMS)]
    assert len(codes) == len(set(codes))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_is_measured_gets_a_complete_verdict(data, good):
    rows = [{**row, "file": f"{i}"} for i, row in enumerate(good)][: data.draw(st.integers(1, 8))]
    for row in rows:
        columns = data.draw(st.sets(st.sampled_from([rule.column for rule in bounded()]), max_size=3))
        row.update({column: data.draw(st.floats(0, 2000) | st.none()) for column in columns})
    verdict = judge(rows, params=PARAMS)
    assert 0 <= verdict.score <= 100
    assert [p["file"] for p in verdict.photos] == [row["file"] for row in rows]
    assert all(bool(p["reasons"]) == (p["status"] != "ok") for p in verdict.photos)
    assert (verdict.verdict == "reject") == (len(verdict.accepted) < PARAMS.min_photos)
