from __future__ import annotations

from pathlib import Path

import pytest

from photoflux.errors import InputError, PhotoFluxError
from photoflux.vault import VaultKey, committed, key_for_run, open_keyring, opened
from photoflux.vault.blobs import FolderStore
from photoflux.vault.kek import LOCAL, create_kek
from photoflux.vault.keyring import KeyMissing, Keyring
from photoflux.vault.sealed import SealBroken
from tests.canaries import files_below, holding


def test_a_committed_file_can_be_opened(tmp_path: Path):
    with committed(tmp_path / "deep" / "a.tar", key="plain://test") as unsealed:
        unsealed.write_bytes(b"photos")
    with opened(tmp_path / "deep" / "a.tar", key="plain://test") as unsealed:
        assert unsealed.read_bytes() == b"photos"
        assert unsealed.name == "a.tar"
    assert not unsealed.exists()


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(b"old")
    with pytest.raises(RuntimeError), committed(tmp_path / "a.tar", key="plain://test") as unsealed:
        unsealed.write_bytes(b"half")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar"]
    assert (tmp_path / "a.tar").read_bytes() == b"old"


def test_writing_nothing_is_an_error(tmp_path: Path):
    nothing = pytest.raises(FileNotFoundError, match=r"nothing was written for a\.tar")
    with nothing, committed(tmp_path / "a.tar", key="plain://test"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["", "demo", "gcp-kms://x"])
def test_an_unknown_key_is_refused_before_anything_is_written(tmp_path: Path, key: str):
    with pytest.raises(InputError, match="no such kind of key"), committed(tmp_path / "a", key=key):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_missing_input_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"), opened(tmp_path / "a.tar", key="plain://test"):
        pass


def test_a_sealed_artifact_opens_for_its_owner_only(tmp_path: Path):
    with committed(tmp_path / "dataset.tar", key="vault://ada") as unsealed:
        unsealed.write_bytes(b"photos" * 1000)
    assert b"photos" not in (tmp_path / "dataset.tar").read_bytes()
    with opened(tmp_path / "dataset.tar", key="vault://ada") as unsealed:
        assert unsealed.read_bytes() == b"photos" * 1000
    for key in ("vault://bob", "vault://ada-2"):
        with pytest.raises(PhotoFluxError), opened(tmp_path / "dataset.tar", key=key):
            pass


def test_a_sealed_artifact_does_not_open_as_another(tmp_path: Path):
    with committed(tmp_path / "dataset.tar", key="vault://ada") as unsealed:
        unsealed.write_bytes(b"photos")
    (tmp_path / "dataset.tar").rename(tmp_path / "adapter.tar")
    with pytest.raises(SealBroken, match="something else"), opened(tmp_path / "adapter.tar", key="vault://ada"):
        pass


def sealed(file: Path, content: bytes, *, key: str) -> Path:
    with committed(file, key=key) as unsealed:
        unsealed.write_bytes(content)
    return file


def test_an_artifact_does_not_open_in_the_place_of_another_runs(tmp_path: Path):
    """Of one owner, under one keyset, of the same name: only the run that made it can open it."""
    first, second = (
        sealed(tmp_path / run / "dataset.tar", run.encode(), key=f"vault://ada/{run}") for run in ("run-1", "run-2")
    )
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    for file, run in ((first, "run-1"), (second, "run-2")):
        for key in (f"vault://ada/{run}", "vault://ada"):
            with pytest.raises(SealBroken, match="another run or another owner"), opened(file, key=key):
                pass
    with opened(first, key="vault://ada/run-2") as unsealed:
        assert unsealed.read_bytes() == b"run-2"


def test_what_was_sealed_before_runs_had_keys_opens_with_its_own_key_alone(tmp_path: Path):
    """The registry keeps the key of each version beside it, and erasing an owner closes both kinds."""
    before = sealed(tmp_path / "old" / "adapter.tar", b"old", key="vault://ada")
    after = sealed(tmp_path / "new" / "adapter.tar", b"new", key="vault://ada/run-1")
    with opened(before, key="vault://ada") as unsealed:
        assert unsealed.read_bytes() == b"old"
    with pytest.raises(SealBroken), opened(before, key="vault://ada/run-1"):
        pass
    assert open_keyring().owners() == ["ada"]
    open_keyring().erase("ada")
    for file, key in ((before, "vault://ada"), (after, "vault://ada/run-1")):
        with pytest.raises(KeyMissing), opened(file, key=key):
            pass


