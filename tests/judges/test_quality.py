from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from photoflux.judges.quality import measure_quality


def picture() -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
    return coarse.resize((128, 128), Image.Resampling.BICUBIC)


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (128, 128, 3), np.uint8))


@pytest.mark.parametrize(
    ("image", "blank", "broken"),
    [
        (picture(), False, False),
        (Image.new("RGB", (128, 128)), True, True),
        (Image.new("RGB", (128, 128), "white"), True, True),
        (noise(), False, True),
        (picture().filter(ImageFilter.GaussianBlur(40)), False, True),
    ],
    ids=["picture", "black", "constant", "noise", "smeared"],
)
def test_what_is_a_picture(image: Image.Image, blank: bool, broken: bool) -> None:
    usual = measure_quality([picture()]).sharpness[0]
    found = measure_quality([image])
    assert bool(found.blank()[0]) is blank
    assert bool(found.broken(usual_sharpness=usual)[0]) is broken


def test_sharpness_falls_with_blur() -> None:
    steps = [picture().filter(ImageFilter.GaussianBlur(radius)) for radius in (0, 2, 5, 12)]
    assert (np.diff(measure_quality(steps).sharpness) < 0).all()


def test_sharpness_of_a_step_edge_by_hand() -> None:
    """One column of 8 jumps by 1 among 15 x 15 gradient cells of a 16 x 16 picture: half of the picture's height."""
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:, 8:] = 255
    assert measure_quality([Image.fromarray(pixels)]).sharpness[0] == pytest.approx(1 / 15)
