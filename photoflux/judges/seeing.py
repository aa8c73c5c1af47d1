"""What the judges see in a grid of pictures, drawing such grids, and keeping the base's side of them."""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from photoflux import fingerprint
from photoflux.errors import InputError
from photoflux.judges.colour import lab_histograms
from photoflux.judges.copying import structure
from photoflux.judges.prompts import Prompt, PromptSet, load_prompts, seeds_for
from photoflux.judges.quality import Quality, measure_quality
from photoflux.manifest import unpack, write_tar
from photoflux.settings import get_settings

if TYPE_CHECKING:
    from diffusers import FluxPipeline

    from photoflux.flux.spec import BaseSpec
    from photoflux.judges.encoders import Judges

Array = np.ndarray
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """Pictures as numbers; every array starts with the grid [P, S] (or [N] for photos)."""

    identity: Array
    image: Array
    structure: Array
    colours: Array
    quality: Array
    probabilities: dict[str, Array]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.identity.shape[:-1]

    @property
    def measures(self) -> Quality:
        return Quality(*np.moveaxis(self.quality, -1, 0))

    def labels(self, attribute: str) -> Array:
        """The class read in each picture."""
        return self.probabilities[attribute].argmax(-1)

    def grid(self, prompts: int) -> Seen:
        """[N, ...] as [P, S, ...]."""
        return self._each(lambda x: x.reshape(prompts, -1, *x.shape[1:]))

    def beside(self, other: Seen) -> Seen:
        """Two grids of the same prompts, their seeds side by side."""
        mine, theirs = self.arrays(), other.arrays()
        return Seen.of({name: np.concatenate([mine[name], theirs[name]], axis=1) for name in mine})

    def arrays(self) -> dict[str, Array]:
        """Flat names to arrays."""
        plain = {name: getattr(self, name) for name in PLAIN}
        return {**plain, **{f"read.{name}": values for name, values in self.probabilities.items()}}

    @classmethod
    def of(cls, arrays: dict[str, Array]) -> Seen:
        read = {name[5:]: values for name, values in arrays.items() if name.startswith("read.")}
        return cls(**{name: arrays[name] for name in PLAIN}, probabilities=read)

    def _each(self, change: Any) -> Seen:
        return Seen.of({name: change(values) for name, values in self.arrays().items()})


PLAIN = ("identity", "image", "structure", "colours", "quality")


def look(judges: Judges, images: Sequence[Image.Image]) -> Seen:
    """Everything the judges see in N pictures: [N, ...]."""
    quality = measure_quality(images)
    return Seen(
        identity=judges.identity(images).numpy(),
        image=judges.image_text(images).numpy(),
        structure=structure(images),
        colours=lab_histograms(images),
        quality=np.stack([quality.peak, quality.spread, quality.neighbours, quality.sharpness], -1),
        probabilities={name: values.numpy() for name, values in judges.attributes(images).items()},
    )


@dataclass(frozen=True)
class Grid:
    """Pictures in row-major order of [P, S], and what was seen in them."""

    pictures: list[Image.Image]
    seen: Seen

    def row(self, prompt: int) -> list[Image.Image]:
        seeds = self.seen.shape[1]
        return self.pictures[prompt * seeds : (prompt + 1) * seeds]

    def beside(self, other: Grid) -> Grid:
        rows = [self.row(p) + other.row(p) for p in range(self.seen.shape[0])]
        return Grid([picture for row in rows for picture in row], self.seen.beside(other.seen))


