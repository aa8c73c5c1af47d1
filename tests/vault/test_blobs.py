"""One contract for every store: a folder, and a bucket behind the real client and an emulator."""

from __future__ import annotations

import os
import stat
import threading
import time
from pathlib import Path

import pytest

from photoflux.errors import InputError
from photoflux.vault.blobs import (
    LEFTOVER_AGE_S,
    PARTIAL,
    UPLOAD_CHUNK_BYTES,
    BlobExists,
    BlobMissing,
    BlobStore,
    CloudStore,
    FolderStore,
    open_store,
)
from tests.cloud import new_bucket, storage_client


@pytest.fixture
def bucket(emulator: str, monkeypatch: pytest.MonkeyPatch) -> CloudStore:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    return CloudStore(storage_client(emulator), new_bucket(emulator), prefix="deep/in")


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return FolderStore(tmp_path / "blobs") if request.param == "folder" else request.getfixturevalue("bucket")


def test_what_is_put_can_be_got_until_it_is_deleted(store: BlobStore):
    store.put_new("a/b/one.bin", b"\x00\xff" * 70_000)
    assert store.get("a/b/one.bin") == b"\x00\xff" * 70_000
    assert store.exists("a/b/one.bin") and not store.exists("a/b/two.bin") and not store.exists("a/b")
    store.delete("a/b/one.bin")
    assert not store.exists("a/b/one.bin")
    store.delete("a/b/one.bin")
    with pytest.raises(BlobMissing, match=r"a/b/one\.bin"):
        store.get("a/b/one.bin")


def test_a_file_is_put_and_opened_in_pieces(store: BlobStore):
    """Also one that a bucket takes in several requests."""
    data = os.urandom(1000) * 9500
    with store.scratch() as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.read_bytes() == b""
        path.write_bytes(data)
        store.put_file("a/b/large", path)
    assert not path.exists() and list(store.list()) == ["a/b/large"]
    with store.open("a/b/large") as file:
        store.delete("a/b/large")
        assert file.read(4) + file.read() == data, "what was opened can be read though it was deleted meanwhile"
    with pytest.raises(BlobMissing, match="a/b/large"):
        store.open("a/b/large")


def test_what_breaks_off_leaves_no_scratch(store: BlobStore):
    with pytest.raises(ConnectionError), store.scratch() as path:
        path.write_bytes(b"half")
        raise ConnectionError
    assert not path.exists() and list(store.list()) == []


def test_a_blob_has_an_age(store: BlobStore):
    assert store.age_s("a") == 0
    store.put_new("a", b"")
    assert 0 <= store.age_s("a") < 60


def test_an_empty_blob_is_a_blob(store: BlobStore):
    store.put_new("empty", b"")
    assert store.exists("empty") and store.get("empty") == b""


def test_names_are_listed_by_prefix_in_order(store: BlobStore):
    for name in ("b/2", "a/1", "b/10", "c"):
        store.put_new(name, b"x")
    assert list(store.list()) == ["a/1", "b/10", "b/2", "c"]
    assert list(store.list("b/")) == ["b/10", "b/2"]
    assert list(store.list("b/1")) == ["b/10"]
    assert list(store.list("d")) == []


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "../a", "a/../b", "a//b", ".hidden", "a/.b", "a\n", "ä", "a b", "x" * 513]
)
def test_a_name_that_could_leave_the_store_is_refused(store: BlobStore, name: str):
    verbs = (store.get, store.open, store.delete, store.exists, lambda one: store.put_new(one, b""))
    for verb in (*verbs, lambda one: store.put_file(one, Path(__file__))):
        with pytest.raises(InputError, match="blob name"):
            verb(name)


def test_a_taken_name_keeps_what_it_holds(tmp_path: Path):
    store = FolderStore(tmp_path)
    store.put_new("a", b"first")
    with pytest.raises(BlobExists, match="blob a exists"):
        store.put_new("a", b"second")
    with pytest.raises(BlobExists, match="blob a exists"), store.scratch() as path:
        store.put_file("a", path)
    assert store.get("a") == b"first"
    assert os.listdir(tmp_path) == ["a"], "no partial file is left"


