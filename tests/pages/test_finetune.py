"""The fine-tuning page: why a candidate was kept, what all of them drew, the curves and the lineage, in one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from photoflux.flux.memory import Device, Plan
from photoflux.judges.checkpoint_selection import PREVIEWS
from photoflux.pages.finetune import WINDOW_STEPS, finetune_page, moving_average
from photoflux.pages.page import Page
from photoflux.params import as_dict
from photoflux.report import publish, sealed_beside
from tests.flux.training import pictures, small

PLAN = Plan("cpu", "float32", "float32", False, 1, 0.1, 0.2, 0.3, 0.4, 0.5, 8)
SCORED = [
    {"step": 3, "validation": 1.25, "identity": 0.4, "prompt": 0.9, "leakage": 0.05, "diversity": 0.95, "score": 0.36},
    {"step": 6, "validation": 1.125, "identity": 0.6, "prompt": 0.8, "leakage": 0.5, "diversity": 0.85, "score": 0.08},
]
UNSCORED = [{"step": 3, "validation": 1.25}, {"step": 6, "validation": 1.125}]


LINEAGE = {
    "subject": {"trigger": "sks", "class_noun": "dog", "consent": "sample"}, "base": {"name": "tiny", "hash": "ba5e"},
    "params": as_dict(small("tiny")), "dataset": "da7a", "weights": "3e1947", "scores": SCORED[0],
}  # fmt: skip
CURVE = {
    "steps": list(range(1, 7)), "subject": [1.0, 0.9, 0.8, 0.7, 0.6, 0.5], "preserved": [0.0, 0.1, 0.1, 0.2, 0.1, 0.1],
}  # fmt: skip


def page(*, candidates: Sequence[dict[str, Any]] = SCORED, curve: dict[str, Any] = CURVE, **lineage: Any) -> Page:
    """Of a finished training of six steps with two candidates."""
    return finetune_page(
        LINEAGE | lineage,
        curves={**curve, "candidates": candidates},
        previews={candidate["step"]: pictures(sum(PREVIEWS), side_px=32) for candidate in candidates},
        base=pictures(8, side_px=32),
        photos=pictures(3),
        plans=[PLAN, replace(PLAN, device="cuda, 24 GB")],
        seconds=12.4,
        skipped=2,
    )


def test_a_persons_pictures_are_on_the_sealed_copy_only(tmp_path: Path) -> None:
    """The open page keeps plots and numbers; sample people are shown openly."""
    subject = {"trigger": "sks", "class_noun": "person", "consent": "own"}
    path = publish(tmp_path / "report.html", page(subject=subject), subject=subject, key="plain://demo")
    full = sealed_beside(path)
    assert (path.read_text().count("base64,"), full.read_text().count("base64,")) == (3, 5)
    assert "Training pictures" not in path.read_text()
    sample = subject | {"consent": "sample"}
    shown = publish(tmp_path / "sample.html", page(subject=sample), subject=sample, key="plain://demo")
    assert shown.read_text().count("base64,") == 5
    assert not sealed_beside(shown).exists()


def test_the_page_says_what_was_done_and_why() -> None:
    """Title, sizes and seconds, the kept step with its reason, every candidate's numbers, plan, parameters, hashes."""
    text = page().html(full=True)
    assert "Fine-tuning: sks dog" in text
    assert "3 training pictures, 6 steps in 12 s on base tiny" in text
    assert "Step 3 was kept: the best of identity gain times prompt following, less leakage beyond 0.10" in text
    assert "and what is missing to a diversity of 0.90. Held-out photos had no part in that." in text
    for shown in ("1.250", "1.125", "0.600", "memory plan for cpu", "cuda, 24 GB", "ba5e", "da7a", "3e1947", "0.01"):
        assert shown in text
    assert text.count(">kept<") == 1
    assert "<dt>steps skipped (not finite)</dt><dd>2</dd>" in text


def test_the_page_stands_alone() -> None:
    """One file, every picture inside: no address is fetched and no script runs."""
    text = page().html(full=True)
    assert "http" not in text
    assert "<script" not in text
    images = [part.split('"')[0] for part in text.split("base64,")[1:]]
    opened = [Image.open(io.BytesIO(base64.b64decode(image))) for image in images]
    assert len(opened) == 5
    assert all(image.width > 300 for image in opened)


def test_the_sheet_has_a_row_per_candidate_and_one_of_the_base() -> None:
    """Three rows of six tiles; one candidate less is one row less."""
    heights = []
    for candidates in (SCORED, SCORED[:1]):
        text = page(candidates=candidates).html(full=True)
        sheet = Image.open(io.BytesIO(base64.b64decode(text.split("base64,")[1].split('"')[0])))
        heights.append(sheet.height)
    assert heights[0] * 2 == heights[1] * 3


@pytest.mark.parametrize(
    ("candidates", "select", "kept", "why"),
    [
        (UNSCORED, "best", 6, "This base has no judges: the last candidate, step 6, was kept."),
        (SCORED, "last", 6, "The last candidate, step 6, was kept as asked (finetune.select is last)."),
        ([{"step": 3, "validation": None}], "best", 3, "This base has no judges: the last candidate, step 3"),
    ],
    ids=["no judges", "last", "nothing held out"],
)
def test_the_reason_fits_the_choice(candidates: list[dict[str, Any]], select: str, kept: int, why: str) -> None:
    """Without judges no likeness is plotted; a missing validation loss is written as none."""
    chosen = next(c for c in candidates if c["step"] == kept)
    params = as_dict(small("tiny", select=select))
    text = page(candidates=candidates, params=params, scores=chosen).html(full=True)
    assert why in text
    assert ("Likeness against what it costs" in text) is ("score" in chosen)
    assert (">none<" in text) is (chosen["validation"] is None)


def test_a_training_without_preservation_plots_photos_alone() -> None:
    """An empty preserved curve is left out and breaks nothing; nor does a training of one step."""
    curve = {"steps": [1], "subject": [0.5], "preserved": [0.0]}
    assert "Velocity error" in page(curve=curve).html(full=True)


def test_curves_are_smoothed_over_the_steps_before() -> None:
    """Mean of each value and up to ten before it, by hand; the length stays, nothing is looked up ahead."""
    assert moving_average([4.0, 2.0, 0.0]) == [4.0, 3.0, 2.0]
    assert moving_average([]) == []
    step = moving_average([0.0] * 20 + [11.0] * 20)
    assert step[:20] == [0.0] * 20
    assert step[20] == 11 / (WINDOW_STEPS + 1)
    assert step[30:] == [11.0] * 10


def test_the_device_classes_are_named() -> None:
    """A device's kind decides its overhead: cuda by its name, everything else is the CPU."""
    assert [Device(name, 1).kind for name in ("cuda:1", "cuda, 16 GB, Volta", "cpu")] == ["cuda", "cuda", "cpu"]
