"""The service's own secrets: made once, kept sealed beside the keysets, the same for all its processes."""

from __future__ import annotations

import hashlib
import hmac
import os

from photoflux.vault.blobs import BlobExists, BlobMissing
from photoflux.vault.keyring import Keyring
from photoflux.vault.sealed import Label, seal_bytes, unseal_bytes

OWNER = "service"
PEPPER = "secrets/pepper"


def service_label(kind: str, name: str) -> Label:
    """Under which the service seals what is its own."""
    return Label(OWNER, kind, name)


def pepper(keyring: Keyring) -> bytes:
    """32 random bytes that digests of personal values are keyed with, so that guessing a value does not find its digest."""
    label = service_label("secret", "pepper")
    while True:
        try:
            return unseal_bytes(keyring.store.get(PEPPER), label=label, keyring=keyring)
        except BlobMissing:
            pass
        try:
            keyring.store.put_new(PEPPER, seal_bytes(os.urandom(32), label=label, keyring=keyring))
        except BlobExists:
            continue  # another process was first: theirs is the one


def keyed_digest(key: bytes, *parts: str) -> str:
    """HMAC-SHA256 of the parts, 64 hexadecimal digits; ("a", "bc") and ("ab", "c") differ."""
    message = b"".join(len(part.encode()).to_bytes(8, "big") + part.encode() for part in parts)
    return hmac.new(key, message, hashlib.sha256).hexdigest()
