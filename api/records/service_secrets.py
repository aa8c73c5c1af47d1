"""The service's own secrets: made once, kept sealed beside the keysets, the same for all its processes."""

from __future__ import annotations

import hashlib
import hmac
import os
import re

from photoflux.vault.blobs import BlobExists, BlobMissing
from photoflux.vault.keyring import Keyring
from photoflux.vault.sealed import Label, seal_bytes, unseal_bytes

OWNER = "service"
SECRETS = "secrets"


def service_label(kind: str, name: str) -> Label:
    """The label of what the service seals under its own keyset."""
    return Label(OWNER, kind, name)


def service_secret(keyring: Keyring, name: str) -> bytes:
    """32 random bytes for one purpose, made by the process that asks first and then the same for all; callers keep them.

    `name` is of lower-case letters and hyphens.
    """
    if not re.fullmatch(r"[a-z]+(-[a-z]+)*", name):
        raise ValueError(f"a secret's name is of lower-case letters and hyphens, not {name!r}")
    blob, label = f"{SECRETS}/{name}", service_label("secret", name)
    while True:
        try:
            return unseal_bytes(keyring.store.get(blob), label=label, keyring=keyring)
        except BlobMissing:
            pass
        try:
            keyring.store.put_new(blob, seal_bytes(os.urandom(32), label=label, keyring=keyring))
        except BlobExists:
            continue  # another process was first: theirs is the one


def pepper(keyring: Keyring) -> bytes:
    """The key of digests of personal values: without it, a guessed value cannot be compared with a digest."""
    return service_secret(keyring, "pepper")


def keyed_digest(key: bytes, *parts: str) -> str:
    """HMAC-SHA256 of the parts, 64 hexadecimal digits; ("a", "bc") and ("ab", "c") differ."""
    message = b"".join(len(part.encode()).to_bytes(8, "big") + part.encode() for part in parts)
    return hmac.new(key, message, hashlib.sha256).hexdigest()
