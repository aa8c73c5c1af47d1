"""Sample photo sets of one subject of the pocket world, and copies with defects.

The photos pass the checks of real photos, so that the whole pipeline can be run without any.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Container, Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from photoflux.errors import InputError
from photoflux.manifest import write_bytes
from photoflux.pocket.render import render
from photoflux.pocket.world import (
    COLOURS,
    KINDS,
    PATTERNS,
    PLACES,
    Person,
    Scene,
    Subject,
    caption,
    is_heldout,
    sample_person,
    sample_scene,
    sample_subject,
)

JPEG_QUALITY = 92
SIZE_PX = (64, 4096)
PHOTOS = (1, 60)
SCALES, SIDEWAYS, UPDOWN = (0.84, 1.12), (-0.09, 0.09), (-0.05, 0.05)
"""Ranges of the framings in pretraining."""
SUBJECT_STREAM, SCENE_STREAM = 1, 2
"""Streams of random numbers: one for subjects, one for scenes."""


def unseen_subjects(n: int, *, seed: int, **fixed: str) -> list[Subject]:
    """`n` subjects whose looks (kind, colour, accent, pattern together) never occur in pretraining.

    `fixed` decides some of the looks; subject `i` is the same whatever `n` is. Raises InputError when no looks that
    are held out from pretraining agree with `fixed`.
    """
    if not any(looks.items() <= (looks | fixed).items() for looks in _heldout_looks()):
        raise InputError(f"pretraining has seen every subject with {fixed}, or none can have it: fix fewer looks")
    return [sample_subject(np.random.default_rng([seed, SUBJECT_STREAM, i]), heldout=True, **fixed) for i in range(n)]


def unseen_people(n: int, *, seed: int, **fixed: str) -> list[Person]:
    """`n` people; their proportions and shades are their own, so no two individuals are alike."""
    return [sample_person(np.random.default_rng([seed, SUBJECT_STREAM, i]), **fixed) for i in range(n)]


def photo_set(
    subject: Subject | Person, *, n: int = 6, seed: int, size_px: int = 1024
) -> list[tuple[Image.Image, Scene]]:
    """`n` square photos of one subject with their scenes, each with another place, distance, position and light.

    It always faces the same way, so that its mark stays on one side. Raises InputError for impossible sizes.
    """
    _check_range("the number of photos", n, PHOTOS)
    _check_range("the size in pixels", size_px, SIZE_PX)
    return [(render(scene, size_px=size_px), scene) for scene in _scenes(subject, n, seed)]


def write_photo_set(
    folder: Path, subject: Subject | Person, *, n: int = 6, seed: int, size_px: int = 1024, spoilt: bool = False
) -> list[Path]:
    """Write `01.jpg`, `02.jpg`, … of `photo_set` with a caption beside each, and with `spoilt` the first's `defects`.

    Equal arguments give equal bytes. Raises InputError when the folder holds other files: they would become part of
    the set.
    """
    photos = photo_set(subject, n=n, seed=seed, size_px=size_px)
    files = {f"{number:02}.jpg": jpeg(image) for number, (image, _) in enumerate(photos, 1)}
    files |= defects(photos[0][0]) if spoilt else {}
    captions = {f"{number:02}.txt": f"{caption(scene, trigger='a')}\n" for number, (_, scene) in enumerate(photos, 1)}
    _check_no_other_files(folder, {*files, *captions})
    for name, text in captions.items():
        write_bytes(folder / name, text.encode())
    return [write_bytes(folder / name, content) for name, content in files.items()]


def jpeg(image: Image.Image) -> bytes:
    """The image as JPEG of a camera's usual quality."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def blur(image: Image.Image, *, sigma_px: float) -> Image.Image:
    """Out of focus."""
    return image.filter(ImageFilter.GaussianBlur(sigma_px))


