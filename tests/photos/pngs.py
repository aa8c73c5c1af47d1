"""PNG files of known pixels, written from the standard alone: no encoder has a say in them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
"""First row and column, and steps down and across, of Adam7's passes."""


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    samples: np.ndarray,
    *,
    colour: int,
    bits: int = 8,
    interlaced: bool = False,
    before: Sequence[bytes] = (),
    after: Sequence[bytes] = (),
) -> bytes:
    """A file from samples [H, W, N] of whole numbers, with more chunks before and after its pixels."""
    height, width, _ = samples.shape
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced))
    parts = [samples[y::down, x::across] for y, x, down, across in PASSES] if interlaced else [samples]
    rows = b"".join(_rows(part, bits) for part in parts if part.size)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(before) + pixels + b"".join(after) + chunk(b"IEND", b"")


def _rows(samples: np.ndarray, bits: int) -> bytes:
    out = b""
    for row in samples.reshape(samples.shape[0], -1):
        text = "".join(format(int(value), f"0{bits}b") for value in row)
        text += "0" * (-len(text) % 8)
        out += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    return out
