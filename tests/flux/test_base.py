"""Bases: a spec is held to, a file to its hash, a cache is whole or absent; every error says what to do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml

from photoflux.errors import InputError
from photoflux.flux import base as bases
from photoflux.flux.base import BaseSpec, add_transformer, load_encoders, load_pipeline, load_spec, pin, verify
from photoflux.manifest import digest

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def own(base: Path, tmp_path: Path) -> Path:
    """A copy of the tiny base that a test may spoil; returns its spec."""
    shutil.copytree(base.with_suffix(""), tmp_path / "models" / "tiny")
    return Path(shutil.copy(base, tmp_path / "models" / "tiny.yaml"))


def edit(path: Path, **changes: Any) -> Path:
    """The spec with other values; None takes a key away."""
    content = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path


def at(spec: BaseSpec, folder: str) -> BaseSpec:
    return replace(spec, folder=folder)


# Specs


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


# Files


def test_a_whole_base_verifies(own: Path) -> None:
    """Every file is the pinned one; the folder comes back."""
    assert verify(load_spec(own)) == own.parent / "tiny"


def test_a_base_that_is_not_pinned_is_not_loaded(own: Path) -> None:
    """Unknown weights are never run: the sentence says how to pin them, and pinning helps."""
    edit(own, manifest=None)
    with pytest.raises(InputError, match=r"lists no files in its manifest.* `python -m photoflux\.flux\.base"):
        load_pipeline(load_spec(own))
    assert verify(load_spec(pin(own)))


def test_pinning_lists_every_file_with_its_hash(own: Path) -> None:
    """SHA-256 of all files but hidden ones, the rest of the spec unchanged; twice is the same file."""
    before = yaml.safe_load(own.read_text())
    (own.parent / "tiny" / ".DS_Store").write_text("x")
    (own.parent / "tiny" / "vae" / ".photoflux-left").mkdir()
    (own.parent / "tiny" / "vae" / ".photoflux-left" / "half.safetensors").write_text("x")
    content = yaml.safe_load(pin(own).read_text())
    assert content == before
    files = [path for path in (own.parent / "tiny").rglob("*") if path.is_file() and "/." not in str(path)]
    assert content["manifest"] == {str(f.relative_to(own.parent / "tiny")): digest(f) for f in files}
    text = own.read_text()
    assert pin(own).read_text() == text
    with pytest.raises(InputError, match="pinning needs the files in a local folder"):
        pin(edit(own, folder="gs://bucket/flux"))


def test_a_missing_file_is_named(own: Path) -> None:
    """The path, and what to do about it."""
    (own.parent / "tiny" / WEIGHTS).unlink()
    with pytest.raises(InputError, match=rf"{WEIGHTS} is missing; restore it from version control or its source"):
        load_pipeline(load_spec(own))


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_an_altered_file_is_named(large: bool, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One flipped bit, the size unchanged, also where a large file's hash was remembered."""
    if large:
        monkeypatch.setattr(bases, "LARGE_BYTES", 1)
    spec, file = load_spec(own), own.parent / "tiny" / WEIGHTS
    verify(spec)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, (1, 1))
    with pytest.raises(InputError, match=rf"{WEIGHTS} is not the file its spec pins \(SHA-256 differs\); restore it"):
        verify(spec)


