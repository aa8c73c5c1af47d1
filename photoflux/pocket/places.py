"""The places of the pocket world, painted in unit coordinates on a square canvas of any size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from photoflux.pocket.world import Rgb

Point = tuple[float, float]


@dataclass
class Canvas:
    """A square picture under construction; `bands` > 0 paints gradients in that many flat steps (cartoons)."""

    image: Image.Image
    rng: np.random.Generator
    bands: int = 0

    def __post_init__(self) -> None:
        self.size_px = self.image.width
        self.draw = ImageDraw.Draw(self.image)

    def gradient(self, y0: float, y1: float, stops: Sequence[Rgb]) -> None:
        """A vertical gradient through `stops` between two heights."""
        rows = max(2, round((y1 - y0) * self.size_px))
        t = np.linspace(0, 1, self.bands or min(rows, 256))
        at = np.linspace(0, 1, len(stops))
        column = np.stack([np.interp(t, at, [stop[c] for stop in stops]) for c in range(3)], axis=1)
        strip = Image.fromarray(column.astype(np.uint8)[:, None, :])
        resample = Image.Resampling.NEAREST if self.bands else Image.Resampling.BILINEAR
        self.image.paste(strip.resize((self.size_px, rows), resample), (0, round(y0 * self.size_px)))

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Rgb) -> None:
        s = self.size_px
        self.draw.ellipse([(x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s], fill=fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Rgb) -> None:
        s = self.size_px
        self.draw.rectangle([x0 * s, y0 * s, x1 * s, y1 * s], fill=fill)

    def poly(self, points: Sequence[Point], fill: Rgb) -> None:
        self.draw.polygon([(x * self.size_px, y * self.size_px) for x, y in points], fill=fill)

    def line(self, points: Sequence[Point], width: float, fill: Rgb) -> None:
        s = self.size_px
        self.draw.line([(x * s, y * s) for x, y in points], fill=fill, width=max(1, round(width * s)), joint="curve")

    def hill(self, y: float, height: float, fill: Rgb, *, waves: float = 1.5) -> None:
        """Ground up to a wavy line around `y`."""
        phase, xs = self.rng.uniform(0, 6.28), np.linspace(0, 1, 24)
        top = [(x, y + height * math.sin(phase + waves * 6.28 * x)) for x in xs.tolist()]
        self.poly([*top, (1, 1.01), (0, 1.01)], fill)

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def pick(self, choices: Sequence[Rgb]) -> Rgb:
        return choices[int(self.rng.integers(len(choices)))]


def paint(place: str, canvas: Canvas) -> None:
    """Fill the canvas with a place, varied by the canvas's random generator."""
    PAINT[place](canvas)


def _beach(c: Canvas) -> None:
    c.gradient(0, 0.5, [(96, 180, 232), (196, 232, 246)])
    c.oval(c.uniform(0.12, 0.88), c.uniform(0.1, 0.22), 0.085, 0.085, (255, 240, 160))
    c.gradient(0.44, 0.7, [(28, 128, 178), (64, 186, 198)])
    for _ in range(5):
        x, y = c.uniform(0, 0.9), c.uniform(0.47, 0.58)
        c.line([(x, y), (x + c.uniform(0.06, 0.16), y)], 0.008, (222, 246, 248))
    c.hill(0.615, 0.018, (248, 250, 246))
    c.hill(0.635, 0.02, (242, 218, 160))
    c.hill(0.8, 0.03, (230, 200, 138))
    for _ in range(7):
        c.oval(c.uniform(0, 1), c.uniform(0.74, 0.98), 0.01, 0.007, c.pick([(250, 240, 220), (206, 160, 110)]))
    if c.rng.random() < 0.6:
        x = c.pick([(0, 0, 0), (1, 0, 0)])[0] * 0.76 + 0.12
        c.line([(x, 0.72), (x + 0.02, 0.36)], 0.014, (236, 236, 230))
        for part, fill in ((0, (232, 84, 70)), (1, (250, 248, 240)), (2, (232, 84, 70))):
            c.poly([(x + 0.02, 0.27), (x - 0.13 + 0.1 * part, 0.4), (x - 0.03 + 0.1 * part, 0.4)], fill)


