from __future__ import annotations

import shutil

import pytest
import torch

from photoflux.flux.step import pack
from photoflux.pocket import models
from photoflux.pocket.train_flow import Flow, sample
from photoflux.pocket.training import math_attention, mixed_precision

WORDS = ["a", "photo", "of", "red", "dog", "beach", "on", "the"]
CONFIG = models.PocketConfig.tiny()


@pytest.fixture(scope="module")
def pipe():
    built = models.build_base(CONFIG, seed=0, vocabulary=WORDS)
    built.set_progress_bar_config(disable=True)
    for layer in (built.transformer.norm_out.linear, built.transformer.proj_out):
        torch.nn.init.normal_(layer.weight, std=0.1, generator=torch.Generator().manual_seed(1))
    return built


def prompt_ids(pipe, prompts):
    settings = {"padding": "max_length", "max_length": CONFIG.text_length, "return_tensors": "pt"}
    return pipe.tokenizer(prompts, **settings).input_ids, pipe.tokenizer_2(prompts, **settings).input_ids


def test_same_seed_same_weights():
    first, second = (models.build_base(CONFIG, seed=7, vocabulary=WORDS) for _ in range(2))
    for name in ("vae", "transformer", "text_encoder", "text_encoder_2"):
        for a, b in zip(getattr(first, name).parameters(), getattr(second, name).parameters(), strict=True):
            assert torch.equal(a, b)


def test_vae_has_the_geometry_of_flux(pipe):
    images = torch.zeros(2, 3, 64, 48)
    latents = pipe.vae.encode(images).latent_dist.mean
    assert latents.shape == (2, 16, 8, 6)
    assert pipe.vae.decode(latents).sample.shape == images.shape
    assert pipe.vae.quant_conv is None and pipe.vae.post_quant_conv is None


def test_an_untrained_transformer_starts_at_zero_velocity():
    transformer = models.build_transformer(CONFIG)
    assert transformer.proj_out.weight.abs().sum() == 0
    assert not transformer.config.guidance_embeds
    assert sum(transformer.config.axes_dims_rope) == transformer.config.attention_head_dim


@pytest.mark.parametrize("steps", [1, 4])
def test_training_and_stock_pipeline_draw_the_same(pipe, steps):
    prompts = ["a photo of a red dog", "the beach"]
    noise = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    ours = sample(Flow(pipe), noise, prompt_ids(pipe, prompts), steps=steps)
    stock = pipe(
        prompts,
        height=128,
        width=128,
        num_inference_steps=steps,
        guidance_scale=0.0,
        max_sequence_length=CONFIG.text_length,
        latents=pack(noise),
        output_type="latent",
    ).images
    torch.testing.assert_close(pack(ours), stock, atol=1e-5, rtol=1e-5)


def test_clip_reads_the_caption_at_its_end_token(pipe):
    ids = prompt_ids(pipe, ["a red dog"])[0]
    changed = ids.clone()
    changed[:, 6:] = 5  # whatever stands behind the end token must not matter
    pooled = [pipe.text_encoder(one).pooler_output for one in (ids, changed)]
    torch.testing.assert_close(*pooled)


def test_lora_targets_name_what_they_say_and_not_the_output_layer():
    transformer = models.build_transformer(CONFIG)
    modules = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in models.lora_targets(CONFIG):
        assert any(name == target or name.endswith(f".{target}") for name in modules), target
    hit = {n for n in modules for t in models.lora_targets(CONFIG) if n == t or n.endswith(f".{t}")}
    assert "proj_out" not in hit
    assert not any("norm" in name or "embed" in name for name in hit)


def test_capitals_share_their_words_embedding():
    pipe = models.build_base(CONFIG, seed=0, vocabulary=WORDS)
    models.tie_case(pipe)
    table = pipe.text_encoder_2.get_input_embeddings().weight
    ids = pipe.tokenizer_2.get_vocab()
    assert torch.equal(table[ids["\u2581Dog"]], table[ids["\u2581dog"]])


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_fast_training_has_the_gradients_of_plain_fp32(pipe, compiled):
    """Whatever makes pretraining fast (bf16 tiles, unfused attention, the compiler) must point the same way."""
    if compiled and not shutil.which("g++"):
        pytest.skip("no C++ compiler (g++) for torch.compile")
    flow, generator = Flow(pipe).train(), torch.Generator().manual_seed(2)
    tokens, target = torch.randn(2, 4, 64, 64, generator=generator)
    sigma, ids = torch.rand(4, generator=generator), prompt_ids(pipe, ["a photo of a red dog"] * 4)
    plain = gradients(flow, flow(tokens, sigma, *ids), target)
    with mixed_precision(torch.device("cpu")), math_attention(torch.device("cpu")):
        velocity = (torch.compile(flow) if compiled else flow)(tokens, sigma, *ids)
    fast = gradients(flow, velocity.float(), target)
    assert torch.cosine_similarity(fast, plain, dim=0) > 0.99


def gradients(flow, velocity, target):
    flow.zero_grad()
    (velocity - target).square().mean().backward()
    return torch.cat([p.grad.flatten().clone() for p in flow.parameters() if p.grad is not None])
