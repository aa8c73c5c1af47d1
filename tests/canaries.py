"""Looks for words in files as a curious reader would: also behind encodings, in archives and in compressed streams."""

from __future__ import annotations

import base64
import binascii
import bz2
import io
import json
import lzma
import re
import sqlite3
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

DEPTH, OPENED_MAX = 4, 64 << 20
BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{16,}={0,2}")
HEX = re.compile(rb"(?:[0-9a-fA-F]{2}){8,}")
STREAMS = {b"\x1f\x8b\x08": 31, b"\x78\x01": 15, b"\x78\x5e": 15, b"\x78\x9c": 15, b"\x78\xda": 15}
"""How compressed streams begin, and the window bits that zlib wants for them."""


def forms(word: str) -> list[bytes]:
    """A word as it is written plainly: in UTF-8 and UTF-16, as JSON and in addresses."""
    written = [word.encode(), word.encode("utf-16-le"), word.encode("utf-16-be"), json.dumps(word)[1:-1].encode()]
    return list(dict.fromkeys([*written, quote(word).encode()]))


def holding(needles: Sequence[bytes], files: Iterable[tuple[str, bytes]]) -> list[str]:
    """Names of the files in which one of the needles is found, however deep."""
    return [name for name, data in files if any(needle in layer for layer in layers(data) for needle in needles)]


def files_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file that can be read, whatever it is called."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield str(file), file.read_bytes()


def stored_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file; of a database its rows, since what was freed in it may still hold what was written there before."""
    for name, data in files_below(folder):
        yield name, rows_of(Path(name)) if data.startswith(b"SQLite format 3") else data


def rows_of(database: Path) -> bytes:
    """All rows of a database as SQL."""
    with closing(sqlite3.connect(database)) as connection:
        return "\n".join(connection.iterdump()).encode()


def layers(data: bytes, depth: int = DEPTH) -> Iterator[bytes]:
    """The data, and what can be made of its parts: strings behind base64 and hex, members of archives, compressed streams.

    Pickles, tar files and databases hold strings as they are.
    """
    yield data
    if depth == 0:
        return
    for inner in _inside(data):
        yield from layers(inner, depth - 1)


def _inside(data: bytes) -> Iterator[bytes]:
    for found in BASE64.finditer(data):
        text = found[0].rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        for skip in range(4):  # it may begin amid other letters
            part = text[skip:]
            with suppress(binascii.Error, ValueError):
                yield base64.b64decode(part[: len(part) // 4 * 4 or None])
    for found in HEX.finditer(data):
        yield bytes.fromhex(found[0].decode())
    with (
        suppress(zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error, EOFError, OSError),
        zipfile.ZipFile(io.BytesIO(data)) as archive,
    ):
        for member in archive.infolist():
            yield member.filename.encode()
            yield archive.read(member)
    for start, bits in STREAMS.items():
        at = data.find(start)
        while at >= 0:
            with suppress(zlib.error):
                yield zlib.decompressobj(bits).decompress(data[at:], OPENED_MAX)
            at = data.find(start, at + 1)
    for opened in (bz2.decompress, lzma.decompress):
        with suppress(OSError, ValueError, EOFError, lzma.LZMAError):
            yield opened(data)
