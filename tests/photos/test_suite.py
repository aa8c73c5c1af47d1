"""The suites decide: as the rule table does, whatever is wrong with the photos, until somebody edits them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from photoflux.errors import InputError
from photoflux.params import ValidateParams
from photoflux.photos.rules import PHOTO, SET, Row, broken_set_rules, rule_table
from photoflux.photos.suite import PHOTO_SET, PHOTOS, Suites
from photoflux.photos.table import photo_table
from photoflux.photos.verdict import judge, whole_row

PARAMS = ValidateParams()
SHIPPED = Path(__file__).resolve().parents[2] / "data" / "expectations"
OTHER = ValidateParams(
    min_photos=3,
    advised_min=6,
    advised_max=9,
    max_photos=12,
    short_side_min_px=400,
    short_side_advised_px=900,
    aspect_min=0.4,
    aspect_advised=0.7,
    sharpness_min=40.0,
    sharpness_advised=400.0,
    reblur_max=0.4,
    sharpness_trust_min=0.7,
    detail_min=0.8,
    bright_p99_min=0.5,
    dark_p1_max=0.6,
    clipped_high_max=0.3,
    clipped_low_max=0.2,
    contrast_min=40.0,
    duplicate_share_max=0.1,
    closeness_max=0.3,
    backgrounds_min=2,
)
"""Every bound elsewhere, and none twice, so that a bound that is held against the wrong column shows."""


@pytest.fixture(scope="module")
def shipped() -> Suites:
    return Suites(SHIPPED, params=PARAMS)


@pytest.fixture(scope="module")
def others() -> Suites:
    return Suites(SHIPPED, params=OTHER)


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """The shipped suites in a folder of their own, one of them changed by a function of its content."""

    def made(name: str, change: Callable[[dict[str, Any]], object]) -> Path:
        for file in SHIPPED.glob("*.json"):
            content = json.loads(file.read_text())
            if file.stem == name:
                change(content)
            (tmp_path / file.name).write_text(json.dumps(content))
        return tmp_path

    return made


def expectation_of(content: dict[str, Any], rule: str) -> dict[str, Any]:
    return next(one for one in content["expectations"] if one["meta"]["rule"] == rule)


# As the rule table


def test_both_agree_on_every_defect(shipped: Suites, defects: list[dict]) -> None:
    """On verdict, score, advice and sentences, and every rule of photos is broken by something."""
    decision = shipped.decide(defects)
    assert decision.verdict == judge(defects, params=PARAMS)
    codes = {code for _, code in decision.verdict.failures}
    assert codes >= {rule.code for rule in rule_table(PARAMS) if rule.level != SET}


def test_a_good_set_meets_every_expectation(shipped: Suites, good: list[dict]) -> None:
    decision = shipped.decide(good)
    assert decision.verdict == judge(good, params=PARAMS)
    assert decision.verdict.verdict == "ok"
    assert all(finding.met for finding in decision.findings)
    told = {finding.rule.code for finding in decision.findings}
    assert told == {rule.code for rule in rule_table(PARAMS)} | {"unmeasured", "unmeasured_set"}


def test_photos_that_cannot_be_decoded_alone_are_all_caught(shipped: Suites, defects: list[dict]) -> None:
    rows = [row for row in defects if not row["decoded"]]
    decision = shipped.decide(rows)
    assert decision.verdict == judge(rows, params=PARAMS)
    assert {name for name, code in decision.verdict.failures if code == "decodable"} == {row["file"] for row in rows}


def edges(rule: Any) -> list[Any]:
    """The rule's bound, its neighbours among floats, and what is no measure or none that a bound expects."""
    bounds = [float(bound) for bound in (rule.low, rule.high) if bound is not None]
    beside = [math.nextafter(bound, way) for bound in bounds for way in (-math.inf, math.inf)]
    return [*bounds, *beside, None, math.nan, math.inf, -math.inf, 0.0, -1e-12]


def edge_rows(good: Sequence[dict], params: ValidateParams) -> list[dict]:
    """One row per rule of photos and edge of it, in an otherwise good photo."""
    rules = [rule for rule in rule_table(params) if rule.level == PHOTO and rule.allowed is None]
    return [
        {**good[0], rule.column: value, "file": f"{rule.code}-{number}.jpg"}
        for rule in rules
        for number, value in enumerate(edges(rule))
    ]


@pytest.mark.parametrize("which", ["shipped", pytest.param("others", marks=pytest.mark.slow)])
def test_both_agree_at_every_bound(which: str, good: list[dict], request: pytest.FixtureRequest) -> None:
    """Also beside it by the least that a float can be, and where there is no measure; for bounds of any parameters."""
    suites: Suites = request.getfixturevalue(which)
    rows = edge_rows(good, suites.params)
    found = suites.decide(rows).verdict
    expected = judge(rows, params=suites.params)
    assert found.failures == expected.failures
    assert [photo["reasons"] for photo in found.photos] == [photo["reasons"] for photo in expected.photos]
    assert found == expected
    broken = {code for _, code in found.failures}
    assert broken >= {rule.code for rule in rule_table(suites.params) if rule.level == PHOTO and rule.allowed is None}


