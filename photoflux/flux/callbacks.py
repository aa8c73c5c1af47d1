"""What happens between train steps: candidates are scored, progress is told, and a state is saved that a killed run goes on from."""

from __future__ import annotations

import io
import logging
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

import pytorch_lightning as pl
import torch

if TYPE_CHECKING:
    from photoflux.flux.module import FinetuneModule
    from photoflux.vault.sealed_store import SealedStore

log = logging.getLogger(__name__)

STATE = "state.pt"
PROGRESS_EVERY_S = 5.0


class AfterTrainStep(pl.Callback, ABC):
    """Calls `after` once for every finished train step, however many parts its batch had."""

    last = 0

    def setup(self, trainer: pl.Trainer, module: Any, stage: str) -> None:
        self.last = module.train_step

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if module.train_step != self.last:
            self.last = module.train_step
            self.after(trainer, module)

    @abstractmethod
    def after(self, trainer: pl.Trainer, module: FinetuneModule) -> None: ...


class Selector(Protocol):
    """What scores the module as it is now: `judges.checkpoint_selection.CheckpointSelector`."""

    def score(self, module: FinetuneModule) -> dict[str, Any]: ...


class ScoreCheckpoints(AfterTrainStep):
    """Scores the averaged weights at intervals and at the end."""

    def __init__(self, selector: Selector) -> None:
        self.selector = selector

    def after(self, trainer: pl.Trainer, module: FinetuneModule) -> None:
        if module.train_step % module.params.checkpoint_every == 0 or module.train_step == module.params.steps:
            module.candidates.append(self.selector.score(module))


class LogProgress(AfterTrainStep):
    """A line every few seconds: step, losses, pace, time left."""

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.started, self.first, self.told = time.monotonic(), module.train_step, 0.0
        if module.train_step:
            log.info("going on from step %d of %d", module.train_step, module.params.steps)

    def after(self, trainer: pl.Trainer, module: FinetuneModule) -> None:
        now, total = time.monotonic(), module.params.steps
        if now - self.told < PROGRESS_EVERY_S and module.train_step < total:
            return
        self.told, curve = now, module.curve
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


class SaveState(AfterTrainStep):
    """Saves at intervals what a killed run goes on from. What is stored is always whole: the last state or the one before."""

    def __init__(self, store: SealedStore) -> None:
        self.store, self.state = store, dict[str, Any]()

    def restore(self, module: FinetuneModule) -> None:
        """Bring the module to where the stored state was, if there is one; the optimiser's part waits for the optimiser."""
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
