"""Sampling: Euler steps on a linear schedule, equal to stock `FluxPipeline` on the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from photoflux.flux.step import TokenGrid, pack, predict, unpack
from photoflux.flux.text import PromptEmbeds, encode_prompts

if TYPE_CHECKING:
    from diffusers import FluxPipeline

    from photoflux.flux.spec import BaseSpec


def noise_for(seeds: Sequence[int], *, spec: BaseSpec) -> Tensor:
    """Noise [N, 16, H/8, W/8] in float32, one CPU generator per seed, so that an image does not depend on its batch."""
    return torch.stack(
        [torch.randn(spec.latent_shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    )


def schedule(denoise_steps: int) -> Tensor:
    """Noise levels 1, 1 - 1/n, …, 1/n, 0 of n steps: [n + 1]."""
    return torch.cat([torch.linspace(1.0, 1 / denoise_steps, denoise_steps), torch.zeros(1)])


@torch.inference_mode()
def sample_latents(
    transformer: Any,
    embeds: PromptEmbeds,
    noise: Tensor,
    *,
    spec: BaseSpec,
    denoise_steps: int | None = None,
    check: Callable[[], None] | None = None,
) -> Tensor:
    """From noise [N, 16, H/8, W/8] at σ = 1 to latents of that shape at σ = 0, in float32 between steps.

    `denoise_steps` are the spec's by default. `check` is called before each one; what it raises ends the sampling.
    """
    grid = TokenGrid.of(noise, text_length=embeds.sequence.shape[1], device=embeds.pooled.device)
    tokens = pack(noise).to(embeds.pooled.device, torch.float32)
    sigmas = schedule(denoise_steps or spec.steps).to(tokens.device)
    for now, after in pairwise(sigmas):
        if check:
            check()
        velocity = predict(transformer, tokens, now.expand(len(tokens)), embeds, grid)
        tokens = tokens + (after - now) * velocity.float()  # dx/dσ = v: an Euler step from σ = now down to σ = after
    return unpack(tokens, height=noise.shape[-2], width=noise.shape[-1])


@torch.inference_mode()
def decode(vae: Any, latents: Tensor) -> list[Image.Image]:
    """Latents [N, 16, H/8, W/8] to RGB images of H x W."""
    unscaled = latents / vae.config.scaling_factor + vae.config.shift_factor
    pixels = vae.decode(unscaled.to(vae.device, vae.dtype), return_dict=False)[0].float()
    scaled = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(image) for image in (scaled * 255).round().astype(np.uint8)]


def generate(
    pipe: FluxPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    spec: BaseSpec,
    denoise_steps: int | None = None,
    batch_size: int = 16,
) -> list[Image.Image]:
    """One image per (prompt, seed) pair with the pipeline as it is, `batch_size` at a time."""
    if not prompts:
        return []
    embeds, noise = encode_prompts(pipe, prompts, spec=spec), noise_for(seeds, spec=spec)
    images: list[Image.Image] = []
    for start in range(0, len(prompts), batch_size):
        rows = range(start, min(start + batch_size, len(prompts)))
        latents = sample_latents(
            pipe.transformer,
            embeds.take(list(rows)),
            noise[rows.start : rows.stop],
            spec=spec,
            denoise_steps=denoise_steps,
        )
        images += decode(pipe.vae, latents)
    return images
