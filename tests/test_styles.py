"""Styles: filters that do what their name says on pictures whose answer is known, and redraws that keep the subject."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from photoflux.params import STYLES
from photoflux.styles import FILTERS, REDRAWS, film, halftone, pencil, styled_prompt


def grey(value: int, size: tuple[int, int] = (128, 128)) -> Image.Image:
    return Image.new("RGB", size, (value, value, value))


@pytest.fixture
def picture() -> Image.Image:
    """Half dark, half light, with a red square on the edge between them."""
    pixels = np.full((128, 160, 3), 40, np.uint8)
    pixels[:, 80:] = 215
    pixels[48:80, 64:96] = (210, 30, 30)
    return Image.fromarray(pixels)


def test_the_form_offers_what_there_is():
    assert set(STYLES) == {"none", *REDRAWS, *FILTERS}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_is_a_pure_function(picture: Image.Image, name: str):
    before = picture.tobytes()
    once, again = FILTERS[name](picture), FILTERS[name](picture)
    assert (once.size, once.mode) == (picture.size, "RGB")
    assert once.tobytes() == again.tobytes() != before
    assert picture.tobytes() == before


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("size", [(16, 16), (17, 40), (512, 256)])
def test_a_filter_takes_any_size(name: str, size: tuple[int, int]):
    assert FILTERS[name](Image.linear_gradient("L").resize(size)).size == size


def test_pencil_keeps_edges_and_drops_colour(picture: Image.Image):
    drawn = np.asarray(pencil(picture), float)
    assert np.array_equal(drawn[..., 0], drawn[..., 1]) and np.array_equal(drawn[..., 1], drawn[..., 2])
    flat, edge = drawn[8:40, 8:60, 0].mean(), drawn[8:40, 77:80, 0].mean()
    assert flat > edge + 40


def test_pencil_leaves_white_paper_white():
    assert np.asarray(pencil(grey(255))).min() == 255


def test_halftone_covers_more_the_darker_it_is():
    ink = []
    for value in (230, 180, 128, 70, 20):
        printed = np.asarray(halftone(grey(value, (256, 256))), float).mean(-1)
        paper, full = 128 + 0.5 * value, 0.35 * value
        ink.append(float(((paper - printed) / (paper - full)).mean()))
    assert ink == sorted(ink)
    assert ink[2] == pytest.approx(0.5, abs=0.03)
    assert ink[0] < 0.15 and ink[-1] > 0.85


def test_halftone_is_made_of_dots():
    printed = np.asarray(halftone(grey(128, (256, 256))), float).mean(-1)
    spectrum = np.abs(np.fft.rfft2(printed - printed.mean()))
    row, column = np.unravel_index(spectrum.argmax(), spectrum.shape)
    row = min(row, 256 - row)
    assert np.hypot(row, column) == pytest.approx(64, rel=0.1)  # one dot every 256/64 pixels …
    assert row == pytest.approx(column, rel=0.05)  # … on lines at 45°


def test_film_warms_lights_cools_shadows_and_darkens_corners():
    light, dark = (np.asarray(film(grey(value)), float) for value in (220, 35))
    middle = np.s_[48:80, 48:80]
    assert light[middle][..., 0].mean() > light[middle][..., 2].mean() + 3
    assert dark[middle][..., 2].mean() > dark[middle][..., 0].mean() + 3
    assert light[:8, :8].mean() < light[middle].mean() - 15
    assert dark[middle].mean() > 35 * 0.8  # blacks are lifted, not crushed


@given(st.sampled_from(sorted(FILTERS)), st.integers(0, 255))
def test_no_filter_breaks_on_a_flat_picture(name: str, value: int):
    assert np.isfinite(np.asarray(FILTERS[name](grey(value, (32, 32))), float)).all()


@pytest.mark.parametrize(
    ("prompt", "styled"),
    [
        ("a photo of sks dog on the beach", "a cartoon of sks dog on the beach"),
        ("A Photograph of a sks mug", "a cartoon of a sks mug"),
        ("a watercolor painting of sks dog", "a cartoon of sks dog"),
        ("pixel art of sks dog", "a cartoon of sks dog"),
        ("the portrait of a nurse", "a cartoon of a nurse"),
        ("sks dog", "a cartoon of sks dog"),
        ("a bowl of fruit", "a cartoon of a bowl of fruit"),
        ("sks dog beside a photo of a cat", "a cartoon of sks dog beside a photo of a cat"),
    ],
)
def test_only_the_opening_words_change(prompt: str, styled: str):
    assert styled_prompt(prompt, "a cartoon of") == styled


def test_redraws_open_with_words_the_pocket_world_knows():
    from photoflux.pocket.world import STYLES as DRAWN
    from photoflux.pocket.world import vocabulary

    words = set(vocabulary())
    assert {word for style in REDRAWS.values() for word in style.opening.split()} <= words
    assert set(REDRAWS) == set(DRAWN) - {"photo"}
