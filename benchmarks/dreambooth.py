"""The rival: DreamBooth as people run it, the public diffusers recipe for a FLUX LoRA with class pictures.

The base draws pictures of the class before training. Each batch is half photos, each under its caption, and half class pictures under one
prompt that names the class; the loss is the mean squared velocity error of the one half plus that of the other. Noise levels come evenly
from the schedule's thousand, and all weigh the same; AdamW at a constant rate, gradients clipped at 1, the last weights. Nothing is
averaged, varied or chosen. `started` begins at the base's starting adapter instead of a fresh one.

`tests/benchmarks/test_dreambooth.py` holds sampling, loss, gradient and step to the published script's. What differs from it: the base's
training adapter acts while it trains, as people do with a distilled base, which the script does not know; latents are the posterior's mode,
as everywhere here, and not a draw from it; class pictures do not go through JPEG, and are 48 instead of 100; and
the captions, the layers, the rank and the strength are those of our own adapters.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from photoflux.flux.data import encode_images, photo_grid, read_photos
from photoflux.flux.lora import attach, inference_setup, save_adapter, subject_parameters
from photoflux.flux.sampling import decode, generate, sample_latents
from photoflux.flux.step import TokenGrid, add_noise, pack, predict
from photoflux.flux.text import PromptEmbeds, encode_prompts
from photoflux.manifest import digest, unpack, write_tar
from photoflux.vault.sealed_store import SealedStore
from photoflux.wording import with_article

if TYPE_CHECKING:
    from diffusers import FluxPipeline
    from PIL import Image

    from photoflux.flux.data import Photos
    from photoflux.flux.spec import BaseSpec
    from photoflux.judges.encoders import Judges

log = logging.getLogger("benchmarks.dreambooth")

LEVELS = 1000
"""Noise levels of the schedule that is trained on: 1, .999, … .001."""
CLASS_PICTURES, CLASS_SEED, BATCH_SIZE = 48, 600_000, 16
PRIOR_WEIGHT, CLIP_NORM = 1.0, 1.0
ADAMW = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-4}
WEIGHTS = "pytorch_lora_weights.safetensors"
KEY = "plain://demo"
PROGRESS_EVERY_S = 5.0


@dataclass(frozen=True)
class DreamBooth:
    """What whoever runs the recipe decides."""

    lr: float
    steps: int
    started: bool = False
    rank: int = 16
    alpha: float = 16.0
    batch_size: int = 4
    seed: int = 0


class Batch(NamedTuple):
    """B photos, then B class pictures: `clean`, `noise` [2B, T, 64], `sigmas` [2B], and each row's prompt."""

    clean: Tensor
    noise: Tensor
    sigmas: Tensor
    prompts: PromptEmbeds


@dataclass(frozen=True)
class TrainingData:
    """What is trained on, encoded once: `photos` [N, T, 64], `pictures` of the class [M, T, 64], the N photos' prompts and the class's."""

    photos: Tensor
    pictures: Tensor
    prompts: PromptEmbeds

    def batch(self, step: int, *, size: int, seed: int) -> Batch:
        """Batch number `step` of `size` photos and as many class pictures; it depends on (seed, step) alone.

        Over an epoch, which is as long as the longer of the two, each picture comes once, and the shorter begins again.
        """
        from photoflux.flux.module import in_turn

        rows = in_turn(max(len(self.photos), len(self.pictures)), train_step=step, count=size, seed=seed)
        own, others = ([row % len(part) for row in rows] for part in (self.photos, self.pictures))
        clean = torch.cat([self.photos[own], self.pictures[others]])
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        noise = torch.randn(clean.shape, generator=generator)
        sigmas = sample_sigmas(len(clean), generator=generator)
        return Batch(clean, noise, sigmas, self.prompts.take(own + [len(self.photos)] * size))

    def to(self, device: Any) -> TrainingData:
        return TrainingData(self.photos.to(device), self.pictures.to(device), self.prompts.to(device))


def sample_sigmas(count: int, *, generator: torch.Generator) -> Tensor:
    """Noise levels [count], each of the schedule's as likely as any other."""
    return (LEVELS - (torch.rand(count, generator=generator) * LEVELS).long()) / LEVELS


