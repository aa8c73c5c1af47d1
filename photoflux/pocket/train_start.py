"""Train the base's starting adapter: weights from which any subject is learnt in a few train steps.

Most of a fine-tuning is spent on what is the same for every subject: binding the trigger to one individual while the class stays
unchanged. That part is learnt here, once per base, by first-order meta-learning (Reptile; Nichol, Achiam and Schulman, "On First-Order
Meta-Learning Algorithms", 2018): a subject of the world is fine-tuned for a few steps with fine-tuning's own batches and
loss, and the start moves a little towards the tuned weights; then the next subject. Looks held out for benchmarks are never drawn.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from photoflux.params import FinetuneParams
from photoflux.pocket.tokenizers import TRIGGERS
from photoflux.pocket.training import Budget, save_atomically

if TYPE_CHECKING:
    from photoflux.flux.data import Photos, PreservationTargets
    from photoflux.flux.spec import BaseSpec
    from photoflux.pocket.world import Person, Subject

log = logging.getLogger(__name__)

FILE = "pytorch_lora_weights.safetensors"
STEPS, PHOTOS = 15, 6
REPTILE_RATES = (0.25, 0.05)
"""Interpolation of the start towards the tuned adapter, at the beginning and at the end of the budget."""
DEFAULT_TRIGGER_SHARE = 0.5
"""Share of tasks with the default trigger."""
PRESERVED_PROMPTS, PRESERVED_POINTS = 24, 32
SEED_OFFSET = 90_000
SAVE_EVERY_S, LOG_EVERY_S = 60.0, 20.0


def train_start(spec: BaseSpec, *, state: Path, budget: Budget, seed: int) -> dict[str, Tensor]:
    """Train the start on the exported base `spec`, resuming from `state`; returns its matrices by name."""
    from photoflux.flux import lora

    params = FinetuneParams(base=spec.name, seed=seed)
    learner = Learner(spec, params)
    start, first, spent = _load(state, learner, seed=seed)
    began = saved = logged = time.monotonic()
    losses: list[float] = []
    for number, progress in _tasks(first, budget, spent_s=spent):
        lora.copy_weights(learner.transformer, start)
        losses.append(learner.tune(number))
        rate = REPTILE_RATES[0] + (REPTILE_RATES[1] - REPTILE_RATES[0]) * progress
        for name, tuned in lora.subject_parameters(learner.transformer).items():
            start[name].lerp_(tuned.detach(), rate)
        now = time.monotonic()
        if now - logged > LOG_EVERY_S:
            logged = now
            log.info("start: subject %d, loss %.4f, %3.0f %%", number + 1, np.mean(losses[-26:]), 100 * progress)
        if now - saved > SAVE_EVERY_S:
            saved = now
            _save(state, start, number + 1, spent + now - began, seed)
    _save(state, start, number + 1, spent + time.monotonic() - began, seed)
    return start


def _tasks(first: int, budget: Budget, *, spent_s: float) -> Iterator[tuple[int, float]]:
    """Numbers of the subjects still to be learnt, each with the share of the budget spent so far."""
    began, number = time.monotonic(), first
    while number == first or budget.progress(spent_s=spent_s + time.monotonic() - began, step=number) < 1:
        yield number, budget.progress(spent_s=spent_s + time.monotonic() - began, step=number)
        number += 1


class Learner:
    """The base with a subject adapter, and preservation targets for every class."""

    def __init__(self, spec: BaseSpec, params: FinetuneParams) -> None:
        from photoflux.flux import data, loading, lora
        from photoflux.flux.text import encode_prompts

        self.spec, self.params = spec, params
        self.pipe = loading.load_encoders(spec)
        self.nouns = spec.class_nouns
        prompts = {noun: data.preservation_prompts(noun, self.nouns, count=PRESERVED_PROMPTS) for noun in self.nouns}
        embedded = {noun: encode_prompts(self.pipe, texts, spec=spec) for noun, texts in prompts.items()}
        loading.add_transformer(self.pipe, spec, quantisation=None)
        self.transformer = self.pipe.transformer
        without_start = replace(spec, start_adapter=None)
        lora.attach(self.transformer, spec=without_start, rank=params.rank, alpha=params.alpha, seed=params.seed)
        self.base_targets = {
            noun: data.preservation_targets_along_sampling(
                self.transformer, embeds, spec=spec, seed=params.seed, side_px=spec.resolution_px
            )
            for noun, embeds in embedded.items()
        }

    def tune(self, number: int) -> float:
        """Fine-tune the present adapter to subject `number`; returns the mean loss of the last third."""
        from photoflux.flux import lora, module

        noun, rng = self.nouns[number % len(self.nouns)], np.random.default_rng([SEED_OFFSET, number])
        photos, targets = self._sample_task(noun, rng, number)
        params = self.params.replace(seed=int(rng.integers(10**6)))
        lora.activate(self.transformer, trainable=True)
        self.transformer.train()
        tuning = module.FinetuneModule(self.transformer, spec=self.spec, params=params, photos=photos)
        batches = module.TrainingBatches(photos, targets, spec=self.spec, params=params)
        optimizer, losses = tuning.configure_optimizers(), []
        for step in range(STEPS):
            batch = batches.batch(step)
            errors = tuning.errors(batch)
            loss = errors @ batch.photo_weights + params.preservation * (errors @ batch.preservation_weights)
            optimizer.param_groups[0]["lr"] = params.lr * min(1.0, (step + 1) / max(1, params.warmup_steps))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(tuning.trained.values(), params.clip_norm)
            optimizer.step()
            losses.append(loss.item())
        return float(np.mean(losses[-STEPS // 3 :]))

    def _sample_task(self, noun: str, rng: np.random.Generator, number: int) -> tuple[Photos, PreservationTargets]:
        """Photos of a new subject, and preservation targets of its class and of its photos without the trigger."""
        from photoflux.flux import data
        from photoflux.flux.step import pack
        from photoflux.flux.text import encode_prompts
        from photoflux.pocket.photosets import photo_set
        from photoflux.pocket.world import caption

        trigger = "sks" if rng.random() < DEFAULT_TRIGGER_SHARE else str(rng.choice(TRIGGERS))
        rendered = photo_set(
            _sample_individual(noun, rng), n=PHOTOS, seed=SEED_OFFSET + number, size_px=self.spec.resolution_px
        )
        images = tuple(image.convert("RGB") for image, _ in rendered)
        captions = [caption(scene, trigger=trigger) for _, scene in rendered]
        class_prompts = [data.class_prompt(text, trigger=trigger, class_noun=noun) for text in captions]
        tokens = pack(data.encode_images(self.pipe.vae, images))
        sources = tuple(map(str, range(len(images))))
        photos = data.Photos(tokens, encode_prompts(self.pipe, captions, spec=self.spec), images, sources)
        photo_targets = data.preservation_targets_on_photos(
            self.transformer,
            photos,
            encode_prompts(self.pipe, class_prompts, spec=self.spec),
            spec=self.spec,
            seed=number,
            count=PRESERVED_POINTS,
            serving_share=self.params.serving_sigmas,
        )
        return photos, _random_subset(self.base_targets[noun], rng, PRESERVED_POINTS).concat(photo_targets)


def _sample_individual(noun: str, rng: np.random.Generator) -> Subject | Person:
    from photoflux.pocket.world import sample_person, sample_subject

    return sample_person(rng) if noun == "person" else sample_subject(rng, kind=noun)


def _random_subset(base_targets: PreservationTargets, rng: np.random.Generator, count: int) -> PreservationTargets:
    rows = torch.from_numpy(rng.permutation(len(base_targets))[:count].copy())
    return replace(
        base_targets,
        tokens=base_targets.tokens[rows],
        velocity=base_targets.velocity[rows],
        sigmas=base_targets.sigmas[rows],
        owners=base_targets.owners[rows],
    )


def _load(state: Path, learner: Learner, *, seed: int) -> tuple[dict[str, Tensor], int, float]:
    """The saved start, the number of the next subject, and the seconds spent; a fresh start where none was saved for this seed."""
    from photoflux.flux import lora

    if state.is_file():
        saved: dict[str, Any] = torch.load(state, map_location="cpu", weights_only=True)
        if saved["seed"] == seed:
            return saved["start"], saved["next"], saved["seconds"]
    fresh = {name: p.detach().clone() for name, p in lora.subject_parameters(learner.transformer).items()}
    return fresh, 0, 0.0


def _save(state: Path, start: dict[str, Tensor], following: int, seconds: float, seed: int) -> None:
    save_atomically({"start": start, "next": following, "seconds": seconds, "seed": seed}, state)


def export_start(start: dict[str, Tensor], folder: Path) -> Path:
    """Write the start as a diffusers LoRA in fp16."""
    from diffusers import FluxPipeline

    from photoflux.flux.lora import SUBJECT_ADAPTER

    layers = {name.replace(f".{SUBJECT_ADAPTER}.", "."): matrix.half().contiguous() for name, matrix in start.items()}
    FluxPipeline.save_lora_weights(str(folder), transformer_lora_layers=layers, weight_name=FILE)
    return folder / FILE
