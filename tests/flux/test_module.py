"""The Lightning module against numpy and the transformer called by hand: losses, averages, clipping, validation."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from photoflux.errors import PhotoFluxError
from photoflux.flux import module
from photoflux.flux.lora import subject_parameters
from photoflux.flux.module import Batch, FinetuneModule, learning_rate_factor
from photoflux.flux.spec import BaseSpec
from photoflux.params import FinetuneParams
from tests.flux.training import Training, prepare, randomise, small, train_photos

if TYPE_CHECKING:
    from diffusers import FluxPipeline


@pytest.fixture
def training(pipe: FluxPipeline, spec: BaseSpec, base: Path, dataset: Path, tmp_path: Path) -> Training:
    made = prepare(pipe, spec, dataset, small(base, preservation=3.0), tmp_path)
    trainer = SimpleNamespace(accumulate_grad_batches=1, global_step=0, precision_plugin=None)
    made.tuning._trainer = trainer  # type: ignore[assignment]
    return made


@pytest.fixture
def tuning(training: Training) -> FinetuneModule:
    return training.tuning


def answers(training: Training, batch: Batch) -> np.ndarray:
    """Velocities of the batch by the transformer's own signature, in float64."""
    with torch.no_grad():
        velocity = training.pipe.transformer(
            hidden_states=batch.tokens,
            timestep=batch.sigmas,
            guidance=None,
            pooled_projections=batch.pooled,
            encoder_hidden_states=batch.sequence,
            txt_ids=torch.zeros(24, 3),
            img_ids=training.pipe._prepare_latent_image_ids(1, 8, 8, "cpu", torch.float32),
            return_dict=False,
        )[0]
    return velocity.double().numpy()


def parts(tuning: FinetuneModule, batch: Batch) -> tuple[float, float]:
    """Loss of photos and of what is preserved."""
    with torch.no_grad():
        errors = tuning.errors(batch)
    return (errors @ batch.photo_weights).item(), (errors @ batch.preservation_weights).item()


def test_the_loss_is_the_photos_mean_plus_the_weighted_preserved_mean(training: Training) -> None:
    """Mean squared error over tokens and channels, per part of the batch, by numpy; 3 is the preservation weight."""
    randomise(training.pipe.transformer)
    batch = training.batches.batch(0)
    errors = ((answers(training, batch) - batch.targets.double().numpy()) ** 2).mean((1, 2))
    loss = training.tuning.training_step(batch, 0)
    assert loss is not None
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(errors[:2].mean() + 3.0 * errors[2:].mean(), rel=1e-5)
    assert training.tuning._losses == pytest.approx([errors[:2].mean(), errors[2:].mean()], rel=1e-5)


def test_the_error_is_taken_from_noise_minus_latents_in_float32(training: Training) -> None:
    """Mean of (v - (ε - z))² per sample, by numpy in float64, also for bfloat16 velocities; 0 for the exact one."""
    batch = training.batches.batch(0)
    targets = batch.targets.double().numpy()

    def errors(velocity: torch.Tensor) -> torch.Tensor:
        answering = SimpleNamespace(transformer=lambda **_: (velocity,), grid=training.tuning.grid)
        return FinetuneModule.errors(answering, batch)  # type: ignore[arg-type]

    coarse = torch.randn(batch.targets.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert errors(coarse).dtype == torch.float32
    np.testing.assert_allclose(errors(coarse), ((coarse.double().numpy() - targets) ** 2).mean((1, 2)), rtol=1e-6)
    assert errors(batch.targets).tolist() == [0] * len(targets)


def test_the_loss_stays_float32_under_autocast(training: Training) -> None:
    """Where the forward pass is bfloat16, errors are squared and averaged in float32."""
    batch = training.batches.batch(0)
    with torch.autocast("cpu", torch.bfloat16):
        errors = training.tuning.errors(batch)
    assert errors.dtype == torch.float32
    assert errors[:2].mean().item() == pytest.approx(parts(training.tuning, batch)[0], rel=0.05)


def test_nothing_is_lost_of_the_base_before_training(training: Training) -> None:
    """The teacher is the base with the adapter off, and a fresh adapter is the base: preservation starts at 0."""
    for step in range(5):
        subject, preserved = parts(training.tuning, training.batches.batch(step))
        assert preserved < 1e-10
        assert subject > 0.1
    randomise(training.pipe.transformer)
    assert parts(training.tuning, training.batches.batch(0))[1] > 1e-3


def test_only_the_adapter_gets_gradients(training: Training) -> None:
    """After backward nothing of the frozen base has one, and the optimiser holds the adapter alone."""
    loss = training.tuning.training_step(training.batches.batch(0), 0)
    assert loss is not None
    loss.backward()
    graded = {name for name, p in training.pipe.transformer.named_parameters() if p.grad is not None}
    assert graded == set(subject_parameters(training.pipe.transformer))
    held = [p for group in training.tuning.configure_optimizers().param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in training.tuning.trained.values()}


def test_the_optimiser_takes_its_numbers_from_the_parameters(tuning: FinetuneModule, base: Path) -> None:
    """AdamW with the given rate and decay, and a second moment that fits short trainings."""
    tuning.params = small(base, lr=0.003, weight_decay=0.02)
    optimizer = tuning.configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.003, 0.02, (0.9, 0.99))


