"""The training loop of all stages of the pocket pretraining: time budget, averaged weights, resumable state, progress lines."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from photoflux.flux.ema import update_average
from photoflux.manifest import replacing

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """How long a stage trains: wall time, or a number of steps (for tests)."""

    seconds: float = math.inf
    steps: int | None = None

    def progress(self, *, spent_s: float, step: int) -> float:
        """Fraction done in [0, 1]; whichever limit is nearer."""
        of_time = spent_s / self.seconds if self.seconds > 0 else 1.0
        of_steps = step / self.steps if self.steps else 0.0
        return min(1.0, max(of_time, of_steps))


@dataclass(frozen=True)
class Recipe:
    """Optimiser settings of a stage."""

    lr: float
    warmup_steps: int = 200
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.999
    muon_lr: float = 0.0

    def scaled(self, factor: float) -> Recipe:
        """The same with all learning rates times `factor`: below 1 to continue from trained weights."""
        return replace(self, lr=self.lr * factor, muon_lr=self.muon_lr * factor)

    def rate(self, *, progress: float, step: int) -> float:
        """Multiplier on the learning rate: linear warm-up, then a half cosine down to 0 at the end of the budget."""
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return warm * 0.5 * (1 + math.cos(math.pi * progress))


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made (nearly) orthogonal, for hidden weight matrices and convolutions.

    Newton-Schulz iteration (in bf16 where that is fast) with the quintic coefficients of Jordan et al. 2024; the update is scaled by
    `0.2 * sqrt(max(rows, columns))`, which gives it the size of an Adam step. `torch.optim.Muon` takes no convolutions, iterates in bf16
    wherever it runs (1 % off ours after three steps), and one matrix after another.
    """

    def __init__(self, params: list[nn.Parameter], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = torch.bfloat16 if has_fast_bf16(params[0].device) else torch.float32

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # noqa: ARG002 (the interface of optimisers)
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            buffers = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in weights]
            torch._foreach_lerp_(buffers, [p.grad for p in weights], 1 - group["momentum"])
            updates = torch._foreach_lerp([p.grad for p in weights], buffers, group["momentum"])
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            # one product for all matrices of a shape: on a GPU thousands of small ones take longer than the network
            for same_shape in _by_shape(updates):
                stack = orthogonal(torch.stack([updates[i].flatten(1) for i in same_shape]).to(self.dtype)).float()
                size = -0.2 * group["lr"] * max(stack.shape[1:]) ** 0.5
                moves = [update.view_as(weights[i]) for i, update in zip(same_shape, stack, strict=True)]
                torch._foreach_add_([weights[i] for i in same_shape], moves, alpha=size)


def _by_shape(tensors: list[Tensor]) -> list[list[int]]:
    """Positions of the tensors that are matrices of one shape when all axes but the first are joined."""
    groups: dict[torch.Size, list[int]] = {}
    for position, tensor in enumerate(tensors):
        groups.setdefault(tensor.flatten(1).shape, []).append(position)
    return list(groups.values())


