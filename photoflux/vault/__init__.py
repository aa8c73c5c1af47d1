"""How a step opens its inputs and commits its outputs; what is sealed, and how, is decided by a key URI.

`plain://<anything>` leaves artifacts readable: sample data and machines whose disk is the owner's own.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from photoflux.errors import InputError


class Sealer(Protocol):
    """Turns a plaintext file into the stored one, and back."""

    def seal(self, plain: Path, stored: Path) -> None: ...

    def unseal(self, stored: Path, plain: Path) -> None: ...


class Plain:
    """The identity: stored bytes are the plaintext bytes."""

    def seal(self, plain: Path, stored: Path) -> None:
        os.replace(plain, stored)

    def unseal(self, stored: Path, plain: Path) -> None:
        plain.symlink_to(stored.resolve())


def sealer(key: str) -> Sealer:
    """The sealer a key URI names. Raises InputError for an unknown scheme."""
    scheme, separator, _ = key.partition("://")
    if not separator or scheme != "plain":
        raise InputError(f"key '{key}': no such kind of key here; use plain://<name>")
    return Plain()


@contextmanager
def opened(path: Path, *, key: str) -> Iterator[Path]:
    """A readable plaintext path of the artifact `path`, gone when the block ends."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; run the step that makes it first")
    with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        plain = Path(scratch) / path.name
        sealer(key).unseal(path, plain)
        yield plain


@contextmanager
def committed(path: Path, *, key: str) -> Iterator[Path]:
    """A temporary path to write; it becomes `path`, sealed, when the block ends well, and is removed when not."""
    chosen = sealer(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".photoflux-", dir=path.parent) as scratch:
        plain, stored = Path(scratch) / path.name, Path(scratch) / "sealed"
        yield plain
        if not plain.is_file():
            raise FileNotFoundError(f"nothing was written for {path.name}")
        chosen.seal(plain, stored)
        os.replace(stored, path)
