"""Prompts as FLUX reads them: a T5 sequence of fixed length without attention mask, and CLIP's pooled vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import FluxPipeline

    from photoflux.flux.spec import BaseSpec

CHUNK = 64


@dataclass(frozen=True)
class PromptEmbeds:
    """`sequence` [N, L, D] and `pooled` [N, P] of N prompts."""

    sequence: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return len(self.pooled)

    def take(self, index: Sequence[int] | Tensor) -> PromptEmbeds:
        """The prompts at `index`, in that order."""
        chosen = torch.as_tensor(index, device=self.pooled.device)
        return PromptEmbeds(self.sequence[chosen], self.pooled[chosen])

    def to(self, *args: torch.device | torch.dtype | str) -> PromptEmbeds:
        return PromptEmbeds(self.sequence.to(*args), self.pooled.to(*args))

    @staticmethod
    def concat(parts: Sequence[PromptEmbeds]) -> PromptEmbeds:
        return PromptEmbeds(torch.cat([p.sequence for p in parts]), torch.cat([p.pooled for p in parts]))


@torch.no_grad()
def encode_prompts(pipe: FluxPipeline, prompts: Sequence[str], *, spec: BaseSpec) -> PromptEmbeds:
    """Encode prompts as stock `FluxPipeline` does, at the spec's text length; each distinct prompt once."""
    distinct = list(dict.fromkeys(prompts))
    parts = []
    for i in range(0, len(distinct), CHUNK):
        chunk = distinct[i : i + CHUNK]
        sequence, pooled, _ = pipe.encode_prompt(prompt=chunk, prompt_2=None, max_sequence_length=spec.text_length)
        parts.append(PromptEmbeds(sequence, pooled))
    place = {prompt: i for i, prompt in enumerate(distinct)}
    return PromptEmbeds.concat(parts).take([place[prompt] for prompt in prompts])
