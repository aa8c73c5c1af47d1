"""How a step opens its inputs and commits its outputs; what is sealed, and how, is decided by a key URI.

`plain://<anything>` leaves artifacts readable: sample data and machines whose disk is the owner's own.
`vault://<owner>` seals them under that owner's keyset, which no step ever sees more of than its name.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Protocol

from photoflux.errors import InputError
from photoflux.settings import get_settings
from photoflux.vault.blobs import open_store
from photoflux.vault.kek import LOCAL, KeyFileExists, create_kek
from photoflux.vault.keyring import Keyring, OwnerErased, check_owner
from photoflux.vault.sealed import Label, seal, unseal


class Sealer(Protocol):
    """Turns a plaintext file into the stored one, and back. Plaintext that is `private` is never written beside it."""

    private: bool

    def seal(self, plain: Path, stored: Path) -> None: ...

    def unseal(self, stored: Path, plain: Path) -> None: ...

    def confirm(self) -> None:
        """Raises OwnerErased where the owner of what was sealed was erased meanwhile."""


class Plain:
    """The identity: stored bytes are the plaintext bytes."""

    private = False

    def seal(self, plain: Path, stored: Path) -> None:
        os.replace(plain, stored)

    def unseal(self, stored: Path, plain: Path) -> None:
        plain.symlink_to(stored.resolve())

    def confirm(self) -> None:
        return


class Sealed:
    """Ciphertext of one owner, bound to what the file is: `dataset.tar` does not open as `adapter.tar`."""

    private = True

    def __init__(self, owner: str) -> None:
        self.owner, self.keyring = check_owner(owner), open_keyring()

    def seal(self, plain: Path, stored: Path) -> None:
        with plain.open("rb") as source, stored.open("wb") as sink:
            seal(source, sink, label=self._label(plain), keyring=self.keyring)
            sink.flush()
            os.fsync(sink.fileno())

    def unseal(self, stored: Path, plain: Path) -> None:
        with stored.open("rb") as source, plain.open("wb") as sink:
            unseal(source, sink, label=self._label(stored), keyring=self.keyring)

    def confirm(self) -> None:
        self.keyring.check_not_erased(self.owner)

    def _label(self, file: Path) -> Label:
        return Label(self.owner, "artifact", file.name.split(".")[0])


def sealer(key: str) -> Sealer:
    """The sealer a key URI names. Raises InputError for an unknown scheme."""
    scheme, separator, name = key.partition("://")
    if separator and scheme == "plain":
        return Plain()
    if separator and scheme == "vault":
        return Sealed(name)
    raise InputError(f"key '{key}': no such kind of key here; use plain://<name> or vault://<owner>")


def open_keyring() -> Keyring:
    """The keyring of the settings. On one machine its key file is made at first use; in production it never is."""
    settings = get_settings()
    uri = settings.kek_uri or f"{LOCAL}{(settings.state_dir / 'kek').resolve()}"
    if uri.startswith(LOCAL) and settings.environment == "production":
        raise InputError(
            "PHOTOFLUX_KEK_URI: production wraps keys with Cloud KMS; give gcp-kms://projects/…/cryptoKeys/name"
        )
    if not settings.kek_uri and not (settings.state_dir / "kek").exists():
        with suppress(KeyFileExists):  # another process was first
            create_kek(uri)
    return Keyring(open_store(settings.keyring or str(settings.state_dir / "keyring")), uri)


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
    """A temporary path to write; it becomes `path`, sealed, when the block ends well, and is removed when not.

    Raises OwnerErased, and leaves no file, where the owner was erased, also while it was sealed.
    """
    chosen = sealer(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        beside = stack.enter_context(tempfile.TemporaryDirectory(prefix=".photoflux-", dir=path.parent))
        own = tempfile.TemporaryDirectory(prefix="photoflux-") if chosen.private else nullcontext(beside)
        plain, stored = Path(stack.enter_context(own)) / path.name, Path(beside) / "sealed"
        yield plain
        if not plain.is_file():
            raise FileNotFoundError(f"nothing was written for {path.name}")
        chosen.seal(plain, stored)
        os.replace(stored, path)
        try:
            chosen.confirm()
        except OwnerErased:
            path.unlink(missing_ok=True)
            raise
