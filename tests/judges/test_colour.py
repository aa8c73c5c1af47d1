from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from photoflux.judges.colour import (
    appearance_distance,
    lab,
    lab_histograms,
    monk_lab,
)

# Published CIELAB values of the Monk scale: L*, b*, ITA (degrees), hue (degrees).
MONK = np.array([
    [94.2, 5.4, 83.0, 74.5], [92.3, 7.3, 80.2, 74.2], [93.1, 14.2, 71.7, 89.1], [87.6, 17.8, 64.7, 88.5],
    [77.9, 23.1, 50.3, 81.5], [55.1, 26.7, 10.9, 73.8], [42.5, 20.5, -20.1, 59.0], [30.7, 13.3, -55.4, 48.8],
    [21.1, 6.0, -78.3, 65.7], [14.6, 3.5, -84.3, 67.2],
])  # fmt: skip


def test_lab_of_known_colours() -> None:
    colours = np.array([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    known = np.array([[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]])
    assert lab(colours) == pytest.approx(known, abs=0.05)


def test_monk_tones_have_their_published_values() -> None:
    tones = monk_lab()
    assert tones[:, 0] == pytest.approx(MONK[:, 0], abs=0.06)
    assert tones[:, 2] == pytest.approx(MONK[:, 1], abs=0.06)
    assert np.degrees(np.arctan2(tones[:, 0] - 50, tones[:, 2])) == pytest.approx(MONK[:, 2], abs=0.1)
    assert np.degrees(np.arctan2(tones[:, 2], tones[:, 1])) == pytest.approx(MONK[:, 3], abs=0.6)


def test_appearance_distance_is_the_shift_in_lightness() -> None:
    """Uniform greys 20 L* apart: one of three channels moves by 20."""
    greys = [Image.new("RGB", (8, 8), (round(255 * level),) * 3) for level in (0.4663, 0.2663)]
    first, second = (lab_histograms([grey]) for grey in greys)
    levels = [lab(np.full(3, np.asarray(grey)[0, 0, 0] / 255))[0] for grey in greys]
    assert appearance_distance(first, second) == pytest.approx((levels[0] - levels[1]) / 3, abs=100 / 64 / 3 + 0.01)
    assert appearance_distance(first, first) == 0
