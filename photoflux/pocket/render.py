"""Draws scenes of the pocket world: place, shadow, subject, light and style, from the scene and the size alone."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from photoflux.pocket.places import Canvas, paint
from photoflux.pocket.shapes import UNIFORMS, Figure, Shape, figure_of, mark_shape
from photoflux.pocket.world import TONES, Person, Rgb, Scene

OVERSAMPLE = 2
Points = tuple[tuple[float, float], ...]
HALF_HEIGHT = 0.365
"""Half the height of a subject's frame at scale 1, as a share of the image's."""
OUTLINE = {"photo": 0.018, "cartoon": 0.055, "pixel": 0.05, "watercolor": 0.03}


def render(scene: Scene, *, size_px: int = 128) -> Image.Image:
    """The picture of a scene, RGB `size_px` square; equal scenes give equal pictures."""
    big = size_px * OVERSAMPLE
    canvas = Canvas(
        Image.new("RGB", (big, big)), np.random.default_rng(scene.seed), bands=3 * (scene.style == "cartoon")
    )
    paint(scene.place, canvas)
    figure = figure_of(scene.subject)
    pen = Pen(canvas.image, scene, figure)
    pen.shadow()
    pen.subject()
    lit = _apply_light(canvas.image, scene.light)
    return FINISH[scene.style](lit.reduce(OVERSAMPLE), scene.seed)


def coverage(scene: Scene, *, squares: int) -> np.ndarray:
    """Share of each of `squares` x `squares` parts of the picture that the subject covers, `[squares, squares]` in 0-1."""
    mask = Image.new("L", (8 * squares, 8 * squares))
    Pen(mask, scene, figure_of(scene.subject)).silhouette()
    return np.asarray(mask.reduce(8), dtype=np.float32) / 255


class Pen:
    """Draws one figure on one picture: outline first, then fills with pattern, mark and shading."""

    def __init__(self, image: Image.Image, scene: Scene, figure: Figure) -> None:
        self.image, self.scene, self.figure = image, scene, figure
        size = image.width
        self.unit = HALF_HEIGHT * scene.scale * size
        self.turn = -1 if scene.facing_left else 1
        person = isinstance(scene.subject, Person)
        self.cx = (0.5 + scene.x) * size
        self.cy = (0.64 if person else 0.53 + scene.y) * size
        self.line = OUTLINE[scene.style]
        self.fills = _fills(scene)

    def shadow(self) -> None:
        """A soft dark oval where the figure meets the ground."""
        if not self.figure.shadow:
            return
        small = self.image.width // 4
        shadow_mask = Image.new("L", (small, small), 0)
        x, y = self.cx / 4, (self.cy + self.figure.ground * self.unit) / 4
        rx, ry = self.figure.shadow * self.unit / 4, 0.1 * self.unit / 4
        ImageDraw.Draw(shadow_mask).ellipse([x - rx, y - ry, x + rx, y + ry], fill=120)
        if self.scene.style == "photo":
            shadow_mask = shadow_mask.filter(ImageFilter.BoxBlur(small / 80))
        self.image.paste((18, 20, 34), mask=shadow_mask.resize(self.image.size, Image.Resampling.BILINEAR))

    def subject(self) -> None:
        """Outlines of all shapes, then fills in order, then pattern, mark and shading."""
        size, draw = self.image.size, ImageDraw.Draw(self.image)
        body, silhouette = Image.new("L", size, 0), Image.new("L", size, 0)
        mask, whole = ImageDraw.Draw(body), ImageDraw.Draw(silhouette)
        placed = [(shape, self._to_pixels(shape.points)) for shape in self.figure.shapes]
        for shape, points in placed:
            if shape.outlined:
                self._draw(draw, shape, points, self.fills["line"], grow=self.line)
        for index, (shape, points) in enumerate(placed):
            if shape.outlined and index:
                self._draw(draw, shape, points, self._edge(shape), grow=self.line * 0.75)
            self._draw(draw, shape, points, self._fill(shape))
            self._draw(mask, shape, points, 255 if shape.fill == "body" else 0)
            self._draw(whole, shape, points, 255)
        self._pattern(body)
        self._mark(draw)
        if self.scene.style == "photo":
            self._shade(silhouette)

    def silhouette(self) -> None:
        """All shapes in white, on a picture of one channel."""
        draw = ImageDraw.Draw(self.image)
        for shape in self.figure.shapes:
            self._draw(draw, shape, self._to_pixels(shape.points), 255)

    def _fill(self, shape: Shape) -> Rgb:
        return self.fills[shape.fill] if isinstance(shape.fill, str) else shape.fill

    def _edge(self, shape: Shape) -> Rgb:
        line = self.fills["line"]
        return line if self.scene.style == "cartoon" else _mix(self._fill(shape), line, 0.5)

    def _draw(
        self, draw: ImageDraw.ImageDraw, shape: Shape, points: Points, fill: Rgb | int, *, grow: float = 0.0
    ) -> None:
        if shape.width:
            width = (shape.width + 2 * grow) * self.unit
            draw.line(points, fill=fill, width=max(1, round(width)), joint="curve")
            for x, y in (points[0], points[-1]):
                draw.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=fill)
            return
        draw.polygon(points, fill=fill)
        if grow:
            width_px = max(1, round(2 * grow * self.unit))
            draw.line([*points, points[0], points[1]], fill=fill, width=width_px, joint=self._joint(points))

    @staticmethod
    def _joint(points: Points) -> str | None:
        """Corners need round joints; finely divided curves do not."""
        return "curve" if len(points) < 12 else None

    def _to_pixels(self, points: Points) -> Points:
        cx, cy, unit, across = self.cx, self.cy, self.unit, self.turn * self.unit
        return tuple((cx + x * across, cy + y * unit) for x, y in points)

    def _pattern(self, body: Image.Image) -> None:
        """Stripes, spots or checks in the accent colour, clipped to the body."""
        subject = self.scene.subject
        if isinstance(subject, Person) or subject.pattern == "plain":
            return
        cells = Image.new("L", self.image.size, 0)
        draw = ImageDraw.Draw(cells)
        for cell in PATTERN_CELLS[subject.pattern]():
            draw.polygon(self._to_pixels(cell), fill=255)
        self.image.paste(self.fills["accent"], mask=ImageChops.multiply(cells, body))

    def _mark(self, draw: ImageDraw.ImageDraw) -> None:
        x, y, r = self.figure.mark_at
        placed = [(shape, self._to_pixels(shape.points)) for shape in mark_shape(self.scene.subject.mark, x, y, r)]
        for shape, points in placed:
            self._draw(draw, shape, points, self.fills["line"], grow=self.line * 0.8)
        for shape, points in placed:
            self._draw(draw, shape, points, self.fills["mark"])

    def _shade(self, silhouette: Image.Image) -> None:
        """Light from above: the figure brightened at the top and darkened at the bottom."""
        size = self.image.width
        rows = np.clip((np.arange(size) - self.cy + self.unit) / (2 * self.unit), 0, 1)
        strength = np.abs(rows - 0.42) * 124
        for tint, part in (((255, 252, 240), rows < 0.42), ((16, 14, 36), rows >= 0.42)):
            row_mask = Image.fromarray((strength * part).astype(np.uint8)[:, None]).resize((size, size))
            self.image.paste(tint, mask=ImageChops.multiply(row_mask, silhouette))


def _fills(scene: Scene) -> dict[str, Rgb]:
    of = scene.subject
    common: dict[str, Rgb] = {"dark": (30, 28, 34), "light": (250, 250, 250), "mark": of.mark_rgb}
    if isinstance(of, Person):
        skin, shirt = TONES[of.tone - 1], UNIFORMS.get(of.occupation, of.shirt_rgb)
        return common | {
            "skin": skin,
            "shade": _mix(skin, (60, 20, 20), 0.3),
            "hair": of.hair_rgb,
            "body": shirt,
            "accent": shirt,
            "line": (34, 28, 32),
        }
    line = (30, 26, 34) if sum(of.rgb) > 160 or scene.place == "snow" else (118, 116, 128)
    return common | {"body": of.rgb, "accent": of.accent_rgb, "line": line}


def _mix(a: Rgb, b: Rgb, share: float) -> Rgb:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


@cache
def _stripes() -> tuple[tuple[tuple[float, float], ...], ...]:
    xs = np.arange(-1.6, 1.6, 0.27).tolist()
    return tuple(((x, -1.3), (x + 0.095, -1.3), (x + 0.395, 1.3), (x + 0.3, 1.3)) for x in xs)


@cache
def _spots() -> tuple[tuple[tuple[float, float], ...], ...]:
    ring = [(0.082 * np.cos(a), 0.082 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 12, endpoint=False)]
    centres = [(0.28 * i + 0.14 * (j % 2), 0.245 * j) for i in range(-4, 5) for j in range(-5, 6)]
    return tuple(tuple((x + u, y + v) for u, v in ring) for x, y in centres)


@cache
def _checks() -> tuple[tuple[tuple[float, float], ...], ...]:
    s, inner = 0.18, 0.142
    cells = [(i * s, j * s) for i in range(-7, 8) for j in range(-7, 8) if (i + j) % 2]
    return tuple(((x, y), (x + inner, y), (x + inner, y + inner), (x, y + inner)) for x, y in cells)


PATTERN_CELLS = {"striped": _stripes, "spotted": _spots, "checked": _checks}


def _apply_light(image: Image.Image, light: float) -> Image.Image:
    """Warm or cool light, brighter or dimmer, by up to 6 %."""
    gains = (1 + 0.05 * light, 1 + 0.02 * light, 1 - 0.05 * light)
    table = [min(255, round(v * gain)) for gain in gains for v in range(256)]
    return image.point(table)


@cache
def _noise(size_px: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    return rng.normal(0, 3.0 if size_px > 256 else 2.0, (size_px, size_px, 1)).astype(np.float32)


@cache
def _paper(size_px: int) -> tuple[np.ndarray, Image.Image]:
    """Paper grain, [size, size, 1] around 1, and the ragged border of a wash as a mask."""
    rng = np.random.default_rng(11)
    fine = rng.normal(0, 1, (size_px, size_px))
    coarse = Image.fromarray(rng.normal(0, 1, (16, 16)).astype(np.float32)).resize(
        (size_px, size_px), Image.Resampling.BICUBIC
    )
    grain = 1 + 0.018 * fine + 0.03 * np.asarray(coarse)
    ragged = Image.fromarray(rng.normal(0, 1, (22, 22)).astype(np.float32)).resize(
        (size_px, size_px), Image.Resampling.BICUBIC
    )
    y, x = np.mgrid[0:size_px, 0:size_px] / (size_px - 1)
    edge = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y)) + 0.022 * np.asarray(ragged)
    mask = Image.fromarray((np.clip((edge - 0.03) / 0.035, 0, 1) * 255).astype(np.uint8))
    return grain[..., None].astype(np.float32), mask


def _photo(image: Image.Image, seed: int) -> Image.Image:
    noise = np.roll(_noise(image.width), (seed % 97, seed % 89), axis=(0, 1))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def _cartoon(image: Image.Image, _: int) -> Image.Image:
    return image


def _pixel(image: Image.Image, _: int) -> Image.Image:
    small = image.resize((32, 32), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


def _watercolor(image: Image.Image, seed: int) -> Image.Image:
    size = image.width
    grain, border = _paper(size)
    soft = image.filter(ImageFilter.GaussianBlur(size / 150))
    pale = 255 - (255 - np.asarray(soft, dtype=np.float32)) * 0.74
    washed = Image.fromarray(np.clip(pale * np.roll(grain, seed % 61, axis=1), 0, 255).astype(np.uint8))
    paper = Image.new("RGB", image.size, (252, 249, 240))
    turned = border if seed % 2 else border.transpose(Image.Transpose.ROTATE_180)
    paper.paste(washed, mask=turned)
    return paper


FINISH = {"photo": _photo, "cartoon": _cartoon, "pixel": _pixel, "watercolor": _watercolor}
