"""Whether an image is a training photo again: structure compared under shift and mirroring, colours aside."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

from photoflux.correlation import overlaps

Array = np.ndarray

SIDE_PX = 40
SHIFT_PX = 14


def structure(images: Sequence[Image.Image]) -> Array:
    """High-passed luma [N, 40, 40], zero mean: edges and shapes without light and colour."""
    return np.stack([_structure(image) for image in images])


def likeness(images: Array, photos: Array) -> Array:
    """Largest correlation [N, M] of structures [N, 40, 40] and [M, 40, 40] over shifts of up to 14 px and mirroring."""
    straight, mirrored = shifted_correlation(images, photos), shifted_correlation(images, photos[..., ::-1])
    return np.maximum(straight, mirrored)


def shifted_correlation(first: Array, second: Array) -> Array:
    """Largest correlation [N, M], normalised over the overlap, of structures at all shifts within +-14 px."""
    near = slice(SIDE_PX - 1 - SHIFT_PX, SIDE_PX + SHIFT_PX)
    found = overlaps(first[:, None], second[None])
    product, energy_a, energy_b = (sums[..., near, near] for sums in (found.product, found.square_a, found.square_b))
    energy = np.sqrt(np.maximum(energy_a, 0) * np.maximum(energy_b, 0))
    return np.divide(product, energy, out=np.zeros_like(product), where=energy > 1e-6).max((-2, -1))


def structure_distance(first: Array, second: Array) -> Array:
    """1 - correlation of structures in place, [..., 40, 40] against the same: 0 equal, about 1 unrelated."""
    a, b = (x.reshape(*x.shape[:-2], -1) for x in (first, second))
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return 1 - np.divide((a * b).sum(-1), norms, out=np.zeros_like(norms), where=norms > 1e-9)


def structure_spread(structures: Array) -> Array:
    """Mean structure distance [P] of the pairs among the S images of each prompt, [P, S, 40, 40] given."""
    seeds = structures.shape[1]
    distances = structure_distance(structures[:, :, None], structures[:, None])
    return distances.sum((1, 2)) / max(seeds * (seeds - 1), 1)


def _structure(image: Image.Image) -> Array:
    grey = image.convert("L").resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    smooth = grey.filter(ImageFilter.GaussianBlur(SIDE_PX / 10))
    edges = np.asarray(grey, float) - np.asarray(smooth, float)
    return (edges - edges.mean()) / 255
