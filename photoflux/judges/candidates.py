"""The contest of candidates: the adapter as it stands now and then, drawn as serving draws it, judged, and the best."""

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
from photoflux.flux.lora import drawing, using_base
from photoflux.flux.sampling import decode, noise_for, sample_latents
from photoflux.flux.text import PromptEmbeds, encode_prompts

if TYPE_CHECKING:
    from diffusers import FluxPipeline

    from photoflux.flux.module import FineTuning
    from photoflux.flux.spec import BaseSpec
    from photoflux.judges.encoders import Judges
    from photoflux.vault.sealed_store import SealedStore

log = logging.getLogger(__name__)

PLACES_DRAWN, SEEDS_DRAWN = 4, 4
DRAWN = PLACES_DRAWN * SEEDS_DRAWN
DRAWN_AT_ONCE = 16
SHOWN = (4, 2)
"""How many pictures of the subject, and of its class, a report shows of each candidate."""
FIRST_SEED = 310_000
LEAKAGE_FREE = 0.10
"""Leakage up to this costs a candidate nothing."""
DIVERSITY_FREE, DIVERSITY_PRICE = 0.9, 2.0
"""Diversity kept down to this costs a candidate nothing; what is missing costs this many times its identity."""
SPAN_MIN = 0.05
"""Where real photos are hardly more alike than base pictures are to them, the judge cannot tell the subject."""


@dataclass(frozen=True)
class Drawing:
    """What every candidate draws: subject and class prompts with the same noise [DRAWN, 16, H/8, W/8], encoded once."""

    prompts: tuple[str, ...]
    subject: PromptEmbeds
    plain: PromptEmbeds
    noise: Tensor

    @classmethod
    def make(cls, pipe: FluxPipeline, *, spec: BaseSpec, trigger: str, class_noun: str) -> Drawing:
        places = [SURROUNDINGS[1 + i % PLACES_DRAWN] for i in range(DRAWN)]
        plain = [f"a photo of {with_article(class_noun)} {place}".strip() for place in places]
        subject = [f"a photo of {trigger} {class_noun} {place}".strip() for place in places]
        noise = noise_for(range(FIRST_SEED, FIRST_SEED + DRAWN), spec=spec)
        return cls(
            tuple(plain), encode_prompts(pipe, subject, spec=spec), encode_prompts(pipe, plain, spec=spec), noise
        )


class Scorer:
    """Identity gain, prompt following and leakage of a few pictures against the base with the same noise.

    `identity` is 0 like the base and 1 as alike as two photos, `leakage` the same of pictures without the trigger,
    `prompt` the text-image cosine over the base's, `diversity` how differently pictures of one prompt are composed over
    the base's: the quantities of the evaluation, on fewer pictures.
    """

    def __init__(
        self, judges: Judges, photos: Sequence[Image.Image], prompts: Sequence[str], base: Sequence[Image.Image]
    ):
        self.judges, self.photos, self.words = judges, judges.identity(photos), judges.text(prompts)
        self.base_likeness, self.base_follows = self._likeness(base), self._follows(base)
        similarity, n = self.photos @ self.photos.T, len(self.photos)
        real = (similarity.sum().item() - n) / max(1, n * (n - 1))
        self.span = max(SPAN_MIN, real - self.base_likeness)
        self.base_spread = spread(base)

    def __call__(self, subject: Sequence[Image.Image], plain: Sequence[Image.Image]) -> dict[str, float]:
        """Scores of subject pictures and class pictures, both [PLACES_DRAWN * n] with the places in turn."""
        identity, leakage = ((self._likeness(drawn) - self.base_likeness) / self.span for drawn in (subject, plain))
        prompt = self._follows(subject) / max(0.05, self.base_follows)
        diversity = spread(subject) / max(1e-6, self.base_spread)
        score = (
            identity * min(1.0, max(0.0, prompt))
            - max(0.0, leakage - LEAKAGE_FREE)
            - DIVERSITY_PRICE * max(0.0, DIVERSITY_FREE - diversity)
        )
        return {"identity": identity, "prompt": prompt, "leakage": leakage, "diversity": diversity, "score": score}

    def _likeness(self, images: Sequence[Image.Image]) -> float:
        return (self.judges.identity(images) @ self.photos.T).mean().item()

    def _follows(self, images: Sequence[Image.Image]) -> float:
        return (self.judges.image_text(images) * self.words).sum(-1).mean().item()


