"""One thing at a time is changed, and what hangs on it gets another name, and nothing else does."""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from photoflux import fingerprint
from photoflux.flux.spec import BaseSpec
from photoflux.judges.encoders import folder_digest

SPEC = BaseSpec(
    name="b",
    folder="gs://b",
    resolution_px=128,
    steps=4,
    guidance_scale=0.0,
    text_length=24,
    dtype="float32",
    lora_targets=("attn.to_q",),
    class_nouns=("dog",),
    judges=Path("judges"),
    manifest={"vae/x": "1", "judges/y": "2"},
)


def names(spec: BaseSpec = SPEC, **given: Any) -> dict[str, str]:
    """What generation, judging and training are named by."""
    how = {"judges": "j", "prompts": "p", "photos": "d", "profile": "smoke", "seed": 1}
    trained = {"dataset": "d", "params": {"rank": 4}, "files": {"judges": "j"}}
    parts = {
        "generation": fingerprint.of_generation(spec),
        "judging": fingerprint.of_judging(spec, **how | {key: given[key] for key in how if key in given}),
        "training": fingerprint.of_training(spec, **trained | {key: given[key] for key in trained if key in given}),
    }
    return {kind: fingerprint.name(part) for kind, part in parts.items()}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {kind for kind in before if before[kind] != after[kind]}


ALL = {"generation", "judging", "training"}


@pytest.mark.parametrize(
    ("field", "value", "follow"),
    [
        ("resolution_px", 256, ALL), ("steps", 8, ALL), ("guidance_scale", 3.5, ALL), ("text_length", 32, ALL),
        ("dtype", "bfloat16", ALL), ("manifest", {"vae/x": "9", "judges/y": "2"}, ALL),
        ("manifest", {"vae/x": "1", "judges/y": "9"}, set()),  # judges count by their bytes, which are given
        ("lora_targets", ("attn.to_k",), {"training"}), ("class_nouns", ("cat",), {"training"}), ("name", "c", set()),
        ("folder", "gs://c", set()), ("recipe", {"rank": 1}, set()),
    ],
)  # fmt: skip
def test_each_setting_of_a_base_renames_what_hangs_on_it(field: str, value: Any, follow: set[str]) -> None:
    assert changed(names(), names(replace(SPEC, **{field: value}))) == follow


@pytest.mark.parametrize(
    ("given", "follow"),
    [
        ({"judges": "k"}, {"judging"}), ({"prompts": "q"}, {"judging"}), ({"photos": "e"}, {"judging"}),
        ({"profile": "release"}, {"judging"}), ({"seed": 2}, {"judging"}), ({"dataset": "e"}, {"training"}),
        ({"params": {"rank": 5}}, {"training"}), ({"files": {"judges": "k"}}, {"training"}),
    ],
)  # fmt: skip
def test_each_input_renames_what_hangs_on_it(given: dict[str, Any], follow: set[str]) -> None:
    assert changed(names(), names(**given)) == follow


def test_every_byte_of_the_judges_and_every_name_counts(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "a").write_bytes(b"1")
    digests = {folder_digest(tmp_path)}
    for change in (lambda f: f.write_bytes(b"2"), lambda f: f.rename(f.with_name("b"))):
        change(tmp_path / "clip" / "a")
        digests.add(folder_digest(tmp_path))
    assert len(digests) == 3


