"""Loading a base: the verified files as a frozen stock `FluxPipeline` in eval mode, whole or in parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from photoflux.errors import InputError
from photoflux.flux.provision import local_folder, verify
from photoflux.settings import get_settings

if TYPE_CHECKING:
    from diffusers import FluxPipeline

    from photoflux.flux.spec import BaseSpec


def load_pipeline(spec: BaseSpec, *, device: str | None = None) -> FluxPipeline:
    """The verified base as a frozen stock pipeline in eval mode.

    Raises InputError where the files do not make a pipeline that linear steps without guidance can sample.
    """
    return add_transformer(load_encoders(spec, device=device), spec, device=device)


def load_encoders(spec: BaseSpec, *, device: str | None = None) -> FluxPipeline:
    """The pipeline with everything but its transformer: enough to encode prompts and images."""
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
    transformer = _read(FluxTransformer2DModel, local_folder(spec), spec, subfolder="transformer", **quantised)
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
