from __future__ import annotations

from pathlib import Path

import pytest

from photoflux.errors import InputError, PhotoFluxError
from photoflux.vault import committed, open_keyring, opened
from photoflux.vault.keyring import KeyMissing
from photoflux.vault.sealed import SealBroken


def test_a_committed_file_can_be_opened(tmp_path: Path):
    with committed(tmp_path / "deep" / "a.tar", key="plain://test") as plain:
        plain.write_bytes(b"photos")
    with opened(tmp_path / "deep" / "a.tar", key="plain://test") as plain:
        assert plain.read_bytes() == b"photos"
        assert plain.name == "a.tar"
    assert not plain.exists()


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(b"old")
    with pytest.raises(RuntimeError), committed(tmp_path / "a.tar", key="plain://test") as plain:
        plain.write_bytes(b"half")
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
    with committed(tmp_path / "dataset.tar", key="vault://ada") as plain:
        plain.write_bytes(b"photos" * 1000)
    assert b"photos" not in (tmp_path / "dataset.tar").read_bytes()
    with opened(tmp_path / "dataset.tar", key="vault://ada") as plain:
        assert plain.read_bytes() == b"photos" * 1000
    for key in ("vault://bob", "vault://ada-2"):
        with pytest.raises(PhotoFluxError), opened(tmp_path / "dataset.tar", key=key):
            pass


def test_a_sealed_artifact_does_not_open_as_another(tmp_path: Path):
    with committed(tmp_path / "dataset.tar", key="vault://ada") as plain:
        plain.write_bytes(b"photos")
    (tmp_path / "dataset.tar").rename(tmp_path / "adapter.tar")
    with pytest.raises(SealBroken, match="something else"), opened(tmp_path / "adapter.tar", key="vault://ada"):
        pass


def test_an_erased_owners_artifacts_stay_shut(tmp_path: Path):
    with committed(tmp_path / "adapter", key="vault://ada") as plain:
        plain.write_bytes(b"weights")
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
    with pytest.raises(InputError, match="missing"), committed(tmp_path / "a", key="vault://ada") as plain:
        plain.write_bytes(b"x")
    assert not (tmp_path / "kek").exists() and not (tmp_path / "a").exists()


def test_plaintext_that_is_sealed_never_lies_beside_it(tmp_path: Path):
    """A killed step leaves its temporary files, and pipelines keep their artifacts where many can read."""
    with committed(tmp_path / "runs" / "dataset.tar", key="vault://ada") as plain:
        plain.write_bytes(b"photos")
        assert tmp_path not in plain.parents and plain.parent.stat().st_mode & 0o077 == 0
        assert not [f for f in tmp_path.rglob("*") if f.is_file() and b"photos" in f.read_bytes()]
    assert not plain.exists() and (tmp_path / "runs" / "dataset.tar").is_file()
