"""Prompt suggestions from templates and earlier prompts, ranked by beginning, by word, by similarity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rapidfuzz.fuzz import ratio

OPENINGS = ("a photo of", "a cartoon of", "a watercolor of", "a pixel picture of", "a portrait of")
PLACES = (
    "on the beach", "in the forest", "in the snow", "in the desert", "in the city", "in the kitchen", "in space",
    "in the meadow", "under water", "in a studio",
)  # fmt: skip
WORDS_TYPED, WORDS_COMPARED, LETTERS = 8, 32, 200
"""How much is compared: words of what was typed, words and letters of each candidate. The rest is ignored."""
ALIKE_MIN = 60.0
"""Least similarity of two words, in per cent (rapidfuzz' ratio), that counts."""


def templates(trigger: str, class_noun: str) -> list[str]:
    """Template prompts for a subject, photographs first."""
    named = f"{trigger} {class_noun}"
    return [f"{opening} {named}" for opening in OPENINGS] + [
        f"{opening} {named} {place}" for opening in OPENINGS for place in PLACES
    ]


def suggest(asked: str, *, known: Sequence[str], own: Iterable[str], limit: int) -> list[str]:
    """At most `limit` prompts for what was typed so far, the person's own before templates of the same rank."""
    typed = " ".join(_folded(asked).split())
    parts = typed.split()[:WORDS_TYPED]
    candidates = list(dict.fromkeys([*own, *known]))
    words = [_folded(text).split()[:WORDS_COMPARED] for text in candidates]
    ranks = [_rank(typed, parts, _folded(text), one) for text, one in zip(candidates, words, strict=True)]
    if sum(rank is not None for rank in ranks) < limit:  # what is only alike comes last and costs most
        missing = [n for n, rank in enumerate(ranks) if rank is None]
        for n, alike in zip(missing, _likeness(parts, [words[n] for n in missing]), strict=True):
            ranks[n] = alike
    ranked = [(rank, place) for place, rank in enumerate(ranks) if rank is not None]
    return [candidates[place] for _, place in sorted(ranked)[:limit]]


def _folded(text: str) -> str:
    return text[:LETTERS].casefold()[:LETTERS]  # folding case may make it longer


def _rank(typed: str, parts: Sequence[str], text: str, words: Sequence[str]) -> float | None:
    """0: the text begins with what was typed; 1: words of it begin so; 2: it contains it; None: none of these."""
    if text.startswith(typed):
        return 0.0
    if all(any(word.startswith(part) for word in words) for part in parts):
        return 1.0
    return 2.0 if typed in text else None


def _likeness(parts: Sequence[str], texts: Sequence[Sequence[str]]) -> list[float | None]:
    """For each text a rank from 3 to 4, lower for greater similarity; None where a typed word is similar to none of its words."""
    vocabulary = {word for words in texts for word in words}
    scores = [{word: ratio(part, word, score_cutoff=ALIKE_MIN) for word in vocabulary} for part in parts]
    best = [[max((score[word] for word in words), default=0.0) for score in scores] for words in texts]
    return [4.0 - sum(one) / len(one) / 100 if min(one, default=0.0) > 0 else None for one in best]
