"""How usable images are: blank, flat, smeared and noisy ones are counted, and sharpness is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

Array = np.ndarray

DARK = 0.04
FLAT = 0.02
NOISY = 0.5
SMEARED = 0.1


@dataclass(frozen=True)
class Quality:
    """Per image [N]: brightest luma, spread of luma, correlation of neighbours, and sharpness."""

    peak: Array
    spread: Array
    neighbours: Array
    sharpness: Array

    def blank(self) -> Array:
        """Black or of one shade: what a numerical overflow decodes to."""
        return (self.peak < DARK) | (self.spread < FLAT)

    def broken(self, *, usual_sharpness: float) -> Array:
        """Blank, noise (neighbouring pixels unrelated), or far smoother than what the base usually gives."""
        smeared = self.sharpness < SMEARED * usual_sharpness
        return self.blank() | (self.neighbours < NOISY) | smeared


def measure_quality(images: Sequence[Image.Image]) -> Quality:
    """Measure every image; sharpness is the mean gradient magnitude of luma in [0, 1]."""
    rows = np.array([_measures(np.asarray(image.convert("L"), float) / 255) for image in images])
    return Quality(*rows.T)


def _measures(luma: Array) -> tuple[float, float, float, float]:
    dy, dx = np.diff(luma, axis=0), np.diff(luma, axis=1)
    sharpness = float(np.hypot(dy[:, :-1], dx[:-1]).mean())
    return float(np.quantile(luma, 0.99)), float(luma.std()), _correlation(luma[:, :-1], luma[:, 1:]), sharpness


def _correlation(first: Array, second: Array) -> float:
    spread = first.std() * second.std()
    return float(((first - first.mean()) * (second - second.mean())).mean() / spread) if spread > 1e-9 else 1.0
