"""The starting adapter: learnt on a tiny base, resumed, exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from photoflux.flux.lora import subject_parameters
from photoflux.flux.spec import BaseSpec, load_spec
from photoflux.params import FinetuneParams
from photoflux.pocket import train_start
from photoflux.pocket.models import PocketConfig
from photoflux.pocket.training import Budget
from tests.pocket.untrained import init_base


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> BaseSpec:
    folder = init_base(tmp_path_factory.mktemp("models") / "tiny", config=PocketConfig.tiny())
    return replace(load_spec(str(folder.with_name("tiny.yaml"))), class_nouns=("dog", "person"))


def learn(spec: BaseSpec, state: Path, *, subjects: int, seed: int = 0) -> dict[str, torch.Tensor]:
    return train_start.train_start(spec, state=state, budget=Budget(steps=subjects), seed=seed)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_start, "STEPS", 2)
    monkeypatch.setattr(train_start, "PRESERVED_PROMPTS", 2)
    monkeypatch.setattr(train_start, "PRESERVED_POINTS", 4)


def test_a_start_moves_towards_where_each_subject_led(spec: BaseSpec, tmp_path: Path):
    """After one subject it is a quarter of the way from the fresh adapter to the tuned one: Reptile by hand."""
    start = learn(spec, tmp_path / "start.pt", subjects=1)
    learner = train_start.Learner(spec, FinetuneParams(base=spec.name))
    fresh = {name: p.detach().clone() for name, p in subject_parameters(learner.transformer).items()}
    learner.tune(0)
    for name, tuned in subject_parameters(learner.transformer).items():
        torch.testing.assert_close(start[name], fresh[name] + 0.25 * (tuned.detach() - fresh[name]), atol=1e-5, rtol=0)
    assert any(not torch.equal(start[name], fresh[name]) for name in start)


def test_it_goes_on_where_it_stopped(spec: BaseSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train_start, "REPTILE_RATES", (0.2, 0.2))  # the pace depends on the budget, which differs here
    whole = learn(spec, tmp_path / "whole.pt", subjects=3)
    learn(spec, tmp_path / "parts.pt", subjects=2)
    resumed = learn(spec, tmp_path / "parts.pt", subjects=3)
    for name in whole:
        torch.testing.assert_close(resumed[name], whole[name], atol=1e-6, rtol=0)


def test_a_state_of_another_seed_is_not_gone_on_with(spec: BaseSpec, tmp_path: Path):
    learn(spec, tmp_path / "start.pt", subjects=1)
    learn(spec, tmp_path / "start.pt", subjects=1, seed=4)
    assert torch.load(tmp_path / "start.pt", weights_only=True)["next"] == 1


def test_stock_diffusers_loads_what_is_exported(spec: BaseSpec, tmp_path: Path):
    from photoflux.flux.loading import load_pipeline

    file = train_start.export_start(learn(spec, tmp_path / "start.pt", subjects=1), tmp_path / "out")
    pipe = load_pipeline(spec)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    assert pipe.get_active_adapters()
