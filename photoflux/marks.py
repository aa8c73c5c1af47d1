"""An imperceptible mark in the pixels: that a machine made the picture, for when its metadata has been taken off.

Quantisation index modulation (Chen and Wornell, "Quantization index modulation", IEEE Trans. Inf. Theory 47, 2001) of two low
frequencies of every 8 x 8 block of luma, on the grid that JPEG works on. The payload is a constant of the product, never anything
about a person, and each of its bits is in hundreds of blocks. It outlives saving as JPEG, not scaling or turning: whatever does that
here marks anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn, idctn

if TYPE_CHECKING:
    from PIL import Image

BLOCK, BITS = 8, 32
STRIP = 8
"""Rows of blocks that are worked on at a time."""
STEP = 12.0
"""Distance of two values that mean the same bit, in units of the orthonormal DCT. JPEG at quality 75 rounds to about 7."""
COEFFICIENTS = ((1, 2), (2, 1))
PAYLOAD = np.unpackbits(np.frombuffer(hashlib.sha256(b"PhotoFlux").digest()[: BITS // 8], dtype=np.uint8))
"""32 bits."""
ERRORS_MAX = 4
"""Wrong bits up to which a picture counts as marked: 1 of 100,000 unmarked ones does (sum of C(32, k) / 2**32, k <= 4)."""


def marked(image: Image.Image) -> Image.Image:
    """The picture with the mark in it. Sides below 8 px leave nothing to mark."""
    from PIL import Image

    luma, *chroma = image.convert("YCbCr").split()
    pixels = np.array(luma)
    for strip, places, dither in _strips(pixels):
        spectrum = dctn(_blocks(strip), axes=(2, 3), norm="ortho")
        for row, column in COEFFICIENTS:
            spectrum[:, :, row, column] = _nearest(spectrum[:, :, row, column], PAYLOAD[places], dither)
        changed = idctn(spectrum, axes=(2, 3), norm="ortho").swapaxes(1, 2).reshape(strip.shape)
        strip[:] = changed.round().clip(0, 255)
    return Image.merge("YCbCr", (Image.fromarray(pixels), *chroma)).convert("RGB")


def wrong_bits(image: Image.Image) -> int:
    """How many of the payload's 32 bits are read wrong, by vote of all blocks; about 16 in a picture without the mark."""
    votes = np.zeros(BITS)
    for strip, places, dither in _strips(np.asarray(image.convert("YCbCr").split()[0])):
        spectrum = dctn(_blocks(strip), axes=(2, 3), norm="ortho")
        for row, column in COEFFICIENTS:
            offset = spectrum[:, :, row, column] - dither
            phase = np.cos(2 * np.pi * offset / STEP)  # 1 at a zero's values, -1 at a one's
            votes += np.bincount(places.ravel(), weights=phase.ravel(), minlength=BITS)
    return int(np.count_nonzero((votes < 0) != PAYLOAD.astype(bool)))


def is_marked(image: Image.Image) -> bool:
    """Whether the mark is in the picture."""
    return wrong_bits(image) <= ERRORS_MAX


def _strips(pixels: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.intp], NDArray[np.float64]]]:
    """Views of STRIP rows of whole blocks from top to bottom, which of the bits each block carries, and its dither.

    What is left over at right and bottom is left out. Floats of a whole picture would take ten times its own memory.
    """
    rows, columns = (side // BLOCK for side in pixels.shape)
    rng = np.random.default_rng(0)
    for top in range(0, rows, STRIP):
        shape = (min(STRIP, rows - top), columns)
        strip = pixels[top * BLOCK : (top + shape[0]) * BLOCK, : columns * BLOCK]
        yield strip, _places(shape, top=top), _dither(shape, rng=rng)


def _blocks(strip: NDArray[np.uint8]) -> NDArray[np.float64]:
    """[8 R, 8 C] to blocks [R, C, 8, 8]."""
    rows, columns = (side // BLOCK for side in strip.shape)
    return strip.astype(np.float64).reshape(rows, BLOCK, columns, BLOCK).swapaxes(1, 2)


def _places(shape: tuple[int, int], *, top: int) -> NDArray[np.intp]:
    """Which of the bits each block carries, counted from block row `top`: neighbours different ones."""
    rows, columns = np.indices(shape)
    return ((rows + top) * 13 + columns * 5) % BITS


def _dither(shape: tuple[int, int], *, rng: np.random.Generator) -> NDArray[np.float64]:
    """Where each block's values are counted from: without it a smooth picture would read as all zeros."""
    return rng.uniform(0, STEP, shape)


def _nearest(values: NDArray[np.float64], bits: NDArray[np.uint8], dither: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest value that means the bit: for 0 multiples of STEP beyond the dither, for 1 halfway between them."""
    shift = dither + bits * (STEP / 2)
    return np.round((values - shift) / STEP) * STEP + shift
