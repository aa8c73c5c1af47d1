"""Prompts against the text encoders called by hand: T5 without a mask at a fixed length, CLIP's pooled vector."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from photoflux.flux.spec import BaseSpec
from photoflux.flux.text import CHUNK, PromptEmbeds, encode_prompts

if TYPE_CHECKING:
    from diffusers import FluxPipeline

PROMPTS = ["a red dog on the beach", "a photo of sks dog", ""]


def ids(tokenizer: Any, prompts: list[str], length: int) -> torch.Tensor:
    return tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids


def test_both_encoders_see_the_prompt_and_t5_no_mask(pipe: FluxPipeline, spec: BaseSpec) -> None:
    """Equal to T5's last hidden state over padded ids and to CLIP's pooler output."""
    embeds = encode_prompts(pipe, PROMPTS, spec=spec)
    with torch.no_grad():
        sequence = pipe.text_encoder_2(ids(pipe.tokenizer_2, PROMPTS, spec.text_length))[0]
        pooled = pipe.text_encoder(ids(pipe.tokenizer, PROMPTS, pipe.tokenizer_max_length)).pooler_output
    assert embeds.sequence.shape == (3, spec.text_length, 32)
    torch.testing.assert_close(embeds.sequence, sequence, atol=1e-6, rtol=0)
    torch.testing.assert_close(embeds.pooled, pooled, atol=1e-6, rtol=0)


def test_the_length_is_the_specs_whatever_the_prompt(pipe: FluxPipeline, spec: BaseSpec) -> None:
    """Padding is attended to, so a spec with another length gives another sequence, and long prompts are cut."""
    short = replace(spec, text_length=12)
    assert encode_prompts(pipe, ["dog", "dog " * 50], spec=short).sequence.shape == (2, 12, 32)
    assert encode_prompts(pipe, ["dog"], spec=spec).sequence.shape == (1, 24, 32)


def test_each_distinct_prompt_is_encoded_once(
    pipe: FluxPipeline, spec: BaseSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """150 prompts of which 70 differ go through in chunks, and come back in the order asked for."""
    encode, asked = pipe.encode_prompt, list[list[str]]()

    def counted(prompt: list[str], **how: Any) -> Any:
        asked.append(prompt)
        return encode(prompt=prompt, **how)

    monkeypatch.setattr(pipe, "encode_prompt", counted)
    different = [
        f"a {a} {b}"
        for a in ("red", "blue", "green", "black", "white", "pink", "grey")
        for b in ("dog", "cat", "bird", "fish", "car", "boat", "mug", "lamp", "robot", "teapot")
    ]
    prompts = [*different, *reversed(different), *different[:10]]
    embeds = encode_prompts(pipe, prompts, spec=spec)
    assert [len(part) for part in asked] == [CHUNK, 70 - CHUNK]
    assert len(embeds) == 150
    assert torch.equal(embeds.sequence[0], embeds.sequence[139])
    assert torch.equal(embeds.pooled[69], embeds.pooled[70])
    alone = encode_prompts(pipe, [prompts[77]], spec=spec)
    torch.testing.assert_close(embeds.take([77]).pooled, alone.pooled, atol=1e-5, rtol=0)


def test_embeddings_are_frozen(pipe: FluxPipeline, spec: BaseSpec) -> None:
    """No graph is kept behind them, and they are finite."""
    embeds = encode_prompts(pipe, PROMPTS, spec=spec)
    assert not embeds.sequence.requires_grad
    assert embeds.sequence.isfinite().all()
    assert embeds.pooled.isfinite().all()


def test_rows_are_taken_joined_and_cast() -> None:
    """`take` picks rows of both tensors in order, `concat` stacks them back, `to` casts both."""
    embeds = PromptEmbeds(torch.arange(6.0).view(3, 2, 1), torch.arange(3.0).view(3, 1))
    picked = embeds.take([2, 0])
    assert picked.pooled.flatten().tolist() == [2, 0]
    assert picked.sequence.flatten().tolist() == [4, 5, 0, 1]
    both = PromptEmbeds.concat([picked, embeds.take(torch.tensor([1]))])
    assert both.pooled.flatten().tolist() == [2, 0, 1]
    half = embeds.to(torch.bfloat16)
    assert half.sequence.dtype == half.pooled.dtype == torch.bfloat16
