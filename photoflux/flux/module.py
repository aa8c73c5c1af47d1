"""Fine-tuning as a Lightning module and data module: exact flow matching, preservation, averaged weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from photoflux.errors import PhotoFluxError
from photoflux.flux.data import photo_grid
from photoflux.flux.ema import update_average
from photoflux.flux.lora import copy_weights, subject_parameters
from photoflux.flux.step import add_noise, draw_sigmas, predict
from photoflux.flux.text import PromptEmbeds

if TYPE_CHECKING:
    from photoflux.flux.data import Photos, PreservationTargets
    from photoflux.flux.spec import BaseSpec
    from photoflux.params import FinetuneParams

log = logging.getLogger(__name__)

FINAL_RATE = 0.1
"""Share of the learning rate that is left at the last step."""
VALIDATION_SEED = 17
SCALE_FLOOR = 1.0
"""A loss scale above this is still searched for: float16 gradients that overflow then say nothing of the training."""


class Batch(NamedTuple):
    """Where the transformer is asked and what it should answer: `tokens`, `targets` [B, T, 64], `sigmas` [B].

    Row weights [B] add up to 1 for the photos and, with the preservation weight in them, for what is preserved.
    """

    tokens: Tensor
    targets: Tensor
    sigmas: Tensor
    sequence: Tensor
    pooled: Tensor
    photo_weights: Tensor
    preservation_weights: Tensor

    def rows(self, part: slice) -> Batch:
        return Batch(*(tensor[part] for tensor in self))


class TrainingBatches(pl.LightningDataModule):
    """Batches that depend on (seed, step) alone, from step `first` on, each in `micro_batches` parts."""

    def __init__(
        self,
        photos: Photos,
        targets: PreservationTargets | None,
        *,
        spec: BaseSpec,
        params: FinetuneParams,
        micro_batches: int = 1,
    ) -> None:
        super().__init__()
        self.photos, self.targets = photos, targets
        self.spec, self.params, self.micro_batches, self.first = spec, params, micro_batches, 0

    def batch(self, step: int) -> Batch:
        """Everything that step number `step` trains on."""
        generator = torch.Generator().manual_seed(self.params.seed * 1_000_003 + step)
        parts = [self._of_photos(step, generator)]
        if self.targets is not None and self.params.preservation and self.params.preservation_batch:
            parts.append(self._of_targets(self.targets, step))
        return Batch(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def _of_photos(self, step: int, generator: torch.Generator) -> Batch:
        p, count = self.params, self.params.batch_size
        rows = in_turn(len(self.photos), train_step=step, count=count, seed=p.seed)
        clean, captions = self.photos.tokens[rows], self.photos.captions.take(rows)
        noise = torch.randn(clean.shape, generator=generator)
        sigmas = draw_sigmas(
            count,
            generator=generator,
            serving_share=p.serving_sigmas,
            denoise_steps=self.spec.steps,
            high_share=p.high_sigmas,
        )
        each, none = torch.full((count,), 1 / count), torch.zeros(count)
        return Batch(add_noise(clean, noise, sigmas), noise - clean, sigmas, *_pair(captions), each, none)

    def _of_targets(self, held: PreservationTargets, step: int) -> Batch:
        count = self.params.preservation_batch
        rows = in_turn(len(held), train_step=step, count=count, seed=self.params.seed + 1)
        each, none = torch.full((count,), 1 / count), torch.zeros(count)
        prompts = held.prompts.take(held.owners[rows])
        return Batch(held.tokens[rows], held.velocity[rows], held.sigmas[rows], *_pair(prompts), none, each)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(_Steps(self), batch_size=None)


class _Steps(IterableDataset[Batch]):
    def __init__(self, batches: TrainingBatches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.batches.first, self.batches.params.steps):
            batch = self.batches.batch(step)
            for part in range(self.batches.micro_batches):
                yield batch.rows(slice(part, None, self.batches.micro_batches))


def in_turn(items: int, *, train_step: int, count: int, seed: int) -> list[int]:
    """`count` of `items` for one step; over the steps each comes equally often, in an order shuffled per round."""
    first = train_step * count
    rounds = {
        number: _shuffled(items, number, seed) for number in range(first // items, (first + count - 1) // items + 1)
    }
    return [rounds[place // items][place % items] for place in range(first, first + count)]


def _shuffled(items: int, number: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed((seed + 7) * 1_000_033 + number)
    return torch.randperm(items, generator=generator).tolist()


def _pair(embeds: PromptEmbeds) -> tuple[Tensor, Tensor]:
    return embeds.sequence, embeds.pooled


@dataclass
class Curve:
    """Losses by step, for `curves.json`."""

    steps: list[int] = field(default_factory=list)
    subject: list[float] = field(default_factory=list)
    preserved: list[float] = field(default_factory=list)


class FinetuneModule(pl.LightningModule):
    """Trains the subject's adapter. `done` counts finished steps; `average` is the moving average that is shipped."""

    def __init__(self, transformer: Any, *, spec: BaseSpec, params: FinetuneParams, photos: Photos) -> None:
        super().__init__()
        self.transformer, self.spec, self.params = transformer, spec, params
        self.trained = subject_parameters(transformer)
        self.grid = photo_grid(photos, device=transformer.device)
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        self.curve, self.candidates = Curve(), list[dict[str, Any]]()
        self.train_step = self.skipped = 0
        self._losses, self._spoilt = [0.0, 0.0], False

    def errors(self, batch: Batch) -> Tensor:
        """Mean squared velocity error of each row, in float32: [B]."""
        embeds = PromptEmbeds(batch.sequence, batch.pooled)
        velocity = predict(self.transformer, batch.tokens, batch.sigmas, embeds, self.grid)
        return (velocity.float() - batch.targets).square().flatten(1).mean(1)

    def training_step(self, batch: Batch, _: int) -> Tensor | None:
        errors = self.errors(batch)
        subject, preserved = errors @ batch.photo_weights, errors @ batch.preservation_weights
        loss = subject + self.params.preservation * preserved
        if not torch.isfinite(loss):
            self._spoilt = True
            self._skip("loss")
            return None
        self._losses = [sum(pair) for pair in zip(self._losses, (subject.item(), preserved.item()), strict=True)]
        return loss * self.trainer.accumulate_grad_batches

    def configure_optimizers(self) -> torch.optim.Optimizer:
        p = self.params
        return torch.optim.AdamW(self.trained.values(), lr=p.lr, betas=(0.9, 0.99), weight_decay=p.weight_decay)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip what is trained, and nothing else; a step of which any part is not finite changes nothing."""
        norm = nn.utils.clip_grad_norm_(self.trained.values(), self.params.clip_norm)
        finite = bool(torch.isfinite(norm))
        if self._spoilt or not finite:
            optimizer.zero_grad(set_to_none=True)
        if not self._spoilt and not finite:
            self._overflowed()
        self._spoilt = False

    def _overflowed(self) -> None:
        """A gradient is not finite though the loss is: the loss scaler's search for its scale, or a step that is skipped.

        A scaler begins far too high by design, halves its scale at each such step and raises it again after 2,000 good ones.
        """
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and (scale := scaler.get_scale()) > SCALE_FLOOR:
            log.info("step %d overflows at a loss scale of %g, which is lowered", self.train_step + 1, scale)
        else:
            self._skip("gradient")

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.params.lr * learning_rate_factor(self.train_step, self.params)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self._update_average()
        self.train_step += 1
        self._note()

    def _update_average(self) -> None:
        update_average(self.average.values(), self.trained.values(), decay=self.params.ema, train_step=self.train_step)

    def _note(self) -> None:
        subject, preserved = self._losses
        self.curve.steps.append(self.train_step)
        self.curve.subject.append(subject)
        self.curve.preserved.append(preserved)
        self._losses = [0.0, 0.0]

    def _skip(self, what: str) -> None:
        self.skipped += 1
        log.warning(
            "step %d has a %s that is not finite and is skipped (%d so far)", self.train_step + 1, what, self.skipped
        )
        if self.skipped > self.params.skipped_max:
            raise PhotoFluxError(
                f"fine-tuning diverged: {self.skipped} steps were not finite, the last of them step {self.train_step + 1}; lower "
                f"finetune.lr (now {self.params.lr:g}) or raise finetune.warmup_steps"
            )

    @torch.no_grad()
    def validation_loss(self, photos: Photos) -> float:
        """Velocity error of the averaged weights on held-out photos at the serving noise levels, with fixed noise."""
        noise = torch.randn(photos.tokens.shape, generator=torch.Generator().manual_seed(VALIDATION_SEED))
        total = 0.0
        for step in range(self.spec.steps):
            sigmas = torch.full((len(photos),), 1 - step / self.spec.steps)
            rows = Batch(
                add_noise(photos.tokens, noise, sigmas),
                noise - photos.tokens,
                sigmas,
                *_pair(photos.captions),
                sigmas,
                sigmas,
            )
            total += self.errors(Batch(*(tensor.to(self.transformer.device) for tensor in rows))).mean().item()
        return total / self.spec.steps

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """All that resuming needs; never the frozen base."""
        return {
            "adapter": {name: p.detach().cpu() for name, p in self.trained.items()},
            "average": {name: value.cpu() for name, value in self.average.items()},
            "optimizer": optimizer.state_dict(),
            "curve": vars(self.curve),
            "candidates": self.candidates,
            "train_step": self.train_step,
            "skipped": self.skipped,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a saved state, all but the optimiser's, which does not exist yet."""
        copy_weights(self.transformer, state["adapter"])
        for name, value in state["average"].items():
            self.average[name].copy_(value)
        self.curve, self.candidates = Curve(**state["curve"]), list(state["candidates"])
        self.train_step, self.skipped = state["train_step"], state["skipped"]


def learning_rate_factor(step: int, params: FinetuneParams) -> float:
    """Multiplier of the learning rate at `step`: linear warm-up, constant, and a cosine over the last third."""
    warm = min(1.0, (step + 1) / max(1, params.warmup_steps))
    last = min(1.0, max(0.0, 3 * step / params.steps - 2))
    return warm * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * last)))
