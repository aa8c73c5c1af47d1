"""import: gather one subject's photos, as they are, into one artifact."""

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

FETCHED = ("blob:", "dvc:")
"""How sources begin that are no folders."""
WORDS_KEPT = 54


def run(source: str, *, photos: Path, params: ImportParams, key: str = "plain://demo", origin: str = "") -> StepResult:
    """Copy the photos in the folder `source` to the artifact `photos`, unchanged, with the captions beside them in its manifest.

    `origin` says where they came from, when `source` is only where they were fetched to. Nothing is decoded here:
    whether a file is a usable photo is the next step's question. Raises InputError naming what is at fault.
    """
    found = gather(_folder(source), params=params)
    described = [{"name": name, "sha256": digest(f), "bytes": f.stat().st_size} for name, f in found.photos.items()]
    manifest = {
        "subject": {
            "id": params.subject_id or subject_of(params.source if origin else source),
            "class_noun": params.class_noun,
            "trigger": params.trigger,
            "consent": params.consent,
        },
        "source": origin or readable(Path(source).resolve().name),
        "files": described,
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
    """An id for whoever the photos of `source` show, where none is given: words of it, and a digest that no other one has.

    A folder is told by its path below the working directory, which may be moved with what it holds; one elsewhere by its
    whole path, a set by all of what was written.
    """
    place = source if source.startswith(FETCHED) else _place(expand_home(Path(source)).resolve())
    words = slug(re.split("[/:@]", place.rstrip("/"))[-1])
    sha = hashlib.sha256(place.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{words[:WORDS_KEPT].rstrip('-') or 'subject'}-{sha[:8]}"


def expand_home(path: Path) -> Path:
    """`~` as the person's home; a path that names nobody's home is a path like any other."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _place(folder: Path) -> str:
    here = Path.cwd()
    return folder.relative_to(here).as_posix() if here in folder.parents else str(folder)


def _folder(source: str) -> Path:
    if source.startswith(FETCHED):
        raise InputError(
            f"{source}: uploaded and DVC-tracked sets are fetched by the pipeline; run it, or give a folder"
        )
    folder = expand_home(Path(source))
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{readable(source)}: {what}; give a folder of photos")
    return folder
