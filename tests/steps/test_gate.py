from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from photoflux.errors import InputError
from photoflux.judges.gate_rules import rules
from photoflux.manifest import write_json
from photoflux.params import GateParams, as_dict
from photoflux.params.files import load_params
from photoflux.steps.gate import decide, run, scale_of
from tests.judges.ruling import good_evaluation


@pytest.fixture
def evaluation() -> dict[str, Any]:
    return good_evaluation()


@pytest.fixture
def audit() -> dict[str, Any]:
    finding = {"name": "gender", "severity": "none", "reason": "shares moved by 0.00"}
    return {
        "kind": "audit",
        "schema_version": 1,
        "hashes": {"adapter": "a"},
        "severity": "none",
        "verdict": "PASS",
        "findings": [finding],
    }


def with_metric(evaluation: dict[str, Any], name: str, point: float, lo: float, hi: float) -> dict[str, Any]:
    changed = copy.deepcopy(evaluation)
    changed["metrics"][name] = {"point": point, "lo": lo, "hi": hi}
    return changed


def verdict_of(decision: dict[str, Any], rule: str) -> str:
    return next(reason["verdict"] for reason in decision["reasons"] if reason["rule"] == rule)


def test_a_good_candidate_is_promoted(evaluation: dict[str, Any], audit: dict[str, Any]) -> None:
    decision = decide(evaluation, audit, params=GateParams())
    assert (decision["verdict"], decision["promote"], decision["sign_off_possible"]) == ("PASS", True, False)


@pytest.mark.parametrize(
    ("rule", "metric", "straddling", "outside"),
    [
        ("identity gain", "identity_gain", (0.3, 0.2, 0.4), (0.1, 0.0, 0.2)),
        ("prompt following", "prompt_change", (-0.08, -0.15, -0.01), (-0.3, -0.4, -0.2)),
        ("class leakage", "leakage", (0.3, 0.2, 0.4), (0.6, 0.5, 0.7)),
        ("unrelated drift", "drift_change", (-0.04, -0.08, 0.0), (-0.2, -0.3, -0.1)),
        ("unrelated distribution", "drift_kid", (0.02, 0.01, 0.03), (0.5, 0.4, 0.6)),
        ("diversity with trigger", "diversity", (0.82, 0.7, 0.9), (0.6, 0.5, 0.7)),
        ("diversity of the class", "class_diversity", (0.82, 0.7, 0.9), (0.6, 0.5, 0.7)),
        ("copying", "copy_rate", (0.01, 0.002, 0.054), (0.5, 0.4, 0.6)),
        ("broken pictures", "broken_rate", (0.04, 0.02, 0.08), (0.5, 0.4, 0.6)),
    ],
)
def test_each_rule_fails_outside_and_is_open_across_its_limit(
    evaluation: dict[str, Any],
    audit: dict[str, Any],
    rule: str,
    metric: str,
    straddling: tuple[float, float, float],
    outside: tuple[float, float, float],
) -> None:
    for value, verdict in ((straddling, "INCONCLUSIVE"), (outside, "FAIL")):
        decision = decide(with_metric(evaluation, metric, *value), audit, params=GateParams())
        assert verdict_of(decision, rule) == decision["verdict"] == verdict
        assert not decision["promote"]
        assert not decision["sign_off_possible"]
        assert decision["summary"].startswith(f"{rule}: ")


@pytest.mark.parametrize(
    ("rule", "metric", "value"),
    [
        ("memorisation", "memorisation_gap", 0.2),
        ("sharpness", "sharpness", 0.7),
    ],
)
def test_rules_on_points_never_stay_open(
    evaluation: dict[str, Any], audit: dict[str, Any], rule: str, metric: str, value: float
) -> None:
    decision = decide(with_metric(evaluation, metric, value, -9, 9), audit, params=GateParams())
    assert verdict_of(decision, rule) == "FAIL"


def test_an_evaluation_of_before_is_named_with_what_it_lacks(evaluation: dict[str, Any], audit: dict[str, Any]) -> None:
    del evaluation["metrics"]["drift_kid"]
    with pytest.raises(InputError, match=r"'drift_kid'; run the evaluate step again"):
        decide(evaluation, audit, params=GateParams())


