"""Colour as people see it: CIELAB, the Monk skin-tone scale, and how far the colours of two image sets lie apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

Array = np.ndarray

MONK_HEX = (
    "f6ede4", "f3e7db", "f7ead0", "eadaba", "d7bd96", "a07e56", "825c43", "604134", "3a312a", "292420",
)  # fmt: skip
"""The ten tones of the Monk Skin Tone scale, lightest first."""

RANGES = ((0.0, 100.0), (-110.0, 110.0), (-110.0, 110.0))

D65 = np.array([0.95047, 1.0, 1.08883])
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def lab(rgb: Array) -> Array:
    """sRGB in [0, 1], [..., 3], to CIELAB under D65 (IEC 61966-2-1, CIE 15)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((np.maximum(rgb, 0) + 0.055) / 1.055) ** 2.4)
    xyz = linear @ TO_XYZ.T / D65
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def monk_lab() -> Array:
    """The ten tones in CIELAB: [10, 3]."""
    return lab(np.array([[int(tone[i : i + 2], 16) / 255 for i in (0, 2, 4)] for tone in MONK_HEX]))


def lab_histograms(images: Sequence[Image.Image], *, bins: int = 64) -> Array:
    """Shares of pixels by L*, a* and b*: [N, 3, bins]."""
    return np.stack([_histograms(image, bins) for image in images])


def appearance_distance(first: Array, second: Array) -> float:
    """Mean over L*, a*, b* of the Wasserstein-1 distance, in CIELAB units, of two sets of histograms [N, 3, bins]."""
    a, b = (x.reshape(-1, *x.shape[-2:]).mean(0) for x in (first, second))
    steps = np.array([(high - low) / a.shape[-1] for low, high in RANGES])
    return float((np.abs(np.cumsum(a - b, -1)).sum(-1) * steps).mean())


def _histograms(image: Image.Image, bins: int) -> Array:
    pixels = lab(np.asarray(image.convert("RGB").resize((64, 64))) / 255).reshape(-1, 3)
    channels = zip(pixels.T, RANGES, strict=True)
    return np.stack([np.histogram(np.clip(x, *limits), bins, limits)[0] / len(x) for x, limits in channels])
