"""Sets of uploaded photos that runs train on; a set never changes after its run was asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from photoflux.errors import InputError
from photoflux.vault import VAULT, VaultKey
from photoflux.vault.blobs import BlobExists, BlobMissing

if TYPE_CHECKING:
    from photoflux.vault.objects import Objects

SCHEME = "blob:"
SUFFIX = ".jpg"


def write_set(objects: Objects, owner: str, set_id: str, photos: Sequence[str]) -> str:
    """Store the photos' ids as a set; returns its source `blob:SET_ID`. An existing set is not replaced."""
    content = json.dumps({"photos": list(photos)}).encode()
    with suppress(BlobExists):
        objects.put(owner, "set", set_id, content)
    return SCHEME + set_id


def fetch_set(source: str, *, key: str, into: Path, objects: Objects | None = None) -> int:
    """Open the photos of `blob:SET_ID`, which belong to the owner of `key`, into a folder; returns how many.

    Files are named by their position in the set, since file names are personal. Raises InputError.
    """
    from photoflux.vault.objects import open_objects

    if not key.startswith(VAULT):
        raise InputError(f"{source}: uploaded photos are sealed; give their owner's key, {VAULT}<owner>, not '{key}'")
    owner, set_id = VaultKey.parse(key).owner, source.removeprefix(SCHEME)
    objects = objects or open_objects()
    try:
        photos = json.loads(objects.get(owner, "set", set_id))["photos"]
        into.mkdir(parents=True, exist_ok=True)
        for number, photo in enumerate(photos, start=1):
            (into / f"photo-{number:02}{SUFFIX}").write_bytes(objects.get(owner, "photo", photo))
    except BlobMissing as error:
        raise InputError(f"{source}: is gone, or photos of it are; upload them and start again") from error
    return len(photos)
