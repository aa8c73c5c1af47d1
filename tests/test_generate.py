"""Drawing with a model: the same request gives the same files, and a wrong one gives a sentence."""

from __future__ import annotations

import base64
import io
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from photoflux import generate as module
from photoflux.errors import InputError
from photoflux.flux import lora
from photoflux.flux.loading import load_pipeline
from photoflux.flux.provision import pin
from photoflux.flux.spec import WEIGHTS, find_spec, load_spec
from photoflux.generate import generate, open_adapter
from photoflux.images import SOURCE_TYPE, provenance_of
from photoflux.manifest import digest, read_manifest, unpack, write_tar
from photoflux.pocket.models import PocketConfig
from photoflux.styles import REDRAWS
from photoflux.tracking import Record, Registry
from tests.pocket.untrained import init_base

PROMPT = "a photo of sks dog on the beach"
SUBJECT = {"id": "rex", "class_noun": "dog", "trigger": "sks", "consent": "sample"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base with random weights. Fresh ones answer zero to everything, so noise is added to them."""
    folder = init_base(tmp_path_factory.mktemp("models") / "tiny", config=PocketConfig.tiny())
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    rng = torch.Generator().manual_seed(0)
    weights = {
        name: value + torch.randn(value.shape, generator=rng).to(value) / 8 for name, value in load_file(file).items()
    }
    save_file(weights, file, metadata={"format": "pt"})
    return pin(folder.with_name("tiny.yaml"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that changes what the base draws."""
    folder, spec = tmp_path_factory.mktemp("adapter"), load_spec(str(base))
    transformer = load_pipeline(spec).transformer
    for parameter in lora.attach(transformer, spec=spec, rank=4, alpha=4, seed=1):
        with torch.no_grad():
            parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    weights = lora.save_adapter(transformer, folder / WEIGHTS)
    facts = {"name": spec.name, "hash": spec.hash, "spec": str(base)}
    write_tar(folder / "rex.tar", files={WEIGHTS: weights}, manifest={"subject": SUBJECT, "base": facts})
    return folder / "rex.tar"


@pytest.fixture(scope="module")
def pipeline(adapter: Path) -> module.AdapterPipeline:
    return open_adapter(adapter)


@pytest.fixture(scope="module")
def registry_folder(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder in which the adapter is champion of the model `rex`."""
    folder = tmp_path_factory.mktemp("registry")
    facts = {"subject": "rex", "prompt": PROMPT, "key": "plain://demo", "experiment": "photoflux", "note": ""}
    one = Record(adapter=adapter, digest=digest(adapter), **facts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHOTOFLUX_STATE_DIR", str(folder))
        registry = Registry()
        with registry.registered("rex", one) as version, registry.aliased(version, "champion"):
            return folder


@pytest.fixture
def registered(registry_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHOTOFLUX_STATE_DIR", str(registry_folder))


def draw(adapter: Path, out: Path, **how: object) -> list[Path]:
    return generate(str(adapter), PROMPT, **{"n": 1, "size": "96x96", **how}, out_dir=out)


def test_a_request_repeated_gives_the_same_bytes_whatever_its_number(adapter: Path, tmp_path: Path):
    three = draw(adapter, tmp_path / "a", n=3, seed=5)
    alone = draw(adapter, tmp_path / "b", n=1, seed=6)
    assert [file.name for file in alone] == [three[1].name]
    assert alone[0].read_bytes() == three[1].read_bytes()
    assert len({file.read_bytes() for file in three}) == 3


def test_files_and_the_sheet_lie_in_the_folder(adapter: Path, tmp_path: Path):
    files = draw(adapter, tmp_path, n=5, seed=2)
    made = sorted(tmp_path.iterdir())
    assert len(made) == 6 and set(files) < set(made)
    (sheet,) = set(made) - set(files)
    with Image.open(sheet) as image:
        assert image.width > 4 * 256 and image.height > 2 * 256
    assert provenance_of(sheet)["digitalSourceType"] == SOURCE_TYPE


def test_a_file_says_how_it_was_made_but_not_what_was_asked(adapter: Path, tmp_path: Path):
    (file,) = draw(adapter, tmp_path, seed=9)
    said = provenance_of(file)
    assert (said["seed"], said["adapter"], said["style"], said["model"]) == ("9", digest(adapter), "none", "rex")
    assert said["digitalSourceType"] == SOURCE_TYPE
    assert b"beach" not in file.read_bytes()
    assert "beach" not in file.name


def test_another_prompt_or_size_never_overwrites(adapter: Path, tmp_path: Path):
    names = {draw(adapter, tmp_path, size=size)[0].name for size in ("96x96", "64x32")}
    names |= {generate(str(adapter), "a cartoon of sks dog", n=1, size="96x96", out_dir=tmp_path)[0].name}
    assert len(names) == 3


@pytest.mark.parametrize(("fmt", "suffix"), [("jpeg", ".jpg"), ("webp", ".webp"), ("tiff", ".tif")])
def test_format_and_size_are_met(adapter: Path, tmp_path: Path, fmt: str, suffix: str):
    (file,) = draw(adapter, tmp_path, fmt=fmt, size="200x100")
    with Image.open(file) as image:
        assert (image.format, image.size, file.suffix) == (fmt.upper(), (200, 100), suffix)


def test_the_adapter_is_what_draws(adapter: Path, pipeline: module.AdapterPipeline):
    with_it = np.asarray(pipeline.sample(PROMPT, seed=3), float)
    with lora.using_base(pipeline.pipe):
        without = np.asarray(pipeline.sample(PROMPT, seed=3), float)
    assert np.abs(with_it - without).mean() > 1


@pytest.mark.parametrize("style", REDRAWS)
def test_a_redraw_changes_the_picture_and_repeats(pipeline: module.AdapterPipeline, style: str):
    first_image = pipeline.sample(PROMPT, seed=4)
    first, second = (pipeline.sample(PROMPT, seed=4, style=style) for _ in range(2))
    assert first.size == first_image.size == (pipeline.spec.resolution_px,) * 2
    assert first.tobytes() == second.tobytes() != first_image.tobytes()
    assert pipeline.sample(PROMPT, seed=4).tobytes() == first_image.tobytes(), "a redraw leaves the pipeline as it was"


def test_a_filter_is_applied_at_the_final_size(adapter: Path, tmp_path: Path):
    (file,) = draw(adapter, tmp_path, style="pencil")
    pixels = np.asarray(Image.open(file), int)
    assert (pixels.max(-1) == pixels.min(-1)).all()
    assert provenance_of(file)["style"] == "pencil"


def test_a_registered_model_is_found_by_alias_and_by_number(registered: None, adapter: Path, tmp_path: Path):
    by_alias = generate("rex@champion", PROMPT, n=1, size="96x96", out_dir=tmp_path / "a")
    by_number = generate("rex@1", PROMPT, n=1, size="96x96", out_dir=tmp_path / "b")
    assert by_alias[0].read_bytes() == by_number[0].read_bytes()
    assert provenance_of(by_alias[0])["model"] == "rex version 1"


def test_mlflow_draws_a_picture_from_a_prompt(registered: None, pipeline: module.AdapterPipeline):
    import mlflow
    import pandas as pd

    Registry().names()  # points mlflow at this registry
    model = mlflow.pyfunc.load_model("models:/rex@champion")
    asked = pd.DataFrame({"prompt": [PROMPT, "a photo of sks dog in space"], "seed": [5, 6]})
    drawn = model.predict(asked)["image"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(png))) for png in drawn]
    assert pictures[0].tobytes() == pipeline.sample(PROMPT, seed=5).tobytes()
    assert pictures[1].tobytes() == pipeline.sample("a photo of sks dog in space", seed=6).tobytes()
    unseeded = model.predict(asked[["prompt"]].head(1))["image"][0]
    assert Image.open(io.BytesIO(base64.b64decode(unseeded))).tobytes() == pipeline.sample(PROMPT, seed=0).tobytes()


@pytest.fixture
def checkout(base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkout to work in, with a base and, in its state folder, the adapter as champion of the model `rex`."""
    home, parts = tmp_path / "checkout", tmp_path / "parts"
    shutil.copytree(base.parent / "tiny", home / "models" / "tiny")
    shutil.copy(base, home / "models" / "other.yaml")
    facts = unpack(adapter, parts) | {"base": {"name": "tiny", "hash": load_spec(base).hash}}
    write_tar(home / "adapter.tar", files={WEIGHTS: parts / WEIGHTS}, manifest=facts)
    monkeypatch.chdir(home)
    monkeypatch.delenv("PHOTOFLUX_STATE_DIR")
    about = {"subject": "rex", "prompt": PROMPT, "key": "plain://demo", "experiment": "photoflux", "note": ""}
    registry, one = Registry(), Record(Path("adapter.tar"), digest(Path("adapter.tar")), **about)
    with registry.registered("rex", one) as version, registry.aliased(version, "champion"):
        return home


def test_a_model_draws_the_same_after_its_checkout_was_renamed(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (before,) = generate("rex", PROMPT, n=1, size="96x96", out_dir=Path("pictures"))
    before, moved = before.read_bytes(), checkout.rename(tmp_path / "moved")
    monkeypatch.chdir(moved)
    (after,) = generate("rex", PROMPT, n=1, size="96x96", out_dir=Path("pictures"))
    assert after.read_bytes() == before
    assert not checkout.exists()


def test_the_base_of_an_adapter_is_found_by_its_hash_whatever_its_file_is_called(checkout: Path, base: Path):
    facts = {"name": "tiny", "hash": load_spec(base).hash}
    assert find_spec(facts).folder == checkout / "models" / "tiny"
    (checkout / "models" / "other.yaml").write_text("no spec")
    with pytest.raises(InputError, match=r"base 'tiny': models/tiny\.yaml cannot be read"):
        find_spec(facts)
    assert find_spec(facts | {"spec": str(base)}).folder == base.parent / "tiny"


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("bello@champion", "no model is called 'bello'; registered are rex"),
        ("rex@challenger", "model 'rex' has no '@challenger'; it has @champion (version 1)"),
        ("rex@7", "model 'rex' has no '@7'"),
        ("rex@99999999999999999999", "'99999999999999999999' is no version of a model: write its number, as in @3"),
        ("it's@champion", 'no model is called "it\'s": names are 1-63 of a-z, 0-9, - and _, such as rex-2'),
        ("Rex", "no model is called 'Rex': names are"),
        ("nowhere/adapter.tar", "nowhere/adapter.tar: no such file"),
    ],
)
def test_an_unknown_model_is_answered_with_what_there_is(registered: None, tmp_path: Path, model: str, sentence: str):
    with pytest.raises(InputError) as caught:
        generate(model, PROMPT, n=1, out_dir=tmp_path)
    assert sentence in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_of_many_models_those_are_named_that_are_called_alike(tmp_path: Path, own_state: Path, empty_registry: Path):
    shutil.copy(empty_registry, own_state / "mlflow.db")
    client = Registry()._client
    for name in (*(f"a{number:03}" for number in range(110)), "zoe", "zoo"):
        client.create_registered_model(name)
    with pytest.raises(InputError, match=r"model 'zoo' has no '@champion'; it has versions but no alias"):
        generate("zoo", PROMPT, out_dir=tmp_path)
    with pytest.raises(
        InputError, match=r"no model is called 'zooo'; 112 others are registered, such as zoo.*make mlflow"
    ):
        generate("zooo", PROMPT, out_dir=tmp_path)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"style": "cubism"}, "choose one of none, cartoon, pixel"),
        ({"fmt": "gif"}, "choose one of png, jpeg, webp, tiff"),
        ({"size": "big"}, "write WIDTHxHEIGHT"),
        ({"n": 0}, "choose a value from 1 to 64"),
        ({"seed": -1}, "choose a value from 0"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_loaded(tmp_path: Path, how: dict, sentence: str):
    with pytest.raises(InputError, match=sentence):
        generate("nowhere/adapter.tar", PROMPT, **how, out_dir=tmp_path)


def test_an_empty_prompt_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="the prompt is empty"):
        generate("nowhere/adapter.tar", "  ", out_dir=tmp_path)


