"""Adapters: float32 beside a frozen base, readable by the stock pipeline, and a training adapter that never samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from photoflux.errors import InputError
from photoflux.flux.loading import load_pipeline
from photoflux.flux.lora import (
    SUBJECT_ADAPTER,
    TRAINING_ADAPTER,
    activate,
    attach,
    drop_adapter,
    inference_setup,
    load_adapter,
    save_adapter,
    subject_parameters,
    swapped_weights,
    using_base,
)
from photoflux.flux.provision import verify
from photoflux.flux.spec import BaseSpec
from photoflux.flux.text import PromptEmbeds, encode_prompts
from tests.flux.training import randomise, stock, velocity_of

if TYPE_CHECKING:
    from diffusers import FluxPipeline

NAME = "pytorch_lora_weights.safetensors"
LAYER = "transformer_blocks.0.attn.to_q"


def put_on(pipe: FluxPipeline, spec: BaseSpec, *, seed: int = 0, strength: float = 0.2, rank: int = 4) -> Any:
    """The pipeline's transformer with a subject adapter that has an effect."""
    attach(pipe.transformer, spec=spec, rank=rank, alpha=2 * rank, seed=seed)
    randomise(pipe.transformer, strength=strength, seed=seed)
    return pipe.transformer


@pytest.fixture
def embeds(pipe: FluxPipeline, spec: BaseSpec) -> PromptEmbeds:
    return encode_prompts(pipe, ["a photo of sks dog", "a red mug in space"], spec=spec)


@pytest.fixture
def training_adapter(spec: BaseSpec, tmp_path: Path) -> Path:
    """Weights that change the base, in the format in which training adapters are published."""
    return save_adapter(put_on(load_pipeline(spec), spec, seed=9), tmp_path / "training.safetensors")


def test_a_fresh_adapter_changes_nothing(pipe: FluxPipeline, spec: BaseSpec, embeds: PromptEmbeds) -> None:
    """B is zero, so the base answers bit for bit as before; only the adapter may be trained."""
    before = velocity_of(pipe, spec, embeds)
    parameters = attach(pipe.transformer, spec=spec, rank=4, alpha=4, seed=0)
    assert torch.equal(velocity_of(pipe, spec, embeds), before)
    loose = {name for name, p in pipe.transformer.named_parameters() if p.requires_grad}
    assert loose == set(subject_parameters(pipe.transformer))
    assert len(parameters) == len(loose)
    assert all(".lora_A." in name or ".lora_B." in name for name in loose)


def test_the_adapter_has_as_many_weights_as_its_layers_ask_for(pipe: FluxPipeline, spec: BaseSpec) -> None:
    """By hand at width 32 and rank 4: attention 8 + 3 layers of 32 x 32, six of 32 x 128, one of 160 x 32."""
    parameters = attach(pipe.transformer, spec=spec, rank=4, alpha=4, seed=0)
    per_rank = 8 * (32 + 32) + 4 * (32 + 128) + 3 * (32 + 32) + (32 + 128) + (160 + 32)
    assert sum(parameter.numel() for parameter in parameters) == 4 * per_rank == 6784


def test_the_update_is_b_times_a_scaled_by_alpha_over_rank(pipe: FluxPipeline, spec: BaseSpec) -> None:
    """One layer against numpy: W x + b + (alpha / rank) B A x."""
    transformer = put_on(pipe, spec)
    layer, x = transformer.get_submodule(LAYER), torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    w, bias = layer.base_layer.weight.numpy(), layer.base_layer.bias.numpy()
    a, b = (layer.get_submodule(f"lora_{ab}.{SUBJECT_ADAPTER}").weight.detach().numpy() for ab in "AB")
    expected = x.numpy() @ w.T + bias + 8 / 4 * (x.numpy() @ a.T @ b.T)
    np.testing.assert_allclose(layer(x).detach(), expected, atol=1e-5)


def test_adapters_are_float32_on_a_coarser_base(pipe: FluxPipeline, spec: BaseSpec) -> None:
    """On bfloat16 weights updates of 1e-4 would round away, so the adapter is float32, before and after switching."""
    pipe.transformer.to(torch.bfloat16)
    parameters = attach(pipe.transformer, spec=spec, rank=4, alpha=4, seed=0)
    assert {p.dtype for p in parameters} == {torch.float32}
    with using_base(pipe):
        pass
    assert {p.dtype for p in subject_parameters(pipe.transformer).values()} == {torch.float32}
    assert all(p.requires_grad for p in parameters)
    assert pipe.transformer.proj_out.weight.dtype == torch.bfloat16


