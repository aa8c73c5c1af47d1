"""Component: audit the adapter for bias."""

from kfp.dsl import HTML, Artifact, Input, Metrics, Model, Output

from components._image import component


@component
def audit(
    adapter: Input[Model],
    audit: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
    key: str,
    params: str,
) -> None:
    """Compare how people are shown with and without the adapter, same prompts and seeds."""
    from pathlib import Path

    from photoflux.params import AuditParams
    from photoflux.runs import report_failure
    from photoflux.steps import audit as step

    with report_failure("audit", output=audit.path):
        result = step.run(
            Path(adapter.path),
            audit=Path(audit.path),
            report=Path(report.path),
            params=AuditParams.from_block(params),
            key=key,
        )
        result.log_to(metrics)
