"""The figures of the pocket world as lists of simple shapes, in a frame of [-1, 1] x [-1, 1] (y down, looking right)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from photoflux.pocket.world import Person, Rgb, Subject

Point = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """A filled polygon, or a stroke of `width` along `points` when that is not 0. `fill` is a role or a colour."""

    points: tuple[Point, ...]
    fill: str | Rgb
    width: float = 0.0
    outlined: bool = True


@dataclass
class Figure:
    """Shapes in drawing order; those filled with "body" carry the pattern. The mark goes to `mark_at`."""

    shapes: list[Shape] = field(default_factory=list)
    mark_at: tuple[float, float, float] = (0.0, 0.0, 0.14)
    ground: float = 0.86
    shadow: float = 0.62

    def oval(
        self, x: float, y: float, rx: float, ry: float, fill: str | Rgb, *, turn: float = 0.0, **how: bool
    ) -> None:
        cos, sin = math.cos(turn), math.sin(turn)
        ring = ((rx * math.cos(a), ry * math.sin(a)) for a in _angles(28))
        self.shapes.append(Shape(tuple((x + u * cos - v * sin, y + u * sin + v * cos) for u, v in ring), fill, **how))

    def blob(self, points: list[Point], fill: str | Rgb, **how: bool) -> None:
        """A closed smooth curve through the points (Catmull-Rom)."""
        self.shapes.append(Shape(tuple(_smooth(points)), fill, **how))

    def poly(self, points: list[Point], fill: str | Rgb, **how: bool) -> None:
        self.shapes.append(Shape(tuple(points), fill, **how))

    def box(self, x0: float, y0: float, x1: float, y1: float, r: float, fill: str | Rgb, **how: bool) -> None:
        """A rectangle with rounded corners."""
        corners = ((x1 - r, y1 - r, 0), (x0 + r, y1 - r, 90), (x0 + r, y0 + r, 180), (x1 - r, y0 + r, 270))
        arc = [
            (cx + r * math.cos(math.radians(a0 + a)), cy + r * math.sin(math.radians(a0 + a)))
            for cx, cy, a0 in corners
            for a in (0, 22, 45, 68, 90)
        ]
        self.shapes.append(Shape(tuple(arc), fill, **how))

    def line(self, points: list[Point], width: float, fill: str | Rgb, **how: bool) -> None:
        self.shapes.append(Shape(tuple(points), fill, width=width, **how))

    def arc(
        self, x: float, y: float, rx: float, ry: float, a0: float, a1: float, width: float, fill: str | Rgb, **how: bool
    ) -> None:
        steps = [math.radians(a0 + (a1 - a0) * i / 12) for i in range(13)]
        self.line([(x + rx * math.cos(a), y + ry * math.sin(a)) for a in steps], width, fill, **how)

    def eye(self, x: float, y: float, r: float) -> None:
        self.oval(x, y, r, r * 1.1, "light", outlined=False)
        self.oval(x + r * 0.2, y + r * 0.1, r * 0.62, r * 0.72, "dark", outlined=False)
        self.oval(x + r * 0.38, y - r * 0.25, r * 0.22, r * 0.22, "light", outlined=False)


def figure_of(subject: Subject | Person) -> Figure:
    """The shapes of a subject; its proportions bend them."""
    if isinstance(subject, Person):
        return _person(subject)
    return DRAW[subject.kind](*subject.proportions)


def mark_shape(mark: str, x: float, y: float, r: float) -> list[Shape]:
    """The mark of an individual, `r` in radius."""
    f = Figure()
    if mark == "star":
        f.poly(
            [
                (
                    x + (r if i % 2 else r * 0.42) * math.sin(i * math.pi / 5),
                    y + (r if i % 2 else r * 0.42) * math.cos(i * math.pi / 5),
                )
                for i in range(10)
            ],
            "mark",
        )
    elif mark == "heart":
        ring = [
            (0.94 * math.sin(a) ** 3, -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a)) / 16)
            for a in _angles(24)
        ]
        f.poly([(x + r * u, y + r * v) for u, v in ring], "mark")
    elif mark == "moon":
        outer = [(x + r * math.cos(a), y + r * math.sin(a)) for a in (math.radians(d) for d in range(60, 301, 20))]
        inner = [
            (x + r * 0.45 + r * 0.75 * math.cos(a), y + r * 0.8 * math.sin(a))
            for a in (math.radians(d) for d in range(280, 79, -20))
        ]
        f.poly(outer + inner, "mark")
    elif mark == "square":
        f.box(x - r * 0.8, y - r * 0.8, x + r * 0.8, y + r * 0.8, r * 0.15, "mark")
    elif mark == "ring":
        f.arc(x, y, r * 0.72, r * 0.72, 0, 360, r * 0.5, "mark")
    else:
        f.box(x - r * 0.3, y - r, x + r * 0.3, y + r, r * 0.1, "mark", outlined=False)
        f.box(x - r, y - r * 0.3, x + r, y + r * 0.3, r * 0.1, "mark", outlined=False)
    return f.shapes


def _dog(ear: float, length: float, tail: float, leg: float) -> Figure:
    f = Figure(mark_at=(-0.22, 0.12, 0.15), shadow=0.72)
    reach, high = 0.46 + 0.16 * length, 0.3 - 0.16 * leg
    f.line(
        [
            (-reach - 0.02, high - 0.08),
            (-reach - 0.2, high - 0.3),
            (-reach - 0.16 - 0.1 * tail, high - 0.5 - 0.25 * tail),
        ],
        0.13,
        "body",
    )
    for x in (-reach + 0.06, -reach + 0.27, 0.14, 0.34):
        f.box(x - 0.085, high, x + 0.085, 0.86, 0.07, "body")
    f.blob(
        [
            (-reach - 0.05, high),
            (-0.3, high - 0.26),
            (0.2, high - 0.3),
            (0.48, high - 0.12),
            (0.42, high + 0.22),
            (0.0, high + 0.24),
            (-reach + 0.02, high + 0.26),
        ],
        "body",
    )
    f.poly([(0.2, high - 0.2), (0.34, -0.52), (0.66, -0.4), (0.5, high + 0.08)], "body")
    f.oval(0.52, -0.46, 0.29, 0.26, "body")
    f.oval(0.76, -0.36, 0.2, 0.14, "body")
    f.line([(0.26, high - 0.2), (0.56, high - 0.1)], 0.11, "accent")
    f.oval(0.36, -0.4, 0.1 + 0.05 * ear, 0.2 + 0.16 * ear, "accent", turn=0.2)
    f.oval(0.92, -0.43, 0.075, 0.06, "dark", outlined=False)
    f.eye(0.6, -0.53, 0.085)
    return f


def _cat(ear: float, tail: float, belly: float, head: float) -> Figure:
    f = Figure(mark_at=(-0.2, 0.36, 0.13), shadow=0.52)
    wide, top = 0.38 + 0.12 * belly, -0.36
    f.line([(0.3, 0.76), (0.68, 0.72), (0.8, 0.4), (0.66 + 0.1 * tail, 0.12 - 0.34 * tail)], 0.14, "body")
    f.blob([(-0.2, -0.1), (0.2, -0.1), (wide, 0.45), (wide - 0.02, 0.84), (-wide + 0.02, 0.84), (-wide, 0.45)], "body")
    for side in (-1, 1):
        f.poly([(side * 0.1, top - 0.2), (side * 0.36, top - 0.36 - 0.26 * ear), (side * 0.42, top)], "body")
        f.poly(
            [(side * 0.2, top - 0.2), (side * 0.34, top - 0.26 - 0.2 * ear), (side * 0.36, top - 0.06)],
            "accent",
            outlined=False,
        )
    f.oval(0, top, 0.38 + 0.08 * head, 0.33, "body")
    f.oval(0.06, 0.36, 0.13, 0.24, "accent", outlined=False)
    f.oval(-0.16, 0.82, 0.15, 0.09, "body")
    f.oval(0.16, 0.82, 0.15, 0.09, "body")
    for side in (-1, 1):
        f.eye(side * 0.17 - 0.02, top - 0.04, 0.095)
        f.line([(side * 0.2, top + 0.15), (side * 0.56, top + 0.1)], 0.022, "dark", outlined=False)
    f.poly([(-0.06, top + 0.09), (0.06, top + 0.09), (0, top + 0.17)], (236, 130, 140), outlined=False)
    return f


def _bird(crest: float, tail: float, belly: float, beak: float) -> Figure:
    f = Figure(mark_at=(0.26, 0.2, 0.13), shadow=0.42)
    for x in (-0.06, 0.14):
        f.line([(x, 0.4), (x, 0.84), (x + 0.12, 0.85)], 0.05, (230, 140, 40))
    f.poly(
        [(-0.4, 0.0), (-0.86 - 0.12 * tail, 0.06 + 0.3 * tail), (-0.8 - 0.1 * tail, 0.3 + 0.26 * tail), (-0.3, 0.34)],
        "accent",
    )
    f.blob(
        [(-0.5, 0.12), (-0.1, -0.22), (0.3, -0.34), (0.62, -0.1), (0.5, 0.34), (0.1, 0.5 + 0.1 * belly), (-0.3, 0.4)],
        "body",
    )
    for dx in (0.0, 0.13):
        f.line([(0.36 + dx, -0.62), (0.26 + 1.3 * dx, -0.72 - 0.24 * crest)], 0.08, "accent")
    f.poly([(0.66, -0.5), (0.86 + 0.16 * beak, -0.36), (0.66, -0.28)], (246, 166, 44))
    f.oval(0.46, -0.42, 0.29, 0.27, "body")
    f.blob([(-0.42, 0.06), (-0.06, -0.12), (0.14, 0.06), (0.0, 0.3), (-0.34, 0.34), (-0.52, 0.24)], "accent")
    f.eye(0.54, -0.46, 0.085)
    return f


def _fish(fin: float, tail: float, depth: float, _: float) -> Figure:
    f = Figure(mark_at=(-0.1, 0.06, 0.15), ground=0.9, shadow=0.4)
    high = 0.36 + 0.12 * depth
    f.poly([(-0.5, 0), (-0.92, -0.3 - 0.2 * tail), (-0.8, 0), (-0.92, 0.3 + 0.2 * tail)], "accent")
    f.blob([(-0.4, -high + 0.12), (-0.1, -high - 0.16 - 0.2 * fin), (0.34, -high + 0.02), (0, -high + 0.12)], "accent")
    f.blob([(-0.2, high - 0.1), (0.06, high + 0.2), (0.26, high - 0.06)], "accent")
    f.blob(
        [
            (-0.62, 0),
            (-0.3, -high + 0.06),
            (0.2, -high),
            (0.66, -0.16),
            (0.78, 0.04),
            (0.6, 0.2),
            (0.2, high),
            (-0.3, high - 0.06),
        ],
        "body",
    )
    f.eye(0.48, -0.1, 0.105)
    f.line([(0.62, 0.14), (0.74, 0.1)], 0.035, "dark", outlined=False)
    f.blob([(0.1, 0.02), (0.28, 0.1), (0.06, 0.2)], "accent", outlined=False)
    return f


def _turtle(dome: float, neck: float, leg: float, _: float) -> Figure:
    f = Figure(mark_at=(-0.22, 0.18, 0.15), shadow=0.74)
    top = -0.3 - 0.24 * dome
    for x in (-0.42, 0.36):
        f.box(x - 0.13, 0.4, x + 0.13, 0.8 + 0.06 * leg, 0.1, "accent")
    f.poly([(-0.6, 0.4), (-0.86, 0.56), (-0.56, 0.56)], "accent")
    f.line([(0.5, 0.42), (0.72, 0.1 - 0.2 * neck)], 0.19, "accent")
    f.oval(0.76, 0.0 - 0.24 * neck, 0.21, 0.18, "accent")
    f.eye(0.82, -0.05 - 0.24 * neck, 0.075)
    f.blob([(-0.68, 0.46), (-0.56, 0.02), (-0.2, top), (0.2, top), (0.52, 0.02), (0.64, 0.46), (0, 0.52)], "body")
    f.line([(-0.7, 0.5), (0.66, 0.5)], 0.12, "accent")
    return f


def _car(cabin: float, wheel: float, nose: float, _: float) -> Figure:
    f = Figure(mark_at=(-0.08, 0.28, 0.14), shadow=0.95, ground=0.72)
    roof = -0.34 - 0.16 * cabin
    f.poly([(-0.56, 0.06), (-0.38, roof), (0.22, roof), (0.46 + 0.06 * nose, 0.06)], "body")
    for left, right in ((-0.42, -0.09), (0.0, 0.34)):
        f.poly(
            [
                (left, 0.0),
                (left + 0.12 if left < -0.2 else left, roof + 0.12),
                (right if left < -0.2 else right - 0.15, roof + 0.12),
                (right, 0.0),
            ],
            (190, 226, 244),
        )
    f.blob(
        [(-0.9, 0.1), (-0.5, 0.0), (0.4, 0.0), (0.84, 0.12), (0.94, 0.36), (0.86, 0.54), (-0.86, 0.54), (-0.95, 0.34)],
        "body",
    )
    f.oval(0.85, 0.24, 0.07, 0.08, (255, 236, 150))
    radius = 0.19 + 0.06 * wheel
    for x in (-0.5, 0.5):
        f.oval(x, 0.54, radius, radius, (44, 44, 50))
        f.oval(x, 0.54, radius * 0.56, radius * 0.56, "accent")
    return f


def _boat(sail: float, hull: float, mast: float, _: float) -> Figure:
    f = Figure(mark_at=(-0.06, 0.56, 0.13), shadow=0.8)
    top = -0.76 - 0.2 * mast
    f.line([(0.02, 0.4), (0.02, top)], 0.06, (118, 78, 46))
    f.poly([(-0.06, top + 0.08), (-0.06, 0.24), (-0.62 - 0.16 * sail, 0.24)], "body")
    f.poly([(0.1, top + 0.2), (0.1, 0.24), (0.56 + 0.1 * sail, 0.24)], "accent")
    f.poly([(0.02, top), (0.28, top + 0.08), (0.02, top + 0.16)], "accent")
    f.poly([(-0.86, 0.34), (0.9, 0.34), (0.62 - 0.1 * hull, 0.84), (-0.6 + 0.1 * hull, 0.84)], "body")
    f.line([(-0.88, 0.34), (0.92, 0.34)], 0.1, "accent")
    return f


def _teapot(spout: float, handle: float, belly: float, knob: float) -> Figure:
    f = Figure(mark_at=(-0.08, 0.24, 0.16), shadow=0.62)
    wide = 0.48 + 0.1 * belly
    f.arc(-wide + 0.02, 0.18, 0.26 + 0.1 * handle, 0.28, 90, 270, 0.11, "accent")
    f.blob(
        [(0.3, 0.44), (0.6, 0.3), (0.76, -0.1 - 0.16 * spout), (0.96, -0.2 - 0.16 * spout), (0.8, 0.2), (0.5, 0.6)],
        "body",
    )
    f.oval(0, 0.24, wide, 0.5, "body")
    f.box(-0.34, 0.7, 0.34, 0.84, 0.05, "accent")
    f.blob([(-0.36, -0.18), (0, -0.36), (0.36, -0.18), (0, -0.12)], "accent")
    f.oval(0, -0.4, 0.08 + 0.05 * knob, 0.08 + 0.05 * knob, "accent")
    return f


def _mug(handle: float, height: float, width: float, _: float) -> Figure:
    f = Figure(mark_at=(-0.14, 0.24, 0.17), shadow=0.5)
    half, top = 0.42 + 0.1 * width, -0.34 - 0.24 * height
    f.arc(half - 0.1, 0.2, 0.28 + 0.1 * handle, 0.26, -90, 90, 0.13, "accent")
    f.poly([(-half - 0.06, top), (half - 0.06, top), (half - 0.12, 0.84), (-half, 0.84)], "body")
    f.oval(-0.06, top, half, 0.13, "accent")
    f.oval(-0.06, top + 0.01, half - 0.09, 0.085, (92, 56, 36), outlined=False)
    for x in (-0.22, 0.08):
        f.arc(x, top - 0.26, 0.05, 0.1, 90, 270, 0.035, (250, 250, 250), outlined=False)
        f.arc(x, top - 0.44, 0.05, 0.08, 90, -90, 0.035, (250, 250, 250), outlined=False)
    return f


def _backpack(pocket: float, height: float, flap: float, _: float) -> Figure:
    f = Figure(mark_at=(-0.28, -0.08, 0.13), shadow=0.6)
    top = -0.5 - 0.26 * height
    f.arc(0, top, 0.16, 0.16, 180, 360, 0.07, "accent")
    for side in (-1, 1):
        f.arc(side * 0.46, 0.24, 0.2, 0.4, 90 if side < 0 else -90, 270 if side < 0 else 90, 0.1, "accent")
    f.box(-0.52, top, 0.52, 0.86, 0.24, "body")
    f.blob(
        [
            (-0.5, top + 0.18),
            (0, top - 0.04),
            (0.5, top + 0.18),
            (0.44, -0.16 + 0.18 * flap),
            (0, -0.06 + 0.2 * flap),
            (-0.44, -0.16 + 0.18 * flap),
        ],
        "body",
    )
    f.box(-0.06, -0.14 + 0.2 * flap, 0.06, 0.04 + 0.2 * flap, 0.03, "accent")
    f.box(-0.34 - 0.08 * pocket, 0.34, 0.34 + 0.08 * pocket, 0.78, 0.1, "body")
    f.line([(-0.3, 0.44), (0.3, 0.44)], 0.05, "accent", outlined=False)
    return f


def _robot(head: float, arm: float, leg: float, antenna: float) -> Figure:
    f = Figure(mark_at=(-0.16, 0.22, 0.13), shadow=0.5)
    f.line([(0, -0.7), (0, -0.82 - 0.1 * antenna)], 0.05, "accent")
    f.oval(0, -0.86 - 0.1 * antenna, 0.08, 0.08, "accent")
    for side in (-1, 1):
        f.line([(side * 0.4, 0.0), (side * 0.66, 0.2), (side * 0.64, 0.36 + 0.2 * arm)], 0.14, "accent")
        f.box(side * 0.2 - 0.1, 0.5, side * 0.2 + 0.1, 0.84, 0.04, "accent")
        f.box(side * 0.22 - 0.15, 0.76 - 0.04 * leg, side * 0.22 + 0.15, 0.87, 0.04, "body")
    f.box(-0.42, -0.14, 0.42, 0.6, 0.1, "body")
    wide = 0.32 + 0.12 * head
    f.box(-wide, -0.7, wide, -0.18, 0.1, "body")
    f.box(-wide + 0.08, -0.6, wide - 0.08, -0.34, 0.08, (28, 34, 46))
    for x in (-0.13, 0.13):
        f.oval(x, -0.47, 0.075, 0.075, (130, 240, 250), outlined=False)
    f.box(0.04, 0.08, 0.32, 0.3, 0.04, "accent")
    return f


def _lamp(shade: float, height: float, base: float, _: float) -> Figure:
    f = Figure(mark_at=(-0.2, -0.32, 0.13), shadow=0.46)
    low = -0.02 + 0.1 * height
    f.line([(0, low), (0, 0.8)], 0.1, "accent")
    f.blob([(-0.3 - 0.12 * base, 0.84), (0, 0.62), (0.3 + 0.12 * base, 0.84), (0, 0.88)], "accent")
    f.oval(0, low + 0.02, 0.12, 0.1, (255, 244, 190))
    f.poly([(-0.24 - 0.12 * shade, -0.82), (0.24 + 0.12 * shade, -0.82), (0.62, low), (-0.62, low)], "body")
    f.line([(-0.62, low), (0.62, low)], 0.08, "accent")
    f.line([(0.3, low), (0.3, low + 0.24)], 0.025, "dark", outlined=False)
    f.oval(0.3, low + 0.27, 0.045, 0.045, "accent")
    return f


DRAW: dict[str, Callable[[float, float, float, float], Figure]] = {
    "dog": _dog, "cat": _cat, "bird": _bird, "fish": _fish, "turtle": _turtle, "car": _car, "boat": _boat,
    "teapot": _teapot, "mug": _mug, "backpack": _backpack, "robot": _robot, "lamp": _lamp,
}  # fmt: skip


def _person(p: Person) -> Figure:
    width, volume, eyes, brow = p.proportions
    f = Figure(mark_at=(0.56, 0.84, 0.11), ground=1.2, shadow=0.0)
    face = 0.36 + 0.07 * width
    if p.gender == "woman":
        f.blob(
            [
                (-face - 0.12, -0.4),
                (0, -0.82 - 0.1 * volume),
                (face + 0.12, -0.4),
                (face + 0.2 + 0.1 * volume, 0.5),
                (0, 0.56),
                (-face - 0.2 - 0.1 * volume, 0.5),
            ],
            "hair",
        )
    f.blob([(-0.92, 1.3), (-0.8, 0.68), (-0.26, 0.42), (0.26, 0.42), (0.8, 0.68), (0.92, 1.3)], "body")
    f.box(-0.15, 0.16, 0.15, 0.56, 0.1, "skin")
    _dress(f, p.occupation)
    for side in (-1, 1):
        f.oval(side * (face + 0.01), -0.1, 0.08, 0.11, "skin")
    f.oval(0, -0.14, face, 0.47, "skin")
    if p.beard:
        f.blob(
            [
                (-face + 0.01, -0.02),
                (-face + 0.06, 0.24),
                (0, 0.4),
                (face - 0.06, 0.24),
                (face - 0.01, -0.02),
                (0.16, 0.06),
                (0, 0.02),
                (-0.16, 0.06),
            ],
            "hair",
        )
    for side in (-1, 1):
        f.eye(side * 0.15, -0.16, 0.07 + 0.025 * eyes)
        thick, high = (0.035, -0.3) if p.gender == "woman" else (0.07, -0.29 + 0.03 * brow)
        f.line([(side * 0.07, high - 0.02), (side * 0.24, high)], thick, "hair", outlined=False)
        if p.gender == "woman":
            f.line([(side * 0.22, -0.2), (side * 0.3, -0.27)], 0.035, "dark", outlined=False)
    f.line([(0, -0.06), (0.04, 0.05)], 0.03, "shade", outlined=False)
    if p.gender == "woman":
        f.blob([(-0.13, 0.15), (0, 0.12), (0.13, 0.15), (0, 0.23)], (206, 52, 72), outlined=False)
    else:
        f.line([(-0.11, 0.17), (0.11, 0.17)], 0.04, (150, 70, 66), outlined=False)
    _fringe(f, p, face)
    _hat(f, p.occupation, face)
    return f


def _fringe(f: Figure, p: Person, face: float) -> None:
    top = -0.72 - 0.1 * p.proportions[1]
    if p.gender == "woman":
        f.blob(
            [
                (-face - 0.06, -0.2),
                (-face, -0.5),
                (0, top),
                (face, -0.5),
                (face + 0.06, -0.2),
                (0.2, -0.42),
                (-0.14, -0.4),
            ],
            "hair",
        )
    else:
        f.blob(
            [
                (-face - 0.02, -0.26),
                (-face, -0.54),
                (0, top + 0.06),
                (face, -0.54),
                (face + 0.02, -0.26),
                (0.2, -0.44),
                (-0.2, -0.44),
            ],
            "hair",
        )


def _dress(f: Figure, occupation: str) -> None:
    if occupation == "chef":
        for y in (0.72, 0.92):
            f.oval(-0.12, y, 0.045, 0.045, "dark", outlined=False)
            f.oval(0.12, y, 0.045, 0.045, "dark", outlined=False)
        f.blob([(-0.3, 0.46), (0, 0.4), (0.3, 0.46), (0, 0.62)], (204, 44, 52))
    elif occupation == "doctor":
        f.poly([(-0.2, 0.44), (0.2, 0.44), (0, 1.1)], (120, 176, 220))
        f.arc(0, 0.5, 0.32, 0.42, 10, 170, 0.06, (52, 56, 66), outlined=False)
        f.oval(0.3, 0.74, 0.09, 0.09, (200, 204, 212))
    elif occupation == "firefighter":
        f.line([(-0.84, 0.86), (0.84, 0.86)], 0.12, (240, 226, 70), outlined=False)
        f.line([(0, 0.5), (0, 1.2)], 0.07, (240, 226, 70), outlined=False)
    elif occupation == "farmer":
        for side in (-1, 1):
            f.line([(side * 0.34, 0.46), (side * 0.3, 1.2)], 0.13, (54, 88, 160))
        f.box(-0.36, 0.74, 0.36, 1.2, 0.05, (54, 88, 160))
    elif occupation == "builder":
        for side in (-1, 1):
            f.line([(side * 0.5, 0.5), (side * 0.44, 1.2)], 0.11, (246, 246, 150), outlined=False)
        f.line([(-0.8, 0.9), (0.8, 0.9)], 0.1, (246, 246, 150), outlined=False)
    elif occupation == "pilot":
        f.poly([(-0.2, 0.44), (0.2, 0.44), (0, 0.96)], (246, 246, 248))
        f.poly([(-0.06, 0.52), (0.06, 0.52), (0.07, 0.9), (0, 1.0), (-0.07, 0.9)], (24, 26, 34), outlined=False)
        for side in (-1, 1):
            f.line([(side * 0.56, 0.62), (side * 0.76, 0.7)], 0.06, (238, 196, 70), outlined=False)
    elif occupation == "nurse":
        f.poly([(-0.2, 0.44), (0.2, 0.44), (0, 0.74)], "skin")
    elif occupation == "teacher":
        f.poly([(-0.2, 0.44), (0.2, 0.44), (0, 1.1)], (248, 240, 222))
        f.box(-0.86, 0.72, -0.3, 1.2, 0.04, (176, 42, 48))
        f.line([(-0.78, 0.84), (-0.4, 0.84)], 0.05, (248, 240, 222), outlined=False)


def _hat(f: Figure, occupation: str, face: float) -> None:
    if occupation == "chef":
        f.blob(
            [(-0.44, -0.66), (-0.56, -1.02), (-0.2, -1.16), (0.2, -1.16), (0.56, -1.02), (0.44, -0.66)], (250, 250, 250)
        )
        f.box(-0.4, -0.7, 0.4, -0.46, 0.05, (250, 250, 250))
    elif occupation == "firefighter":
        f.blob([(-face - 0.06, -0.42), (-0.34, -0.86), (0, -0.98), (0.34, -0.86), (face + 0.06, -0.42)], (206, 36, 40))
        f.line([(-face - 0.24, -0.44), (face + 0.24, -0.44)], 0.13, (170, 26, 32))
        f.poly([(-0.13, -0.76), (0.13, -0.76), (0.1, -0.52), (0, -0.46), (-0.1, -0.52)], (248, 208, 70))
    elif occupation == "farmer":
        f.oval(0, -0.5, 0.82, 0.17, (232, 196, 110))
        f.blob([(-0.4, -0.52), (-0.34, -0.9), (0, -0.98), (0.34, -0.9), (0.4, -0.52)], (232, 196, 110))
        f.line([(-0.39, -0.58), (0.39, -0.58)], 0.1, (150, 62, 40), outlined=False)
    elif occupation == "builder":
        f.blob([(-face - 0.04, -0.44), (-0.32, -0.86), (0, -0.96), (0.32, -0.86), (face + 0.04, -0.44)], (250, 206, 40))
        f.line([(-face - 0.16, -0.45), (face + 0.2, -0.45)], 0.11, (250, 206, 40))
        f.line([(0, -0.94), (0, -0.52)], 0.1, (232, 176, 24), outlined=False)
    elif occupation == "pilot":
        f.blob([(-0.54, -0.66), (-0.3, -0.92), (0.3, -0.92), (0.54, -0.66), (0.4, -0.5), (-0.4, -0.5)], (34, 48, 96))
        f.blob([(-0.38, -0.5), (0, -0.56), (0.38, -0.5), (0, -0.36)], (22, 22, 28))
        f.oval(0, -0.7, 0.1, 0.1, (238, 196, 70))
    elif occupation == "nurse":
        f.blob([(-0.38, -0.54), (-0.44, -0.86), (0, -0.94), (0.44, -0.86), (0.38, -0.54), (0, -0.62)], (250, 250, 252))
        f.box(-0.04, -0.88, 0.04, -0.66, 0.01, (214, 40, 50), outlined=False)
        f.box(-0.12, -0.81, 0.12, -0.73, 0.01, (214, 40, 50), outlined=False)
    elif occupation == "teacher":
        for side in (-1, 1):
            f.arc(side * 0.16, -0.15, 0.13, 0.13, 0, 360, 0.045, (40, 40, 48), outlined=False)
        f.line([(-0.04, -0.16), (0.04, -0.16)], 0.04, (40, 40, 48), outlined=False)


UNIFORMS: dict[str, Rgb] = {
    "chef": (244, 244, 246), "doctor": (246, 248, 250), "firefighter": (54, 58, 66), "farmer": (196, 60, 52),
    "builder": (242, 118, 34), "pilot": (34, 48, 96), "nurse": (120, 196, 214), "teacher": (70, 130, 84),
}  # fmt: skip


def _angles(n: int) -> list[float]:
    return [2 * math.pi * i / n for i in range(n)]


def _smooth(points: list[Point], steps: int = 5) -> list[Point]:
    n, out = len(points), []
    for i in range(n):
        p0, p1, p2, p3 = (points[(i + d) % n] for d in (-1, 0, 1, 2))
        for t in (s / steps for s in range(steps)):
            weights = (
                -0.5 * t**3 + t**2 - 0.5 * t,
                1.5 * t**3 - 2.5 * t**2 + 1,
                -1.5 * t**3 + 2 * t**2 + 0.5 * t,
                0.5 * t**3 - 0.5 * t**2,
            )
            out.append(
                (
                    sum(w * p[0] for w, p in zip(weights, (p0, p1, p2, p3), strict=True)),
                    sum(w * p[1] for w, p in zip(weights, (p0, p1, p2, p3), strict=True)),
                )
            )
    return out