@pytest.mark.parametrize("key", ["vault://ada/", "vault://ada/a/b", "vault://ada/Run", "vault:///run", "vault://"])
def test_a_run_or_owner_that_cannot_be_one_is_refused(tmp_path: Path, key: str):
    with pytest.raises(InputError, match=r"a-z, 0-9 and '-'"), committed(tmp_path / "a", key=key):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_key_is_bound_to_a_run_once():
    assert key_for_run("vault://ada", "run-1") == "vault://ada/run-1" == str(VaultKey("ada", "run-1"))
    assert key_for_run("vault://ada/run-1", "run-2") == "vault://ada/run-1"
    assert key_for_run("plain://demo", "run-1") == "plain://demo"
    assert VaultKey.parse("vault://ada") == VaultKey("ada")
    with pytest.raises(InputError, match="no sealing key"):
        VaultKey.parse("plain://demo")


def test_an_erased_owners_artifacts_stay_shut(tmp_path: Path):
    with committed(tmp_path / "adapter", key="vault://ada") as unsealed:
        unsealed.write_bytes(b"weights")
    open_keyring().erase("ada")
    with pytest.raises(KeyMissing), opened(tmp_path / "adapter", key="vault://ada"):
        pass


def test_production_wants_cloud_kms(monkeypatch: pytest.MonkeyPatch, own_state: Path):
    monkeypatch.setenv("PHOTOFLUX_ENVIRONMENT", "production")
    with pytest.raises(InputError, match="PHOTOFLUX_KEK_URI"):
        open_keyring()
    assert not list(own_state.iterdir()), "no key was made because none was named"


def test_a_named_key_file_is_not_made_by_the_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PHOTOFLUX_KEK_URI", f"local-kms://{tmp_path / 'kek'}")
    with pytest.raises(InputError, match="missing"), committed(tmp_path / "a", key="vault://ada") as unsealed:
        unsealed.write_bytes(b"x")
    assert not (tmp_path / "kek").exists() and not (tmp_path / "a").exists()


@pytest.mark.parametrize("before", [False, True], ids=["named as it is now", "named by where it was"])
def test_what_is_sealed_opens_where_the_state_folder_was_moved(
    tmp_path: Path, own_state: Path, monkeypatch: pytest.MonkeyPatch, before: bool
):
    """The keysets of older versions name the key file by the folder that it was in."""
    if before:
        create_kek(f"{LOCAL}{own_state / 'kek'}")
        Keyring(FolderStore(own_state / "keyring"), f"{LOCAL}{own_state / 'kek'}").create("ada")
    with committed(tmp_path / "a.tar", key="vault://ada") as unsealed:
        unsealed.write_bytes(b"photos")
    monkeypatch.setenv("PHOTOFLUX_STATE_DIR", str(own_state.rename(tmp_path / "moved")))
    named = holding([str(own_state).encode()], files_below(tmp_path / "moved" / "keyring"))
    assert bool(named) == before
    with opened(tmp_path / "a.tar", key="vault://ada") as unsealed:
        assert unsealed.read_bytes() == b"photos"
    with committed(tmp_path / "b.tar", key="vault://ada") as unsealed:
        unsealed.write_bytes(b"more")
    assert open_keyring().rewrap() == before
    assert holding([str(own_state).encode()], files_below(tmp_path / "moved")) == []


def test_another_installations_key_file_opens_nothing(tmp_path: Path, own_state: Path):
    with committed(tmp_path / "a.tar", key="vault://ada") as unsealed:
        unsealed.write_bytes(b"photos")
    (own_state / "kek").unlink()
    create_kek(f"{LOCAL}{own_state / 'kek'}")
    with pytest.raises(PhotoFluxError, match="cannot be unwrapped"), opened(tmp_path / "a.tar", key="vault://ada"):
        pass


def test_plaintext_that_is_sealed_never_lies_beside_it(tmp_path: Path):
    """A killed step leaves its temporary files, and pipelines keep their artifacts where many can read."""
    with committed(tmp_path / "runs" / "dataset.tar", key="vault://ada") as unsealed:
        unsealed.write_bytes(b"photos")
        assert tmp_path not in unsealed.parents and unsealed.parent.stat().st_mode & 0o077 == 0
        assert not [f for f in tmp_path.rglob("*") if f.is_file() and b"photos" in f.read_bytes()]
    assert not unsealed.exists() and (tmp_path / "runs" / "dataset.tar").is_file()
