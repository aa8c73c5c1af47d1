"""Every owner's keysets, wrapped by the key-encrypting key, in a store of their own. Without them nothing opens.

Erasing an owner deletes their wrapped keysets: every copy of what these sealed, wherever it is, is then unreadable. A marker
`erased/<owner>` is stored first and never deleted (it holds no more than the random id): sealing checks it, so that nothing is
sealed for an erased owner again. The store must keep no versions. A backup of it becomes useless with its *epoch*: `rewrap` wraps
the present keysets by a new key, and the key before is then destroyed.
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
from photoflux.vault.kek import LOCAL, LOCAL_KEK_NAME, open_kek

if TYPE_CHECKING:
    from tink import KeysetHandle
    from tink.streaming_aead import StreamingAead

OWNER = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
KEYSETS, ERASED = "keysets", "erased"
SERVICE = "service"
"""Owner of the service's own secrets, who is never erased, so that no marker is looked for."""
UNWRAP_TRIES = 3
CACHE_S, CACHE_SIZE = 300.0, 256
"""How long, and how many, opened keysets stay in memory. A process that has opened an owner's keyset can open their sealed
bytes for CACHE_S seconds after their erasure."""


class KeyMissing(PhotoFluxError):
    """The owner has no such keyset: never made, or erased."""


class OwnerErased(KeyMissing):
    """The owner was erased: nothing is sealed for them any more."""


