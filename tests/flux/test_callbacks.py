"""The loop: what a killed training goes on from is bit for bit what it would have become."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch.amp.grad_scaler import GradScaler

from photoflux.errors import PhotoFluxError
from photoflux.flux import callbacks
from photoflux.flux.loading import load_pipeline
from photoflux.flux.module import Batch, learning_rate_factor
from photoflux.flux.spec import BaseSpec
from photoflux.steps.finetune import PRECISIONS, train
from tests.flux.training import Training, prepare, small

if TYPE_CHECKING:
    from diffusers import FluxPipeline

Make = Callable[..., Training]


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def make(spec: BaseSpec, base: Path, dataset: Path, tmp_path: Path) -> Make:
    """A training as a new process would set it up; `folder` is where its state is."""

    def made(folder: str = "work", *, micro_batches: int = 1, **changes: Any) -> Training:
        pipe: FluxPipeline = load_pipeline(spec)
        return prepare(pipe, spec, dataset, small(base, **changes), tmp_path / folder, micro_batches=micro_batches)

    return made


def stop_before(training: Training, step: int) -> Training:
    """Let the training die when it asks for the batch of `step`."""
    batch = training.batches.batch

    def deadly(step_: int) -> Batch:
        if step_ == step:
            raise Killed
        return batch(step_)

    training.batches.batch = deadly  # type: ignore[assignment, method-assign]
    return training


def same(a: Any, b: Any) -> bool:
    """Equal values, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_an_interrupted_training_ends_as_an_uninterrupted_one(step: int, make: Make) -> None:
    """Weights, average, optimiser, losses and candidates are bit-equal, wherever it stopped."""
    check_interrupted(step, make, checkpoint_every=2)


@pytest.mark.parametrize("step", [3, 5])
def test_a_training_in_parts_goes_on_too(step: int, make: Make) -> None:
    """The first part of a resumed step finishes none: no candidate enters twice, and progress does not stumble."""
    check_interrupted(step, make, checkpoint_every=2, micro_batches=2)


def check_interrupted(step: int, make: Make, **how: Any) -> None:
    whole = make("whole", **how).run()
    with pytest.raises(Killed):
        stop_before(make(**how), step).run()
    torch.manual_seed(1234 + step)
    resumed = make(**how)
    state = resumed.run()
    assert resumed.tuning.train_step == 6
    assert len(state["curve"]["steps"]) == 6
    assert [c["step"] for c in state["candidates"]] == [2, 4, 6]
    assert same(state, whole)


def test_a_training_killed_again_and_again_ends_the_same(make: Make) -> None:
    """Before every single step in turn; each process gets one step further at least."""
    whole = make("whole", save_every=1).run()
    for step in range(1, 6):
        with pytest.raises(Killed):
            stop_before(make(save_every=1), step).run()
    assert same(make(save_every=1).run(), whole)