def graded(tuning: FinetuneModule, value: float) -> None:
    """Every gradient filled with one value, the frozen base's too."""
    for parameter in tuning.transformer.parameters():
        parameter.grad = torch.full_like(parameter, value)


@pytest.mark.parametrize(("value", "limit"), [(0.5, 1.0), (1e-4, 1.0), (0.5, 0.01)])
def test_gradients_are_clipped_over_what_is_trained_only(tuning: FinetuneModule, value: float, limit: float) -> None:
    """By hand: the norm over n adapter weights is v √n; each is scaled by limit / norm; the base's are not looked at."""
    tuning.params = tuning.params.replace(clip_norm=limit)
    graded(tuning, value)
    tuning.configure_gradient_clipping(tuning.configure_optimizers())
    norm = value * sum(p.numel() for p in tuning.trained.values()) ** 0.5
    expected = value * min(1.0, limit / norm)
    for name, parameter in tuning.transformer.named_parameters():
        trained = name in tuning.trained
        assert parameter.grad.unique().item() == pytest.approx(expected if trained else value, rel=1e-4)


def test_a_gradient_that_is_not_finite_changes_nothing(
    tuning: FinetuneModule, caplog: pytest.LogCaptureFixture
) -> None:
    """The step is skipped, counted and said; weights stay."""
    before = {name: p.detach().clone() for name, p in tuning.trained.items()}
    graded(tuning, float("nan"))
    optimizer = tuning.configure_optimizers()
    tuning.configure_gradient_clipping(optimizer)
    optimizer.step()
    assert tuning.skipped == 1
    assert "step 1 has a gradient that is not finite and is skipped" in caplog.text
    assert all(torch.equal(p, before[name]) for name, p in tuning.trained.items())


def test_a_part_that_is_not_finite_spoils_its_step(training: Training) -> None:
    """The gradient of the parts that were finite does not step either; the next step does. It counts once."""
    tuning, batch = training.tuning, training.batches.batch(0)
    optimizer = tuning.configure_optimizers()
    before = {name: p.detach().clone() for name, p in tuning.trained.items()}
    assert tuning.training_step(batch._replace(targets=batch.targets * float("inf")), 0) is None
    for changed, value in ((False, float("nan")), (True, 0.1)):
        graded(tuning, value)
        tuning.configure_gradient_clipping(optimizer)
        optimizer.step()
        assert any(not torch.equal(p, before[name]) for name, p in tuning.trained.items()) == changed
    assert tuning.skipped == 1


def test_a_loss_that_is_not_finite_is_skipped_until_it_is_too_often(training: Training) -> None:
    """`skipped_max` steps are forgiven; the next ends in a sentence that names the rate and what to change."""
    tuning, batch = training.tuning, training.batches.batch(0)
    broken = batch._replace(targets=batch.targets * float("inf"))
    tuning.params = tuning.params.replace(skipped_max=2)
    assert tuning.training_step(broken, 0) is None
    assert tuning.training_step(broken, 0) is None
    assert tuning._losses == [0.0, 0.0]
    with pytest.raises(PhotoFluxError, match=r"diverged: 3 steps .* lower finetune\.lr \(now 0\.01\)"):
        tuning.training_step(broken, 0)


def stepped(tuning: FinetuneModule, **weights: np.ndarray) -> None:
    """A train step whose optimiser puts these in the place of the weights of their names."""

    def step(closure: Any) -> None:
        with torch.no_grad():
            for name, value in weights.items():
                tuning.trained[name].copy_(torch.from_numpy(value))

    tuning.optimizer_step(0, 0, SimpleNamespace(param_groups=[], step=step))


@pytest.mark.parametrize("ema", [0.9, 0.2, 0.0])
def test_the_average_forgets_its_start_fast(tuning: FinetuneModule, ema: float) -> None:
    """a ← d a + (1 - d) w with d = min(ema, (1 + t) / (10 + t)), by numpy over 30 steps; without ema it is w."""
    tuning.params = tuning.params.replace(ema=ema)
    rng, name = np.random.default_rng(0), next(iter(tuning.trained))
    average = tuning.average[name].numpy().astype(np.float64).copy()
    for t in range(30):
        value = rng.normal(size=average.shape)
        stepped(tuning, **{name: value})
        decay = min(ema, (1 + t) / (10 + t)) if ema else 0.0
        average = decay * average + (1 - decay) * value
        np.testing.assert_allclose(tuning.average[name], average, atol=1e-5)
    assert np.array_equal(average, value) is (ema == 0)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (200, 1.0), (250, 0.55), (299, 0.1)]
)
def test_the_rate_warms_up_stays_and_falls(step: int, expected: float, base: Path) -> None:
    """300 steps, 10 of warm-up: linear to 1, constant to two thirds, half-way between 1 and 0.1 at 250, then 0.1."""
    assert learning_rate_factor(step, small(base, steps=300, warmup_steps=10)) == pytest.approx(expected, abs=0.001)