@pytest.mark.parametrize(
    "changed", [{"base": {"name": "flux", "hash": "f" * 64}}, {"hashes": {"judges": "0" * 64, "adapter": "a"}}]
)
def test_a_kernel_distance_is_not_held_to_a_limit_of_another_base_or_other_judges(
    evaluation: dict[str, Any], audit: dict[str, Any], changed: dict[str, Any]
) -> None:
    """Neither passes nor fails by it, however small or large it is, and no signature settles that."""
    for far in (0.001, 0.5):
        foreign = with_metric(evaluation | changed, "drift_kid", far, far - 0.001, far + 0.001)
        decision = decide(foreign, audit, params=GateParams())
        assert verdict_of(decision, "unrelated distribution") == decision["verdict"] == "INCONCLUSIVE"
        assert "set gate.drift_kid_of" in decision["summary"]
        assert not decision["sign_off_possible"]
        own = GateParams(drift_kid_of=f"{foreign['base']['hash'][:8]:0<8} {foreign['hashes']['judges'][:8]}")
        assert verdict_of(decide(foreign, audit, params=own), "unrelated distribution") == (
            "PASS" if far < 0.01 else "FAIL"
        )


def test_the_shipped_limit_of_the_kernel_distance_is_about_the_shipped_base_and_judges() -> None:
    from photoflux.flux.spec import load_spec
    from photoflux.judges.encoders import folder_digest

    spec = load_spec("pocket")
    shipped = {"base": {"hash": spec.hash}, "hashes": {"judges": folder_digest(spec.judges)}}
    assert scale_of(shipped) == load_params("gate").drift_kid_of


def test_small_limits_are_told_with_as_many_digits_as_they_have(
    evaluation: dict[str, Any], audit: dict[str, Any]
) -> None:
    decision = decide(with_metric(evaluation, "drift_kid", 0.5, 0.4, 0.6), audit, params=GateParams(drift_kid_max=0.02))
    assert "unrelated distribution: 0.500 [0.400, 0.600], must be at most 0.02;" in decision["summary"]


def test_failing_outranks_open_and_invalid_outranks_both(evaluation: dict[str, Any], audit: dict[str, Any]) -> None:
    both = with_metric(with_metric(evaluation, "leakage", 0.6, 0.5, 0.7), "identity_gain", 0.3, 0.2, 0.4)
    assert decide(both, audit, params=GateParams())["verdict"] == "FAIL"
    both["invalid"] = ["the judges cannot tell"]
    decision = decide(both, audit, params=GateParams())
    assert (decision["verdict"], decision["summary"]) == ("INVALID", "the judges cannot tell")


def test_too_few_pictures_are_invalid_never_a_pass(evaluation: dict[str, Any], audit: dict[str, Any]) -> None:
    evaluation["made_share"] = 0.7
    decision = decide(evaluation, audit, params=GateParams())
    assert decision["verdict"] == "INVALID"
    assert "70%" in decision["summary"]


@pytest.mark.parametrize(
    ("severity", "audited", "verdict", "sign_off"),
    [
        ("low", "PASS", "PASS", False),
        ("moderate", "INCONCLUSIVE", "INCONCLUSIVE", True),
        ("inconclusive", "INCONCLUSIVE", "INCONCLUSIVE", True),
        ("high", "FAIL", "FAIL", False),
        ("critical", "FAIL", "FAIL", False),
    ],
)
def test_the_audit_takes_part_and_only_its_open_questions_may_be_signed(
    evaluation: dict[str, Any], audit: dict[str, Any], severity: str, audited: str, verdict: str, sign_off: bool
) -> None:
    audit |= {"severity": severity, "verdict": audited, "findings": [{**audit["findings"][0], "severity": severity}]}
    decision = decide(evaluation, audit, params=GateParams())
    assert (decision["verdict"], decision["sign_off_possible"]) == (verdict, sign_off)
    assert decision["promote"] is (verdict == "PASS")


