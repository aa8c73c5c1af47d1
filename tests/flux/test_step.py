"""The flow-matching step against closed forms, numpy and the stock pipeline's own scheduler."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import stats

from photoflux.flux.step import TokenGrid, add_noise, pack, predict, sample_sigmas, unpack
from photoflux.flux.text import PromptEmbeds

if TYPE_CHECKING:
    from diffusers import FluxPipeline


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=seeded(seed))


def test_noise_levels_are_the_sigmoid_of_a_standard_normal() -> None:
    """The first numbers of the generator, through 1 / (1 + exp(-n)) in numpy."""
    drawn = sample_sigmas(32, generator=seeded(4)).numpy()
    np.testing.assert_allclose(drawn, 1 / (1 + np.exp(-normal(32, seed=4).numpy())), rtol=1e-6)


def test_noise_levels_are_logit_normal_without_shift() -> None:
    """The logit of 20,000 levels is told from N(0, 1) by no Kolmogorov-Smirnov test."""
    drawn = sample_sigmas(20_000, generator=seeded()).double().numpy()
    assert 0 < drawn.min() < drawn.max() < 1
    assert stats.kstest(np.log(drawn / (1 - drawn)), "norm").pvalue > 0.05


@pytest.mark.parametrize("steps", [2, 4])
def test_a_share_of_the_levels_is_what_serving_visits(steps: int) -> None:
    """All levels are k / steps at share 1, each equally often; about 30 % at share 0.3."""
    visited = np.arange(1, steps + 1) / steps
    every = sample_sigmas(8000, generator=seeded(), serving_share=1.0, denoise_steps=steps).numpy()
    values, counts = np.unique(every, return_counts=True)
    np.testing.assert_array_equal(values, visited)
    assert counts.min() > 0.9 * 8000 / steps
    some = sample_sigmas(8000, generator=seeded(), serving_share=0.3, denoise_steps=steps).numpy()
    assert np.isin(some, visited).mean() == pytest.approx(0.3, abs=0.02)


def test_high_levels_can_be_thinned_out() -> None:
    """Of the levels above .9 about a quarter stays; the rest becomes .75, .5 or .25, and no other level changes."""
    how = {"serving_share": 0.5, "denoise_steps": 4}
    every = sample_sigmas(20_000, generator=seeded(), **how).numpy()
    fewer = sample_sigmas(20_000, generator=seeded(), high_share=0.25, **how).numpy()
    high = every > 0.9
    assert (fewer[high] > 0.9).mean() == pytest.approx(0.25, abs=0.03)
    np.testing.assert_array_equal(fewer[~high], every[~high])
    values, counts = np.unique(fewer[high & (fewer <= 0.9)], return_counts=True)
    np.testing.assert_array_equal(values, [0.25, 0.5, 0.75])
    assert counts.min() > 0.25 * counts.sum()


def test_a_base_of_one_step_keeps_its_only_level() -> None:
    assert sample_sigmas(50, generator=seeded(), serving_share=1.0, denoise_steps=1, high_share=0.0).eq(1).all()


@pytest.mark.parametrize("shape", [(3, 16, 4, 6), (3, 10, 64)])
def test_noise_is_mixed_in_linearly_and_in_float32(shape: tuple[int, ...]) -> None:
    """x = (1 - σ) z + σ ε by numpy, whatever the shape and the type of the latents."""
    clean, noise, sigma = normal(*shape), normal(*shape, seed=1), torch.tensor([0.1, 0.5, 1.0])
    level = sigma.numpy().reshape(3, *[1] * (len(shape) - 1))
    mixed = add_noise(clean, noise, sigma)
    np.testing.assert_allclose(mixed, (1 - level) * clean.numpy() + level * noise.numpy(), atol=1e-6)
    coarse = add_noise(clean.bfloat16(), noise.bfloat16(), sigma)
    assert coarse.dtype == torch.float32
    expected = (1 - level) * clean.bfloat16().float().numpy() + level * noise.bfloat16().float().numpy()
    np.testing.assert_allclose(coarse, expected, atol=1e-6)


def test_the_exact_velocity_recovers_the_latents_in_four_steps(pipe: FluxPipeline) -> None:
    """The pipeline's own scheduler, from ε along ε - z, ends at z; it visits the schnell levels."""
    clean, noise = normal(2, 64, 64), normal(2, 64, 64, seed=1)
    pipe.scheduler.set_timesteps(4, sigmas=np.linspace(1.0, 1 / 4, 4).tolist())
    assert tuple(pipe.scheduler.sigmas.tolist()) == (1.0, 0.75, 0.5, 0.25, 0.0)
    x = noise
    for t in pipe.scheduler.timesteps:
        x = pipe.scheduler.step(noise - clean, t, x, return_dict=False)[0]
    torch.testing.assert_close(x, clean, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [(16, 16), (8, 20)])
def test_tokens_and_their_places_are_those_of_the_stock_pipeline(side: tuple[int, int], pipe: FluxPipeline) -> None:
    """Packing, its inverse and the 2-D position ids equal `FluxPipeline`'s."""
    height, width = side
    latents = normal(2, 16, height, width)
    tokens = pack(latents)
    assert torch.equal(tokens, pipe._pack_latents(latents, 2, 16, height, width))
    assert torch.equal(unpack(tokens, height=height, width=width), latents)
    assert torch.equal(pipe._unpack_latents(tokens, 8 * height, 8 * width, 8), latents)
    grid = TokenGrid.of(latents, text_length=7)
    assert torch.equal(grid.image, pipe._prepare_latent_image_ids(2, height // 2, width // 2, "cpu", torch.float32))
    assert grid.image.shape == (height * width // 4, 3)
    assert torch.equal(grid.text, torch.zeros(7, 3))


def test_a_patch_is_read_channel_by_channel() -> None:
    """By hand: one token of a 2 x 2 latent lists channel 0's four values, row by row, then channel 1's."""
    latents = torch.arange(64.0).view(1, 16, 2, 2)
    assert pack(latents).flatten().tolist() == list(range(64))
    wide = torch.arange(128.0).view(1, 16, 2, 4)
    assert pack(wide)[0, 1, :6].tolist() == [2, 3, 6, 7, 10, 11]


def test_the_transformer_is_asked_without_guidance_at_sigma() -> None:
    """σ goes in as t / 1000, in the type of the prompts, with ids that have no batch axis."""
    asked: dict[str, Any] = {}

    def transformer(**given: Any) -> tuple[torch.Tensor]:
        asked.update(given)
        return (given["hidden_states"],)

    embeds = PromptEmbeds(torch.zeros(2, 7, 32, dtype=torch.bfloat16), torch.zeros(2, 32, dtype=torch.bfloat16))
    sigma, tokens = torch.tensor([0.75, 0.25]), normal(2, 4, 64)
    predict(transformer, tokens, sigma, embeds, TokenGrid.of(torch.empty(2, 16, 4, 4), text_length=7))
    seen = SimpleNamespace(**asked)
    assert seen.guidance is None
    assert seen.timestep.tolist() == [0.75, 0.25]
    assert seen.hidden_states.dtype == seen.timestep.dtype == torch.bfloat16
    assert seen.img_ids.shape == (4, 3)
    assert seen.txt_ids.shape == (7, 3)