def test_the_rate_never_leaves_its_range(base: Path) -> None:
    """Positive and at most 1 at every step of a training without warm-up and of one of a single step."""
    for steps in (1, 2, 50):
        params = small(base, steps=steps, warmup_steps=0)
        rates = [learning_rate_factor(step, params) for step in range(steps)]
        assert all(0.09 < value <= 1 for value in rates)
        assert rates == sorted(rates, reverse=True)


def test_validation_looks_at_the_four_serving_levels(
    training: Training, dataset: Path, spec: BaseSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """σ = 1, .75, .5, .25 with the same noise each time: the mean squared error by numpy, the same when repeated."""
    heldout = train_photos(dataset, training.pipe, spec, split="heldout")
    asked, predict = list[torch.Tensor](), module.predict

    def listening(transformer: Any, tokens: torch.Tensor, sigma: torch.Tensor, *rest: Any) -> torch.Tensor:
        asked.append(sigma)
        return predict(transformer, tokens, sigma, *rest)

    monkeypatch.setattr(module, "predict", listening)
    found = training.tuning.validation_loss(heldout)
    assert [sigma.tolist() for sigma in asked] == [[level] * 2 for level in (1.0, 0.75, 0.5, 0.25)]
    generator = torch.Generator().manual_seed(module.VALIDATION_SEED)
    noise, errors = torch.randn(heldout.tokens.shape, generator=generator), []
    for level in (1.0, 0.75, 0.5, 0.25):
        tokens = (1 - level) * heldout.tokens + level * noise
        sigmas, captions = torch.full((2,), level), heldout.captions
        batch = Batch(tokens, noise - heldout.tokens, sigmas, captions.sequence, captions.pooled, sigmas, sigmas)
        errors.append(((answers(training, batch) - batch.targets.double().numpy()) ** 2).mean())
    assert found == pytest.approx(np.mean(errors), rel=1e-5)
    assert training.tuning.validation_loss(heldout) == found


def test_a_saved_state_never_holds_the_base(training: Training) -> None:
    """Adapter, average and optimiser with the adapter's shapes, and plain numbers: what `weights_only` can read."""
    tuning = training.tuning
    optimizer = tuning.configure_optimizers()
    graded(tuning, 0.1)
    optimizer.step()
    buffer = io.BytesIO()
    torch.save(tuning.state(optimizer), buffer)
    state = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    assert state["adapter"].keys() == state["average"].keys() == subject_parameters(tuning.transformer).keys()
    assert len(state["optimizer"]["state"]) == len(state["adapter"])
    size = sum(p.numel() * 4 for p in tuning.trained.values())
    assert len(buffer.getvalue()) < 6 * size + 100_000


def test_a_restored_module_is_where_the_saved_one_was(
    training: Training, tuned: Callable[[int], FinetuneModule]
) -> None:
    """Weights, average, curve, candidates and counters, and later changes of one do not reach the other."""
    saved = training.tuning
    randomise(saved.transformer, seed=4)
    stepped(saved)
    saved.train_step, saved.skipped, saved.candidates = 5, 2, [{"step": 3, "score": 0.5}]
    saved.curve.steps[:] = [5]
    state = saved.state(saved.configure_optimizers())
    other = tuned(7)
    other.restore(state)
    assert (other.train_step, other.skipped, other.candidates) == (5, 2, [{"step": 3, "score": 0.5}])
    assert other.curve.steps == [5]
    for name, parameter in other.trained.items():
        assert torch.equal(parameter, saved.trained[name])
        assert torch.equal(other.average[name], saved.average[name])
        assert parameter.requires_grad
    other.candidates.append({"step": 6})
    stepped(other)
    assert len(saved.candidates) == 1


@pytest.fixture
def tuned(spec: BaseSpec, base: Path, dataset: Path, tmp_path: Path) -> Callable[[int], FinetuneModule]:
    """Another module of the same training with other initial weights."""
    from photoflux.flux.loading import load_pipeline

    def make(seed: int) -> FinetuneModule:
        params: FinetuneParams = small(base, seed=seed)
        return prepare(load_pipeline(spec), spec, dataset, params, tmp_path).tuning

    return make
