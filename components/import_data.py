"""Component: import the photos."""

from kfp.dsl import Dataset, Metrics, Output

from components._image import step
from photoflux.params import ImportParams


@step
def import_data(
    photos: Output[Dataset],
    metrics: Output[Metrics],
    key: str,
    params: ImportParams,
) -> None:
    """Gather one subject's photos from a folder, a DVC-tracked set or an uploaded set."""
    from pathlib import Path

    from components.sources import fetched
    from photoflux.steps import import_photos

    with fetched(params.source, key=key) as (folder, origin):
        result = import_photos.run(folder, photos=Path(photos.path), params=params, key=key, origin=origin)
    for name, value in result.metrics.items():
        metrics.log_metric(name, value)