@dataclass
class Keyring:
    """Keysets in `store`, new ones wrapped by the key at `kek_uri`; `local_kek_uri` is the key file of this installation."""

    store: BlobStore
    kek_uri: str
    local_kek_uri: str = ""
    _primitives: OrderedDict[tuple[str, int], tuple[float, Any]] = field(default_factory=OrderedDict)
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
            self._cache(self._newest, owner, version)
            return version

    def versions(self, owner: str) -> list[int]:
        """Versions of the owner's keysets, oldest first."""
        return sorted({_version(name) for name in self.store.list(f"{KEYSETS}/{check_owner(owner)}/")})

    def owners(self) -> list[str]:
        """Owners that have keysets, sorted."""
        return sorted({name.split("/")[1] for name in self.store.list(f"{KEYSETS}/")})

    def is_erased(self, owner: str) -> bool:
        """Whether the owner was erased; read from the store each time, since another process may have erased them."""
        return owner != SERVICE and self.store.exists(_marker(owner))

    def check_not_erased(self, owner: str) -> None:
        """Raises OwnerErased."""
        if self.is_erased(owner):
            raise OwnerErased(f"owner {owner} was erased: nothing is sealed for them any more")

    def ensure(self, owner: str) -> int:
        """The newest version, made when there is none. One made by another process is seen here after CACHE_S at most.

        Raises OwnerErased.
        """
        self.check_not_erased(owner)
        with self._lock:
            cached = self._newest.get(owner)
            if cached and cached[0] > time.monotonic():
                return cached[1]
        version = max(self.versions(owner), default=0)
        if not version:
            return self.create(owner)
        self._cache(self._newest, owner, version)
        return version

    def newest_primitive(self, owner: str) -> tuple[int, StreamingAead]:
        """The newest version, made when there is none, and the primitive that seals under it. Raises OwnerErased."""
        version = self.ensure(owner)
        try:
            return version, self.primitive(owner, version)
        except KeyMissing:
            self.check_not_erased(owner)  # the owner was erased after `ensure` had looked
            raise

    def primitive(self, owner: str, version: int) -> StreamingAead:
        """The primitive of one version, from memory where it is there. To seal, use `newest_primitive`. Raises KeyMissing."""
        from tink import streaming_aead

        key = (check_owner(owner), version)
        with self._lock:
            cached = self._primitives.get(key)
            if cached and cached[0] > time.monotonic():
                self._primitives.move_to_end(key)
                return cached[1]
        primitive = self.unwrap_version(owner, version).primitive(streaming_aead.StreamingAead)
        self._cache(self._primitives, key, primitive)
        return primitive

    def erase(self, owner: str) -> int:
        """Mark the owner as erased, delete their keysets from store and memory; returns how many were stored.

        The marker comes first: whoever stores a keyset after the others were listed sees it and deletes theirs.
        Raises InputError for the service itself.
        """
        if owner == SERVICE:
            raise InputError("the service's own keys are not erased: everything it signed and sealed depends on them")
        with suppress(BlobExists):
            self.store.put_new(_marker(owner), b"")
        names = list(self.store.list(f"{KEYSETS}/{check_owner(owner)}/"))
        for name in names:
            self.store.delete(name)
        with self._lock:
            self._newest.pop(owner, None)
            for key in [key for key in self._primitives if key[0] == owner]:
                del self._primitives[key]
        return len(names)

    def rewrap(self) -> int:
        """Wrap every keyset by `kek_uri`; returns how many were wrapped by another key, which can then be destroyed.

        The copy under the old key is deleted once the new one is stored, so that an interrupted rewrap can be repeated.
        Owners that are erased meanwhile stay erased.
        """
        moved = 0
        for name in list(self.store.list(f"{KEYSETS}/")):
            with suppress(BlobMissing, OwnerErased):
                moved += self._rewrap_keyset(name)
        return moved

    def _rewrap_keyset(self, name: str) -> bool:
        """Wrap one keyset by `kek_uri`; False where it is already. Raises BlobMissing or OwnerErased when its owner was erased."""
        entry = _parse_entry(self.store.get(name))
        if entry["kek"] == self._kek_name(self.kek_uri):
            return False
        _, owner, _ = name.split("/")
        with suppress(BlobExists):
            self._put(owner, _version(name), self._unwrap(name, entry), uri=self.kek_uri)
        self.store.delete(name)
        return True

    def _cache(self, cache: OrderedDict[Any, tuple[float, Any]], key: Any, value: Any) -> None:
        """Put a value with the time until which it holds; the least recently used beyond CACHE_SIZE are dropped."""
        with self._lock:
            cache[key] = (time.monotonic() + CACHE_S, value)
            cache.move_to_end(key)
            while len(cache) > CACHE_SIZE:
                cache.popitem(last=False)

    def _put(self, owner: str, version: int, handle: KeysetHandle, *, uri: str) -> None:
        """Store a keyset, wrapped by the key at `uri`.

        Raises BlobExists; OwnerErased, and leaves no keyset, where the owner was erased before or while it was stored.
        """
        from tink import proto_keyset_format

        associated_data = _associated_data(check_owner(owner), version)
        wrapped = proto_keyset_format.serialize_encrypted(handle, open_kek(uri), associated_data)
        # Unwrapped once before it is stored: Tink's KMS client checks no checksums of what it received.
        proto_keyset_format.parse_encrypted(wrapped, open_kek(uri), associated_data)
        content = {"kek": self._kek_name(uri), "wrapped": base64.b64encode(wrapped).decode()}
        name = _name(owner, version, content["kek"])
        self.check_not_erased(owner)
        self.store.put_new(name, json.dumps(content).encode())
        if self.is_erased(owner):
            self.store.delete(name)
            self.check_not_erased(owner)

    def unwrap_version(self, owner: str, version: int) -> KeysetHandle:
        """The keyset of one version, never from memory. Raises KeyMissing; PhotoFluxError where the wrapping key does not open it."""
        for _ in range(UNWRAP_TRIES):
            names = [name for name in self.store.list(f"{KEYSETS}/{owner}/") if _version(name) == version]
            for name in names:
                with suppress(BlobMissing):  # rewrapped or erased since it was listed
                    return self._unwrap(name, _parse_entry(self.store.get(name)))
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
            kek = open_kek(self._kek_uri(entry["kek"]))
            return proto_keyset_format.parse_encrypted(wrapped, kek, _associated_data(owner, _version(name)))
        except (tink.TinkError, binascii.Error) as error:
            raise PhotoFluxError(
                f"keyset {name} cannot be unwrapped by {entry['kek']}: the key was destroyed or changed, or the keyset is "
                "damaged; restore them from one epoch"
            ) from error

    def _kek_name(self, uri: str) -> str:
        """The name by which keysets refer to the key at `uri`; that of the local key file stays when its folder is moved."""
        return LOCAL_KEK_NAME if uri == self.local_kek_uri else uri

    def _kek_uri(self, kek_name: str) -> str:
        """The URI of the key that a keyset names.

        Older keysets name the local key file by its path at that time: where no file is there now, the present one is meant.
        """
        if kek_name == LOCAL_KEK_NAME:
            return self.local_kek_uri or self.kek_uri
        missing = kek_name.startswith(LOCAL) and not Path(kek_name.removeprefix(LOCAL)).is_file()
        same_file_name = bool(self.local_kek_uri) and Path(kek_name).name == Path(self.local_kek_uri).name
        return self.local_kek_uri if missing and same_file_name else kek_name


def check_owner(owner: str) -> str:
    """The owner's id itself. Raises InputError for one that is not made of a-z, 0-9 and '-'."""
    if not OWNER.fullmatch(owner):
        raise InputError(f"owner {owner!r}: use 1 to 63 of a-z, 0-9 and '-', beginning with a letter or digit")
    return owner


def _marker(owner: str) -> str:
    return f"{ERASED}/{check_owner(owner)}"


def _name(owner: str, version: int, uri: str) -> str:
    """A name per version and key: `rewrap` stores a keyset under the new key beside the one under the old key."""
    return f"{KEYSETS}/{owner}/{version}.{hashlib.sha256(uri.encode()).hexdigest()[:12]}"


def _version(name: str) -> int:
    return int(name.rsplit("/", 1)[1].split(".")[0])


def _associated_data(owner: str, version: int) -> bytes:
    return f"photoflux-keyset|{owner}|{version}".encode()


def _parse_entry(content: bytes) -> dict[str, str]:
    return json.loads(content)