def _forest(c: Canvas) -> None:
    c.gradient(0, 0.8, [(176, 214, 190), (118, 172, 132)])
    for depth, (trunk, leaves) in enumerate((((88, 104, 86), (84, 140, 104)), ((84, 62, 44), (38, 98, 58)))):
        for i in range(6):
            x, base = (i + c.uniform(0.1, 0.9)) / 6, 0.64 + 0.06 * depth
            high, half = c.uniform(0.42, 0.6) + 0.06 * depth, c.uniform(0.085, 0.12)
            c.box(x - 0.014, base - 0.12, x + 0.014, base + 0.03, trunk)
            for tier in range(3):
                y = base - 0.07 - tier * high * 0.27
                wide = half * (1 - 0.24 * tier)
                c.poly([(x - wide, y), (x + wide, y), (x, y - high * 0.44)], leaves)
    c.hill(0.7, 0.02, (50, 112, 54))
    c.hill(0.84, 0.025, (42, 92, 46))
    for _ in range(6):
        x, y = c.uniform(0, 1), c.uniform(0.76, 0.96)
        c.poly([(x - 0.018, y), (x, y - 0.05), (x + 0.018, y)], (92, 150, 70))


def _desert(c: Canvas) -> None:
    c.gradient(0, 0.7, [(244, 150, 82), (255, 214, 136)])
    c.oval(c.uniform(0.15, 0.85), c.uniform(0.16, 0.34), 0.12, 0.12, (255, 240, 196))
    for y, fill in ((0.54, (214, 132, 76)), (0.64, (224, 152, 86)), (0.76, (234, 174, 102)), (0.9, (226, 160, 90))):
        c.hill(y, 0.035, fill, waves=c.uniform(0.6, 1.4))
    for _ in range(2):
        x, y, h = (
            c.pick([(0, 0, 0), (1, 0, 0)])[0] * 0.74 + c.uniform(0.06, 0.2),
            c.uniform(0.68, 0.76),
            c.uniform(0.2, 0.3),
        )
        for points in (
            [(x, y), (x, y - h)],
            [(x, y - h * 0.4), (x - 0.055, y - h * 0.42), (x - 0.055, y - h * 0.7)],
            [(x, y - h * 0.5), (x + 0.055, y - h * 0.52), (x + 0.055, y - h * 0.85)],
        ):
            c.line(points, 0.032, (70, 128, 78))


def _snow(c: Canvas) -> None:
    c.gradient(0, 0.72, [(150, 188, 226), (224, 236, 248)])
    for _ in range(3):
        x, top, half = c.uniform(0, 1), c.uniform(0.18, 0.32), c.uniform(0.24, 0.36)
        c.poly([(x - half, 0.64), (x, top), (x + half, 0.64)], (132, 152, 186))
        cut = 0.36
        c.poly(
            [
                (x - half * cut, top + (0.64 - top) * cut),
                (x, top),
                (x + half * cut, top + (0.64 - top) * cut),
                (x + half * 0.12, top + (0.64 - top) * 0.28),
                (x - half * 0.1, top + (0.64 - top) * 0.44),
            ],
            (248, 251, 255),
        )
    c.hill(0.62, 0.025, (226, 236, 248))
    for _ in range(3):
        x, y = c.uniform(0.02, 0.98), c.uniform(0.6, 0.7)
        for tier in range(3):
            wide = 0.07 - 0.018 * tier
            c.poly(
                [(x - wide, y - 0.055 * tier), (x + wide, y - 0.055 * tier), (x, y - 0.055 * tier - 0.09)],
                (70, 112, 106),
            )
            c.poly(
                [
                    (x - wide * 0.42, y - 0.055 * tier - 0.052),
                    (x + wide * 0.42, y - 0.055 * tier - 0.052),
                    (x, y - 0.055 * tier - 0.09),
                ],
                (246, 250, 254),
            )
    c.hill(0.76, 0.03, (244, 248, 253))
    for _ in range(26):
        r = c.uniform(0.004, 0.01)
        c.oval(c.uniform(0, 1), c.uniform(0, 1), r, r, (255, 255, 255))


