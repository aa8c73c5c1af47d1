"""Adapters in memory, and pools of them with a byte limit, which drop the least recently used."""

from __future__ import annotations

import json
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from photoflux.errors import InputError
from photoflux.flux.spec import WEIGHTS, BaseSpec

IsWanted = Callable[[], bool]
"""False once the request was cancelled."""
PREFIX, DOWN, UP = "transformer.", ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class AdapterKey:
    """Owner, version and SHA-256 of an adapter's plaintext artifact: a key can never refer to another adapter."""

    owner: str
    version: str
    sha256: str


@dataclass(frozen=True)
class Adapter:
    """Low-rank changes by layer: `down` [R, I] and `up` [O, R] with the scale in it; W becomes W + up @ down."""

    layers: Mapping[str, tuple[Tensor, Tensor]]
    subject: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for pair in self.layers.values() for t in pair)

    def to(self, device: torch.device | str) -> Adapter:
        """A copy on a device; from pinned memory it is copied asynchronously."""
        moved = {name: tuple(t.to(device, non_blocking=True) for t in pair) for name, pair in self.layers.items()}
        return Adapter(moved, self.subject)  # type: ignore[arg-type]

    def pinned(self) -> Adapter:
        """A copy in page-locked memory, for asynchronous copies to a GPU; the same object where there is no GPU."""
        if not torch.cuda.is_available():
            return self
        return Adapter({n: tuple(t.pin_memory() for t in pair) for n, pair in self.layers.items()}, self.subject)  # type: ignore[misc]


def read_adapter(artifact: Path, *, spec: BaseSpec, sha256: str = "") -> Adapter:
    """The adapter of an artifact that fine-tuning wrote.

    Raises InputError where it is another one than `sha256` says, was trained on another base, or is not readable.
    """
    from safetensors import SafetensorError, safe_open

    from photoflux.manifest import digest, unpack

    if sha256 and digest(artifact) != sha256:
        raise InputError("the adapter is not the one that was asked for; register it again")
    with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        manifest = unpack(artifact, Path(scratch))
        if manifest["base"]["hash"] != spec.hash:
            raise InputError(f"the adapter was trained on another base than '{spec.name}'; train it on this one")
        try:
            with safe_open(Path(scratch) / WEIGHTS, framework="pt") as file:
                scale = _scale(file.metadata() or {})
                layers = _layers({name: file.get_tensor(name) for name in file.keys()}, scale)  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"the adapter's weights cannot be read ({error}); run finetune again") from error
    return Adapter(layers, manifest["subject"])


def _scale(metadata: Mapping[str, str]) -> float:
    config = json.loads(metadata["lora_adapter_metadata"])
    return float(config["transformer.lora_alpha"]) / float(config["transformer.r"])


def _layers(tensors: Mapping[str, Tensor], scale: float) -> dict[str, tuple[Tensor, Tensor]]:
    names = sorted(name.removesuffix(DOWN) for name in tensors if name.endswith(DOWN))
    if len(tensors) != 2 * len(names) or not all(name.startswith(PREFIX) for name in names):
        raise ValueError("holds more than LoRA matrices of the transformer")
    return {
        name.removeprefix(PREFIX): (tensors[name + DOWN].float(), tensors[name + UP].float() * scale) for name in names
    }


@dataclass
class AdapterPool:
    """Adapters by key, the least recently used dropped beyond `limit_bytes`; safe for several threads.

    `load` fetches a missing one, once also where several threads ask for it; it is given the arguments of `get`.
    """

    limit_bytes: int
    load: Callable[[AdapterKey, IsWanted], Adapter]
    _adapters: OrderedDict[AdapterKey, Adapter] = field(default_factory=OrderedDict)
    _loading: dict[AdapterKey, threading.Lock] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: AdapterKey, *, wanted: IsWanted = lambda: True) -> Adapter:
        """The adapter of that key. Raises whatever `load` raises.

        Raises CancelledError where it is no longer `wanted` once it is loaded, so that it is not cached for an owner who was
        forgotten meanwhile.
        """
        with self._lock:
            if key in self._adapters:
                self._adapters.move_to_end(key)
                return self._adapters[key]
            load_lock = self._loading.setdefault(key, threading.Lock())
        with load_lock:
            with self._lock:
                if key in self._adapters:
                    return self._adapters[key]
            try:
                adapter = self.load(key, wanted)
                self._put(key, adapter, wanted=wanted)
                return adapter
            finally:
                with self._lock:
                    self._loading.pop(key, None)

    def _put(self, key: AdapterKey, adapter: Adapter, *, wanted: IsWanted) -> None:
        with self._lock:  # checked under the lock of `forget`: nothing is cached for an owner after that has returned
            if not wanted():
                raise CancelledError
            self._adapters[key] = adapter
            while self.nbytes > self.limit_bytes and len(self._adapters) > 1:
                self._adapters.popitem(last=False)

    def forget(self, owner: str) -> int:
        """Drop an owner's adapters; returns how many there were."""
        with self._lock:
            dropped = [key for key in self._adapters if key.owner == owner]
            for key in dropped:
                del self._adapters[key]
            return len(dropped)

    def owners(self) -> set[str]:
        """Owners of the cached adapters."""
        with self._lock:
            return {key.owner for key in self._adapters}

    @property
    def nbytes(self) -> int:
        return sum(adapter.nbytes for adapter in self._adapters.values())

    def __contains__(self, key: AdapterKey) -> bool:
        return key in self._adapters

    def __len__(self) -> int:
        return len(self._adapters)