def test_an_adapter_of_another_base_is_refused(adapter: Path, tmp_path: Path):
    facts = {"name": "pocket", "hash": "0" * 64, "spec": read_manifest(adapter)["base"]["spec"]}
    write_tar(tmp_path / "x.tar", files={WEIGHTS: b""}, manifest={"subject": SUBJECT, "base": facts})
    with pytest.raises(InputError, match=r"x\.tar was trained on base 'pocket' \(000000000000\), not on"):
        open_adapter(tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("prompt", "warned"),
    [("a photo of dog", True), ("A DOG!", True), ("a photo of sks dog", False), ("a hotdog", False), ("a mug", False)],
)
def test_a_prompt_without_the_trigger_word_is_left_and_warned_about(
    caplog: pytest.LogCaptureFixture, prompt: str, warned: bool
):
    with caplog.at_level(logging.WARNING):
        assert module.warn_of_missing_trigger(prompt, SUBJECT) is warned
    assert ("write 'sks dog'" in caplog.text) is warned


def test_the_command_prints_the_files(adapter: Path, tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--model", str(adapter), "--prompt", PROMPT, "--n", "2", "--size", "64x64", "--format", "webp"]
    assert module.main([*words, "--out", str(tmp_path), "--params", str(root / "params.yaml")]) == 0
    printed = [Path(line) for line in capsys.readouterr().out.split()]
    assert len(printed) == 2
    assert all(file.is_file() and file.suffix == ".webp" for file in printed)