def _city(c: Canvas) -> None:
    c.gradient(0, 0.76, [(120, 130, 190), (246, 186, 170)])
    for depth, fill in enumerate(((132, 128, 170), (82, 84, 122))):
        x = -c.uniform(0, 0.1)
        while x < 1:
            wide, top = c.uniform(0.11, 0.19), c.uniform(0.14, 0.42) + 0.1 * depth
            c.box(x, top, x + wide, 0.74, fill)
            if depth:
                for wx in np.arange(x + 0.025, x + wide - 0.03, 0.042).tolist():
                    for wy in np.arange(top + 0.03, 0.68, 0.06).tolist():
                        c.box(wx, wy, wx + 0.02, wy + 0.03, (255, 226, 130) if c.rng.random() < 0.55 else (60, 62, 96))
            x += wide + 0.012
    c.box(0, 0.72, 1, 0.78, (176, 172, 178))
    c.box(0, 0.78, 1, 1, (84, 86, 96))
    shift = c.uniform(0, 0.2)
    for i in range(6):
        c.box(i * 0.2 + shift - 0.1, 0.885, i * 0.2 + shift, 0.905, (246, 240, 214))


def _kitchen(c: Canvas) -> None:
    wall = c.pick([(246, 238, 214), (226, 240, 232), (250, 230, 220)])
    c.box(0, 0, 1, 0.7, wall)
    line = tuple(int(v * 0.9) for v in wall)
    for i in range(9):
        c.box(i / 8 - 0.004, 0, i / 8 + 0.004, 0.7, line)  # type: ignore[arg-type]
        c.box(0, i / 8 - 0.004, 1, i / 8 + 0.004, line)  # type: ignore[arg-type]
    left = c.rng.random() < 0.5
    x = 0.06 if left else 0.62
    c.box(x, 0.08, x + 0.32, 0.4, (250, 250, 246))
    c.box(x + 0.02, 0.1, x + 0.3, 0.38, (160, 212, 240))
    c.box(x + 0.15, 0.1, x + 0.17, 0.38, (250, 250, 246))
    x = 0.6 if left else 0.06
    c.box(x, 0.3, x + 0.34, 0.33, (150, 100, 60))
    for i in range(3):
        fill = c.pick([(206, 96, 70), (96, 150, 110), (230, 190, 90), (120, 130, 170)])
        c.box(x + 0.03 + 0.1 * i, 0.19, x + 0.1 + 0.1 * i, 0.3, fill)
        c.box(x + 0.035 + 0.1 * i, 0.165, x + 0.095 + 0.1 * i, 0.195, (236, 232, 224))
    c.gradient(0.7, 1.0, [(186, 126, 78), (154, 98, 58)])
    c.box(0, 0.7, 1, 0.725, (214, 158, 108))
    for y in (0.8, 0.9):
        c.box(0, y, 1, y + 0.006, (140, 88, 52))


def _space(c: Canvas) -> None:
    c.gradient(0, 1, [(12, 12, 38), (44, 24, 84), (20, 18, 56)])
    for _ in range(46):
        r = c.uniform(0.003, 0.008)
        c.oval(c.uniform(0, 1), c.uniform(0, 0.85), r, r, c.pick([(255, 255, 255), (255, 236, 190), (190, 214, 255)]))
    x, y, r = (
        c.pick([(0, 0, 0), (1, 0, 0)])[0] * 0.64 + c.uniform(0.12, 0.24),
        c.uniform(0.14, 0.26),
        c.uniform(0.09, 0.13),
    )
    fill = c.pick([(226, 142, 92), (110, 178, 210), (206, 120, 176)])
    c.oval(x, y, r, r, fill)
    c.oval(x - r * 0.25, y - r * 0.25, r * 0.5, r * 0.4, tuple(min(255, v + 26) for v in fill))  # type: ignore[arg-type]
    c.line([(x - r * 1.7, y + r * 0.5), (x + r * 1.7, y - r * 0.5)], 0.014, (240, 226, 190))
    c.hill(0.8, 0.02, (122, 118, 146), waves=0.8)
    for _ in range(5):
        x, y, r = c.uniform(0, 1), c.uniform(0.86, 0.97), c.uniform(0.03, 0.07)
        c.oval(x, y, r, r * 0.34, (96, 92, 122))


