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
    params: GateParams,
) -> bool:
    """Hold the measurements against the limits and the champion, and say whether the adapter may be registered."""
    from pathlib import Path

    from photoflux.steps import gate

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
    return bool(result.metrics["promote"])
