"""Variants: reproducible, mild, without empty corners, and off where they would harm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from photoflux.params import AugmentParams
from photoflux.photos.augment import Recipe, apply, may_flip, may_recolour, plan
from photoflux.photos.normalise import Square, largest_square
from tests.photos.pictures import photo

PARAMS = AugmentParams()
SHA = "0123456789abcdef" * 4


def planned(picture: Image.Image, **changes) -> Recipe:
    given_ = {"sha256": SHA, "number": 1, "flip": False, "recolour": True, "params": PARAMS} | changes
    return plan(picture, largest_square(picture), **given_)


@pytest.mark.parametrize(
    ("noun", "photos", "flip", "expected"),
    [
        ("person", 5, "auto", False), ("dog", 5, "auto", False), ("logo", 5, "auto", False),
        ("vase", 5, "auto", True), ("vase", 8, "auto", False), ("flower vase", 7, "auto", True),
        ("person", 5, "on", True), ("vase", 5, "off", False),
    ],
)  # fmt: skip
def test_when_variants_are_mirrored(noun: str, photos: int, flip: str, expected: bool):
    assert may_flip(noun, photos=photos, params=PARAMS.replace(flip=flip)) is expected


@pytest.mark.parametrize(
    ("noun", "jitter", "expected"),
    [("person", "auto", False), ("old man", "auto", False), ("logo", "auto", False), ("dog", "auto", True),
     ("mug", "off", False), ("person", "on", True)],
)  # fmt: skip
def test_when_variants_are_relit(noun: str, jitter: str, expected: bool):
    assert may_recolour(noun, params=PARAMS.replace(colour_jitter=jitter)) is expected


def test_a_plan_depends_on_photo_seed_and_number_alone():
    picture = photo(1, size=(400, 300))
    same = planned(picture)
    assert same == planned(picture.copy())
    others = [
        planned(picture, number=2),
        planned(picture, sha256="f" * 64),
        planned(picture, params=PARAMS.replace(seed=1)),
    ]
    assert len({same, *others}) == 4


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    rotation=st.floats(0, 15),
    scale=st.floats(0.5, 1),
    size=st.sampled_from([(300, 300), (420, 260), (200, 350)]),
)
def test_variants_stay_inside_and_have_no_empty_corner(seed: int, rotation: float, scale: float, size: tuple[int, int]):
    white = Image.new("RGB", size, "white")
    params = PARAMS.replace(seed=seed, rotation_deg=rotation, scale_min=scale)
    recipe = planned(white, params=params, recolour=False)
    square = largest_square(white)
    assert recipe.left >= square.left - 1e-6
    assert recipe.top >= square.top - 1e-6
    assert recipe.left + recipe.side <= square.left + square.side + 1e-6
    assert recipe.top + recipe.side <= square.top + square.side + 1e-6
    assert abs(recipe.rotation_deg) <= rotation
    picture = apply(white, recipe, size_px=96)
    assert picture.size == (96, 96)
    assert np.asarray(picture).min() == 255


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_variants_show_most_of_the_square(seed: int):
    picture = Image.new("RGB", (300, 300), "grey")
    recipe = planned(picture, params=PARAMS.replace(seed=seed))
    angle = np.radians(abs(recipe.rotation_deg))
    shown = recipe.side / 300 / (np.cos(angle) + np.sin(angle))
    assert PARAMS.scale_min - 1e-6 <= shown <= 1
    assert 0.95 <= recipe.brightness <= 1.05
    assert 0.95 <= recipe.gamma <= 1.05


def test_nothing_is_relit_or_mirrored_unless_allowed():
    recipes = [planned(photo(2, size=(200, 200)), number=n, recolour=False) for n in range(1, 30)]
    assert {(r.brightness, r.gamma, r.mirrored) for r in recipes} == {(1.0, 1.0, False)}
    flipped = [planned(photo(2, size=(200, 200)), number=n, flip=True).mirrored for n in range(1, 30)]
    assert {True, False} == set(flipped)


def test_variants_keep_the_subject():
    """In a corner, and as large as the narrowest crop may be; turning takes up to a twentieth off that."""
    side = round(800 * PARAMS.scale_min / 1.05)
    wall = Image.new("RGB", (800, 800), (200, 200, 205))
    wall.paste(photo(3, size=(side, side)), (10, 790 - side))
    for number in range(1, 12):
        recipe = planned(wall, number=number)
        covered_x = min(10 + side, recipe.left + recipe.side) - max(10, recipe.left)
        covered_y = min(790, recipe.top + recipe.side) - max(790 - side, recipe.top)
        assert covered_x * covered_y > 0.9 * side**2


def test_each_change_is_what_it_says():
    picture = photo(4, size=(128, 128))
    whole = Recipe(0, 0, 128)
    assert np.array_equal(np.asarray(apply(picture, whole, size_px=128)), np.asarray(picture))
    mirrored = apply(picture, replace(whole, mirrored=True), size_px=128)
    assert np.array_equal(np.asarray(mirrored), np.asarray(picture)[:, ::-1])
    darker = apply(picture, replace(whole, brightness=0.5), size_px=128)
    assert np.abs(np.asarray(darker) - np.asarray(picture) / 2).max() <= 0.51
    gamma = apply(picture, replace(whole, gamma=2.0), size_px=128)
    assert np.abs(np.asarray(gamma) - (np.asarray(picture) / 255) ** 2 * 255).max() <= 0.51


def test_rotation_turns_counter_clockwise_by_the_angle():
    line = Image.new("RGB", (400, 400), "black")
    line.paste("white", (0, 195, 400, 205))
    turned = np.asarray(apply(line, Recipe(0, 0, 400, rotation_deg=5.0), size_px=400).convert("L"), dtype=float)
    rows = [(turned[:, x] * np.arange(400)).sum() / turned[:, x].sum() for x in (50, 350)]
    assert np.degrees(np.arctan2(rows[0] - rows[1], 300)) == pytest.approx(5, abs=0.2)


def test_a_square_is_four_edges():
    assert Square(1, 2, 3).box == (1, 2, 4, 5)
