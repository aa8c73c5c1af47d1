"""Bases: a spec in `models/` names a `FluxPipeline` folder, how to call it, and the SHA-256 of each of its files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from photoflux.errors import InputError
from photoflux.manifest import digest, write_json, write_text
from photoflux.settings import get_settings

if TYPE_CHECKING:
    from diffusers import FluxPipeline
    from fsspec import AbstractFileSystem

log = logging.getLogger(__name__)

HUB = "hub:"
LARGE_BYTES = 64 * 2**20
"""Files from this size are hashed once per change on disk, smaller ones every time."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
        """Digest over the files that draw pictures; judges and the adapters for training may be exchanged under adapters."""
        others = tuple(
            f"{place.name}/" for place in (self.judges, *(file.parent for file in self.training_files)) if place
        )
        drawing = {name: sha for name, sha in self.manifest.items() if not name.startswith(others)}
        return hashlib.sha256(json.dumps(drawing, sort_keys=True).encode()).hexdigest()

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
        return DTYPES[self.dtype]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[16, H/8, W/8] of one picture at the base's resolution."""
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
        key: _located(content[key], home)
        for key in ("folder", "training_adapter", "start_adapter", "judges")
        if content.get(key)
    }
    lists = {key: tuple(content.get(key) or ()) for key in ("lora_targets", "class_nouns")}
    return BaseSpec(**{**content, **lists, **located, "manifest": dict(content.get("manifest") or {})})


def _located(value: str, home: Path) -> Path | str:
    """Remote places stay as they are; paths count from the folder of the spec."""
    return value if _is_remote(value) else (home / value).resolve()


def _is_remote(place: Path | str) -> bool:
    return isinstance(place, str) and (place.startswith(HUB) or bool(re.match(r"[a-z][a-z0-9+]*://", place)))


def verify(spec: BaseSpec) -> Path:
    """Hold every file of the base against the manifest and return its local folder, fetched first if it is remote.

    Raises InputError naming the first missing or altered file.
    """
    if not spec.manifest:
        raise InputError(
            f"base '{spec.name}' lists no files in its manifest; fetch it, look at it, and pin it with "
            f"`python -m photoflux.flux.base <spec>.yaml`"
        )
    folder = _local(spec)
    for name, sha in spec.manifest.items():
        _check_file(folder / name, sha, spec=spec)
    return folder


def _check_file(file: Path, sha: str, *, spec: BaseSpec) -> None:
    remedy = (
        "delete its folder to fetch it again"
        if _is_remote(spec.folder)
        else "restore it from version control or its source"
    )
    if not file.is_file():
        raise InputError(f"base '{spec.name}': {file} is missing; {remedy}")
    if _digest_of(file) != sha:
        raise InputError(f"base '{spec.name}': {file} is not the file its spec pins (SHA-256 differs); {remedy}")


def _digest_of(file: Path) -> str:
    """SHA-256; remembered for large files until size, time or place on disk change."""
    state = file.stat()
    if state.st_size < LARGE_BYTES:
        return digest(file)
    key = hashlib.sha256(f"{file.resolve()} {state.st_size} {state.st_mtime_ns} {state.st_ino}".encode()).hexdigest()
    note = get_settings().cache_dir / "digests" / f"{key}.json"
    if note.is_file():
        return str(json.loads(note.read_text(encoding="utf-8")))
    sha = digest(file)
    write_json(note, sha)
    return sha


def _local(spec: BaseSpec) -> Path:
    if not _is_remote(spec.folder):
        folder = Path(spec.folder)
        if not folder.is_dir():
            raise InputError(f"base '{spec.name}': folder {folder} is missing; {_how_to_get(spec)}")
        return folder
    place = str(spec.folder)
    return _from_hub(spec, place.removeprefix(HUB)) if place.startswith(HUB) else _from_store(spec, place)


def _how_to_get(spec: BaseSpec) -> str:
    return (
        "make it with `photoflux pretrain`"
        if spec.name == "pocket"
        else "copy it there or correct `folder` in the spec"
    )


def _from_hub(spec: BaseSpec, repository: str) -> Path:
    """Files of the manifest from a hub repository `owner/name@revision`, into the hub's own cache."""
    from huggingface_hub import snapshot_download

    name, _, revision = repository.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=sorted(spec.manifest)))
    except Exception as error:
        raise InputError(
            f"base '{spec.name}': {name} cannot be fetched from the hub ({type(error).__name__}); accept its terms and set "
            "HF_TOKEN, or copy the files into a folder or bucket and name that in the spec"
        ) from error


