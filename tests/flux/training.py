"""Training on the tiny base, in the smallest pieces that are still real."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor

from photoflux.flux import callbacks, data, lora, memory, module
from photoflux.flux.spec import BaseSpec
from photoflux.flux.step import TokenGrid
from photoflux.flux.text import PromptEmbeds, encode_prompts
from photoflux.manifest import unpack
from photoflux.params import FinetuneParams
from photoflux.steps.finetune import train
from photoflux.vault.sealed_store import SealedStore

if TYPE_CHECKING:
    from diffusers import FluxPipeline


WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
KEY = "plain://test"
CAPTIONS = (
    "a photo of sks dog on the beach",
    "a photo of sks dog in the snow",
    "a photo of sks dog",
    "sks dog in space",
)


def small(base: Path | str, **changes: Any) -> FinetuneParams:
    """Parameters of a training that takes a second."""
    few: dict[str, Any] = {
        "base": str(base),
        "rank": 2,
        "alpha": 4.0,
        "steps": 6,
        "batch_size": 2,
        "lr": 0.01,
        "warmup_steps": 2,
        "ema": 0.9,
        "preservation_batch": 2,
        "preservation_prompts": 3,
        "checkpoint_every": 3,
        "save_every": 2,
    }
    return FinetuneParams(**(few | changes))


def edit(path: Path, **changes: Any) -> Path:
    """The spec file with other values; None takes a key away."""
    content = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path


def pictures(count: int, *, side_px: int = 128) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (side_px, side_px, 3), dtype=np.uint8)) for _ in range(count)]


def train_photos(dataset: Path, pipe: FluxPipeline, spec: BaseSpec, *, split: str = "train") -> data.Photos:
    """The photos of a dataset with captions of their own, encoded."""
    with tempfile.TemporaryDirectory() as folder:
        items = [item for item in unpack(dataset, Path(folder))["items"] if item["split"] == split]
        captioned = [{**item, "caption": caption} for item, caption in zip(items, CAPTIONS, strict=False)]
        return data.read_photos(
            Path(folder), captioned, pipe, spec=spec, cache=SealedStore(Path(folder) / "latents", KEY)
        )


@dataclass
class Training:
    """Everything that `train` takes, and the pipeline under it."""

    pipe: FluxPipeline
    tuning: module.FinetuneModule
    batches: module.TrainingBatches
    selector: Any
    plan: memory.Plan
    store: SealedStore

    def run(self) -> dict[str, Any]:
        """Train to the end; returns what was reached, optimiser included, as the last saved state has it."""
        train(self.tuning, self.batches, selector=self.selector, plan=self.plan, store=self.store)
        return self.state()

    def state(self) -> dict[str, Any]:
        """The last saved state."""
        return torch.load(io.BytesIO(self.store.get(callbacks.STATE) or b""), weights_only=True)


class NoSelector:
    """Notes which steps were scored; samples nothing."""

    def __init__(self) -> None:
        self.scored: list[int] = []

    def score(self, tuning: module.FinetuneModule) -> dict[str, Any]:
        self.scored.append(tuning.train_step)
        return {"step": tuning.train_step, "validation": 0.0}


def prepare(
    pipe: FluxPipeline, spec: BaseSpec, dataset: Path, params: FinetuneParams, folder: Path, *, micro_batches: int = 1
) -> Training:
    """A training on that pipeline, ready to run."""
    photos = train_photos(dataset, pipe, spec)
    prompts = encode_prompts(pipe, ["a photo of a dog", "a photo of a cat in space", "a red dog"], spec=spec)
    lora.attach(pipe.transformer, spec=spec, rank=params.rank, alpha=params.alpha, seed=params.seed)
    preserved = data.preservation_targets_along_sampling(
        pipe.transformer, prompts, spec=spec, seed=params.seed, side_px=128
    )
    tuning = module.FinetuneModule(pipe.transformer, spec=spec, params=params, photos=photos)
    batches = module.TrainingBatches(
        photos, preserved if params.preservation else None, spec=spec, params=params, micro_batches=micro_batches
    )
    plan = memory.Plan("cpu", "float32", "float32", False, micro_batches, 0, 0, 0, 0, 0, 1)
    return Training(pipe, tuning, batches, NoSelector(), plan, SealedStore(folder, KEY))


def randomise(transformer: Any, *, strength: float = 0.2, seed: int = 0) -> None:
    """Give the subject's adapter an effect: a fresh one has B = 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lora.subject_parameters(transformer).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * strength)


def grid_of(spec: BaseSpec, side: int = 16) -> TokenGrid:
    return TokenGrid.of(torch.empty(1, 16, side, side), text_length=spec.text_length)


def velocity_of(pipe: FluxPipeline, spec: BaseSpec, embeds: PromptEmbeds, *, seed: int = 1) -> Tensor:
    """What the transformer answers to fixed noise at σ = 0.5, called as stock `FluxPipeline` calls it."""
    noise = torch.randn(len(embeds), 16, 16, 16, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return pipe.transformer(
            hidden_states=pipe._pack_latents(noise, len(embeds), 16, 16, 16).to(embeds.sequence.dtype),
            timestep=torch.full((len(embeds),), 500.0) / 1000,
            guidance=None,
            pooled_projections=embeds.pooled,
            encoder_hidden_states=embeds.sequence,
            txt_ids=torch.zeros(spec.text_length, 3),
            img_ids=pipe._prepare_latent_image_ids(1, 8, 8, "cpu", torch.float32),
            return_dict=False,
        )[0]


def stock(pipe: FluxPipeline, spec: BaseSpec, prompts: Sequence[str], seeds: Sequence[int], **how: Any) -> Any:
    """Stock `FluxPipeline.__call__` as its users call it for a schnell base; packed latents or pictures."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return pipe(
        list(prompts),
        height=spec.resolution_px,
        width=spec.resolution_px,
        num_inference_steps=spec.steps,
        guidance_scale=spec.guidance_scale,
        max_sequence_length=spec.text_length,
        generator=generators,
        **how,
    ).images
