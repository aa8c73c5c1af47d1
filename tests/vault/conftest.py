from __future__ import annotations

from pathlib import Path

import pytest

from photoflux.vault.blobs import FolderStore
from photoflux.vault.kek import LOCAL, create_kek
from photoflux.vault.keyring import Keyring


def new_kek(folder: Path, name: str = "kek") -> str:
    uri = f"{LOCAL}{folder / name}"
    create_kek(uri)
    return uri


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring(FolderStore(tmp_path / "keyring"), new_kek(tmp_path))
