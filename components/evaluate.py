"""Component: evaluate the adapter."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from components._image import component


@component
def evaluate(
    dataset: Input[Dataset],
    adapter: Input[Model],
    champion: Input[Artifact],
    evaluation: Output[Artifact],
    report: Output[HTML],
    metrics: Output[Metrics],
    key: str,
    params: str,
) -> None:
    """Measure likeness, prompt following, leakage, diversity and copying against the base, and compare with the champion."""
    from pathlib import Path

    from photoflux.params import EvaluateParams
    from photoflux.runs import report_failure
    from photoflux.steps import evaluate

    with report_failure("evaluate", output=evaluation.path):
        result = evaluate.run(
            Path(dataset.path),
            Path(adapter.path),
            evaluation=Path(evaluation.path),
            report=Path(report.path),
            params=EvaluateParams.from_block(params),
            champion=Path(champion.path),
            key=key,
        )
        result.log_to(metrics)
