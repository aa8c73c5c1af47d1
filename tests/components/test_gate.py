"""The gate component's answer is what the pipeline branches on: a yes or a no."""

import json
from pathlib import Path

import pytest
from kfp.dsl import HTML, Artifact, Metrics

from components.gate import gate
from photoflux.params import GateParams
from tests.judges.ruling import good_evaluation

UNLIKE = {"identity_gain": (0.1, 0.0, 0.2)}


def audit(verdict: str) -> dict:
    severity = {"PASS": "none", "INCONCLUSIVE": "moderate"}[verdict]
    finding = {"name": "gender", "severity": severity, "reason": "shares moved"}
    return {
        "kind": "audit",
        "schema_version": 1,
        "hashes": {"adapter": "a"},
        "severity": severity,
        "verdict": verdict,
        "findings": [finding],
    }


@pytest.mark.parametrize(
    ("changed", "audited", "answer", "verdict"),
    [({}, "PASS", True, "PASS"), ({}, "INCONCLUSIVE", False, "INCONCLUSIVE"), (UNLIKE, "PASS", False, "FAIL")],
)
def test_only_a_pass_goes_on(tmp_path: Path, changed: dict, audited: str, answer: bool, verdict: str):
    (tmp_path / "gate").mkdir()
    (tmp_path / "evaluation").write_text(json.dumps(good_evaluation(**changed)))
    (tmp_path / "audit").write_text(json.dumps(audit(audited)))
    decision = Artifact(name="decision", uri=str(tmp_path / "gate" / "decision"))
    metrics = Metrics(name="metrics", uri=str(tmp_path / "gate" / "metrics"))
    said = gate.python_func(
        evaluation=Artifact(name="evaluation", uri=str(tmp_path / "evaluation")),
        audit=Artifact(name="audit", uri=str(tmp_path / "audit")),
        decision=decision,
        report=HTML(name="report", uri=str(tmp_path / "gate" / "report")),
        metrics=metrics,
        key="plain://demo",
        params=GateParams().block(),
    )
    assert said is answer
    assert json.loads(Path(decision.path).read_text())["verdict"] == verdict
    assert (tmp_path / "gate" / "report").read_text().startswith("<!doctype html>")
    assert metrics.metadata["promote"] == float(verdict == "PASS")
    assert Path(metrics.path).is_file(), "without a file, kfp takes the step for one to be run again"
