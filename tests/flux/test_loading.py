"""A verified base becomes a frozen stock pipeline, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from photoflux.errors import InputError
from photoflux.flux.loading import add_transformer, load_encoders, load_pipeline
from photoflux.flux.provision import pin
from photoflux.flux.spec import load_spec
from tests.flux.training import WEIGHTS


def test_a_pipeline_is_frozen_quiet_and_stock(own: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """FluxPipeline in the spec's type, in eval mode, nothing to train, nothing on the terminal."""
    from diffusers import FluxPipeline

    pipe = load_pipeline(load_spec(own))
    assert type(pipe) is FluxPipeline
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())
        assert {p.dtype for p in part.parameters()} == {torch.float32}
    assert "Loading" not in capfd.readouterr().err


def test_text_encoders_make_room_for_the_transformer(own: Path) -> None:
    """Encoders come first, alone; the transformer is added when they have done their work."""
    spec = load_spec(own)
    pipe = load_encoders(spec)
    assert pipe.transformer is None
    assert pipe.text_encoder_2 is not None
    add_transformer(pipe, spec, keep_text=False)
    assert pipe.text_encoder is pipe.text_encoder_2 is None
    assert pipe.transformer is not None


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("scheduler/scheduler_config.json", {"shift": 3.0}),
        ("scheduler/scheduler_config.json", {"use_dynamic_shifting": True}),
    ],
)
def test_a_base_that_needs_more_than_linear_steps_is_refused(file: str, change: dict[str, Any], own: Path) -> None:
    """Shifted noise levels or guidance would be trained wrongly without a word."""
    config = own.parent / "tiny" / file
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(InputError, match=r"only bases like FLUX\.1 \[schnell\] work here"):
        load_pipeline(load_spec(pin(own)))


def test_a_base_that_wants_guidance_is_refused(own: Path) -> None:
    """A transformer with a guidance embedding, as FLUX.1 [dev] has one, is another kind of base."""
    from diffusers import FluxTransformer2DModel

    folder = own.parent / "tiny" / "transformer"
    config = json.loads((folder / "config.json").read_text()) | {"guidance_embeds": True}
    FluxTransformer2DModel.from_config(config).save_pretrained(folder)
    with pytest.raises(InputError, match=r"wants guidance; only bases like FLUX\.1 \[schnell\] work here"):
        load_pipeline(load_spec(pin(own)))


@pytest.mark.parametrize("file", [WEIGHTS, "vae/diffusion_pytorch_model.safetensors", "model_index.json"])
def test_pinned_files_that_are_no_pipeline_are_an_input_error(file: str, own: Path) -> None:
    """A download cut short and then pinned: the base and its folder are named, not a library's traceback."""
    check_cut_short(file, own)


@pytest.mark.parametrize("file", ["text_encoder/model.safetensors", "text_encoder_2/model.safetensors"])
def test_pinned_text_encoders_that_are_none_are_an_input_error(file: str, own: Path) -> None:
    """The same for the files that transformers reads."""
    check_cut_short(file, own)


def check_cut_short(file: str, own: Path) -> None:
    path = own.parent / "tiny" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="does not load as a FLUX pipeline") as caught:
        load_pipeline(load_spec(pin(own)))
    assert str(own.parent / "tiny") in str(caught.value)


def test_threads_are_those_of_the_settings(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PHOTOFLUX_THREADS reaches torch before anything is computed."""
    asked = list[int]()
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    load_encoders(load_spec(own))
    monkeypatch.setenv("PHOTOFLUX_THREADS", "3")
    load_encoders(load_spec(own))
    assert asked == [3]
