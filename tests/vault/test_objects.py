from __future__ import annotations

import pytest

from photoflux.errors import InputError
from photoflux.vault.blobs import BlobExists, BlobMissing
from photoflux.vault.keyring import KeyMissing
from photoflux.vault.objects import KINDS, Objects, open_objects
from photoflux.vault.sealed import SealBroken


@pytest.fixture
def objects() -> Objects:
    return open_objects()


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
            objects.put(owner, "picture", name, b"x")
    objects.put("ada", "export", "e", b"x")
    assert objects.ids("ada", "picture", prefix="g1.") == ["g1.0", "g1.1"]
    objects.delete("ada", "picture", "g1.0")
    objects.delete("ada", "picture", "g1.0")
    with pytest.raises(BlobMissing):
        objects.get("ada", "picture", "g1.0")
    assert objects.erase("ada") == 3
    assert [objects.ids("ada", kind) for kind in KINDS] == [[]] * len(KINDS)
    assert len(objects.ids("bob", "picture")) == 3


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
