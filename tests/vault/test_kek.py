from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from photoflux.errors import InputError, PhotoFluxError
from photoflux.vault.blobs import FolderStore
from photoflux.vault.kek import LOCAL, KeyFileExists, create_kek, destroy_kek, open_kek
from photoflux.vault.keyring import Keyring
from tests.cloud import GOOGLE_KEY, CloudKms, cloud_kms
from tests.vault.conftest import new_kek


def test_a_key_file_wraps_and_unwraps(tmp_path: Path):
    kek = open_kek(new_kek(tmp_path))
    assert kek.decrypt(kek.encrypt(b"keyset", b"bound"), b"bound") == b"keyset"


def test_a_key_file_is_its_owners_alone_and_never_replaced(tmp_path: Path):
    uri = new_kek(tmp_path)
    before = (tmp_path / "kek").read_bytes()
    assert stat.S_IMODE((tmp_path / "kek").stat().st_mode) == 0o600
    with pytest.raises(KeyFileExists, match="exists already"):
        create_kek(uri)
    assert (tmp_path / "kek").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path):
    uri = new_kek(tmp_path)
    (tmp_path / "kek").chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        open_kek(uri)


def test_a_missing_and_a_damaged_key_file_are_named(tmp_path: Path):
    with pytest.raises(InputError, match="kek is missing"):
        open_kek(f"{LOCAL}{tmp_path / 'kek'}")
    uri = new_kek(tmp_path)
    (tmp_path / "kek").write_text("{}")
    with pytest.raises(InputError, match="damaged"):
        open_kek(uri)


@pytest.mark.parametrize(
    "uri", ["", "kek", "aws-kms://key", f"{LOCAL}relative/kek", f"gcp-kms://{GOOGLE_KEY}/cryptoKeyVersions/1"]
)
def test_other_addresses_are_refused(uri: str):
    with pytest.raises(InputError, match="key-encrypting key"):
        open_kek(uri)


def test_a_cloud_key_is_neither_made_nor_destroyed_here():
    for verb in (create_kek, destroy_kek):
        with pytest.raises(InputError, match="Cloud KMS"):
            verb(f"gcp-kms://{GOOGLE_KEY}")


def test_a_destroyed_key_file_is_gone(tmp_path: Path):
    uri = new_kek(tmp_path)
    destroy_kek(uri)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def cloud() -> Iterator[CloudKms]:
    with cloud_kms() as service:
        yield service


def test_cloud_kms_wraps_keysets_by_the_same_path(cloud: CloudKms, tmp_path: Path):
    keyring = Keyring(FolderStore(tmp_path), f"gcp-kms://{GOOGLE_KEY}")
    version = keyring.create("ada")
    assert Keyring(FolderStore(tmp_path), keyring.kek_uri).primitive("ada", version)
    del cloud.keys[GOOGLE_KEY]
    with pytest.raises(PhotoFluxError, match="cannot be unwrapped"):
        Keyring(FolderStore(tmp_path), keyring.kek_uri).primitive("ada", version)
