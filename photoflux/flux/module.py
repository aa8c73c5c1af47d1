"""Fine-tuning as a Lightning module and the batches it trains on: exact flow matching, preservation, averaged weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from photoflux.errors import PhotoFluxError
from photoflux.flux.data import photo_grid
from photoflux.flux.ema import update_average
from photoflux.flux.lora import copy_weights, subject_parameters
from photoflux.flux.step import add_noise, predict, sample_sigmas
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

    `sequence` [B, L, D] and `pooled` [B, P] are the prompts' embeddings. Weights [B] pick the rows of each part of the loss:
    those of photos, and those of preservation targets, add up to 1 each and are 0 on the rows of the other.
    """

    tokens: Tensor
    targets: Tensor
    sigmas: Tensor
    sequence: Tensor
    pooled: Tensor
    photo_weights: Tensor
    preservation_weights: Tensor


class TrainingBatches(IterableDataset[Batch]):
    """A batch per train step, from step `first` on, each in `micro_batches` parts; a batch depends on (seed, step) alone."""

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

    def __iter__(self) -> Iterator[Batch]:
        for train_step in range(self.first, self.params.steps):
            batch = self.batch(train_step)
            # every n-th row, so that each part has photos and preservation targets
            for part in range(self.micro_batches):
                yield Batch(*(tensor[part :: self.micro_batches] for tensor in batch))

    def batch(self, train_step: int) -> Batch:
        """Everything that step number `train_step` trains on: noised photos, then preservation targets."""
        p, count = self.params, self.params.batch_size
        generator = torch.Generator().manual_seed(p.seed * 1_000_003 + train_step)
        rows = in_turn(len(self.photos), train_step=train_step, count=count, seed=p.seed)
        clean, captions = self.photos.tokens[rows], self.photos.captions.take(rows)
        noise = torch.randn(clean.shape, generator=generator)
        sigmas = sample_sigmas(
            count,
            generator=generator,
            serving_share=p.serving_sigmas,
            denoise_steps=self.spec.steps,
            high_share=p.high_sigmas,
        )
        # x_σ = (1 - σ) z + σ ε is a straight way from photo z to noise ε: along it the velocity dx/dσ is ε - z.
        noised, velocity = add_noise(clean, noise, sigmas), noise - clean
        each, none = torch.full((count,), 1 / count), torch.zeros(count)
        photos = Batch(noised, velocity, sigmas, captions.sequence, captions.pooled, each, none)
        if self.targets is None or not p.preservation or not p.preservation_batch:
            return photos

        targets, count = self.targets, p.preservation_batch
        rows = in_turn(len(targets), train_step=train_step, count=count, seed=p.seed + 1)
        points = targets.tokens[rows], targets.velocity[rows], targets.sigmas[rows]
        prompts = targets.prompts.take(targets.owners[rows])
        each, none = torch.full((count,), 1 / count), torch.zeros(count)
        preserved = Batch(*points, prompts.sequence, prompts.pooled, none, each)
        return Batch(*(torch.cat(pair) for pair in zip(photos, preserved, strict=True)))


