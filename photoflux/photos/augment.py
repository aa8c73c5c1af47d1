"""Mild, reproducible variants of a photo that leave its subject as it is."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from photoflux.params import AugmentParams
from photoflux.photos.normalise import MAP_PX, Square, saliency

PEOPLE = "person people man woman boy girl child baby face portrait selfie adult teenager"
LETTERED = "text logo sign label book poster badge card letter font license"
SYMMETRIC = "vase bowl ball bottle plate candle flower tree landscape mountain cloud style"
FLIP_BELOW = 8
OFFSETS_TRIED = 96
SALIENCY_SHARE_MIN = 0.97


@dataclass(frozen=True)
class Recipe:
    """One variant, fully decided: a square of the photo (pixels), turned, mirrored and relit a little."""

    left: float
    top: float
    side: float
    rotation_deg: float = 0.0
    mirrored: bool = False
    brightness: float = 1.0
    gamma: float = 1.0

    @property
    def square(self) -> Square:
        return Square(self.left, self.top, self.side)

    def as_json(self) -> dict[str, float | bool]:
        return {name: round(value, 4) for name, value in asdict(self).items()} | {"mirrored": self.mirrored}


def may_flip(class_noun: str, *, photos: int, params: AugmentParams) -> bool:
    """Mirroring turns lettering and markings round: unasked, only few photos of symmetric things are
    mirrored.
    """
    if params.flip != "auto":
        return params.flip == "on"
    return photos < FLIP_BELOW and _is_one_of(SYMMETRIC, class_noun)


def may_recolour(class_noun: str, *, params: AugmentParams) -> bool:
    """Brightness shifts skin tones and brand colours: unasked, people and lettering keep theirs."""
    if params.colour_jitter != "auto":
        return params.colour_jitter == "on"
    return not _is_one_of(f"{PEOPLE} {LETTERED}", class_noun)


def plan(
    image: Image.Image,
    square: Square,
    *,
    sha256: str,
    number: int,
    flip: bool,
    recolour: bool,
    params: AugmentParams,
) -> Recipe:
    """Decide variant `number` of a photo within `square`, from the photo's own digest and the seed alone."""
    rng = np.random.default_rng([params.seed, number, int(sha256[:16], 16)])
    angle = float(rng.uniform(-1, 1) * params.rotation_deg)
    widest = 1 / _turned_span(angle)
    shown = rng.uniform(min(params.scale_min, widest), widest)
    side = float(square.side * shown / widest)
    left, top = _offset(image, square, side=side, rng=rng)
    brightness, gamma = (1 + rng.uniform(-1, 1, 2) * (params.colour_strength if recolour else 0)).tolist()
    mirrored = bool(rng.random() < 0.5) and flip
    return Recipe(left, top, side, angle, mirrored, brightness, gamma)


def apply(image: Image.Image, recipe: Recipe, *, size_px: int) -> Image.Image:
    """Make a variant. A turned picture is cut to the largest upright square inside, so no corner is empty."""
    left, top, right, bottom = (round(edge) for edge in recipe.square.box)
    variant = image.crop((left, top, right, bottom))
    if recipe.rotation_deg:
        turned = variant.rotate(recipe.rotation_deg, Image.Resampling.BICUBIC)
        variant = _inside(turned, share=1 / _turned_span(recipe.rotation_deg))
    variant = variant.resize((size_px, size_px), Image.Resampling.LANCZOS, reducing_gap=3)
    if recipe.mirrored:
        variant = variant.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _adjust_light(variant, brightness=recipe.brightness, gamma=recipe.gamma)


def _inside(image: Image.Image, *, share: float) -> Image.Image:
    """The middle of a picture, a pixel short of `share` of its sides: interpolation darkens the very edge."""
    margin = math.ceil(min(image.width * (1 - share) / 2 + 1, image.width / 4))
    return image.crop((margin, margin, image.width - margin, image.height - margin))


def _turned_span(angle_deg: float) -> float:
    """Side of the upright square around a turned unit square; its inverse is that of the one inside."""
    radians = math.radians(abs(angle_deg))
    return math.cos(radians) + math.sin(radians)


def _offset(image: Image.Image, square: Square, *, side: float, rng: np.random.Generator) -> tuple[float, float]:
    """A random place for a smaller square, of those that keep about as much of the subject as any tried."""
    slack = max(0.0, square.side - side)
    offsets = np.array([square.left, square.top]) + rng.uniform(0, 1, (OFFSETS_TRIED, 2)) * slack
    saliency_map = saliency(image)
    shares = [_saliency_share(saliency_map, image, Square(left, top, side)) for left, top in offsets]
    good = [offset for offset, share in zip(offsets, shares, strict=True) if share >= SALIENCY_SHARE_MIN * max(shares)]
    left, top = good[int(rng.integers(len(good)))]
    return float(left), float(top)


def _saliency_share(saliency_map: np.ndarray, image: Image.Image, square: Square) -> float:
    """Share of the saliency map inside a square."""
    x = np.array([square.left, square.left + square.side]) / image.width * MAP_PX
    y = np.array([square.top, square.top + square.side]) / image.height * MAP_PX
    (x0, x1), (y0, y1) = x.round().astype(int), y.round().astype(int)
    return float(saliency_map[y0:y1, x0:x1].sum())


def _adjust_light(image: Image.Image, *, brightness: float, gamma: float) -> Image.Image:
    if brightness == gamma == 1:
        return image
    curve = np.linspace(0, 1, 256) ** gamma * brightness
    return image.point((curve.clip(0, 1) * 255).round().astype(int).tolist() * 3)


def _is_one_of(nouns: str, class_noun: str) -> bool:
    return not set(nouns.split()).isdisjoint(class_noun.lower().replace("-", " ").split())
