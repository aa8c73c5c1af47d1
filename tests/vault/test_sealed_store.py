"""Sealed stores: what was put is got whole, by its owner alone, whatever was interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest

from photoflux.vault.sealed_store import SealedStore


@pytest.mark.parametrize("key", ["plain://demo", "vault://ada"])
def test_what_was_put_is_got_and_the_last_one_stands(tmp_path: Path, key: str):
    store = SealedStore(tmp_path / "work", key)
    assert store.get("state.pt") is None
    for data in (b"one", b"two"):
        store.put("state.pt", data)
        assert store.get("state.pt") == data
    store.subfolder("latents").put("a.bin", b"")
    assert store.subfolder("latents").get("a.bin") == b""
    assert store.names("*") == ["latents", "state.pt"]


def test_a_sealed_store_shows_nothing(tmp_path: Path):
    SealedStore(tmp_path / "work", "vault://ada").put("state.pt", b"a face" * 100)
    assert b"a face" not in (tmp_path / "work" / "state.pt").read_bytes()


def test_what_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = SealedStore(tmp_path / "work", "plain://demo")
    store.put("state.pt", b"whole")

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        store.put("state.pt", b"half")
    monkeypatch.undo()
    assert store.get("state.pt") == b"whole"
    assert store.names("*") == ["state.pt"]
