"""The flow-matching step of FLUX, as arithmetic: x_σ = (1 - σ) z + σ ε, and the network is taught ε - z."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from photoflux.flux.text import PromptEmbeds

HIGH_SIGMA = 0.9
"""Above this noise level an image's composition is decided."""


@dataclass(frozen=True)
class TokenGrid:
    """Positions of the tokens: `image` [h/2 * w/2, 3] = (0, row, column), `text` [L, 3] = 0; both without a batch axis."""

    image: Tensor
    text: Tensor

    @classmethod
    def of(cls, latents: Tensor, *, text_length: int, device: torch.device | str | None = None) -> TokenGrid:
        rows, columns = latents.shape[-2] // 2, latents.shape[-1] // 2
        image = torch.zeros(rows, columns, 3, device=device)
        image[..., 1] = torch.arange(rows, device=device)[:, None]
        image[..., 2] = torch.arange(columns, device=device)[None, :]
        return cls(image.reshape(-1, 3), torch.zeros(text_length, 3, device=device))


def pack(latents: Tensor) -> Tensor:
    """[B, 16, h, w] to tokens [B, h/2 * w/2, 64], each 2 x 2 patch in the order channel, row, column."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens: Tensor, *, height: int, width: int) -> Tensor:
    """The inverse of `pack` for latents of `height` x `width`."""
    b, _, c = tokens.shape
    patches = tokens.view(b, height // 2, width // 2, c // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, height, width)


def sample_sigmas(
    count: int,
    *,
    generator: torch.Generator,
    serving_share: float = 0.0,
    denoise_steps: int = 4,
    high_share: float = 1.0,
) -> Tensor:
    """Noise levels [count] in (0, 1]: sigmoid of a standard normal, or for `serving_share` of them one that serving visits.

    Of the levels above `HIGH_SIGMA` a share `high_share` stays; the others become lower ones that serving visits.
    """
    levels = torch.randn(count, generator=generator).sigmoid()
    visited = 1 - torch.randint(denoise_steps, (count,), generator=generator) / denoise_steps
    levels = torch.where(torch.rand(count, generator=generator) < serving_share, visited, levels)
    if high_share == 1 or denoise_steps == 1:
        return levels
    lower = 1 - torch.randint(1, denoise_steps, (count,), generator=generator) / denoise_steps
    replaced = (levels > HIGH_SIGMA) & (torch.rand(count, generator=generator) >= high_share)
    return torch.where(replaced, lower, levels)


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_σ = (1 - σ) z + σ ε for batches of any shape, σ [B], in float32."""
    level = sigma.float().view(-1, *[1] * (clean.ndim - 1))
    return (1 - level) * clean.float() + level * noise.float()


def predict(transformer: Any, tokens: Tensor, sigma: Tensor, embeds: PromptEmbeds, grid: TokenGrid) -> Tensor:
    """The velocity the transformer sees in tokens [B, T, 64] at σ [B]; guidance is off, σ is passed as t / 1000."""
    dtype = embeds.sequence.dtype
    return transformer(
        hidden_states=tokens.to(dtype),
        timestep=sigma.to(dtype),
        guidance=None,
        pooled_projections=embeds.pooled,
        encoder_hidden_states=embeds.sequence,
        txt_ids=grid.text,
        img_ids=grid.image,
        return_dict=False,
    )[0]
