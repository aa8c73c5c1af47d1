"""Synthetic photographs for tests: textured, sharp, each seed a view of its own; and ways to spoil them."""

from __future__ import annotations

import io
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