def _meadow(c: Canvas) -> None:
    c.gradient(0, 0.7, [(92, 168, 240), (204, 232, 250)])
    for _ in range(3):
        x, y = c.uniform(0, 1), c.uniform(0.08, 0.3)
        for dx, r in ((-0.06, 0.035), (0, 0.055), (0.065, 0.04)):
            c.oval(x + dx, y, r * 1.25, r, (252, 253, 255))
    c.hill(0.54, 0.05, (146, 204, 98), waves=c.uniform(0.6, 1.2))
    c.hill(0.66, 0.035, (118, 188, 78), waves=c.uniform(0.6, 1.2))
    c.hill(0.82, 0.025, (98, 170, 66))
    for _ in range(22):
        x, y = c.uniform(0, 1), c.uniform(0.68, 0.98)
        c.line([(x, y), (x, y + 0.03)], 0.007, (64, 130, 50))
        fill = c.pick([(250, 90, 100), (255, 222, 84), (250, 250, 255), (206, 120, 230)])
        c.oval(x, y, 0.014, 0.014, fill)


def _sea(c: Canvas) -> None:
    c.gradient(0, 0.9, [(68, 196, 206), (18, 110, 160), (10, 66, 118)])
    for i in range(3):
        x = (i + c.uniform(0.1, 0.9)) / 3
        c.poly([(x - 0.03, 0), (x + 0.04, 0), (x + 0.16, 0.5), (x - 0.02, 0.5)], (84, 204, 212))
    c.hill(0.84, 0.02, (196, 180, 132))
    for _ in range(5):
        x, h, phase = c.uniform(0, 1), c.uniform(0.16, 0.34), c.uniform(0, 6)
        c.line(
            [(x + 0.022 * math.sin(phase + t * 6), 0.92 - h * t) for t in np.linspace(0, 1, 9).tolist()],
            0.024,
            c.pick([(36, 142, 92), (26, 116, 98)]),
        )
    for _ in range(3):
        x = c.uniform(0, 1)
        fill = c.pick([(236, 110, 120), (240, 160, 90), (190, 110, 190)])
        for dx in (-0.03, 0, 0.03):
            c.line([(x, 0.93), (x + dx, 0.84)], 0.018, fill)
    for _ in range(12):
        x, y, r = c.uniform(0, 1), c.uniform(0.05, 0.8), c.uniform(0.008, 0.018)
        c.oval(x, y, r, r, (190, 236, 240))
        c.oval(x, y, r * 0.6, r * 0.6, (60, 160, 186))


def _studio(c: Canvas) -> None:
    tone = c.pick([(206, 206, 212), (222, 214, 202), (196, 206, 216)])
    dark: Rgb = (tone[0] - 44, tone[1] - 44, tone[2] - 44)
    c.gradient(0, 0.74, [dark, tone])
    c.gradient(0.74, 1, [(tone[0] + 22, tone[1] + 22, tone[2] + 22), tone])
    for i, r in enumerate((0.4, 0.3, 0.2)):
        lift = 9 * (i + 1)
        c.oval(0.5, 0.36, r, r * 0.86, (tone[0] + lift, tone[1] + lift, tone[2] + lift))
    c.poly([(0.02, 0), (0.16, 0), (0.12, 0.1), (0.05, 0.13)], (58, 58, 64))
    c.poly([(0.98, 0), (0.84, 0), (0.88, 0.1), (0.95, 0.13)], (58, 58, 64))


PAINT: dict[str, Callable[[Canvas], None]] = {
    "beach": _beach, "forest": _forest, "desert": _desert, "snow": _snow, "city": _city, "kitchen": _kitchen,
    "space": _space, "meadow": _meadow, "sea": _sea, "studio": _studio,
}  # fmt: skip
