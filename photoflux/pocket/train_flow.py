"""Flow-matching pretraining of the pocket transformer, with its text encoders, on cached latents.

Two stages. `train_flow` learns the plain velocity `noise - latents` and, on a tenth of the captions left empty, the
unconditional one. `distil` then teaches one forward pass what several with classifier-free guidance do, so that the
base, like FLUX.1 [schnell], is sampled in four steps with guidance off.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from photoflux.flux.step import TokenGrid, pack, unpack
from photoflux.pocket.data import Cache
from photoflux.pocket.tokenizers import TRIGGERS
from photoflux.pocket.training import Budget, Recipe, Run, math_attention, mixed_precision

if TYPE_CHECKING:
    from diffusers import FluxPipeline

log = logging.getLogger(__name__)

EMPTY_CAPTIONS = 0.1
SUBJECT_WEIGHT = 3.0
"""Loss weight of the subject's tokens: the background is most of an image and depends least on the caption."""
LOGIT_MEAN = 0.3
"""Mean of the logit of sigma, above 0 because colours and places are decided at high noise."""
HARD_WORDS, HARD_SHARE = ("details", *TRIGGERS), 0.5
"""Accent colours ("… with blue details") and names are hard to learn: HARD_SHARE of each batch have a caption with one."""
UNIFORM_SIGMAS = 0.2
"""Share of noise levels drawn uniformly: a logit-normal alone seldom sees the pure noise that four steps start from."""
GUIDANCE, SUBSTEPS = 2.5, 3
"""Guidance scale and number of Euler steps that distillation folds into one pass."""
FLOW = Recipe(lr=2e-3, muon_lr=4e-3, warmup_steps=200)
DISTIL = Recipe(lr=5e-4, muon_lr=1e-3, warmup_steps=50)


class Flow(nn.Module):
    """Transformer and text encoders as one module: (noisy tokens, sigma, caption ids) -> velocity."""

    def __init__(self, pipe: FluxPipeline) -> None:
        super().__init__()
        self.transformer = pipe.transformer
        self.text_encoder = pipe.text_encoder
        self.text_encoder_2 = pipe.text_encoder_2

    def forward(self, tokens: Tensor, sigma: Tensor, clip_ids: Tensor, t5_ids: Tensor) -> Tensor:
        """`tokens [B, T, 64]`, `sigma [B]` in (0, 1], ids `[B, L]` -> `[B, T, 64]`. T5 gets no mask, as in FLUX."""
        side = int(tokens.shape[1] ** 0.5) * 2
        grid = TokenGrid.of(torch.empty(0, 0, side, side), text_length=t5_ids.shape[1], device=tokens.device)
        return self.transformer(
            hidden_states=tokens,
            timestep=sigma,
            guidance=None,
            pooled_projections=self.text_encoder(clip_ids).pooler_output,
            encoder_hidden_states=self.text_encoder_2(t5_ids)[0],
            txt_ids=grid.text,
            img_ids=grid.image,
            return_dict=False,
        )[0]


@dataclass(frozen=True)
class Samples:
    """One training batch: clean and noise tokens `[B, T, 64]`, `sigma [B]`, caption ids `[B, L]`, `coverage [B, T]`.

    Coverage is the share of a token that shows the subject.
    """

    clean: Tensor
    noise: Tensor
    sigma: Tensor
    clip_ids: Tensor
    t5_ids: Tensor
    coverage: Tensor

    def loss(self, velocity: Tensor, target: Tensor) -> Tensor:
        """Weighted mean of squared errors, `[B, T, 64]` each: `SUBJECT_WEIGHT` on the subject, 1 on the background."""
        weight = (1 + (SUBJECT_WEIGHT - 1) * self.coverage)[:, :, None]
        return (weight * (velocity.float() - target.float()).square()).mean() / weight.mean()

    @property
    def noisy(self) -> Tensor:
        level = self.sigma[:, None, None]
        return (1 - level) * self.clean + level * self.noise

    @property
    def velocity(self) -> Tensor:
        return self.noise - self.clean


