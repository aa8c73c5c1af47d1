"""A spec is held to: where it lies, what it may say, and what of its files makes up its hash."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from photoflux.errors import InputError
from photoflux.flux.spec import load_spec
from tests.flux.training import WEIGHTS, edit


def test_a_spec_is_found_by_path_and_by_name(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both give the same spec; paths in it count from its own folder, wherever the process stands."""
    monkeypatch.setenv("PHOTOFLUX_MODELS_DIR", str(own.parent))
    spec = load_spec("tiny")
    assert spec == load_spec(str(own))
    assert spec.folder == own.parent / "tiny"
    assert spec.judges == own.parent / "tiny" / "judges"
    assert (spec.resolution_px, spec.steps, spec.text_length, spec.guidance_scale) == (128, 4, 24, 0.0)
    assert spec.latent_shape == (16, 16, 16)
    assert spec.torch_dtype == torch.float32


def test_the_specs_of_the_repository_are_read(root: Path) -> None:
    """Schnell: 1024², 4 steps, guidance off, 256 tokens, bfloat16; nothing of either names an unknown layer or key."""
    schnell = load_spec(root / "models" / "flux1-schnell.yaml")
    assert (schnell.resolution_px, schnell.steps, schnell.guidance_scale, schnell.text_length) == (1024, 4, 0, 256)
    assert schnell.torch_dtype == torch.bfloat16
    assert schnell.latent_shape == (16, 128, 128)
    assert load_spec(root / "models" / "pocket.yaml").manifest


def test_an_unknown_base_lists_the_choices(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name asked for, the file looked for, and the bases there are."""
    monkeypatch.setenv("PHOTOFLUX_MODELS_DIR", str(own.parent))
    with pytest.raises(InputError, match=r"base 'flux2': .*flux2\.yaml cannot be read .*choose one of tiny"):
        load_spec("flux2")
    monkeypatch.setenv("PHOTOFLUX_MODELS_DIR", str(own.parent / "tiny"))
    with pytest.raises(InputError, match="put a spec into"):
        load_spec("flux2")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": None}, "key 'steps' is missing"),
        ({"stepps": 4}, "key 'stepps' is not known"),
        ({"dtype": "int4"}, "dtype is 'int4', not one of float32, bfloat16, float16"),
    ],
)
def test_a_spec_that_is_wrong_says_where(changes: dict[str, Any], said: str, own: Path) -> None:
    """The file, the key, and where to look how it is done."""
    with pytest.raises(InputError, match=said) as caught:
        load_spec(edit(own, **changes))
    assert str(own) in str(caught.value)
    assert "compare it with the specs in models/" in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n- list\n", "name: [", "just words", "\x00\x01"])
def test_a_file_that_is_no_spec_is_named(text: str, own: Path) -> None:
    """Empty, a list, broken YAML or binary: the file and what it should be, no traceback."""
    own.write_text(text)
    with pytest.raises(InputError, match=r"tiny\.yaml: not a base spec"):
        load_spec(own)


def test_remote_places_stay_as_they_are(own: Path) -> None:
    """Buckets and hub ids are not turned into paths."""
    for place in ("gs://bucket/flux", "hub:owner/name@main", "memory://x"):
        assert load_spec(edit(own, folder=place)).folder == place


def test_the_hash_is_of_what_draws(own: Path) -> None:
    """New judges, and a new training adapter, leave adapters valid; any other file, or name, makes it another base."""
    spec = load_spec(own)
    other = replace(spec, manifest={**spec.manifest, "training_adapter/weights.safetensors": "0" * 64})
    assert other.hash != spec.hash
    assert (
        replace(other, training_adapter=own.parent / "tiny" / "training_adapter" / "weights.safetensors").hash
        == spec.hash
    )
    judged = replace(spec, manifest={**spec.manifest, "judges/clip/config.json": "0" * 64})
    assert judged.hash == spec.hash
    assert replace(spec, manifest={**spec.manifest, WEIGHTS: "0" * 64}).hash != spec.hash
    assert replace(spec, manifest={**spec.manifest, "more.json": "0" * 64}).hash != spec.hash