def test_initial_weights_belong_to_the_seed_alone(pipe: FluxPipeline, spec: BaseSpec) -> None:
    """The same seed gives the same A whatever was drawn before, and attaching draws nothing from the global stream."""
    torch.manual_seed(123)
    attach(pipe.transformer, spec=spec, rank=4, alpha=4, seed=5)
    after = torch.rand(1)
    torch.manual_seed(123)
    assert torch.equal(torch.rand(1), after)
    first = {name: p.detach().clone() for name, p in subject_parameters(pipe.transformer).items()}
    for seed, equal in ((5, True), (6, False)):
        other = load_pipeline(spec).transformer
        attach(other, spec=spec, rank=4, alpha=4, seed=seed)
        found = subject_parameters(other)
        assert found.keys() == first.keys()
        assert all(torch.equal(found[name], first[name]) for name in first if "lora_A" in name) is equal


def test_a_target_that_is_no_layer_is_named(pipe: FluxPipeline, spec: BaseSpec) -> None:
    """A misspelt layer would silently train less; it is an error instead."""
    wrong = replace(spec, lora_targets=("attn.to_q", "attn.to_w"))
    with pytest.raises(InputError, match=r"names 'attn\.to_w'"):
        attach(pipe.transformer, spec=wrong, rank=4, alpha=4, seed=0)


