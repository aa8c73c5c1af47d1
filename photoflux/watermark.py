"""An imperceptible watermark in the pixels: that a machine made the image, for when its metadata has been removed.

Quantisation index modulation (Chen and Wornell, "Quantization index modulation", IEEE Trans. Inf. Theory 47, 2001) of two low
frequencies of every 8 x 8 block of luma, on the grid that JPEG works on. The payload is a constant of the product, never anything
about a person, and each of its bits is in hundreds of blocks. It survives JPEG, not scaling or rotation: what scales an image here
embeds it again.
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
STRIP_BLOCKS = 8
"""Rows of blocks that are worked on at a time: floats of a whole image would take ten times its own memory."""
QUANTISATION_STEP = 12.0
"""Distance of two values that mean the same bit, in units of the orthonormal DCT. JPEG at quality 75 rounds to about 7."""
COEFFICIENTS = ((1, 2), (2, 1))
PAYLOAD = np.unpackbits(np.frombuffer(hashlib.sha256(b"PhotoFlux").digest()[: BITS // 8], dtype=np.uint8))
"""32 bits."""
ERRORS_MAX = 4
"""Bit errors up to which an image counts as watermarked: so does 1 of 100,000 without one (sum of C(32, k) / 2**32, k <= 4)."""


def embed(image: Image.Image) -> Image.Image:
    """The image with the watermark, as RGB. An image with a side below 8 px stays without one."""
    from PIL import Image

    luma, *chroma = image.convert("YCbCr").split()
    pixels = np.array(luma)
    for strip, bit_indices, dither in _block_strips(pixels):
        spectrum = dctn(_blocks(strip), axes=(2, 3), norm="ortho")
        for row, column in COEFFICIENTS:
            spectrum[:, :, row, column] = _nearest(spectrum[:, :, row, column], PAYLOAD[bit_indices], dither)
        changed = idctn(spectrum, axes=(2, 3), norm="ortho").swapaxes(1, 2).reshape(strip.shape)
        strip[:] = changed.round().clip(0, 255)
    return Image.merge("YCbCr", (Image.fromarray(pixels), *chroma)).convert("RGB")


def bit_errors(image: Image.Image) -> int:
    """How many of the payload's 32 bits are read wrong, by vote of all blocks; about 16 in an image without the watermark."""
    votes = np.zeros(BITS)
    for strip, bit_indices, dither in _block_strips(np.asarray(image.convert("YCbCr").split()[0])):
        spectrum = dctn(_blocks(strip), axes=(2, 3), norm="ortho")
        for row, column in COEFFICIENTS:
            offset = spectrum[:, :, row, column] - dither
            phase = np.cos(2 * np.pi * offset / QUANTISATION_STEP)  # 1 at a zero's values, -1 at a one's
            votes += np.bincount(bit_indices.ravel(), weights=phase.ravel(), minlength=BITS)
    return int(np.count_nonzero((votes < 0) != PAYLOAD.astype(bool)))


def is_watermarked(image: Image.Image) -> bool:
    """Whether the image has the watermark."""
    return bit_errors(image) <= ERRORS_MAX


def _block_strips(
    pixels: NDArray[np.uint8],
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.intp], NDArray[np.float64]]]:
    """Views of STRIP_BLOCKS rows of whole blocks from top to bottom, the index of the bit that each block carries, and its dither.

    Pixels at right and bottom that fill no whole block are left out.
    """
    rows, columns = (side // BLOCK for side in pixels.shape)
    rng = np.random.default_rng(0)
    for top in range(0, rows, STRIP_BLOCKS):
        shape = (min(STRIP_BLOCKS, rows - top), columns)
        strip = pixels[top * BLOCK : (top + shape[0]) * BLOCK, : columns * BLOCK]
        yield strip, _bit_indices(shape, top=top), _dither(shape, rng=rng)


def _blocks(strip: NDArray[np.uint8]) -> NDArray[np.float64]:
    """[8 R, 8 C] to blocks [R, C, 8, 8]."""
    rows, columns = (side // BLOCK for side in strip.shape)
    return strip.astype(np.float64).reshape(rows, BLOCK, columns, BLOCK).swapaxes(1, 2)


def _bit_indices(shape: tuple[int, int], *, top: int) -> NDArray[np.intp]:
    """Index of the payload's bit that each block carries, counted from block row `top`; neighbours carry different ones."""
    rows, columns = np.indices(shape)
    return ((rows + top) * 13 + columns * 5) % BITS


def _dither(shape: tuple[int, int], *, rng: np.random.Generator) -> NDArray[np.float64]:
    """Offset of each block's quantisation grid: without it a smooth image would read as all zeros."""
    return rng.uniform(0, QUANTISATION_STEP, shape)


def _nearest(values: NDArray[np.float64], bits: NDArray[np.uint8], dither: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest value that means the bit: multiples of QUANTISATION_STEP from the dither for 0, halfway between them for 1."""
    shift = dither + bits * (QUANTISATION_STEP / 2)
    return np.round((values - shift) / QUANTISATION_STEP) * QUANTISATION_STEP + shift