def loss_of(transformer: Any, batch: Batch, grid: TokenGrid) -> Tensor:
    """Mean squared velocity error of the photos, plus that of the class pictures."""
    noisy = add_noise(batch.clean, batch.noise, batch.sigmas)
    velocity = predict(transformer, noisy, batch.sigmas, batch.prompts, grid)
    errors = (velocity.float() - (batch.noise.float() - batch.clean.float())).square().flatten(1).mean(1)
    photos, pictures = errors.chunk(2)
    return photos.mean() + PRIOR_WEIGHT * pictures.mean()


def train(transformer: Any, material: TrainingData, grid: TokenGrid, how: DreamBooth) -> Iterator[tuple[int, float]]:
    """Train the subject adapter on the transformer; yields every finished step with its loss.

    Whoever runs it saves or judges the adapter between two steps.
    """
    trained = list(subject_parameters(transformer).values())
    optimizer = torch.optim.AdamW(trained, lr=how.lr, **ADAMW)
    transformer.train()
    for step in range(how.steps):
        loss = loss_of(transformer, material.batch(step, size=how.batch_size, seed=how.seed), grid)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        optimizer.step()
        yield step + 1, loss.item()
    transformer.eval()


def add_adapter(transformer: Any, *, spec: BaseSpec, how: DreamBooth) -> None:
    """Add the adapter that is trained: the base's starting adapter, or the script's, A from N(0, 1 / rank²) and B = 0.

    The base's training adapter is added frozen beside it.
    """
    start = spec.start_adapter if how.started else None
    attach(transformer, spec=replace(spec, start_adapter=start), rank=how.rank, alpha=how.alpha, seed=how.seed)
    if start is None:
        generator = torch.Generator().manual_seed(how.seed)
        with torch.no_grad():
            for name, parameter in subject_parameters(transformer).items():
                if ".lora_A." in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) / how.rank)


@dataclass
class TrainingTimes:
    """What a training took, in seconds, and how its adapter was judged on the way. Saving and judging are not counted."""

    prepared_s: float = 0.0
    trained_s: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.prepared_s + self.trained_s


def run(
    dataset: Path,
    *,
    adapters: Mapping[int, Path],
    spec: BaseSpec,
    how: DreamBooth,
    cache: Path,
    judges: Judges | None = None,
    judged: Collection[int] = (),
) -> TrainingTimes:
    """Train on the dataset's photos, and write the adapter as it is after each number of steps in `adapters`.

    With `judges`, it is judged after each number in `judged`, as fine-tuning judges its candidates. `cache` keeps latents.
    """
    from photoflux.flux.loading import load_pipeline

    times, timer = TrainingTimes(), LapTimer()
    with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        manifest = unpack(dataset, Path(scratch))
        pipe = load_pipeline(spec)
        photos = _photos(Path(scratch), manifest, pipe, spec=spec, cache=cache)
    subject, grid = manifest["subject"], photo_grid(photos, device=pipe.device)
    material = _material(photos, subject, pipe, spec=spec, cache=cache).to(pipe.device)
    times.prepared_s = timer.lap()
    checkpoint_judge = CheckpointJudge(pipe, photos, subject, spec=spec, judges=judges) if judges and judged else None
    timer.lap()
    add_adapter(pipe.transformer, spec=spec, how=how)
    times.prepared_s += timer.lap()
    for step, loss in train(pipe.transformer, material, grid, how):
        times.trained_s += timer.lap()
        if checkpoint_judge and step in judged:
            times.curve.append({"seconds": round(times.trained_s, 3), "step": step, **checkpoint_judge.scores()})
        if step in adapters:
            _write(adapters[step], dataset, subject, pipe.transformer, spec=spec, how=how, step=step)
        timer.log_progress(f"step {step} of {how.steps}, loss {loss:.4f}, {step / times.trained_s:.1f} steps/s")
        timer.lap()
    return times


class LapTimer:
    """Seconds since the last lap, and a log line every few seconds."""

    def __init__(self) -> None:
        self.before = self.said = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        passed, self.before = now - self.before, now
        return passed

    def log_progress(self, text: str) -> None:
        if time.perf_counter() - self.said > PROGRESS_EVERY_S:
            self.said = time.perf_counter()
            log.info("%s", text)