def test_large_files_are_hashed_once(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as they lie untouched; small files are hashed every time."""
    spec, hashed = load_spec(own), list[str]()

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return digest(path)

    monkeypatch.setattr(bases, "digest", counted)
    monkeypatch.setattr(bases, "LARGE_BYTES", (own.parent / "tiny" / WEIGHTS).stat().st_size)
    verify(spec)
    first = len(hashed)
    assert first == len(spec.manifest)
    verify(spec)
    large = sum((own.parent / "tiny" / name).stat().st_size >= bases.LARGE_BYTES for name in spec.manifest)
    assert large >= 1
    assert len(hashed) == 2 * first - large


def test_a_missing_folder_says_how_to_get_it(own: Path) -> None:
    """The pocket base is made, another is copied."""
    spec = replace(load_spec(own), folder=own.parent / "gone")
    with pytest.raises(InputError, match=r"folder .*gone is missing; make it with `photoflux pretrain`"):
        verify(spec)
    with pytest.raises(InputError, match="copy it there or correct `folder` in the spec"):
        verify(replace(spec, name="flux1-schnell"))


# Stores


@pytest.fixture(params=["file", "memory"])
def remote(request: pytest.FixtureRequest, own: Path) -> tuple[BaseSpec, Callable[[str, bytes | None], None]]:
    """The base in a store that fsspec knows, and a way to change a file there."""
    import fsspec

    place = (
        f"{request.param}://{own.parent / 'tiny'}" if request.param == "file" else f"memory://{own.parent.parent.name}"
    )
    store, root = fsspec.core.url_to_fs(place)
    if request.param == "memory":
        store.put(str(own.parent / "tiny"), root, recursive=True)

    def change(name: str, content: bytes | None) -> None:
        if content is None:
            store.rm(f"{root}/{name}")
        else:
            store.pipe_file(f"{root}/{name}", content)

    return at(load_spec(own), place), change


Remote = tuple[BaseSpec, Callable[[str, bytes | None], None]]


def cached(own_state: Path) -> list[str]:
    """Everything in the cache of bases, unfinished folders included."""
    folder = own_state / "cache" / "bases"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_base_is_fetched_once_and_checked(remote: Remote, own_state: Path) -> None:
    """From the store into a folder named by its hash; afterwards the store is not asked."""
    spec, change = remote
    folder = verify(spec)
    assert cached(own_state) == [folder.name] == [spec.hash[:32]]
    assert {name: digest(folder / name) for name in spec.manifest} == dict(spec.manifest)
    change(WEIGHTS, None)
    assert verify(spec) == folder


@pytest.mark.parametrize("content", [b"other weights", None], ids=["altered", "missing"])
def test_what_the_store_has_wrong_never_reaches_the_cache(
    content: bytes | None, remote: Remote, own_state: Path
) -> None:
    """A file altered or missing there is said with the place, and nothing stays behind."""
    spec, change = remote
    change(WEIGHTS, content)
    said = f"{WEIGHTS} at .* is not the file its spec pins; replace it there" if content else "cannot be fetched"
    with pytest.raises(InputError, match=said) as caught:
        verify(spec)
    assert str(spec.folder) in str(caught.value)
    assert cached(own_state) == []


def test_an_interrupted_fetch_leaves_nothing(remote: Remote, own_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends it half-way: no folder that looks whole; the next fetch is a fresh one."""
    spec, _ = remote
    files = list[Path]()

    def interrupted(path: Path) -> str:
        files.append(path)
        if len(files) == 5:
            raise KeyboardInterrupt
        return digest(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(bases, "digest", interrupted)
        verify(spec)
    assert len(files) == 5
    assert cached(own_state) == []
    assert verify(spec).name == spec.hash[:32]


def test_two_fetches_at_once_end_in_one_folder(
    remote: Remote, own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should another process finish first, its folder stays and ours vanishes."""
    spec, _ = remote
    copy = bases._copy

    def slow(spec: BaseSpec, store: Any, root: str, into: Path) -> None:
        copy(spec, store, root, into)
        monkeypatch.setattr(bases, "_copy", copy)
        (verify(spec) / "first").write_text("")

    monkeypatch.setattr(bases, "_copy", slow)
    folder = verify(spec)
    assert cached(own_state) == [folder.name]
    assert (folder / "first").exists()


def test_a_spoilt_cache_says_to_delete_it(remote: Remote) -> None:
    """The file in the cache, and that its folder may go; then it is fetched again."""
    spec, _ = remote
    folder = verify(spec)
    (folder / WEIGHTS).write_bytes(b"spoilt")
    with pytest.raises(InputError, match=rf"{folder}/{WEIGHTS} is not the file .*delete its folder to fetch it again"):
        verify(spec)
    shutil.rmtree(folder)
    assert verify(spec) == folder


def test_a_store_that_cannot_be_reached_is_said(own: Path) -> None:
    """An unknown kind of store, or one that is not installed, ends in a sentence."""
    with pytest.raises(
        InputError, match=r"nowhere://bucket/flux cannot be fetched .*check the address and your access"
    ):
        verify(at(load_spec(own), "nowhere://bucket/flux"))


def test_the_hub_is_asked_for_the_pinned_files(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`owner/name@revision`, only the files of the manifest; what comes back is checked."""
    asked: dict[str, Any] = {}

    def download(name: str, **how: Any) -> str:
        asked.update(how, name=name)
        return str(own.parent / "tiny")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    spec = at(load_spec(own), "hub:owner/flux@abc")
    assert verify(spec) == own.parent / "tiny"
    assert asked == {"name": "owner/flux", "revision": "abc", "allow_patterns": sorted(spec.manifest)}
    (own.parent / "tiny" / WEIGHTS).write_bytes(b"spoilt")
    with pytest.raises(InputError, match="is not the file its spec pins"):
        verify(spec)


def test_a_gated_repository_says_how_to_get_in(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Terms, token, or a copy: whatever the hub's own error was."""

    def refused(*_: Any, **__: Any) -> str:
        raise PermissionError("401 Client Error")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    with pytest.raises(
        InputError, match=r"owner/flux cannot be fetched from the hub .*accept its terms and set HF_TOKEN"
    ):
        verify(at(load_spec(own), "hub:owner/flux"))


# Pipelines


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
