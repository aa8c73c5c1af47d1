"""A tiny base with weights that answer something, and adapters of several owners on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from photoflux.flux import lora
from photoflux.flux.loading import load_pipeline
from photoflux.flux.provision import pin
from photoflux.flux.spec import BaseSpec, load_spec
from photoflux.manifest import digest, write_tar
from photoflux.pocket.models import PocketConfig
from photoflux.serving.adapters import WEIGHTS, Adapter, AdapterKey, read_adapter
from tests.pocket.untrained import init_base


@pytest.fixture(scope="session")
def spec(tmp_path_factory: pytest.TempPathFactory) -> BaseSpec:
    folder = init_base(tmp_path_factory.mktemp("models") / "tiny", config=PocketConfig.tiny())
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    rng = torch.Generator().manual_seed(0)
    weights = {n: value + torch.randn(value.shape, generator=rng).to(value) / 8 for n, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    return load_spec(str(pin(folder.with_name("tiny.yaml"))))


@pytest.fixture(scope="session")
def make_artifact(spec: BaseSpec, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Adapter artifacts by number, of different ranks and strengths."""
    made: dict[int, Path] = {}

    def make(number: int) -> Path:
        if number in made:
            return made[number]
        folder, transformer = tmp_path_factory.mktemp("adapter"), load_pipeline(spec, device="cpu").transformer
        rank, rng = 2 + number % 3, torch.Generator().manual_seed(number)
        for parameter in lora.attach(transformer, spec=spec, rank=rank, alpha=2 * rank, seed=number):
            with torch.no_grad():
                parameter.normal_(0, 0.15, generator=rng)
        weights = lora.save_adapter(transformer, folder / WEIGHTS)
        manifest = {
            "subject": {"id": f"s{number}", "class_noun": "dog", "trigger": "sks", "consent": "sample"},
            "base": {"name": spec.name, "hash": spec.hash},
        }
        write_tar(folder / "adapter.tar", files={WEIGHTS: weights}, manifest=manifest)
        return made.setdefault(number, folder / "adapter.tar")

    return make


@pytest.fixture(scope="session")
def key_of(make_artifact: Callable[[int], Path]) -> Callable[[int], AdapterKey]:
    return lambda number: AdapterKey(f"user-{number}", "1", digest(make_artifact(number)))


@pytest.fixture(scope="session")
def fetch(spec: BaseSpec, make_artifact: Callable[[int], Path]) -> Callable[[AdapterKey], Adapter]:
    """Reads an adapter anew each time, as from a registry."""

    def fetch(key: AdapterKey) -> Adapter:
        return read_adapter(make_artifact(int(key.owner.split("-")[1])), spec=spec, sha256=key.sha256)

    return fetch


class DenoiseSteps:
    """Counts the denoise steps that begin and lets so many through, redrawing included."""

    def __init__(self, transformer: torch.nn.Module) -> None:
        self.begun, self._allowed = 0, threading.Semaphore(0)
        self._hook = transformer.register_forward_pre_hook(self._begin)

    def _begin(self, *_: Any) -> None:
        self.begun += 1
        assert self._allowed.acquire(timeout=60)

    def allow(self, count: int) -> None:
        """Let `count` more through, and return once the one after them has begun."""
        wanted = self.begun + count
        self._allowed.release(count)
        self.wait_for(wanted)

    def wait_for(self, count: int) -> None:
        until = time.monotonic() + 60
        while self.begun < count:
            assert time.monotonic() < until, f"only {self.begun} steps began"
            time.sleep(0.001)

    def go_on(self) -> None:
        """Let all through from now on; they are still counted."""
        self._allowed.release(10_000)
