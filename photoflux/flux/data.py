"""What fine-tuning reads, encoded once: latents of photos, embeddings of captions, and the targets of preservation."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from photoflux.errors import InputError
from photoflux.fingerprint import of_base
from photoflux.flux.lora import using_adapters
from photoflux.flux.sampling import noise_for, schedule
from photoflux.flux.step import TokenGrid, add_noise, pack, predict, sample_sigmas
from photoflux.flux.text import PromptEmbeds, encode_prompts
from photoflux.manifest import digest
from photoflux.wording import with_article

if TYPE_CHECKING:
    from diffusers import FluxPipeline

    from photoflux.flux.spec import BaseSpec
    from photoflux.vault.sealed_store import SealedStore

log = logging.getLogger(__name__)

SURROUNDINGS = (
    "", "on the beach", "in the forest", "in the desert", "in the snow", "in the city", "in the kitchen", "in space",
    "in the meadow", "under water", "in a studio",
)  # fmt: skip
OPENINGS = ("a photo of", "a picture of", "a cartoon of", "a watercolor of", "a pixel picture of")
"""How prompts open, photographs first: they are what people ask for most."""
PEOPLE = (
    "person", "doctor", "woman", "nurse", "man", "teacher", "chef", "firefighter", "farmer", "pilot", "builder",
)  # fmt: skip
"""Nouns of people in preservation prompts: an adapter must not change how they look, whatever its subject is."""
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple", "brown")
"""Colours of other classes in preservation prompts: an adapter's own colours would leak into these first."""
OTHERS_SHARE, PEOPLE_SHARE = 0.3, 0.2
"""Shares of the preservation prompts that are about other classes of the base, and about people."""
PRESERVATION_SEED = 700_000
ENCODE_BATCH = 8


@dataclass(frozen=True)
class Photos:
    """The crops of one split's photos: `tokens` [N, T, 64] in float32, their captions' embeddings, and the pixels.

    Several crops may be of one photo: `sources` [N] names it.
    """

    tokens: Tensor
    captions: PromptEmbeds
    images: tuple[Image.Image, ...]
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def originals(self) -> list[Image.Image]:
        """One crop per photo: the first of each, which augment leaves as it is."""
        first: dict[str, Image.Image] = {}
        for source, image in zip(self.sources, self.images, strict=True):
            first.setdefault(source, image)
        return list(first.values())


@dataclass(frozen=True)
class PreservationTargets:
    """Points at which the tuned model is to answer as the base does: `tokens`, its `velocity` [M, T, 64], `sigmas` [M].

    `owners` [M] says which of `prompts` each point belongs to.
    """

    tokens: Tensor
    velocity: Tensor
    sigmas: Tensor
    owners: Tensor
    prompts: PromptEmbeds

    def __len__(self) -> int:
        return len(self.tokens)

    def concat(self, other: PreservationTargets) -> PreservationTargets:
        """The points of both."""
        return PreservationTargets(
            torch.cat([self.tokens, other.tokens]),
            torch.cat([self.velocity, other.velocity]),
            torch.cat([self.sigmas, other.sigmas]),
            torch.cat([self.owners, other.owners + len(self.prompts)]),
            PromptEmbeds.concat([self.prompts, other.prompts]),
        )


def read_photos(
    folder: Path, items: Sequence[Mapping[str, Any]], pipe: FluxPipeline, *, spec: BaseSpec, cache: SealedStore
) -> Photos:
    """Load and encode the photos of a dataset's `items`; `cache` holds latents by photo and base.

    Raises InputError for photos that cannot be packed into tokens or differ in size.
    """
    files, images = [folder / str(item["file"]) for item in items], list[Image.Image]()
    for file in files:
        with Image.open(file) as image:
            images.append(image.convert("RGB"))
        if image.size != images[0].size or image.width != image.height or image.width % 16:
            raise InputError(
                f"{file.name} is {image.width} x {image.height}: training pictures are squares of one size, a multiple "
                "of 16; run augment again"
            )
    latents = [_latents(file, image, pipe, spec=spec, cache=cache) for file, image in zip(files, images, strict=True)]
    captions = encode_prompts(pipe, [str(item["caption"]) for item in items], spec=spec)
    sources = tuple(str(item["source"]) for item in items)
    return Photos(pack(torch.stack(latents)), captions.to("cpu"), tuple(images), sources)


def _latents(file: Path, image: Image.Image, pipe: FluxPipeline, *, spec: BaseSpec, cache: SealedStore) -> Tensor:
    """[16, H/8, W/8] of one photo, from the cache when it was encoded before."""
    from safetensors.torch import load, save

    name = f"{hashlib.sha256(f'{digest(file)} {of_base(spec)}'.encode()).hexdigest()[:32]}.safetensors"
    if cached := cache.get(name):
        return load(cached)["latents"]
    latents = encode_images(pipe.vae, [image])[0]
    cache.put(name, save({"latents": latents}))
    return latents


