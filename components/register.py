"""Component: register the model."""

from kfp.dsl import Artifact, Input, Markdown, Metrics, Model, Output

from components._image import step
from photoflux.params import RegisterParams


@step
def register(
    adapter: Input[Model],
    decision: Input[Artifact],
    evaluation: Input[Artifact],
    audit: Input[Artifact],
    card: Output[Markdown],
    receipt: Output[Artifact],
    metrics: Output[Metrics],
    key: str,
    params: RegisterParams,
) -> None:
    """Record the adapter as a model version with its lineage and give it its alias."""
    from pathlib import Path

    from photoflux.steps import register as step

    result = step.run(
        Path(adapter.path),
        Path(decision.path),
        Path(evaluation.path),
        Path(audit.path),
        card=Path(card.path),
        receipt=Path(receipt.path),
        params=params,
        key=key,
    )
    for name, value in result.metrics.items():
        metrics.log_metric(name, value)
