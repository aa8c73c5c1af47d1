"""The report of a decision: the verdict, and every rule with its interval and its limit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from photoflux.judges.stats import Interval
from photoflux.pages.page import Page
from photoflux.pages.plots import forest

SCALES = (
    (-0.5, 1.25, ("identity gain", "class leakage", "diversity with trigger", "diversity of the class", "sharpness")),
    (
        -0.3,
        0.3,
        ("prompt following", "unrelated drift", "copying", "broken pictures", "memorisation", "previous champion"),
    ),
)
"""Rules by the scale of their plot; the scale of kernel distances depends on the judges and is derived from the limit."""


def decision_page(document: Mapping[str, Any], *, evaluation: Mapping[str, Any], audit: Mapping[str, Any]) -> Page:
    """The report, of numbers alone, so that both copies are equal."""
    page = Page(
        f"Decision on {document['subject']['id']}",
        subtitle=f"{evaluation['subject']['class_noun']} · base {evaluation['base']['name']} · {evaluation['profile']} profile",
    )
    page.verdict(document["verdict"], document["summary"])
    page.section("Rules, their intervals and limits")
    for low, high, names in (*SCALES, *_kernel_scale(document["limits"]["drift_kid_max"])):
        rows = [
            (r["rule"], Interval(r["value"], r["lo"], r["hi"]), r["verdict"], r["bound"])
            for r in document["reasons"]
            if r["rule"] in names and r["lo"] is not None
        ]
        if rows:
            page.figure(forest(rows, low=low, high=high))
    page.table(
        [
            {"rule": r["rule"], "verdict": "WARN" if r["warning"] else r["verdict"], "why": r["message"]}
            for r in document["reasons"]
        ]
    )
    page.section("What happens next")
    page.text(_next_step(document))
    page.section("Limits and hashes")
    hashes = {f"{name} hash": value for name, value in document["hashes"].items()}
    last = {"audit severity": audit["severity"], "champion": _champion(document)}
    page.facts({**document["limits"], **hashes, **last})
    return page


def _champion(document: Mapping[str, Any]) -> str:
    """The version that this one was compared with, how, and the consequence."""
    champion, succeeds = document["champion"], document["succeeds"]
    if not champion:
        return "none yet"
    takes = "this one takes its place" if succeeds["takes"] else "it stays"
    return f"version {champion['version']} of {champion['name']} ({champion['how']}); {takes}: {succeeds['why']}"


def _kernel_scale(limit: float) -> list[tuple[float, float, tuple[str, ...]]]:
    return [(-limit, 4 * limit, ("unrelated distribution",))] if limit else []


def _next_step(document: Mapping[str, Any]) -> str:
    if document["promote"]:
        if document["succeeds"]["takes"]:
            return "The model is registered and takes the champion alias."
        return f"The model is registered as challenger; the champion stays: {document['succeeds']['why']}."
    if document["sign_off_possible"]:
        return "Nothing failed, but the audit leaves a question open: register this model with a recorded sign-off, or mend it."
    return "The model is not registered. Each rule above that is not a pass says what to change."