def orthogonal(matrices: Tensor, *, iterations: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrices `[..., M, N]`, roughly: singular values end near 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices) / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def hidden_matrices(module: nn.Module) -> list[nn.Parameter]:
    """Weights of layers inside blocks: what Muon is for (no embeddings, inputs, outputs, modulations)."""
    layers = {name: m for name, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    return [m.weight for name, m in layers.items() if re.search(r"block|layers?\.\d", name) and "norm" not in name]


class Ema:
    """The moving average of a module's parameters."""

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.averages = [p.detach().clone() for p in module.parameters()]

    def update(self, module: nn.Module, *, step: int) -> None:
        update_average(self.averages, module.parameters(), decay=self.decay, train_step=step)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        for parameter, average in zip(module.parameters(), self.averages, strict=True):
            parameter.copy_(average)


@dataclass
class Run:
    """One stage in training: `for step in run: run.update(loss, images=n)` until its budget is spent.

    State (weights, optimiser, EMA, step, seconds) is saved to `file` about every two minutes and at the end, always
    by renaming a complete file; a killed run continues from the last one. Whatever a step draws at random must come
    from `generator(step)`, so that a resumed run draws what an uninterrupted one would have.
    """

    name: str
    module: nn.Module
    file: Path
    budget: Budget
    recipe: Recipe
    seed: int = 0
    save_every_s: float = 120.0
    log_every_s: float = 20.0
    step: int = 0
    images: int = 0
    spent_s: float = 0.0
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimisers = self._optimisers()
        self.ema = Ema(self.module, decay=self.recipe.ema)
        self.device = next(self.module.parameters()).device
        if self.file.exists():
            self._load()
        self.began_at = self.step

    def _optimisers(self) -> list[torch.optim.Optimizer]:
        recipe, matrices = self.recipe, hidden_matrices(self.module) if self.recipe.muon_lr else []
        chosen = {id(p) for p in matrices}
        others = [p for p in self.module.parameters() if p.requires_grad and id(p) not in chosen]
        adam = torch.optim.AdamW(others, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True)
        muon = [Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay)] if matrices else []
        for optimiser in [adam, *muon]:
            for group in optimiser.param_groups:
                group["base_lr"] = group["lr"]
        return [adam, *muon]

    @property
    def progress(self) -> float:
        return self.budget.progress(spent_s=self.spent_s, step=self.step)

    def generator(self, step: int) -> torch.Generator:
        """A generator on the device of the module that depends on (seed, step) only."""
        return torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + step)

    def __iter__(self) -> Iterator[int]:
        self.module.train()
        started, since_save, since_log = time.monotonic(), time.monotonic(), time.monotonic()
        before_s, self._last_report = self.spent_s, (self.images, self.spent_s)
        while self.progress < 1.0:
            yield self.step
            self.step += 1
            now = time.monotonic()
            self.spent_s = before_s + now - started
            if now - since_log > self.log_every_s or self.progress >= 1.0:
                since_log = self._report(now)
            if now - since_save > self.save_every_s:
                self.save()
                since_save = now
        self.save()
        self.module.eval()

    def update(self, loss: Tensor, *, images: int) -> None:
        """Backward, clip, step and average. A batch whose loss is not finite is skipped."""
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        value = loss.item()  # the only synchronisation with a GPU in a step
        if not math.isfinite(value):
            log.warning("%s: step %d has a loss of %s, skipped", self.name, self.step, value)
            return
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), self.recipe.clip_norm)
        rate = self.recipe.rate(progress=self.progress, step=self.step)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * group["base_lr"]
            optimiser.step()
        self.ema.update(self.module, step=self.step)
        self.images += images
        self.losses.append(value)

    def _report(self, now: float) -> float:
        images, spent_s = self._last_report
        per_s = (self.images - images) / max(1e-9, self.spent_s - spent_s)
        loss = sum(self.losses) / max(1, len(self.losses))
        left_s = self.spent_s / max(1e-9, self.progress) - self.spent_s
        log.info(
            "%s step %d (%.0f %%) loss %.4f, %.1f images/s, %d images, %.1f min left",
            self.name,
            self.step,
            100 * self.progress,
            loss,
            per_s,
            self.images,
            left_s / 60,
        )
        self._last_report, self.losses = (self.images, self.spent_s), []
        return now

    def save(self) -> None:
        state = {
            "module": self.module.state_dict(),
            "ema": self.ema.averages,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "counters": {"step": self.step, "images": self.images, "spent_s": self.spent_s},
        }
        save_atomically(state, self.file)

    def _load(self) -> None:
        state = torch.load(self.file, map_location=self.device, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.ema.averages = state["ema"]
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        for name, value in state["counters"].items():
            setattr(self, name, value)
        log.info("%s continues at step %d after %.1f min", self.name, self.step, self.spent_s / 60)


def save_atomically(state: Any, file: Path) -> None:
    """`torch.save` under a temporary name, then rename, so that readers never see an incomplete file."""
    with replacing(file) as partial:
        torch.save(state, partial)


def load_average(file: Path, module: nn.Module) -> bool:
    """Load the averaged weights of a saved run into `module`; False where there is no saved run."""
    if not file.exists():
        return False
    state = torch.load(file, map_location="cpu", weights_only=True)
    module.load_state_dict(state["module"])
    with torch.no_grad():
        for parameter, average in zip(module.parameters(), state["ema"], strict=True):
            parameter.copy_(average)
    return True


def mixed_precision(device: torch.device) -> Any:
    """Autocast to bf16 on CUDA and on CPUs with matrix tiles (AMX); elsewhere plain fp32 is the fastest."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device))


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products are much faster than fp32 ones there."""
    return device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16"))


@contextmanager
def math_attention(device: torch.device) -> Iterator[None]:
    """On a CPU compute attention as two matrix products: at 88 tokens the fused kernel's backward pass takes three times as long."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if device.type != "cpu":
        yield
        return
    with sdpa_kernel(SDPBackend.MATH):
        yield
