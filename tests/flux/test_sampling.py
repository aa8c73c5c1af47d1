"""Our sampler is stock `FluxPipeline.__call__`, step for step, on the tiny base and on the shipped one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from photoflux.flux.loading import load_pipeline
from photoflux.flux.sampling import decode, generate, noise_for, sample_latents, schedule
from photoflux.flux.spec import BaseSpec, load_spec
from photoflux.flux.step import pack
from photoflux.flux.text import PromptEmbeds, encode_prompts
from tests.flux.training import stock

if TYPE_CHECKING:
    from diffusers import FluxPipeline

PROMPTS = ["a photo of a red dog on the beach", "a cartoon of a blue mug", "a photo of a robot in the snow"]
SEEDS = [11, 12, 13]


@pytest.fixture(params=["tiny", "pocket"])
def bases(request: pytest.FixtureRequest, base: Path, root: Path) -> Iterator[tuple[FluxPipeline, BaseSpec]]:
    """The tiny base and the base in models/, each with its spec."""
    spec = load_spec(base if request.param == "tiny" else root / "models" / "pocket.yaml")
    yield load_pipeline(spec), spec


def test_latents_equal_those_of_the_stock_pipeline(bases: tuple[FluxPipeline, BaseSpec]) -> None:
    """The same noise ends in the same latents, to 1e-4, at the spec's steps, length and resolution."""
    pipe, spec = bases
    noise = noise_for(SEEDS, spec=spec)
    ours = sample_latents(pipe.transformer, encode_prompts(pipe, PROMPTS, spec=spec), noise, spec=spec)
    theirs = stock(
        pipe, spec, PROMPTS, SEEDS, latents=pipe._pack_latents(noise, 3, *noise.shape[1:]), output_type="latent"
    )
    assert (pack(ours) - theirs).abs().max() <= 1e-4
    assert theirs.abs().max() > 0.1


def test_pictures_equal_those_of_the_stock_pipeline(bases: tuple[FluxPipeline, BaseSpec]) -> None:
    """The same seeds give the same pictures: half a grey level for rounding, and 1e-4."""
    pipe, spec = bases
    ours = np.stack([np.asarray(picture) for picture in generate(pipe, PROMPTS, SEEDS, spec=spec)]) / 255
    theirs = stock(pipe, spec, PROMPTS, SEEDS, output_type="np")
    assert np.abs(ours - theirs).max() <= 0.5 / 255 + 1e-4
    assert theirs.std() > 0.01


def test_decoding_equals_the_stock_pipeline_with_scaled_latents(pipe: FluxPipeline, spec: BaseSpec) -> None:
    """Divided by the scale, then shifted: byte for byte the stock pictures, with the factors of FLUX.1."""
    pipe.vae.register_to_config(scaling_factor=0.3611, shift_factor=0.1159)
    latents = noise_for([3, 4], spec=spec)
    packed = pipe._pack_latents(latents, 2, *latents.shape[1:])
    unscaled = pipe._unpack_latents(packed, 128, 128, 8) / 0.3611 + 0.1159
    with torch.no_grad():
        theirs = pipe.image_processor.postprocess(pipe.vae.decode(unscaled, return_dict=False)[0], output_type="pil")
    assert [picture.tobytes() for picture in decode(pipe.vae, latents)] == [picture.tobytes() for picture in theirs]


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_schedule_is_linear_as_the_pipelines(steps: int, pipe: FluxPipeline) -> None:
    """1, 1 - 1/n, …, 1/n, 0, which is also what the base's scheduler sets."""
    np.testing.assert_allclose(schedule(steps), [1 - i / steps for i in range(steps + 1)], atol=1e-7)
    pipe.scheduler.set_timesteps(steps, sigmas=np.linspace(1.0, 1 / steps, steps).tolist())
    torch.testing.assert_close(schedule(steps), pipe.scheduler.sigmas, atol=1e-7, rtol=0)


def test_an_exact_velocity_leads_to_the_picture(spec: BaseSpec) -> None:
    """A transformer that answers ε - z, in bfloat16, ends at z: the way itself is kept in float32."""
    clean, noise = (noise_for([seed, seed + 1], spec=spec) for seed in (100, 200))
    answer = pack(noise - clean).bfloat16()

    def oracle(**_: Any) -> tuple[torch.Tensor]:
        return (answer,)

    embeds = PromptEmbeds(torch.zeros(2, 24, 32, dtype=torch.bfloat16), torch.zeros(2, 32))
    found = sample_latents(oracle, embeds, noise, spec=spec)
    assert found.dtype == torch.float32
    expected = pack(noise) - answer.float()
    torch.testing.assert_close(pack(found), expected, atol=1e-5, rtol=0)


def test_noise_belongs_to_its_seed() -> None:
    """A seed's noise is one generator's, whatever stands beside it, in the shape of the base's latents."""
    spec = BaseSpec("any", "nowhere", 64, 4, 0.0, 8, "float32", ())
    noise = noise_for([5, 6, 5], spec=spec)
    assert noise.shape == (3, 16, 8, 8)
    assert torch.equal(noise[0], noise[2])
    assert torch.equal(noise[1], torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(6)))


def test_a_picture_does_not_depend_on_its_batch(pipe: FluxPipeline, spec: BaseSpec) -> None:
    """Drawn one by one or together, pictures differ by one grey level at most."""
    one, three = (generate(pipe, PROMPTS, SEEDS, spec=spec, batch_size=size) for size in (1, 3))
    for a, b in zip(one, three, strict=True):
        assert np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max() <= 1


def test_steps_can_be_asked_for(pipe: FluxPipeline, spec: BaseSpec) -> None:
    """`steps` overrides the spec: two steps equal a stock call with two."""
    ours = np.asarray(generate(pipe, PROMPTS[:1], [1], spec=spec, denoise_steps=2)[0]) / 255
    theirs = stock(pipe, replace(spec, steps=2), PROMPTS[:1], [1], output_type="np")[0]
    assert np.abs(ours - theirs).max() <= 0.5 / 255 + 1e-4


@pytest.mark.parametrize("passed", range(4))
def test_sampling_ends_between_any_two_steps(pipe: FluxPipeline, spec: BaseSpec, passed: int) -> None:
    """What `check` raises comes through before the step that it was asked about; asked in vain it changes nothing."""
    begun = list[int]()

    def check() -> None:
        if len(begun) == passed:
            raise KeyboardInterrupt
        begun.append(1)

    embeds, noise = encode_prompts(pipe, PROMPTS[:1], spec=spec), noise_for([1], spec=spec)
    with pytest.raises(KeyboardInterrupt):
        sample_latents(pipe.transformer, embeds, noise, spec=spec, check=check)
    assert len(begun) == passed
    asked = sample_latents(pipe.transformer, embeds, noise, spec=spec, check=lambda: None)
    assert torch.equal(asked, sample_latents(pipe.transformer, embeds, noise, spec=spec))


def test_nothing_asked_is_nothing_drawn(pipe: FluxPipeline, spec: BaseSpec) -> None:
    """No prompts, no pictures, no error."""
    assert generate(pipe, [], [], spec=spec) == []
