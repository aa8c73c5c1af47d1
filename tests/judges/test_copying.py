from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from photoflux.judges.copying import (
    SIDE_PX,
    likeness,
    shifted_correlation,
    structure,
    structure_distance,
    structure_spread,
)


def scene(seed: int, size_px: int = 160) -> Image.Image:
    """Overlapping rectangles: unrelated between seeds."""
    rng = np.random.default_rng(seed)
    pixels = np.full((size_px, size_px, 3), 128, np.uint8)
    for _ in range(14):
        x, y, w, h = rng.integers(0, size_px - 20), rng.integers(0, size_px - 20), *rng.integers(15, 60, 2)
        pixels[y : y + h, x : x + w] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def brute_force(first: np.ndarray, second: np.ndarray, reach: int = 14) -> float:
    best = -1.0
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            a = first[max(dy, 0) : SIDE_PX + min(dy, 0), max(dx, 0) : SIDE_PX + min(dx, 0)]
            b = second[max(-dy, 0) : SIDE_PX + min(-dy, 0), max(-dx, 0) : SIDE_PX + min(-dx, 0)]
            best = max(best, float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())))
    return best


def test_fourier_correlation_equals_sliding_by_hand() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, SIDE_PX, SIDE_PX)), rng.normal(size=(3, SIDE_PX, SIDE_PX))
    by_hand = np.array([[brute_force(a, b) for b in second] for a in first])
    assert shifted_correlation(first, second) == pytest.approx(by_hand, abs=1e-9)


def test_a_copy_is_found_shifted_mirrored_and_recoloured() -> None:
    photo = scene(1)
    copies = [
        photo,
        ImageOps.mirror(photo),
        photo.crop((16, 8, 160, 152)).resize((160, 160)),
        photo.point(lambda v: round(v * 0.7 + 20)),
    ]
    found = likeness(structure(copies), structure([photo]))[:, 0]
    assert found[[0, 1, 3]].min() > 0.98
    assert found[2] > 0.6


def test_unrelated_pictures_are_no_copies() -> None:
    others = structure([scene(seed) for seed in range(2, 12)])
    assert likeness(others, structure([scene(1)])).max() < 0.75


def test_distance_is_zero_for_equals_and_one_for_strangers() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 5, SIDE_PX, SIDE_PX))
    assert structure_distance(a, a) == pytest.approx(np.zeros(5), abs=1e-12)
    assert structure_distance(a, b) == pytest.approx(np.ones(5), abs=0.1)


def test_spread_is_the_mean_distance_of_pairs() -> None:
    """By hand: one prompt with three equal pictures; one of whose three pairs two differ."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, SIDE_PX, SIDE_PX))
    spread = structure_spread(np.array([[a, a, a], [a, a, b]]))
    assert spread == pytest.approx([0, 2 / 3 * structure_distance(a, b)])
    assert structure_spread(np.array([[a], [b]])) == pytest.approx([0, 0])


def test_a_blank_picture_is_like_nothing() -> None:
    blank = structure([Image.new("RGB", (64, 64), "grey")])
    assert likeness(blank, structure([scene(1)])).max() == pytest.approx(0, abs=1e-6)
