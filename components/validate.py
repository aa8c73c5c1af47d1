"""Component: check the photos."""

from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Output

from components._image import component


@component
def validate(
    photos: Input[Dataset],
    validated: Output[Dataset],
    report: Output[HTML],
    expectations: Output[Artifact],
    data_docs: Output[HTML],
    metrics: Output[Metrics],
    key: str,
    params: str,
) -> None:
    """Measure every photo, reject what would harm training and score the set as a whole."""
    from pathlib import Path

    from photoflux.params import ValidateParams
    from photoflux.runs import report_failure
    from photoflux.steps import validate

    with report_failure("validate", output=validated.path):
        result = validate.run(
            Path(photos.path),
            validated=Path(validated.path),
            report=Path(report.path),
            expectations=Path(expectations.path),
            data_docs=Path(data_docs.path),
            params=ValidateParams.from_block(params),
            key=key,
        )
        result.log_to(metrics)
