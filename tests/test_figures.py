"""Figures in prose are those that were measured, or that the code goes by: docs/claims.md says where each comes from."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
SAID = (
    "none one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
WORDS = {word: float(number) for number, word in enumerate(SAID.split())}
WORDS |= {"thirty": 30, "fifty": 50, "hundred": 100, "half": 1 / 2, "quarter": 1 / 4, "fifth": 1 / 5, "tenth": 1 / 10}
UNITS = {
    "%": 0.01, "ms": 0.001, "minute": 60, "minutes": 60, "hour": 3600, "days": 86_400, "KiB": 2**10, "MB": 1e6, "GB": 1e9,
    "GiB": 2**30,
}  # fmt: skip
"""What a word behind a figure makes of it, in seconds, bytes or as a share."""
STORED = {"_ms": 0.001, "_mb": 1e6}
"""What the end of a key makes of its value."""


def figures() -> Iterator[tuple[str, str, str, str]]:
    """Page, what stands there, the file it comes from, and the key in it."""
    for line in (ROOT / "docs/claims.md").read_text(encoding="utf-8").partition("## Figures")[2].splitlines():
        cells = [cell.strip(" `") for cell in line.strip("|").split(" | ")]
        if line.startswith("| `"):
            yield cells[0], cells[1], cells[2], cells[3]


def quantity(text: str) -> tuple[float, float, float]:
    """The first figure in a text, how far it may be off (half of its last digit; nothing where it is a word), and its unit."""
    numeral = re.search(r"-?\d[\d,]*\.?\d*|-?\.\d+", text)
    if numeral:
        value, behind = float(numeral[0].replace(",", "")), text[numeral.end() :]
        slack = 0.5 * 10.0 ** -len(numeral[0].partition(".")[2])
    else:
        word = next(word for word in re.findall(r"\w+", text.lower()) if word in WORDS)
        value, behind, slack = WORDS[word], text.lower().partition(word)[2], 1e-6
    return value, slack, next((UNITS[one] for one in re.findall(r"[%\w]+", behind) if one in UNITS), 1)


def stored(file: str, key: str) -> Any:
    """What a file of results, or a module, has under a key; of several things, how many there are."""
    first, *more = key.split(" / ")
    if file.endswith(".py"):
        found = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), first)
    else:
        text = (ROOT / file).read_text(encoding="utf-8")
        found = (yaml.safe_load(text) if file.endswith(".yaml") else json.loads(text))[first]
    for part in more:
        if isinstance(found, list):
            (found,) = (one for one in found if one["case"] == part)
        elif isinstance(found, dict):
            found = found[part]
        else:
            fields = getattr(found, "model_fields", {})
            found = fields[part].default if part in fields else getattr(found, part)
    return found if isinstance(found, int | float | str) else len(found)


@pytest.mark.parametrize(("page", "said", "file", "key"), figures(), ids=lambda part: part)
def test_a_figure_is_the_one_that_was_measured_or_that_the_code_goes_by(page: str, said: str, file: str, key: str):
    assert said in " ".join((ROOT / page).read_text(encoding="utf-8").split())
    (value, slack, unit), found = quantity(said), stored(file, key)
    if isinstance(found, str):  # rates, such as 240/minute; 1000/10 minutes
        assert value in map(float, re.findall(r"(\d+)/", found))
    else:
        assert value * unit == pytest.approx(found * STORED.get(key[-3:].lower(), 1), abs=slack * unit)