def in_turn(items: int, *, train_step: int, count: int, seed: int) -> list[int]:
    """`count` of `items` for one step; over the steps each comes equally often, in an order shuffled per round."""

    def shuffled(number: int) -> list[int]:
        generator = torch.Generator().manual_seed((seed + 7) * 1_000_033 + number)
        return torch.randperm(items, generator=generator).tolist()

    first = train_step * count
    rounds = {number: shuffled(number) for number in range(first // items, (first + count - 1) // items + 1)}
    return [rounds[place // items][place % items] for place in range(first, first + count)]


@dataclass
class Curve:
    """Losses by step, for `curves.json`."""

    steps: list[int] = field(default_factory=list)
    subject: list[float] = field(default_factory=list)
    preserved: list[float] = field(default_factory=list)


class FinetuneModule(pl.LightningModule):
    """Trains the subject's adapter. `train_step` counts finished steps; `average` is the moving average that is shipped."""

    def __init__(self, transformer: Any, *, spec: BaseSpec, params: FinetuneParams, photos: Photos) -> None:
        super().__init__()
        self.transformer, self.spec, self.params = transformer, spec, params
        self.trained = subject_parameters(transformer)
        self.grid = photo_grid(photos, device=transformer.device)
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        self.curve, self.candidates = Curve(), list[dict[str, Any]]()
        self.train_step = self.skipped = 0
        self._losses, self._loss_not_finite = [0.0, 0.0], False

    def configure_optimizers(self) -> torch.optim.Optimizer:
        p = self.params
        return torch.optim.AdamW(self.trained.values(), lr=p.lr, betas=(0.9, 0.99), weight_decay=p.weight_decay)

    # One train step: Lightning calls training_step and a backward pass for each part of the batch, clips, and lets AdamW step.
    # optimizer_step encloses the last part: AdamW calls it as its closure.

    def training_step(self, batch: Batch, _: int) -> Tensor | None:
        errors = self.errors(batch)
        subject, preserved = errors @ batch.photo_weights, errors @ batch.preservation_weights
        loss = subject + self.params.preservation * preserved
        if not torch.isfinite(loss):
            self._loss_not_finite = True
            self._skip("loss")
            return None
        self._losses = [sum(pair) for pair in zip(self._losses, (subject.item(), preserved.item()), strict=True)]
        # Lightning divides by the number of parts; but weights of rows add up to 1 over all parts together.
        return loss * self.trainer.accumulate_grad_batches

    def errors(self, batch: Batch) -> Tensor:
        """Mean squared velocity error of each row, in float32: [B]."""
        embeds = PromptEmbeds(batch.sequence, batch.pooled)
        velocity = predict(self.transformer, batch.tokens, batch.sigmas, embeds, self.grid)
        return (velocity.float() - batch.targets).square().flatten(1).mean(1)

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip what is trained, and nothing else; a step of which any part is not finite changes nothing."""
        norm = nn.utils.clip_grad_norm_(self.trained.values(), self.params.clip_norm)
        loss_finite, gradient_finite = not self._loss_not_finite, bool(torch.isfinite(norm))
        self._loss_not_finite = False
        if loss_finite and gradient_finite:
            return
        optimizer.zero_grad(set_to_none=True)  # AdamW leaves out weights without a gradient
        if loss_finite:
            # Not finite for all that the loss is: in float16 this is how a scaler finds its scale. It begins far too high by
            # design, halves at each such step, and rises again after 2,000 good ones; below SCALE_FLOOR it is the training.
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            if scaler is not None and (scale := scaler.get_scale()) > SCALE_FLOOR:
                log.info("step %d overflows at a loss scale of %g, which is lowered", self.train_step + 1, scale)
            else:
                self._skip("gradient")

    def optimizer_step(self, _epoch: int, _batch: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.params.lr * learning_rate_factor(self.train_step, self.params)
        optimizer.step(closure=optimizer_closure)
        update_average(self.average.values(), self.trained.values(), decay=self.params.ema, train_step=self.train_step)
        self.train_step += 1
        self.curve.steps.append(self.train_step)
        self.curve.subject.append(self._losses[0])
        self.curve.preserved.append(self._losses[1])
        self._losses = [0.0, 0.0]

    def _skip(self, what: str) -> None:
        self.skipped += 1
        log.warning(
            "step %d has a %s that is not finite and is skipped (%d so far)", self.train_step + 1, what, self.skipped
        )
        if self.skipped > self.params.skipped_max:
            raise PhotoFluxError(
                f"fine-tuning diverged: {self.skipped} steps were not finite, the last of them step {self.train_step + 1}; "
                f"lower finetune.lr (now {self.params.lr:g}) or raise finetune.warmup_steps"
            )

    @torch.no_grad()
    def validation_loss(self, photos: Photos) -> float:
        """Velocity error on held-out photos at the serving noise levels, with fixed noise and the weights as they are."""
        noise = torch.randn(photos.tokens.shape, generator=torch.Generator().manual_seed(VALIDATION_SEED))
        captions, total = photos.captions, 0.0
        for denoise_step in range(self.spec.steps):
            sigmas = torch.full((len(photos),), 1 - denoise_step / self.spec.steps)
            noised, velocity = add_noise(photos.tokens, noise, sigmas), noise - photos.tokens
            # weights unused
            batch = Batch(noised, velocity, sigmas, captions.sequence, captions.pooled, sigmas, sigmas)
            batch = Batch(*(tensor.to(self.transformer.device) for tensor in batch))
            total += self.errors(batch).mean().item()
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


def learning_rate_factor(train_step: int, params: FinetuneParams) -> float:
    """Factor on the learning rate at a step: linear warm-up, constant, and a cosine over the last third."""
    warm = min(1.0, (train_step + 1) / max(1, params.warmup_steps))
    last = min(1.0, max(0.0, 3 * train_step / params.steps - 2))
    return warm * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * last)))
