"""The colours of every page, figure and contact sheet."""

from __future__ import annotations

INK, SOFT, LINE, WASH, PAPER, BLANK = "#1d1f23", "#60656f", "#e3e5ea", "#f6f7f9", "#fff", "#eceef2"
GOOD, DOUBTFUL, BAD, BLUE, GREY = "#1b7f4b", "#a86400", "#b3261e", "#2f5fb3", "#b9bec8"
PALE_BLUE, VIOLET = "#7b94c9", "#8b5a9f"
OUTLINE = "#e8ff3a"
"""Colour of outlines on photos: visible on any of them."""

TONES = {
    "PASS": GOOD, "OK": GOOD, "WARN": DOUBTFUL, "INCONCLUSIVE": DOUBTFUL, "FAIL": BAD, "REJECT": BAD, "INVALID": SOFT,
}  # fmt: skip
"""Verdict → colour."""

CSS = (
    f":root {{ --ink: {INK}; --soft: {SOFT}; --line: {LINE}; --paper: {PAPER}; --wash: {WASH};"
    f" --good: {GOOD}; --bad: {BAD}; --blue: {BLUE}; }}"
)
"""The colours as CSS variables."""
