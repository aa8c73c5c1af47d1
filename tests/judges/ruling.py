"""What the rules of the gate say of some evidence, without an audit; and an evaluation that they let pass."""

from __future__ import annotations

from typing import Any

from photoflux.judges.gate_rules import rules
from photoflux.judges.scores import Evidence, measure
from photoflux.params import GateParams
from photoflux.steps.gate import judge

GOOD = {
    "identity_gain": (0.7, 0.6, 0.8), "prompt_change": (-0.02, -0.06, 0.02), "leakage": (0.05, 0.0, 0.12),
    "drift_change": (0.0, -0.02, 0.02), "drift_kid": (0.002, 0.001, 0.003), "diversity": (0.98, 0.95, 1.01),
    "class_diversity": (0.99, 0.96, 1.02), "copy_rate": (0.0, 0.0, 0.037), "memorisation_gap": (0.01, -0.03, 0.05),
    "broken_rate": (0.0, 0.0, 0.02), "sharpness": (0.97, 0.95, 0.99), "overall": (0.68, 0.58, 0.78),
}  # fmt: skip
"""Point and interval of every metric, such that each rule is met."""
BASE, JUDGES = GateParams().drift_kid_of.split()


def good_evaluation(**changed: tuple[float, float, float]) -> dict[str, Any]:
    """An evaluation whose metrics are GOOD, but for those that are changed."""
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
        "metrics": {
            name: dict(zip(("point", "lo", "hi"), value, strict=True)) for name, value in (GOOD | changed).items()
        },
    }


def verdicts(evidence: Evidence) -> dict[str, str]:
    """Rule -> verdict, at the default limits."""
    scores = measure(evidence, resamples=500)
    document = {
        "metrics": {name: value.as_dict() for name, value in scores.metrics.items()},
        "exact_attributes": scores.exact,
    }
    return {rule.name: judge(rule, document["metrics"]).verdict for rule in rules(document, GateParams())}
