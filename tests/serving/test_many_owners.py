"""Forty owners and a thousand changes of adapter on the pocket base: nobody's picture depends on who drew before."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from photoflux.flux import lora
from photoflux.flux.loading import load_pipeline
from photoflux.flux.spec import load_spec
from photoflux.manifest import digest, write_tar
from photoflux.serving.adapters import WEIGHTS, AdapterKey, read_adapter
from photoflux.serving.engine import Engine, Request

pytestmark = pytest.mark.slow
OWNERS, EACH, CHANGES, GROWTH_MAX = 40, 2, 1000, 0.03
PROMPT = "a photo of sks dog on the beach"


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Random adapters of the size that fine-tuning makes."""
    folder, spec = tmp_path_factory.mktemp("adapters"), load_spec("pocket")
    transformer = load_pipeline(spec, device="cpu").transformer
    parameters = lora.attach(transformer, spec=spec, rank=8, alpha=8, seed=0)
    files = []
    for number in range(OWNERS):
        rng = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in parameters:
                parameter.normal_(0, 0.05, generator=rng)
        weights = lora.save_adapter(transformer, folder / f"{number}.safetensors")
        subject = {"id": f"s{number}", "class_noun": "dog", "trigger": "sks", "consent": "sample"}
        manifest = {"subject": subject, "base": {"name": spec.name, "hash": spec.hash}}
        write_tar(folder / f"{number}.tar", files={WEIGHTS: weights}, manifest=manifest)
        files.append(folder / f"{number}.tar")
    return files


@pytest.fixture
def keys(artifacts: list[Path]) -> list[AdapterKey]:
    return [AdapterKey(f"user-{number}", "1", digest(file)) for number, file in enumerate(artifacts)]


@pytest.fixture
def engine(artifacts: list[Path]) -> Iterator[Engine]:
    """With room for a quarter of the adapters, so that they come and go."""
    spec = load_spec("pocket")
    room = 10 * artifacts[0].stat().st_size
    engine = Engine(
        load_pipeline(spec, device="cpu"),
        spec=spec,
        host_bytes=room,
        device_bytes=room // 2,
        waiting=1000,
        fetch=lambda key: read_adapter(artifacts[int(key.owner.split("-")[1])], spec=spec, sha256=key.sha256),
    )
    yield engine
    engine.drain(60)


def drawn(engine: Engine, key: AdapterKey, seed: int) -> bytes:
    return engine.submit(Request(key, PROMPT, (seed,))).result(120)[0].tobytes()


def test_forty_owners_at_once_get_what_each_gets_alone(engine: Engine, keys: list[AdapterKey]):
    jobs = [(owner, seed) for owner in range(OWNERS) for seed in range(EACH)]
    alone = {job: drawn(engine, keys[job[0]], job[1]) for job in jobs}
    assert len(set(alone.values())) == len(jobs)
    shuffled = jobs * 2
    random.Random(0).shuffle(shuffled)
    with ThreadPoolExecutor(OWNERS) as people:
        together = list(people.map(lambda job: drawn(engine, keys[job[0]], job[1]), shuffled))
    assert [alone[job] for job in shuffled] == together


def test_a_thousand_changes_of_adapter_take_no_memory(engine: Engine, keys: list[AdapterKey]):
    first = drawn(engine, keys[0], 0)
    for number in range(CHANGES // 5):
        drawn(engine, keys[number % OWNERS], 0)
    before = resident_bytes()
    for number in range(CHANGES):
        drawn(engine, keys[number % OWNERS], 0)
    growth = resident_bytes() / before - 1
    print(f"memory after {CHANGES} changes of adapter: {growth:+.1%}")
    assert growth <= GROWTH_MAX
    assert drawn(engine, keys[0], 0) == first


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
