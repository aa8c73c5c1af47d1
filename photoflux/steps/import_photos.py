"""import: gather one subject's photos, as they are, into one artifact."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from photoflux.errors import InputError
from photoflux.manifest import digest, write_tar
from photoflux.params import ImportParams
from photoflux.steps import StepResult
from photoflux.vault import committed

SUFFIXES = {".jpg", ".jpeg", ".jpe", ".mpo", ".png", ".tif", ".tiff", ".webp", ".heic", ".avif", ".gif"}
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"RIFF")
FETCHED = ("blob:", "dvc:")
"""How sources begin that are no folders."""
WORDS_KEPT = 54
MAX_CAPTION_BYTES = 4096
MAX_NAME_BYTES = 90  # what a ustar header holds beside the folder's name


def run(source: str, *, photos: Path, params: ImportParams, key: str = "plain://demo", origin: str = "") -> StepResult:
    """Copy the photos in the folder `source`, and captions beside them, to the artifact `photos`, unchanged.

    `origin` says where they came from, when `source` is only where they were fetched to. Nothing is decoded here:
    whether a file is a usable photo is the next step's question. Raises InputError naming what is at fault.
    """
    files = list_photos(_folder(source), params=params)
    described = [{"name": f.name, "sha256": digest(f), "bytes": f.stat().st_size} for f in files]
    manifest = {
        "subject": {
            "id": params.subject_id or subject_of(params.source if origin else source),
            "class_noun": params.class_noun,
            "trigger": params.trigger,
            "consent": params.consent,
        },
        "source": origin or Path(source).resolve().name,
        "files": described,
    }
    with committed(photos, key=key) as out:
        write_tar(out, files={f"photos/{f.name}": f for f in [*files, *_captions(files)]}, manifest=manifest)
    total = sum(f.stat().st_size for f in files)
    return StepResult(metrics={"files": len(files), "megabytes": round(total / 1e6, 3)})


def subject_of(source: str) -> str:
    """An id for whoever the photos of `source` show, where none is given: words of it, and a digest that no other one has.

    A folder is told by its path below the working directory, which may be moved with what it holds; one elsewhere by its
    whole path, a set by all of what was written.
    """
    place = source if source.startswith(FETCHED) else _place(expand_home(Path(source)).resolve())
    words = re.sub(r"[^a-z0-9]+", "-", re.split("[/:@]", place.rstrip("/"))[-1].lower()).strip("-")
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


def list_photos(folder: Path, *, params: ImportParams) -> list[Path]:
    """The photos directly in `folder`, sorted by name; hidden files and other documents are left out."""
    files = sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith(".") and _is_photo(f))
    if not files:
        raise InputError(f"{folder}: holds no photos; give a folder with JPEG, PNG, TIFF or WebP files directly in it")
    if len(files) > params.max_files:
        raise InputError(
            f"{folder}: holds {len(files)} photos, more than import_photos.max_files = {params.max_files}; "
            "choose the best 5 to 20 of them"
        )
    for file in files:
        _check(file, max_mb=params.max_file_mb)
    return files


def _captions(photos: list[Path]) -> list[Path]:
    """What a person wrote about a photo: a `.txt` of the same name beside it."""
    beside = (photo.with_suffix(".txt") for photo in photos)
    return sorted({text for text in beside if text.is_file() and text.stat().st_size <= MAX_CAPTION_BYTES})


def _folder(source: str) -> Path:
    if source.startswith(FETCHED):
        raise InputError(
            f"{source}: uploaded and DVC-tracked sets are fetched by the pipeline; run it, or give a folder"
        )
    folder = expand_home(Path(source))
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{source}: {what}; give a folder of photos")
    return folder


def _is_photo(file: Path) -> bool:
    if file.suffix.lower() in SUFFIXES:
        return True
    with file.open("rb") as stream:
        return stream.read(4).startswith(MAGIC)


def _check(file: Path, *, max_mb: int) -> None:
    if file.stat().st_size > max_mb * 1_000_000:
        raise InputError(f"{file.name}: is larger than import_photos.max_file_mb = {max_mb} MB; export a smaller copy")
    if len(file.name.encode()) > MAX_NAME_BYTES:
        raise InputError(f"{file.name}: the name is too long; use at most {MAX_NAME_BYTES} bytes")
