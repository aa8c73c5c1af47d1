"""Every owner's keysets, wrapped by the key-encrypting key, in a store of their own. Without them nothing opens.

Erasing an owner deletes the wrapped keysets: every copy of what they sealed, wherever it is, is then unreadable. A marker
`erased/<owner>`, which is kept for good and names a random id, comes first: whoever seals asks for it, so that nothing is
sealed for an erased owner again. The store must keep no versions. Backups of it die with their *epoch*: `rewrap` moves the
living to a new key, whose predecessor is then destroyed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from photoflux.errors import InputError, PhotoFluxError
from photoflux.vault.blobs import BlobExists, BlobMissing, BlobStore
from photoflux.vault.kek import LOCAL, OWN, open_kek

if TYPE_CHECKING:
    from tink import KeysetHandle
    from tink.streaming_aead import StreamingAead

OWNER = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
FOLDER, ERASED = "keysets", "erased"
SERVICE = "service"
"""Owner of the service's own secrets, who is never erased, so that no marker is asked for."""
TRIES = 3
KEPT_S, KEPT = 300.0, 256
"""Opened keysets stay in memory for this many seconds, and this many of them: the longest that an erased owner's
sealed bytes can still be opened by a process that had opened them before."""


class KeyMissing(PhotoFluxError):
    """The owner has no such keyset: never made, or erased."""


class OwnerErased(KeyMissing):
    """Something is to be sealed for an owner who was erased."""


