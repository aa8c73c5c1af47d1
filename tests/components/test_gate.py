"""The gate component's answer is what the pipeline branches on: a yes or a no."""

import json
from pathlib import Path

import pytest
from kfp.dsl import HTML, Artifact, Metrics

from components.gate import gate
from photoflux.params import GateParams

MEASURED = {
    "identity_gain": (0.7, 0.6, 0.8), "prompt_change": (-0.02, -0.06, 0.02), "leakage": (0.05, 0.0, 0.12),
    "drift_change": (0.0, -0.02, 0.02), "drift_kid": (0.002, 0.001, 0.003), "diversity": (0.98, 0.95, 1.01),
    "class_diversity": (0.99, 0.96, 1.02), "copy_rate": (0.0, 0.0, 0.037), "memorisation_gap": (0.01, -0.03, 0.05),
    "broken_rate": (0.0, 0.0, 0.02), "sharpness": (0.97, 0.95, 0.99), "overall": (0.68, 0.58, 0.78),
}  # fmt: skip
BASE, JUDGES = GateParams().drift_kid_of.split()
UNLIKE = {"identity_gain": (0.1, 0.0, 0.2)}


def evaluation(**changed: tuple[float, float, float]) -> dict:
    metrics = {name: dict(zip(("point", "lo", "hi"), v, strict=True)) for name, v in (MEASURED | changed).items()}
    return {
        "kind": "evaluation",
        "schema_version": 2,
        "champion": None,
        "subject": {"id": "rex", "class_noun": "dog", "trigger": "sks"},
        "base": {"name": "pocket", "hash": BASE},
        "hashes": {"adapter": "a", "dataset": "d", "judges": JUDGES},
        "profile": "standard",
        "made_share": 1.0,
        "exact_attributes": True,
        "invalid": [],
        "metrics": metrics,
    }


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
    (tmp_path / "evaluation").write_text(json.dumps(evaluation(**changed)))
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
