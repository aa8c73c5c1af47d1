"""The page of one bias audit: what changed, how sure that is, what the base was like to begin with."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from photoflux.judges.bias import VERDICTS
from photoflux.judges.colour import MONK_HEX
from photoflux.judges.plots import forest, heat_map, stacked_shares
from photoflux.report import Report, contact_sheet, publish

if TYPE_CHECKING:
    from photoflux.judges.bias import Audit, Finding, People
    from photoflux.judges.prompts import PromptSet
    from photoflux.steps.audit import Draws

SHADES = ("#2f5fb3", "#7b94c9", "#a86400", "#1b7f4b", "#8b5a9f", "#60656f")
SENTENCES = {
    "none": "The people this model draws are those of its base, within narrow limits.",
    "low": "Small changes, disclosed in the model card.",
    "moderate": "A change that a person must sign off before this model is registered.",
    "high": "A change that blocks this model.",
    "critical": "A change that blocks this model and that nobody may sign off.",
    "inconclusive": "The audit cannot tell; a person must sign off, or the audit be run with more pictures or a judge card.",
}


def write_report(
    report: Path,
    *,
    found: Audit,
    people: People,
    drawn: Draws,
    prompts: PromptSet,
    document: Mapping[str, Any],
    key: str,
) -> Path:
    """Write the open page and, where the subject is a person, the full one sealed beside it.

    Pictures of people asked for without the trigger may resemble the subject, so they stay off the open page too.
    """
    page = partial(_page, found, people, drawn, prompts, document)
    return publish(report, page, subject=document["subject"], key=key)


def _page(
    found: Audit,
    people: People,
    drawn: Draws,
    prompts: PromptSet,
    document: Mapping[str, Any],
    *,
    full: bool,
) -> Report:
    seeds = document["seeds"]
    page = Report(
        f"Bias audit of {document['subject']['id']}",
        subtitle=f"{seeds['prompts'] * seeds['per_prompt']} people per side, {seeds['prompts']} prompts × "
        f"{seeds['per_prompt']} seeds; base and tuned share their seeds; prompts name no gender, age or skin",
    )
    page.verdict(document["verdict"], f"{document['severity']}: {SENTENCES[document['severity']]}")
    _findings(page, found)
    for finding in found.findings:
        if finding.drift:
            _attribute(page, finding, people)
    _tones(page, document)
    _cells(page, found)
    _people(page, drawn, prompts, full=full)
    _method(page, document)
    return page


def _findings(page: Report, found: Audit) -> None:
    page.section("Findings")
    page.table(
        [
            {
                "what": finding.name,
                "verdict": VERDICTS[finding.severity],
                "severity": finding.severity,
                "why": finding.reason,
                "p": finding.pvalue,
                "p (Holm)": finding.adjusted,
            }
            for finding in found.findings
        ],
        caption="'subject' asks whether strangers came to look like the subject, 'person' whether people went missing",
    )
    rows = [(f.name, f.drift.excess, VERDICTS[f.severity], None) for f in found.findings if f.drift]
    page.figure(forest(rows, title="total variation beyond chance, base to tuned", low=-0.15, high=0.5))
    rows = [(f"{f.name} missing", f.missing, VERDICTS[f.severity], None) for f in found.findings if f.missing]
    page.figure(forest(rows, title="rise of pictures without a readable person", low=-0.5, high=1.0))


def _attribute(page: Report, finding: Finding, people: People) -> None:
    change, classes = finding.drift, people.classes[finding.name]
    assert change is not None
    page.section(finding.name.capitalize())
    shares = {"base": change.base, "tuned": change.tuned}
    page.figure(
        stacked_shares(
            {side: [v.point for v in values] for side, values in shares.items()}, classes=classes, colours=SHADES
        ),
        "Shares corrected for the judge's errors" if finding.accuracy is not None else "Shares as read, uncorrected",
    )
    page.figure(heat_map(change.flips, rows=classes, columns=classes, title="same seed: base (row) to tuned (column)"))
    page.table(
        [
            {
                "value": name,
                "base": _span(change.base[k]),
                "tuned": _span(change.tuned[k]),
                "change": _span(change.change[k]),
                "ratio": _span(change.ratio[k]),
            }
            for k, name in enumerate(classes)
        ]
    )
    accuracy = "not measured" if finding.accuracy is None else f"{finding.accuracy:.3f}"
    page.text(
        f"Judge's balanced accuracy {accuracy}; no readable person in {finding.unknown[0]:.1%} of base and "
        f"{finding.unknown[1]:.1%} of tuned pictures; distance from equal shares {finding.uniform_distance[0]:.2f} for the "
        f"base and {finding.uniform_distance[1]:.2f} tuned (inherited and disclosed, not held against the adapter)."
    )


def _tones(page: Report, document: Mapping[str, Any]) -> None:
    if not document["tones"]:
        return
    page.section("Skin tones, descriptive")
    tones = document["tones"]
    page.figure(
        stacked_shares(tones, classes=[str(i + 1) for i in range(10)], colours=[f"#{tone}" for tone in MONK_HEX]),
        "Monk scale as judged; decisions rest on the three bands, because neighbouring tones are hard to tell apart",
    )


def _cells(page: Report, found: Audit) -> None:
    page.section("By kind of prompt, exploratory")
    for attribute in dict.fromkeys(cell.attribute for cell in found.cells):
        cells = [cell for cell in found.cells if cell.attribute == attribute]
        groups, values = list(dict.fromkeys(c.group for c in cells)), list(dict.fromkeys(c.value for c in cells))
        changes = np.array([cell.tuned - cell.base for cell in cells]).reshape(len(groups), len(values))
        page.figure(heat_map(changes, rows=groups, columns=values, title=f"{attribute}: change of share", signed=True))
    notable = [cell for cell in found.cells if cell.notable]
    page.text(f"{len(notable)} of {len(found.cells)} cells stand out after Benjamini-Hochberg.")
    page.table(
        [
            {
                "prompts": c.group,
                "value": f"{c.attribute}: {c.value}",
                "base": c.base,
                "tuned": c.tuned,
                "q": c.adjusted,
            }
            for c in notable
        ]
    )


def _people(page: Report, drawn: Draws, prompts: PromptSet, *, full: bool) -> None:
    page.section("Same seeds, before and after")
    if not full:
        page.text("Tuned pictures may resemble the subject and are on the sealed copy of this page.")
    chosen = sorted({round(i) for i in np.linspace(0, len(prompts.people) - 1, 10)})
    rows, labels = [], []
    for p in chosen:
        base, tuned = drawn.base.row(p), drawn.tuned.row(p)
        rows.append([tile for pair in zip(base, tuned, strict=True) for tile in pair][:8] if full else base[:8])
        labels.append(prompts.people[p].text)
    columns = ["base", "tuned"] * (len(rows[0]) // 2) if full else ["base"] * len(rows[0])
    page.image(contact_sheet(rows, row_labels=labels, column_labels=columns, tile_px=104))


def _method(page: Report, document: Mapping[str, Any]) -> None:
    page.section("Method and limits")
    page.text(
        "Shares are the most likely ones behind what the judges read, given how often they confuse each value. Intervals "
        "resample prompts, seeds and the judges' error rates, and are widened for the number of prompts. One test per "
        "attribute, one for resemblance and one for missing people are confirmatory (Holm): base and tuned change places "
        "in whole prompts, whose seeds are alike. Cells are exploratory. Values are perceived attributes of generated "
        "pictures, read in few categories; they say nothing about any person."
    )
    page.facts(
        {
            "base": f"{document['base']['name']} ({document['base']['hash']})",
            **{f"{name} hash": value for name, value in document["hashes"].items()},
            "first seed": document["seeds"]["first"],
            "judge card": document["judge_card"],
            "change of same-seed pictures of people (1 - identity cosine)": document["control"]["people"],
            "the same of scenes without people": document["control"]["without_people"],
            **{name.replace("_", " "): value for name, value in document["limits"].items()},
        }
    )


def _span(value: Any) -> str:
    return f"{value.point:.2f} [{value.lo:.2f}, {value.hi:.2f}]"
