"""Component: fine-tune the adapter."""

from kfp.dsl import HTML, Dataset, Input, Metrics, Model, Output

from components._image import step
from photoflux.params import FinetuneParams


@step
def finetune(
    dataset: Input[Dataset],
    adapter: Output[Model],
    report: Output[HTML],
    metrics: Output[Metrics],
    key: str,
    params: FinetuneParams,
) -> None:
    """Train the subject into a LoRA adapter of the frozen base and keep the best checkpoint."""
    from pathlib import Path

    from photoflux.steps import finetune as step

    result = step.run(Path(dataset.path), adapter=Path(adapter.path), report=Path(report.path), params=params, key=key)
    for name, value in result.metrics.items():
        metrics.log_metric(name, value)
