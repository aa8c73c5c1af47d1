from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from photoflux.vault.blobs import CloudStore, FolderStore
from photoflux.vault.kek import LOCAL, create_kek
from photoflux.vault.keyring import Keyring
from tests.cloud import GOOGLE_KEY, cloud_kms, new_bucket, storage_client


def new_kek(folder: Path, name: str = "kek") -> str:
    uri = f"{LOCAL}{folder / name}"
    create_kek(uri)
    return uri


@pytest.fixture
def local_keyring(tmp_path: Path) -> Keyring:
    return Keyring(FolderStore(tmp_path / "keyring"), new_kek(tmp_path))


@pytest.fixture(params=["folder and key file", "bucket and Cloud KMS"])
def keyring(request: pytest.FixtureRequest) -> Iterator[Keyring]:
    if request.param == "folder and key file":
        yield request.getfixturevalue("local_keyring")
        return
    emulator = request.getfixturevalue("emulator")
    with cloud_kms(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", emulator)
        yield Keyring(CloudStore(storage_client(emulator), new_bucket(emulator)), f"gcp-kms://{GOOGLE_KEY}")
