"""Merge an adapter into the transformer's weights: W = W0 + up @ down, from the pristine W0 each time.

A side branch costs at every denoise step, a merge once per request. Starting from W0 instead of subtracting the adapter before is
what makes the adapters A, B, A draw bit-equal images with A.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from photoflux.errors import InputError
from photoflux.serving.adapters import Adapter


class Merger:
    """Merges into the weights of `targets` in a transformer, in place, so that compiled code stays valid."""

    def __init__(self, transformer: Any, targets: Iterable[str]) -> None:
        suffixes = tuple(targets)
        self.weights: dict[str, Tensor] = {
            name: module.weight.data
            for name, module in transformer.named_modules()
            if isinstance(module, nn.Linear)
            and any(name == suffix or name.endswith(f".{suffix}") for suffix in suffixes)
        }
        self._pristine = {name: weight.clone() for name, weight in self.weights.items()}
        self._merged: set[str] = set()

    @torch.no_grad()
    def merge(self, adapter: Adapter) -> None:
        """Merge this adapter instead of the present one. Raises InputError, and restores the base, where it does not fit."""
        self.restore()
        self._check(adapter)
        for name, (down, up) in adapter.layers.items():
            weight = self.weights[name]
            merged = up.to(weight.device, torch.float32) @ down.to(weight.device, torch.float32)
            torch.add(self._pristine[name].float(), merged, out=merged)
            self._merged.add(name)
            weight.copy_(merged)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the base's weights."""
        for name in self._merged:
            self.weights[name].copy_(self._pristine[name])
        self._merged.clear()

    def _check(self, adapter: Adapter) -> None:
        if not adapter.layers:
            raise InputError("the adapter changes nothing; run finetune again")
        for name, (down, up) in adapter.layers.items():
            weight = self.weights.get(name)
            if weight is None or weight.shape != (up.shape[0], down.shape[1]) or up.shape[1] != down.shape[0]:
                raise InputError(f"the adapter does not fit this base: layer {name}; train it on this base")
