"""The report of a photo check: verdict and score, advice on each photo, the measures, and every rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from photoflux.pages.page import Page
from photoflux.pages.palette import BAD, BLANK, DOUBTFUL, GOOD, INK, SOFT
from photoflux.photos.rules import REJECT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from photoflux.photos.suite import Finding
    from photoflux.photos.verdict import Verdict

THUMB_PX = 132
MEASURES = {
    "short_side_px": "short side", "sharpness": "sharpness", "reblur": "re-blur", "noise": "grain",
    "detail": "detail", "luma_p50": "brightness", "entropy": "bits", "closest": "likeness",
}  # fmt: skip
FACT_NOTES = {
    "had_gps": "location removed", "was_rotated": "turned upright", "had_alpha": "laid on white",
    "was_deep": "scaled to 8 bit", "had_icc": "colour profile applied",
}  # fmt: skip
MEASURES_NOTE = (
    "Sharpness, re-blur and grain are read at 512 px; likeness is the correlation with the most similar other "
    "photo at the best shift, size and mirroring."
)
RULES_NOTE = "Great Expectations decides, by the suites in data/expectations; its own page lies beside this one."


def validation_page(
    manifest: Mapping[str, Any],
    *,
    rows: Sequence[Mapping[str, Any]],
    verdict: Verdict,
    findings: Sequence[Finding],
    thumbs: Mapping[str, Image.Image],
) -> Page:
    """The report. Pictures and file names, which are personal, are on the full copy alone."""
    subject = manifest.get("subject", {})
    about = f"{subject.get('id', '')} · {subject.get('class_noun', '')} · {len(rows)} photos"
    page = Page("Photo check", subtitle=about, full_subtitle=f"{about} from {manifest.get('source', '')}")
    page.verdict(verdict.verdict.upper(), _headline(verdict))
    page.section("The set as a whole")
    page.figure(
        _score_figure(verdict), f"Score {verdict.score} of 100: what the set is worth for training, in four parts"
    )
    with page.only(full=True):
        _add_photos(page, rows, verdict, thumbs)
    page.section("Rules")
    for full in (True, False):
        with page.only(full=full):
            page.table([_rule_row(finding, full=full) for finding in findings], caption=RULES_NOTE)
    return page


def thumbnail(image: Image.Image) -> Image.Image:
    """A small copy for the report."""
    thumb = image.copy()
    thumb.thumbnail((THUMB_PX * 2, THUMB_PX))
    return thumb


def _add_photos(
    page: Page, rows: Sequence[Mapping[str, Any]], verdict: Verdict, thumbs: Mapping[str, Image.Image]
) -> None:
    if verdict.advice:
        page.table([{"": str(i), "what would make it better": line} for i, line in enumerate(verdict.advice, 1)])
    page.section("Photo by photo")
    page.table([_photo_row(photo, thumbs) for photo in verdict.photos])
    page.section("Measures")
    page.table([_measure_row(row) for row in rows if row["decoded"]], caption=MEASURES_NOTE)


def _headline(verdict: Verdict) -> str:
    whole = verdict.whole
    if verdict.verdict == REJECT:
        return f"The set cannot be trained on: {whole['usable']} of {whole['files']} photos can be used."
    dropped = whole["files"] - whole["usable"]
    goes_on = f"; {dropped} left out, the run goes on with the rest" if dropped else ""
    return f"{whole['usable']} of {whole['files']} photos can be used{goes_on}. Score {verdict.score} of 100."


def _score_figure(verdict: Verdict) -> Figure:
    """One bar per part of the score, in the colours of the page."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 1.9))
    axes = figure.subplots()
    for y, part in enumerate(reversed(verdict.parts)):
        share = part["points"] / part["of"]
        tone = GOOD if share >= 0.8 else DOUBTFUL if share >= 0.4 else BAD
        axes.barh(y, 1, color=BLANK, height=0.5)
        axes.barh(y, share, color=tone, height=0.5)
        axes.text(-0.015, y, part["part"], ha="right", va="center", fontsize=9, color=INK)
        axes.text(1.015, y, f"{part['points']:g} / {part['of']}", ha="left", va="center", fontsize=9, color=INK)
        axes.text(1.13, y, part["why"], ha="left", va="center", fontsize=8, color=SOFT)
    axes.set_xlim(0, 1)
    axes.axis("off")
    return figure


def _photo_row(photo: Mapping[str, Any], thumbs: Mapping[str, Image.Image]) -> dict[str, object]:
    blank = Image.new("RGB", (THUMB_PX, THUMB_PX), BLANK)
    messages = [reason["message"] for reason in photo["reasons"]]
    messages_text = ". ".join(message[:1].upper() + message[1:] for message in messages)
    return {
        "photo": thumbs.get(photo["file"], blank),
        "file": photo["file"],
        "verdict": photo["status"],
        "what to do": f"{messages_text}." if messages_text else "Nothing: a good photo.",
    }


def _measure_row(row: Mapping[str, Any]) -> dict[str, object]:
    facts = row["facts"]
    line: dict[str, object] = {
        "file": row["file"],
        "format": facts["format"],
        "size": f"{row['width_px']}×{row['height_px']}",
    }
    line |= {title: _format_measure(row[name]) for name, title in MEASURES.items() if name != "short_side_px"}
    return line | {"done": ", ".join(text for fact, text in FACT_NOTES.items() if facts.get(fact))}


def _rule_row(finding: Finding, *, full: bool) -> dict[str, object]:
    rule = finding.rule
    return {
        "rule": rule.code.replace("_", " "),
        "of the": rule.level,
        "column": rule.column,
        "verdict": "ok" if finding.met else rule.severity,
        "photos": ", ".join(finding.files) if full else len(finding.files),
    }


def _format_measure(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"
