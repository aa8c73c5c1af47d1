"""Measures against values worked out another way, and likeness against pictures made to be alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from photoflux.photos.decode import decode
from photoflux.photos.inspect import (
    background,
    contrast,
    entropy,
    finest_detail,
    fingerprint,
    likeness,
    measure,
    noise_level,
    reblur,
    tile_laplacian,
)
from tests.photos.pictures import blurred, cropped, encoded, mirrored, photo


def grey_of(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("L"), dtype=np.float64)


def reblur_by_hand(grey: np.ndarray, window: int = 11) -> float:
    """The published definition with plain loops, vertical and horizontal."""

    def along(lines: np.ndarray) -> float:
        sharp = lost = 0.0
        reach = window // 2
        for line in lines:
            mirrored_line = np.concatenate([line[reach - 1 :: -1], line, line[: -reach - 1 : -1]])
            soft = [mirrored_line[i : i + window].mean() for i in range(len(line))]
            for i in range(1, len(line)):
                d, d_soft = abs(line[i] - line[i - 1]), abs(soft[i] - soft[i - 1])
                sharp += d
                lost += max(0.0, d - d_soft)
        return (sharp - lost) / sharp

    return max(along(grey), along(grey.T))


def test_reblur_is_the_published_measure():
    grey = np.random.default_rng(0).uniform(0, 255, (24, 31))
    assert reblur(grey) == pytest.approx(reblur_by_hand(grey), rel=1e-9)
    assert reblur(np.full((32, 32), 9.0)) == 0


@pytest.mark.parametrize("sigma", [3.0, 6.0, 12.0])
def test_noise_is_recovered(sigma: float):
    smooth = np.add.outer(np.linspace(40, 160, 512), np.linspace(0, 50, 512))
    noisy = smooth + np.random.default_rng(1).normal(0, sigma, smooth.shape)
    assert noise_level(noisy) == pytest.approx(sigma, rel=0.05)
    assert noise_level(smooth) < 0.3


def test_white_noise_has_twenty_times_its_variance_as_sharpness():
    noise = np.random.default_rng(2).normal(128, 5, (512, 512))
    assert tile_laplacian(noise) == pytest.approx(20 * 25, rel=0.08)


def test_entropy_of_known_shares():
    assert entropy(np.repeat([0.0, 255.0], 50)) == pytest.approx(1.0)
    assert entropy(np.arange(256.0)) == pytest.approx(8.0)
    assert entropy(np.zeros(10)) == 0


def test_contrast_of_known_edges():
    """One column of 64 differs from the next by so much; grain and shading do not count."""
    step = np.full((64, 64), 40.0)
    step[:, 32:] = 100
    assert contrast(step) == 60
    assert contrast(np.stack([step, np.full((64, 64), 9.0)], axis=2)) == 60
    assert contrast(np.tile(np.linspace(0, 255, 64), (64, 1))) == pytest.approx(255 / 63)
    assert contrast(np.zeros((1, 1))) == 0
    grain = np.random.default_rng(4).normal(120, 12, (800, 800, 3)).clip(0, 255).astype(np.uint8)
    assert measure(Image.fromarray(grain)).contrast < 8


def test_blank_tiles_say_nothing_of_sharpness():
    """A toy on white is as sharp as it is before anything else; one out of focus is as blurred."""
    toy = on_white(photo(0, size=(150, 150)), 800)
    assert measure(toy).sharpness > 250
    assert measure(blurred(toy)).sharpness < 100
    noise = np.random.default_rng(2).normal(128, 5, (512, 512))
    assert tile_laplacian(noise) == pytest.approx(20 * 25, rel=0.08)


def on_white(picture: Image.Image, side: int) -> Image.Image:
    white = Image.new("RGB", (side, side), "white")
    white.paste(picture, (side // 2 - picture.width // 2, side // 2 - picture.height // 2))
    return white


def test_a_sharp_region_suffices():
    sharp = grey_of(photo(0, size=(512, 512)))
    soft = grey_of(blurred(photo(0, size=(512, 512)), 6))
    assert tile_laplacian(soft) < 100
    soft[:256, :256] = sharp[:256, :256]
    assert tile_laplacian(soft) > 100


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), sigma=st.floats(2, 6))
def test_blur_lowers_sharpness_and_raises_reblur(seed: int, sigma: float):
    picture = photo(seed, size=(512, 512))
    sharp, soft = measure(picture), measure(blurred(picture, sigma))
    assert sharp.sharpness > 250 > 100 > soft.sharpness
    assert sharp.reblur < 0.54 < soft.reblur
    assert sharp.sharpness_trust > 0.9


def test_grain_that_hides_blur_is_not_trusted():
    soft = np.asarray(blurred(photo(3)), dtype=np.float64)
    grainy = soft + np.random.default_rng(3).normal(0, 18, soft.shape)
    found = measure(Image.fromarray(grainy.clip(0, 255).astype(np.uint8)))
    assert found.sharpness > 250
    assert found.sharpness_trust < 0.5


def test_enlarged_photos_lack_the_finest_detail():
    picture = photo(4, size=(512, 512))
    enlarged = picture.resize((1024, 1024), Image.Resampling.BICUBIC)
    assert finest_detail(grey_of(enlarged)) < 0.6 < finest_detail(grey_of(photo(4, size=(1024, 1024))))


def test_light_is_measured():
    dark = measure(photo(5).point(lambda v: v // 8))
    light = measure(Image.new("RGB", (600, 600), "white"))
    assert dark.luma_p99 < 0.32
    assert (light.luma_p1, light.clipped_high, light.clipped_low) == (1.0, 1.0, 0.0)
    assert measure(Image.new("RGB", (600, 700))).aspect == pytest.approx(6 / 7)


def test_equal_pixels_have_equal_digests_whatever_the_format():
    picture = photo(6, size=(90, 60))
    prints = {
        fingerprint(decode(encoded(picture, kind, **o)).image).sha256
        for kind, o in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}))
    }
    assert len(prints) == 1
    assert fingerprint(picture.transpose(Image.Transpose.ROTATE_90)).sha256 not in prints


@pytest.mark.parametrize("share", [0.03, 0.05, 0.08, 0.1, 0.12])
@pytest.mark.parametrize("flip", [False, True])
def test_crops_and_mirror_images_are_found(share: float, flip: bool):
    original = photo(7, size=(900, 700))
    part = cropped(original, share)
    pair = likeness(fingerprint(original), fingerprint(mirrored(part) if flip else part))
    assert pair.correlation > 0.9
    assert pair.mirrored == flip


def test_a_side_cut_off_is_found():
    original = photo(8)
    for box in ((160, 0, 800, 800), (0, 0, 800, 600), (80, 80, 800, 800)):
        assert likeness(fingerprint(original), fingerprint(original.crop(box))).correlation > 0.9


def test_saved_again_brighter_or_smaller_is_the_same():
    original = fingerprint(photo(9))
    for copy in (
        decode(encoded(photo(9), "JPEG", quality=30)).image,
        photo(9).point(lambda v: min(255, round(v * 1.3))),
        photo(9).resize((400, 400)),
    ):
        pair = likeness(original, fingerprint(copy))
        assert pair.correlation > 0.9
        assert not pair.same_pixels


@settings(max_examples=15, deadline=None)
@given(a=st.integers(0, 5000), b=st.integers(5001, 10_000))
def test_different_photos_are_unlike_and_likeness_is_symmetric(a: int, b: int):
    left, right = fingerprint(photo(a, size=(200, 160))), fingerprint(photo(b, size=(150, 200)))
    pair, turned = likeness(left, right), likeness(right, left)
    assert pair.correlation == pytest.approx(turned.correlation, abs=1e-5)
    assert pair.correlation < 0.75
    assert pair.phash > 10
    assert pair.dhash > 8


def test_flat_pictures_correlate_with_nothing():
    flat = fingerprint(Image.new("RGB", (64, 64), "grey"))
    assert likeness(flat, fingerprint(photo(1, size=(64, 64)))).correlation == 0


def test_background_is_what_surrounds():
    red, blue = (Image.new("RGB", (300, 300), colour) for colour in ("red", "blue"))
    red_with_thing = red.copy()
    red_with_thing.paste(photo(2, size=(180, 240)), (60, 60))  # stands on the lower edge
    same, other = (np.minimum(background(red), background(p)).sum() for p in (red_with_thing, blue))
    assert same > 0.95
    assert other < 0.05
