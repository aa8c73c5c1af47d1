"""Sealed objects by owner, kind and id: uploaded photos, sets of them, published adapters, pictures, reports, exports.

Each is one blob, sealed under its owner's newest key and bound to owner, kind and id.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from photoflux.errors import InputError
from photoflux.settings import get_settings
from photoflux.vault.blobs import BlobStore, open_store
from photoflux.vault.sealed import Label, seal_bytes, seal_from, unseal_bytes, unsealed_chunks

if TYPE_CHECKING:
    from photoflux.vault.keyring import Keyring

KINDS = ("photo", "thumbnail", "set", "adapter", "image", "report", "export", "head")
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Objects:
    """Objects in `store`, sealed by `keyring`."""

    store: BlobStore
    keyring: Keyring

    def put(self, owner: str, kind: str, object_id: str, data: bytes) -> int:
        """Seal and store a new object; returns the bytes stored. Raises BlobExists, OwnerErased."""
        name = _name(owner, kind, object_id)
        sealed = seal_bytes(data, label=Label(owner, kind, object_id), keyring=self.keyring)
        self.store.put_new(name, sealed)
        self._delete_if_erased(owner, name)
        return len(sealed)

    def put_from(self, owner: str, kind: str, object_id: str, write: Callable[[BinaryIO], None]) -> int:
        """`put` of what `write` writes into the stream it is given, which cannot seek.

        Only ciphertext is on disk, and never the whole object in memory.
        """
        name = _name(owner, kind, object_id)
        with self.store.scratch() as path:
            with path.open("wb") as sink:
                seal_from(write, sink, label=Label(owner, kind, object_id), keyring=self.keyring)
            size = path.stat().st_size
            self.store.put_file(name, path)
        self._delete_if_erased(owner, name)
        return size

    def get(self, owner: str, kind: str, object_id: str) -> bytes:
        """The plaintext. Raises BlobMissing, SealBroken, KeyMissing."""
        sealed = self.store.get(_name(owner, kind, object_id))
        return unseal_bytes(sealed, label=Label(owner, kind, object_id), keyring=self.keyring)

    def chunks(self, owner: str, kind: str, object_id: str) -> Iterator[bytes]:
        """The plaintext in chunks of a megabyte; the object is opened with the first.

        Raises BlobMissing and KeyMissing before the first chunk; SealBroken, before it ends, when the object is not whole.
        """
        with self.store.open(_name(owner, kind, object_id)) as source:
            yield from unsealed_chunks(source, label=Label(owner, kind, object_id), keyring=self.keyring)

    def delete(self, owner: str, kind: str, object_id: str) -> None:
        """Remove an object; one that is not there is no error."""
        self.store.delete(_name(owner, kind, object_id))

    def ids(self, owner: str, kind: str, prefix: str = "") -> list[str]:
        """Ids of the owner's objects of a kind that begin with `prefix`, sorted."""
        folder = _folder(owner, kind)
        return [name.removeprefix(folder) for name in self.store.list(folder + prefix)]

    def erase(self, owner: str) -> int:
        """Delete everything of an owner; returns how many objects there were.

        To be called after `Keyring.erase`: whoever stores an object after the others were listed here deletes it again.
        """
        names = [name for kind in KINDS for name in self.store.list(_folder(owner, kind))]
        for name in names:
            self.store.delete(name)
        return len(names)

    def _delete_if_erased(self, owner: str, name: str) -> None:
        """Delete what was just stored unless the owner is known not to be erased. Raises OwnerErased."""
        try:
            self.keyring.check_not_erased(owner)
        except BaseException:
            self.store.delete(name)
            raise


def open_objects(keyring: Keyring | None = None) -> Objects:
    """The objects of the settings."""
    from photoflux.vault import open_keyring

    return Objects(open_store(get_settings().blobs_uri), keyring or open_keyring())


def _folder(owner: str, kind: str) -> str:
    from photoflux.vault.keyring import check_owner

    if kind not in KINDS:
        raise InputError(f"no objects are of kind '{kind}'; kinds are {', '.join(KINDS)}")
    return f"{kind}s/{check_owner(owner)}/"


def _name(owner: str, kind: str, object_id: str) -> str:
    if not ID.fullmatch(object_id):
        raise InputError(f"object id {object_id!r}: use letters, digits, '.', '_' and '-'")
    return _folder(owner, kind) + object_id
