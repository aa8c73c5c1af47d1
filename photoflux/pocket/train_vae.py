"""Pretraining of the pocket VAE on the cached images, and encoding of these for the later stages."""

from __future__ import annotations

import logging
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from photoflux.pocket.data import Batch, Cache, render_batch, stream
from photoflux.pocket.training import Budget, Recipe, Run, mixed_precision

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

log = logging.getLogger(__name__)

KL_WEIGHT = 1e-3
"""Per latent value against a per-pixel L1: latents stay smooth and near unit scale at no visible cost."""
CROPS_UNTIL = 0.6
"""Fraction of the budget on crops of a quarter of the area; the rest sees whole pictures."""
CROPS_PER_IMAGE = 4
"""Crops with together the pixels of one image."""
VAE_BATCH = {"cpu": 8, "cuda": 256}
"""Images per VAE batch by device: on a CPU more activations would not fit a core's caches."""
IMAGES_TO_START = 2048
"""Images that must be drawn before the VAE's training starts; others are drawn meanwhile."""
RECIPE = Recipe(lr=2e-3, muon_lr=3e-3, warmup_steps=60, weight_decay=1e-3, ema=0.995)


def to_unit(pixels: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """uint8 `[N, H, W, 3]` -> float `[N, 3, H, W]` in [-1, 1], channels last in memory."""
    if isinstance(pixels, np.ndarray):
        pixels = torch.from_numpy(np.ascontiguousarray(pixels))
    return pixels.to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


class CachedImages:
    """The cached images on the training device; on a CPU they stay on disk. More may be drawn meanwhile."""

    def __init__(self, cache: Cache, device: torch.device, *, count: int) -> None:
        self.cache, self.drawn, self.limit = cache, 0, count
        side = cache.size_px
        on_disk = torch.from_numpy(cache.pixels[:count])
        self.pixels = (
            on_disk if device.type == "cpu" else torch.empty((count, side, side, 3), dtype=torch.uint8, device=device)
        )
        self.refresh()

    def refresh(self) -> int:
        """Load images that were drawn since the last call; returns how many there are."""
        drawn = min(self.cache.drawn, self.limit)
        if self.pixels.device.type != "cpu" and drawn > self.drawn:
            self.pixels[self.drawn : drawn] = torch.from_numpy(self.cache.pixels[self.drawn : drawn]).to(
                self.pixels.device
            )
        self.drawn = drawn
        return drawn

    def sample(self, count: int, *, side_px: int, generator: torch.Generator) -> Tensor:
        """Random squares of random pictures, uint8 `[count, side, side, 3]`."""
        how: dict[str, Any] = {"generator": generator, "device": generator.device}
        rows = torch.randint(self.drawn, (count,), **how)
        if side_px == self.cache.size_px:
            return self.pixels[rows]
        ys, xs = torch.randint(self.cache.size_px - side_px + 1, (2, count, 1), **how)
        span = torch.arange(side_px, device=generator.device)
        return self.pixels[rows[:, None, None], (ys + span)[:, :, None], (xs + span)[:, None, :]]


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
    vae: AutoencoderKL,
    cached_images: CachedImages,
    *,
    file: Path,
    budget: Budget,
    seed: int,
    batch: int = 4,
    recipe: Recipe = RECIPE,
    compiled: bool = False,
) -> int:
    """Train in place (averaged weights at the end) on `batch` pictures, or their area in crops, a step.

    Returns the number of pictures and crops seen. Compiled on CUDA only: torch 2.13's CPU compiler gives this encoder gradients
    that point the wrong way.
    """
    device, whole_px = next(vae.parameters()).device, cached_images.cache.size_px
    vae.to(memory_format=torch.channels_last)
    run = Run("vae", vae, file, budget, recipe, seed=seed)
    loss_of = torch.compile(vae_loss, dynamic=False) if compiled and device.type == "cuda" else vae_loss
    for step in run:
        if step % 50 == 0:
            cached_images.refresh()
        generator, crops = run.generator(step), run.progress < CROPS_UNTIL
        count, side_px = (CROPS_PER_IMAGE * batch, whole_px // 2) if crops else (batch, whole_px)
        images = to_unit(cached_images.sample(count, side_px=side_px, generator=generator), device)
        noise = torch.randn((count, 16, side_px // 8, side_px // 8), generator=generator, device=device)
        with mixed_precision(device):
            loss = loss_of(vae, images, noise)
        run.update(loss, images=count)
    run.ema.copy_to(vae)
    return run.images


@torch.no_grad()
def fit_scale(vae: AutoencoderKL, *, seed: int, batches: int = 16, count: int = 16) -> dict[str, float]:
    """Measure latents of fresh renders and write `scaling_factor` and `shift_factor`, so that they have mean 0, std 1.

    Returns both, and the PSNR in dB of the reconstructions.
    """
    device, size_px = next(vae.parameters()).device, vae.config.sample_size
    latents, errors = [], []
    for index in range(batches):
        images = to_unit(render_batch(index, seed=seed, count=count, size_px=size_px).pixels, device)
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
        parts = images.split(VAE_BATCH[images.device.type])
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in parts]).float()
    return (latents - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> np.ndarray:
    """Scaled latents `[N, 16, H/8, W/8]` -> uint8 `[N, H, W, 3]`; in bf16, where it is fast, within a few levels."""
    parts = (latents / vae.config.scaling_factor + vae.config.shift_factor).split(VAE_BATCH[latents.device.type])
    with mixed_precision(latents.device):
        images = torch.cat([vae.decode(part).sample for part in parts]).float()
    unit = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    return (unit * 255).round().to(torch.uint8).cpu().numpy()


def render_images(cache: Cache, tokenizers: tuple[Any, Any], *, count: int, seed: int, workers: int = 1) -> int:
    """Render and tokenise until `count` pictures are cached; continues after an interruption."""
    batch, logged = min(64, count), time.monotonic()
    task = partial(render_batch, seed=seed + 2, count=batch, size_px=cache.size_px)
    cached_images = stream(task, start=cache.drawn // batch, workers=workers, ahead=4 * max(1, workers))
    for start in range(cache.drawn, count - count % batch, batch):
        drawn = next(cached_images)
        clip_ids, t5_ids = (tokenise(tokenizer, drawn, length=cache.text_length) for tokenizer in tokenizers)
        cache.put(start, drawn, clip_ids=clip_ids, t5_ids=t5_ids)
        if time.monotonic() - logged > 20:
            logged = time.monotonic()
            log.info("pictures %d of %d", start + batch, count)
    cached_images.close()
    return cache.drawn


def fill_latents(cache: Cache, vae: AutoencoderKL) -> int:
    """Encode every picture of the cache; continues after an interruption."""
    vae.to(memory_format=torch.channels_last).eval()
    batch, logged = 8 * VAE_BATCH[next(vae.parameters()).device.type], time.monotonic()
    for start in range(cache.filled, cache.drawn, batch):
        cache.put_latents(start, encode(vae, cache.pixels[start : min(start + batch, cache.drawn)]).cpu().numpy())
        if time.monotonic() - logged > 20:
            logged = time.monotonic()
            log.info("latents %d of %d", start + batch, cache.drawn)
    return cache.filled


def tokenise(tokenizer: Any, batch: Batch, *, length: int) -> np.ndarray:
    """Token ids int16 `[N, 2, length]` of both captions of each picture, padded as `FluxPipeline` pads."""
    flat = [caption for pair in batch.captions for caption in pair]
    ids = tokenizer(flat, padding="max_length", max_length=length, truncation=True).input_ids
    return np.asarray(ids, dtype=np.int16).reshape(len(batch), 2, length)
