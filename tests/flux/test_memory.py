"""The memory plan of FLUX.1 [schnell], from its published configuration and hand arithmetic."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from photoflux.errors import InputError
from photoflux.flux.memory import CLASSES, GB, Device, Plan, Shape, device_of, plan, plans, quantisation, read_configs
from photoflux.flux.spec import load_spec

TRANSFORMER = {
    "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24, "in_channels": 64,
    "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": False, "patch_size": 1,
}  # fmt: skip
VAE = {
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "latent_channels": 16, "norm_num_groups": 32,
    "use_quant_conv": False, "use_post_quant_conv": False, "in_channels": 3, "out_channels": 3,
}  # fmt: skip
CLIP = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77,
}  # fmt: skip
T5 = {
    "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False, "tie_word_embeddings": False, "use_cache": False,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "transformer": TRANSFORMER,
    "vae": VAE,
    "text_encoder": CLIP,
    "text_encoder_2": T5,
}

WIDTH, TOKENS = 3072, 64 * 64 + 256
RANK, ROWS = 16, 2
"""The recipe of the spec: rank 16, one photo and one preserved prompt per step."""


@pytest.fixture(scope="module")
def shape(root: Path) -> Shape:
    spec = load_spec(root / "models" / "flux1-schnell.yaml")
    recipe = spec.recipe["finetune"]
    assert (recipe["rank"], recipe["batch_size"] + recipe["preservation_batch"]) == (RANK, ROWS)
    return Shape.of(
        CONFIGS, targets=spec.lora_targets, side_px=spec.resolution_px, text_length=spec.text_length, dtype=spec.dtype
    )


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def schnell_weights() -> int:
    """Every layer of the published transformer, counted by hand."""
    d = WIDTH
    entry = linear(64, d) + linear(4096, d) + linear(256, d) + linear(768, d) + 2 * linear(d, d)
    forward = linear(d, 4 * d) + linear(4 * d, d)
    double = 2 * linear(d, 6 * d) + 8 * linear(d, d) + 4 * 128 + 2 * forward
    single = linear(d, 3 * d) + linear(d, 4 * d) + linear(5 * d, d) + 3 * linear(d, d) + 2 * 128
    return entry + 19 * double + 38 * single + linear(d, 2 * d) + linear(d, 64)


def t5_weights() -> int:
    return 32128 * 4096 + 24 * (4 * 4096 * 4096 + 3 * 4096 * 10240 + 2 * 4096) + 32 * 64 + 4096


def clip_weights() -> int:
    layer = 4 * linear(768, 768) + linear(768, 3072) + linear(3072, 768) + 4 * 768
    return (49408 + 77) * 768 + 12 * layer + 2 * 768


def test_the_shape_is_counted_from_the_configuration(shape: Shape) -> None:
    """Weights by hand (11.89 B), 4096 + 256 tokens, T5 4.76 B + CLIP 123 M + VAE 83.8 M, and the adapter."""
    assert (shape.width, shape.double_blocks, shape.single_blocks, shape.tokens) == (WIDTH, 19, 38, TOKENS)
    assert shape.parameters == schnell_weights() == 11_891_178_560
    assert shape.encoder_parameters == t5_weights() + clip_weights() + 83_819_683 == 4_969_190_819
    assert shape.dtype == "bfloat16"


def test_the_adapter_is_counted_from_its_targets(shape: Shape) -> None:
    """Per rank: eight attention layers and two feed-forwards per double block, q, k and v per single block."""
    d = WIDTH
    double, single = 8 * (d + d) + 4 * (d + 4 * d), 3 * (d + d)
    assert shape.adapter_parameters == 19 * double + 38 * single == 2_801_664


BF16, INT8, NF4 = (11_891_178_560 * size / 1024**3 for size in (2, 1.03, 0.53))
ADAPTER = 16 * 2_801_664 * 4 * 5 / 1024**3
ROW = WIDTH * TOKENS * 2 / 1024**3
"""One activation of a picture in 16 bits: 0.0249 GB."""
ALL_KEPT, CHECKPOINTED = (19 * 34 + 38 * 23) * ROW, (57 + 34) * ROW
ENCODING = 4_969_190_819 * 2 / 1024**3


def test_the_numbers_by_hand() -> None:
    """What the plans below are made of, in GB, to two digits."""
    found = [BF16, INT8, NF4, ADAPTER, ALL_KEPT, CHECKPOINTED, ENCODING]
    assert found == pytest.approx([22.15, 11.41, 5.87, 0.83, 37.85, 2.27, 9.26], abs=0.006)


@pytest.mark.parametrize(
    ("device", "storage", "compute", "checkpointing", "parts", "needed"),
    [
        (Device("cuda", 80), "bfloat16", "bfloat16", False, 2, 1.2 + BF16 + ADAPTER + ALL_KEPT),
        (Device("cuda", 40), "bfloat16", "bfloat16", True, 1, 1.2 + BF16 + ADAPTER + 2 * CHECKPOINTED),
        (Device("cuda", 24), "int8", "bfloat16", True, 1, 1.2 + INT8 + ADAPTER + 2 * CHECKPOINTED),
        (Device("cuda", 16), "nf4", "bfloat16", True, 1, 1.2 + NF4 + ADAPTER + 2 * CHECKPOINTED),
        (Device("cuda", 16, bf16=False), "nf4", "float16", True, 1, 1.2 + NF4 + ADAPTER + 2 * CHECKPOINTED),
        (Device("cuda", 32, bf16=False), "nf4", "float16", True, 1, 1.2 + NF4 + ADAPTER + 2 * CHECKPOINTED),
        (Device("cuda", 12), "nf4", "bfloat16", True, 2, 1.2 + ENCODING),
        (Device("cpu", 256), "float32", "float32", False, 1, 0.5 + 2 * BF16 + ADAPTER + 4 * ALL_KEPT),
    ],
    ids=["80 GB", "40 GB", "24 GB", "16 GB", "Volta and Turing 16 GB", "Volta 32 GB", "12 GB", "CPU 256 GB"],
)  # fmt: skip
def test_the_plan_of_each_device(
    shape: Shape, device: Device, storage: str, compute: str, checkpointing: bool, parts: int, needed: float
) -> None:
    """The most exact way that fits in 92 % of the memory, and what it needs."""
    found = plan(shape, device, rank=RANK, rows=ROWS)
    assert (found.storage, found.compute) == (storage, compute)
    assert (found.checkpointing, found.micro_batches) == (checkpointing, parts)
    assert found.needed_gb == pytest.approx(needed, rel=1e-6)
    assert found.fits
    assert found.needed_gb <= 0.92 * device.memory_gb


def test_an_easier_way_would_not_have_fitted(shape: Shape) -> None:
    """By hand: one way before the chosen one is too large for each class."""
    assert 1.2 + BF16 + ADAPTER + 2 * ALL_KEPT > 0.92 * 80
    assert 1.2 + BF16 + ADAPTER + ALL_KEPT > 0.92 * 40
    assert 1.2 + BF16 + ADAPTER + CHECKPOINTED > 0.92 * 24
    assert 1.2 + INT8 + ADAPTER + CHECKPOINTED > 0.92 * 16


def test_a_device_that_is_too_small_is_told_so(shape: Shape) -> None:
    """Encoding alone needs 10.5 GB; the sentence says what is needed, what is there and what to change."""
    with pytest.raises(InputError) as caught:
        plan(shape, Device("cuda:0", 8), rank=RANK, rows=ROWS)
    assert str(caught.value) == (
        "fine-tuning this base needs 10.5 GB even as nf4, and cuda:0 has 8.0 GB; lower finetune.rank or "
        "augment.resolution_px, or use a larger device"
    )
    with pytest.raises(InputError, match="even as float32, and cpu has 32"):
        plan(shape, Device("cpu", 32), rank=RANK, rows=ROWS)


def test_the_report_compares_all_classes(shape: Shape) -> None:
    """80, 40, 24, 16 GB and Volta, each with a row; a rank that fits nowhere small leaves those out."""
    found = plans(shape, rank=RANK, rows=ROWS)
    assert [p.device for p in found] == [device.name for device in CLASSES]
    assert [p.storage for p in found] == ["bfloat16", "bfloat16", "int8", "nf4", "nf4"]
    row = found[2].row()
    assert row["needed GB"] == pytest.approx(1.2 + INT8 + ADAPTER + 2 * CHECKPOINTED, abs=0.005)
    assert (row["base stored as"], row["checkpointing"], row["parts per batch"]) == ("int8", "on", 1)
    assert len(plans(shape, rank=256, rows=ROWS)) < len(CLASSES)


def test_a_plan_says_itself_in_a_line(shape: Shape) -> None:
    """What is printed before anything is loaded: device, need, storage, parts."""
    line = str(plan(shape, Device("cuda", 80), rank=RANK, rows=ROWS))
    assert line == (
        "memory plan for cuda: 62.04 of 80 GB; base as bfloat16 22.15 GB, adapter with optimiser 0.83 GB, activations "
        "37.85 GB in bfloat16, checkpointing off, 2 part(s) per batch"
    )


def test_a_float32_base_is_never_quantised(base: Path) -> None:
    """The pocket base fits everywhere as it is: its counts are those of the files."""
    spec = load_spec(base)
    configs = read_configs(base.with_suffix(""))
    tiny = Shape.of(configs, targets=spec.lora_targets, side_px=128, text_length=24, dtype="float32")
    from safetensors.torch import load_file

    stored = load_file(base.with_suffix("") / "transformer" / "diffusion_pytorch_model.safetensors")
    assert tiny.parameters == sum(tensor.numel() for tensor in stored.values())
    assert (tiny.tokens, tiny.adapter_parameters) == (64 + 24, 1696)
    found = plan(tiny, Device("cuda", 2), rank=RANK, rows=8)
    assert (found.storage, found.compute, found.micro_batches, found.checkpointing) == ("float32", "float32", 1, False)


@pytest.mark.parametrize(("major", "minor", "bf16"), [(7, 0, False), (7, 5, False), (8, 0, True), (9, 0, True)])
def test_a_gpu_says_whether_it_computes_in_bfloat16(
    major: int, minor: int, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Volta (7.0) and Turing (7.5) do not, Ampere and later do; memory is in binary gigabytes."""
    properties = SimpleNamespace(total_memory=16 * GB, major=major, minor=minor)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert device_of("cuda:1") == Device("cuda:1", 16.0, bf16=bf16)