def sample_sigmas(count: int, generator: torch.Generator) -> Tensor:
    """Noise levels in (0, 1): `sigmoid(N(LOGIT_MEAN, 1))`, a fifth of them uniform."""
    how: dict[str, Any] = {"generator": generator, "device": generator.device}
    logit_normal = (LOGIT_MEAN + torch.randn(count, **how)).sigmoid()
    uniform = torch.rand(count, **how).clamp(min=1e-3)
    return torch.where(torch.rand(count, **how) < UNIFORM_SIGMAS, uniform, logit_normal)


def hard_captions(cache: Cache, tokenizer: Any) -> np.ndarray:
    """(row, caption) of the captions with one of `HARD_WORDS`: `[N, 2]`."""
    words = [tokenizer(word, add_special_tokens=False).input_ids[0] for word in HARD_WORDS]
    return np.argwhere(np.isin(cache.t5_ids[: cache.filled], words).any(axis=-1))


@dataclass(frozen=True)
class LatentSet:
    """Latents and captions of the cache on the device of a training; on a CPU they stay on disk.

    `latents [N, 16, h, w]`, ids `[N, 2, L]`, `coverage [N, T]` in 0-255; `often [M, 2]` holds (row, caption) of hard captions, of which
    `HARD_SHARE` of each batch is drawn, where there are any.
    """

    latents: Tensor
    clip_ids: Tensor
    t5_ids: Tensor
    coverage: Tensor
    often: Tensor

    @classmethod
    def of(cls, cache: Cache, device: torch.device, *, often: np.ndarray | None = None) -> LatentSet:
        """All images that are cached now."""
        arrays = [array[: cache.filled] for array in (cache.latents, cache.clip_ids, cache.t5_ids, cache.coverage)]
        arrays.append(np.empty((0, 2), dtype=np.int64) if often is None else often)
        return cls(*(torch.from_numpy(array).to(device) for array in arrays))


def sample_batch(data: LatentSet, *, count: int, generator: torch.Generator) -> Samples:
    """`count` cached pictures, each with one of its two captions, fresh noise and a noise level."""
    how: dict[str, Any] = {"generator": generator, "device": generator.device}
    rows, which = torch.randint(len(data.latents), (count,), **how), torch.randint(2, (count,), **how)
    if len(data.often):
        some = round(HARD_SHARE * count)
        rows[:some], which[:some] = data.often[torch.randint(len(data.often), (some,), **how)].T
    clean = pack(data.latents[rows].float())
    noise, sigma = torch.randn(clean.shape, **how), sample_sigmas(count, generator)
    clip_ids, t5_ids = data.clip_ids[rows, which].long(), data.t5_ids[rows, which].long()
    return Samples(clean, noise, sigma, clip_ids, t5_ids, data.coverage[rows].float() / 255)


def empty_ids(pipe: FluxPipeline, *, length: int) -> tuple[Tensor, Tensor]:
    """CLIP and T5 ids of the empty caption, `[1, L]` each."""
    pad: dict[str, Any] = {"padding": "max_length", "max_length": length, "return_tensors": "pt"}
    return pipe.tokenizer("", **pad).input_ids, pipe.tokenizer_2("", **pad).input_ids


def train_flow(
    pipe: FluxPipeline,
    cache: Cache,
    *,
    file: Path,
    budget: Budget,
    seed: int,
    batch: int = 64,
    recipe: Recipe = FLOW,
    compiled: bool = False,
) -> Run:
    """Train transformer and text encoders in place (averaged weights at the end)."""
    flow = Flow(pipe)
    run = Run("flow", flow, file, budget, recipe, seed=seed)
    predict = torch.compile(flow) if compiled else flow
    no_clip, no_t5 = (ids.to(run.device) for ids in empty_ids(pipe, length=cache.text_length))
    data = LatentSet.of(cache, run.device, often=hard_captions(cache, pipe.tokenizer_2))
    for step in run:
        generator = run.generator(step)
        samples = sample_batch(data, count=batch, generator=generator)
        empty = torch.rand(batch, 1, generator=generator, device=run.device) < EMPTY_CAPTIONS
        clip_ids, t5_ids = torch.where(empty, no_clip, samples.clip_ids), torch.where(empty, no_t5, samples.t5_ids)
        with mixed_precision(run.device), math_attention(run.device):
            velocity = predict(samples.noisy, samples.sigma, clip_ids, t5_ids)
        run.update(samples.loss(velocity, samples.velocity), images=batch)
    run.ema.copy_to(flow)
    return run


