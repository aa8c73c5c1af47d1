"""How a step opens its inputs and commits its outputs; what is sealed, and how, is decided by a key URI.

`plain://<anything>` leaves artifacts readable: sample data and machines whose disk is the owner's own.
`vault://<owner>/<run>` seals them under that owner's keyset, which no step ever sees more of than its name, and binds them
to that run: what another run of the same owner made does not open in their place. `vault://<owner>` is for what belongs to
no run, and for what runs made before they had keys of their own.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from photoflux.errors import InputError
from photoflux.settings import get_settings
from photoflux.vault.blobs import open_store
from photoflux.vault.kek import LOCAL, KeyFileExists, create_kek
from photoflux.vault.keyring import Keyring, OwnerErased, check_owner
from photoflux.vault.sealed import Label, seal, unseal

VAULT = "vault://"
RUN = re.compile(r"[a-z0-9][a-z0-9-]{0,126}")


@dataclass(frozen=True)
class VaultKey:
    """`vault://<owner>/<run>` in its parts; `run` is empty for what belongs to no run."""

    owner: str
    run: str = ""

    def __str__(self) -> str:
        return f"{VAULT}{self.owner}/{self.run}" if self.run else f"{VAULT}{self.owner}"

    @classmethod
    def parse(cls, key: str) -> VaultKey:
        """Raises InputError for a URI of another kind, an owner or a run that cannot be one."""
        owner, separator, run = key.removeprefix(VAULT).partition("/")
        if not key.startswith(VAULT):
            raise InputError(f"key '{key}': is no sealing key; use {VAULT}<owner>/<run>")
        if separator and not RUN.fullmatch(run):
            raise InputError(f"key '{key}': a run is 1 to 127 of a-z, 0-9 and '-', as in {VAULT}<owner>/<run>")
        return cls(check_owner(owner), run)


def key_for_run(key: str, run: str) -> str:
    """The key URI that a run's steps are given: an owner's own is bound to the run, any other stays as it is."""
    if not key.startswith(VAULT):
        return key
    return key if VaultKey.parse(key).run else str(VaultKey.parse(f"{key}/{run}"))


class Sealer(Protocol):
    """Turns a plaintext file into the stored one, and back."""

    private: bool
    """Whether plaintext must stay out of the folder of the stored file."""

    def seal(self, unsealed: Path, stored: Path) -> None: ...

    def unseal(self, stored: Path, unsealed: Path) -> None: ...

    def check_not_erased(self) -> None:
        """Raises OwnerErased where the owner was erased while the file was sealed."""


class IdentitySealer:
    """Stored bytes are the plaintext bytes."""

    private = False

    def seal(self, unsealed: Path, stored: Path) -> None:
        os.replace(unsealed, stored)

    def unseal(self, stored: Path, unsealed: Path) -> None:
        unsealed.symlink_to(stored.resolve())

    def check_not_erased(self) -> None:
        return


class OwnerSealer:
    """Stored bytes are ciphertext under one owner's keyset, bound to the run and to the file's name.

    `dataset.tar` opens neither as `adapter.tar` nor as another run's `dataset.tar`.
    """

    private = True

    def __init__(self, key: VaultKey) -> None:
        self.key, self.keyring = key, open_keyring()

    def seal(self, unsealed: Path, stored: Path) -> None:
        with unsealed.open("rb") as source, stored.open("wb") as sink:
            seal(source, sink, label=self._label(unsealed), keyring=self.keyring)
            sink.flush()
            os.fsync(sink.fileno())

    def unseal(self, stored: Path, unsealed: Path) -> None:
        with stored.open("rb") as source, unsealed.open("wb") as sink:
            unseal(source, sink, label=self._label(stored), keyring=self.keyring)

    def check_not_erased(self) -> None:
        self.keyring.check_not_erased(self.key.owner)

    def _label(self, file: Path) -> Label:
        stem = file.name.split(".")[0]
        return Label(self.key.owner, "artifact", f"{self.key.run}/{stem}" if self.key.run else stem)


def sealer(key: str) -> Sealer:
    """The sealer a key URI names. Raises InputError for an unknown scheme."""
    if key.startswith("plain://"):
        return IdentitySealer()
    if key.startswith(VAULT):
        return OwnerSealer(VaultKey.parse(key))
    raise InputError(f"key '{key}': no such kind of key here; use plain://<name> or {VAULT}<owner>/<run>")


def open_keyring() -> Keyring:
    """The keyring of the settings. On one machine its key file is made at first use; in production it never is."""
    settings = get_settings()
    local_uri = f"{LOCAL}{(settings.state_dir / 'kek').resolve()}"
    uri = settings.kek_uri or local_uri
    if uri.startswith(LOCAL) and settings.environment == "production":
        raise InputError(
            "PHOTOFLUX_KEK_URI: production wraps keys with Cloud KMS; give gcp-kms://projects/…/cryptoKeys/name"
        )
    if not settings.kek_uri and not (settings.state_dir / "kek").exists():
        with suppress(KeyFileExists):  # another process was first
            create_kek(uri)
    return Keyring(open_store(settings.keyring or str(settings.state_dir / "keyring")), uri, local_uri)


@contextmanager
def opened(path: Path, *, key: str) -> Iterator[Path]:
    """A readable plaintext path of the artifact `path`, gone when the block ends."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; run the step that makes it first")
    with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        unsealed = Path(scratch) / path.name
        sealer(key).unseal(path, unsealed)
        yield unsealed


@contextmanager
def committed(path: Path, *, key: str) -> Iterator[Path]:
    """A temporary path to write; it becomes `path`, sealed, when the block ends well, and is removed when not.

    Raises OwnerErased, and leaves no file, where the owner was erased, also while it was sealed.
    """
    sealing = sealer(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        store_scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix=".photoflux-", dir=path.parent))
        # Private plaintext goes to the process's own scratch folder: the stored file's folder may be shared or backed up.
        scratch = tempfile.TemporaryDirectory(prefix="photoflux-") if sealing.private else nullcontext(store_scratch)
        unsealed, stored = Path(stack.enter_context(scratch)) / path.name, Path(store_scratch) / "sealed"
        yield unsealed
        if not unsealed.is_file():
            raise FileNotFoundError(f"nothing was written for {path.name}")
        sealing.seal(unsealed, stored)
        os.replace(stored, path)
        try:
            sealing.check_not_erased()
        except OwnerErased:
            path.unlink(missing_ok=True)
            raise
