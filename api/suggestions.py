"""Prompts to choose from: templates for a subject, and what its owner asked for before; by beginning, by word, by likeness."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

OPENINGS = ("a photo of", "a cartoon of", "a watercolor of", "a pixel picture of", "a portrait of")
PLACES = (
    "on the beach", "in the forest", "in the snow", "in the desert", "in the city", "in the kitchen", "in space",
    "in the meadow", "under water", "in a studio",
)  # fmt: skip
ALIKE_MIN = 0.6


def templates(trigger: str, class_noun: str) -> list[str]:
    """Plain prompts for a subject, photographs first."""
    named = f"{trigger} {class_noun}"
    return [f"{opening} {named}" for opening in OPENINGS] + [
        f"{opening} {named} {place}" for opening in OPENINGS for place in PLACES
    ]


def suggest(asked: str, *, known: Sequence[str], own: Iterable[str], limit: int) -> list[str]:
    """At most `limit` prompts for what was typed so far, the person's own before templates of the same rank."""
    typed = " ".join(asked.casefold().split())
    candidates = list(dict.fromkeys([*own, *known]))
    ranked = [(rank, place, text) for place, text in enumerate(candidates) if (rank := _rank(typed, text)) is not None]
    return [text for _, _, text in sorted(ranked)[:limit]]


def _rank(typed: str, text: str) -> float | None:
    """0 begins so, 1 has words that begin so, 2 holds it, 3 and more: alike; None: not alike."""
    words = text.casefold()
    if words.startswith(typed):
        return 0.0
    parts = typed.split()
    if all(any(word.startswith(part) for word in words.split()) for part in parts):
        return 1.0
    if typed in words:
        return 2.0
    close = [max(difflib.SequenceMatcher(None, part, word).ratio() for word in words.split()) for part in parts]
    alike = sum(close) / len(close) if close else 1.0
    return 4.0 - alike if min(close, default=0.0) >= ALIKE_MIN else None