def distil(
    pipe: FluxPipeline,
    cache: Cache,
    *,
    file: Path,
    budget: Budget,
    seed: int,
    steps: int,
    scale: float = GUIDANCE,
    batch: int = 64,
    compiled: bool = False,
) -> Run:
    """Train in place to predict in one pass the mean of a frozen copy's `SUBSTEPS` guided passes, for sampling in `steps`.

    Progressive distillation (Salimans and Ho 2022) of Euler steps together with their classifier-free guidance.
    """
    student = Flow(pipe)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    run = Run("distil", student, file, budget, DISTIL, seed=seed + 1)
    predict, teach = (torch.compile(one) if compiled else one for one in (student, teacher))
    empty = tuple(ids.to(run.device) for ids in empty_ids(pipe, length=cache.text_length))
    data = LatentSet.of(cache, run.device)
    for step in run:
        generator = run.generator(step)
        samples = sample_batch(data, count=batch, generator=generator)
        samples = replace(samples, sigma=visited_sigmas(samples.sigma, generator, steps=steps))
        ids = samples.clip_ids, samples.t5_ids
        with mixed_precision(run.device), math_attention(run.device):
            target = mean_velocity(teach, samples.noisy, samples.sigma, ids, empty, scale=scale, span=1 / steps)
            velocity = predict(samples.noisy, samples.sigma, *ids)
        run.update(samples.loss(velocity, target), images=batch)
    run.ema.copy_to(student)
    return run


def visited_sigmas(sigma: Tensor, generator: torch.Generator, *, steps: int) -> Tensor:
    """Three quarters of the noise levels `[B]` replaced by those that sampling in `steps` visits."""
    how: dict[str, Any] = {"generator": generator, "device": generator.device}
    visited = 1 - torch.randint(steps, sigma.shape, **how) / steps
    return torch.where(torch.rand(sigma.shape, **how) < 0.75, visited, sigma)


@torch.no_grad()
def mean_velocity(
    flow: Callable[..., Tensor],
    tokens: Tensor,
    sigma: Tensor,
    ids: tuple[Tensor, Tensor],
    empty: tuple[Tensor, Tensor],
    *,
    scale: float,
    span: float,
    substeps: int = SUBSTEPS,
) -> Tensor:
    """Mean guided velocity on the way from `sigma` down by `span`, or to 0 where that is nearer, `[B, T, 64]`."""
    length, total = sigma.clamp(max=span), torch.zeros_like(tokens)
    for number in range(substeps):
        velocity = guided(flow, tokens, sigma - length * number / substeps, ids, empty, scale).float()
        tokens, total = tokens - (length / substeps)[:, None, None] * velocity, total + velocity
    return total / substeps


@torch.no_grad()
def guided(
    flow: Callable[..., Tensor],
    tokens: Tensor,
    sigma: Tensor,
    ids: tuple[Tensor, Tensor],
    empty: tuple[Tensor, Tensor],
    scale: float,
) -> Tensor:
    """Velocity with classifier-free guidance; at `scale` 1 without, at half the cost."""
    if scale == 1.0:
        return flow(tokens, sigma, *ids)
    both = (
        torch.cat([with_caption, none.expand_as(with_caption)]) for with_caption, none in zip(ids, empty, strict=True)
    )
    with_caption, without = flow(torch.cat([tokens, tokens]), torch.cat([sigma, sigma]), *both).chunk(2)
    return without + scale * (with_caption - without)


@torch.no_grad()
def sample(
    flow: Flow,
    noise: Tensor,
    ids: tuple[Tensor, Tensor],
    *,
    steps: int,
    empty: tuple[Tensor, Tensor] | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Euler from noise `[B, 16, h, w]` at sigma 1 to latents of the same shape, in equal steps of sigma."""
    tokens, (height, width) = pack(noise), noise.shape[-2:]
    for step in range(steps):
        sigma = torch.full((len(tokens),), 1 - step / steps, device=tokens.device)
        tokens = tokens - guided(flow, tokens, sigma, ids, empty or ids, scale) / steps
    return unpack(tokens, height=height, width=width)