def test_of_many_writers_one_wins(tmp_path: Path):
    store, won = FolderStore(tmp_path), list[int]()

    def write(number: int) -> None:
        try:
            store.put_new("a", str(number).encode() * 1000)
            won.append(number)
        except BlobExists:
            pass

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and store.get("a") == str(won[0]).encode() * 1000


def test_a_writer_is_not_disturbed_by_a_folder_that_becomes_empty(tmp_path: Path):
    """Who deletes the last blob of a folder removes it, perhaps right before another is stored in it, or while it is listed."""
    store, errors = FolderStore(tmp_path), list[BaseException]()

    def work(number: int) -> None:
        try:
            for _ in range(300):
                store.put_new(f"a/b/{number}", b"x")
                assert f"a/b/{number}" in list(store.list("a/"))
                store.delete(f"a/b/{number}")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and os.listdir(tmp_path) == []


def test_what_a_killed_process_left_is_removed_in_time(tmp_path: Path):
    store = FolderStore(tmp_path)
    for name, age_s in (("old", LEFTOVER_AGE_S + 60), ("new", 60)):
        (tmp_path / f"{PARTIAL}{name}").write_bytes(b"half")
        os.utime(tmp_path / f"{PARTIAL}{name}", (time.time() - age_s,) * 2)
    store.put_new("a", b"x")
    assert sorted(os.listdir(tmp_path)) == [f"{PARTIAL}new", "a"]
    assert list(store.list()) == ["a"]


def test_a_file_is_uploaded_in_pieces_that_are_small(
    bucket: CloudStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The client's own default holds 100 MiB in memory; a name that is taken is known by the answer 412."""
    from google.api_core.exceptions import PreconditionFailed
    from google.cloud.storage import Blob

    asked = {}

    def refuse(blob: Blob, path: str, **more: object) -> None:
        asked.update(more, chunk_size=blob.chunk_size)
        raise PreconditionFailed("412")

    monkeypatch.setattr(Blob, "upload_from_filename", refuse)
    with pytest.raises(BlobExists), bucket.scratch() as path:
        bucket.put_file("a", path)
    assert (asked["if_generation_match"], asked["chunk_size"]) == (0, UPLOAD_CHUNK_BYTES)


def test_the_bucket_is_asked_for_a_new_object_only(bucket: CloudStore, monkeypatch: pytest.MonkeyPatch):
    """The emulator ignores preconditions, so that what is asked is checked, and what an answer of 412 becomes."""
    from google.api_core.exceptions import PreconditionFailed
    from google.cloud.storage import Blob

    asked = {}

    def refuse(blob: Blob, data: bytes, **more: object) -> None:
        asked.update(more)
        raise PreconditionFailed("412")

    monkeypatch.setattr(Blob, "upload_from_string", refuse)
    with pytest.raises(BlobExists):
        bucket.put_new("a", b"")
    assert asked["if_generation_match"] == 0


def test_files_are_their_owners_alone(tmp_path: Path):
    FolderStore(tmp_path / "s").put_new("a/b", b"x")
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "s").rglob("*")}
    assert modes == {"a": 0o700, "b": 0o600}


def test_emptied_folders_go_too(tmp_path: Path):
    store = FolderStore(tmp_path / "s")
    store.put_new("a/b/one", b"x")
    store.put_new("a/two", b"x")
    store.delete("a/b/one")
    assert sorted(p.name for p in (tmp_path / "s").rglob("*")) == ["a", "two"]
    store.delete("a/two")
    assert (tmp_path / "s").is_dir() and not list((tmp_path / "s").iterdir())


def test_a_store_is_chosen_by_its_address(tmp_path: Path, bucket: CloudStore):
    assert isinstance(open_store(str(tmp_path)), FolderStore)
    opened = open_store("gs://pf-test/keys/", client=bucket.bucket.client)
    assert isinstance(opened, CloudStore) and (opened.bucket.name, opened.prefix) == ("pf-test", "keys/")
