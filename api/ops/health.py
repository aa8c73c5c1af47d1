"""Whether what the service needs can be reached, asked seldom: probes come every few seconds, and key services count calls."""

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

KEPT_S = 10.0
NOWHERE = "photos/nobody/none"


@dataclass
class Health:
    """What is missing, as it was found within the last ten seconds."""

    records: Records
    objects: Objects
    _found: str = ""
    _at: float = -KEPT_S
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def missing(self) -> str:
        """The first thing that cannot be reached; empty when all is well."""
        with self._lock:
            if time.monotonic() - self._at >= KEPT_S:
                self._found, self._at = self._look(), time.monotonic()
            return self._found

    def _look(self) -> str:
        needed: dict[str, Callable[[], object]] = {
            "The records": self._ask_records, "The objects": self._ask_objects, "The keys": self._ask_keys
        }  # fmt: skip
        for name, ask in needed.items():
            try:
                ask()
            except Exception as error:
                log.warning("%s cannot be reached: %s", name.lower(), type(error).__name__)
                return name
        return ""

    def _ask_records(self) -> None:
        with self.records.reading() as session:
            session.execute(text("select 1"))

    def _ask_objects(self) -> None:
        try:
            self.objects.store.get(NOWHERE)
        except BlobMissing:
            return

    def _ask_keys(self) -> None:
        """The wrapping key opens the service's own keyset, anew."""
        keyring = self.objects.keyring
        keyring.unwrap_version(OWNER, keyring.ensure(OWNER))
