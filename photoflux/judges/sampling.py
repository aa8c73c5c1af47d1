"""Grids of images sampled from a model, what the judges make of them, and the cache of the base's images."""

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
class JudgeOutputs:
    """What the judges make of images; every array starts with the grid [P, S] (or [N] for photos)."""

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
        """The most probable class of each image."""
        return self.probabilities[attribute].argmax(-1)

    def as_grid(self, prompts: int) -> JudgeOutputs:
        """[N, ...] as [P, S, ...]."""
        reshaped = {name: values.reshape(prompts, -1, *values.shape[1:]) for name, values in self.arrays().items()}
        return JudgeOutputs.from_arrays(reshaped)

    def concat(self, other: JudgeOutputs) -> JudgeOutputs:
        """Two grids of the same prompts as one, with the seeds of both."""
        mine, theirs = self.arrays(), other.arrays()
        return JudgeOutputs.from_arrays({name: np.concatenate([mine[name], theirs[name]], axis=1) for name in mine})

    def arrays(self) -> dict[str, Array]:
        """Flat names to arrays."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        return {**arrays, **{f"read.{name}": values for name, values in self.probabilities.items()}}

    @classmethod
    def from_arrays(cls, arrays: dict[str, Array]) -> JudgeOutputs:
        probabilities = {name[5:]: values for name, values in arrays.items() if name.startswith("read.")}
        return cls(**{name: arrays[name] for name in ARRAYS}, probabilities=probabilities)


ARRAYS = ("identity", "image", "structure", "colours", "quality")


def run_judges(judges: Judges, images: Sequence[Image.Image]) -> JudgeOutputs:
    """Every judge's output for N images: [N, ...]."""
    quality = measure_quality(images)
    return JudgeOutputs(
        identity=judges.identity(images).numpy(),
        image=judges.image_text(images).numpy(),
        structure=structure(images),
        colours=lab_histograms(images),
        quality=np.stack([quality.peak, quality.spread, quality.neighbours, quality.sharpness], -1),
        probabilities={name: values.numpy() for name, values in judges.attributes(images).items()},
    )


@dataclass(frozen=True)
class ImageGrid:
    """Images in row-major order of [P, S], and what the judges make of them."""

    images: list[Image.Image]
    outputs: JudgeOutputs

    def row(self, prompt: int) -> list[Image.Image]:
        seeds = self.outputs.shape[1]
        return self.images[prompt * seeds : (prompt + 1) * seeds]

    def concat(self, other: ImageGrid) -> ImageGrid:
        """Two grids of the same prompts as one, with the seeds of both."""
        rows = [self.row(p) + other.row(p) for p in range(self.outputs.shape[0])]
        return ImageGrid([image for row in rows for image in row], self.outputs.concat(other.outputs))


@dataclass(frozen=True)
class ImageSampler:
    """A pipeline with its judges: samples grids of images and judges them. `cache` holds the base's images."""

    pipe: FluxPipeline
    spec: BaseSpec
    judges: Judges
    batch_size: int
    cache: Path | None = None

    def sample(self, prompts: Sequence[Prompt], *, seed: int, seeds: int, skip: int = 0) -> ImageGrid:
        """One image per prompt and seed with the pipeline as it is now."""
        from photoflux.flux.sampling import generate

        texts = [prompt.text for prompt in prompts for _ in range(seeds)]
        numbers = seeds_for(seed, len(prompts), seeds, skip=skip)
        images = generate(self.pipe, texts, numbers, spec=self.spec, batch_size=self.batch_size)
        return ImageGrid(images, run_judges(self.judges, images).as_grid(len(prompts)))

    def sample_base(self, prompts: Sequence[Prompt], *, seed: int, seeds: int, skip: int = 0) -> ImageGrid:
        """The same with the adapter off. Images are cached; the judges run anew every time."""
        from photoflux.flux.lora import using_base

        # The last bits of an image depend also on the device, and on how many are sampled at once.
        key = fingerprint.of_generation(self.spec) | {
            "prompts": [prompt.text for prompt in prompts],
            "seeds": [seed, seeds, skip],
            "device": self.pipe.device.type,
            "batch": self.batch_size,
        }
        path = self.cache / f"{fingerprint.name(key)}.tar" if self.cache else None
        if path and (cached := _read_images(path, len(prompts) * seeds)):
            return ImageGrid(cached, run_judges(self.judges, cached).as_grid(len(prompts)))
        with using_base(self.pipe):
            grid = self.sample(prompts, seed=seed, seeds=seeds, skip=skip)
        if path:
            _write_images(path, grid.images, key)
        return grid


def open_sampler(
    base: str, *, prompts: str, batch_size: int, adapter: Path | None = None
) -> tuple[ImageSampler, PromptSet]:
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
    prompt_set = load_prompts(prompts or spec.name, folder=settings.models_dir)
    device = settings.device or None
    with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        if adapter:
            _check_same_base(unpack(adapter, Path(scratch)), spec)
        pipe = load_pipeline(spec, device=device)
        if adapter:
            load_adapter(pipe, Path(scratch) / WEIGHTS)
    judges = Judges.load(Path(spec.judges), device=device)
    return ImageSampler(pipe, spec, judges, batch_size, settings.cache_dir / "judging"), prompt_set


def _check_same_base(manifest: Mapping[str, Any], spec: BaseSpec) -> None:
    trained_on = manifest.get("base", {})
    if trained_on.get("hash") != spec.hash:
        raise InputError(
            f"this adapter was trained on base '{trained_on.get('name')}' ({str(trained_on.get('hash'))[:12]}), "
            f"not on '{spec.name}' ({spec.hash[:12]}); choose that base or fine-tune again"
        )


def _write_images(path: Path, images: Sequence[Image.Image], key: Mapping[str, Any]) -> None:
    files = {}
    for i, image in enumerate(images):
        buffer = io.BytesIO()
        image.save(buffer, format="png", compress_level=1)
        files[f"images/{i:05}.png"] = buffer.getvalue()
    write_tar(path, files=files, manifest={"sampled_by": dict(key)})


def _read_images(path: Path, count: int) -> list[Image.Image] | None:
    """Cached images; None where there are none, or where they are damaged: then they are only sampled again."""
    if not path.is_file():
        return None
    try:
        with tempfile.TemporaryDirectory() as scratch:
            unpack(path, Path(scratch))
            images = [Image.open(file).convert("RGB") for file in sorted(Path(scratch, "images").iterdir())]
        if len(images) != count:
            raise ValueError(f"{len(images)} of {count} images")
        return images
    except (InputError, OSError, ValueError) as error:
        log.warning("cached base images %s are damaged (%s); sampling them again", path.name, error)
        return None
