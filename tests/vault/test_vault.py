from __future__ import annotations

from pathlib import Path

import pytest

from photoflux.errors import InputError
from photoflux.vault import committed, opened


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
