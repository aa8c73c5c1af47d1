"""An imperceptible mark in the pixels: that a machine made the picture, for when its metadata has been taken off.

Quantisation index modulation (Chen and Wornell, "Quantization index modulation", IEEE Trans. Inf. Theory 47, 2001) of two low
frequencies of every 8 x 8 block of luma, on the grid that JPEG works on. The payload is a constant of the product, never anything
about a person, and each of its bits is in hundreds of blocks. It outlives saving as JPEG, not scaling or turning: whatever does that
here marks anew.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn, idctn

if TYPE_CHECKING:
    from PIL import Image

BLOCK, BITS = 8, 32
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
    pixels = np.asarray(luma, dtype=np.float64)
    blocks = _blocks(pixels)
    bits = _bit_of_block(blocks.shape[:2])
    spectrum = dctn(blocks, axes=(2, 3), norm="ortho")
    for row, column in COEFFICIENTS:
        spectrum[:, :, row, column] = _nearest(spectrum[:, :, row, column], bits, _dither(bits.shape))
    changed = pixels.copy()
    height, width = blocks.shape[0] * BLOCK, blocks.shape[1] * BLOCK
    changed[:height, :width] = idctn(spectrum, axes=(2, 3), norm="ortho").swapaxes(1, 2).reshape(height, width)
    whole = Image.fromarray(np.uint8(changed.round().clip(0, 255)))
    return Image.merge("YCbCr", (whole, *chroma)).convert("RGB")


def wrong_bits(image: Image.Image) -> int:
    """How many of the payload's 32 bits are read wrong, by vote of all blocks; about 16 in a picture without the mark."""
    blocks = _blocks(np.asarray(image.convert("YCbCr").split()[0], dtype=np.float64))
    spectrum = dctn(blocks, axes=(2, 3), norm="ortho")
    places = _places(blocks.shape[:2])
    votes = np.zeros(BITS)
    for row, column in COEFFICIENTS:
        offset = spectrum[:, :, row, column] - _dither(places.shape)
        phase = np.cos(2 * np.pi * offset / STEP)  # 1 at a zero's values, -1 at a one's
        votes += np.bincount(places.ravel(), weights=phase.ravel(), minlength=BITS)
    return int(np.count_nonzero((votes < 0) != PAYLOAD.astype(bool)))


def is_marked(image: Image.Image) -> bool:
    """Whether the mark is in the picture."""
    return wrong_bits(image) <= ERRORS_MAX


def _blocks(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """[H, W] to whole blocks [H/8, W/8, 8, 8]; what is left over at right and bottom is left out."""
    rows, columns = (side // BLOCK for side in pixels.shape)
    return pixels[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK).swapaxes(1, 2)


def _places(shape: tuple[int, int]) -> NDArray[np.intp]:
    """Which of the bits each block carries: neighbours different ones."""
    rows, columns = np.indices(shape)
    return (rows * 13 + columns * 5) % BITS


def _bit_of_block(shape: tuple[int, int]) -> NDArray[np.uint8]:
    return PAYLOAD[_places(shape)]


def _dither(shape: tuple[int, int]) -> NDArray[np.float64]:
    """Where each block's values are counted from: without it a smooth picture would read as all zeros."""
    return np.random.default_rng(0).uniform(0, STEP, shape)


def _nearest(values: NDArray[np.float64], bits: NDArray[np.uint8], dither: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest value that means the bit: for 0 multiples of STEP beyond the dither, for 1 halfway between them."""
    shift = dither + bits * (STEP / 2)
    return np.round((values - shift) / STEP) * STEP + shift