def mirror(image: Image.Image) -> Image.Image:
    """Mirrored, as selfie cameras do: the mark changes sides."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def crop(image: Image.Image, *, margin: float) -> Image.Image:
    """Cut `margin` (0-0.45, a share of the side) off every side."""
    dx, dy = round(image.width * margin), round(image.height * margin)
    return image.crop((dx, dy, image.width - dx, image.height - dy))


def tint(image: Image.Image, *, gains: tuple[float, float, float] = (1.12, 1.0, 0.78)) -> Image.Image:
    """A wrong white balance or exposure: each channel times its gain."""
    return image.point([min(255, round(value * gain)) for gain in gains for value in range(256)])


def truncate(data: bytes, *, share: float = 0.5) -> bytes:
    """A file whose transfer broke off: its first `share` (0-1)."""
    return data[: int(len(data) * share)]


def defects(image: Image.Image) -> dict[str, bytes]:
    """File name -> bytes of copies of a photo, each spoilt in one way that a check has to notice."""
    return {
        "blurred.jpg": jpeg(blur(image, sigma_px=image.width / 160)),
        "cropped.jpg": jpeg(crop(image, margin=0.05)),
        "dark.jpg": jpeg(tint(image, gains=(0.1, 0.1, 0.1))),
        "mirrored.jpg": jpeg(mirror(image)),
        "tiny.jpg": jpeg(image.resize((200, 200))),
        "truncated.jpg": truncate(jpeg(image)),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """`photoflux samples`: draw one subject that the pocket base has never seen, and photos of it."""
    args = _parser().parse_args(arguments)
    draw = unseen_people if args.kind == "person" else unseen_subjects
    fixed = {} if args.kind == "person" else {"kind": args.kind}
    subject = draw(1, seed=args.seed, **fixed)[0]
    size = {"n": args.photos, "size_px": args.size_px}
    paths = write_photo_set(args.out, subject, seed=args.seed, spoilt=args.spoilt, **size)
    print(f"{args.out}: {len(paths)} photos, the first {caption(_scenes(subject, args.photos, args.seed)[0])}")
    return 0


def _scenes(subject: Subject | Person, n: int, seed: int) -> list[Scene]:
    rng = np.random.default_rng([seed, SCENE_STREAM])
    places = _places(rng)
    positions = zip(*(_stratified(rng, n, low, high) for low, high in (SCALES, SIDEWAYS, UPDOWN)), strict=True)
    framings = [{"style": "photo", "place": next(places), "scale": scale, "x": x, "y": y} for scale, x, y in positions]
    return [sample_scene(rng, subject=subject, people_share=0, **framing) for framing in framings]


def _places(rng: np.random.Generator) -> Iterator[str]:
    """All places in random order, again and again."""
    while True:
        yield from rng.permutation(list(PLACES)).tolist()


def _stratified(rng: np.random.Generator, n: int, low: float, high: float) -> list[float]:
    """Stratified samples: one value from each `n`-th of the range, shuffled."""
    return (low + (high - low) * (rng.permutation(n) + rng.random(n)) / n).round(4).tolist()


def _heldout_looks() -> Iterator[dict[str, str]]:
    for kind, colour, accent, pattern in product(KINDS, COLOURS, COLOURS, PATTERNS):
        looks = {"kind": kind, "colour": colour, "accent": accent, "pattern": pattern}
        if colour != accent and is_heldout(looks):
            yield looks


def _check_no_other_files(folder: Path, names: Container[str]) -> None:
    others = sorted(f.name for f in folder.iterdir() if f.name not in names) if folder.is_dir() else []
    if others:
        raise InputError(f"{folder}: already holds {others[0]}; give a new or empty folder")


def _check_range(what: str, value: int, bounds: tuple[int, int]) -> None:
    if not bounds[0] <= value <= bounds[1]:
        raise InputError(f"{what} is {value}: choose {bounds[0]} to {bounds[1]}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="photoflux samples", description="Draw a sample photo set.")
    parser.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--kind", choices=(*KINDS, "person"), default="dog", help="what the photos show")
    parser.add_argument("--photos", type=int, default=8, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another individual")
    parser.add_argument("--size-px", type=int, default=1024, help="side of each photo")
    parser.add_argument("--spoilt", action="store_true", help="add blurred, dark, mirrored, broken … copies")
    return parser
