"""Files that a long step keeps between its tries: sealed as its artifacts are, each of them whole or not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from photoflux.vault import committed, opened


@dataclass(frozen=True)
class SealedStore:
    """Files of one folder under one key URI."""

    folder: Path
    key: str

    def put(self, name: str, data: bytes) -> None:
        """Store a file, in place of the one of that name."""
        with committed(self.folder / name, key=self.key) as unsealed:
            unsealed.write_bytes(data)

    def get(self, name: str) -> bytes | None:
        """The stored bytes; None where there is no file of that name."""
        if not (self.folder / name).is_file():
            return None
        with opened(self.folder / name, key=self.key) as unsealed:
            return unsealed.read_bytes()

    def names(self, pattern: str) -> list[str]:
        """Names that match a shell pattern, sorted."""
        return sorted(file.name for file in self.folder.glob(pattern) if not file.name.startswith("."))

    def subfolder(self, name: str) -> SealedStore:
        """The store of a folder inside this one's, under the same key."""
        return SealedStore(self.folder / name, self.key)
