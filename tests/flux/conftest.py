"""A tiny base with random weights, once per session; each test gets a pipeline of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from photoflux.flux.loading import load_pipeline
from photoflux.flux.spec import BaseSpec, load_spec
from tests.judges.tiny import make_base, make_dataset

if TYPE_CHECKING:
    from diffusers import FluxPipeline


@pytest.fixture(autouse=True)
def on_the_cpu(own_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit-equality is promised per device; these tests hold it on the one that every machine has."""
    monkeypatch.setenv("PHOTOFLUX_DEVICE", "cpu")


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of the tiny base's spec; tests that change files copy it first."""
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def own(base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base that a test may spoil; returns its spec."""
    shutil.copytree(base.with_suffix(""), tmp_path / "models" / "tiny")
    return Path(shutil.copy(base, tmp_path / "models" / "tiny.yaml"))


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training and two held-out pictures of a dog at 128 x 128."""
    return make_dataset(tmp_path_factory.mktemp("dataset") / "dataset.tar", class_noun="dog")


@pytest.fixture
def spec(base: Path) -> BaseSpec:
    return load_spec(str(base))


@pytest.fixture
def pipe(spec: BaseSpec) -> FluxPipeline:
    return load_pipeline(spec)
