"""Component: prepare the training set."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from components._image import step
from photoflux.params import AugmentParams


@step
def augment(
    validated: Input[Dataset],
    dataset: Output[Dataset],
    report: Output[HTML],
    metrics: Output[Metrics],
    key: str,
    params: AugmentParams,
) -> None:
    """Hold photos out, bring the rest to the base's resolution, vary and caption them."""
    from pathlib import Path

    from photoflux.steps import augment

    result = augment.run(
        Path(validated.path), dataset=Path(dataset.path), report=Path(report.path), params=params, key=key
    )
    for name, value in result.metrics.items():
        metrics.log_metric(name, value)
