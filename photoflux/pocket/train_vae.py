"""Pretraining of the pocket VAE on an endless stream of fresh renders, and the latents that it caches for the rest."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from photoflux.pocket.data import Batch, Cache, draw, draw_crops, stream
from photoflux.pocket.training import Budget, Recipe, Run, mixed_precision

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

log = logging.getLogger(__name__)

KL_WEIGHT = 1e-3
"""Per latent value against a per-pixel L1: latents stay smooth and near unit scale at no visible cost."""
CROPS_UNTIL = 0.75
"""Fraction of the budget on quarter-size crops (four times cheaper); the rest sees whole pictures."""
AT_ONCE = 8
"""Pictures that go through the VAE together: with more, activations no longer fit the caches of a core."""
RECIPE = Recipe(lr=2e-3, muon_lr=3e-3, warmup_steps=60, weight_decay=1e-3, ema=0.995)


def to_unit(pixels: np.ndarray, device: torch.device) -> Tensor:
    """uint8 `[N, H, W, 3]` -> float `[N, 3, H, W]` in [-1, 1], channels last in memory."""
    images = torch.from_numpy(np.ascontiguousarray(pixels)).to(device).permute(0, 3, 1, 2)
    return images.float().div_(127.5).sub_(1.0)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 at full, half and quarter size plus L1 of the horizontal and vertical differences."""
    loss = F.l1_loss(output, target)
    for axis in (2, 3):
        loss = loss + 0.5 * F.l1_loss(output.diff(dim=axis), target.diff(dim=axis))
    for factor in (2, 4):
        loss = loss + 0.5 * F.l1_loss(F.avg_pool2d(output, factor), F.avg_pool2d(target, factor))
    return loss


def kl_loss(mean: Tensor, logvar: Tensor) -> Tensor:
    """Mean divergence of `N(mean, exp(logvar))` from `N(0, 1)` per latent value, in nats."""
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()


def vae_loss(vae: AutoencoderKL, images: Tensor, noise: Tensor) -> Tensor:
    """Loss of one batch `[N, 3, H, W]`; `noise` has the shape of the latents."""
    posterior = vae.encode(images).latent_dist
    latents = posterior.mean + posterior.std * noise
    return reconstruction_loss(vae.decode(latents).sample, images) + KL_WEIGHT * kl_loss(
        posterior.mean, posterior.logvar
    )


def train_vae(
    vae: AutoencoderKL, *, file: Path, budget: Budget, seed: int, batch: int = 16, workers: int = 1,
    recipe: Recipe = RECIPE,
) -> int:  # fmt: skip
    """Train in place (averaged weights at the end); returns the number of pictures seen by this stage.

    Never compiled: torch 2.13's CPU compiler gives this encoder gradients that point the wrong way.
    """
    device = next(vae.parameters()).device
    vae.to(memory_format=torch.channels_last)
    run = Run("vae", vae, file, budget, recipe, seed=seed)
    size_px = vae.config.sample_size
    for step, pixels in _pictures(run, seed=seed, size_px=size_px, batch=batch, workers=workers):
        images = to_unit(pixels, device)
        shape = (len(images), 16, images.shape[2] // 8, images.shape[3] // 8)
        noise = torch.randn(shape, generator=run.generator(step)).to(device)
        with mixed_precision(device):
            loss = vae_loss(vae, images, noise)
        run.update(loss, images=len(images))
    run.ema.copy_to(vae)
    return run.images


def _pictures(run: Run, *, seed: int, size_px: int, batch: int, workers: int) -> Iterator[tuple[int, np.ndarray]]:
    crops = partial(draw_crops, seed=seed, count=batch, size_px=size_px, crop_px=size_px // 2)
    whole = partial(draw, seed=seed + 1, count=max(1, batch // 4), size_px=size_px)
    small = large = None
    for step in run:
        if run.progress < CROPS_UNTIL:
            small = small or stream(crops, start=step, workers=workers)
            yield step, next(small)
        else:
            large = large or stream(whole, start=step, workers=workers)
            yield step, next(large).pixels
    for pictures in (small, large):
        if pictures:
            pictures.close()


@torch.no_grad()
def fit_scale(vae: AutoencoderKL, *, seed: int, batches: int = 16, count: int = 16) -> dict[str, float]:
    """Measure latents of fresh renders and write `scaling_factor` and `shift_factor`, so that they have mean 0, std 1.

    Returns both, and the PSNR in dB of the reconstructions.
    """
    device, size_px = next(vae.parameters()).device, vae.config.sample_size
    latents, errors = [], []
    for index in range(batches):
        images = to_unit(draw(index, seed=seed, count=count, size_px=size_px).pixels, device)
        latents.append(vae.encode(images).latent_dist.mean)
        output = vae.decode(latents[-1]).sample.clamp(-1, 1)
        errors.append((output - images).square().mean(dim=(1, 2, 3)) / 4)
    flat = torch.cat(latents)
    shift, scale = flat.mean().item(), 1.0 / flat.std().item()
    vae.register_to_config(scaling_factor=scale, shift_factor=shift)
    psnr = (-10 * torch.cat(errors).log10()).mean().item()
    return {"scaling_factor": scale, "shift_factor": shift, "psnr_db": psnr}


@torch.no_grad()
def encode(vae: AutoencoderKL, pixels: np.ndarray) -> Tensor:
    """uint8 `[N, H, W, 3]` -> the posterior's mean, shifted and scaled, `[N, 16, H/8, W/8]`; in bf16 where it is fast."""
    images = to_unit(pixels, next(vae.parameters()).device)
    with mixed_precision(images.device):
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(AT_ONCE)]).float()
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> np.ndarray:
    """Scaled latents `[N, 16, H/8, W/8]` -> uint8 `[N, H, W, 3]`; in bf16, where it is fast, within a few levels."""
    parts = (latents / vae.config.scaling_factor + vae.config.shift_factor).split(AT_ONCE)
    with mixed_precision(latents.device):
        images = torch.cat([vae.decode(part).sample for part in parts]).float()
    unit = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    return (unit * 255).round().to(torch.uint8).cpu().numpy()


def fill_cache(
    cache: Cache, vae: AutoencoderKL, tokenizers: tuple[Any, Any], *, count: int, seed: int, workers: int = 1
) -> int:
    """Render, encode and tokenise until `count` pictures are cached; continues where it was cut off."""
    vae.to(memory_format=torch.channels_last).eval()
    batch, logged = min(64, count), time.monotonic()
    task = partial(draw, seed=seed + 2, count=batch, size_px=cache.size_px)
    pictures = stream(task, start=cache.filled // batch, workers=workers)
    for start in range(cache.filled, count - count % batch, batch):
        drawn = next(pictures)
        clip_ids, t5_ids = (tokenise(tokenizer, drawn, length=cache.text_length) for tokenizer in tokenizers)
        cache.put(start, drawn, latents=encode(vae, drawn.pixels).cpu().numpy(), clip_ids=clip_ids, t5_ids=t5_ids)
        if time.monotonic() - logged > 20:
            logged = time.monotonic()
            log.info("latents %d of %d", start + batch, count)
    pictures.close()
    return cache.filled


def tokenise(tokenizer: Any, batch: Batch, *, length: int) -> np.ndarray:
    """Token ids int16 `[N, 2, length]` of both captions of each picture, padded as `FluxPipeline` pads."""
    flat = [caption for pair in batch.captions for caption in pair]
    ids = tokenizer(flat, padding="max_length", max_length=length, truncation=True).input_ids
    return np.asarray(ids, dtype=np.int16).reshape(len(batch), 2, length)
