from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from photoflux.pocket import world
from photoflux.pocket.render import coverage, render

SEEDS = st.integers(0, 2**32 - 1)
PLAIN = {"style": "cartoon", "scale": 1.0, "x": 0.0, "y": 0.0, "facing_left": False, "light": 0.0, "seed": 5}
"""Flat colours in neutral light, as the scene states them."""


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def thing(**fixed: str) -> world.Subject:
    looks = {
        "kind": "mug",
        "colour": "red",
        "accent": "blue",
        "pattern": "plain",
        "mark": "star",
        "mark_colour": "yellow",
    }
    return world.Subject(
        **looks | fixed, rgb=(200, 30, 40), accent_rgb=(40, 90, 210), mark_rgb=(250, 210, 50), proportions=(0.5,) * 4
    )


def person(**changed: object) -> world.Person:
    one = world.sample_person(rng(3), occupation="chef", gender="man", band="medium", hair="black")
    return replace(one, **changed)


def scene(subject: world.Subject | world.Person, **changed: object) -> world.Scene:
    return world.Scene(subject=subject, **{"place": "studio"} | PLAIN | changed)


def pixels(of: world.Scene, *, size_px: int = 128) -> np.ndarray:
    return np.asarray(render(of, size_px=size_px)).astype(int)


def near(image: np.ndarray, rgb: world.Rgb, *, within: int = 6) -> np.ndarray:
    """Where a picture has a colour: bool [H, W]."""
    return np.abs(image - rgb).max(axis=2) <= within


def test_coverage_is_where_the_subject_is():
    """Against two pictures that differ in the subject's colours alone: outlines and shadow stay outside."""
    red, blue = thing(), replace(thing(), rgb=(40, 90, 210), accent_rgb=(200, 30, 40), mark_rgb=(52, 160, 68))
    for moved in ({}, {"x": 0.09, "y": -0.05, "scale": 0.84, "facing_left": True}):
        differs = np.abs(pixels(scene(red, **moved)) - pixels(scene(blue, **moved))).max(axis=2) > 24
        share = differs.reshape(8, 16, 8, 16).mean(axis=(1, 3))
        covered = coverage(scene(red, **moved), squares=8)
        assert covered.shape == (8, 8) and covered.min() >= 0 and covered.max() <= 1
        assert (covered > share - 0.15).all()
        assert (share[covered == 0] == 0).all()
        assert 0.6 < share.sum() / covered.sum() < 1.05


def share_changed(a: np.ndarray, b: np.ndarray) -> float:
    return float((np.abs(a - b).max(axis=2) > 24).mean())


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_equal_scenes_give_equal_pictures(seed: int):
    one = world.sample_scene(rng(seed))
    first, second = render(one), render(one)
    assert (first.size, first.mode) == ((128, 128), "RGB")
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("style", world.STYLES)
def test_every_size_shows_the_same_picture(style: str):
    one = scene(thing(kind="dog", pattern="spotted"), place="kitchen", style=style)
    large = np.asarray(render(one, size_px=512).resize((128, 128), Image.Resampling.BOX))
    inside = np.s_[20:-20, 20:-20]  # a watercolour's grain and edge are its paper's: another sheet at each size
    assert np.corrcoef(pixels(one)[inside].ravel(), large[inside].ravel())[0, 1] > 0.97


@pytest.mark.parametrize("kind", world.KINDS)
def test_things_show_their_colours_and_fill_the_picture(kind: str):
    one = thing(kind=kind)
    image = pixels(scene(one))
    body, accent, mark = (near(image, rgb) for rgb in (one.rgb, one.accent_rgb, one.mark_rgb))
    assert body.mean() > 0.06 and accent.mean() > 0.006 and mark.mean() > 0.002
    rows, columns = np.nonzero(body | accent | mark)
    assert 0.5 < np.ptp(rows) / 128 < 0.8 or 0.5 < np.ptp(columns) / 128 < 0.9


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, light=st.floats(-1, 1))
def test_the_body_reads_as_its_colour_in_any_light(seed: int, light: float):
    """The middle of a plain mug, to the right of its mark, in the light that photos have."""
    subject = world.sample_subject(rng(seed), kind="mug", pattern="plain")
    body = pixels(scene(subject, style="photo", light=light))[64:76, 66:74].mean(axis=(0, 1))
    assert np.abs(body - subject.rgb).max() < 26


@pytest.mark.parametrize("kind", world.KINDS)
def test_patterns_are_bold_and_leave_the_body_its_colour(kind: str):
    seen = {pattern: pixels(scene(thing(kind=kind, pattern=pattern))) for pattern in world.PATTERNS}
    body = {pattern: near(image, thing().rgb).mean() for pattern, image in seen.items()}
    for pattern in ("striped", "spotted", "checked"):
        assert 0.1 < 1 - body[pattern] / body["plain"] < 0.75, pattern
    for one, other in itertools.combinations(world.PATTERNS, 2):
        assert share_changed(seen[one], seen[other]) > 0.015, (one, other)


@pytest.mark.parametrize("kind", world.KINDS)
def test_the_mark_shows_which_way_a_photo_was_taken(kind: str):
    one = thing(kind=kind)
    right, left = (near(pixels(scene(one, facing_left=turned)), one.mark_rgb) for turned in (False, True))
    centre = np.nonzero(right)[1].mean() / 127
    assert abs(centre - 0.5) > 0.015
    assert np.nonzero(left)[1].mean() / 127 == pytest.approx(1 - centre, abs=0.02)