@pytest.mark.parametrize("which", ["shipped", pytest.param("others", marks=pytest.mark.slow)])
def test_both_agree_on_every_set(which: str, request: pytest.FixtureRequest) -> None:
    """A row per rule of the set and edge of it: the suite is asked about all at once."""
    suites: Suites = request.getfixturevalue(which)
    rules = [rule for rule in rule_table(suites.params) if rule.level == SET]
    plain = whole_row([], []) | {"usable": 7, "backgrounds": 3, "files": 7}
    sets = [{**plain, rule.column: value} for rule in rules for value in edges(rule)]
    named = [{**whole, "file": str(number)} for number, whole in enumerate(sets)]
    _, findings = suites._check(PHOTO_SET, named)
    found = {(file, finding.rule.code) for finding in findings for file in finding.files}
    expected = {(str(n), rule.code) for n, whole in enumerate(sets) for rule in broken_set_rules(whole, rules)}
    assert found == expected
    assert {code for _, code in found} == {rule.code for rule in rules} | {"unmeasured_set"}


def measures(params: ValidateParams) -> st.SearchStrategy[dict[str, Any]]:
    """Measures of a photo, few or none of them good: any numbers, the bounds themselves, nothing."""
    rules = [rule for rule in rule_table(params) if rule.level == PHOTO and rule.allowed is None]
    columns = {
        rule.column: st.sampled_from(edges(rule)) | st.floats(allow_nan=True, allow_infinity=True) | st.none()
        for rule in rules
    }
    changed = st.sets(st.sampled_from(sorted(columns)), max_size=4).flatmap(
        lambda names: st.fixed_dictionaries({name: columns[name] for name in sorted(names)})
    )
    others = {
        "duplicate_of": st.sampled_from(["", "", "0.jpg", None]),
        "closest": st.floats(0, 1),
        "background": st.integers(0, 4),
        "luma_p50": st.floats(0, 1),
    }
    return st.tuples(changed, st.fixed_dictionaries(others)).map(lambda pair: {**pair[0], **pair[1]})


