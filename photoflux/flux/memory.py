"""What fine-tuning needs of a device, computed from the base's configuration files before any weight is read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from photoflux.errors import InputError

GB = 1024**3
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.03, "nf4": 0.53}
"""Bytes per weight as stored; int8 and NF4 with their scales."""
ADAPTER_BYTES = 4 * 5
"""Per adapter weight, in float32: itself, gradient, two moments of AdamW, average."""
ACTIVATIONS_DOUBLE, ACTIVATIONS_SINGLE = 34, 23
"""Activations stored for the backward pass per token, in widths of the transformer, of a double and a single block."""
USABLE = 0.92
"""Share of a device's memory that may be planned with; the rest is fragmentation and other processes."""
OVERHEAD_GB = {"cpu": 0.5, "cuda": 1.2}
"""Framework, kernels and allocator slack."""


@dataclass(frozen=True)
class Device:
    """Where training runs: `bf16` says whether it computes in bfloat16 (from Ampere on)."""

    name: str
    memory_gb: float
    bf16: bool = True

    @property
    def kind(self) -> str:
        return "cuda" if self.name.startswith("cuda") else "cpu"


CLASSES = (
    *(Device(f"cuda, {gb} GB", gb) for gb in (80, 40, 24, 16)),
    Device("cuda, 16 GB, Volta", 16, bf16=False),
)
"""Device sizes that a report compares the chosen plan with."""


