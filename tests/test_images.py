"""Files that leave the house: right size, right format, marked as machine-made, the same bytes every time."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from photoflux.errors import InputError
from photoflux.images import SOURCE_TYPE, SUFFIXES, encode_image, fit_to_size, parse_size, provenance_of
from photoflux.manifest import write_bytes
from photoflux.params import FORMATS

MADE = {"model": "rex version 3", "adapter": "ab" * 32, "seed": "7", "style": "none"}


@pytest.fixture
def picture() -> Image.Image:
    """A smooth colour field with a hard edge in it."""
    y, x = np.mgrid[0:96, 0:128]
    pixels = np.stack([x * 2, y * 2, np.where(x > 64, 200, 30)], -1).astype(np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("fmt", FORMATS)
def test_each_format_is_what_it_says(picture: Image.Image, fmt: str):
    content = encode_image(picture, fmt, provenance=MADE)
    with Image.open(io.BytesIO(content)) as read:
        assert (read.format, read.size, read.mode) == (fmt.upper(), picture.size, "RGB")
        error = np.abs(np.asarray(read, float) - np.asarray(picture, float)).mean()
    assert error == 0 if fmt in ("png", "tiff") else error < 3


@pytest.mark.parametrize("fmt", FORMATS)
def test_equal_pictures_give_equal_bytes(picture: Image.Image, fmt: str):
    shuffled = dict(reversed(MADE.items()))
    assert encode_image(picture, fmt, provenance=MADE) == encode_image(picture.copy(), fmt, provenance=shuffled)


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_format_says_that_a_model_made_it(picture: Image.Image, fmt: str, tmp_path: Path):
    file = write_bytes(tmp_path / f"x{SUFFIXES[fmt]}", encode_image(picture, fmt, provenance=MADE))
    assert provenance_of(file) == MADE | {"digitalSourceType": SOURCE_TYPE}


def test_png_carries_it_as_text_chunks_too(picture: Image.Image):
    with Image.open(io.BytesIO(encode_image(picture, "png", provenance=MADE))) as read:
        assert read.text["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
        assert (read.text["seed"], read.text["model"]) == ("7", "rex version 3")
        assert read.info["srgb"] == 0


@given(st.dictionaries(st.sampled_from(["model", "style", "base"]), st.text(st.characters(exclude_categories=["C"]))))
def test_any_words_come_back_as_they_were(said: dict[str, str]):
    with Image.open(io.BytesIO(encode_image(Image.new("RGB", (16, 16)), "png", provenance=said))) as read:
        assert {name: read.text[name] for name in said} == said


def test_unsafe_or_foreign_metadata_is_no_provenance(tmp_path: Path):
    from PIL.PngImagePlugin import PngInfo

    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>'
    for number, text in enumerate((bomb, "no markup", "")):
        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", text)
        file = tmp_path / f"{number}.png"
        Image.new("RGB", (16, 16)).save(file, pnginfo=info)
        assert provenance_of(file) == {}


def test_an_unknown_format_is_refused(picture: Image.Image):
    with pytest.raises(InputError, match="format 'gif': choose one of png, jpeg, webp, tiff"):
        encode_image(picture, "gif", provenance={})


@given(st.integers(16, 4096), st.integers(16, 4096))
def test_sizes_are_read(width: int, height: int):
    assert parse_size(f"{width}x{height}") == (width, height)


@pytest.mark.parametrize(
    "text", ["512", "512x", "15x512", "512x4097", "512X512", "-1x20", "512x512x3", " 512x512", "٥١٢x512"]
)
def test_other_sizes_are_refused(text: str):
    with pytest.raises(InputError, match="write WIDTHxHEIGHT, each side from 16 to 4096"):
        parse_size(text)


def test_a_fitting_picture_is_left_alone(picture: Image.Image):
    assert fit_to_size(picture, picture.size) is picture


@given(st.integers(16, 200), st.integers(16, 200))
def test_any_size_is_met_exactly(width: int, height: int):
    shrunk = fit_to_size(Image.new("RGB", (128, 128), (51, 102, 153)), (width, height))
    assert shrunk.size == (width, height)
    assert shrunk.getcolors() == [(width * height, (51, 102, 153))]


def test_another_shape_loses_equal_parts_of_two_sides():
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:96] = 255
    assert np.asarray(fit_to_size(Image.fromarray(wide), (64, 64))).min() > 240


def test_a_failed_write_leaves_nothing(tmp_path: Path):
    taken = tmp_path / "x.png"
    taken.mkdir()
    with pytest.raises(OSError):
        write_bytes(taken, b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