@torch.no_grad()
def encode_images(vae: Any, images: Sequence[Image.Image]) -> Tensor:
    """RGB images of H x W to latents [N, 16, H/8, W/8]: the posterior's mode, shifted, then scaled, in float32."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 127.5 - 1
    dtype = vae.dtype  # latents are encoded in float32 whatever the base computes in: they are the target of every step
    if dtype != torch.float32:
        vae.to(torch.float32)
    parts = [vae.encode(part.to(vae.device)).latent_dist.mode() for part in pixels.split(ENCODE_BATCH)]
    if dtype != torch.float32:
        vae.to(dtype)
    return ((torch.cat(parts) - vae.config.shift_factor) * vae.config.scaling_factor).cpu().contiguous()


def class_prompt(caption: str, *, trigger: str, class_noun: str) -> str:
    """The caption with the class in place of the subject: "sks dog on the beach" becomes "a dog on the beach"."""
    named = rf"\b(?:(?:an?|the|my|our|his|her|their)\s+)?{re.escape(trigger)}(?:\s+{re.escape(class_noun)})?\b"
    return re.sub(named, with_article(class_noun), caption, flags=re.IGNORECASE)


def preservation_prompts(
    class_noun: str, others: Sequence[str], *, count: int, captions: Sequence[str] = ()
) -> list[str]:
    """`count` prompts without the trigger, evenly over openings and surroundings.

    Some are about other classes of the base and about people; the rest about the subject's class, its own `captions`
    first.
    """
    rest, people = ([noun for noun in nouns if noun != class_noun] for nouns in (others, PEOPLE))
    foreign, persons = round(count * OTHERS_SHARE) if rest else 0, round(count * PEOPLE_SHARE)
    own = count - foreign - persons
    about = [*dict.fromkeys(captions)][: own // 2]
    about += [_prompt(class_noun, i) for i in range(own - len(about))]
    about += [_prompt(f"{COLOURS[i % len(COLOURS)]} {rest[i % len(rest)]}", own + i) for i in range(foreign)]
    return about + [_prompt(people[i % len(people)], own + foreign + i) for i in range(persons)]


def _prompt(noun: str, i: int) -> str:
    """Every second prompt is a photo or picture; the others go through all openings."""
    opening = OPENINGS[i // 2 % 2] if i % 2 == 0 else OPENINGS[i // 2 % len(OPENINGS)]
    return f"{opening} {with_article(noun)} {SURROUNDINGS[i % len(SURROUNDINGS)]}".strip()


@torch.no_grad()
def preservation_targets_along_sampling(
    transformer: Any, prompts: PromptEmbeds, *, spec: BaseSpec, seed: int, side_px: int, batch_size: int = 16
) -> PreservationTargets:
    """Sample the base on prompts without the trigger; every denoise step is a target.

    The way is the base's without any adapter, so that the points are those that serving comes by; the velocity there is the
    teacher's, whose training adapter is on. Without a training adapter both are one pass.
    """
    at_side, device = replace(spec, resolution_px=side_px), prompts.pooled.device
    points: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for owners in torch.arange(len(prompts)).split(batch_size):
        noise = noise_for([PRESERVATION_SEED + 10_007 * seed + int(i) for i in owners], spec=at_side)
        embeds, tokens = prompts.take(owners), pack(noise).to(device)
        grid = TokenGrid.of(noise, text_length=embeds.sequence.shape[1], device=device)
        for now, after in pairwise(schedule(spec.steps).to(device)):
            sigma = now.expand(len(tokens))
            with using_adapters(transformer, subject=False, training=False):
                velocity = predict(transformer, tokens, sigma, embeds, grid).float()
            target = velocity
            if spec.training_adapter is not None:
                target = teacher_velocity(transformer, tokens, sigma, embeds, grid)
            points.append((tokens, target, sigma, owners))
            tokens = tokens + (after - now) * velocity
    tokens, velocity, sigmas, owners = (torch.cat(column).cpu() for column in zip(*points, strict=True))
    return PreservationTargets(tokens, velocity, sigmas, owners, prompts.to("cpu"))


@torch.no_grad()
def preservation_targets_on_photos(
    transformer: Any,
    photos: Photos,
    prompts: PromptEmbeds,
    *,
    spec: BaseSpec,
    seed: int,
    count: int,
    serving_share: float,
) -> PreservationTargets:
    """The teacher's velocity on `count` noised photos under `prompts`: one caption without the trigger per photo.

    Here only the words tell the subject from its class; along the base's own samples the noisy image does too (0007).
    """
    generator = torch.Generator().manual_seed(PRESERVATION_SEED + seed)
    owners = torch.arange(count) % len(photos)
    clean, device = photos.tokens[owners], prompts.pooled.device
    sigmas = sample_sigmas(count, generator=generator, serving_share=serving_share, denoise_steps=spec.steps)
    tokens = add_noise(clean, torch.randn(clean.shape, generator=generator), sigmas)
    grid = photo_grid(photos, device=device)
    velocity = [
        teacher_velocity(transformer, tokens[i].to(device), sigmas[i].to(device), prompts.take(owners[i]), grid).cpu()
        for i in torch.arange(count).split(16)
    ]
    return PreservationTargets(tokens, torch.cat(velocity), sigmas, owners, prompts.to("cpu"))


@torch.no_grad()
def teacher_velocity(transformer: Any, tokens: Tensor, sigma: Tensor, embeds: PromptEmbeds, grid: TokenGrid) -> Tensor:
    """The base's velocity [B, T, 64] as training sees the base: the subject's adapter off, the training adapter on."""
    with using_adapters(transformer, subject=False, training=True):
        return predict(transformer, tokens, sigma, embeds, grid).float()


def photo_grid(photos: Photos, *, device: torch.device | str) -> TokenGrid:
    """Positions of the tokens of these photos."""
    side = photos.images[0].width // 8
    return TokenGrid.of(torch.empty(1, 16, side, side), text_length=photos.captions.sequence.shape[1], device=device)
