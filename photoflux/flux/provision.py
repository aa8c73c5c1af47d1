"""Getting a base: its files fetched from where the spec says, held against the spec's manifest, and pinned in it.

`python -m photoflux.flux.provision <spec>.yaml` pins the files that are in the spec's local folder now.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from photoflux.errors import InputError
from photoflux.flux.spec import HUB, BaseSpec, is_remote, locate
from photoflux.manifest import digest, write_json, write_text
from photoflux.settings import get_settings

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

log = logging.getLogger(__name__)

LARGE_BYTES = 64 * 2**20
"""Files from this size are hashed once per change on disk, smaller ones every time."""


def verify(spec: BaseSpec) -> Path:
    """Hold every file of the base against the manifest and return its local folder, fetched first if it is remote.

    Raises InputError naming the first missing or altered file.
    """
    if not spec.manifest:
        raise InputError(
            f"base '{spec.name}' lists no files in its manifest; fetch it, look at it, and pin it with "
            f"`python -m photoflux.flux.provision <spec>.yaml`"
        )
    folder = local_folder(spec)
    for name, sha in spec.manifest.items():
        _check_file(folder / name, sha, spec=spec)
    return folder


def _check_file(file: Path, sha: str, *, spec: BaseSpec) -> None:
    remedy = (
        "delete its folder to fetch it again"
        if is_remote(spec.folder)
        else "restore it from version control or its source"
    )
    if not file.is_file():
        raise InputError(f"base '{spec.name}': {file} is missing; {remedy}")
    if _digest_of(file) != sha:
        raise InputError(f"base '{spec.name}': {file} is not the file its spec pins (SHA-256 differs); {remedy}")


def _digest_of(file: Path) -> str:
    """SHA-256; remembered for large files until size, time or place on disk change."""
    state = file.stat()
    if state.st_size < LARGE_BYTES:
        return digest(file)
    key = hashlib.sha256(f"{file.resolve()} {state.st_size} {state.st_mtime_ns} {state.st_ino}".encode()).hexdigest()
    note = get_settings().cache_dir / "digests" / f"{key}.json"
    if note.is_file():
        return str(json.loads(note.read_text(encoding="utf-8")))
    sha = digest(file)
    write_json(note, sha)
    return sha


def local_folder(spec: BaseSpec) -> Path:
    """Where the files of a base are on this machine, fetched first if they are not. They are not looked at."""
    if not is_remote(spec.folder):
        folder = Path(spec.folder)
        if not folder.is_dir():
            raise InputError(f"base '{spec.name}': folder {folder} is missing; {_how_to_get(spec)}")
        return folder
    place = str(spec.folder)
    return _from_hub(spec, place.removeprefix(HUB)) if place.startswith(HUB) else _from_store(spec, place)


def _how_to_get(spec: BaseSpec) -> str:
    return (
        "make it with `photoflux pretrain`"
        if spec.name == "pocket"
        else "copy it there or correct `folder` in the spec"
    )


def _from_hub(spec: BaseSpec, repository: str) -> Path:
    """Files of the manifest from a hub repository `owner/name@revision`, into the hub's own cache."""
    from huggingface_hub import snapshot_download

    name, _, revision = repository.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=sorted(spec.manifest)))
    except Exception as error:
        raise InputError(
            f"base '{spec.name}': {name} cannot be fetched from the hub ({type(error).__name__}); accept its terms and set "
            "HF_TOKEN, or copy the files into a folder or bucket and name that in the spec"
        ) from error


def _from_store(spec: BaseSpec, place: str) -> Path:
    """Files of the manifest from any fsspec place, checked on the way, into a cache folder that is whole or absent."""
    target = get_settings().cache_dir / "bases" / spec.hash[:32]
    if target.is_dir():
        return target
    import fsspec

    with _fresh_folder(target) as partial:
        try:
            store, root = fsspec.core.url_to_fs(place)
            _copy(spec, store, root, partial)
        except InputError:
            raise
        except (OSError, ImportError, ValueError) as error:
            raise InputError(
                f"base '{spec.name}': {place} cannot be fetched ({error}); check the address and your access"
            ) from error
    return target


def _copy(spec: BaseSpec, store: AbstractFileSystem, root: str, into: Path) -> None:
    for name, sha in spec.manifest.items():
        file = into / name
        file.parent.mkdir(parents=True, exist_ok=True)
        log.info("fetching %s of base '%s'", name, spec.name)
        store.get_file(f"{root.rstrip('/')}/{name}", str(file))
        if digest(file) != sha:
            raise InputError(
                f"base '{spec.name}': {name} at {spec.folder} is not the file its spec pins; replace it there"
            )


@contextmanager
def _fresh_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that becomes it when the block ends well, and vanishes when not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield partial
        if not target.is_dir():
            os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def pin(path: Path) -> Path:
    """Write the SHA-256 of every file now in the spec's local folder into its manifest."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    folder = Path(locate(content["folder"], path.parent))
    if not folder.is_dir():
        raise InputError(f"{path}: pinning needs the files in a local folder; {folder} is none")
    content["manifest"] = files_of(folder)
    return write_text(path, yaml.safe_dump(content, sort_keys=False, width=110))


def files_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a base by its path below the folder; nothing hidden, nor what a killed writer left."""
    names = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return {name.as_posix(): digest(folder / name) for name in names if not any(p.startswith(".") for p in name.parts)}


if __name__ == "__main__":
    import sys

    pin(Path(sys.argv[1]))
