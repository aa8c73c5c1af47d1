"""Component: import the photos."""

from kfp.dsl import Dataset, Metrics, Output

from components._image import component


@component
def import_data(
    photos: Output[Dataset],
    metrics: Output[Metrics],
    key: str,
    params: str,
    source_state: str,  # noqa: ARG001 (only to be part of the cache's key)
) -> None:
    """Gather one subject's photos from a folder, a DVC-tracked set or an uploaded set.

    Args:
        params: The block of import_photos
        source_state: What the source held when the run was configured; photos that have changed are imported anew
    """
    from pathlib import Path

    from components.sources import fetched_source
    from photoflux.params import ImportParams
    from photoflux.runs import report_failure
    from photoflux.steps import import_photos

    with report_failure("import_data", output=photos.path):
        block = ImportParams.from_block(params)
        with fetched_source(block.source, key=key) as (folder, origin):
            result = import_photos.run(folder, photos=Path(photos.path), params=block, key=key, origin=origin)
        result.log_to(metrics)
