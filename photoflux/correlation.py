"""How well two images fit on each other at every shift, all at once by Fourier transform.

Padfield, "Masked object registration in the Fourier domain" (TIP 2012), with masks that are the images' extents.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Array = NDArray[Any]


class Overlaps(NamedTuple):
    """Sums over the overlap at each shift, [..., H + h, W + w] or a little more: of a·b, of a², of b², and of 1.

    Shift 0 is at row h - 1 and column w - 1.
    """

    product: Array
    square_a: Array
    square_b: Array
    pixels: Array


def overlaps(a: Array, b: Array) -> Overlaps:
    """Images [..., H, W] against images [..., h, w], in their own precision. Means are not taken off."""
    shape = tuple(fft.next_fast_len(a.shape[axis] + b.shape[axis], real=True) for axis in (-2, -1))
    left, left2 = fft.rfft2(np.stack([a, a * a]), shape)
    right, right2 = fft.rfft2(np.stack([b, b * b])[..., ::-1, ::-1], shape)
    ones_a, ones_b, count = _extents(a.shape[-2:], b.shape[-2:], shape, a.dtype.name)
    return Overlaps(
        fft.irfft2(left * right, shape), fft.irfft2(left2 * ones_b, shape), fft.irfft2(ones_a * right2, shape), count
    )


@lru_cache(maxsize=256)
def _extents(a: tuple[int, int], b: tuple[int, int], shape: tuple[int, int], dtype: str) -> tuple[Array, Array, Array]:
    """Spectra of two blank images, and on how many pixels they overlap at each shift."""
    ones_a, ones_b = (fft.rfft2(np.ones(size, dtype=dtype), shape) for size in (a, b))
    return ones_a, ones_b, np.rint(fft.irfft2(ones_a * ones_b, shape))
