"""augment: hold photos out, crop the others to the base's resolution, vary and caption them."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from photoflux.errors import InputError
from photoflux.manifest import unpack, write_tar
from photoflux.params import AugmentParams
from photoflux.report import publish
from photoflux.steps import StepResult
from photoflux.vault import committed, opened

if TYPE_CHECKING:
    from PIL import Image

    from photoflux.flux.spec import BaseSpec
    from photoflux.photos.normalise import Square

TRAIN, HELDOUT = "train", "heldout"
SIMILAR_CORRELATION, SIMILAR_PHASH = 0.75, 14


@dataclass(frozen=True)
class Photo:
    """A validated photo on disk, with its original file name, SHA-256 and written caption."""

    path: Path
    source: str
    sha256: str
    written: str = ""

    @property
    def stem(self) -> str:
        return self.path.stem

    def image(self) -> Image.Image:
        from PIL import Image

        with Image.open(self.path) as stored:
            return stored.convert("RGB")


@dataclass(frozen=True)
class Sample:
    """One training image, with the transforms that made it."""

    file: str
    split: str
    photo: Photo
    image: Image.Image
    caption: str
    transforms: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "split": self.split,
            "source": self.photo.source,
            "caption": self.caption,
            "transforms": self.transforms,
        }


def run(
    validated: Path, *, dataset: Path, report: Path, params: AugmentParams, key: str = "plain://demo"
) -> StepResult:
    """Make the training set of a validated artifact: `train/` and `heldout/` images at the base's
    resolution, each with a caption, and a contact sheet.

    Photos are held out before anything is varied, and photos that nearly repeat one another stay on one side.
    Raises InputError when no photo can be held out or the base is unknown.
    """
    from photoflux.pages.augment import dataset_page

    spec = _spec(params.base)
    size_px = params.resolution_px or spec.resolution_px
    with opened(validated, key=key) as unsealed, tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        manifest = unpack(unsealed, Path(scratch))
        _check_class_noun(manifest["subject"]["class_noun"], spec)
        photos = _photos(manifest, Path(scratch))
        heldout = choose_heldout(photos, params=params)
        samples = _samples(photos, heldout, manifest["subject"], size_px=size_px, params=params)
        dataset_manifest = _manifest(manifest, samples, base=spec.name, size_px=size_px, params=params)
        with committed(dataset, key=key) as out:
            write_tar(out, files={sample.file: _png(sample.image) for sample in samples}, manifest=dataset_manifest)
        images = {sample.file: sample.image for sample in samples}
        page = dataset_page(dataset_manifest, images=images, photos={photo.source: photo.path for photo in photos})
        publish(report, page, subject=manifest["subject"], key=key)
    train = [item for item in dataset_manifest["items"] if item["split"] == TRAIN]
    metrics: dict[str, float] = {
        "photos": len(photos),
        "train": len(train),
        "heldout": len(heldout),
        "resolution_px": size_px,
    }
    return StepResult(metrics=metrics, report=report)


def choose_heldout(photos: Sequence[Photo], *, params: AugmentParams) -> set[str]:
    """Names of the photos held out for evaluation: one of up to seven, two of eight and more, or as many as
    asked.

    Photos of nearly the same view are held out together or not at all.
    """
    wanted = params.heldout if params.heldout > 0 else 2 if len(photos) >= 8 else 1
    groups = sorted(_similar_groups(photos), key=lambda group: (len(group), _sort_key(group, seed=params.seed)))
    heldout: list[Photo] = []
    for group in groups:
        if len(heldout) + len(group) <= wanted or not heldout:
            heldout += group
    if len(photos) - len(heldout) < max(2, len(heldout)):
        raise InputError(
            f"{len(photos)} photos leave too few to train on when {len(heldout)} of them are held out for "
            "evaluation; add photos with other views, or hold out fewer"
        )
    return {photo.source for photo in heldout}


def _photos(manifest: Mapping[str, Any], folder: Path) -> list[Photo]:
    captions = manifest.get("captions", {})
    return [
        Photo(folder / entry["file"], entry["source"], entry["sha256"], captions.get(entry["file"], ""))
        for entry in manifest["photos"]
    ]


def _similar_groups(photos: Sequence[Photo]) -> list[list[Photo]]:
    """Groups of photos of nearly the same view, with looser limits than for duplicates."""
    from photoflux.photos.inspect import fingerprint
    from photoflux.photos.table import clusters, compare

    likenesses = compare([fingerprint(photo.image()) for photo in photos])
    similar_pairs = [
        p for p, one in likenesses.items() if one.correlation >= SIMILAR_CORRELATION or one.phash <= SIMILAR_PHASH
    ]
    return [[photos[i] for i in members] for members in clusters(len(photos), similar_pairs)]


def _sort_key(group: Sequence[Photo], *, seed: int) -> str:
    """A pseudo-random sort key of a group, from the seed and its photos' digests alone."""
    return hashlib.sha256(f"{seed}:{min(photo.sha256 for photo in group)}".encode()).hexdigest()


