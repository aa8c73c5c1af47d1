"""Component: check the photos."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Output

from components._image import step
from photoflux.params import ValidateParams


@step
def validate(
    photos: Input[Dataset],
    validated: Output[Dataset],
    report: Output[HTML],
    expectations: Output[Artifact],
    data_docs: Output[HTML],
    metrics: Output[Metrics],
    key: str,
    params: ValidateParams,
) -> None:
    """Measure every photo, reject what would harm training and score the set as a whole."""
    from pathlib import Path

    from photoflux.steps import validate

    result = validate.run(
        Path(photos.path),
        validated=Path(validated.path),
        report=Path(report.path),
        expectations=Path(expectations.path),
        data_docs=Path(data_docs.path),
        params=params,
        key=key,
    )
    for name, value in result.metrics.items():
        metrics.log_metric(name, value)
