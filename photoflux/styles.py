"""Styles of images: redraws by the model itself, and filters that need no model.

A redraw runs image-to-image on the same base and adapter with the style's opening words, which keeps the subject. A
filter is a pure function of the pixels: fast, deterministic, and independent of the base.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from diffusers import FluxPipeline
    from PIL import Image

    from photoflux.flux.spec import BaseSpec

MEDIA = ("photo", "photograph", "picture", "image", "portrait", "drawing", "painting", "cartoon", "watercolor")
OPENING = re.compile(rf"^\s*(?:(?:an?|the)\s+)?(?:pixel art|(?:\w+\s+)?(?:{'|'.join(MEDIA)}))\s+of\s+", re.IGNORECASE)
LUMA = np.array([0.299, 0.587, 0.114])
"""ITU-R BT.601 weights of red, green and blue in perceived lightness."""


@dataclass(frozen=True)
class Redraw:
    """Image-to-image towards `opening`: the last `strength` of `steps` sampling steps are run again."""

    opening: str
    strength: float = 0.5
    steps: int = 8


REDRAWS = {
    "cartoon": Redraw("a cartoon of"),
    "pixel": Redraw("a pixel picture of"),
    "watercolor": Redraw("a watercolor of"),
}


def styled_prompt(prompt: str, opening: str) -> str:
    """The prompt with its opening words ("a photo of", "a drawing of", …) replaced by the style's."""
    return f"{opening} {OPENING.sub('', prompt).strip()}"


def redraw_image(
    image: Image.Image,
    prompt: str,
    *,
    style: Redraw,
    pipe: FluxPipeline,
    spec: BaseSpec,
    seed: int,
    check: Callable[[], None] | None = None,
) -> Image.Image:
    """The image redrawn in a style, at the base's resolution; deterministic for a seed.

    `check` is called before the first and after each denoise step; what it raises ends the redraw.
    """
    import torch
    from diffusers import FluxImg2ImgPipeline

    from photoflux.flux.text import encode_prompts

    embeds = encode_prompts(pipe, [styled_prompt(prompt, style.opening)], spec=spec)
    redraw = FluxImg2ImgPipeline(**pipe.components)
    redraw.set_progress_bar_config(disable=True)

    def after_step(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if check:
            check()
        return tensors

    if check:
        check()
    with torch.inference_mode():
        return redraw(
            image=image,
            prompt_embeds=embeds.sequence,
            pooled_prompt_embeds=embeds.pooled,
            height=spec.resolution_px,
            width=spec.resolution_px,
            strength=style.strength,
            num_inference_steps=style.steps,
            guidance_scale=spec.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(seed),
            callback_on_step_end=after_step,
        ).images[0]


def pencil(image: Image.Image) -> Image.Image:
    """A pencil drawing: lightness divided by its own blur, so that only edges stay dark."""
    from PIL import Image, ImageFilter

    light = _luma(image)
    inverse = Image.fromarray(np.uint8(255 - light.round()))
    blur = 255 - np.asarray(inverse.filter(ImageFilter.GaussianBlur(_scale(image) / 40)), float)
    sketch = np.clip(light * 255 / np.maximum(blur, 1), 0, 255)
    shaded = 255 * (sketch / 255) ** 2.2 * (0.82 + 0.18 * light / 255)
    return _to_image(np.repeat(shaded[..., None], 3, axis=2))


def halftone(image: Image.Image) -> Image.Image:
    """A newspaper print: a 45° grid of dots whose area is the darkness beneath, over paler colours."""
    pitch_px = max(4.0, _scale(image) / 80)
    y, x = np.mgrid[: image.height, : image.width] * (2 * np.pi / pitch_px)
    ink = 1 - _luma(image) / 255
    dots = 1 / (1 + np.exp((_dot_screen((x + y) / np.sqrt(2), (x - y) / np.sqrt(2)) - ink) * 16))
    flat = np.asarray(image.convert("RGB"), float)
    paper = 128 + 0.5 * flat
    return _to_image(paper * (1 - dots[..., None]) + 0.35 * flat * dots[..., None])


def _dot_screen(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Thresholds from 0 between dots to 1 at a dot's centre, each as frequent as any other, at phases `u` and `v`."""
    phases = np.cos(np.linspace(0, 2 * np.pi, 128, endpoint=False))
    levels = np.sort((phases[:, None] + phases).ravel())
    return np.interp(np.cos(u) + np.cos(v), levels, np.linspace(0, 1, levels.size))


def film(image: Image.Image) -> Image.Image:
    """A print from film: soft shoulders, warm lights, cool shadows, darker corners and fine, fixed grain."""
    tone = np.asarray(image.convert("RGB"), float) / 255
    curve = tone + 0.12 * np.sin(2 * np.pi * (tone - 0.5)) / np.pi
    lifted = 0.04 + 0.93 * curve
    light = (lifted @ LUMA)[..., None]
    split = np.array([0.045, 0.010, -0.045]) * (light - 0.45) * 2
    y, x = np.mgrid[-1 : 1 : image.height * 1j, -1 : 1 : image.width * 1j]
    corners = 1 - 0.22 * np.clip((x**2 + y**2) / 2, 0, 1)[..., None] ** 1.5
    grain = np.random.default_rng(0).normal(0, 0.018, light.shape) * (0.4 + light * (1 - light) * 2.4)
    return _to_image(255 * ((lifted + split) * corners + grain))


FILTERS: dict[str, Callable[[Image.Image], Image.Image]] = {"pencil": pencil, "halftone": halftone, "film": film}


def _luma(image: Image.Image) -> np.ndarray:
    """Lightness [H, W], 0 to 255."""
    return np.asarray(image.convert("RGB"), float) @ LUMA


def _scale(image: Image.Image) -> float:
    """The length that filters scale their strokes by, so that an image looks alike at any size."""
    return float(min(image.size))


def _to_image(values: np.ndarray) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.uint8(np.clip(values, 0, 255).round()))
