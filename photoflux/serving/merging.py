"""Merging an adapter into the weights that draw: W = W0 + up @ down, anew from the pristine W0 each time.

A side branch costs at every step, a merge once per request. Starting from W0, never from what the adapter before left, is
what makes A, B, A draw the same picture twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from photoflux.errors import InputError
from photoflux.serving.adapters import Adapter


class Merger:
    """Owns the weights of `targets` in a transformer; their tensors stay where they are, so that nothing is recompiled."""

    def __init__(self, transformer: Any, targets: Iterable[str]) -> None:
        ends = tuple(targets)
        self.weights: dict[str, Tensor] = {
            name: module.weight.data
            for name, module in transformer.named_modules()
            if isinstance(module, nn.Linear) and any(name == end or name.endswith(f".{end}") for end in ends)
        }
        self._pristine = {name: weight.clone() for name, weight in self.weights.items()}
        self._touched: set[str] = set()

    @torch.no_grad()
    def merge(self, adapter: Adapter) -> None:
        """Draw with this adapter from now on. Raises InputError, and leaves the pristine base, where it does not fit."""
        self.restore()
        self._check(adapter)
        for name, (down, up) in adapter.layers.items():
            weight = self.weights[name]
            change = up.to(weight.device, torch.float32) @ down.to(weight.device, torch.float32)
            torch.add(self._pristine[name].float(), change, out=change)
            self._touched.add(name)
            weight.copy_(change)

    @torch.no_grad()
    def restore(self) -> None:
        """Back to the base."""
        for name in self._touched:
            self.weights[name].copy_(self._pristine[name])
        self._touched.clear()

    def _check(self, adapter: Adapter) -> None:
        if not adapter.layers:
            raise InputError("the adapter changes nothing; run finetune again")
        for name, (down, up) in adapter.layers.items():
            weight = self.weights.get(name)
            if weight is None or weight.shape != (up.shape[0], down.shape[1]) or up.shape[1] != down.shape[0]:
                raise InputError(f"the adapter does not fit this base: layer {name}; train it on this base")