def test_a_cpu_has_the_machines_memory() -> None:
    """What /proc/meminfo says, to a percent."""
    total_kb = int(Path("/proc/meminfo").read_text().split()[1])
    assert device_of("cpu").memory_gb == pytest.approx(total_kb / 1024**2, rel=0.01)


def made(storage: str, compute: str) -> Plan:
    return Plan("cuda", storage, compute, True, 1, 0, 0, 0, 0, 0, 16)


@pytest.fixture
def with_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "0.48.0" if name == "bitsandbytes" else version(name)
    )


def test_plain_weights_need_no_quantisation() -> None:
    """Nothing is handed to diffusers for full storage."""
    assert quantisation(made("float32", "float32")) is quantisation(made("bfloat16", "bfloat16")) is None


@pytest.mark.usefixtures("with_bitsandbytes")
def test_nf4_computes_in_the_plans_type() -> None:
    """Float16 on Volta and Turing, bfloat16 elsewhere, with scales quantised too; int8 is int8."""
    for compute, dtype in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        config = quantisation(made("nf4", compute)).to_dict()
        assert (config["load_in_4bit"], config["bnb_4bit_quant_type"]) == (True, "nf4")
        assert config["bnb_4bit_use_double_quant"]
        assert config["bnb_4bit_compute_dtype"] == str(dtype).removeprefix("torch.")
    assert quantisation(made("int8", "bfloat16")).to_dict()["load_in_8bit"]


def test_a_missing_quantiser_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Known before the base is read, with what to install."""
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match="needs the base as nf4: install bitsandbytes"):
        quantisation(made("nf4", "float16"))


def test_configurations_are_read_by_part(base: Path) -> None:
    """Transformer, autoencoder and both encoders, as they are on disk."""
    folder = base.with_suffix("")
    configs = read_configs(folder)
    assert set(configs) == {"transformer", "vae", "text_encoder", "text_encoder_2"}
    assert configs["vae"] == json.loads((folder / "vae" / "config.json").read_text())
