"""Component: register the model."""

from kfp.dsl import Artifact, Input, Markdown, Metrics, Model, Output

from components._image import component


@component
def register(
    adapter: Input[Model],
    decision: Input[Artifact],
    evaluation: Input[Artifact],
    audit: Input[Artifact],
    card: Output[Markdown],
    receipt: Output[Artifact],
    metrics: Output[Metrics],
    key: str,
    params: str,
) -> None:
    """Record the adapter as a model version with its lineage and give it its alias."""
    from pathlib import Path

    from photoflux.params import RegisterParams
    from photoflux.runs import report_failure
    from photoflux.steps import register

    with report_failure("register", output=card.path):
        result = register.run(
            Path(adapter.path),
            Path(decision.path),
            Path(evaluation.path),
            Path(audit.path),
            card=Path(card.path),
            receipt=Path(receipt.path),
            params=RegisterParams.from_block(params),
            key=key,
        )
        result.log_to(metrics)
