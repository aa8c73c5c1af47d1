"""The base's training adapter: trained alone, on a base that stays as it is, and readable by stock diffusers."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from photoflux.pocket import train_flow, world
from photoflux.pocket.data import Cache, render_batch
from photoflux.pocket.models import PocketConfig, build_base
from photoflux.pocket.train_adapter import FILE, attached, export_adapter, train_adapter
from photoflux.pocket.training import Budget, Recipe, Run

CONFIG = PocketConfig.tiny()
FAST = Recipe(lr=1e-2, warmup_steps=1, weight_decay=0.0, ema=0.5)
HEIGHT, WIDTH = 4, 4


@pytest.fixture(scope="module")
def base() -> FluxPipeline:
    """An untrained base whose gates and output layer, which start at zero, let something through."""
    made, generator = build_base(CONFIG, seed=0, vocabulary=list(world.vocabulary())), torch.Generator().manual_seed(0)
    for parameter in made.transformer.parameters():
        parameter.data += 0.15 * torch.randn(parameter.shape, generator=generator)
    return made


@pytest.fixture
def pipe(base: FluxPipeline) -> FluxPipeline:
    return copy.deepcopy(base)


@pytest.fixture
def cache(tmp_path: Path, base: FluxPipeline) -> Cache:
    """Sixteen scenes whose latents are a constant per channel: something that a few steps can learn."""
    batch = render_batch(0, seed=0, count=16, size_px=32)
    made = Cache(
        tmp_path / "cache", capacity=16, latent_shape=(16, HEIGHT, WIDTH), text_length=CONFIG.text_length, size_px=32
    )
    ids = [_ids(tokenizer, batch.captions) for tokenizer in (base.tokenizer, base.tokenizer_2)]
    latents = np.broadcast_to(np.linspace(-2, 2, 16)[None, :, None, None], (16, 16, HEIGHT, WIDTH))
    made.put(0, batch, clip_ids=ids[0], t5_ids=ids[1])
    made.put_latents(0, latents)
    return made


def _ids(tokenizer, captions) -> np.ndarray:  # type: ignore[no-untyped-def]
    flat = [text for pair in captions for text in pair]
    told = tokenizer(flat, padding="max_length", truncation=True, max_length=CONFIG.text_length)
    return np.array(told.input_ids).reshape(len(captions), 2, CONFIG.text_length)


def trained(pipe: FluxPipeline, cache: Cache, file: Path, steps: int) -> None:
    train_adapter(pipe, cache, file=file, config=CONFIG, budget=Budget(steps=steps), seed=0, batch=8, recipe=FAST)


def flow_loss(pipe: FluxPipeline, cache: Cache) -> float:
    """Mean loss over three fixed batches."""
    flow, total = train_flow.Flow(pipe).eval(), 0.0
    with torch.no_grad():
        for seed in range(3):
            data = train_flow.LatentSet.of(cache, torch.device("cpu"))
            samples = train_flow.sample_batch(data, count=16, generator=torch.Generator().manual_seed(seed))
            velocity = flow(samples.noisy, samples.sigma, samples.clip_ids, samples.t5_ids)
            total += samples.loss(velocity, samples.velocity).item() / 3
    return total


def weights(pipe: FluxPipeline) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in train_flow.Flow(pipe).named_parameters()}


def test_it_learns_the_flow_and_leaves_the_base_as_it_was(pipe: FluxPipeline, cache: Cache, tmp_path: Path) -> None:
    """The loss with the adapter is well below the base's; the base's weights, names and trainability are unchanged."""
    before, loss = weights(pipe), flow_loss(pipe, cache)
    trained(pipe, cache, tmp_path / "adapter.pt", steps=60)
    after = weights(pipe)
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.requires_grad for p in train_flow.Flow(pipe).parameters())
    assert flow_loss(pipe, cache) == pytest.approx(loss, rel=1e-5)
    assert export_adapter(pipe, tmp_path / "out", state=tmp_path / "adapter.pt", config=CONFIG)
    pipe.load_lora_weights(str(tmp_path / "out"), weight_name=FILE)
    assert flow_loss(pipe, cache) < 0.8 * loss


def test_a_killed_training_goes_on_to_the_same_adapter(pipe: FluxPipeline, cache: Cache, tmp_path: Path) -> None:
    """Three steps and then three more are six steps; learning rates follow the budget, so it is the whole one."""
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    trained(pipe, cache, whole, steps=6)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("photoflux.pocket.train_adapter.sample_batch", _stopping_before(step=3))
        patch.setattr("photoflux.pocket.train_adapter.Run", partial(Run, save_every_s=-1.0))
        trained(pipe, cache, parts, steps=6)
    assert torch.load(parts, weights_only=True)["counters"]["step"] == 3
    trained(pipe, cache, parts, steps=6)
    first, second = (torch.load(file, weights_only=True) for file in (whole, parts))
    assert first["counters"]["step"] == second["counters"]["step"] == 6
    assert all(torch.equal(a, b) for a, b in zip(first["ema"], second["ema"], strict=True))


def _stopping_before(*, step: int):  # type: ignore[no-untyped-def]
    calls = iter(range(100))

    def stopping(*args, **more):  # type: ignore[no-untyped-def]
        if next(calls) == step:
            raise KeyboardInterrupt
        return train_flow.sample_batch(*args, **more)

    return stopping


def test_a_fresh_adapter_changes_nothing(pipe: FluxPipeline, cache: Cache) -> None:
    loss = flow_loss(pipe, cache)
    with attached(pipe, config=CONFIG) as adapter:
        assert flow_loss(pipe, cache) == pytest.approx(loss, rel=1e-6)
        trainable = {id(p) for p in train_flow.Flow(pipe).parameters() if p.requires_grad}
        assert trainable == {id(p) for p in adapter.parameters()}


def test_nothing_is_written_without_a_state(pipe: FluxPipeline, tmp_path: Path) -> None:
    assert not export_adapter(pipe, tmp_path / "out", state=tmp_path / "none.pt", config=CONFIG)
    assert not (tmp_path / "out").exists()
