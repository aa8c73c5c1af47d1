"""The data inventory: `python -m api.ops.inventory` writes docs/ropa.md, the record of processing activities (Art. 30 GDPR)."""

from __future__ import annotations

import sys
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from api.settings import RetentionPeriods

FILE = Path(__file__).parent / "inventory.yaml"
PAGE = Path(__file__).parents[2] / "docs" / "ropa.md"


class Activity(BaseModel):
    """One processing activity, and where its data lies."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    title: str
    purpose: str
    legal_basis: str
    people: str
    data: str
    retention: str
    erased: str
    tables: list[str]
    sealed: list[str]
    objects: list[str]
    files: list[str]
    library_tables: bool = False


class Inventory(BaseModel):
    """All processing activities."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    controller: str
    processors: list[str]
    transfers: str
    measures: str
    activities: list[Activity]

    def holds_file(self, name: str) -> bool:
        """Whether a file of the state folder, by its path there, is accounted for."""
        return any(fnmatch(name, pattern) for activity in self.activities for pattern in activity.files)


@cache
def inventory() -> Inventory:
    """The inventory in the YAML file."""
    return Inventory.model_validate(yaml.safe_load(FILE.read_text(encoding="utf-8")))


def page(retention: RetentionPeriods) -> str:
    """The record of processing activities as Markdown, with the periods of `retention`."""
    found = inventory()
    parts = [
        "# Record of processing activities",
        "",
        "Written by `python -m api.ops.inventory` from [api/ops/inventory.yaml](../api/ops/inventory.yaml); tests hold it against the",
        "tables, objects and files that there are.",
        "",
        f"**Controller.** {found.controller}",
        "",
        f"**Processors.** {'; '.join(found.processors)}.",
        "",
        f"**Transfers.** {found.transfers}",
        "",
        f"**Measures.** {found.measures}",
    ]
    for one in found.activities:
        places = [*(f"table `{name}`" for name in one.tables), *(f"objects `{name}`" for name in one.objects)]
        places += [f"files `{name}`" for name in one.files]
        rows = {
            "Purpose": one.purpose,
            "Legal ground": one.legal_basis,
            "People": one.people,
            "Data": one.data,
            "Kept": one.retention.format(retention=retention),
            "Erased": one.erased,
            "Where": ", ".join(places) or "with the library's tables",
            "Sealed columns": ", ".join(f"`{name}`" for name in one.sealed) or "none",
        }
        parts += ["", f"## {one.title}", "| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())]
    return "\n".join(parts) + "\n"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(RetentionPeriods()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
