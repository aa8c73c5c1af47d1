"""LoRA adapters on the FLUX transformer: the subject's, trainable in float32, and the base's frozen training adapter."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from photoflux.errors import InputError
from photoflux.flux.loading import quietly
from photoflux.manifest import replacing

if TYPE_CHECKING:
    from diffusers import FluxPipeline

    from photoflux.flux.spec import BaseSpec

log = logging.getLogger(__name__)

SUBJECT_ADAPTER, TRAINING_ADAPTER = "subject", "training_adapter"
"""Adapter names. The training adapter undoes the step distillation of a base while a subject is learnt, and never samples.

The name of an adapter must not be an attribute of the transformer's modules: `training` is one."""


def attach(transformer: Any, *, spec: BaseSpec, rank: int, alpha: float, seed: int) -> list[nn.Parameter]:
    """Add a subject adapter and, if the spec has one, the training adapter.

    The subject adapter begins at the spec's starting adapter, or fresh: B = 0, so that nothing changes yet. Returns the
    trainable parameters, all float32. Raises InputError where a target names no layer of the base.
    """
    from peft import LoraConfig

    _check_targets(transformer, spec)
    config = LoraConfig(
        r=rank, lora_alpha=alpha or rank, target_modules=list(spec.lora_targets), lora_dropout=0.0, bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(config, adapter_name=SUBJECT_ADAPTER)
    if spec.start_adapter is not None:
        load_start_adapter(transformer, spec.start_adapter, rank=rank, scale=(alpha or rank) / rank)
    if spec.training_adapter is not None:
        _load_training_adapter(transformer, spec.training_adapter)
    return activate(transformer, trainable=True)


def _check_targets(transformer: Any, spec: BaseSpec) -> None:
    names = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    for target in spec.lora_targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise InputError(
                f"base '{spec.name}': lora_targets names '{target}', which no layer is called; correct its spec"
            )


def load_start_adapter(transformer: Any, file: Path, *, rank: int, scale: float) -> None:
    """Copy the starting adapter's matrices over the fresh ones. Raises InputError where they do not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        layers = load_file(file)
        own, values = subject_parameters(transformer), {}
        for name in [name for name in own if ".lora_A." in name]:
            up = name.replace(".lora_A.", ".lora_B.")
            pair = [layers[f"transformer.{one.replace(f'.{SUBJECT_ADAPTER}.', '.')}"].float() for one in (name, up)]
            values[name], values[up] = _at_rank(*pair, rank=rank, fresh=own[name])
            values[up] /= scale
        copy_weights(transformer, values)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise InputError(
            f"starting adapter {file} does not fit this base ({_first_line(error)}); fetch it again or correct "
            "start_adapter in the base's spec"
        ) from error


def _at_rank(down: Tensor, up: Tensor, *, rank: int, fresh: Tensor) -> tuple[Tensor, Tensor]:
    """A [r, I] and B [O, r] at another rank: the best approximation at a lower one, fresh directions at a higher one."""
    if down.shape[0] > rank:
        u, s, v = torch.linalg.svd(up @ down, full_matrices=False)
        root = s[:rank].sqrt()
        return root[:, None] * v[:rank], u[:, :rank] * root
    missing = rank - down.shape[0]
    more = fresh.detach()[down.shape[0] :].cpu()
    return torch.cat([down, more]), torch.cat([up, up.new_zeros(up.shape[0], missing)], dim=1)


def _load_training_adapter(transformer: Any, file: Path) -> None:
    from diffusers import FluxPipeline

    if not file.is_file():
        raise InputError(
            f"training adapter {file} is missing; fetch it or remove training_adapter from the base's spec"
        )
    try:
        state, alphas, metadata = FluxPipeline.lora_state_dict(
            str(file.parent), weight_name=file.name, return_alphas=True, return_lora_metadata=True
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            transformer.load_lora_adapter(
                state, network_alphas=alphas, adapter_name=TRAINING_ADAPTER, metadata=metadata
            )
    except (OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
        raise InputError(
            f"training adapter {file} does not fit this base ({_first_line(error)}); fetch it again or correct "
            "training_adapter in the base's spec"
        ) from error
    if TRAINING_ADAPTER not in transformer.peft_config:
        raise InputError(f"training adapter {file} holds nothing for this base's transformer; correct the base's spec")


def activate(transformer: Any, *, trainable: bool, subject: bool = True, training: bool = True) -> list[nn.Parameter]:
    """Set which adapters are active, and freeze everything but the subject's (`set_adapters` unfreezes all it activates).

    Returns the trainable parameters.
    """
    wanted = [
        name
        for name, on in ((SUBJECT_ADAPTER, subject), (TRAINING_ADAPTER, training))
        if on and name in transformer.peft_config
    ]
    if wanted:
        transformer.enable_adapters()
        transformer.set_adapters(wanted, [1.0] * len(wanted))
    else:
        transformer.disable_adapters()
    transformer.requires_grad_(False)
    parameters = list(subject_parameters(transformer).values()) if trainable and subject else []
    for parameter in parameters:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    _assert_frozen(transformer, parameters)
    return parameters


def _assert_frozen(transformer: nn.Module, parameters: list[nn.Parameter]) -> None:
    trained = {id(parameter) for parameter in parameters}
    unfrozen = [name for name, p in transformer.named_parameters() if p.requires_grad and id(p) not in trained]
    if unfrozen:
        raise RuntimeError(f"{unfrozen[0]} would be trained although it is frozen")


def subject_parameters(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """The subject's matrices by their full names, in a fixed order."""
    return {
        name: p for name, p in transformer.named_parameters() if f".{SUBJECT_ADAPTER}." in name and ".lora_" in name
    }


@contextmanager
def using_adapters(transformer: Any, *, subject: bool, training: bool) -> Iterator[None]:
    """Inside the block only the named adapters are active; afterwards both are. A transformer without adapters stays as it is."""
    if not getattr(transformer, "peft_config", None):
        yield
        return
    trainable = any(p.requires_grad for p in transformer.parameters())
    activate(transformer, trainable=False, subject=subject, training=training)
    try:
        yield
    finally:
        activate(transformer, trainable=trainable)


@contextmanager
def inference_setup(
    transformer: Any, *, weights: Mapping[str, Tensor] | None = None, subject: bool = True
) -> Iterator[None]:
    """Inside the block the transformer samples as in serving: eval mode, no training adapter, `weights` for the subject's."""
    mode = transformer.training
    transformer.eval()
    try:
        with swapped_weights(transformer, weights or {}), using_adapters(transformer, subject=subject, training=False):
            yield
    finally:
        transformer.train(mode)


@contextmanager
def swapped_weights(transformer: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block the subject's matrices are `weights`; nothing changes for an empty mapping."""
    own = {name: p.detach().clone() for name, p in subject_parameters(transformer).items()} if weights else {}
    copy_weights(transformer, weights)
    try:
        yield
    finally:
        copy_weights(transformer, own)


@torch.no_grad()
def copy_weights(transformer: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the subject's matrices of the same names."""
    parameters = subject_parameters(transformer)
    for name, value in weights.items():
        parameters[name].copy_(value)


def save_adapter(transformer: Any, file: Path, *, weights: Mapping[str, Tensor] | None = None) -> Path:
    """Write the subject adapter (or `weights` of its shape) as diffusers safetensors with its LoraConfig, atomically."""
    from diffusers import FluxPipeline
    from peft.utils import get_peft_model_state_dict

    with swapped_weights(transformer, weights or {}):
        layers = get_peft_model_state_dict(transformer, adapter_name=SUBJECT_ADAPTER)
        layers = {name: value.detach().float().cpu().clone().contiguous() for name, value in layers.items()}
    with replacing(file) as partial:
        FluxPipeline.save_lora_weights(
            str(partial.parent),
            transformer_lora_layers=layers,
            weight_name=partial.name,
            transformer_lora_adapter_metadata=_metadata(transformer.peft_config[SUBJECT_ADAPTER]),
        )
        _sort_header(partial)
    return file


def _sort_header(file: Path) -> None:
    """Sort the file's header, whose metadata safetensors writes in any order, so that equal adapters are equal files."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])


def _metadata(config: Any) -> dict[str, Any]:
    """The LoraConfig as plain values, sets in order."""
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}


def load_adapter(pipe: FluxPipeline, file: Path) -> None:
    """Put an adapter on the pipeline in place of any other. Raises InputError when it does not fit the base."""
    drop_adapter(pipe)
    if not file.is_file():
        raise InputError(f"adapter {file} is missing; run finetune first")
    try:
        with quietly():
            pipe.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=SUBJECT_ADAPTER)
    except (OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
        raise InputError(
            f"adapter {file.name} does not fit this base ({_first_line(error)}); train it on this base"
        ) from error
    if SUBJECT_ADAPTER not in getattr(pipe.transformer, "peft_config", {}):
        raise InputError(f"adapter {file.name} holds nothing for this base's transformer; train it on this base")
    activate(pipe.transformer, trainable=False)


def drop_adapter(pipe: FluxPipeline) -> None:
    """Take every adapter off; the transformer is the base again."""
    if getattr(pipe.transformer, "peft_config", None):
        pipe.unload_lora_weights()


@contextmanager
def using_base(pipe: FluxPipeline) -> Iterator[None]:
    """Inside the block the pipeline samples as the base, whatever adapter is on it."""
    with using_adapters(pipe.transformer, subject=False, training=False):
        yield


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
