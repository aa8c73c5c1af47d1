"""Publish reports: of a person in two copies, an open one with numbers alone and a full one that is sealed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from photoflux.vault import committed


class Savable(Protocol):
    """A page that can be saved in full, or without personal content."""

    def save(self, path: Path, *, full: bool) -> Path: ...


def is_personal(subject: Mapping[str, Any]) -> bool:
    """Whether images of this subject must be sealed: all but those of published sample data."""
    return subject.get("consent") != "sample"


def sealed_beside(report: Path) -> Path:
    """The path of the sealed copy."""
    return report.with_name(f"{report.stem}-sealed{report.suffix}")


def publish(report: Path, page: Savable, *, subject: Mapping[str, Any], key: str) -> Path:
    """Write the page to `report`, and return that; of a person an open copy there, and the full one sealed beside it."""
    personal = is_personal(subject)
    if personal:
        with committed(sealed_beside(report), key=key) as path:
            page.save(path, full=True)
    return page.save(report, full=not personal)
