"""Component: fine-tune the adapter."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from components._image import component


@component
def finetune(
    dataset: Input[Dataset],
    adapter: Output[Model],
    report: Output[HTML],
    metrics: Output[Metrics],
    key: str,
    params: str,
) -> None:
    """Train the subject into a LoRA adapter of the frozen base and keep the best checkpoint."""
    from pathlib import Path

    from photoflux.params import FinetuneParams
    from photoflux.runs import report_failure
    from photoflux.steps import finetune

    with report_failure("finetune", output=adapter.path):
        result = finetune.run(
            Path(dataset.path),
            adapter=Path(adapter.path),
            report=Path(report.path),
            params=FinetuneParams.from_block(params),
            key=key,
        )
        result.log_to(metrics)
