"""A corpus with every defect the rules know, surveyed once."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from photoflux.params import ValidateParams
from photoflux.photos.table import photo_table
from tests.photos.pictures import animation, blurred, bomb, cropped, encoded, half, mirrored, photo


def corpus() -> dict[str, bytes]:
    """File name → bytes; the name says what is wrong."""
    grain = np.random.default_rng(0).normal(0, 20, (800, 800, 1))
    grainy = (np.asarray(blurred(photo(30))) + grain).clip(0, 255).astype(np.uint8)
    burnt = photo(31)
    burnt.paste("white", (0, 0, 800, 500))
    lost = photo(32)
    lost.paste("black", (0, 0, 800, 400))
    pictures = {
        **{f"good-{i}": photo(i, size=(900, 800)) for i in range(6)},
        "crop-of-0": cropped(photo(0, size=(900, 800))),
        "mirror-of-1": mirrored(photo(1, size=(900, 800))),
        "blurry": blurred(photo(20)),
        "blurry-copy-of-2": blurred(photo(2, size=(900, 800))),
        "dark": photo(21).point(lambda v: v // 8),
        "light": Image.blend(photo(22), Image.new("RGB", (800, 800), "white"), 0.97),
        "empty": Image.new("RGB", (800, 800), (120, 130, 140)),
        "tiny": photo(23, size=(300, 300)),
        "small": photo(24, size=(600, 600)),
        "ribbon": photo(25, size=(2000, 600)),
        "long": photo(26, size=(1800, 800)),
        "enlarged": photo(27, size=(400, 400)).resize((1200, 1200), Image.Resampling.BICUBIC),
        "grainy": Image.fromarray(grainy),
        "burnt": burnt,
        "lost": lost,
    }
    return {f"{name}.jpg": encoded(picture) for name, picture in pictures.items()} | {
        "exact-copy-of-3.png": encoded(photo(3, size=(900, 800)), "PNG"),
        "same-pixels.png": encoded(photo(3, size=(900, 800)), "PNG", compress_level=1),
        "text.jpg": b"not a picture",
        "cut.jpg": half(encoded(photo(28))),
        "bomb.png": bomb(),
        "moving.webp": animation(),
    }


@pytest.fixture(scope="session")
def defects() -> list[dict]:
    """The photo table of the corpus."""
    return photo_table(sorted(corpus().items()), params=ValidateParams())


@pytest.fixture(scope="session")
def good() -> list[dict]:
    """The photo table of eight good photos."""
    files = [(f"{i}.jpg", encoded(photo(100 + i))) for i in range(8)]
    return photo_table(files, params=ValidateParams())
