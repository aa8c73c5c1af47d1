from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from photoflux.errors import InputError
from photoflux.flux import lora
from photoflux.flux.loading import load_pipeline
from photoflux.flux.sampling import generate
from photoflux.flux.spec import BaseSpec
from photoflux.manifest import read_manifest, unpack, write_tar
from photoflux.serving.adapters import WEIGHTS, Adapter, AdapterKey, AdapterPool, IsWanted, read_adapter
from photoflux.serving.merging import Merger


def held(nbytes: int = 400) -> Adapter:
    return Adapter({"layer": (torch.zeros(1, nbytes // 8), torch.zeros(nbytes // 8, 1))}, {})


def test_a_merged_adapter_draws_what_the_side_branch_draws(
    spec: BaseSpec, make_artifact: Callable[[int], Path], tmp_path: Path
):
    branch, merged = (load_pipeline(spec, device="cpu") for _ in range(2))
    unpack(make_artifact(1), tmp_path)
    lora.load_adapter(branch, tmp_path / WEIGHTS)
    Merger(merged.transformer, spec.lora_targets).merge(read_adapter(make_artifact(1), spec=spec))
    pictures = [generate(pipe, ["a photo of sks dog"], [3], spec=spec)[0] for pipe in (branch, merged)]
    apart = [abs(a - b) for a, b in zip(*(picture.tobytes() for picture in pictures), strict=True)]
    assert max(apart) <= 1


def test_merging_starts_from_the_base_each_time(spec: BaseSpec, make_artifact: Callable[[int], Path]):
    pipe = load_pipeline(spec, device="cpu")
    merger = Merger(pipe.transformer, spec.lora_targets)
    first, second = (read_adapter(make_artifact(number), spec=spec) for number in (1, 2))
    start = {name: weight.clone() for name, weight in merger.weights.items()}
    places = {name: weight.data_ptr() for name, weight in merger.weights.items()}
    merger.merge(first)
    once = {name: weight.clone() for name, weight in merger.weights.items()}
    merger.merge(second)
    assert any(not torch.equal(once[name], weight) for name, weight in merger.weights.items())
    merger.merge(first)
    assert all(torch.equal(once[name], weight) for name, weight in merger.weights.items())
    merger.restore()
    assert all(torch.equal(start[name], weight) for name, weight in merger.weights.items())
    assert places == {name: weight.data_ptr() for name, weight in merger.weights.items()}


def test_the_change_is_up_times_down_times_alpha_over_rank(
    spec: BaseSpec, make_artifact: Callable[[int], Path], tmp_path: Path
):
    from safetensors.torch import load_file

    unpack(make_artifact(1), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    merger = Merger(load_pipeline(spec, device="cpu").transformer, spec.lora_targets)
    before = {name: weight.clone() for name, weight in merger.weights.items()}
    merger.merge(read_adapter(make_artifact(1), spec=spec))
    for name, weight in merger.weights.items():
        down, up = (tensors[f"transformer.{name}.lora_{part}.weight"] for part in "AB")
        torch.testing.assert_close(weight - before[name], 2 * up @ down, atol=1e-5, rtol=1e-4)


def test_an_adapter_that_does_not_fit_leaves_the_base(spec: BaseSpec, make_artifact: Callable[[int], Path]):
    merger = Merger(load_pipeline(spec, device="cpu").transformer, spec.lora_targets)
    start = {name: weight.clone() for name, weight in merger.weights.items()}
    merger.merge(read_adapter(make_artifact(1), spec=spec))
    for wrong in (held(), Adapter({}, {}), Adapter({next(iter(start)): (torch.zeros(1, 3), torch.zeros(3, 1))}, {})):
        with pytest.raises(InputError):
            merger.merge(wrong)
        assert all(torch.equal(start[name], weight) for name, weight in merger.weights.items())


def test_an_adapter_is_checked_when_it_is_read(spec: BaseSpec, make_artifact: Callable[[int], Path], tmp_path: Path):
    with pytest.raises(InputError, match="not the one"):
        read_adapter(make_artifact(1), spec=spec, sha256="0" * 64)
    with pytest.raises(InputError, match="another base"):
        read_adapter(make_artifact(1), spec=replace(spec, manifest={}))
    manifest = read_manifest(make_artifact(1))
    for content in (b"", b"nonsense"):
        write_tar(tmp_path / "a.tar", files={WEIGHTS: content}, manifest={k: manifest[k] for k in ("subject", "base")})
        with pytest.raises(InputError, match="cannot be read"):
            read_adapter(tmp_path / "a.tar", spec=spec)


def test_a_pool_keeps_the_latest_used_within_its_bytes():
    loads = list[str]()

    def load(key: AdapterKey, wanted: IsWanted) -> Adapter:
        loads.append(key.owner)
        return held(400)

    pool = AdapterPool(1000, load)
    a, b, c = (AdapterKey(name, "1", "") for name in "abc")
    for key in (a, b, a, c):
        pool.get(key)
    assert (a in pool, b in pool, c in pool) == (True, False, True)
    assert pool.nbytes <= 1000 and loads == ["a", "b", "c"]
    pool.get(b)
    assert loads == ["a", "b", "c", "b"]


def test_what_is_larger_than_the_pool_is_still_given():
    pool = AdapterPool(100, lambda *_: held(4000))
    pool.get(AdapterKey("a", "1", ""))
    pool.get(AdapterKey("b", "1", ""))
    assert len(pool) == 1


def test_a_missing_adapter_is_an_error_each_time():
    def load(key: AdapterKey, wanted: IsWanted) -> Adapter:
        raise InputError(f"{key.owner} has no such adapter")

    pool = AdapterPool(1000, load)
    for _ in range(2):
        with pytest.raises(InputError, match="no such adapter"):
            pool.get(AdapterKey("a", "1", ""))
    assert len(pool) == 0 and not pool._loading, "nothing is kept of what is not there"


def test_one_load_serves_all_who_ask_meanwhile():
    loads = list[str]()

    def load(key: AdapterKey, wanted: IsWanted) -> Adapter:
        loads.append(key.owner)
        time.sleep(0.05)
        return held()

    pool, key = AdapterPool(10_000, load), AdapterKey("a", "1", "")
    threads = [threading.Thread(target=pool.get, args=(key,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == ["a"]


def test_an_owner_is_forgotten():
    pool = AdapterPool(10_000, lambda *_: held())
    for owner, version in (("a", "1"), ("a", "2"), ("b", "1")):
        pool.get(AdapterKey(owner, version, ""))
    assert pool.owners() == {"a", "b"}
    assert pool.forget("a") == 2 and len(pool) == 1


def test_what_is_no_longer_wanted_once_it_is_loaded_is_not_kept():
    """Others who asked for it meanwhile load it themselves."""
    pool, key, unwanted = AdapterPool(10_000, lambda *_: held()), AdapterKey("a", "1", ""), threading.Event()

    def load(key: AdapterKey, wanted: IsWanted) -> Adapter:
        unwanted.set()
        return held()

    pool.load = load
    with pytest.raises(CancelledError):
        pool.get(key, wanted=lambda: not unwanted.is_set())
    assert key not in pool and not pool._loading
    assert pool.get(key)
