"""Parameters of the training."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from photoflux.params.model import Params


class FinetuneParams(Params):
    """How the subject is trained into a LoRA adapter of the frozen base."""

    step: ClassVar[str] = "finetune"

    base: str = Field(default="pocket", description="Base to be trained: a name in models/ or the path of a spec .yaml")
    rank: int = Field(default=16, ge=1, le=256, description="Rank of the adapter")
    alpha: float = Field(
        default=16.0, ge=0.1, le=1024, description="Strength of the adapter; its updates are scaled by alpha/rank"
    )
    steps: int = Field(default=100, ge=1, le=10_000, description="Optimiser steps")
    batch_size: int = Field(default=4, ge=1, le=64, description="Photos per step")
    lr: float = Field(default=0.005, ge=1e-07, le=0.1, description="Peak learning rate of AdamW")
    warmup_steps: int = Field(
        default=5,
        ge=0,
        le=1000,
        description="Steps of linear warm-up before a constant rate, which falls along a cosine in the last third",
    )
    weight_decay: float = Field(default=0.0001, ge=0, le=1, description="Weight decay of AdamW")
    clip_norm: float = Field(default=1.0, ge=0.01, le=100, description="Largest norm of the adapter's gradient")
    ema: float = Field(
        default=0.97, ge=0, le=0.9999, description="Decay of the averaged weights that are kept; 0: the last weights"
    )
    serving_sigmas: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of noise levels drawn from the steps used in serving; the rest is logit-normal",
    )
    high_sigmas: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Share of the noise levels above .9 that photos are trained at; less keeps compositions varied",
    )
    preservation: float = Field(
        default=2.0,
        ge=0,
        le=100,
        description="Weight of staying like the base without the trigger; 0: plain training",
    )
    preservation_batch: int = Field(default=4, ge=0, le=64, description="Preserved prompts per step")
    preservation_prompts: int = Field(default=48, ge=1, le=2000, description="Pictures of the base that are preserved")
    checkpoint_every: int = Field(
        default=25, ge=1, le=10_000, description="Steps between candidates that are drawn and judged"
    )
    save_every: int = Field(default=25, ge=1, le=10_000, description="Steps between saved states to resume from")
    select: Literal["best", "last"] = Field(
        default="best", description="Which candidate is kept; best: by identity against prompt and leakage"
    )
    skipped_max: int = Field(
        default=5, ge=0, le=1000, description="Steps with a loss that is not finite before giving up"
    )
    seed: int = Field(default=0, ge=0, le=10**9, description="Decides initial weights, batches and noise")

    @model_validator(mode="after")
    def _check_preservation(self) -> Self:
        if self.preservation and not self.preservation_batch:
            raise ValueError(
                "finetune.preservation_batch is 0: preserve at least one prompt a step, or set preservation to 0."
            )
        return self
