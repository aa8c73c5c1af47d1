"""Captions name everything but the subject's looks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from photoflux.photos.captions import caption_for, colour_name, surroundings, with_trigger


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("a photo of a dog on the beach", "a photo of sks dog on the beach"),
        ("my small brown dog on a sofa", "sks dog on a sofa"),
        ("a photo of a red striped dog in the snow", "a photo of sks dog in the snow"),
        ("Dog asleep", "sks dog asleep"),
        ("the old dog and another dog", "sks dog and another dog"),
        ("a photo of sks dog in space", "a photo of sks dog in space"),
        ("on the beach", "a photo of sks dog, on the beach"),
        ("a hotdog stand", "a photo of sks dog, a hotdog stand"),
    ],
)
def test_the_trigger_takes_the_place_of_the_looks(written: str, expected: str):
    assert with_trigger(written, trigger="sks", class_noun="dog") == expected


@given(text=st.text(max_size=400), noun=st.sampled_from(["dog", "tea pot", "a.b"]))
def test_every_caption_names_the_subject_once_in_one_line(text: str, noun: str):
    made = caption_for(Image.new("RGB", (64, 64), "red"), trigger="qqz", class_noun=noun, written=text)
    assert "\n" not in made
    assert "qqz" in made.lower()
    assert len(made) <= 340


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((208, 38, 42), "red"), ((243, 132, 32), "orange"), ((248, 211, 52), "yellow"), ((52, 160, 68), "green"),
        ((44, 98, 206), "blue"), ((126, 58, 178), "purple"), ((246, 146, 188), "pink"), ((124, 78, 42), "brown"),
        ((20, 20, 24), "black"), ((242, 242, 240), "white"), ((128, 130, 126), "grey"), ((255, 0, 20), "red"),
    ],
)  # fmt: skip
def test_colours_have_plain_names(rgb: tuple[int, int, int], name: str):
    assert colour_name(np.array(rgb)) == name


def test_surroundings_are_described_not_the_subject():
    picture = Image.new("RGB", (300, 300), (44, 98, 206))
    picture.paste((250, 130, 30), (80, 80, 220, 300))
    assert surroundings(picture) == "with a blue background"
    assert surroundings(Image.new("RGB", (300, 300), (243, 132, 32))) == "with an orange background"
    assert surroundings(Image.new("RGB", (300, 300), "white")) == "with a white background in bright light"
    assert surroundings(Image.new("RGB", (300, 300), (9, 9, 9))) == "with a black background in the dark"


def test_without_words_the_caption_is_built():
    made = caption_for(Image.new("RGB", (64, 64), (52, 160, 68)), trigger="sks", class_noun="mug")
    assert made == "a photo of sks mug with a green background"
