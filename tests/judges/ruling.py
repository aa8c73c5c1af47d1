"""What the rules of the gate say of some evidence, without an audit."""

from __future__ import annotations

from photoflux.judges.gate_rules import rules
from photoflux.judges.scores import Evidence, measure
from photoflux.params import GateParams
from photoflux.steps.gate import judge


def verdicts(evidence: Evidence) -> dict[str, str]:
    """Rule -> verdict, at the default limits."""
    scores = measure(evidence, resamples=500)
    document = {
        "metrics": {name: value.as_dict() for name, value in scores.metrics.items()},
        "exact_attributes": scores.exact,
    }
    return {rule.name: judge(rule, document["metrics"]).verdict for rule in rules(document, GateParams())}
