from __future__ import annotations

from pathlib import Path

import pytest

from photoflux.__main__ import main
from photoflux.vault import committed, open_keyring, opened
from photoflux.vault.kek import LOCAL


def test_a_new_epoch_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    first, second = (f"{LOCAL}{tmp_path / name}" for name in ("kek-1", "kek-2"))
    assert main(["keys", "create", first]) == main(["keys", "create", second]) == 0
    monkeypatch.setenv("PHOTOFLUX_KEK_URI", first)
    with committed(tmp_path / "a.tar", key="vault://ada") as unsealed:
        unsealed.write_bytes(b"face")
    monkeypatch.setenv("PHOTOFLUX_KEK_URI", second)
    assert main(["keys", "rewrap", "--destroy", first]) == 0
    assert "1 keysets were moved" in capsys.readouterr().out
    assert not (tmp_path / "kek-1").exists()
    with opened(tmp_path / "a.tar", key="vault://ada") as unsealed:
        assert unsealed.read_bytes() == b"face"
    assert open_keyring().rewrap() == 0


def test_a_key_is_not_made_twice(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert main(["keys", "create", f"{LOCAL}{tmp_path / 'kek'}"]) == 0
    assert main(["keys", "create", f"{LOCAL}{tmp_path / 'kek'}"]) == 2
    assert "exists already" in capsys.readouterr().err