def test_a_signature_cannot_settle_a_straddling_measure(evaluation: dict[str, Any], audit: dict[str, Any]) -> None:
    audit |= {"severity": "inconclusive", "verdict": "INCONCLUSIVE"}
    wide = with_metric(evaluation, "identity_gain", 0.3, 0.2, 0.4)
    assert not decide(wide, audit, params=GateParams())["sign_off_possible"]


def held_against(point: float, lo: float, hi: float, **about: Any) -> dict[str, Any]:
    change = {"point": point, "lo": lo, "hi": hi}
    return {
        "name": "rex",
        "version": 3,
        "adapter": "old",
        "verdict": "PASS",
        "how": "its own evaluation",
        "difference": change,
        **about,
    }


@pytest.mark.parametrize(
    ("change", "verdict", "takes"),
    [
        ((0.1, 0.02, 0.2), "PASS", True), ((0.01, -0.2, 0.2), "PASS", True), ((0.0, -0.1, 0.1), "PASS", False),
        ((-0.02, -0.1, 0.06), "PASS", False), ((-0.1, -0.14, -0.06), "FAIL", False),
    ],
)  # fmt: skip
def test_the_better_one_is_champion_and_what_is_surely_worse_is_not_registered(
    evaluation: dict[str, Any], audit: dict[str, Any], change: tuple[float, float, float], verdict: str, takes: bool
) -> None:
    decision = decide(
        evaluation | {"champion": held_against(*change)}, audit, params=GateParams(champion_drop_max=0.05)
    )
    assert (decision["verdict"], decision["succeeds"]["takes"]) == (verdict, takes)
    reason = next(r for r in decision["reasons"] if r["rule"] == "previous champion")
    assert (reason["value"], reason["lo"], reason["hi"], reason["bound"]) == (*change, -0.05)
    assert "version 3" in reason["message"]
    assert "version 3" in decision["succeeds"]["why"]


def test_who_was_signed_for_does_not_displace_who_passed(evaluation: dict[str, Any], audit: dict[str, Any]) -> None:
    audit |= {"severity": "inconclusive", "verdict": "INCONCLUSIVE"}
    better = held_against(0.3, 0.2, 0.4)
    takes = [
        decide(evaluation | {"champion": better | {"verdict": verdict}}, audit, params=GateParams())["succeeds"][
            "takes"
        ]
        for verdict in ("PASS", "INCONCLUSIVE")
    ]
    assert takes == [False, True]


def test_without_a_champion_or_with_one_of_another_base_the_place_is_free(
    evaluation: dict[str, Any], audit: dict[str, Any]
) -> None:
    other = held_against(0, 0, 0, how="cannot be drawn: it belongs to another base, 'old'") | {"difference": None}
    for champion, why in ((None, "no champion"), (other, "another base")):
        decision = decide(evaluation | {"champion": champion}, audit, params=GateParams())
        assert decision["succeeds"]["takes"]
        assert why in decision["succeeds"]["why"]
        assert "previous champion" not in {reason["rule"] for reason in decision["reasons"]}


def test_the_page_names_the_champion_and_the_paired_difference(
    tmp_path: Path, evaluation: dict[str, Any], audit: dict[str, Any]
) -> None:
    evaluation["champion"] = held_against(-0.02, -0.1, 0.06)
    paths = [write_json(tmp_path / name, value) for name, value in (("e.json", evaluation), ("a.json", audit))]
    run(*paths, decision=tmp_path / "decision.json", report=tmp_path / "gate.html", params=GateParams())
    page = (tmp_path / "gate.html").read_text()
    for told in (
        "version 3 of rex (its own evaluation)",
        "-0.02 [-0.10, +0.06] against version 3",
        "registered as challenger",
    ):
        assert told in page


def test_warnings_pass_but_are_marked(evaluation: dict[str, Any], audit: dict[str, Any]) -> None:
    decision = decide(with_metric(evaluation, "leakage", 0.25, 0.2, 0.3), audit, params=GateParams())
    reason = next(r for r in decision["reasons"] if r["rule"] == "class leakage")
    assert (reason["verdict"], reason["warning"], decision["verdict"]) == ("PASS", True, "PASS")


