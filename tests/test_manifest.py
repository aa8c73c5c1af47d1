from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import tarfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from photoflux.errors import InputError
from photoflux.manifest import digest, read_manifest, replacing, unpack, write_json, write_tar, write_text

NAMES = st.text("abcdefghij", min_size=1, max_size=8)


@given(files=st.dictionaries(NAMES, st.binary(max_size=64), max_size=5))
def test_what_is_packed_is_unpacked(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("tar")
    write_tar(folder / "a.tar", files=files, manifest={"n": len(files)})
    assert unpack(folder / "a.tar", folder / "out") == {"n": len(files)}
    assert {p.name: p.read_bytes() for p in (folder / "out").iterdir()} == files


def test_equal_content_gives_equal_bytes(tmp_path: Path):
    source = tmp_path / "x.bin"
    source.write_bytes(b"1")
    first = write_tar(tmp_path / "a.tar", files={"x": source, "y": b"2"}, manifest={"b": 1, "a": 2})
    second = write_tar(tmp_path / "b.tar", files={"y": b"2", "x": b"1"}, manifest={"a": 2, "b": 1})
    assert first == second == hashlib.sha256((tmp_path / "a.tar").read_bytes()).hexdigest()
    assert digest(tmp_path / "b.tar") == second


def test_a_failed_write_leaves_nothing(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        write_tar(tmp_path / "a.tar", files={"x": tmp_path / "missing"}, manifest={})
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_artifact_is_named(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(b"not a tar")
    with pytest.raises(InputError, match=r"a\.tar: not a readable PhotoFlux artifact"):
        read_manifest(tmp_path / "a.tar")


@pytest.mark.parametrize("name", ["../escape", "a/../../escape", "/etc/escape"])
def test_paths_never_leave_the_folder(tmp_path: Path, name: str):
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        for member, content in (("manifest.json", b"{}"), (name, b"x")):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(InputError, match="leaves the folder"):
        unpack(tmp_path / "evil.tar", tmp_path / "out")
    assert not (tmp_path / "escape").exists()
    assert not Path("/etc/escape").exists()


def test_links_are_not_extracted(tmp_path: Path):
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        info = tarfile.TarInfo("manifest.json")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"{}"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    unpack(tmp_path / "link.tar", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_json_has_no_nan(tmp_path: Path):
    write_json(tmp_path / "a.json", {"x": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"x": float("nan")})
    assert not (tmp_path / "b.json").exists()


ALIKE = 4000
"""How often one line stands in a file that many write: whatever is read must hold it that often, and no other."""


def test_many_may_write_one_path_at_once_and_readers_see_whole_files(tmp_path: Path):
    """Threads of two processes; nobody fails, and nothing stays beside the file."""
    file, texts = tmp_path / "shared" / "note.txt", [f"{writer}\n" * ALIKE for writer in range(8)]
    write_text(file, texts[0])
    spawn = multiprocessing.get_context("spawn")
    with ThreadPoolExecutor(6) as threads, ProcessPoolExecutor(2, mp_context=spawn) as processes:
        written = [pool.submit(write_text, file, text) for text in 25 * texts for pool in (threads, processes)]
        while not all(one.done() for one in written):
            assert file.read_text() in texts
    assert {one.result() for one in written} == {file}
    assert os.listdir(file.parent) == ["note.txt"]


def test_many_may_write_one_artifact_at_once(tmp_path: Path):
    """Each is told the digest of what it wrote itself, whichever of them stays."""
    contents = [bytes([writer]) * 200_000 for writer in range(4)]
    with ThreadPoolExecutor(8) as threads:
        told = list(
            threads.map(lambda one: write_tar(tmp_path / "a.tar", files={"x": one}, manifest={}), 20 * contents)
        )
    assert len(set(told)) == 4
    assert told == 20 * told[:4]
    assert digest(tmp_path / "a.tar") in told
    assert os.listdir(tmp_path) == ["a.tar"]


def test_whoever_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path):
    file = write_text(tmp_path / "note.txt", "old")
    with pytest.raises(ZeroDivisionError), replacing(file) as partial:
        assert partial.name == file.name
        partial.write_text("half")
        raise ZeroDivisionError
    assert (os.listdir(tmp_path), file.read_text()) == (["note.txt"], "old")