def _samples(
    photos: Sequence[Photo],
    heldout: set[str],
    subject: Mapping[str, Any],
    *,
    size_px: int,
    params: AugmentParams,
) -> list[Sample]:
    """All samples: one for each held-out photo; for each other one the original and its variants."""
    from photoflux.photos.augment import may_flip, may_recolour

    noun = subject["class_noun"]
    transforms_allowed = {
        "flip": may_flip(noun, photos=len(photos), params=params),
        "recolour": may_recolour(noun, params=params),
    }
    samples = []
    for photo in photos:
        split = HELDOUT if photo.source in heldout else TRAIN
        samples += _samples_of_photo(
            photo, split, subject, size_px=size_px, params=params, transforms_allowed=transforms_allowed
        )
    return samples


def _samples_of_photo(
    photo: Photo,
    split: str,
    subject: Mapping[str, Any],
    *,
    size_px: int,
    params: AugmentParams,
    transforms_allowed: dict[str, bool],
) -> list[Sample]:
    from photoflux.photos.augment import apply, plan
    from photoflux.photos.captions import caption_for
    from photoflux.photos.normalise import cut, largest_square

    image = photo.image()
    square = largest_square(image, how=params.crop)
    caption = caption_for(image, trigger=subject["trigger"], class_noun=subject["class_noun"], written=photo.written)
    original = Sample(
        f"{split}/{photo.stem}.png",
        split,
        photo,
        cut(image, square, size_px=size_px),
        caption,
        _original(square),
    )
    samples = [original]
    for number in range(1, params.variants + 1) if split == TRAIN else ():
        recipe = plan(image, square, sha256=photo.sha256, number=number, params=params, **transforms_allowed)
        variant = apply(image, recipe, size_px=size_px)
        file = f"{split}/v{number}/{photo.stem}.png"  # in a folder of its own: any name beside the originals may be that of another photo
        samples.append(replace(original, file=file, image=variant, transforms=recipe.as_json() | {"variant": number}))
    return samples


def _original(square: Square) -> dict[str, Any]:
    return {
        "variant": 0,
        "left": round(square.left, 4),
        "top": round(square.top, 4),
        "side": round(square.side, 4),
    }


def _manifest(
    manifest: Mapping[str, Any], samples: Sequence[Sample], *, base: str, size_px: int, params: AugmentParams
) -> dict[str, Any]:
    """The data set's manifest. An original is listed as often as it has variants, so that originals are half of all samples."""
    items = []
    for sample in samples:
        repeats = params.variants if sample.split == TRAIN and not sample.transforms["variant"] else 1
        items += [sample.as_json()] * max(1, repeats)
    return {
        "subject": manifest["subject"],
        "base": {"name": base, "resolution_px": size_px},
        "seed": params.seed,
        "score": manifest.get("validation", {}).get("score"),
        "items": items,
    }


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def _spec(base: str) -> BaseSpec:
    from photoflux.flux.spec import load_spec

    return load_spec(base)


def _check_class_noun(noun: str, spec: BaseSpec) -> None:
    """Raises InputError for a class noun that the base does not list, where it lists any."""
    if spec.class_nouns and noun not in spec.class_nouns:
        known = ", ".join(sorted(spec.class_nouns))
        raise InputError(
            f"class noun '{noun}': base '{spec.name}' does not know it; import the photos as one of {known}"
        )
