"""import_photos: collect one subject's photos, unchanged, in one artifact."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

from photoflux.errors import InputError
from photoflux.manifest import digest, write_tar
from photoflux.params import ImportParams
from photoflux.photos.gather import gather, readable
from photoflux.steps import StepResult
from photoflux.vault import committed
from photoflux.wording import slug

log = logging.getLogger(__name__)

FETCHED_PREFIXES = ("blob:", "dvc:")
"""Prefixes of sources that the pipeline fetches to a folder."""
SLUG_MAX_CHARS = 54


def run(source: str, *, photos: Path, params: ImportParams, key: str = "plain://demo", origin: str = "") -> StepResult:
    """Copy the photos in the folder `source` to the artifact `photos`, unchanged, with the captions beside them in its manifest.

    `origin` says where they came from, when `source` is only where they were fetched to. Nothing is decoded here:
    whether a file is a usable photo is the next step's question. Raises InputError naming what is at fault.
    """
    found = gather(_folder(source), params=params)
    entries = [{"name": name, "sha256": digest(f), "bytes": f.stat().st_size} for name, f in found.photos.items()]
    manifest = {
        "subject": {
            "id": params.subject_id or subject_of(params.source if origin else source),
            "class_noun": params.class_noun,
            "trigger": params.trigger,
            "consent": params.consent,
        },
        "source": origin or readable(Path(source).resolve().name),
        "files": entries,
        "captions": found.captions,
        "left_out": found.left_out,
    }
    with committed(photos, key=key) as out:
        write_tar(out, files={f"photos/{name}": file for name, file in found.photos.items()}, manifest=manifest)
    if found.left_out_sentence:
        log.info("%s", found.left_out_sentence)
    total = sum(f.stat().st_size for f in found.photos.values())
    return StepResult(
        metrics={"files": len(found.photos), "megabytes": round(total / 1e6, 3), "left_out": len(found.left_out)}
    )


def subject_of(source: str) -> str:
    """A subject id made of `source`, where none is given: its last word, and a digest of all of it.

    A folder below the working directory is identified by its relative path, so that both may be moved; one elsewhere by
    its absolute path, a set by its full source.
    """
    source_key = (
        source if source.startswith(FETCHED_PREFIXES) else _relative_folder(expand_home(Path(source)).resolve())
    )
    readable_part = slug(re.split("[/:@]", source_key.rstrip("/"))[-1])
    sha = hashlib.sha256(source_key.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{readable_part[:SLUG_MAX_CHARS].rstrip('-') or 'subject'}-{sha[:8]}"


def expand_home(path: Path) -> Path:
    """The path with `~` expanded; unchanged where there is no such user."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _relative_folder(folder: Path) -> str:
    here = Path.cwd()
    return folder.relative_to(here).as_posix() if here in folder.parents else str(folder)


def _folder(source: str) -> Path:
    if source.startswith(FETCHED_PREFIXES):
        raise InputError(
            f"{source}: uploaded and DVC-tracked sets are fetched by the pipeline; run it, or give a folder"
        )
    folder = expand_home(Path(source))
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{readable(source)}: {what}; give a folder of photos")
    return folder
