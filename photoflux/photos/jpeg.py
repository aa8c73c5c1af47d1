"""JPEG. The decoder supports the coding processes that photos use; the others are refused by name."""

from __future__ import annotations

import io

from PIL import Image

from photoflux.photos.kinds import check_pixels, unsupported

BASELINE, EXTENDED, PROGRESSIVE, ARITHMETIC, ARITHMETIC_PROGRESSIVE = 0xC0, 0xC1, 0xC2, 0xC9, 0xCA
READ = (BASELINE, EXTENDED, PROGRESSIVE, ARITHMETIC, ARITHMETIC_PROGRESSIVE)
LOSSLESS = (0xC3, 0xCB)
NO_FRAMES = (0xC4, 0xC8, 0xCC)  # tables, among the markers of frames
ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a content
COMPONENTS = (1, 3, 4)


def open_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """The picture, not decoded yet; of an MPO its first. Raises PhotoProblem."""
    process, frame = _frame(data)
    if frame:
        if process not in READ:
            raise unsupported("a lossless JPEG" if process in LOSSLESS else "a hierarchical JPEG")
        if frame[0] != 8:
            raise unsupported(f"a {frame[0]}-bit JPEG")
        if frame[5] not in COMPONENTS:
            raise unsupported(f"a JPEG of {frame[5]} channels")
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    check_pixels(*image.size, max_pixels)
    return image


def _frame(data: bytes) -> tuple[int, bytes]:
    """The first frame's marker and header (precision, height, width, number of components); empty where there is none."""
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF or data[at + 1] == 0xFF or data[at + 1] in ALONE:
            at += 1 if data[at] != 0xFF or data[at + 1] == 0xFF else 2
            continue
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in NO_FRAMES:
            header = data[at + 4 : at + 10]
            return marker, header if len(header) == 6 else b""
        at += 2 + length
    return 0, b""
