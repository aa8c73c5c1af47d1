"""Helpers for words in prompts and file names."""

from __future__ import annotations

import re


def article(word: str) -> str:
    """The article of a word: `a` or `an`."""
    return "an" if word[:1].lower() in "aeiou" else "a"


def with_article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return f"{article(noun)} {noun}"


def slug(text: str) -> str:
    """The text in a-z, 0-9 and single hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
