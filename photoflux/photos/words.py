"""What people wrote about a photo, in whatever encoding their editor has: as one line of plain words."""

from __future__ import annotations

import codecs
import unicodedata

CAPTION_MAX = 300
MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
"""Byte order marks; the longer of two that begin alike first."""
JOINERS = "\u200c\u200d"
"""Invisible, and letters of many languages and most emoji need them."""
SPACES = "\t\n\r\f\v\x1a"
"""Controls that stand in texts; the last ends those of old systems."""
ODD_SHARE = 0.1
"""Share of characters that nobody types above which bytes are no text."""


def read_words(data: bytes) -> str:
    """The words that a text file holds; nothing where it holds none, or is no text.

    Read by its byte order mark; else as UTF-16 where every other byte is zero, as UTF-8 where it is that, and in Windows' Western code.
    """
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return plain_words(data[len(mark) :].decode(encoding, errors="replace"))
    even, odd = data[::2].count(0), data[1::2].count(0)
    if max(even, odd) > len(data) / 8:
        return plain_words(data.decode("utf-16-le" if odd > even else "utf-16-be", errors="replace"))
    try:
        return plain_words(data.decode())
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
        untyped = sum(letter not in SPACES and _is_odd(letter) for letter in text)
        return plain_words(text) if untyped <= ODD_SHARE * len(text) else ""


def plain_words(text: str) -> str:
    """One line without control characters and what else cannot be seen, at most 300 letters long."""
    seen = (" " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in text)
    words = "".join(letter for letter in seen if letter in JOINERS or not _is_odd(letter)).split()
    return unicodedata.normalize("NFC", " ".join(words))[:CAPTION_MAX].strip()


def _is_odd(letter: str) -> bool:
    """Whether nobody sees or types it: controls, formats, surrogates, private and unassigned, and what stands for a bad byte."""
    return letter == "\ufffd" or unicodedata.category(letter).startswith("C")
