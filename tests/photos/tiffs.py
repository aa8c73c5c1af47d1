"""TIFF files of known pixels, written from TIFF 6.0 alone: no encoder has a say in them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

TYPES = {1: "B", 3: "H", 4: "I", 12: "d", 16: "Q"}
PLAIN, LZW, DEFLATE, PACKBITS, OLD_DEFLATE = 1, 5, 8, 32773, 32946


def tiff(samples: np.ndarray, *, order: str = "<", big: bool = False, **how: Any) -> bytes:
    """A file of one `page`."""
    return pages([page(samples, order=order, **how)], order=order, big=big)


def page(
    samples: np.ndarray,
    *,
    photometric: int,
    planar: int = 1,
    compression: int = PLAIN,
    order: str = "<",
    predictor: int = 1,
    tile: int = 0,
    rows: int = 0,
    bits: int = 0,
    fill_order: int = 1,
    tags: Mapping[int, tuple[int, Sequence[Any]]] | None = None,
) -> tuple[dict[int, tuple[int, Sequence[Any]]], list[bytes]]:
    """Tags of a page of samples [H, W, N], unsigned integers or floats, and what its strips or tiles hold.

    `tile`: side of its tiles, in place of strips of `rows` rows (all in one unless given). `bits`: of a sample, where these are fewer
    than the array's. `tags`: more tags, as (type, values), or others in place of those written.
    """
    height, width, count = samples.shape
    bits = bits or samples.dtype.itemsize * 8
    planes = [samples[..., n : n + 1] for n in range(count)] if planar == 2 else [samples]
    down, across = (tile, tile) if tile else (rows or height, width)
    blocks = [
        _block(plane[y : y + down, x : x + across], tile, predictor=predictor, order=order, bits=bits)
        for plane in planes
        for y in range(0, height, down)
        for x in range(0, width, across)
    ]
    packed = [_packed(block, compression) for block in blocks]
    if fill_order == 2:
        packed = [bytes(int(f"{byte:08b}"[::-1], 2) for byte in block) for block in packed]
    made: dict[int, tuple[int, Sequence[Any]]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * count),
        259: (3, [compression]),
        262: (3, [photometric]),
        277: (3, [count]),
        284: (3, [planar]),
    }
    if tile:
        made |= {322: (4, [tile]), 323: (4, [tile]), 324: (4, []), 325: (4, [len(block) for block in packed])}
    else:
        made |= {278: (4, [down]), 273: (4, []), 279: (4, [len(block) for block in packed])}
    if predictor != 1:
        made[317] = (3, [predictor])
    if fill_order != 1:
        made[266] = (3, [fill_order])
    if samples.dtype.kind != "u":
        made[339] = (3, [{"f": 3, "i": 2}[samples.dtype.kind]] * count)
    return made | dict(tags or {}), packed


def pages(
    written: Sequence[tuple[Mapping[int, tuple[int, Sequence[Any]]], Sequence[bytes]]],
    *,
    order: str = "<",
    big: bool = False,
) -> bytes:
    """A file of several pages, in that order."""
    word, size = ("Q", 20) if big else ("I", 12)
    magic = b"II" if order == "<" else b"MM"
    out = bytearray(magic + struct.pack(f"{order}HHHQ" if big else f"{order}HI", *((43, 8, 0, 0) if big else (42, 0))))
    link = len(out) - struct.calcsize(word)
    for tags, blocks in written:
        places = []
        for block in blocks:
            out += bytes(-len(out) % 8)
            places.append(len(out))
            out += block
        own = dict(tags)
        for tag in (273, 324):
            if tag in own:
                own[tag] = (4, places)
        entries = b""
        for tag, (kind, values) in sorted(own.items()):
            raw = bytes(values) if kind == 7 else struct.pack(f"{order}{len(values)}{TYPES[kind]}", *values)
            if len(raw) > struct.calcsize(word):
                out += bytes(-len(out) % 8)
                at, raw = len(out), raw
                out += raw
                raw = struct.pack(order + word, at)
            entries += struct.pack(f"{order}HH{word}", tag, kind, len(values)) + raw.ljust(struct.calcsize(word), b"\0")
        out += bytes(-len(out) % 8)
        struct.pack_into(order + word, out, link, len(out))
        out += struct.pack(order + ("Q" if big else "H"), len(own)) + entries
        link = len(out)
        out += bytes(struct.calcsize(word))
    assert size
    return bytes(out)


def _block(samples: np.ndarray, tile: int, *, predictor: int, order: str, bits: int) -> bytes:
    """A strip or a tile as bytes, before it is compressed."""
    if tile:
        short = [(0, tile - samples.shape[0]), (0, tile - samples.shape[1]), (0, 0)]
        samples = np.pad(samples, short, mode="edge")
    if predictor == 2:
        samples = np.concatenate([samples[:, :1], samples[:, 1:] - samples[:, :-1]], axis=1)  # wraps, as it has to
    if predictor == 3:
        return _floats_apart(samples)
    if bits in (8, 16, 32, 64):
        return samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    rows = []
    for row in samples.reshape(samples.shape[0], -1):
        text = "".join(format(int(value), f"0{bits}b") for value in row)
        text += "0" * (-len(text) % 8)
        rows.append(int(text, 2).to_bytes(len(text) // 8, "big"))
    return b"".join(rows)


def _floats_apart(samples: np.ndarray) -> bytes:
    """Predictor 3: of each row the bytes of most weight first, then differences of neighbouring bytes."""
    count = samples.shape[2]
    rows = samples.astype(samples.dtype.newbyteorder(">")).reshape(samples.shape[0], -1)
    octets = rows.view(np.uint8).reshape(*rows.shape, samples.dtype.itemsize)
    planes = octets.transpose(0, 2, 1).reshape(samples.shape[0], -1)
    return np.concatenate([planes[:, :count], planes[:, count:] - planes[:, :-count]], axis=1).tobytes()


def _packed(block: bytes, compression: int) -> bytes:
    if compression in (DEFLATE, OLD_DEFLATE):
        return zlib.compress(block)
    if compression == LZW:
        return lzw(block)
    if compression == PACKBITS:
        return b"".join(bytes([len(part) - 1]) + part for part in _parts(block, 128))
    return block


def _parts(block: bytes, size: int) -> list[bytes]:
    return [block[at : at + size] for at in range(0, len(block), size)]


def lzw(block: bytes) -> bytes:
    """TIFF's LZW: codes from the most significant bit on, one bit wider after entry 511, 1023 and 2047, cleared after 4094."""
    table, text, width, known = {bytes([n]): n for n in range(256)}, [format(256, "09b")], 9, b""
    for byte in block:
        longer = known + bytes([byte])
        if longer in table:
            known = longer
            continue
        text.append(format(table[known], f"0{width}b"))
        added = table[longer] = len(table) + 2
        known = bytes([byte])
        if added == 4094:
            text.append(format(256, f"0{width}b"))
            table, width = {bytes([n]): n for n in range(256)}, 9
        elif added == 2**width - 1:
            width += 1
    text.append(format(table[known], f"0{width}b"))
    width += len(table) + 2 == 2**width - 1
    bits = "".join([*text, format(257, f"0{width}b")])
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")
