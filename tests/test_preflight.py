"""What would stop a run later is said before it starts, all of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from photoflux.errors import InputError
from photoflux.params.files import read_recipe, resolve_with_recipes
from photoflux.preflight import preflight


@pytest.fixture
def models(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The models folder with a base of the test's own, whose folders are empty."""
    shutil.copytree(root / "models" / "prompts", tmp_path / "models" / "prompts")
    (tmp_path / "models" / "own" / "judges").mkdir(parents=True)
    monkeypatch.setenv("PHOTOFLUX_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "models"


def spec(models: Path, **changed: Any) -> None:
    usual = {
        "name": "own",
        "folder": "own",
        "judges": "own/judges",
        "class_nouns": ["dog", "mug"],
        "manifest": {"a": "1"},
    }
    (models / "own.yaml").write_text(yaml.safe_dump(usual | changed))


def wrong(**layer: Any) -> list[str]:
    layer.setdefault("evaluate", {"prompts": "pocket"})
    layer.setdefault("audit", {"prompts": "pocket"})
    return preflight(resolve_with_recipes({"base": "own"}, layer))


def test_nothing_stands_against_what_is_all_there(models: Path):
    spec(models)
    assert wrong() == []


@pytest.mark.parametrize(
    ("changed", "layer", "sentence"),
    [
        ({"manifest": {}}, {}, "base 'own' lists no files in its manifest; fetch it, look at it, and pin it with"),
        ({"folder": "gone"}, {}, "models/gone is missing; copy it there or correct `folder` in the spec"),
        ({"judges": None}, {}, "base 'own' has no judges; set `judges` in its spec to a folder of CLIP and DINO weights"),
        ({"judges": "gone"}, {}, "models/gone, are missing; copy them there or correct `judges`"),
        ({}, {"import_photos": {"class_noun": "cat"}}, "class noun 'cat' is unknown to base 'own'; choose one of dog, mug"),
        ({}, {"evaluate": {}}, "own.yaml: no such prompt set"),
        ({}, {"audit": {"prompts": "pocket", "judge_card": "gone.json"}}, "gone.json: not a readable judge card"),
        ({}, {"augment": {"base": "other"}}, "the steps name different bases (other, own): a run has one; set `base` alone"),
    ],
)  # fmt: skip
def test_each_thing_that_stands_against_it_is_named(
    models: Path, changed: dict[str, Any], layer: dict[str, Any], sentence: str
):
    spec(models, **changed)
    (models / "other.yaml").write_text("name: other\n")
    (told,) = wrong(**layer)
    assert sentence in told


def test_all_of_it_is_told_at_once(models: Path):
    spec(models, manifest={}, judges=None)
    assert len(wrong(import_photos={"class_noun": "cat"}, evaluate={"prompts": "none"})) == 4


def test_what_lies_elsewhere_is_left_to_the_step_that_fetches_it(models: Path):
    spec(models, folder="gs://bucket/own", judges="hub:somebody/judges")
    assert wrong() == []


def test_a_base_without_a_list_of_nouns_takes_any(models: Path):
    spec(models, class_nouns=[])
    assert wrong(import_photos={"class_noun": "zeppelin"}) == []


@pytest.mark.parametrize("name", ["pocket", "flux1-schnell"])
def test_the_recipes_of_the_shipped_bases_are_known_to_the_steps(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.chdir(root)
    assert set(read_recipe(name)) <= {"finetune"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("recipe: {finetune: {rnk: 8}}", "own.yaml: finetune: unknown parameter 'rnk'"),
        ("recipe: 8", "own.yaml: a recipe holds one mapping per step"),
        ("a: [", "own.yaml: not a base spec"),
        ("- a", "own.yaml: not a base spec"),
    ],
)
def test_a_spec_that_cannot_be_used_is_named(models: Path, text: str, sentence: str):
    (models / "own.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        read_recipe("own")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"base 'none': .*none\.yaml cannot be read .*choose one of own"):
        read_recipe("none")