@dataclass
class Keyring:
    """Keysets in `store`, new ones wrapped by the key at `kek_uri`; `own` is the key file of this installation."""

    store: BlobStore
    kek_uri: str
    own: str = ""
    _opened: OrderedDict[tuple[str, int], tuple[float, Any]] = field(default_factory=OrderedDict)
    _newest: OrderedDict[str, tuple[float, int]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def create(self, owner: str) -> int:
        """Make the owner's next keyset and return its version. Older versions keep opening what they sealed.

        Raises OwnerErased, and leaves no keyset.
        """
        import tink
        from tink import streaming_aead

        streaming_aead.register()
        template = streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB
        while True:
            version = max(self.versions(owner), default=0) + 1
            try:
                self._put(owner, version, tink.new_keyset_handle(template), uri=self.kek_uri)
            except BlobExists:
                continue  # another process was first
            self._keep(self._newest, owner, version)
            return version

    def versions(self, owner: str) -> list[int]:
        """Versions of the owner's keysets, oldest first."""
        return sorted({_version(name) for name in self.store.list(f"{FOLDER}/{check_owner(owner)}/")})

    def owners(self) -> list[str]:
        """Everybody who has keysets, sorted."""
        return sorted({name.split("/")[1] for name in self.store.list(f"{FOLDER}/")})

    def is_erased(self, owner: str) -> bool:
        """Whether the owner was erased. The store is asked each time: an answer from memory would be too old."""
        return owner != SERVICE and self.store.exists(_marker(owner))

    def check_not_erased(self, owner: str) -> None:
        """Raises OwnerErased."""
        if self.is_erased(owner):
            raise OwnerErased(f"owner {owner} was erased: nothing is sealed for them any more")

    def ensure(self, owner: str) -> int:
        """The newest version, made when there is none. Another process's newer one is known here after five minutes at most.

        Raises OwnerErased.
        """
        self.check_not_erased(owner)
        with self._lock:
            kept = self._newest.get(owner)
            if kept and kept[0] > time.monotonic():
                return kept[1]
        version = max(self.versions(owner), default=0)
        if not version:
            return self.create(owner)
        self._keep(self._newest, owner, version)
        return version

    def sealing(self, owner: str) -> tuple[int, StreamingAead]:
        """The newest version, made when there is none, and what seals under it. Raises OwnerErased."""
        version = self.ensure(owner)
        try:
            return version, self.primitive(owner, version)
        except KeyMissing:
            self.check_not_erased(owner)  # then it was erased since `ensure` asked
            raise

    def primitive(self, owner: str, version: int) -> StreamingAead:
        """What opens under one version, and seals for who asked `sealing`. Raises KeyMissing."""
        from tink import streaming_aead

        key = (check_owner(owner), version)
        with self._lock:
            kept = self._opened.get(key)
            if kept and kept[0] > time.monotonic():
                self._opened.move_to_end(key)
                return kept[1]
        opened = self.unwrapped(owner, version).primitive(streaming_aead.StreamingAead)
        self._keep(self._opened, key, opened)
        return opened

    def erase(self, owner: str) -> int:
        """Mark the owner as erased for good, delete all keysets, forget the opened ones, and return how many blobs went.

        The marker comes first: a keyset that is stored after the others were listed is deleted by who stored it.
        Raises InputError for the service itself.
        """
        if owner == SERVICE:
            raise InputError("the service's own keys are not erased: everything it signed and sealed depends on them")
        with suppress(BlobExists):
            self.store.put_new(_marker(owner), b"")
        names = list(self.store.list(f"{FOLDER}/{check_owner(owner)}/"))
        for name in names:
            self.store.delete(name)
        with self._lock:
            self._newest.pop(owner, None)
            for key in [key for key in self._opened if key[0] == owner]:
                del self._opened[key]
        return len(names)

    def rewrap(self) -> int:
        """Bring every keyset under `kek_uri`; returns how many were under another key, which can then be destroyed.

        A keyset is only removed under its old key once it is stored under the new one, so that this can be repeated.
        Owners that are erased meanwhile stay erased.
        """
        moved = 0
        for name in list(self.store.list(f"{FOLDER}/")):
            with suppress(BlobMissing, OwnerErased):
                moved += self._rewrapped(name)
        return moved

    def _rewrapped(self, name: str) -> bool:
        """Bring one keyset under `kek_uri`, unless it is. Raises BlobMissing and OwnerErased when its owner was erased."""
        entry = _entry(self.store.get(name))
        if entry["kek"] == self._named(self.kek_uri):
            return False
        _, owner, _ = name.split("/")
        with suppress(BlobExists):
            self._put(owner, _version(name), self._unwrap(name, entry), uri=self.kek_uri)
        self.store.delete(name)
        return True

    def _keep(self, kept: OrderedDict[Any, tuple[float, Any]], key: Any, value: Any) -> None:
        with self._lock:
            kept[key] = (time.monotonic() + KEPT_S, value)
            kept.move_to_end(key)
            while len(kept) > KEPT:
                kept.popitem(last=False)

    def _put(self, owner: str, version: int, handle: KeysetHandle, *, uri: str) -> None:
        """Store a keyset wrapped, after unwrapping it once: Tink's KMS client checks no checksums.

        Raises BlobExists; OwnerErased, and leaves none, where the owner was erased, also while it was stored.
        """
        from tink import proto_keyset_format

        bound = _bound(check_owner(owner), version)
        wrapped = proto_keyset_format.serialize_encrypted(handle, open_kek(uri), bound)
        proto_keyset_format.parse_encrypted(wrapped, open_kek(uri), bound)
        content = {"kek": self._named(uri), "wrapped": base64.b64encode(wrapped).decode()}
        name = _name(owner, version, content["kek"])
        self.check_not_erased(owner)
        self.store.put_new(name, json.dumps(content).encode())
        if self.is_erased(owner):
            self.store.delete(name)
            self.check_not_erased(owner)

    def unwrapped(self, owner: str, version: int) -> KeysetHandle:
        """One version as the wrapping key opens it now. Raises KeyMissing; PhotoFluxError where that key does not."""
        for _ in range(TRIES):
            names = [name for name in self.store.list(f"{FOLDER}/{owner}/") if _version(name) == version]
            for name in names:
                with suppress(BlobMissing):  # rewrapped or erased since it was listed
                    return self._unwrap(name, _entry(self.store.get(name)))
            if not names:
                break
        raise KeyMissing(f"owner {owner} has no key of version {version}: it was erased, and what it sealed with it")

    def _unwrap(self, name: str, entry: dict[str, str]) -> KeysetHandle:
        import tink
        from tink import proto_keyset_format, streaming_aead

        streaming_aead.register()
        _, owner, _ = name.split("/")
        try:
            wrapped = base64.b64decode(entry["wrapped"], validate=True)
            kek = open_kek(self._kek(entry["kek"]))
            return proto_keyset_format.parse_encrypted(wrapped, kek, _bound(owner, _version(name)))
        except (tink.TinkError, binascii.Error) as error:
            raise PhotoFluxError(
                f"keyset {name} cannot be unwrapped by {entry['kek']}: the key was destroyed or changed, or the keyset is "
                "damaged; restore them from one epoch"
            ) from error

    def _named(self, uri: str) -> str:
        """What keysets call a key: their own installation's by a name that stays when its folder is moved."""
        return OWN if uri == self.own else uri

    def _kek(self, named: str) -> str:
        """The key that a keyset names; those of before name the installation's own by where it was when they were made."""
        if named == OWN:
            return self.own or self.kek_uri
        gone = named.startswith(LOCAL) and not Path(named.removeprefix(LOCAL)).is_file()
        return self.own if self.own and gone and Path(named).name == Path(self.own).name else named


def check_owner(owner: str) -> str:
    """The owner's id itself. Raises InputError for one that is not made of a-z, 0-9 and '-'."""
    if not OWNER.fullmatch(owner):
        raise InputError(f"owner {owner!r}: use 1 to 63 of a-z, 0-9 and '-', beginning with a letter or digit")
    return owner


def _marker(owner: str) -> str:
    return f"{ERASED}/{check_owner(owner)}"


def _name(owner: str, version: int, uri: str) -> str:
    """One name per version and key, so that a keyset under a new key never takes the old one's place too early."""
    return f"{FOLDER}/{owner}/{version}.{hashlib.sha256(uri.encode()).hexdigest()[:12]}"


def _version(name: str) -> int:
    return int(name.rsplit("/", 1)[1].split(".")[0])


def _bound(owner: str, version: int) -> bytes:
    return f"photoflux-keyset|{owner}|{version}".encode()


def _entry(content: bytes) -> dict[str, str]:
    return json.loads(content)
