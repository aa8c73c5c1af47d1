"""Bases: a spec in `models/` names a `FluxPipeline` folder, how to call it, and the SHA-256 of each of its files."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from photoflux.errors import InputError
from photoflux.settings import get_settings

if TYPE_CHECKING:
    import torch

HUB = "hub:"
WEIGHTS = "pytorch_lora_weights.safetensors"
"""What diffusers calls the file of an adapter."""
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class BaseSpec:
    """One base: where its files are, how it is sampled, and what may be trained on it."""

    name: str
    folder: Path | str
    resolution_px: int
    steps: int
    guidance_scale: float
    text_length: int
    dtype: str
    lora_targets: tuple[str, ...]
    training_adapter: Path | None = None
    start_adapter: Path | None = None
    judges: Path | None = None
    class_nouns: tuple[str, ...] = ()
    manifest: Mapping[str, str] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """Digest over the files that images depend on; judges and the adapters for training may be exchanged under adapters."""
        others = tuple(
            f"{place.name}/" for place in (self.judges, *(file.parent for file in self.training_files)) if place
        )
        sampling = {name: sha for name, sha in self.manifest.items() if not name.startswith(others)}
        return hashlib.sha256(json.dumps(sampling, sort_keys=True).encode()).hexdigest()

    @property
    def call(self) -> dict[str, Any]:
        """How the pipeline is called; together with `hash` it decides what a prompt and a seed give."""
        return {key: getattr(self, key) for key in ("resolution_px", "steps", "guidance_scale", "text_length", "dtype")}

    @property
    def training_files(self) -> tuple[Path, ...]:
        """Files that only fine-tuning reads: the training adapter and the starting adapter."""
        return tuple(file for file in (self.training_adapter, self.start_adapter) if file)

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[16, H/8, W/8] of one image at the base's resolution."""
        return 16, self.resolution_px // 8, self.resolution_px // 8


def load_spec(name_or_path: str | Path) -> BaseSpec:
    """A spec by its name in the models folder, or by the path of its .yaml. Raises InputError naming what is wrong."""
    path = _spec_path(str(name_or_path))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _parse(content, path.parent)
    except OSError as error:
        raise InputError(f"base '{name_or_path}': {path} cannot be read ({error.strerror}); {_choices()}") from error
    except (yaml.YAMLError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{path}: not a base spec ({error}); compare it with the specs in models/") from error


def find_spec(base: Mapping[str, str]) -> BaseSpec:
    """The spec of the base that an adapter's manifest names: one in the models folder with its hash, else of its name.

    Manifests made before named the spec's file too, which is taken where it still lies there. Raises InputError.
    """
    folder = get_settings().models_dir
    for file in (folder / f"{base['name']}.yaml", Path(base.get("spec", "")), *sorted(folder.glob("*.yaml"))):
        with suppress(InputError):
            if file.suffix in (".yaml", ".yml") and (spec := load_spec(file)).hash == base["hash"]:
                return spec
    return load_spec(base["name"])


def _spec_path(name: str) -> Path:
    return Path(name) if name.endswith((".yaml", ".yml")) else get_settings().models_dir / f"{name}.yaml"


def _choices() -> str:
    folder = get_settings().models_dir
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    return f"choose one of {', '.join(names)} or give the path of a spec" if names else f"put a spec into {folder}"


def _parse(content: Mapping[str, Any], home: Path) -> BaseSpec:
    known = {f.name for f in fields(BaseSpec)}
    needed = known - {"training_adapter", "start_adapter", "judges", "class_nouns", "manifest", "recipe"}
    if wrong := sorted(set(content) - known) or sorted(needed - set(content)):
        raise ValueError(f"key '{wrong[0]}' is {'not known' if wrong[0] in content else 'missing'}")
    if content["dtype"] not in DTYPES:
        raise ValueError(f"dtype is {content['dtype']!r}, not one of {', '.join(DTYPES)}")
    located = {
        key: locate(content[key], home)
        for key in ("folder", "training_adapter", "start_adapter", "judges")
        if content.get(key)
    }
    lists = {key: tuple(content.get(key) or ()) for key in ("lora_targets", "class_nouns")}
    return BaseSpec(**{**content, **lists, **located, "manifest": dict(content.get("manifest") or {})})


def locate(value: str, home: Path) -> Path | str:
    """Remote places stay as they are; paths count from the folder of the spec."""
    return value if is_remote(value) else (home / value).resolve()


def is_remote(place: Path | str) -> bool:
    """Whether a base's folder is a hub's or a store's."""
    return isinstance(place, str) and (place.startswith(HUB) or bool(re.match(r"[a-z][a-z0-9+]*://", place)))
