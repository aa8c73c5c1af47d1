"""Find the subject by saliency, and cut the square around it that the base is trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Map = NDArray[np.float64]

MAP_PX = 64
CENTRE_SPREAD = 0.32


@dataclass(frozen=True)
class Square:
    """A square within a photo, in pixels."""

    left: float
    top: float
    side: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        return (self.left, self.top, self.left + self.side, self.top + self.side)


def largest_square(image: Image.Image, *, how: str = "subject") -> Square:
    """The square over the photo's short side: centred, or slid along the long side to where most of the
    subject is.
    """
    side, slack = min(image.size), max(image.size) - min(image.size)
    offset = slack / 2
    if how == "subject" and slack:
        profile = saliency(image).sum(axis=0 if image.width > image.height else 1)
        offset = slack * _best_window(profile, share=side / max(image.size))
    return Square(offset, 0, side) if image.width > image.height else Square(0, offset, side)


def cut(image: Image.Image, square: Square, *, size_px: int) -> Image.Image:
    """A square of the photo, resampled once."""
    return image.resize((size_px, size_px), Image.Resampling.LANCZOS, box=square.box, reducing_gap=3)


def saliency(image: Image.Image) -> Map:
    """Saliency [64, 64] over the whole photo, summing to 1.

    The product of three maps: spectral residual (Hou & Zhang, "Saliency detection: a spectral residual
    approach", CVPR 2007, per colour channel), density of edges, and a prior for the centre, where
    photographed things are.
    """
    small = image.resize((MAP_PX, MAP_PX), Image.Resampling.BOX, reducing_gap=3)
    channels = np.asarray(small, dtype=np.float64).transpose(2, 0, 1)
    residual = np.sum([_spectral_residual(channel) for channel in channels], axis=0)
    edges = np.sum([ndimage.gaussian_gradient_magnitude(channel, 1.0) for channel in channels], axis=0)
    total = _scaled(residual) * _scaled(ndimage.gaussian_filter(edges, 3)) * _centre_prior()
    return total / total.sum()


def _spectral_residual(channel: Map) -> Map:
    spectrum = np.fft.fft2(channel)
    amplitude = np.log(np.abs(spectrum) + 1e-9)
    residual = amplitude - ndimage.uniform_filter(amplitude, 3, mode="wrap")
    return ndimage.gaussian_filter(np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2, 3)


def _scaled(values: Map) -> Map:
    """0-1, raised by a tenth so that one map alone cannot rule a place out."""
    span = np.ptp(values)
    return (values - values.min()) / span + 0.1 if span > 0 else np.ones_like(values)


def _centre_prior() -> Map:
    axis = np.exp(-0.5 * (np.linspace(-0.5, 0.5, MAP_PX) / CENTRE_SPREAD) ** 2)
    return np.outer(axis, axis)


def _best_window(profile: Map, *, share: float) -> float:
    """Offset, as a share of the slack, of the window of `share` that holds most; the most central among
    equals.
    """
    width = max(1, round(share * profile.size))
    saliency_sums = np.convolve(profile, np.ones(width), mode="valid")
    if saliency_sums.size == 1:
        return 0.5
    offsets = np.linspace(0, 1, saliency_sums.size)
    best = np.flatnonzero(saliency_sums >= saliency_sums.max() - 1e-3)
    return float(min(offsets[best], key=lambda place: abs(place - 0.5)))