def test_the_stock_pipeline_draws_the_same_picture_with_our_file(
    pipe: FluxPipeline, spec: BaseSpec, tmp_path: Path
) -> None:
    """`from_pretrained` and `load_lora_weights`, nothing of ours: latents to 1e-4, far from the base's."""
    from diffusers import FluxPipeline

    prompts, seeds = ["a photo of sks dog", "a red mug in space"], [1, 2]
    base = stock(pipe, spec, prompts, seeds, output_type="latent")
    put_on(pipe, spec)
    ours = stock(pipe, spec, prompts, seeds, output_type="latent")
    save_adapter(pipe.transformer, tmp_path / NAME)
    theirs = FluxPipeline.from_pretrained(verify(spec), local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    theirs.load_lora_weights(tmp_path)
    latents = stock(theirs, spec, prompts, seeds, output_type="latent")
    assert (latents - ours).abs().max() <= 1e-4
    assert (latents - base).abs().max() > 0.1
    pictures = [stock(p, spec, prompts, seeds, output_type="np") for p in (pipe, theirs)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1e-4


def test_a_file_says_how_it_is_to_be_read(pipe: FluxPipeline, spec: BaseSpec, tmp_path: Path) -> None:
    """Diffusers' keys in float32, and the LoraConfig in the header: rank, alpha, targets."""
    transformer = put_on(pipe, spec)
    file = save_adapter(transformer, tmp_path / NAME)
    with safe_open(file, framework="pt") as opened:
        config = json.loads(opened.metadata()["lora_adapter_metadata"])
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    assert config["transformer.r"] == 4
    assert config["transformer.lora_alpha"] == 8
    assert set(config["transformer.target_modules"]) == set(spec.lora_targets)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert torch.equal(
        tensors[f"transformer.{LAYER}.lora_A.weight"],
        transformer.get_submodule(f"{LAYER}.lora_A.{SUBJECT_ADAPTER}").weight,
    )
    assert len(tensors) == len(subject_parameters(transformer))


def test_equal_adapters_are_equal_files(spec: BaseSpec, tmp_path: Path) -> None:
    """Byte for byte, from two pipelines; another weight is another file; nothing but the file is left behind."""
    files = [
        save_adapter(put_on(load_pipeline(spec), spec, seed=seed), tmp_path / f"{i}" / NAME)
        for i, seed in enumerate((1, 1, 2))
    ]
    first, same, other = (file.read_bytes() for file in files)
    assert first == same != other
    assert [path.name for path in (tmp_path / "0").iterdir()] == [NAME]


def test_other_weights_can_be_saved_in_place_of_its_own(pipe: FluxPipeline, spec: BaseSpec, tmp_path: Path) -> None:
    """The average is written while training goes on: its values are in the file, its own come back, trainable."""
    transformer = put_on(pipe, spec)
    own = {name: p.detach().clone() for name, p in subject_parameters(transformer).items()}
    average = {name: torch.full_like(value, 0.25) for name, value in own.items()}
    tensors = load_file(save_adapter(transformer, tmp_path / NAME, weights=average))
    assert all((tensor == 0.25).all() for tensor in tensors.values())
    for name, parameter in subject_parameters(transformer).items():
        assert torch.equal(parameter, own[name])
        assert parameter.requires_grad


def test_weights_come_back_after_an_error(pipe: FluxPipeline, spec: BaseSpec) -> None:
    """What is held for a moment is given back even if sampling fails, and training mode and grads with it."""
    transformer = put_on(pipe, spec).train()
    own = {name: p.detach().clone() for name, p in subject_parameters(transformer).items()}
    with (
        pytest.raises(ZeroDivisionError),
        swapped_weights(transformer, {name: value * 0 for name, value in own.items()}),
        inference_setup(transformer),
    ):
        raise ZeroDivisionError
    assert transformer.training
    for name, parameter in subject_parameters(transformer).items():
        assert torch.equal(parameter, own[name])
        assert parameter.requires_grad


def test_loading_puts_one_adapter_in_place_of_another(
    pipe: FluxPipeline, spec: BaseSpec, embeds: PromptEmbeds, tmp_path: Path
) -> None:
    """A, then B, then A again: bit-equal to A alone, frozen; dropped, the base is bit-equal too."""
    base = velocity_of(pipe, spec, embeds)
    a, b = (
        save_adapter(put_on(load_pipeline(spec), spec, seed=seed), tmp_path / f"{seed}.safetensors") for seed in (1, 2)
    )
    load_adapter(pipe, a)
    alone = velocity_of(pipe, spec, embeds)
    load_adapter(pipe, b)
    assert not torch.equal(velocity_of(pipe, spec, embeds), alone)
    load_adapter(pipe, a)
    assert torch.equal(velocity_of(pipe, spec, embeds), alone)
    assert not any(p.requires_grad for p in pipe.transformer.parameters())
    with using_base(pipe):
        assert torch.equal(velocity_of(pipe, spec, embeds), base)
    assert torch.equal(velocity_of(pipe, spec, embeds), alone)
    drop_adapter(pipe)
    assert torch.equal(velocity_of(pipe, spec, embeds), base)


def missing(_: bytes, file: Path) -> None:
    file.unlink()


def cut(good: bytes, file: Path) -> None:
    file.write_bytes(good[: len(good) // 2])


def no_safetensors(_: bytes, file: Path) -> None:
    file.write_bytes(b"\x89PNG\r\n" * 100)


def empty(_: bytes, file: Path) -> None:
    file.write_bytes(b"")


def wider_base(_: bytes, file: Path) -> None:
    tensors = load_file(file)
    save_file(
        {
            key: torch.cat([tensor, tensor], -1) if "lora_A" in key else torch.cat([tensor, tensor])
            for key, tensor in tensors.items()
        },
        file,
    )


def deeper_base(_: bytes, file: Path) -> None:
    tensors = load_file(file)
    save_file({key.replace("blocks.0", "blocks.7"): tensor for key, tensor in tensors.items()}, file)


def text_encoder_only(_: bytes, file: Path) -> None:
    tensors = load_file(file)
    save_file({key.replace("transformer.", "text_encoder.", 1): tensor for key, tensor in tensors.items()}, file)


def no_adapter(_: bytes, file: Path) -> None:
    save_file({"proj_out.weight": torch.zeros(4, 4)}, file)


def foreign_header(_: bytes, file: Path) -> None:
    save_file(load_file(file), file, metadata={"lora_adapter_metadata": '{"transformer.made_by": "another tool"}'})


@pytest.mark.parametrize(
    "damage", [missing, cut, no_safetensors, empty, wider_base, deeper_base, text_encoder_only, no_adapter]
)
def test_a_file_that_does_not_fit_is_named_and_the_base_stays(
    damage: Callable[[bytes, Path], None], pipe: FluxPipeline, spec: BaseSpec, embeds: PromptEmbeds, tmp_path: Path
) -> None:
    """One sentence with the file's name and what to do; afterwards the pipeline is the base, bit for bit."""
    before = velocity_of(pipe, spec, embeds)
    file = save_adapter(put_on(load_pipeline(spec), spec), tmp_path / "subject-7.safetensors")
    damage(file.read_bytes(), file)
    with pytest.raises(InputError, match=r"subject-7\.safetensors") as caught:
        load_adapter(pipe, file)
    assert "\n" not in str(caught.value)
    assert any(remedy in str(caught.value) for remedy in ("run finetune", "train it on this base"))
    drop_adapter(pipe)
    assert torch.equal(velocity_of(pipe, spec, embeds), before)


def test_a_header_of_another_tool_is_named(pipe: FluxPipeline, spec: BaseSpec, tmp_path: Path) -> None:
    """Metadata that are no LoraConfig end in the same sentence."""
    file = save_adapter(put_on(load_pipeline(spec), spec), tmp_path / "subject-7.safetensors")
    foreign_header(file.read_bytes(), file)
    with pytest.raises(InputError, match=r"subject-7\.safetensors does not fit"):
        load_adapter(pipe, file)


def test_the_training_adapter_acts_in_training_and_is_frozen(
    pipe: FluxPipeline, spec: BaseSpec, embeds: PromptEmbeds, training_adapter: Path
) -> None:
    """Beside a fresh subject adapter the answer is that of the base with the training adapter loaded by stock code."""
    theirs = load_pipeline(spec)
    theirs.load_lora_weights(str(training_adapter.parent), weight_name=training_adapter.name)
    attach(pipe.transformer, spec=replace(spec, training_adapter=training_adapter), rank=4, alpha=4, seed=0)
    torch.testing.assert_close(velocity_of(pipe, spec, embeds), velocity_of(theirs, spec, embeds), atol=1e-6, rtol=0)
    loose = [name for name, p in pipe.transformer.named_parameters() if p.requires_grad]
    assert loose
    assert all(f".{SUBJECT_ADAPTER}." in name for name in loose)


def test_the_training_adapter_is_frozen_again_after_set_adapters(
    pipe: FluxPipeline, spec: BaseSpec, training_adapter: Path
) -> None:
    """peft's `set_adapters` makes all it activates trainable; `activate` and every switch freeze it again."""
    attach(pipe.transformer, spec=replace(spec, training_adapter=training_adapter), rank=4, alpha=4, seed=0)
    frozen = [p for name, p in pipe.transformer.named_parameters() if f".{TRAINING_ADAPTER}." in name]
    pipe.transformer.set_adapters([SUBJECT_ADAPTER, TRAINING_ADAPTER], [1.0, 1.0])
    assert any(p.requires_grad for p in frozen), "peft no longer unfreezes: the refreezing may go"
    activate(pipe.transformer, trainable=True)
    assert not any(p.requires_grad for p in frozen)
    with inference_setup(pipe.transformer), using_base(pipe):
        pass
    assert not any(p.requires_grad for p in frozen)
    assert all(p.requires_grad for p in subject_parameters(pipe.transformer).values())


def test_the_training_adapter_is_dropped_to_draw_and_never_saved(
    pipe: FluxPipeline, spec: BaseSpec, embeds: PromptEmbeds, training_adapter: Path, tmp_path: Path
) -> None:
    """Drawn and saved, the subject is what it is on a base that never had the training adapter."""
    attach(pipe.transformer, spec=replace(spec, training_adapter=training_adapter), rank=4, alpha=8, seed=0)
    randomise(pipe.transformer)
    clean = load_pipeline(spec)
    base = velocity_of(clean, spec, embeds)
    both, subject = velocity_of(pipe, spec, embeds), velocity_of(load_with(clean, spec), spec, embeds)
    with inference_setup(pipe.transformer):
        assert torch.equal(velocity_of(pipe, spec, embeds), subject)
    with inference_setup(pipe.transformer, subject=False):
        assert torch.equal(velocity_of(pipe, spec, embeds), base)
    assert torch.equal(velocity_of(pipe, spec, embeds), both)
    assert not torch.equal(both, subject)
    file = save_adapter(pipe.transformer, tmp_path / NAME)
    assert file.read_bytes() == save_adapter(clean.transformer, tmp_path / "clean.safetensors").read_bytes()


def load_with(pipe: FluxPipeline, spec: BaseSpec) -> FluxPipeline:
    put_on(pipe, spec)
    return pipe


def test_a_training_adapters_alpha_counts(
    pipe: FluxPipeline, spec: BaseSpec, embeds: PromptEmbeds, training_adapter: Path
) -> None:
    """A file that scales itself by `alpha` tensors acts as strongly as the stock pipeline makes it act."""
    tensors = load_file(training_adapter)
    layers = {key.partition(".lora_")[0] for key in tensors}
    save_file(tensors | {f"{layer}.alpha": torch.tensor(1.0) for layer in layers}, training_adapter)
    theirs = load_pipeline(spec)
    theirs.load_lora_weights(str(training_adapter.parent), weight_name=training_adapter.name)
    attach(pipe.transformer, spec=replace(spec, training_adapter=training_adapter), rank=4, alpha=4, seed=0)
    torch.testing.assert_close(velocity_of(pipe, spec, embeds), velocity_of(theirs, spec, embeds), atol=1e-6, rtol=0)


@pytest.fixture
def start_adapter(spec: BaseSpec, tmp_path: Path) -> Path:
    """A starting adapter of rank 4 as pretraining exports it: B @ A is what it adds."""
    from photoflux.pocket.train_start import export_start

    theirs = load_pipeline(spec)
    attach(theirs.transformer, spec=spec, rank=4, alpha=4, seed=5)
    randomise(theirs.transformer, strength=0.2, seed=5)
    return export_start({n: p.detach() for n, p in subject_parameters(theirs.transformer).items()}, tmp_path / "start")


@pytest.mark.parametrize(("rank", "alpha"), [(4, 4.0), (4, 16.0), (7, 7.0)])
def test_a_subject_adapter_begins_at_the_bases_start(
    pipe: FluxPipeline, spec: BaseSpec, embeds: PromptEmbeds, start_adapter: Path, rank: int, alpha: float
) -> None:
    """At its own rank or a higher one, and whatever alpha is, the answer is that of stock code with the start loaded."""
    theirs = load_pipeline(spec)
    theirs.load_lora_weights(str(start_adapter.parent), weight_name=start_adapter.name)
    parameters = attach(
        pipe.transformer, spec=replace(spec, start_adapter=start_adapter), rank=rank, alpha=alpha, seed=0
    )
    torch.testing.assert_close(velocity_of(pipe, spec, embeds), velocity_of(theirs, spec, embeds), atol=1e-5, rtol=0)
    assert all(parameter.requires_grad for parameter in parameters)


def test_at_a_lower_rank_it_begins_as_near_as_that_rank_allows(
    pipe: FluxPipeline, spec: BaseSpec, start_adapter: Path
) -> None:
    """Eckart and Young: what is missing has the singular values that were cut off."""
    layers = load_file(start_adapter)
    attach(pipe.transformer, spec=replace(spec, start_adapter=start_adapter), rank=2, alpha=2, seed=0)
    own = subject_parameters(pipe.transformer)
    name = next(name for name in own if ".lora_A." in name)
    down, up = own[name].detach(), own[name.replace(".lora_A.", ".lora_B.")].detach()
    full_name = "transformer." + name.replace(f".{SUBJECT_ADAPTER}.", ".")
    whole = layers[full_name.replace(".lora_A.", ".lora_B.")].float() @ layers[full_name].float()
    cut = torch.linalg.svdvals(whole)[2:]
    assert torch.linalg.matrix_norm(whole - up @ down).item() == pytest.approx(cut.norm().item(), rel=1e-3)


@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_a_starting_adapter_that_does_not_fit_is_named(
    pipe: FluxPipeline, spec: BaseSpec, start_adapter: Path, damage: str
) -> None:
    content = start_adapter.read_bytes()
    if damage == "gone":
        start_adapter.unlink()
    elif damage == "cut":
        start_adapter.write_bytes(content[:100])
    else:
        save_file({"transformer.other.lora_A.weight": torch.zeros(2, 2)}, start_adapter)
    with pytest.raises(InputError, match=r"starting adapter .* does not fit this base"):
        attach(pipe.transformer, spec=replace(spec, start_adapter=start_adapter), rank=4, alpha=4, seed=0)


def test_a_missing_training_adapter_is_named(pipe: FluxPipeline, spec: BaseSpec, tmp_path: Path) -> None:
    """Training without it would spoil the base's few steps, so nothing starts."""
    with pytest.raises(InputError, match=r"gone\.safetensors is missing; fetch it"):
        attach(
            pipe.transformer,
            spec=replace(spec, training_adapter=tmp_path / "gone.safetensors"),
            rank=4,
            alpha=4,
            seed=0,
        )


@pytest.mark.parametrize("damage", [cut, no_safetensors, wider_base, no_adapter])
def test_a_damaged_training_adapter_is_named(
    damage: Callable[[bytes, Path], None], pipe: FluxPipeline, spec: BaseSpec, training_adapter: Path
) -> None:
    """It ends in a sentence with the file's name, not in a library's traceback, and never trains without it."""
    damage(training_adapter.read_bytes(), training_adapter)
    with pytest.raises(InputError, match=r"training\.safetensors"):
        attach(pipe.transformer, spec=replace(spec, training_adapter=training_adapter), rank=4, alpha=4, seed=0)


def test_something_loose_in_the_base_is_an_error(
    pipe: FluxPipeline, spec: BaseSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should freezing ever fail, training stops before it starts."""
    attach(pipe.transformer, spec=spec, rank=4, alpha=4, seed=0)
    pipe.transformer.proj_out.weight.requires_grad_(True)
    monkeypatch.setattr(pipe.transformer, "requires_grad_", lambda *_: None)
    with pytest.raises(RuntimeError, match=r"proj_out\.weight would be trained"):
        activate(pipe.transformer, trainable=True)
