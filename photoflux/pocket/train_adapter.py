"""Train the base's training adapter: a LoRA that undoes the distillation, so that flow-matching loss applies again.

Few-step distillation changes the network's output at a noise level. Fine-tuning a subject with the flow-matching loss would
spend the subject's adapter on undoing that, and images get soft. With this adapter the loss is low before the subject is
learnt; it is removed for inference. The public training adapter of FLUX.1 [schnell] works alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from photoflux.pocket.data import Cache
from photoflux.pocket.models import PocketConfig, lora_targets
from photoflux.pocket.train_flow import Flow, LatentSet, hard_captions, sample_batch
from photoflux.pocket.training import Budget, Recipe, Run, load_average, math_attention, mixed_precision

if TYPE_CHECKING:
    from diffusers import FluxPipeline

NAME, FILE = "training_adapter", "pytorch_lora_weights.safetensors"
RANK = 16
RECIPE = Recipe(lr=2e-3, warmup_steps=50, weight_decay=0.0)
SEED_OFFSET = 2
"""Added to the seed, so that batches differ from those of the flow and of the distillation."""


class Adapter(nn.Module):
    """The LoRA's parameters as a module; they are shared with the transformer."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        for name, parameter in transformer.named_parameters():
            if f".{NAME}." in name:
                self.register_parameter(name.replace(".", "/"), parameter)

    def layers(self) -> dict[str, Tensor]:
        """`<layer>.lora_A.weight [R, I]` and `<layer>.lora_B.weight [O, R]` in fp16, named as diffusers names them."""
        return {
            name.replace(f"/{NAME}/", "/").replace("/", "."): parameter.detach().cpu().half().contiguous()
            for name, parameter in self.named_parameters()
        }


@contextmanager
def attached(pipe: FluxPipeline, *, config: PocketConfig, seed: int = 0) -> Iterator[Adapter]:
    """Attach a fresh LoRA (B = 0, so that outputs are unchanged) for the block; all other weights of the flow are frozen there."""
    from peft import LoraConfig

    lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=lora_targets(config), lora_dropout=0.0, bias="none")
    flow, transformer = Flow(pipe).requires_grad_(False), pipe.transformer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(lora, adapter_name=NAME)
    try:
        yield Adapter(transformer)
    finally:
        transformer.delete_adapters(NAME)
        transformer.unload_lora()
        flow.requires_grad_(True)


def train_adapter(
    pipe: FluxPipeline,
    cache: Cache,
    *,
    file: Path,
    config: PocketConfig,
    budget: Budget,
    seed: int,
    batch: int = 64,
    recipe: Recipe = RECIPE,
    compiled: bool = False,
) -> Run:
    """Train the adapter with the loss of the flow, on a base that stays as it is. Its state is in `file`."""
    often = hard_captions(cache, pipe.tokenizer_2)
    with attached(pipe, config=config, seed=seed) as adapter:
        flow = Flow(pipe)
        run = Run("adapter", adapter, file, budget, recipe, seed=seed + SEED_OFFSET)
        predict, data = torch.compile(flow) if compiled else flow, LatentSet.of(cache, run.device, often=often)
        for step in run:
            samples = sample_batch(data, count=batch, generator=run.generator(step))
            with mixed_precision(run.device), math_attention(run.device):
                velocity = predict(samples.noisy, samples.sigma, samples.clip_ids, samples.t5_ids)
            run.update(samples.loss(velocity, samples.velocity), images=batch)
    return run


def export_adapter(pipe: FluxPipeline, folder: Path, *, state: Path, config: PocketConfig) -> bool:
    """Write the averaged adapter of `state` to `folder/FILE`, for stock `load_lora_weights`; False without a state."""
    with attached(pipe, config=config) as adapter:
        if not load_average(state, adapter):
            return False
        layers = adapter.layers()
    type(pipe).save_lora_weights(str(folder), transformer_lora_layers=layers, weight_name=FILE)
    return True
