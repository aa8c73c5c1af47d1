"""The fine-tuning report: what was learnt when, which candidate was kept and why, and what it draws."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from photoflux.flux.candidates import DIVERSITY_FREE, LEAKAGE_FREE, SHOWN
from photoflux.report import Report, contact_sheet, publish

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from photoflux.steps.finetune import Trained

SMOOTHED_STEPS = 10
BLUE, ORANGE, RED = "#3b6fd4", "#d4793b", "#b3261e"


def write_report(trained: Trained, lineage: dict[str, Any], path: Path, *, key: str) -> Path:
    """Write the open page to `path` and, where the subject is a person, the full one sealed beside it."""
    return publish(path, partial(_page, trained, lineage), subject=lineage["subject"], key=key)


def _page(trained: Trained, lineage: dict[str, Any], *, full: bool) -> Report:
    subject, kept = lineage["subject"], trained.kept
    page = Report(
        f"Fine-tuning: {subject['trigger']} {subject['class_noun']}",
        subtitle=f"{len(trained.photos)} training pictures, {lineage['params']['steps']} steps in {trained.seconds:.0f} s "
        f"on base {lineage['base']['name']}",
    )  # fmt: skip
    page.verdict("OK", _why(trained))
    page.section("Candidates")
    page.table([_row(candidate, kept["step"]) for candidate in trained.module.candidates], _what_numbers_mean(trained))
    if full:
        page.image(
            _sheet(trained), "Every candidate draws the same prompts with the same noise, at the steps of serving."
        )
    page.section("Curves")
    page.figure(_losses(trained), "Velocity error of photos and of what is preserved, smoothed")
    page.figure(_validation(trained), "Velocity error on held-out photos at the noise levels of serving, fixed noise")
    if "score" in kept:
        page.figure(_choice(trained), "Likeness against what it costs; the ringed candidate was kept")
    if full:
        page.section("Training pictures")
        page.image(contact_sheet([trained.photos[:8]], row_labels=["as the base is shown them"]))
    _add_facts(page, trained, lineage)
    return page


def _add_facts(page: Report, trained: Trained, lineage: dict[str, Any]) -> None:
    page.section("Memory")
    page.text(str(trained.plan))
    page.table([plan.row() for plan in trained.other_plans], "What the same training needs of other devices")
    page.section("Facts")
    page.facts({
        **lineage["params"], "dataset": lineage["dataset"], "base hash": lineage["base"]["hash"],
        "weights": lineage["weights"], "steps skipped (not finite)": trained.module.skipped,
    })  # fmt: skip


def _why(trained: Trained) -> str:
    step, params = trained.kept["step"], trained.module.params
    if params.select == "last":
        return f"The last candidate, step {step}, was kept as asked (finetune.select is last)."
    if "score" not in trained.kept:
        return f"This base has no judges: the last candidate, step {step}, was kept."
    return (
        f"Step {step} was kept: the best of identity gain times prompt following, less leakage beyond {LEAKAGE_FREE:.2f} "
        f"and what is missing to a diversity of {DIVERSITY_FREE:.2f}. Held-out photos had no part in that."
    )


def _what_numbers_mean(trained: Trained) -> str:
    if "score" not in trained.kept:
        return "validation: loss on held-out photos, which chooses nothing"
    return (
        "identity: likeness to the trained photos, 0 like the base, 1 as alike as two of them; prompt: text-image cosine "
        "over the base's; leakage: identity of pictures without the trigger; diversity: how differently pictures of one "
        "prompt are composed, over the base's; validation: loss on held-out photos, which chooses nothing"
    )


def _row(candidate: dict[str, Any], kept: int) -> dict[str, object]:
    shown = {name: "none" if value is None else value for name, value in candidate.items()}
    return {**shown, "": "kept" if candidate["step"] == kept else ""}


def _sheet(trained: Trained) -> Image.Image:
    subject, plain = SHOWN
    rows, labels = [], []
    for candidate in trained.module.candidates:
        rows.append([_opened(file) for file in trained.contest.previews(candidate["step"])])
        labels.append(f"step {candidate['step']}: {subject} of the subject, {plain} of its class without the trigger")
    rows.append(trained.contest.base[: subject + plain])
    labels.append("base: its class without the trigger")
    return contact_sheet(rows, row_labels=labels)


def _opened(file: bytes) -> Image.Image:
    with Image.open(io.BytesIO(file)) as image:
        return image.convert("RGB")


def _figure(width: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _losses(trained: Trained) -> Figure:
    figure, axes = _figure(6.2)
    curve = trained.module.curve
    for name, values, colour in (("photos", curve.subject, BLUE), ("preserved", curve.preserved, ORANGE)):
        if any(values):
            axes.plot(curve.steps, smoothed(values), color=colour, label=name)
    axes.set(xlabel="step", ylabel="mean squared error", ylim=(0, None))
    axes.legend(frameon=False)
    return figure


def _validation(trained: Trained) -> Figure:
    figure, axes = _figure(4.2)
    points = [(c["step"], c["validation"]) for c in trained.module.candidates if c["validation"] is not None]
    axes.plot([step for step, _ in points], [loss for _, loss in points], "o-", color=BLUE)
    axes.set(xlabel="step", ylabel="mean squared error")
    return figure


def _choice(trained: Trained) -> Figure:
    figure, axes = _figure(5.0)
    scored = [c for c in trained.module.candidates if "score" in c]
    axes.plot([c["identity"] for c in scored], [c["leakage"] for c in scored], "o-", color=BLUE, alpha=0.8)
    for c in scored:
        axes.annotate(f" {c['step']}", (c["identity"], c["leakage"]), fontsize=8)
    axes.plot(trained.kept["identity"], trained.kept["leakage"], "o", ms=14, mfc="none", color=RED)
    axes.set(xlabel="identity gain", ylabel="leakage into the class")
    return figure


def smoothed(values: Sequence[float]) -> list[float]:
    """Mean of each value and up to SMOOTHED_STEPS before it."""
    windows = (values[max(0, i - SMOOTHED_STEPS) : i + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
