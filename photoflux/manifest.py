"""Single-file artifacts: a deterministic tar with its `manifest.json` first."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from photoflux.errors import InputError

MANIFEST = "manifest.json"


def write_tar(path: Path, *, files: Mapping[str, bytes | Path], manifest: Mapping[str, Any]) -> str:
    """Write `files` and the manifest to `path` atomically; equal content gives equal bytes.

    Returns the SHA-256 (hex) of the written file.
    """
    with replacing(path) as partial:
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            _add(tar, MANIFEST, to_json(manifest).encode())
            for name in sorted(files):
                content = files[name]
                _add(tar, name, content.read_bytes() if isinstance(content, Path) else content)
        return digest(partial)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an artifact. Raises InputError when the file is not one of ours."""
    try:
        with tarfile.open(path, "r:") as tar:
            member = tar.extractfile(MANIFEST)
            return json.loads(member.read()) if member else {}
    except (OSError, tarfile.TarError, KeyError, ValueError) as error:
        raise InputError(
            f"{path.name}: not a readable PhotoFlux artifact ({error}); run the step that makes it again"
        ) from error


def unpack(path: Path, into: Path) -> dict[str, Any]:
    """Extract regular files only (no links, devices or paths that leave `into`); returns the manifest."""
    manifest = read_manifest(path)
    into.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile() and member.name != MANIFEST:
                    _extract(tar, member, into)
    except (OSError, ValueError, tarfile.TarError) as error:
        raise InputError(f"{path.name}: cannot be unpacked ({error}); run the step that makes it again") from error
    return manifest


def digest(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def to_json(value: Any) -> str:
    """The JSON form of all documents: sorted keys, indented, no NaN, trailing newline."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> Path:
    """Write JSON atomically."""
    return write_text(path, to_json(value))


def write_text(path: Path, text: str) -> Path:
    """Write text atomically, as UTF-8."""
    return write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file atomically."""
    with replacing(path) as partial:
        partial.write_bytes(content)
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path of the same name to write; it replaces `path` when the block ends, and is deleted when it raises.

    It lies in a temporary folder beside `path`, so that several processes may write one path at once: the last one to end
    wins, and no reader sees an incomplete file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".photoflux-", dir=path.parent) as scratch:
        partial = Path(scratch) / path.name
        yield partial
        os.replace(partial, path)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, into: Path) -> None:
    """`extractall(filter="data")` would do, but came only with Python 3.11.4."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{member.name!r} leaves the folder")
    content, target = tar.extractfile(member), into / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if content is not None:
        with content, target.open("wb") as file:
            shutil.copyfileobj(content, file)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(content), 0, 0o644
    tar.addfile(info, io.BytesIO(content))
