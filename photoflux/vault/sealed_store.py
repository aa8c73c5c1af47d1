"""Where long work keeps its files between steps: sealed as its artifacts are, each of them whole or not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from photoflux.vault import committed, opened


@dataclass(frozen=True)
class Drawer:
    """Files of one folder under one key URI."""

    folder: Path
    key: str

    def put(self, name: str, data: bytes) -> None:
        """Keep a file, in place of the one of that name."""
        with committed(self.folder / name, key=self.key) as plain:
            plain.write_bytes(data)

    def get(self, name: str) -> bytes | None:
        """What is kept under a name, if anything."""
        if not (self.folder / name).is_file():
            return None
        with opened(self.folder / name, key=self.key) as plain:
            return plain.read_bytes()

    def names(self, pattern: str) -> list[str]:
        """Names that match a shell pattern, sorted."""
        return sorted(file.name for file in self.folder.glob(pattern) if not file.name.startswith("."))

    def within(self, name: str) -> Drawer:
        """A drawer inside this one."""
        return Drawer(self.folder / name, self.key)
