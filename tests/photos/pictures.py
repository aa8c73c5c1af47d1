"""Synthetic photographs for tests: textured, sharp, each seed a view of its own; and ways to spoil them."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def photo(seed: int = 0, *, size: tuple[int, int] = (800, 800)) -> Image.Image:
    """Hard-edged shapes in random colours over a gradient, with a little grain."""
    rng = np.random.default_rng(seed)
    width, height = size
    corners = rng.integers(40, 216, (2, 2, 3)).astype(np.uint8)
    picture = Image.fromarray(corners).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(60):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        reach = rng.uniform(0.02, 0.14) * min(size)
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x - reach, y - reach, x + reach, y + reach * rng.uniform(0.3, 1)), fill=colour)
    grain = rng.normal(0, 1, (height, width, 1))
    return Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))


def cartoon(*, arms: bool = False, turned: bool = False) -> Image.Image:
    """A figure in five flat colours on white, of 800 px; its arms up, or half turned away."""
    picture, red, black = Image.new("RGB", (800, 800), "white"), (214, 40, 40), (20, 20, 20)
    draw = ImageDraw.Draw(picture)
    for x in (150, 550) if not turned else (170,):
        y = 230 if arms else 450
        draw.ellipse((x, y, x + 110, y + 180), fill=red, outline=black, width=8)
    if turned:
        draw.ellipse((250, 200, 620, 760), fill=(160, 20, 30), outline=black, width=8)
    draw.ellipse((220 - 30 * turned, 150, 590 - 30 * turned, 650), fill=red, outline=black, width=8)
    for x in (300, 430) if not turned else (240, 330):
        draw.ellipse((x, 280, x + 70, 370), fill="white", outline=black, width=6)
        draw.ellipse((x + 25, 310, x + 45, 340), fill=black)
    draw.arc((310 - 60 * turned, 400, 490, 540), 20 + 180 * arms, 160 + 180 * arms, fill=black, width=10)
    return picture


def logo(size: tuple[int, int] = (800, 800), *, ink: str = "black", paper: str = "white") -> Image.Image:
    """Thin letters and a ring, on three hundredths of the picture."""
    picture = Image.new("RGB", size, paper)
    draw = ImageDraw.Draw(picture)
    draw.text((150, 380), "PHOTO FLUX", fill=ink, font_size=70)
    draw.ellipse((340, 200, 460, 320), outline=ink, width=10)
    return picture


def toy_on_white(size: tuple[int, int] = (800, 800)) -> Image.Image:
    """A small soft thing before nothing."""
    picture = Image.new("RGB", size, "white")
    x, y = size[0] // 2 - 90, size[1] // 2 - 90
    mask = Image.new("L", (180, 180), 0)
    ImageDraw.Draw(mask).ellipse((4, 4, 176, 176), fill=255)
    picture.paste(photo(5, size=(180, 180)), (x, y), mask)
    return picture


def encoded(picture: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"quality": 92} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()


def blurred(picture: Image.Image, sigma_at_512: float = 3.0) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(sigma_at_512 * min(picture.size) / 512))


def cropped(picture: Image.Image, share: float = 0.1) -> Image.Image:
    """A margin of `share` cut off every side."""
    width, height = picture.size
    return picture.crop((int(width * share), int(height * share), int(width * (1 - share)), int(height * (1 - share))))


def mirrored(picture: Image.Image) -> Image.Image:
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def bomb(width: int = 12_000, height: int = 12_000) -> bytes:
    """A PNG whose header claims 144 megapixels, with next to no data behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def animation(kind: str = "WEBP") -> bytes:
    frames = [photo(seed, size=(64, 64)) for seed in (0, 1)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def ending(*_: object) -> None:
    """What a damaged file may do to its decoder; it stands here because a decoder's process would import what stands beside it."""
    os.abort()
