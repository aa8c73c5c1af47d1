"""Component: decide."""

from kfp.dsl import HTML, Artifact, Input, Metrics, Output

from components._image import step
from photoflux.params import GateParams


@step
def gate(
    evaluation: Input[Artifact],
    audit: Input[Artifact],
    decision: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
    key: str,
    signed_off_by: str,
    params: GateParams,
) -> bool:
    """Hold the measurements against the limits and say whether the adapter may be registered.

    Args:
        signed_off_by: Who answers for a decision that only the audit left open; empty for nobody
    """
    import json
    from pathlib import Path

    from photoflux.steps import gate
    from photoflux.vault import opened

    result = gate.run(
        Path(evaluation.path),
        Path(audit.path),
        decision=Path(decision.path),
        report=Path(report.path),
        params=params,
        key=key,
    )
    for name, value in result.metrics.items():
        metrics.log_metric(name, value)
    with opened(Path(decision.path), key=key) as readable:
        decided = json.loads(readable.read_text())
    return decided["promote"] or bool(signed_off_by and decided["sign_off_possible"])
