"""Which prompts are refused.

A list of words is weak protection: it refuses what nobody asks for by accident, and sees no image.
"""

from __future__ import annotations

import re
import unicodedata

from photoflux.errors import PhotoFluxError

INVISIBLE = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
LEET = str.maketrans("013457@$!", "oieastasi")
NUDITY = frozenset([
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


WORD = re.compile(r"[^\W\d_]+")
LOOKALIKES = ("CYRILLIC", "GREEK")
"""Scripts with letters that look like Latin ones: a word of both is written to be read as another."""


class UnsafePrompt(PhotoFluxError):
    """A prompt that is refused."""


def check_prompt(prompt: str, *, person: bool) -> None:
    """Raises UnsafePrompt. Sexual pictures of people and anything sexual about minors are refused, and so is gore.

    Words that mix scripts to look like others are, too; a prompt in several scripts is not.
    """
    if any(_is_mixed(word) for word in WORD.findall(unicodedata.normalize("NFKC", prompt))):
        raise UnsafePrompt("Write each word in one script: a word mixes letters that look alike.")
    words = set(_words(prompt))
    if words & NUDITY and words & MINOR:
        raise UnsafePrompt("This is never drawn.")
    if words & NUDITY and (person or words & PEOPLE):
        raise UnsafePrompt("Sexual pictures of people are not drawn here; ask for something else.")
    if words & VIOLENT:
        raise UnsafePrompt("Such violence is not drawn here; ask for something else.")


def _is_mixed(word: str) -> bool:
    scripts = {unicodedata.name(letter, "").split(" ")[0] for letter in word}
    return "LATIN" in scripts and any(script in scripts for script in LOOKALIKES)


def _words(prompt: str) -> list[str]:
    """The prompt's words as they are meant: compatibility forms, invisible letters and digits for letters undone."""
    visible = INVISIBLE.sub("", unicodedata.normalize("NFKC", prompt)).casefold()
    letters = "".join(letter for letter in unicodedata.normalize("NFD", visible) if not unicodedata.combining(letter))
    return re.findall(r"[a-z]+", letters) + re.findall(r"[a-z]+", letters.translate(LEET))
