"""Which checkpoint of a training is kept: each is sampled as serving samples it, scored by the judges, and the best is selected."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from photoflux.errors import InputError
from photoflux.flux.data import SURROUNDINGS, Photos, with_article
from photoflux.flux.lora import inference_setup, using_base
from photoflux.flux.sampling import decode, noise_for, sample_latents
from photoflux.flux.text import PromptEmbeds, encode_prompts

if TYPE_CHECKING:
    from diffusers import FluxPipeline

    from photoflux.flux.module import FinetuneModule
    from photoflux.flux.spec import BaseSpec
    from photoflux.judges.encoders import Judges
    from photoflux.vault.sealed_store import SealedStore

log = logging.getLogger(__name__)

PLACES, SEEDS_PER_PLACE = 4, 4
VALIDATION_IMAGES = PLACES * SEEDS_PER_PLACE
BATCH_SIZE = 16
PREVIEWS = (4, 2)
"""How many images of the subject, and of its class, a report shows of each candidate."""
FIRST_SEED = 310_000
LEAKAGE_FREE = 0.10
"""Leakage up to this costs a candidate nothing."""
DIVERSITY_FREE, DIVERSITY_PRICE = 0.9, 2.0
"""Diversity down to this costs a candidate nothing; what is missing costs this many times its identity."""
SPAN_MIN = 0.05
"""Least denominator of identity: where photos are hardly more alike than base images are to them, it would blow up."""


@dataclass(frozen=True)
class ValidationPrompts:
    """What every candidate is sampled on: prompts of the subject and of its class, encoded once, with the same noise.

    `texts` are the class prompts; `noise` is [VALIDATION_IMAGES, 16, H/8, W/8].
    """

    texts: tuple[str, ...]
    subject: PromptEmbeds
    class_prompt: PromptEmbeds
    noise: Tensor

    @classmethod
    def encode(cls, pipe: FluxPipeline, *, spec: BaseSpec, trigger: str, class_noun: str) -> ValidationPrompts:
        places = [SURROUNDINGS[1 + i % PLACES] for i in range(VALIDATION_IMAGES)]
        texts = [f"a photo of {with_article(class_noun)} {place}".strip() for place in places]
        subject = [f"a photo of {trigger} {class_noun} {place}".strip() for place in places]
        return cls(
            texts=tuple(texts),
            subject=encode_prompts(pipe, subject, spec=spec),
            class_prompt=encode_prompts(pipe, texts, spec=spec),
            noise=noise_for(range(FIRST_SEED, FIRST_SEED + VALIDATION_IMAGES), spec=spec),
        )


class Scorer:
    """The quantities of the evaluation on a few images, against the base's with the same noise.

    `identity` is 0 like the base and 1 as alike as two photos, `leakage` the same of images without the trigger, `prompt` the
    text-image cosine over the base's, `diversity` how differently images of one prompt are composed over the base's.
    """

    def __init__(
        self, judges: Judges, photos: Sequence[Image.Image], prompts: Sequence[str], base: Sequence[Image.Image]
    ):
        self.judges, self.photos, self.text = judges, judges.identity(photos), judges.text(prompts)
        self.base_likeness, self.base_follows = self._likeness(base), self._follows(base)
        similarity, n = self.photos @ self.photos.T, len(self.photos)
        real = (similarity.sum().item() - n) / max(1, n * (n - 1))  # without the diagonal: each photo with itself is 1
        self.span = max(SPAN_MIN, real - self.base_likeness)
        self.base_spread = spread(base)

    def __call__(self, subject: Sequence[Image.Image], class_prompt: Sequence[Image.Image]) -> dict[str, float]:
        """Scores of images of the subject and of its class, both [PLACES * n] with the places in turn."""
        identity, leakage = (
            (self._likeness(images) - self.base_likeness) / self.span for images in (subject, class_prompt)
        )
        prompt = self._follows(subject) / max(0.05, self.base_follows)
        diversity = spread(subject) / max(1e-6, self.base_spread)
        # Likeness counts as far as prompts are followed; more than the base's following buys nothing. Compositions that became
        # alike cost most: training at high noise levels makes them so (docs/decisions/0008).
        score = (
            identity * min(1.0, max(0.0, prompt))
            - max(0.0, leakage - LEAKAGE_FREE)
            - DIVERSITY_PRICE * max(0.0, DIVERSITY_FREE - diversity)
        )
        return {"identity": identity, "prompt": prompt, "leakage": leakage, "diversity": diversity, "score": score}

    def _likeness(self, images: Sequence[Image.Image]) -> float:
        return (self.judges.identity(images) @ self.photos.T).mean().item()

    def _follows(self, images: Sequence[Image.Image]) -> float:
        return (self.judges.image_text(images) * self.text).sum(-1).mean().item()


def spread(images: Sequence[Image.Image]) -> float:
    """Mean structure distance between images of one place, given images with the `PLACES` places in turn."""
    from photoflux.judges.copying import structure, structure_spread

    structures = structure(images)
    by_place = structures.reshape(-1, PLACES, *structures.shape[1:]).swapaxes(0, 1)
    return float(structure_spread(by_place).mean())


class CheckpointSelector:
    """Samples, scores and stores the averaged weights, without the training adapter, as they will be served.

    Candidates are compared with the trained photos, each of them once. The held-out photos are the evaluation's: their loss is
    reported and selects nothing (docs/decisions/0024).
    """

    def __init__(
        self,
        pipe: FluxPipeline,
        prompts: ValidationPrompts,
        *,
        spec: BaseSpec,
        photos: Photos,
        heldout: Photos,
        store: SealedStore,
    ) -> None:
        self.pipe, self.prompts, self.spec, self.heldout, self.store = pipe, prompts, spec, heldout, store
        with using_base(pipe):
            self.base = self._sample(prompts.class_prompt)
        judges = load_judges(spec, device=str(pipe.device))
        self.scorer = judges and Scorer(judges, photos.originals, prompts.texts, self.base)

    def score(self, module: FinetuneModule) -> dict[str, Any]:
        """Sample the averaged weights of this step, judge the images, store both, and return the scores."""
        with inference_setup(module.transformer, weights=module.average):
            subject, class_prompt = self._sample(self.prompts.subject), self._sample(self.prompts.class_prompt)
            loss = module.validation_loss(self.heldout) if len(self.heldout) else None
        scores = {"validation": loss, **(self.scorer(subject, class_prompt) if self.scorer else {})}
        self._save(module.train_step, module.average, [*subject[: PREVIEWS[0]], *class_prompt[: PREVIEWS[1]]])
        summary = ", ".join(f"{name} {value:.3f}" for name, value in scores.items() if value is not None)
        log.info("candidate of step %d: %s", module.train_step, summary)
        return {"step": module.train_step, **scores}

    @torch.no_grad()
    def _sample(self, embeds: PromptEmbeds) -> list[Image.Image]:
        images: list[Image.Image] = []
        for rows in torch.arange(len(embeds)).split(self._batch_size):
            latents = sample_latents(self.pipe.transformer, embeds.take(rows), self.prompts.noise[rows], spec=self.spec)
            images += decode(self.pipe.vae, latents)
        return images

    @property
    def _batch_size(self) -> int:
        """As many images as make one of 512 x 512, BATCH_SIZE at most."""
        return max(1, min(BATCH_SIZE, (512 // self.spec.resolution_px) ** 2))

    def _save(self, step: int, weights: Mapping[str, Tensor], previews: Sequence[Image.Image]) -> None:
        from safetensors.torch import save

        self.store.put(_weights(step), save({name: value.cpu().contiguous() for name, value in weights.items()}))
        for number, image in enumerate(previews):
            buffer = io.BytesIO()
            image.save(buffer, format="png")
            self.store.put(f"candidate-{step:05d}-{number}.png", buffer.getvalue())

    def weights(self, step: int) -> dict[str, Tensor]:
        """The averaged weights that were stored for a candidate."""
        from safetensors.torch import load

        cached = self.store.get(_weights(step))
        if cached is None:
            raise InputError(f"candidate {step} is gone from {self.store.folder}; remove that folder and train again")
        return load(cached)

    def previews(self, step: int) -> list[bytes]:
        """A candidate's stored images as PNG files: of the subject, then of its class."""
        names = self.store.names(f"candidate-{step:05d}-*.png")
        return [data for name in names if (data := self.store.get(name))]


def _weights(step: int) -> str:
    return f"candidate-{step:05d}.safetensors"


def select(candidates: Sequence[Mapping[str, Any]], *, how: str) -> Mapping[str, Any]:
    """The candidate with the best score, or the last one where `how` is "last" or the base has no judges."""
    if how == "last" or "score" not in candidates[-1]:
        return candidates[-1]
    return max(candidates, key=lambda candidate: candidate["score"])


def load_judges(spec: BaseSpec, *, device: str) -> Judges | None:
    """The base's judges; None, with a warning, for a base without."""
    if spec.judges is None:
        log.warning("base '%s' has no judges: the last candidate is kept", spec.name)
        return None
    from photoflux.judges.encoders import Judges

    return Judges.load(Path(spec.judges), device=device)
