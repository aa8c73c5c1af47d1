"""Nothing stays of an erased owner, wherever between two operations on the stores the erasure comes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from photoflux.vault import committed
from photoflux.vault.blobs import BlobStore, CloudStore, FolderStore
from photoflux.vault.keyring import Keyring, OwnerErased
from photoflux.vault.objects import Objects
from photoflux.vault.sealed import Label, seal_bytes
from tests.cloud import new_bucket, storage_client
from tests.vault.conftest import new_kek

MARKER = ["erased/ada"]
COUNTED = ("put_new", "put_file", "get", "open", "delete", "exists", "list")
MOST = 40
"""More operations than any of these works need."""


@dataclass
class Clock:
    """Counts operations; `happen` is called once, after operation number `at` (0: before the first)."""

    at: int
    happen: Callable[[], None]
    count: int = 0

    def tick(self) -> None:
        if self.count == self.at:
            self.happen()
        self.count += 1


class Interrupted:
    """A store during whose use something else happens."""

    def __init__(self, store: BlobStore, clock: Clock) -> None:
        self.store, self.clock = store, clock

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)
        if name not in COUNTED:
            return method

        def counted(*args: Any) -> Any:
            try:
                return list(method(*args)) if name == "list" else method(*args)
            finally:
                self.clock.tick()

        return counted


@dataclass
class Place:
    """Stores of keysets and of objects, and the URIs of the keys before and after a rewrap."""

    keysets: BlobStore
    blobs: BlobStore
    old_kek: str
    kek: str

    def keyring(self, uri: str = "") -> Keyring:
        """The keyring of another process."""
        return Keyring(self.keysets, uri or self.kek)

    def erase(self) -> None:
        """An erasure as another process does it."""
        keyring = self.keyring()
        keyring.erase("ada")
        Objects(self.blobs, keyring).erase("ada")

    def left(self) -> tuple[list[str], list[str]]:
        """What is there now."""
        return list(self.keysets.list()), list(self.blobs.list())


@pytest.fixture(params=["folder", "bucket"])
def new_place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Place]:
    """Makes empty stores."""
    keks = new_kek(tmp_path, "kek-1"), new_kek(tmp_path, "kek-2")
    if request.param == "bucket":
        emulator = request.getfixturevalue("emulator")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
        client = storage_client(emulator)
        return lambda: Place(*(CloudStore(client, new_bucket(emulator)) for _ in range(2)), *keks)  # type: ignore[call-arg]
    counter = iter(range(10 * MOST))
    return lambda: Place(*(FolderStore(tmp_path / f"store-{next(counter)}") for _ in range(2)), *keks)  # type: ignore[call-arg]


def create(objects: Objects) -> Any:
    return objects.keyring.create("ada")


def ensure(objects: Objects) -> Any:
    return objects.keyring.ensure("ada")


def rewrap(objects: Objects) -> Any:
    return objects.keyring.rewrap()


def put(objects: Objects) -> Any:
    return objects.put("ada", "photo", "p", b"a face")


def put_from(objects: Objects) -> Any:
    return objects.put_from("ada", "export", "e", lambda sink: sink.write(b"a face"))


@pytest.mark.parametrize("has_keys", [False, True], ids=["new owner", "owner with keys"])
@pytest.mark.parametrize("work", [create, ensure, rewrap, put, put_from])
def test_an_erasure_between_any_two_operations_leaves_the_marker_alone(
    new_place: Callable[[], Place], work: Callable[[Objects], Any], has_keys: bool
):
    for at in range(MOST):
        place = new_place()
        if has_keys:
            seal_bytes(b"earlier", label=Label("ada", "photo", "0"), keyring=place.keyring(place.old_kek))
        clock = Clock(at, place.erase)
        objects = Objects(Interrupted(place.blobs, clock), Keyring(Interrupted(place.keysets, clock), place.kek))  # type: ignore[arg-type]
        try:
            work(objects)
        except OwnerErased:
            assert clock.count > at, "it was refused before the owner was erased"
        if clock.count <= at:  # the work has fewer operations than that: all points were tried
            assert at > 0
            return
        assert place.left() == (MARKER, []), f"erased after operation {at}"
    pytest.fail("the work has more operations than were tried")


@pytest.mark.parametrize("work", [create, ensure, put, put_from])
def test_nothing_is_sealed_for_an_erased_owner(new_place: Callable[[], Place], work: Callable[[Objects], Any]):
    """Also by a process that had opened their keys before, or had been told of their newest version."""
    place = new_place()
    objects = Objects(place.blobs, place.keyring())
    objects.put("ada", "photo", "before", b"a face")
    place.erase()
    for one in (objects, Objects(place.blobs, place.keyring())):
        with pytest.raises(OwnerErased, match="ada was erased"):
            work(one)
        with pytest.raises(OwnerErased):
            seal_bytes(b"words", label=Label("ada", "prompt", "1"), keyring=one.keyring)
    assert place.left() == (MARKER, [])
    place.erase()
    assert place.left() == (MARKER, []), "erasing again is no error"


def test_a_marker_is_no_keyset(new_place: Callable[[], Place]):
    place = new_place()
    keyring = place.keyring(place.old_kek)
    keyring.create("ada")
    keyring.create("bob")
    keyring.erase("ada")
    assert (keyring.owners(), keyring.versions("ada"), keyring.versions("bob")) == (["bob"], [], [1])
    assert place.keyring().rewrap() == 1
    assert (keyring.owners(), keyring.is_erased("ada"), keyring.is_erased("bob")) == (["bob"], True, False)


@pytest.mark.parametrize("work", [put, put_from])
def test_writers_at_work_leave_nothing_of_an_erased_owner(new_place: Callable[[], Place], work: Callable[..., Any]):
    """Threads that write, each as a process of its own, while the owner is erased."""
    place, errors, begun = new_place(), list[BaseException](), threading.Barrier(5)

    def write(number: int) -> None:
        begun.wait()
        try:
            objects = Objects(place.blobs, place.keyring())
            for count in range(200):
                objects.put("ada", "image", f"{number}.{count}", b"a face")
                work(objects) if count == 0 and number == 0 else None
        except OwnerErased:
            return
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    begun.wait()
    while not list(place.blobs.list()):
        pass
    place.erase()
    for thread in threads:
        thread.join()
    assert errors == []
    assert place.left() == (MARKER, [])


def test_an_artifact_of_an_erased_owner_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Wherever the erasure comes while a step seals what it made."""
    kek, out = new_kek(tmp_path), tmp_path / "out"
    for at in range(MOST):
        store = FolderStore(tmp_path / f"keyring-{at}")
        clock = Clock(at, lambda store=store: Keyring(store, kek).erase("ada"))
        monkeypatch.setattr("photoflux.vault.open_keyring", lambda c=clock, s=store: Keyring(Interrupted(s, c), kek))  # type: ignore[arg-type]
        refused = False
        try:
            with committed(out / "adapter.tar", key="vault://ada") as unsealed:
                unsealed.write_bytes(b"a face")
        except OwnerErased as error:
            refused = True
            assert "ada was erased" in str(error)
        if clock.count <= at:
            assert at > 0 and not refused
            return
        last = clock.count == at + 1  # it came when the last question had been answered
        assert refused != last, f"erased after operation {at}"
        assert refused != (out / "adapter.tar").exists()
        assert [file.name for file in out.iterdir()] == ([] if refused else ["adapter.tar"])
        assert list(store.list()) == MARKER
        (out / "adapter.tar").unlink(missing_ok=True)
    pytest.fail("committing has more operations than were tried")
