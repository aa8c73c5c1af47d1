"""Component: decide."""

from kfp.dsl import HTML, Artifact, Input, Metrics, Output

from components._image import component


@component
def gate(
    evaluation: Input[Artifact],
    audit: Input[Artifact],
    decision: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
    key: str,
    params: str,
) -> bool:
    """Hold the measurements against the limits and the champion, and say whether the adapter may be registered."""
    from pathlib import Path

    from photoflux.params import GateParams
    from photoflux.runs import report_failure
    from photoflux.steps import gate

    with report_failure("gate", output=decision.path):
        result = gate.run(
            Path(evaluation.path),
            Path(audit.path),
            decision=Path(decision.path),
            report=Path(report.path),
            params=GateParams.from_block(params),
            key=key,
        )
        result.log_to(metrics)
        return bool(result.metrics["promote"])
