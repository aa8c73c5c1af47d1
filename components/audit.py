"""Component: audit the adapter for bias."""

from kfp.dsl import HTML, Artifact, Input, Metrics, Model, Output

from components._image import step
from photoflux.params import AuditParams


@step
def audit(
    adapter: Input[Model],
    audit: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
    key: str,
    params: AuditParams,
) -> None:
    """Compare how people are shown with and without the adapter, same prompts and seeds."""
    from pathlib import Path

    from photoflux.steps import audit as step

    result = step.run(Path(adapter.path), audit=Path(audit.path), report=Path(report.path), params=params, key=key)
    for name, value in result.metrics.items():
        metrics.log_metric(name, value)
