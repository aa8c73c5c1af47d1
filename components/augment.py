"""Component: prepare the training set."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from components._image import component


@component
def augment(
    validated: Input[Dataset],
    dataset: Output[Dataset],
    report: Output[HTML],
    metrics: Output[Metrics],
    key: str,
    params: str,
) -> None:
    """Hold photos out, bring the rest to the base's resolution, vary and caption them."""
    from pathlib import Path

    from photoflux.params import AugmentParams
    from photoflux.runs import report_failure
    from photoflux.steps import augment

    with report_failure("augment", output=dataset.path):
        result = augment.run(
            Path(validated.path),
            dataset=Path(dataset.path),
            report=Path(report.path),
            params=AugmentParams.from_block(params),
            key=key,
        )
        result.log_to(metrics)
