"""The moving average of the weights, which is what is kept of every training."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def update_average(averages: Iterable[Tensor], weights: Iterable[Tensor], *, decay: float, step: int) -> None:
    """Exponential moving average that forgets its start faster while it is young; with a decay of 0, the weights themselves."""
    kept = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(averages), [weight.detach() for weight in weights], 1 - kept)
