"""Runs the training: Lightning's loop with candidates, progress lines, and a state that a killed run goes on from."""

from __future__ import annotations

import io
import logging
import time
import warnings
from typing import TYPE_CHECKING, Any, Protocol

import pytorch_lightning as pl
import torch

if TYPE_CHECKING:
    from photoflux.flux.memory import Plan
    from photoflux.flux.module import FinetuneModule, TrainingBatches
    from photoflux.vault.drawer import Drawer

log = logging.getLogger(__name__)

STATE = "state.pt"
PROGRESS_EVERY_S = 5.0
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


class CheckpointSelector(Protocol):
    """What scores the module as it is now, and stores it: `judges.checkpoint_selection.CheckpointSelector`."""

    def score(self, module: FinetuneModule) -> dict[str, Any]: ...


def fit(
    module: FinetuneModule, batches: TrainingBatches, *, selector: CheckpointSelector, plan: Plan, store: Drawer
) -> None:
    """Train to the last step, from the state in `store` when there is one."""
    saved = SavedState(store)
    saved.restore(module)
    batches.first = module.train_step
    trainer = _trainer(plan, batches, [ScoreCheckpoints(selector), Progress(), saved])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about workers and loggers that a loop over cached tensors has no use for
        trainer.fit(module, datamodule=batches)
    module.transformer.eval()


def _trainer(plan: Plan, batches: TrainingBatches, callbacks: list[pl.Callback]) -> pl.Trainer:
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return pl.Trainer(
        accelerator="gpu" if plan.device.startswith("cuda") else "cpu",
        devices=1,
        precision=PRECISIONS[plan.compute],  # type: ignore[arg-type]
        max_epochs=1,
        accumulate_grad_batches=batches.micro_batches,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
    )


class AfterStep(pl.Callback):
    """Calls `after` once for every finished step, however many parts its batch had."""

    seen = 0

    def setup(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        self.seen = module.train_step

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if module.train_step != self.seen:
            self.seen = module.train_step
            self.after(trainer, module)

    def after(self, trainer: pl.Trainer, module: FinetuneModule) -> None:
        raise NotImplementedError


class ScoreCheckpoints(AfterStep):
    """Scores the averaged weights at intervals and at the end."""

    def __init__(self, selector: CheckpointSelector) -> None:
        self.selector = selector

    def after(self, trainer: pl.Trainer, module: FinetuneModule) -> None:
        if module.train_step % module.params.checkpoint_every == 0 or module.train_step == module.params.steps:
            module.candidates.append(self.selector.score(module))


class Progress(AfterStep):
    """A line every few seconds: step, losses, pace, time left."""

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.started, self.first, self.shown = time.monotonic(), module.train_step, 0.0
        if module.train_step:
            log.info("going on from step %d of %d", module.train_step, module.params.steps)

    def after(self, trainer: pl.Trainer, module: FinetuneModule) -> None:
        now, total = time.monotonic(), module.params.steps
        if now - self.shown < PROGRESS_EVERY_S and module.train_step < total:
            return
        self.shown, curve = now, module.curve
        pace = (module.train_step - self.first) / max(1e-9, now - self.started)
        log.info(
            "step %d of %d, loss %.4f, preserved %.4f, %.1f steps/s, %.0f s left",
            module.train_step,
            total,
            curve.subject[-1],
            curve.preserved[-1],
            pace,
            (total - module.train_step) / pace,
        )


class SavedState(AfterStep):
    """The state on disk is always a whole one: the last, or the one before."""

    def __init__(self, store: Drawer) -> None:
        self.store, self.state = store, dict[str, Any]()

    def restore(self, module: FinetuneModule) -> None:
        if saved := self.store.get(STATE):
            self.state = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
            module.restore(self.state)

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        if self.state:
            trainer.optimizers[0].load_state_dict(self.state["optimizer"])
            trainer.precision_plugin.load_state_dict(self.state["precision"])
            self.state = {}

    def after(self, trainer: pl.Trainer, module: FinetuneModule) -> None:
        if module.train_step % module.params.save_every == 0:
            buffer = io.BytesIO()
            state = module.state(trainer.optimizers[0]) | {"precision": trainer.precision_plugin.state_dict()}
            torch.save(state, buffer)
            self.store.put(STATE, buffer.getvalue())