@dataclass(frozen=True)
class Artist:
    """A pipeline with its judges: draws grids of pictures and looks at them."""

    pipe: FluxPipeline
    spec: BaseSpec
    judges: Judges
    batch_size: int
    cache: Path | None = None

    def draw(self, prompts: Sequence[Prompt], *, seed: int, seeds: int, skip: int = 0) -> Grid:
        """One picture per prompt and seed with the pipeline as it is now."""
        from photoflux.flux.sampling import generate

        texts = [prompt.text for prompt in prompts for _ in range(seeds)]
        numbers = seeds_for(seed, len(prompts), seeds, skip=skip)
        pictures = generate(self.pipe, texts, numbers, spec=self.spec, batch_size=self.batch_size)
        return Grid(pictures, look(self.judges, pictures).grid(len(prompts)))

    def draw_base(self, prompts: Sequence[Prompt], *, seed: int, seeds: int, skip: int = 0) -> Grid:
        """The same with the adapter off. The pictures are kept, and what the judges see in them is looked up anew every time."""
        from photoflux.flux.lora import using_base

        parts = self._drawn_by(prompts, seed=seed, seeds=seeds, skip=skip)
        path = self.cache / f"{fingerprint.name(parts)}.tar" if self.cache else None
        if path and (kept := _read_pictures(path, len(prompts) * seeds)):
            return Grid(kept, look(self.judges, kept).grid(len(prompts)))
        with using_base(self.pipe):
            grid = self.draw(prompts, seed=seed, seeds=seeds, skip=skip)
        if path:
            _write_pictures(path, grid.pictures, parts)
        return grid

    def _drawn_by(self, prompts: Sequence[Prompt], *, seed: int, seeds: int, skip: int) -> dict[str, Any]:
        """What the base's pictures hang on; their last bits also on the device and on how many are drawn at once."""
        asked = {"prompts": [prompt.text for prompt in prompts], "seeds": [seed, seeds, skip]}
        return (
            fingerprint.of_generation(self.spec) | asked | {"device": self.pipe.device.type, "batch": self.batch_size}
        )


def open_artist(base: str, *, prompts: str, batch_size: int, adapter: Path | None = None) -> tuple[Artist, PromptSet]:
    """The base, with the adapter on it if there is one, its judges, and the prompt set, by default the base's own.

    Raises InputError for a base without judges and for an adapter of another base.
    """
    from photoflux.flux.loading import load_pipeline
    from photoflux.flux.lora import load_adapter
    from photoflux.flux.spec import WEIGHTS, load_spec
    from photoflux.judges.encoders import Judges

    settings, spec = get_settings(), load_spec(base)
    if spec.judges is None:
        raise InputError(
            f"base '{spec.name}' has no judges; set `judges` in its spec to a folder of CLIP and DINO weights"
        )
    asked = load_prompts(prompts or spec.name, folder=settings.models_dir)
    device = settings.device or None
    with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        if adapter:
            _same_base(unpack(adapter, Path(scratch)), spec)
        pipe = load_pipeline(spec, device=device)
        if adapter:
            load_adapter(pipe, Path(scratch) / WEIGHTS)
    judges = Judges.load(Path(spec.judges), device=device)
    return Artist(pipe, spec, judges, batch_size, settings.cache_dir / "judging"), asked


def _same_base(manifest: Mapping[str, Any], spec: BaseSpec) -> None:
    trained_on = manifest.get("base", {})
    if trained_on.get("hash") != spec.hash:
        raise InputError(
            f"this adapter was trained on base '{trained_on.get('name')}' ({str(trained_on.get('hash'))[:12]}), "
            f"not on '{spec.name}' ({spec.hash[:12]}); choose that base or fine-tune again"
        )


def _write_pictures(path: Path, pictures: Sequence[Image.Image], parts: Mapping[str, Any]) -> None:
    files = {f"pictures/{i:05}.png": _png(picture) for i, picture in enumerate(pictures)}
    write_tar(path, files=files, manifest={"drawn_by": dict(parts)})


def _read_pictures(path: Path, count: int) -> list[Image.Image] | None:
    """Kept pictures; None when there are none or when they are damaged, which only costs drawing them again."""
    if not path.is_file():
        return None
    try:
        with tempfile.TemporaryDirectory() as scratch:
            unpack(path, Path(scratch))
            pictures = [Image.open(file).convert("RGB") for file in sorted(Path(scratch, "pictures").iterdir())]
        if len(pictures) != count:
            raise ValueError(f"{len(pictures)} of {count} pictures")
        return pictures
    except (InputError, OSError, ValueError) as error:
        log.warning("kept base pictures %s are damaged (%s); drawing them again", path.name, error)
        return None


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="png", compress_level=1)
    return buffer.getvalue()
