"""The mark in the pixels: invisible, there after JPEG at quality 75, and not in what was never marked."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from scipy.fft import dctn, idctn

from photoflux.watermark import (
    BITS,
    COEFFICIENTS,
    ERRORS_MAX,
    PAYLOAD,
    QUANTISATION_STEP,
    bit_errors,
    embed,
    is_watermarked,
)


def scene(seed: int, side_px: int = 512) -> Image.Image:
    """Soft shapes, texture and grain: something like a picture."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((side_px, side_px), 3)
    grain = rng.normal(0, 6, (side_px, side_px, 3))
    return Image.fromarray(np.uint8(np.clip(np.asarray(small, float) + grain, 0, 255)))


def saved(image: Image.Image, fmt: str, **how: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format=fmt, **how)
    return Image.open(buffer).convert("RGB")


@pytest.mark.parametrize("seed", range(6))
def test_it_is_there_and_outlives_jpeg_75(seed: int):
    picture = embed(scene(seed))
    assert bit_errors(picture) == 0
    for fmt, how in (("JPEG", {"quality": 95}), ("JPEG", {"quality": 75}), ("WEBP", {"quality": 95}), ("PNG", {})):
        assert bit_errors(saved(picture, fmt, **how)) == 0, (fmt, how)


@pytest.mark.parametrize("seed", range(6))
def test_it_cannot_be_seen(seed: int):
    """Peak signal-to-noise ratio of at least 42 dB, and no pixel moves by more than a few grey levels."""
    before, after = (np.asarray(image, float) for image in (scene(seed), embed(scene(seed))))
    assert 10 * np.log10(255**2 / np.mean((before - after) ** 2)) >= 42
    assert np.abs(before - after).max() <= 12


def test_what_was_never_marked_is_not_read_as_marked():
    """Bits of unmarked pictures are right by chance, half of the time: 16 of 32 wrong, give or take."""
    wrong = [bit_errors(scene(seed, 128).filter(ImageFilter.GaussianBlur(seed % 3))) for seed in range(200)]
    assert min(wrong) > ERRORS_MAX
    assert np.mean(wrong) == pytest.approx(BITS / 2, abs=2)


def test_scaling_ends_it_and_marking_again_restores_it():
    smaller = embed(scene(1)).resize((300, 300), Image.Resampling.LANCZOS)
    assert not is_watermarked(smaller)
    assert is_watermarked(embed(smaller))


def test_the_payload_is_the_products_and_has_both_bits():
    assert PAYLOAD.shape == (32,)
    assert 8 <= PAYLOAD.sum() <= 24


@settings(max_examples=30)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(["RGB", "L", "RGBA"]))
def test_any_size_and_mode_comes_back_as_rgb_of_its_size(width: int, height: int, mode: str):
    picture = embed(Image.new(mode, (width, height), 128 if mode == "L" else "teal"))
    assert (picture.size, picture.mode) == ((width, height), "RGB")


def embed_at_once(image: Image.Image) -> Image.Image:
    """The mark by its definition: all blocks of the picture in one array."""
    luma, *chroma = image.convert("YCbCr").split()
    pixels = np.asarray(luma, dtype=np.float64)
    rows, columns = (side // 8 for side in pixels.shape)
    blocks = pixels[: rows * 8, : columns * 8].reshape(rows, 8, columns, 8).swapaxes(1, 2)
    row, column = np.indices((rows, columns))
    bits = PAYLOAD[(row * 13 + column * 5) % BITS]
    shift = np.random.default_rng(0).uniform(0, QUANTISATION_STEP, (rows, columns)) + bits * (QUANTISATION_STEP / 2)
    spectrum = dctn(blocks, axes=(2, 3), norm="ortho")
    for y, x in COEFFICIENTS:
        spectrum[:, :, y, x] = np.round((spectrum[:, :, y, x] - shift) / QUANTISATION_STEP) * QUANTISATION_STEP + shift
    changed = pixels.copy()
    changed[: rows * 8, : columns * 8] = idctn(spectrum, axes=(2, 3), norm="ortho").swapaxes(1, 2).reshape(rows * 8, -1)
    whole = Image.fromarray(np.uint8(changed.round().clip(0, 255)))
    return Image.merge("YCbCr", (whole, *chroma)).convert("RGB")


@pytest.mark.parametrize("size", [(8, 8), (300, 71), (71, 300), (513, 640), (1024, 768)])
def test_the_pixels_are_those_of_the_definition(size: tuple[int, int]):
    image = scene(3, 1024).resize(size)
    assert embed(image).tobytes() == embed_at_once(image).tobytes()


def test_marking_a_large_picture_takes_little_more_memory_than_its_pixels():
    image = scene(0).resize((2048, 2048))
    tracemalloc.start()
    try:
        embed(image)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * 2048 * 2048