@pytest.mark.parametrize("which", ["shipped", pytest.param("others", marks=pytest.mark.slow)])
@settings(
    max_examples=12,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a smaller example takes minutes to find
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_both_agree_on_any_table(
    which: str, data: st.DataObject, good: list[dict], defects: list[dict], request: pytest.FixtureRequest
) -> None:
    """Photos with any measures beside photos that cannot be decoded, in sets of any size."""
    suites: Suites = request.getfixturevalue(which)
    changes = data.draw(st.lists(measures(suites.params), min_size=1, max_size=30))
    undecoded = [row for row in defects if not row["decoded"]][: data.draw(st.integers(0, 4))]
    rows: list[Row] = [{**good[0], **change, "file": f"{n}.jpg"} for n, change in enumerate(changes)] + undecoded
    assert suites.decide(rows).verdict == judge(rows, params=suites.params)


# What stays when photos repeat one another


def test_which_copy_stays_is_decided_by_the_suite(edited: Callable[..., Path]) -> None:
    """A suite that takes no large photos leaves the small copy, which the rule table alone would give up."""
    from tests.photos.pictures import encoded, photo

    large, small = photo(1, size=(1600, 1600)), photo(1, size=(1600, 1600)).resize((800, 800))
    files = [("large.png", encoded(large, "PNG")), ("small.png", encoded(small, "PNG"))]
    only_small = {
        "type": "expect_column_values_to_be_between",
        "kwargs": {"column": "short_side_px", "max_value": 1000},
        "severity": "critical",
        "meta": {"message": "too large for this project"},
    }
    suites = Suites(edited(PHOTOS, lambda content: content["expectations"].append(only_small)), params=PARAMS)
    assert [row["duplicate_of"] for row in photo_table(files, params=PARAMS)] == ["", "large.png"]
    rows = photo_table(files, params=PARAMS, usable=suites.usable)
    assert [row["duplicate_of"] for row in rows] == ["small.png", ""]
    assert suites.decide(rows).verdict.accepted == ["small.png"]


# Edited


def test_a_tighter_bound_rejects_and_says_its_own_number(edited: Callable[..., Path], good: list[dict]) -> None:
    """The photos are 800 px; the sentence is the rule table's, with the bound of the suite."""

    def tighten(content: dict[str, Any]) -> None:
        expectation_of(content, "too_small")["kwargs"]["min_value"] = 801

    assert judge(good, params=PARAMS).verdict == "ok"
    verdict = Suites(edited(PHOTOS, tighten), params=PARAMS).decide(good).verdict
    assert (verdict.verdict, verdict.accepted) == ("reject", [])
    assert "800 px on its short side, 801 are needed" in verdict.photos[0]["reasons"][0]["message"]


def test_a_parameter_can_be_reckoned_with(edited: Callable[..., Path], good: list[dict]) -> None:
    """Great Expectations' own way of writing bounds: expressions over the parameters of the run."""

    def tighten(content: dict[str, Any]) -> None:
        expectation_of(content, "too_small")["kwargs"]["min_value"] = {"$PARAMETER": "short_side_min_px * 2"}

    suites = Suites(edited(PHOTOS, tighten), params=PARAMS.replace(short_side_min_px=401))
    assert suites.decide(good).verdict.accepted == []
    assert (
        Suites(suites.files[PHOTOS].parent, params=PARAMS.replace(short_side_min_px=400)).decide(good).verdict.accepted
    )


@pytest.mark.parametrize(
    ("severity", "status", "verdict"),
    [("critical", "reject", "warn"), ("warning", "warn", "warn"), ("info", "ok", "ok")],
)
def test_a_new_expectation_has_its_severitys_weight(
    severity: str, status: str, verdict: str, edited: Callable[..., Path], good: list[dict]
) -> None:
    """With a sentence of its own, or one that is made of it."""
    new = {
        "type": "expect_column_values_to_be_between",
        "kwargs": {"column": "noise", "max_value": 5.0},
        "severity": severity,
        "meta": {"message": "grain {noise:.0f}, {high} is enough", "advice": "Less grain in {files}."},
    }
    rows = [{**row, "noise": 9.0 if row["file"] == "3.jpg" else 1.0} for row in good]
    suites = Suites(edited(PHOTOS, lambda content: content["expectations"].append(new)), params=PARAMS)
    decision = suites.decide(rows)
    photo = decision.verdict.photos[3]
    assert (photo["status"], decision.verdict.verdict) == (status, verdict)
    told = [] if severity == "info" else [{"code": "noise_values_to_be_between", "message": "grain 9, 5 is enough"}]
    assert photo["reasons"] == told
    assert ("Less grain in 3.jpg." in decision.verdict.advice) is bool(told)
    new["meta"] = {}
    plain = Suites(edited(PHOTOS, lambda content: content["expectations"].append(new)), params=PARAMS).decide(rows)
    assert [reason["message"] for reason in plain.verdict.photos[3]["reasons"]] == (
        ["noise is 9.0; at most 5 is expected"] if told else []
    )


def test_an_expectation_of_the_whole_table_is_the_sets(edited: Callable[..., Path], good: list[dict]) -> None:
    """A mean names no photo: it rejects the set."""
    mean = {
        "type": "expect_column_mean_to_be_between",
        "kwargs": {"column": "luma_p50", "min_value": 0.99},
        "severity": "critical",
        "meta": {"rule": "gloomy", "message": "the photos are too dark together"},
    }
    suites = Suites(edited(PHOTOS, lambda content: content["expectations"].append(mean)), params=PARAMS)
    decision = suites.decide(good)
    assert decision.verdict.verdict == "reject"
    assert ("", "gloomy") in decision.verdict.failures
    assert [rule.message for rule in decision.rejecting] == ["the photos are too dark together"]
    mean["meta"] = {}
    plain = Suites(edited(PHOTOS, lambda content: content["expectations"].append(mean)), params=PARAMS).decide(good)
    assert [rule.message_for(plain.verdict.whole) for rule in plain.rejecting] == [
        "does not meet expect_column_mean_to_be_between of luma_p50"
    ]
    mean["meta"] = {"message": "only {luma_p50}"}
    with pytest.raises(InputError, match="'luma_p50' in it"):
        Suites(edited(PHOTOS, lambda content: content["expectations"].append(mean)), params=PARAMS)


def test_some_photos_may_fail_where_the_suite_says_so(edited: Callable[..., Path], good: list[dict]) -> None:
    """With `mostly` an expectation is met although it is not by all."""

    def relax(content: dict[str, Any]) -> None:
        expectation_of(content, "blurry")["kwargs"]["mostly"] = 0.8

    rows = [{**row, "sharpness": 1.0 if row["file"] == "0.jpg" else 500.0} for row in good]
    assert "blurry" in {code for _, code in judge(rows, params=PARAMS).failures}
    assert "blurry" not in {
        code for _, code in Suites(edited(PHOTOS, relax), params=PARAMS).decide(rows).verdict.failures
    }


@pytest.mark.parametrize("how", ["as a warning", "some of them", "not at all"])
def test_what_could_not_be_decoded_is_left_out_whatever_the_suite_says(
    how: str, edited: Callable[..., Path], defects: list[dict]
) -> None:
    """There is no picture of it: a suite that lets it through would have the step end without a sentence."""

    def loosen(content: dict[str, Any]) -> None:
        one = expectation_of(content, "decodable")
        if how == "as a warning":
            one["severity"] = "warning"
        elif how == "some of them":
            one["kwargs"]["mostly"] = 0.1
        else:
            content["expectations"].remove(one)

    suites = Suites(edited(PHOTOS, loosen), params=PARAMS)
    undecoded = {row["file"] for row in defects if not row["decoded"]}
    verdict = suites.decide(defects).verdict
    assert undecoded
    assert not undecoded & set(verdict.accepted)
    assert verdict.accepted == judge(defects, params=PARAMS).accepted
    assert all(photo["reasons"] for photo in verdict.photos if photo["file"] in undecoded)
    assert undecoded.isdisjoint(
        row["file"] for row, usable in zip(defects, suites.usable(defects), strict=True) if usable
    )


def test_a_set_needs_as_many_as_its_suite_says(edited: Callable[..., Path], good: list[dict]) -> None:
    def tighten(content: dict[str, Any]) -> None:
        expectation_of(content, "too_few")["kwargs"]["min_value"] = 10

    verdict = Suites(edited(PHOTO_SET, tighten), params=PARAMS).decide(good).verdict
    assert (verdict.verdict, verdict.whole["missing"]) == ("reject", 2)
    assert verdict.advice[0].startswith("Add 2 more good photos: 10 are needed")


# Broken


def spoil(what: str, content: dict[str, Any]) -> None:
    one = expectation_of(content, "blurry")
    if what == "type":
        one["type"] = "expect_the_impossible"
    elif what == "severity":
        one["severity"] = "deadly"
    elif what == "parameter":
        one["kwargs"]["min_value"] = {"$PARAMETER": "sharpness_minimum"}
    elif what == "argument":
        one["kwargs"]["minimum"] = 3
    elif what == "value":
        one["kwargs"]["min_value"] = "many"
    elif what == "key":
        one["note"] = "?"
    elif what == "text":
        one["meta"]["message"] = "only {sharp} sharp"
    elif what == "none":
        content["expectations"] = []


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("type", "expectation 8, expect_the_impossible, is broken .*not found"),
        ("severity", "is broken .*deadly"),
        ("parameter", "is broken .*sharpness_minimum"),
        ("argument", "is broken .*minimum"),
        ("value", "is broken .*min_value"),
        ("key", "is broken .*note"),
        ("text", "message or an advice with 'sharp' in it"),
        ("none", "holds no expectations"),
    ],
)
def test_a_broken_suite_is_told_before_photos_are_looked_at(what: str, said: str, edited: Callable[..., Path]) -> None:
    """Great Expectations would leave a broken expectation out and be content."""
    with pytest.raises(InputError, match=rf"photos\.json: .*{said}") as caught:
        Suites(edited(PHOTOS, lambda content: spoil(what, content)), params=PARAMS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"expectations": 3}', '{"expectations": [3]}'])
