"""The square around the subject."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from photoflux.photos.normalise import Square, cut, largest_square, saliency
from tests.photos.pictures import photo


def scene(x: int, *, size: tuple[int, int] = (1600, 800)) -> Image.Image:
    """A textured thing 400 px wide, its left edge at `x`, before a plain wall."""
    wall = Image.new("RGB", size, (186, 190, 196))
    wall.paste(photo(1, size=(400, 400)), (x, 250))
    return wall


@pytest.mark.parametrize("x", [0, 150, 600, 1050, 1200])
def test_the_square_holds_the_subject_wherever_it_is(x: int):
    square = largest_square(scene(x))
    assert square.side == 800
    assert square.left <= x
    assert x + 400 <= square.left + square.side


def test_upright_photos_are_cut_along_their_height():
    turned = scene(1150).transpose(Image.Transpose.ROTATE_90)  # the thing is now near the top
    square = largest_square(turned)
    assert (square.left, square.side) == (0, 800)
    assert square.top < 200


def test_the_centre_on_request():
    assert largest_square(scene(0), how="centre") == Square(400, 0, 800)


def test_a_plain_photo_is_cut_in_the_middle():
    square = largest_square(Image.new("RGB", (900, 600), "grey"))
    assert square.left == pytest.approx(150, abs=10)


def test_a_square_photo_is_kept_whole():
    picture = photo(2, size=(256, 256))
    assert largest_square(picture) == Square(0, 0, 256)
    assert np.array_equal(np.asarray(cut(picture, largest_square(picture), size_px=256)), np.asarray(picture))


@settings(max_examples=25, deadline=None)
@given(width=st.integers(64, 500), height=st.integers(64, 500), size=st.sampled_from([64, 128]))
def test_every_photo_becomes_a_square_from_within(width: int, height: int, size: int):
    picture = photo(3, size=(width, height))
    square = largest_square(picture)
    assert square.side == min(width, height)
    assert 0 <= square.left <= width - square.side
    assert 0 <= square.top <= height - square.side
    assert cut(picture, square, size_px=size).size == (size, size)


def test_saliency_is_a_distribution_that_finds_the_thing():
    eye = saliency(scene(1000))
    assert eye.shape == (64, 64)
    assert eye.sum() == pytest.approx(1)
    assert eye.min() >= 0
    assert 1000 < (eye.sum(axis=0) @ np.arange(64)) / 64 * 1600 + 100 < 1500
