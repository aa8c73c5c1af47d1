from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

import pytest

from photoflux.errors import InputError
from photoflux.vault.blobs import PARTIAL, BlobExists, BlobMissing, CloudStore
from photoflux.vault.keyring import KeyMissing, Keyring
from photoflux.vault.objects import KINDS, Objects, open_objects
from photoflux.vault.sealed import CHUNK_BYTES, SealBroken
from tests.cloud import new_bucket, storage_client


@pytest.fixture
def objects() -> Objects:
    return open_objects()


@pytest.fixture(params=["folder", "bucket"])
def anywhere(request: pytest.FixtureRequest, objects: Objects, monkeypatch: pytest.MonkeyPatch) -> Objects:
    """Objects in each kind of store."""
    if request.param == "folder":
        return objects
    emulator = request.getfixturevalue("emulator")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    return Objects(CloudStore(storage_client(emulator), new_bucket(emulator)), objects.keyring)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 5])
def test_what_is_written_in_pieces_comes_back_in_pieces(anywhere: Objects, size: int):
    data = os.urandom(size)

    def write(sink: BinaryIO) -> None:
        assert not sink.seekable()
        for start in range(0, size, 300_000):
            sink.write(data[start : start + 300_000])

    stored = anywhere.put_from("ada", "export", "e", write)
    pieces = list(anywhere.chunks("ada", "export", "e"))
    assert b"".join(pieces) == data == anywhere.get("ada", "export", "e")
    assert all(len(piece) <= CHUNK_BYTES for piece in pieces)
    assert stored == len(anywhere.store.get("exports/ada/e"))


