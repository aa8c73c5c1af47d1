"""The report of a fine-tuning: curves, the selected checkpoint and why, and its previews."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from photoflux.judges.checkpoint_selection import DIVERSITY_FREE, LEAKAGE_FREE, PREVIEWS
from photoflux.pages.contact_sheet import contact_sheet
from photoflux.pages.page import Page
from photoflux.pages.palette import BAD, BLUE, DOUBTFUL

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from photoflux.flux.memory import Plan

WINDOW_STEPS = 10
Pictures = Sequence["Image.Image"]


def finetune_page(
    lineage: Mapping[str, Any],
    *,
    curves: Mapping[str, Any],
    previews: Mapping[int, Pictures],
    base: Pictures,
    photos: Pictures,
    plans: Sequence[Plan],
    seconds: float,
    skipped: int,
) -> Page:
    """The report. `curves`: losses by train step, and the scores of each checkpoint; `previews`: images of a checkpoint by its
    train step; `plans`: the memory plan of the device, then those of other devices.
    """
    subject, selected, candidates = lineage["subject"], lineage["scores"], curves["candidates"]
    page = Page(
        f"Fine-tuning: {subject['trigger']} {subject['class_noun']}",
        subtitle=f"{len(photos)} training pictures, {lineage['params']['steps']} steps in {seconds:.0f} s "
        f"on base {lineage['base']['name']}",
    )
    page.verdict("OK", _selection_sentence(selected, select=lineage["params"]["select"]))
    page.section("Candidates")
    page.table([_row(candidate, selected["step"]) for candidate in candidates], _column_notes(selected))
    with page.only(full=True):
        page.image(
            _preview_sheet(previews, base),
            "Every candidate draws the same prompts with the same noise, at the steps of serving.",
        )
    page.section("Curves")
    page.figure(_losses(curves), "Velocity error of photos and of what is preserved, smoothed")
    page.figure(
        _validation(candidates), "Velocity error on held-out photos at the noise levels of serving, fixed noise"
    )
    if "score" in selected:
        page.figure(_trade_off(candidates, selected), "Likeness against what it costs; the ringed candidate was kept")
    with page.only(full=True):
        page.section("Training pictures")
        page.image(contact_sheet([photos[:8]], row_labels=["as the base is shown them"]))
    page.section("Memory")
    page.text(str(plans[0]))
    page.table([plan.row() for plan in plans[1:]], "What the same training needs of other devices")
    page.section("Facts")
    hashes = {"dataset": lineage["dataset"], "base hash": lineage["base"]["hash"], "weights": lineage["weights"]}
    page.facts({**lineage["params"], **hashes, "steps skipped (not finite)": skipped})
    return page


def _selection_sentence(selected: Mapping[str, Any], *, select: str) -> str:
    if select == "last":
        return f"The last candidate, step {selected['step']}, was kept as asked (finetune.select is last)."
    if "score" not in selected:
        return f"This base has no judges: the last candidate, step {selected['step']}, was kept."
    return (
        f"Step {selected['step']} was kept: the best of identity gain times prompt following, less leakage beyond {LEAKAGE_FREE:.2f} "
        f"and what is missing to a diversity of {DIVERSITY_FREE:.2f}. Held-out photos had no part in that."
    )


def _column_notes(selected: Mapping[str, Any]) -> str:
    if "score" not in selected:
        return "validation: loss on held-out photos, which chooses nothing"
    return (
        "identity: likeness to the trained photos, 0 like the base, 1 as alike as two of them; prompt: text-image cosine "
        "over the base's; leakage: identity of pictures without the trigger; diversity: how differently pictures of one "
        "prompt are composed, over the base's; validation: loss on held-out photos, which chooses nothing"
    )


def _row(candidate: Mapping[str, Any], selected: int) -> dict[str, object]:
    shown = {name: "none" if value is None else value for name, value in candidate.items()}
    return {**shown, "": "kept" if candidate["step"] == selected else ""}


def _preview_sheet(previews: Mapping[int, Pictures], base: Pictures) -> Image.Image:
    subject, class_alone = PREVIEWS
    caption = f"{subject} of the subject, {class_alone} of its class without the trigger"
    labels = [*(f"step {step}: {caption}" for step in previews), "base: its class without the trigger"]
    return contact_sheet([*previews.values(), base[: subject + class_alone]], row_labels=labels)


def _figure(width: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _losses(curves: Mapping[str, Any]) -> Figure:
    figure, axes = _figure(6.2)
    for name, key, colour in (("photos", "subject", BLUE), ("preserved", "preserved", DOUBTFUL)):
        if any(curves[key]):
            axes.plot(curves["steps"], moving_average(curves[key]), color=colour, label=name)
    axes.set(xlabel="step", ylabel="mean squared error", ylim=(0, None))
    axes.legend(frameon=False)
    return figure


def _validation(candidates: Sequence[Mapping[str, Any]]) -> Figure:
    figure, axes = _figure(4.2)
    points = [(c["step"], c["validation"]) for c in candidates if c["validation"] is not None]
    axes.plot([step for step, _ in points], [loss for _, loss in points], "o-", color=BLUE)
    axes.set(xlabel="step", ylabel="mean squared error")
    return figure


def _trade_off(candidates: Sequence[Mapping[str, Any]], selected: Mapping[str, Any]) -> Figure:
    figure, axes = _figure(5.0)
    scored = [c for c in candidates if "score" in c]
    axes.plot([c["identity"] for c in scored], [c["leakage"] for c in scored], "o-", color=BLUE, alpha=0.8)
    for c in scored:
        axes.annotate(f" {c['step']}", (c["identity"], c["leakage"]), fontsize=8)
    axes.plot(selected["identity"], selected["leakage"], "o", ms=14, mfc="none", color=BAD)
    axes.set(xlabel="identity gain", ylabel="leakage into the class")
    return figure


def moving_average(values: Sequence[float]) -> list[float]:
    """Moving average over each value and up to WINDOW_STEPS before it."""
    windows = (values[max(0, i - WINDOW_STEPS) : i + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