@dataclass(frozen=True)
class Shape:
    """The numbers that memory depends on, of a base, an image size and an adapter of rank 1."""

    width: int
    double_blocks: int
    single_blocks: int
    tokens: int
    parameters: int
    encoder_parameters: int
    adapter_parameters: int
    dtype: str

    @classmethod
    def of(
        cls,
        configs: Mapping[str, Mapping[str, Any]],
        *,
        targets: Sequence[str],
        side_px: int,
        text_length: int,
        dtype: str,
    ) -> Shape:
        """From the `config.json` of transformer, vae, text_encoder and text_encoder_2; models are built without memory."""
        config = configs["transformer"]
        transformer = _empty("transformer", config)
        return cls(
            width=config["num_attention_heads"] * config["attention_head_dim"],
            double_blocks=config["num_layers"],
            single_blocks=config["num_single_layers"],
            tokens=(side_px // 16) ** 2 + text_length,
            parameters=_count(transformer),
            encoder_parameters=sum(_count(_empty(name, configs[name])) for name in configs if name != "transformer"),
            adapter_parameters=sum(layer.in_features + layer.out_features for layer in _targeted(transformer, targets)),
            dtype=dtype,
        )


def read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The model configurations of a `FluxPipeline` folder by part."""
    parts = ("transformer", "vae", "text_encoder", "text_encoder_2")
    return {part: json.loads((folder / part / "config.json").read_text(encoding="utf-8")) for part in parts}


def _empty(part: str, config: Mapping[str, Any]) -> Any:
    """A model of that configuration on the meta device: shapes without storage."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    with torch.device("meta"):
        if part in ("transformer", "vae"):
            kind: Any = FluxTransformer2DModel if part == "transformer" else AutoencoderKL
            return kind.from_config(dict(config))
        if part == "text_encoder":
            return CLIPTextModel(CLIPTextConfig(**config))
        return T5EncoderModel(T5Config(**config))


def _count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _targeted(transformer: torch.nn.Module, targets: Sequence[str]) -> Iterator[Any]:
    for name, layer in transformer.named_modules():
        if isinstance(layer, torch.nn.Linear) and any(
            name == target or name.endswith(f".{target}") for target in targets
        ):
            yield layer


@dataclass(frozen=True)
class Plan:
    """How fine-tuning fits: how the frozen base is stored, what computes, in how many parts a batch goes through."""

    device: str
    storage: str
    compute: str
    checkpointing: bool
    micro_batches: int
    encoding_gb: float
    base_gb: float
    adapter_gb: float
    activations_gb: float
    overhead_gb: float
    memory_gb: float

    @property
    def needed_gb(self) -> float:
        """The larger of encoding first and training after it; text encoders are gone when the transformer arrives."""
        return self.overhead_gb + max(self.encoding_gb, self.base_gb + self.adapter_gb + self.activations_gb)

    @property
    def fits(self) -> bool:
        return self.needed_gb <= USABLE * self.memory_gb

    def row(self) -> dict[str, object]:
        """The plan as one row of a table."""
        return {
            "device": self.device,
            "base stored as": self.storage,
            "computes in": self.compute,
            "checkpointing": "on" if self.checkpointing else "off",
            "parts per batch": self.micro_batches,
            "base GB": round(self.base_gb, 2),
            "adapter GB": round(self.adapter_gb, 2),
            "activations GB": round(self.activations_gb, 2),
            "encoding GB": round(self.encoding_gb, 2),
            "needed GB": round(self.needed_gb, 2),
        }

    def __str__(self) -> str:
        return (
            f"memory plan for {self.device}: {self.needed_gb:.2f} of {self.memory_gb:.0f} GB; base as {self.storage} "
            f"{self.base_gb:.2f} GB, adapter with optimiser {self.adapter_gb:.2f} GB, activations {self.activations_gb:.2f} GB "
            f"in {self.compute}, checkpointing {'on' if self.checkpointing else 'off'}, {self.micro_batches} part(s) per batch"
        )


def plan(shape: Shape, device: Device, *, rank: int, rows: int) -> Plan:
    """The most exact way that fits: full storage before quantised, no checkpointing before it, whole batches before parts.

    `rows` is the number of images in a step. Raises InputError when nothing fits.
    """
    ways = [
        _estimate(shape, device, storage, checkpointing, parts, rank=rank, rows=rows)
        for storage in _storages(shape, device)
        for checkpointing in (False, True)
        for parts in range(1, rows + 1)
        if rows % parts == 0
    ]
    for way in ways:
        if way.fits:
            return way
    least = min(ways, key=lambda way: way.needed_gb)
    raise InputError(
        f"fine-tuning this base needs {least.needed_gb:.1f} GB even as {least.storage}, and {device.name} has "
        f"{device.memory_gb:.1f} GB; lower finetune.rank or augment.resolution_px, or use a larger device"
    )


def plans(shape: Shape, *, rank: int, rows: int) -> list[Plan]:
    """The plan of every device class that can hold this base."""
    found = []
    for device in CLASSES:
        try:
            found.append(plan(shape, device, rank=rank, rows=rows))
        except InputError:
            continue
    return found


def _storages(shape: Shape, device: Device) -> tuple[str, ...]:
    """NF4 computes in float16 where there is no bfloat16; quantising needs a GPU, and a CPU computes in float32."""
    if device.kind == "cpu" or shape.dtype == "float32":
        return ("float32",)
    return (shape.dtype, "int8", "nf4") if device.bf16 else ("nf4",)


def _compute(storage: str, device: Device) -> str:
    if storage == "float32":
        return "float32"
    return "bfloat16" if device.bf16 else "float16"


def _estimate(
    shape: Shape, device: Device, storage: str, checkpointing: bool, parts: int, *, rank: int, rows: int
) -> Plan:
    compute = _compute(storage, device)
    blocks = shape.double_blocks + shape.single_blocks
    activations = ACTIVATIONS_DOUBLE * shape.double_blocks + ACTIVATIONS_SINGLE * shape.single_blocks
    widths = blocks + ACTIVATIONS_DOUBLE if checkpointing else activations
    return Plan(
        device=device.name,
        storage=storage,
        compute=compute,
        checkpointing=checkpointing,
        micro_batches=parts,
        encoding_gb=shape.encoder_parameters * BYTES["float32" if storage == "float32" else "bfloat16"] / GB,
        base_gb=shape.parameters * BYTES[storage] / GB,
        adapter_gb=rank * shape.adapter_parameters * ADAPTER_BYTES / GB,
        activations_gb=widths * shape.width * shape.tokens * (rows // parts) * BYTES[compute] / GB,
        overhead_gb=OVERHEAD_GB[device.kind],
        memory_gb=device.memory_gb,
    )


def device_of(name: str) -> Device:
    """What the named torch device has."""
    if name.startswith("cuda"):
        properties = torch.cuda.get_device_properties(name)
        return Device(name, properties.total_memory / GB, bf16=properties.major >= 8)
    return Device("cpu", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB)


def quantisation(chosen: Plan) -> Any:
    """The diffusers configuration that loads the transformer as planned; None for plain weights."""
    if chosen.storage not in ("int8", "nf4"):
        return None
    from diffusers import BitsAndBytesConfig

    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"this device needs the base as {chosen.storage}: install bitsandbytes, or use a larger device"
        ) from error
    if chosen.storage == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    dtype = getattr(torch, chosen.compute)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
