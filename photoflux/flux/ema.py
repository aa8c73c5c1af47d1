"""The exponential moving average of the weights, which every training ships in place of the last ones."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def update_average(averages: Iterable[Tensor], weights: Iterable[Tensor], *, decay: float, train_step: int) -> None:
    """Exponential moving average that forgets its start faster while it is young; with a decay of 0, the weights themselves."""
    at_step = min(decay, (1 + train_step) / (10 + train_step))
    torch._foreach_lerp_(list(averages), [weight.detach() for weight in weights], 1 - at_step)
