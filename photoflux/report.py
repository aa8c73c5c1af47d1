"""Reports exist twice where they show a person: open, with numbers alone, and in full, sealed beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from photoflux.vault import committed


class Savable(Protocol):
    """What can be written as one HTML file: in full, or without what is a person's own."""

    def save(self, path: Path, *, full: bool) -> Path: ...


def is_personal(subject: Mapping[str, Any]) -> bool:
    """Whether pictures of this subject stay sealed: all but those of published sample data."""
    return subject.get("consent") != "sample"


def sealed_beside(report: Path) -> Path:
    """Where the copy with the subject's pictures lies."""
    return report.with_name(f"{report.stem}-sealed{report.suffix}")


def publish(report: Path, page: Savable, *, subject: Mapping[str, Any], key: str) -> Path:
    """Write the page in full; of a person the open copy, with the full one sealed under `key` beside it.

    Returns `report`.
    """
    personal = is_personal(subject)
    if personal:
        with committed(sealed_beside(report), key=key) as path:
            page.save(path, full=True)
    return page.save(report, full=not personal)