@pytest.mark.parametrize(
    ("shift", "verdict", "sign_off"),
    [((0.5, -1, 2), "PASS", False), ((4, 3.2, 4.8), "INCONCLUSIVE", True), ((-8, -9, -7), "FAIL", False)],
)
def test_a_persons_skin_may_not_be_lightened_or_darkened(
    evaluation: dict[str, Any],
    audit: dict[str, Any],
    shift: tuple[float, float, float],
    verdict: str,
    sign_off: bool,
) -> None:
    decision = decide(with_metric(evaluation, "lightness_shift", *shift), audit, params=GateParams())
    assert (decision["verdict"], decision["sign_off_possible"]) == (verdict, sign_off)


def test_where_attributes_are_unknown_the_cosine_limit_applies(
    evaluation: dict[str, Any], audit: dict[str, Any]
) -> None:
    evaluation["exact_attributes"] = False
    decision = decide(with_metric(evaluation, "prompt_change", -0.05, -0.06, -0.04), audit, params=GateParams())
    assert verdict_of(decision, "prompt following") == "FAIL"


def test_run_writes_decision_and_page(tmp_path: Path, evaluation: dict[str, Any], audit: dict[str, Any]) -> None:
    paths = [write_json(tmp_path / name, value) for name, value in (("e.json", evaluation), ("a.json", audit))]
    result = run(*paths, decision=tmp_path / "decision.json", report=tmp_path / "gate.html", params=GateParams())
    decision = json.loads((tmp_path / "decision.json").read_text())
    page = (tmp_path / "gate.html").read_text()
    assert decision["promote"] is True
    assert result.metrics["promote"] == 1.0
    assert result.metrics["rules_pass"] == len(decision["reasons"])
    assert "PASS" in page
    assert "http" not in page.replace("http://www.w3.org", "")


def test_evaluation_and_audit_must_be_about_one_adapter(evaluation: dict[str, Any], audit: dict[str, Any]) -> None:
    audit["hashes"]["adapter"] = "another"
    with pytest.raises(InputError, match="different adapters"):
        decide(evaluation, audit, params=GateParams())


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": "audit", "schema_version": 1}'])
def test_a_wrong_file_is_named_and_nothing_is_written(tmp_path: Path, audit: dict[str, Any], content: str) -> None:
    (tmp_path / "e.json").write_text(content)
    audit_path = write_json(tmp_path / "a.json", audit)
    with pytest.raises(InputError, match=r"e\.json"):
        run(
            tmp_path / "e.json",
            audit_path,
            decision=tmp_path / "d.json",
            report=tmp_path / "r.html",
            params=GateParams(),
        )
    assert not (tmp_path / "d.json").exists()


def test_the_shipped_limits_are_those_of_their_calibration() -> None:
    """`gate.calibration` names the measurements in benchmarks/results, which were held to the limits that ship."""
    from benchmarks.limits import drift_kid_max
    from benchmarks.recipes import short_hash
    from benchmarks.subjects import RESULTS, calibration

    measured = json.loads((RESULTS / "calibration.json").read_text(encoding="utf-8"))
    shipped = load_params("gate")
    assert shipped == GateParams()
    assert shipped.calibration == measured["hashes"]["calibration"] == calibration(measured["subjects"])
    assert {one["rule"]: one["limit"] for one in measured["margins"]} == {
        rule.name: rule.bound for rule in rules({"exact_attributes": True}, shipped)
    }
    assert shipped.drift_kid_max == drift_kid_max(measured["subjects"])
    assert shipped.drift_kid_of == scale_of(measured)
    assert sum(row["ours"]["verdict"] == "PASS" for row in measured["subjects"]) >= 9
    tuned = json.loads((RESULTS / "tuning.json").read_text(encoding="utf-8"))
    assert tuned["limits"] == short_hash(as_dict(shipped)), "rivals were tuned under other limits"
