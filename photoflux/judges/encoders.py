"""The judges of one base: who is shown (identity), what is shown (CLIP), and which attributes are read.

A judges folder holds `clip/` and `identity/` as transformers model folders, `judges.json` and, for attributes that
are read by linear heads, `attributes.safetensors`. A head reads the encoder that `judges.json` names: `clip`,
`identity`, or any other image encoder in a folder of its own. Attributes may also be read with words (zero-shot).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from photoflux.errors import InputError

ZERO_SHOT_SCALE = 100.0
"""Logit scale of zero-shot attributes: the value CLIP models are trained towards."""


@dataclass(frozen=True)
class Preprocessor:
    """How a folder's encoder wants its images: short side, square crop, then normalised RGB."""

    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def load(cls, folder: Path) -> Preprocessor:
        settings = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        size = settings.get("crop_size") or settings["size"]
        side = size if isinstance(size, int) else size.get("height") or size["shortest_edge"]
        return cls(int(side), tuple(settings["image_mean"]), tuple(settings["image_std"]))

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB images of any size to a normalised float tensor [N, 3, S, S]."""
        pixels = np.stack([np.asarray(_square(image, self.size_px)) for image in images])
        scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        return (scaled - _channels(self.mean)) / _channels(self.std)


@dataclass
class Judges:
    """Loaded judges. Every method works in batches, without gradients, and returns CPU tensors."""

    folder: Path
    card: Mapping[str, Any]
    classes: dict[str, tuple[str, ...]]
    device: torch.device
    _clip: Any
    _tokenizer: Any
    _encoders: dict[str, Any]
    _preprocess: dict[str, Preprocessor]
    _weights: dict[str, Tensor]
    batch_size: int = 64
    _words: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, *, device: str | torch.device | None = None) -> Judges:
        """Load a judges folder; a missing or broken part is an InputError that names it."""
        from transformers import AutoTokenizer, CLIPModel
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        card = _read_card(folder)
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        heads = folder / "attributes.safetensors"
        try:
            clip = CLIPModel.from_pretrained(folder / "clip").eval().to(place)
            named = {"identity", *(head.get("encoder", "clip") for head in card.get("heads", {}).values())} - {"clip"}
            encoders = {name: _load_encoder(folder / name).eval().float().to(place) for name in sorted(named)}
            tokenizer = AutoTokenizer.from_pretrained(folder / "clip")
            preprocess = {name: Preprocessor.load(folder / name) for name in ("clip", *encoders)}
            weights = load_file(heads) if heads.is_file() else {}
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{folder}: these judges cannot be loaded ({error}); fetch or train them again") from error
        classes = {name: tuple(values) for name, values in card.get("attributes", {}).items()}
        on_device = {name: tensor.float().to(place) for name, tensor in weights.items()}
        return cls(folder, card, classes, place, clip.float(), tokenizer, encoders, preprocess, on_device)

    @property
    def hash(self) -> str:
        """Which judges spoke: the digest of their folder."""
        return folder_digest(self.folder)

    @property
    def confusion(self) -> dict[str, np.ndarray]:
        """Counts [K, K] of true class i read as class j, per attribute; empty when nobody has measured them."""
        return {name: np.asarray(table, float) for name, table in self.card.get("confusion", {}).items()}

    def identity(self, images: Sequence[Image.Image]) -> Tensor:
        """Who or which instance is shown: [N, D], L2-normalised."""
        return self._batched(images, self._identity_of, "identity")

    def image_text(self, images: Sequence[Image.Image]) -> Tensor:
        """What is shown, in the space of `text`: [N, E], L2-normalised."""
        return self._batched(
            images, lambda pixels: _unit(self._clip.visual_projection(self._clip_state(pixels))), "clip"
        )

    @torch.inference_mode()
    def text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts in the space of `image_text`: [N, E], L2-normalised."""
        length = self._clip.config.text_config.max_position_embeddings
        words = self._tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        pooled = self._clip.text_model(input_ids=words["input_ids"].to(self.device)).pooler_output
        return _unit(self._clip.text_projection(pooled)).cpu()

    def attributes(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """Probabilities [N, K] per attribute, in the order of `classes`."""
        heads = self.card.get("heads", {})
        reads = {name: heads.get(name, {}).get("encoder", "clip") for name in self.classes}
        pooled = {encoder: self._pooled(images, encoder) for encoder in sorted(set(reads.values()))}
        return {name: self._read(name, pooled[encoder]) for name, encoder in reads.items()}

    def _pooled(self, images: Sequence[Image.Image], encoder: str) -> Tensor:
        return self._batched(images, self._clip_state if encoder == "clip" else partial(self._state, encoder), encoder)

    @torch.inference_mode()
    def _read(self, name: str, pooled: Tensor) -> Tensor:
        weight = self._weights.get(f"{name}.weight")
        if weight is None:
            images = _unit(self._clip.visual_projection(pooled.to(self.device)))
            return (ZERO_SHOT_SCALE * images @ self._class_words(name).T).softmax(-1).cpu()
        return F.linear(pooled.to(self.device), weight, self._weights[f"{name}.bias"]).softmax(-1).cpu()

    def _class_words(self, name: str) -> Tensor:
        """One unit vector per class [K, E]: the mean over the phrases that the card gives for it."""
        if name not in self._words:
            phrases = self.card["heads"][name]["prompts"]
            means = [self.text(phrases[value]).mean(0) for value in self.classes[name]]
            self._words[name] = _unit(torch.stack(means)).to(self.device)
        return self._words[name]

    def _clip_state(self, pixels: Tensor) -> Tensor:
        return self._clip.vision_model(pixel_values=pixels).pooler_output

    def _state(self, encoder: str, pixels: Tensor) -> Tensor:
        """One vector per image [N, W]: the class token, or the mean over positions of convolutional encoders."""
        states = self._encoders[encoder](pixel_values=pixels).last_hidden_state
        return states[:, 0] if states.ndim == 3 else states.mean((2, 3))

    def _identity_of(self, pixels: Tensor) -> Tensor:
        pooled = self._state("identity", pixels)
        projection = self._weights.get("identity.projection")
        return _unit(pooled if projection is None else pooled @ projection.T)

    @torch.inference_mode()
    def _batched(self, images: Sequence[Image.Image], encode: Callable[[Tensor], Tensor], encoder: str) -> Tensor:
        if not images:
            raise InputError("there are no pictures to judge; draw or pass at least one")
        prepare, size = self._preprocess[encoder], self.batch_size
        parts = [encode(prepare(images[i : i + size]).to(self.device)).cpu() for i in range(0, len(images), size)]
        return torch.cat(parts)


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / "judges.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: not a readable description of judges ({error}); fetch or train them again"
        ) from error


def _load_encoder(folder: Path) -> Any:
    """Any image encoder of transformers; plain ViTs without the pooling layer that nobody reads."""
    from transformers import AutoConfig, AutoModel

    plain_vit = AutoConfig.from_pretrained(folder).model_type == "vit"
    return AutoModel.from_pretrained(folder, **({"add_pooling_layer": False} if plain_vit else {}))


def _square(image: Image.Image, size_px: int) -> Image.Image:
    """Short side to `size_px`, then the centre square: what CLIP-format preprocessors do."""
    rgb = image.convert("RGB")
    if rgb.size == (size_px, size_px):
        return rgb
    scale = size_px / min(rgb.size)
    width, height = (max(size_px, round(side * scale)) for side in rgb.size)
    left, top = (width - size_px) // 2, (height - size_px) // 2
    resized = rgb.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size_px, top + size_px))


def _channels(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=-1)


def folder_digest(folder: Path) -> str:
    """SHA-256 (hex) over every file of a folder of judges and its name there."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            total.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest()