def test_plaintext_that_is_written_in_pieces_is_nowhere_on_disk(
    anywhere: Objects, tmp_path: Path, own_state: Path, monkeypatch: pytest.MonkeyPatch
):
    """Neither while it is written, when ciphertext lies in one file, nor afterwards, when that is gone."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def files() -> list[bytes]:
        return [f.read_bytes() for at in (tmp_path, own_state) for f in at.rglob(f"{PARTIAL}*")]

    def write(sink: BinaryIO) -> None:
        for _ in range(5):
            sink.write(b"a face" * CHUNK_BYTES)
        (content,) = files()
        assert len(content) > 20 * CHUNK_BYTES and b"a face" not in content

    anywhere.put_from("ada", "export", "e", write)
    assert files() == []


def test_what_is_not_written_to_its_end_is_not_stored(
    anywhere: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def write(sink: BinaryIO) -> None:
        sink.write(b"half" * CHUNK_BYTES)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        anywhere.put_from("ada", "export", "e", write)
    gc.collect()  # closes the stream, which would write an end
    assert list(anywhere.store.list()) == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("harm", ["cut off between segments", "cut off", "altered", "more", "empty"])
def test_pieces_of_a_damaged_object_do_not_end_well(anywhere: Objects, harm: str):
    data = os.urandom(3 * CHUNK_BYTES)
    anywhere.put("ada", "export", "whole", data)
    sealed = anywhere.store.get("exports/ada/whole")
    line = sealed.index(b"\n") + 1
    harmed = {
        "cut off between segments": sealed[: line + 2 * CHUNK_BYTES],
        "cut off": sealed[:-1],
        "altered": sealed[:-20] + bytes([sealed[-20] ^ 1]) + sealed[-19:],
        "more": sealed + b"more",
        "empty": b"",
    }[harm]
    anywhere.store.delete("exports/ada/whole")
    anywhere.store.put_new("exports/ada/whole", harmed)
    got = bytearray()
    with pytest.raises(SealBroken):
        for piece in anywhere.chunks("ada", "export", "whole"):
            got += piece
    assert len(got) < len(data) and data.startswith(got), "what was given out is a true beginning"


def test_what_is_missing_is_found_before_the_first_piece(anywhere: Objects):
    for work in (anywhere.chunks("ada", "export", "e"), anywhere.chunks("ada", "export", "f")):
        with pytest.raises(BlobMissing):
            next(work)
    anywhere.put("ada", "export", "e", b"x")
    anywhere.keyring.erase("ada")
    with pytest.raises(KeyMissing):
        next(anywhere.chunks("ada", "export", "e"))


def test_an_iterator_that_is_dropped_leaves_no_file_open(objects: Objects):
    objects.put("ada", "export", "e", bytes(3 * CHUNK_BYTES))
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    pieces = objects.chunks("ada", "export", "e")
    next(pieces)
    del pieces
    gc.collect()
    assert not before or len(os.listdir("/proc/self/fd")) == before


def test_an_object_that_is_not_known_to_be_wanted_is_taken_back(objects: Objects, monkeypatch: pytest.MonkeyPatch):
    """Whether the owner was erased cannot be asked: then nothing stays, and the writer is told."""
    objects.put("ada", "photo", "p1", b"a face")

    def cut(keyring: Keyring, owner: str) -> bool:
        if objects.store.exists("photos/ada/p2"):
            raise ConnectionError
        return False

    monkeypatch.setattr(Keyring, "is_erased", cut)
    with pytest.raises(ConnectionError):
        objects.put("ada", "photo", "p2", b"a face")
    monkeypatch.undo()
    assert objects.ids("ada", "photo") == ["p1"]


def test_what_is_put_is_got_and_lies_sealed(objects: Objects):
    size = objects.put("ada", "photo", "p1", b"a face" * 50)
    assert objects.get("ada", "photo", "p1") == b"a face" * 50
    kept = objects.store.get("photos/ada/p1")
    assert len(kept) == size
    assert b"a face" not in kept
    with pytest.raises(BlobExists):
        objects.put("ada", "photo", "p1", b"another")


def test_an_object_in_the_place_of_another_does_not_open(objects: Objects):
    """Another's, another kind's, another id's: each is bound to all three."""
    objects.put("ada", "photo", "p1", b"ada")
    kept = objects.store.get("photos/ada/p1")
    objects.keyring.ensure("bob")
    for name in ("photos/bob/p1", "thumbnails/ada/p1", "photos/ada/p2"):
        objects.store.put_new(name, kept)
        kind, owner, object_id = name.split("/")
        with pytest.raises(SealBroken):
            objects.get(owner, kind[:-1], object_id)


def test_ids_deletion_and_erasure_are_the_owners(objects: Objects):
    for owner in ("ada", "bob"):
        for name in ("g1.0", "g1.1", "g2.0"):
            objects.put(owner, "image", name, b"x")
    objects.put("ada", "export", "e", b"x")
    assert objects.ids("ada", "image", prefix="g1.") == ["g1.0", "g1.1"]
    objects.delete("ada", "image", "g1.0")
    objects.delete("ada", "image", "g1.0")
    with pytest.raises(BlobMissing):
        objects.get("ada", "image", "g1.0")
    assert objects.erase("ada") == 3
    assert [objects.ids("ada", kind) for kind in KINDS] == [[]] * len(KINDS)
    assert len(objects.ids("bob", "image")) == 3


def test_without_the_key_nothing_opens(objects: Objects):
    objects.put("ada", "photo", "p1", b"ada")
    objects.keyring.erase("ada")
    with pytest.raises(KeyMissing):
        objects.get("ada", "photo", "p1")


@pytest.mark.parametrize(("owner", "kind", "name"), [("../x", "photo", "p"), ("ada", "diary", "p"), ("ada", "photo", "../p"),
                                                    ("ada", "photo", ""), ("ada", "photo", "a/b"), ("Ada", "photo", "p")])  # fmt: skip
def test_names_stay_in_their_place(objects: Objects, owner: str, kind: str, name: str):
    with pytest.raises(InputError):
        objects.put(owner, kind, name, b"x")
