"""Component: fetch the champion."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from components._image import step


@step
def fetch_champion(
    dataset: Input[Dataset],
    champion: Output[Artifact],
    metrics: Output[Metrics],
    key: str,
    name: str,
) -> None:
    """Fetch the present champion of the subject's model, which the new adapter is held against.

    Args:
        name: Name of the registered model; empty for the subject's id
    """
    from pathlib import Path

    from photoflux.steps import fetch_champion

    result = fetch_champion.run(Path(dataset.path), champion=Path(champion.path), name=name, key=key)
    for metric, value in result.metrics.items():
        metrics.log_metric(metric, value)
