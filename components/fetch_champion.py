"""Component: fetch the champion."""

from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from components._image import component


@component
def fetch_champion(
    dataset: Input[Dataset],
    champion: Output[Artifact],
    metrics: Output[Metrics],
    key: str,
    params: str,
) -> None:
    """Fetch the present champion of the subject's model, which the new adapter is held against.

    Args:
        params: The block of register, which names the model
    """
    from pathlib import Path

    from photoflux.params import RegisterParams
    from photoflux.runs import report_failure
    from photoflux.steps import fetch_champion

    with report_failure("fetch_champion", output=champion.path):
        name = RegisterParams.from_block(params).name
        result = fetch_champion.run(Path(dataset.path), champion=Path(champion.path), name=name, key=key)
        result.log_to(metrics)