@pytest.fixture
def edit(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Adds a line to a file of a copy of our code, which then is the code."""
    shutil.copytree(root / "photoflux", tmp_path / "photoflux", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path)

    def edited(file: str) -> None:
        with (tmp_path / file).open("a") as opened:
            opened.write("\n# edited\n")
        fingerprint.code_digest.cache_clear()

    fingerprint.code_digest.cache_clear()
    yield edited
    fingerprint.code_digest.cache_clear()


def test_an_edit_renames_exactly_what_uses_the_file(edit: Callable[[str], None]) -> None:
    uses = {
        "generation": fingerprint.sources(*fingerprint.GENERATION_MODULES),
        "judging": fingerprint.sources(*fingerprint.GENERATION_MODULES, *fingerprint.MEASURING_MODULES),
        "training": fingerprint.sources(*fingerprint.GENERATION_MODULES, *fingerprint.TRAINING_MODULES),
    }
    others = ("generate.py", "tracking.py", "steps/gate.py", "steps/register.py", "judges/bias.py")
    others += ("report.py", "pages/plots.py", "pages/evaluate.py", "pages/finetune.py")
    for file in sorted({*uses["judging"], *uses["training"], *(f"photoflux/{other}" for other in others)}):
        before = names()
        edit(file)
        assert changed(before, names()) == {kind for kind, files in uses.items() if file in files}, file


@pytest.mark.parametrize(
    ("file", "follow"),
    [
        ("photoflux/flux/sampling.py", ALL), ("photoflux/flux/text.py", ALL), ("photoflux/judges/quality.py", {"judging"}),
        ("photoflux/judges/stats.py", {"judging"}), ("photoflux/flux/module.py", {"training"}),
        ("photoflux/judges/copying.py", {"judging", "training"}), ("photoflux/tracking.py", set()),
        ("photoflux/steps/evaluate.py", {"judging"}), ("photoflux/judges/case.py", {"judging"}),
    ],
)  # fmt: skip
def test_code_that_draws_measures_or_trains_counts_where_it_should(
    edit: Callable[[str], None], file: str, follow: set[str]
) -> None:
    before = names()
    edit(file)
    assert changed(before, names()) == follow


@pytest.mark.parametrize(("step", "modules"), [
    ("finetune", fingerprint.TRAINING_MODULES), ("evaluate", (*fingerprint.GENERATION_MODULES, *fingerprint.MEASURING_MODULES)),
    ("audit", fingerprint.GENERATION_MODULES),
])  # fmt: skip
def test_dvc_watches_every_file_of_it(root: Path, step: str, modules: tuple[str, ...]) -> None:
    deps = yaml.safe_load((root / "dvc.yaml").read_text())["stages"][step]["deps"]
    files = fingerprint.sources(*modules)
    assert [f for f in files if not any(f == dep or f.startswith(f"{dep}/") for dep in deps)] == []


@pytest.mark.parametrize(
    ("library", "follow"),
    [
        ("torch", ALL), ("pillow", ALL), ("numpy", {"judging", "training"}), ("scipy", {"judging", "training"}),
        ("pytorch-lightning", {"training"}), ("bitsandbytes", {"training"}), ("mlflow", set()),
    ],
)  # fmt: skip
def test_another_version_of_a_library_renames_what_uses_it(
    library: str, follow: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, version = names(), fingerprint.version
    monkeypatch.setattr(fingerprint, "version", lambda one: "9" if one == library else version(one))
    assert changed(before, names()) == follow


CARRIERS = {"fsspec", "google", "huggingface_hub", "safetensors", "tink", "yaml"}
"""What only brings bytes, whose digests count."""
DISTRIBUTIONS = {"PIL": "pillow", "pytorch_lightning": "pytorch-lightning"}


@pytest.mark.parametrize(
    ("modules", "libraries"),
    [
        # numpy changes the type of finished pixels, and nothing else
        (fingerprint.GENERATION_MODULES, {"numpy", *fingerprint.LIBRARIES}),
        (fingerprint.MEASURING_MODULES, {*fingerprint.LIBRARIES, *fingerprint.MEASURING_LIBRARIES}),
        (fingerprint.TRAINING_MODULES, {*fingerprint.LIBRARIES, *fingerprint.TRAINING_LIBRARIES}),
    ],
)
def test_every_library_that_the_code_imports_counts(root: Path, modules: tuple[str, ...], libraries: set[str]) -> None:
    imported: set[str] = set()
    for file in fingerprint.sources(*modules):
        for node in fingerprint._runtime_nodes(ast.parse((root / file).read_bytes())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.split(".")[0])
    others = imported - sys.stdlib_module_names - CARRIERS - {"photoflux"}
    assert {DISTRIBUTIONS.get(name, name) for name in others} <= libraries