def test_a_state_is_whole_when_saving_is_cut_off(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between writing and renaming the second state, the first is still there, readable, and leads to the end."""
    whole = make("whole").run()
    training, saves, replace = make(), list[str](), os.replace

    def torn(source: Any, target: Any) -> None:
        saves.append(Path(target).name)
        if saves.count(callbacks.STATE) == 2:
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", torn)
        training.run()
    assert training.state()["train_step"] == 2
    assert same(make().run(), whole)


def test_a_finished_training_is_not_trained_again(make: Make) -> None:
    """Killed after its last state, before its adapter was written, it takes everything from the state."""
    state = make().run()
    again = make()
    train(again.tuning, again.batches, selector=again.selector, plan=again.plan, store=again.store)
    assert again.selector.scored == []
    assert same(again.tuning.candidates, state["candidates"])
    assert all(torch.equal(again.tuning.average[name], value) for name, value in state["average"].items())


def test_training_learns(make: Make) -> None:
    """Over 40 steps the error of fixed batches falls, the preserved part is kept, and the base is untouched."""
    training = make(steps=40, lr=0.02, checkpoint_every=40, save_every=40)
    frozen = {
        name: p.detach().clone() for name, p in training.pipe.transformer.named_parameters() if ".lora_" not in name
    }
    batches = [training.batches.batch(step) for step in range(1000, 1006)]

    def loss() -> float:
        with torch.no_grad():
            return sum((training.tuning.errors(b) @ b.photo_weights).item() for b in batches)

    before = loss()
    training.run()
    assert loss() < 0.97 * before
    parameters = dict(training.pipe.transformer.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in frozen.items())
    assert not training.pipe.transformer.training


def test_a_batch_in_parts_learns_what_it_learns_whole(make: Make) -> None:
    """Two parts per step add up to the same gradients: weights agree to rounding, losses too."""
    whole, parts = make("whole").run(), make("parts", micro_batches=2).run()
    for name, value in whole["adapter"].items():
        torch.testing.assert_close(parts["adapter"][name], value, atol=2e-4, rtol=1e-3)
    assert parts["curve"]["subject"] == pytest.approx(whole["curve"]["subject"], rel=1e-4)
    assert parts["curve"]["preserved"] == pytest.approx(whole["curve"]["preserved"], rel=1e-2, abs=1e-9)


def test_the_first_step_is_adamws(make: Make) -> None:
    """By hand: with decay 0, AdamW's first step moves every weight by its rate against its gradient's sign."""
    training = make(steps=1, save_every=1, checkpoint_every=1, weight_decay=0.0, lr=0.01, warmup_steps=4, clip_norm=100)
    before = {name: p.detach().clone() for name, p in training.tuning.trained.items()}
    batch = training.batches.batch(0)
    errors = training.tuning.errors(batch)
    loss = errors[:2].mean() + training.batches.params.preservation * errors[2:].mean()
    gradients = torch.autograd.grad(loss, list(training.tuning.trained.values()))
    state = training.run()
    expected = 0.01 * learning_rate_factor(0, training.batches.params)
    assert expected == pytest.approx(0.0025)
    for (name, start), gradient in zip(before.items(), gradients, strict=True):
        clear = gradient.abs() > 1e-5
        moved = (state["adapter"][name] - start)[clear]
        torch.testing.assert_close(moved, -expected * gradient[clear].sign(), atol=1e-5, rtol=0)


def test_candidates_are_scored_at_intervals_and_at_the_end(make: Make) -> None:
    """Every three of seven steps, and the last; without a selector nothing else is kept."""
    training = make(steps=7, save_every=7)
    training.run()
    assert training.selector.scored == [3, 6, 7]


@pytest.mark.parametrize("broken", [0, 3])
def test_a_broken_step_is_left_out(broken: int, make: Make) -> None:
    """A batch whose loss is not finite moves no weight and is counted; the steps around it do their work."""
    training = make(checkpoint_every=1, save_every=1)
    batch = training.batches.batch
    training.batches.batch = lambda step: (  # type: ignore[method-assign]
        batch(step)._replace(targets=batch(step).targets * float("nan")) if step == broken else batch(step)
    )
    snapshots = [{name: p.detach().clone() for name, p in training.tuning.trained.items()}]

    def score(tuning: Any) -> dict[str, Any]:
        snapshots.append({name: p.detach().clone() for name, p in tuning.trained.items()})
        return {"step": tuning.train_step, "validation": 0.0}

    training.selector.score = score
    training.run()
    assert training.tuning.skipped == 1
    moved = [not same(snapshots[step], snapshots[step + 1]) for step in range(6)]
    assert moved == [step != broken for step in range(6)]


def test_too_many_broken_steps_end_the_training(make: Make) -> None:
    """The error is a sentence, through Lightning, and the last whole state stays."""
    training = make(skipped_max=1)
    batch = training.batches.batch
    training.batches.batch = lambda step: (  # type: ignore[method-assign]
        batch(step)._replace(targets=batch(step).targets * float("nan")) if step > 2 else batch(step)
    )
    with pytest.raises(PhotoFluxError, match=r"diverged: 2 steps were not finite, the last of them step 5"):
        training.run()
    assert training.state()["train_step"] == 4


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], GradScaler]:
    """Has the next training compute in float16 as GPUs without bfloat16 do, with a real scaler; Lightning has none for CPUs."""

    def scaled(begin: float) -> GradScaler:
        scaler, trainer = GradScaler("cpu", init_scale=begin), pl.Trainer

        def made(*, precision: str, **more: Any) -> pl.Trainer:
            assert precision == PRECISIONS["float32"]
            return trainer(**more, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])

        monkeypatch.setattr(pl, "Trainer", made)
        return scaler

    return scaled


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_scalers_search_for_its_scale_is_no_divergence(
    half: Callable[[float], GradScaler], make: Make, micro_batches: int
) -> None:
    """It begins too high, halves its scale at each step that overflows, and the training goes on from there."""
    scaler = half(2.0**36)
    training = make(steps=30, skipped_max=0, save_every=30, checkpoint_every=30, micro_batches=micro_batches)
    before = {name: p.detach().clone() for name, p in training.tuning.trained.items()}
    training.run()
    halved = round(36 - math.log2(scaler.get_scale()))
    assert 3 < halved < 30, "otherwise nothing is shown"
    assert training.tuning.skipped == 0
    assert any(not torch.equal(p, before[name]) for name, p in training.tuning.trained.items())
    assert all(torch.isfinite(p).all() for p in training.tuning.trained.values())


def test_a_gradient_that_no_scale_helps_is_a_divergence(half: Callable[[float], GradScaler], make: Make) -> None:
    """From 16 down to 1 it may be the scale; from there on it is the training, whose loss stays finite all the while."""
    scaler = half(16.0)
    training = make(steps=30, skipped_max=2)
    next(iter(training.tuning.trained.values())).register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(PhotoFluxError, match=r"diverged: 3 steps were not finite, the last of them step 7;"):
        training.run()
    assert scaler.get_scale() < 1


def test_a_loss_that_is_not_finite_counts_whatever_the_scale(half: Callable[[float], GradScaler], make: Make) -> None:
    """No scale is in it yet."""
    scaler = half(1024.0)
    training = make(skipped_max=1)
    batch = training.batches.batch
    training.batches.batch = lambda step: (  # type: ignore[method-assign]
        batch(step)._replace(targets=batch(step).targets * float("nan")) if step > 2 else batch(step)
    )
    with pytest.raises(PhotoFluxError, match=r"diverged: 2 steps were not finite, the last of them step 5"):
        training.run()
    assert scaler.get_scale() == 1024


def test_progress_is_told(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """The last step is always told, with losses, pace and time left; a resumed run says where it goes on."""
    with caplog.at_level(logging.INFO, logger="photoflux"), pytest.raises(Killed):
        stop_before(make(), 5).run()
    assert "going on" not in caplog.text
    with caplog.at_level(logging.INFO, logger="photoflux"):
        make().run()
    assert "going on from step 4 of 6" in caplog.text
    (line,) = [message for message in caplog.messages if message.startswith("step 6 of 6")]
    assert "steps/s" in line
    assert line.endswith("0 s left")
