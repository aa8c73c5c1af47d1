"""Great Expectations and the rule table never differ, whatever is wrong with the photos."""

from __future__ import annotations

from photoflux.params import ValidateParams
from photoflux.photos.rules import judge, rule_table
from photoflux.photos.suite import expect

PARAMS = ValidateParams()
RULES = rule_table(PARAMS)


def both(rows: list[dict]):
    verdict = judge(rows, params=PARAMS)
    return verdict, expect(rows, verdict.whole, rules=RULES)


def test_both_agree_on_every_defect(defects):
    verdict, opinion = both(defects)
    assert opinion.failures == verdict.failures
    assert {code for _, code in verdict.failures} >= {rule.code for rule in RULES if rule.level != "set"}
    assert opinion.worst == "critical"


def test_a_good_set_meets_every_expectation(good):
    verdict, opinion = both(good)
    assert opinion.failures == verdict.failures == frozenset()
    assert opinion.worst == "ok"
    assert all(line["success"] for line in opinion.expectations)
    assert {line["rule"] for line in opinion.expectations} == {rule.code for rule in RULES} | {"unmeasured"}


def test_nothing_empty_slips_through(good, defects):
    rows = [{**good[0], "sharpness": None, "entropy": None}, *good[1:], *(r for r in defects if not r["decoded"])]
    verdict, opinion = both(rows)
    assert opinion.failures == verdict.failures
    undecoded = {(name, "decodable") for name in ("text.jpg", "cut.jpg", "bomb.png", "moving.webp")}
    assert opinion.failures == undecoded | {("0.jpg", "unmeasured"), ("", "few")}


def test_photos_that_cannot_be_decoded_alone_are_all_caught(defects):
    rows = [row for row in defects if not row["decoded"]]
    verdict, opinion = both(rows)
    assert opinion.failures == verdict.failures
    assert {name for name, code in opinion.failures if code == "decodable"} == {row["file"] for row in rows}