def spread(pictures: Sequence[Image.Image]) -> float:
    """Mean structure distance of pictures of one place, of pictures with `PLACES_DRAWN` places in turn."""
    from photoflux.judges.copying import structure, structure_spread

    structures = structure(pictures)
    by_place = structures.reshape(-1, PLACES_DRAWN, *structures.shape[1:]).swapaxes(0, 1)
    return float(structure_spread(by_place).mean())


class Contest:
    """Draws, judges and keeps candidates in `kept`. Judges see the plain serving stack: no training adapter.

    Candidates are held against the trained photos, each of them once. Held-out photos judge the chosen one later, so their
    loss is told and chooses nothing.
    """

    def __init__(
        self, pipe: FluxPipeline, drawn: Drawing, *, spec: BaseSpec, photos: Photos, heldout: Photos, kept: SealedStore
    ) -> None:
        self.pipe, self.drawn, self.spec, self.heldout, self.kept = pipe, drawn, spec, heldout, kept
        with using_base(pipe):
            self.base = self._pictures(drawn.plain)
        judges = load_judges(spec, device=str(pipe.device))
        self.scorer = judges and Scorer(judges, photos.originals, drawn.prompts, self.base)

    def enter(self, module: FineTuning) -> dict[str, Any]:
        """Judge the module's averaged weights as they are now, and keep them."""
        with drawing(module.transformer, weights=module.average):
            subject, plain = self._pictures(self.drawn.subject), self._pictures(self.drawn.plain)
            loss = module.validation_loss(self.heldout) if len(self.heldout) else None
        scores = {"validation": loss, **(self.scorer(subject, plain) if self.scorer else {})}
        self._keep(module.done, module.average, [*subject[: SHOWN[0]], *plain[: SHOWN[1]]])
        told = ", ".join(f"{name} {value:.3f}" for name, value in scores.items() if value is not None)
        log.info("candidate of step %d: %s", module.done, told)
        return {"step": module.done, **scores}

    @torch.no_grad()
    def _pictures(self, embeds: PromptEmbeds) -> list[Image.Image]:
        pictures: list[Image.Image] = []
        for rows in torch.arange(len(embeds)).split(self._at_once):
            latents = sample_latents(self.pipe.transformer, embeds.take(rows), self.drawn.noise[rows], spec=self.spec)
            pictures += decode(self.pipe.vae, latents)
        return pictures

    @property
    def _at_once(self) -> int:
        """Large pictures one by one, small ones together."""
        return max(1, min(DRAWN_AT_ONCE, (512 // self.spec.resolution_px) ** 2))

    def _keep(self, step: int, weights: Mapping[str, Tensor], pictures: Sequence[Image.Image]) -> None:
        from safetensors.torch import save

        self.kept.put(_weights(step), save({name: value.cpu().contiguous() for name, value in weights.items()}))
        for number, picture in enumerate(pictures):
            buffer = io.BytesIO()
            picture.save(buffer, format="png")
            self.kept.put(f"candidate-{step:05d}-{number}.png", buffer.getvalue())

    def weights(self, step: int) -> dict[str, Tensor]:
        """The averaged weights of a candidate."""
        from safetensors.torch import load

        kept = self.kept.get(_weights(step))
        if kept is None:
            raise InputError(f"candidate {step} is gone from {self.kept.folder}; remove that folder and train again")
        return load(kept)

    def previews(self, step: int) -> list[bytes]:
        """A candidate's pictures as PNG files: of the subject, then of its class."""
        names = self.kept.names(f"candidate-{step:05d}-*.png")
        return [data for name in names if (data := self.kept.get(name))]


def _weights(step: int) -> str:
    return f"candidate-{step:05d}.safetensors"


def chosen(candidates: Sequence[Mapping[str, Any]], *, select: str) -> Mapping[str, Any]:
    """The candidate to keep: the best score, or the last where that is asked for or nothing was scored."""
    if select == "last" or "score" not in candidates[-1]:
        return candidates[-1]
    return max(candidates, key=lambda candidate: candidate["score"])


def load_judges(spec: BaseSpec, *, device: str) -> Judges | None:
    """The base's judges, or None with a word about what that means."""
    if spec.judges is None:
        log.warning("base '%s' has no judges: the last candidate is kept", spec.name)
        return None
    from photoflux.judges.encoders import Judges

    return Judges.load(Path(spec.judges), device=device)
