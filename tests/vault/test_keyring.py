from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from photoflux.errors import InputError, PhotoFluxError
from photoflux.vault import keyring as keyrings
from photoflux.vault.blobs import FolderStore
from photoflux.vault.kek import destroy_kek
from photoflux.vault.keyring import SERVICE, KeyMissing, Keyring, OwnerErased
from photoflux.vault.sealed import Label, seal_bytes, unseal_bytes
from tests.vault.conftest import new_kek

LABEL = Label("ada", "photo", "7")


def another(keyring: Keyring) -> Keyring:
    """The same keyring in another process: nothing is kept in memory."""
    return Keyring(keyring.store, keyring.kek_uri)


def test_every_owner_has_keys_of_their_own(keyring: Keyring):
    assert keyring.create("ada") == 1 and keyring.create("bob") == 1 and keyring.create("ada") == 2
    assert keyring.versions("ada") == [1, 2]
    assert keyring.ensure("ada") == 2 and keyring.ensure("eve") == 1


def test_an_owner_is_not_another_whose_name_begins_alike(keyring: Keyring):
    keyring.create("ada-2")
    assert keyring.versions("ada") == []
    keyring.create("ada")
    assert keyring.erase("ada") == 1 and keyring.versions("ada-2") == [1]


def test_what_an_old_version_sealed_stays_open(keyring: Keyring):
    sealed = seal_bytes(b"old", label=LABEL, keyring=keyring)
    keyring.create("ada")
    newer = seal_bytes(b"new", label=LABEL, keyring=keyring)
    assert [unseal_bytes(data, label=LABEL, keyring=another(keyring)) for data in (sealed, newer)] == [b"old", b"new"]


def test_after_erasure_nothing_opens_not_even_here(keyring: Keyring):
    sealed = seal_bytes(b"face", label=LABEL, keyring=keyring)
    assert keyring.erase("ada") == 1
    for one in (keyring, another(keyring)):
        with pytest.raises(KeyMissing, match="ada"):
            unseal_bytes(sealed, label=LABEL, keyring=one)
    assert keyring.erase("ada") == 0, "erasing again is no error"
    for one in (keyring, another(keyring)):
        with pytest.raises(OwnerErased, match="owner ada was erased"):
            one.create("ada")
    assert keyring.versions("ada") == []


def test_the_services_own_keys_are_not_erased(keyring: Keyring):
    keyring.create(SERVICE)
    with pytest.raises(InputError, match="the service's own keys"):
        keyring.erase(SERVICE)
    assert keyring.versions(SERVICE) == [1]


def test_another_process_forgets_an_erased_owner_in_time(keyring: Keyring, monkeypatch: pytest.MonkeyPatch):
    sealed, other = seal_bytes(b"face", label=LABEL, keyring=keyring), another(keyring)
    unseal_bytes(sealed, label=LABEL, keyring=other)
    keyring.erase("ada")
    assert unseal_bytes(sealed, label=LABEL, keyring=other) == b"face", "within the time that is told"
    now = keyrings.time.monotonic()
    monkeypatch.setattr(keyrings.time, "monotonic", lambda: now + keyrings.CACHE_S + 1)
    with pytest.raises(KeyMissing):
        unseal_bytes(sealed, label=LABEL, keyring=other)


def test_opened_keys_are_bounded(keyring: Keyring, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keyrings, "CACHE_SIZE", 3)
    for number in range(6):
        keyring.primitive(f"u{number}", keyring.create(f"u{number}"))
    assert [owner for owner, _ in keyring._primitives] == ["u3", "u4", "u5"]


def test_a_new_epoch_leaves_backups_shut(local_keyring: Keyring, tmp_path: Path):
    """A backup from before an erasure opens nothing once the key of its epoch is destroyed."""
    sealed = {
        owner: seal_bytes(owner.encode(), label=Label(owner, "photo", "1"), keyring=local_keyring)
        for owner in ("ada", "bob")
    }
    shutil.copytree(tmp_path / "keyring", tmp_path / "backup")
    local_keyring.erase("ada")
    old, new = local_keyring.kek_uri, Keyring(local_keyring.store, new_kek(tmp_path, "kek-2"))
    assert new.rewrap() == 1 and new.rewrap() == 0
    destroy_kek(old)
    assert unseal_bytes(sealed["bob"], label=Label("bob", "photo", "1"), keyring=another(new)) == b"bob"
    restored = Keyring(FolderStore(tmp_path / "backup"), new.kek_uri)
    with pytest.raises(PhotoFluxError, match="missing"):
        unseal_bytes(sealed["ada"], label=Label("ada", "photo", "1"), keyring=restored)


def test_an_interrupted_rewrap_loses_nothing(local_keyring: Keyring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sealed = seal_bytes(b"face", label=LABEL, keyring=local_keyring)
    new = Keyring(local_keyring.store, new_kek(tmp_path, "kek-2"))
    with monkeypatch.context() as patch, pytest.raises(OSError, match="cut"):
        patch.setattr(FolderStore, "delete", lambda *_: (_ for _ in ()).throw(OSError("cut")))
        new.rewrap()
    assert unseal_bytes(sealed, label=LABEL, keyring=another(new)) == b"face"
    assert new.rewrap() == 1
    assert len(list(local_keyring.store.list())) == 1
    assert unseal_bytes(sealed, label=LABEL, keyring=another(new)) == b"face"


def test_a_keyset_does_not_open_as_another_owners(keyring: Keyring, tmp_path: Path):
    keyring.create("ada")
    keyring.create("bob")
    name = f"keysets/ada/{next(keyring.store.list('keysets/ada/')).rsplit('/', 1)[1]}"
    stolen = name.replace("/ada/", "/bob/")
    content = keyring.store.get(name)
    keyring.store.delete(stolen)
    keyring.store.put_new(stolen, content)
    with pytest.raises(PhotoFluxError, match="cannot be unwrapped"):
        another(keyring).primitive("bob", 1)


@pytest.mark.parametrize("owner", ["", "Ada", "a/b", "../x", "-a", "a" * 64, "ä", "a\n"])
def test_an_owner_is_an_id(keyring: Keyring, owner: str):
    with pytest.raises(InputError, match="owner"):
        keyring.create(owner)
