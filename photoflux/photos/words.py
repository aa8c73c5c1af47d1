"""Read captions that people wrote in any encoding, as one line of printable text."""

from __future__ import annotations

import codecs
import unicodedata

CAPTION_MAX = 300
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
"""Byte order marks; the longer of two that begin alike first."""
JOINERS = "\u200c\u200d"
"""Invisible characters that letters of many languages and most emoji need."""
SPACES = "\t\n\r\f\v\x1a"
"""Control characters that occur in texts; the last one ends texts of old systems."""
UNTYPED_SHARE_MAX = 0.1
"""Share of untyped characters above which bytes are taken for no text."""


def read_words(data: bytes) -> str:
    """The words of a text file; empty where it has none or is no text.

    Read by its byte order mark; else as UTF-16 where every other byte is zero, as UTF-8 where it is that, and in Windows' Western code.
    """
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return plain_words(data[len(mark) :].decode(encoding, errors="replace"))
    even, odd = data[::2].count(0), data[1::2].count(0)
    if max(even, odd) > len(data) / 8:
        return plain_words(data.decode("utf-16-le" if odd > even else "utf-16-be", errors="replace"))
    try:
        return plain_words(data.decode())
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
        untyped = sum(letter not in SPACES and _is_invisible(letter) for letter in text)
        return plain_words(text) if untyped <= UNTYPED_SHARE_MAX * len(text) else ""


def plain_words(text: str) -> str:
    """One line without control and other invisible characters, at most CAPTION_MAX characters long."""
    seen = (" " if unicodedata.category(letter) in ("Cc", "Zl", "Zp") else letter for letter in text)
    words = "".join(letter for letter in seen if letter in JOINERS or not _is_invisible(letter)).split()
    return unicodedata.normalize("NFC", " ".join(words))[:CAPTION_MAX].strip()


def _is_invisible(letter: str) -> bool:
    """Whether it is no visible character: control, format, surrogate, private, unassigned, or the replacement character."""
    return letter == "\ufffd" or unicodedata.category(letter).startswith("C")
