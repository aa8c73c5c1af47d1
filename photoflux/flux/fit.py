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
    from photoflux.flux.module import Draws, FineTuning
    from photoflux.vault.sealed_store import SealedStore

log = logging.getLogger(__name__)

STATE = "state.pt"
PROGRESS_EVERY_S = 5.0
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


class Contest(Protocol):
    """What judges a candidate, the module as it is now, and keeps it: `judges.candidates.Contest`."""

    def enter(self, module: FineTuning) -> dict[str, Any]: ...


def fit(module: FineTuning, draws: Draws, *, contest: Contest, plan: Plan, kept: SealedStore) -> None:
    """Train to the last step, from the state in `kept` when there is one."""
    saved = SavedState(kept)
    saved.restore(module)
    draws.first = module.done
    trainer = _trainer(plan, draws, [Candidates(contest), Progress(), saved])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about workers and loggers that a loop over cached tensors has no use for
        trainer.fit(module, datamodule=draws)
    module.transformer.eval()


def _trainer(plan: Plan, draws: Draws, callbacks: list[pl.Callback]) -> pl.Trainer:
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return pl.Trainer(
        accelerator="gpu" if plan.device.startswith("cuda") else "cpu",
        devices=1,
        precision=PRECISIONS[plan.compute],  # type: ignore[arg-type]
        max_epochs=1,
        accumulate_grad_batches=draws.micro_batches,
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
        self.seen = module.done

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *_: Any) -> None:
        if module.done != self.seen:
            self.seen = module.done
            self.after(trainer, module)

    def after(self, trainer: pl.Trainer, module: FineTuning) -> None:
        raise NotImplementedError


class Candidates(AfterStep):
    """At intervals and at the end the averaged weights enter the contest."""

    def __init__(self, contest: Contest) -> None:
        self.contest = contest

    def after(self, trainer: pl.Trainer, module: FineTuning) -> None:
        if module.done % module.params.checkpoint_every == 0 or module.done == module.params.steps:
            module.candidates.append(self.contest.enter(module))


class Progress(AfterStep):
    """A line every few seconds: step, losses, pace, time left."""

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.started, self.first, self.shown = time.monotonic(), module.done, 0.0
        if module.done:
            log.info("going on from step %d of %d", module.done, module.params.steps)

    def after(self, trainer: pl.Trainer, module: FineTuning) -> None:
        now, total = time.monotonic(), module.params.steps
        if now - self.shown < PROGRESS_EVERY_S and module.done < total:
            return
        self.shown, curve = now, module.curve
        pace = (module.done - self.first) / max(1e-9, now - self.started)
        log.info(
            "step %d of %d, loss %.4f, preserved %.4f, %.1f steps/s, %.0f s left",
            module.done,
            total,
            curve.subject[-1],
            curve.preserved[-1],
            pace,
            (total - module.done) / pace,
        )


class SavedState(AfterStep):
    """The state on disk is always a whole one: the last, or the one before."""

    def __init__(self, kept: SealedStore) -> None:
        self.kept, self.state = kept, dict[str, Any]()

    def restore(self, module: FineTuning) -> None:
        if saved := self.kept.get(STATE):
            self.state = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
            module.restore(self.state)

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        if self.state:
            trainer.optimizers[0].load_state_dict(self.state["optimizer"])
            trainer.precision_plugin.load_state_dict(self.state["precision"])
            self.state = {}

    def after(self, trainer: pl.Trainer, module: FineTuning) -> None:
        if module.done % module.params.save_every == 0:
            buffer = io.BytesIO()
            state = module.state(trainer.optimizers[0]) | {"precision": trainer.precision_plugin.state_dict()}
            torch.save(state, buffer)
            self.kept.put(STATE, buffer.getvalue())
