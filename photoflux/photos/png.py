"""PNG, opened with only those chunks that its pixels need, so that damaged metadata does not matter."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
from PIL import Image

from photoflux.photos.colour import HDR_TRANSFERS, profile_of, profile_of_codes
from photoflux.photos.kinds import PhotoProblem, check_pixels, several_frames, unsupported

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
COLOURS = (b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP")
PROFILE_BYTES_MAX = 16 << 20
USUAL_GAMMA = (0.44, 0.47)
"""Values of gAMA, rounded one way or another, in files that mean sRGB."""


def open_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """The picture, not decoded yet; its profile as ICC, from whatever chunk has it. Raises PhotoProblem."""
    chunks = dict[bytes, bytes]()
    cleaned = bytearray(SIGNATURE)
    for kind, body, raw in _chunks(data):
        if kind == b"CgBI":
            raise unsupported("a PNG in Apple's variant for apps")
        if kind in PIXELS or len(kind) < 4:
            cleaned += raw
        elif kind == b"eXIf":
            cleaned += _chunk(kind, body)
        elif kind in COLOURS and raw != _chunk(kind, body):
            raise PhotoProblem("corrupt", "damaged: what says its colours has a wrong checksum; export the photo again")
        chunks.setdefault(kind, body)
    if int.from_bytes(chunks.get(b"acTL", b"")[:4], "big") > 1:
        raise several_frames()
    image = Image.open(io.BytesIO(cleaned), formats=("PNG",))
    check_pixels(*image.size, max_pixels)
    if b"tRNS" in chunks and chunks[b"IHDR"][8] == 16:
        raise unsupported("a PNG with 16-bit samples and a transparent colour")
    with Image.open(io.BytesIO(cleaned), formats=("PNG",)) as checked:
        checked.verify()
    if "transparency" in image.info and chunks[b"IHDR"][8:10] in (b"\2\0", b"\4\0"):
        # told in the file's greys, of which there are fewer
        image.info["transparency"] *= 255 // (2 ** chunks[b"IHDR"][8] - 1)
    if profile := _profile(chunks):
        image.info["icc_profile"] = profile
    return image


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Kind, content and raw bytes of each chunk; a truncated one comes last, with an empty kind."""
    at = len(SIGNATURE)
    while at < len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        raw = data[at : at + 12 + length]
        yield (kind if len(raw) == 12 + length else b""), data[at + 8 : at + 8 + length], raw
        if kind == b"IEND":
            return
        at += 12 + length


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _profile(chunks: dict[bytes, bytes]) -> bytes:
    """The ICC profile that takes precedence; empty for sRGB."""
    if coded := chunks.get(b"cICP"):
        primaries, transfer = coded[0], coded[1]
        if transfer in HDR_TRANSFERS:
            raise unsupported("an HDR picture")
        return profile_of_codes(primaries, transfer)
    if b"iCCP" in chunks:
        _, _, packed = chunks[b"iCCP"].partition(b"\0")
        return _inflated(packed[1:])
    if b"sRGB" in chunks or b"gAMA" not in chunks:
        return b""
    gamma = int.from_bytes(chunks[b"gAMA"][:4], "big") / 100_000
    points = struct.unpack(">8I", chunks[b"cHRM"]) if len(chunks.get(b"cHRM", b"")) == 32 else ()
    low, high = USUAL_GAMMA
    if not gamma or (low < gamma < high and not points):
        return b""
    with suppress(ZeroDivisionError, np.linalg.LinAlgError, struct.error):  # primaries that no display could have
        return profile_of([point / 100_000 for point in points], gamma=1 / gamma)
    return b""


def _inflated(packed: bytes) -> bytes:
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(packed, PROFILE_BYTES_MAX)
    except zlib.error:  # a damaged profile is ignored
        return b""
    if inflate.unconsumed_tail:
        raise unsupported(f"a PNG with a colour profile of more than {PROFILE_BYTES_MAX >> 20} MB")
    return profile