def class_prompt_of(subject: Mapping[str, Any]) -> str:
    """The one prompt of all class pictures."""
    return f"a photo of {with_article(subject['class_noun'])}"


def _photos(folder: Path, manifest: Mapping[str, Any], pipe: FluxPipeline, *, spec: BaseSpec, cache: Path) -> Photos:
    """The photos that are trained on, each once as it was cut, under its caption."""
    items: dict[str, Any] = {}
    for item in manifest["items"]:
        if item["split"] == "train":
            items.setdefault(item["source"], item)
    return read_photos(folder, list(items.values()), pipe, spec=spec, cache=SealedStore(cache, KEY))


def _material(
    photos: Photos, subject: Mapping[str, Any], pipe: FluxPipeline, *, spec: BaseSpec, cache: Path
) -> TrainingData:
    of_class = encode_prompts(pipe, [class_prompt_of(subject)], spec=spec)
    prompts = PromptEmbeds.concat([photos.captions.to(pipe.device), of_class])
    return TrainingData(photos.tokens, class_pictures(pipe, subject, spec=spec, cache=cache), prompts)


def class_pictures(pipe: FluxPipeline, subject: Mapping[str, Any], *, spec: BaseSpec, cache: Path) -> Tensor:
    """Pictures of the class as the base draws them, encoded: [CLASS_PICTURES, T, 64]."""
    from safetensors.torch import load, save

    store, name = (
        SealedStore(cache, KEY),
        f"class-{spec.hash[:16]}-{subject['class_noun']}-{CLASS_PICTURES}.safetensors",
    )
    if found := store.get(name):
        return load(found)["tokens"]
    seeds = range(CLASS_SEED, CLASS_SEED + CLASS_PICTURES)
    drawn = generate(pipe, [class_prompt_of(subject)] * CLASS_PICTURES, seeds, spec=spec, batch_size=BATCH_SIZE)
    tokens = pack(encode_images(pipe.vae, drawn)).contiguous()
    store.put(name, save({"tokens": tokens}))
    return tokens


def _write(
    adapter: Path,
    dataset: Path,
    subject: Mapping[str, Any],
    transformer: Any,
    *,
    spec: BaseSpec,
    how: DreamBooth,
    step: int,
) -> None:
    """The adapter as it is now, as an artifact that evaluation reads like any other."""
    with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        weights = save_adapter(transformer, Path(scratch) / WEIGHTS)
        lineage = {
            "subject": dict(subject),
            "base": {"name": spec.name, "hash": spec.hash, "spec": spec.name},
            "training_adapter": digest(spec.training_adapter) if spec.training_adapter else None,
            "start_adapter": digest(spec.start_adapter) if how.started and spec.start_adapter else None,
            "params": {"recipe": "dreambooth", **asdict(how), "steps": step, "class_pictures": CLASS_PICTURES},
            "dataset": digest(dataset),
            "weights": digest(weights),
            "step": step,
        }
        write_tar(adapter, files={WEIGHTS: weights}, manifest=lineage)


class CheckpointJudge:
    """Judges the adapter as fine-tuning judges its candidates: on the same prompts and noise, by the same scores."""

    def __init__(
        self, pipe: FluxPipeline, photos: Photos, subject: Mapping[str, Any], *, spec: BaseSpec, judges: Judges
    ) -> None:
        from photoflux.judges.checkpoint_selection import Scorer, ValidationPrompts

        self.pipe, self.spec = pipe, spec
        self.prompts = ValidationPrompts.encode(
            pipe, spec=spec, trigger=subject["trigger"], class_noun=subject["class_noun"]
        )
        self.scorer = Scorer(judges, photos.originals, self.prompts.texts, self._sample(self.prompts.class_prompt))

    def scores(self) -> dict[str, float]:
        with inference_setup(self.pipe.transformer):
            return self.scorer(self._sample(self.prompts.subject), self._sample(self.prompts.class_prompt))

    def _sample(self, embeds: PromptEmbeds) -> Sequence[Image.Image]:
        latents = sample_latents(self.pipe.transformer, embeds, self.prompts.noise, spec=self.spec)
        return decode(self.pipe.vae, latents)