def test_marks_differ_in_shape():
    masks = [near(pixels(scene(thing(kind="mug", mark=mark))), thing().mark_rgb) for mark in world.MARKS]
    for one, other in itertools.combinations(masks, 2):
        assert (one ^ other).sum() / (one | other).sum() > 0.15


@pytest.mark.parametrize("kind", world.KINDS)
def test_proportions_bend_the_shape(kind: str):
    def bent(which: int, end: float) -> np.ndarray:
        proportions = tuple(end if i == which else 0.5 for i in range(4))
        return pixels(scene(replace(thing(kind=kind), proportions=proportions)))

    changed = [share_changed(bent(which, 0.0), bent(which, 1.0)) for which in range(4)]
    assert sum(share > 0.003 for share in changed) >= 3
    whole = [replace(thing(kind=kind), proportions=(end,) * 4) for end in (0.0, 1.0)]
    assert share_changed(*(pixels(scene(one)) for one in whole)) > 0.02


def test_places_look_apart():
    images = {place: pixels(scene(thing(), place=place)) for place in world.PLACES}
    for one, other in itertools.combinations(world.PLACES, 2):
        assert share_changed(images[one], images[other]) > 0.25, (one, other)


def test_places_have_the_colours_one_expects():
    top = {place: pixels(scene(thing(), place=place))[:8].mean(axis=(0, 1)) for place in world.PLACES}
    low = {place: pixels(scene(thing(), place=place))[-8:].mean(axis=(0, 1)) for place in world.PLACES}
    assert top["space"].mean() < 80 < low["snow"].mean() - 120
    for place in ("beach", "meadow", "snow", "sea"):
        assert top[place][2] > top[place][0], f"the top of {place} is blue"
    for place in ("meadow", "forest"):
        assert low[place][1] == low[place].max(), f"the ground of the {place} is green"
    for place in ("beach", "desert", "kitchen"):
        assert low[place][0] > low[place][2] + 30, f"the ground of the {place} is warm"


@pytest.mark.parametrize("place", world.PLACES)
def test_places_vary(place: str):
    views = [pixels(scene(thing(), place=place, seed=seed)) for seed in range(6)]
    distinct = {view.tobytes() for view in views}
    assert len(distinct) == 6 if place != "studio" else 1 < len(distinct) <= 3, "studios have one of three backdrops"


def test_pixel_pictures_are_mosaics_of_32_by_32():
    image = pixels(scene(thing(), style="pixel"))
    assert (image == image[::4, ::4].repeat(4, axis=0).repeat(4, axis=1)).all()


@pytest.mark.parametrize("place", world.PLACES)
def test_watercolours_are_paler_and_end_before_the_paper_does(place: str):
    photo, painted = (pixels(scene(thing(), place=place, style=style)) for style in ("photo", "watercolor"))
    assert painted.mean() > photo.mean() + 15
    edge = np.concatenate([painted[0], painted[-1], painted[:, 0], painted[:, -1]])
    assert (edge == (252, 249, 240)).all(axis=1).mean() > 0.5


def test_cartoons_are_flat_and_photos_are_not():
    flat, shaded = (pixels(scene(thing(), style=style)) for style in ("cartoon", "photo"))
    colours = [len(np.unique(image.reshape(-1, 3), axis=0)) for image in (flat, shaded)]
    assert colours[0] * 4 < colours[1]


@pytest.mark.parametrize("tone", range(1, 11))
def test_skin_has_the_tones_of_the_monk_scale(tone: int):
    image = pixels(scene(person(tone=tone, beard=False)))
    cheeks = image[82:86, [54, 74]]
    assert np.abs(cheeks - world.TONES[tone - 1]).max() <= 2


@pytest.mark.parametrize("style", world.STYLES)
def test_skin_keeps_its_order_from_light_to_dark_in_every_style(style: str):
    cheeks = [pixels(scene(person(tone=tone, beard=False), style=style))[82:86, 53:57].mean() for tone in range(1, 11)]
    assert all(lighter > darker - 3 for lighter, darker in itertools.pairwise(cheeks[2:]))
    assert cheeks[0] - cheeks[-1] > 80


def test_occupations_dress_differently():
    images = {job: pixels(scene(person(occupation=job))) for job in ("", *world.OCCUPATIONS)}
    for one, other in itertools.combinations(images, 2):
        assert share_changed(images[one], images[other]) > 0.04, (one, other)


def test_women_men_and_beards_are_told_apart():
    man, beard, woman = (
        pixels(scene(person(gender=gender, beard=beard)))
        for gender, beard in (("man", False), ("man", True), ("woman", False))
    )
    assert share_changed(man, woman) > 0.05
    assert share_changed(man, beard) > 0.01


@pytest.mark.parametrize("hair", world.HAIR)
def test_hair_shows_its_colour(hair: str):
    one = person(occupation="", gender="woman", hair=hair, hair_rgb=world.HAIR[hair])
    assert near(pixels(scene(one)), world.HAIR[hair]).mean() > 0.04


def test_light_warms_or_cools_the_whole_picture():
    cool, warm = (pixels(scene(thing(), light=light)).mean(axis=(0, 1)) for light in (-1.0, 1.0))
    assert (warm - cool)[0] > 8 > -8 > (warm - cool)[2]