def test_a_file_that_is_no_suite_is_told(content: str | None, edited: Callable[..., Path]) -> None:
    folder = edited(PHOTOS, lambda _: None)
    (folder / "photo_set.json").unlink()
    if content is not None:
        (folder / "photo_set.json").write_text(content)
    with pytest.raises(InputError, match=r"photo_set\.json: (cannot be read|is not valid JSON|holds no expectations)"):
        Suites(folder, params=PARAMS)


def test_a_column_that_is_not_there_is_told(edited: Callable[..., Path], good: list[dict]) -> None:
    """Great Expectations calls that a failure of no photo in particular, which would reject none."""

    def misspell(content: dict[str, Any]) -> None:
        expectation_of(content, "blurry")["kwargs"]["column"] = "sharpnes"

    suites = Suites(edited(PHOTOS, misspell), params=PARAMS)
    with pytest.raises(InputError, match=r"photos\.json: .*cannot be held against the photos .*sharpnes"):
        suites.decide(good)


def test_the_document_is_the_same_for_the_same_photos(shipped: Suites, defects: list[dict], good: list[dict]) -> None:
    """It holds Great Expectations' results in full, without ids and times, and which suites they are of."""
    first = shipped.decide(defects).as_json()
    shipped.decide(good)
    second = Suites(SHIPPED, params=PARAMS).decide(defects).as_json()
    assert first == second == json.loads(json.dumps(first, allow_nan=False))
    assert set(first["results"]) == set(first["suites"]) == {PHOTOS, PHOTO_SET}
    blurry = expectation_of(
        {"expectations": [r["expectation_config"] for r in first["results"][PHOTOS]["results"]]}, "blurry"
    )
    assert blurry["kwargs"]["min_value"] == PARAMS.sharpness_min
