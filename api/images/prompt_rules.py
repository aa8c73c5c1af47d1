"""Prompts: what is not drawn.

A list of words is a weak guard: it refuses what nobody asks for by accident, and looks at no picture.
"""

from __future__ import annotations

import re
import unicodedata

from photoflux.errors import PhotoFluxError

INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
LEET = str.maketrans("013457@$!", "oieastasi")
UNDRESSED = frozenset([
    "nude", "nudes", "nudity", "naked", "undress", "undressed", "undressing", "topless", "nsfw", "porn", "porno",
    "pornographic", "erotic", "sex", "sexual", "sexy", "lingerie", "striptease", "genitals",
])  # fmt: skip
MINOR = frozenset([
    "child", "children", "kid", "kids", "baby", "babies", "toddler", "infant", "minor", "minors", "underage",
    "schoolgirl", "schoolboy", "preteen", "teen", "teenager", "teenage", "boy", "girl",
])  # fmt: skip
PEOPLE = frozenset([
    "person", "people", "man", "men", "woman", "women", "lady", "guy", "actor", "actress", "celebrity", "model",
    "human",
])  # fmt: skip
VIOLENT = frozenset([
    "gore", "beheading", "beheaded", "decapitated", "dismembered", "mutilated",
])  # fmt: skip


MIXED = re.compile(r"[^\W\d_]+")
LOOKALIKES = ("CYRILLIC", "GREEK")
"""Scripts with letters that look like Latin ones: a word of both is written to be read as another."""


class Unsafe(PhotoFluxError):
    """A prompt for something that is not drawn here."""


def check_prompt(prompt: str, *, person: bool) -> None:
    """Raises Unsafe. Sexual pictures of people and anything sexual about minors are refused, and so is gore.

    Words that mix scripts to look like others are, too; a prompt in several scripts is not.
    """
    if any(_is_mixed(word) for word in MIXED.findall(unicodedata.normalize("NFKC", prompt))):
        raise Unsafe("Write each word in one script: a word mixes letters that look alike.")
    words = set(_words(prompt))
    if words & UNDRESSED and words & MINOR:
        raise Unsafe("This is never drawn.")
    if words & UNDRESSED and (person or words & PEOPLE):
        raise Unsafe("Sexual pictures of people are not drawn here; ask for something else.")
    if words & VIOLENT:
        raise Unsafe("Such violence is not drawn here; ask for something else.")


def _is_mixed(word: str) -> bool:
    scripts = {unicodedata.name(letter, "").split(" ")[0] for letter in word}
    return "LATIN" in scripts and any(script in scripts for script in LOOKALIKES)


def _words(prompt: str) -> list[str]:
    """The prompt's words as they are meant: compatibility forms, invisible letters and digits for letters undone."""
    plain = INVISIBLE.sub("", unicodedata.normalize("NFKC", prompt)).casefold()
    bare = "".join(letter for letter in unicodedata.normalize("NFD", plain) if not unicodedata.combining(letter))
    return re.findall(r"[a-z]+", bare) + re.findall(r"[a-z]+", bare.translate(LEET))
