"""Photo sources besides a folder: DVC-tracked and uploaded sets. Imports no kfp, since a running step imports it."""

from __future__ import annotations

import hashlib
import re
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from photoflux.errors import InputError
from photoflux.photos.sets import SCHEME, fetch_set
from photoflux.steps.import_photos import expand_home

UPLOADED = "the upload"


@contextmanager
def fetched_source(source: str, *, key: str) -> Iterator[tuple[str, str]]:
    """A folder with the set that `source` names, and where that came from, as artifacts record it.

    `dvc:REPO@REV:PATH`, recorded with its revision resolved, and `blob:SET_ID` (photos that the owner of `key` uploaded; a set
    is made for one run, so that its id tells nothing of them) are fetched to a scratch folder, gone when the block ends;
    any other source is yielded unchanged, with an empty origin.
    """
    if source.startswith(SCHEME):
        with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
            fetch_set(source, key=key, into=Path(scratch))
            yield scratch, UPLOADED
        return
    if not source.startswith("dvc:"):
        yield source, ""
        return
    repo, rev, path = parse_dvc(source)
    with tempfile.TemporaryDirectory(prefix="photoflux-dvc-") as scratch:
        folder = Path(scratch) / "photos"
        commit = _fetch(repo, rev=rev, path=path, into=folder)
        yield str(folder), f"dvc:{_public(repo)}@{commit}:{path}"


def source_state(source: str) -> str:
    """A string that changes when the photos of a source do: then `import_data` is not taken from the cache.

    Uploaded sets and commits never change; a branch may have moved, so that the string is a new one each time.
    """
    folder = expand_home(Path(source))
    if source.startswith(SCHEME) or re.fullmatch(r"dvc:.*@[0-9a-f]{40}:.*", source):
        return source
    if source.startswith("dvc:") or not folder.is_dir():
        return uuid.uuid4().hex
    listed = sorted(
        (file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in folder.iterdir() if file.is_file()
    )
    return hashlib.sha256(repr(listed).encode()).hexdigest()


def parse_dvc(source: str) -> tuple[str, str, str]:
    """`dvc:REPO@REV:PATH` → (repo, rev, path), split at the last `@` and the `:` after it."""
    repo, at, rest = source.removeprefix("dvc:").rpartition("@")
    rev, colon, path = rest.partition(":")
    if not (at and colon and repo and rev and path):
        raise InputError(f"{source}: write dvc:REPO@REV:PATH, such as dvc:.@main:data/samples/dog")
    return repo, rev, path.strip("/")


def _fetch(repo: str, *, rev: str, path: str, into: Path) -> str:
    """Download a DVC- or git-tracked folder at a revision; returns the commit it stands for."""
    from dvc.api import DVCFileSystem

    try:
        filesystem = DVCFileSystem(repo, rev=rev)
        if filesystem.isdir(path):
            filesystem.get(path, str(into), recursive=True)
            return str(filesystem.repo.get_rev())
    except Exception as error:  # git, the remote and DVC's layers each raise types of their own
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"cannot fetch {path} from {repo} at {rev} ({reason}); "
            "check path and revision, and that the repository and its remote can be reached"
        ) from error
    raise InputError(f"{path}: no such folder in {repo} at {rev}; check path and revision")


def _public(repo: str) -> str:
    """The repository as records may name it: no login of a URL, no path of this machine."""
    here = Path(repo)
    return here.name if here.is_absolute() and here.is_dir() else re.sub(r"//[^/@]*@", "//", repo)
