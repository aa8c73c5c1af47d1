"""Readiness of database, object store and key service. Cached: probes come every few seconds, and key services charge by call."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from sqlalchemy import text

from api.records.database import Records
from api.records.service_secrets import OWNER
from photoflux.vault.blobs import BlobMissing
from photoflux.vault.objects import Objects

log = logging.getLogger(__name__)

CACHE_S = 10.0
MISSING_BLOB = "photos/nobody/none"


@dataclass
class Health:
    """Checks what the service needs; a result holds for CACHE_S."""

    records: Records
    objects: Objects
    _found: str = ""
    _at: float = -CACHE_S
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def unreachable(self) -> str:
        """The first thing that cannot be reached; empty when all is well."""
        with self._lock:
            if time.monotonic() - self._at >= CACHE_S:
                self._found, self._at = self._probe(), time.monotonic()
            return self._found

    def _probe(self) -> str:
        needed: dict[str, Callable[[], object]] = {
            "The records": self._check_records,
            "The objects": self._check_objects,
            "The keys": self._check_keys,
        }
        for name, check in needed.items():
            try:
                check()
            except Exception as error:
                log.warning("%s cannot be reached: %s", name.lower(), type(error).__name__)
                return name
        return ""

    def _check_records(self) -> None:
        with self.records.reading() as session:
            session.execute(text("select 1"))

    def _check_objects(self) -> None:
        try:
            self.objects.store.get(MISSING_BLOB)
        except BlobMissing:
            return

    def _check_keys(self) -> None:
        """The wrapping key opens the service's own keyset, anew."""
        keyring = self.objects.keyring
        keyring.unwrap_version(OWNER, keyring.ensure(OWNER))
