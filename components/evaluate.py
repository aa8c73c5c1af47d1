"""Component: evaluate the adapter."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from components._image import step
from photoflux.params import EvaluateParams


@step
def evaluate(
    dataset: Input[Dataset],
    adapter: Input[Model],
    champion: Input[Artifact],
    evaluation: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
    key: str,
    params: EvaluateParams,
) -> None:
    """Measure likeness, prompt following, leakage, diversity and copying against the base, and compare with the champion."""
    from pathlib import Path

    from photoflux.steps import evaluate

    result = evaluate.run(
        Path(dataset.path),
        Path(adapter.path),
        evaluation=Path(evaluation.path),
        report=Path(report.path),
        params=params,
        champion=Path(champion.path),
        key=key,
    )
    for name, value in result.metrics.items():
        metrics.log_metric(name, value)