def _from_store(spec: BaseSpec, place: str) -> Path:
    """Files of the manifest from any fsspec place, checked on the way, into a cache folder that is whole or absent."""
    target = get_settings().cache_dir / "bases" / spec.hash[:32]
    if target.is_dir():
        return target
    import fsspec

    with _fresh_folder(target) as partial:
        try:
            store, root = fsspec.core.url_to_fs(place)
            _copy(spec, store, root, partial)
        except InputError:
            raise
        except (OSError, ImportError, ValueError) as error:
            raise InputError(
                f"base '{spec.name}': {place} cannot be fetched ({error}); check the address and your access"
            ) from error
    return target


def _copy(spec: BaseSpec, store: AbstractFileSystem, root: str, into: Path) -> None:
    for name, sha in spec.manifest.items():
        file = into / name
        file.parent.mkdir(parents=True, exist_ok=True)
        log.info("fetching %s of base '%s'", name, spec.name)
        store.get_file(f"{root.rstrip('/')}/{name}", str(file))
        if digest(file) != sha:
            raise InputError(
                f"base '{spec.name}': {name} at {spec.folder} is not the file its spec pins; replace it there"
            )


@contextmanager
def _fresh_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that becomes it when the block ends well, and vanishes when not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield partial
        if not target.is_dir():
            os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load_pipeline(spec: BaseSpec, *, device: str | None = None) -> FluxPipeline:
    """The verified base as a frozen stock pipeline in eval mode.

    Raises InputError where the files do not make a pipeline that linear steps without guidance can sample.
    """
    return add_transformer(load_encoders(spec, device=device), spec, device=device)


def load_encoders(spec: BaseSpec, *, device: str | None = None) -> FluxPipeline:
    """The pipeline with everything but its transformer: enough to encode prompts and pictures."""
    folder = verify(spec)
    if threads := get_settings().threads:
        torch.set_num_threads(threads)
    with quietly():
        from diffusers import FluxPipeline

    pipe = _read(FluxPipeline, folder, spec, transformer=None)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        part.eval().requires_grad_(False)
    return pipe.to(device or default_device())


def add_transformer(
    pipe: FluxPipeline, spec: BaseSpec, *, device: str | None = None, quantisation: Any = None, keep_text: bool = True
) -> FluxPipeline:
    """Give the pipeline its frozen transformer, quantised if asked; without `keep_text` its text encoders make room."""
    from diffusers import FluxTransformer2DModel

    if not keep_text:
        pipe.text_encoder = pipe.text_encoder_2 = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    quantised = {} if quantisation is None else {"quantization_config": quantisation}
    transformer = _read(FluxTransformer2DModel, _local(spec), spec, subfolder="transformer", **quantised)
    transformer.eval().requires_grad_(False)
    pipe.register_modules(transformer=transformer if quantised else transformer.to(device or default_device()))
    _check_kind(pipe, spec)
    return pipe


def default_device() -> str:
    """The device of the settings, or CUDA where there is one."""
    return get_settings().device or ("cuda" if torch.cuda.is_available() else "cpu")


def _read(kind: Any, folder: Path, spec: BaseSpec, **how: Any) -> Any:
    from safetensors import SafetensorError

    try:
        with quietly():
            return kind.from_pretrained(folder, dtype=spec.torch_dtype, local_files_only=True, **how)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(
            f"base '{spec.name}': {folder} does not load as a FLUX pipeline ({error}); fetch or make it again"
        ) from error


def _check_kind(pipe: FluxPipeline, spec: BaseSpec) -> None:
    schedule = pipe.scheduler.config
    if schedule.shift != 1.0 or schedule.use_dynamic_shifting or pipe.transformer.config.guidance_embeds:
        raise InputError(
            f"base '{spec.name}' shifts its noise levels or wants guidance; only bases like FLUX.1 [schnell] work here"
        )


@contextmanager
def quietly() -> Iterator[None]:
    """Without the libraries' progress bars, and their notices about optional packages and parts that an adapter lacks."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity(), diffusers_logging.get_verbosity()
    for library in (transformers_logging, diffusers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before[0])
        diffusers_logging.set_verbosity(before[1])


def pin(path: Path) -> Path:
    """Write the SHA-256 of every file now in the spec's local folder into its manifest."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    folder = Path(_located(content["folder"], path.parent))
    if not folder.is_dir():
        raise InputError(f"{path}: pinning needs the files in a local folder; {folder} is none")
    content["manifest"] = files_of(folder)
    return write_text(path, yaml.safe_dump(content, sort_keys=False, width=110))


def files_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a base by its path below the folder; nothing hidden, nor what a killed writer left."""
    names = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return {name.as_posix(): digest(folder / name) for name in names if not any(p.startswith(".") for p in name.parts)}


if __name__ == "__main__":
    import sys

    pin(Path(sys.argv[1]))
