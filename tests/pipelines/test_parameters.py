"""Parameters given by a person: typed, checked before anything runs, every mistake named with a way out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given

from photoflux.errors import InputError
from photoflux.params.files import resolve_with_recipes
from photoflux.params.form import read_form
from photoflux.params.resolve import flatten
from photoflux.params.resolve import resolve as resolve_layers
from pipelines import run
from pipelines.graph import parameters, read_spec
from pipelines.parameters import fill, resolve
from tests.params.test_resolve import changes

SPEC = read_spec()


UNASKED = {"key": "plain://demo"} | flatten(resolve_layers(recipes={}))


def test_without_any_the_defaults_hold():
    assert resolve({}) == UNASKED


def test_the_file_of_parameters_holds_below_what_is_given(tmp_path: Path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"finetune": {"rank": 8, "steps": 9}}))
    found = resolve({"finetune_steps": 10}, path=tmp_path / "params.yaml")
    assert found == UNASKED | {"finetune_rank": 8, "finetune_steps": 10}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("augment_variants", "2", 2),
        ("augment_rotation_deg", "5", 5.0),
        ("import_photos_class_noun", "mug", "mug"),
        ("key", "plain://mine", "plain://mine"),
    ],
)
def test_text_becomes_what_the_field_is(name: str, text: str, value: object):
    found = resolve({name: text})
    assert found[name] == value
    assert type(found[name]) is type(value)
    assert {k: v for k, v in found.items() if k != name} == {k: v for k, v in UNASKED.items() if k != name}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"augment_varaints": 2}, "augment_varaints: no such parameter; did you mean augment_variants"),
        ({"zzz": 2}, "zzz: no such parameter; docs/parameters.md lists them"),
        ({"augment_variants": "many"}, "augment.variants: 'many' is not a valid int"),
        ({"augment_variants": 1.5}, "augment.variants: '1.5' is not a valid int"),
        ({"import_photos_trigger": "two words"}, "trigger is 'two words'"),
        ({"augment_heldout": 0}, "augment.heldout is 0"),
    ],
)
def test_a_mistake_is_named(wrong: dict, message: str):
    with pytest.raises(InputError) as error:
        resolve(wrong)
    assert message in str(error.value)


TEXTS = ["base", *(name for name, value in UNASKED.items() if isinstance(value, str) and name != "key")]
REPLACED = ["{{$}}", "photos/{{$.inputs.parameters['key']}}", "{{$.", "{{workflow.name}}", "/kfp-workspace/photos"]
"""What Kubeflow, Vertex or Argo fill in; half of a mark meets its other half in what it is written into."""


@pytest.mark.parametrize("text", REPLACED)
@pytest.mark.parametrize("name", ["key", *TEXTS])
def test_what_an_orchestrator_would_replace_is_refused(name: str, text: str):
    with pytest.raises(InputError) as error:
        resolve({name: text})
    assert name.rpartition("_")[2] in str(error.value)


@pytest.mark.parametrize("text", REPLACED)
def test_and_so_it_is_in_the_file_of_parameters(tmp_path: Path, text: str):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"import_photos": {"source": text}}))
    with pytest.raises(
        InputError, match=r"import_photos.source: holds '(\{\{|/kfp-workspace)', which a pipeline replaces"
    ):
        resolve({}, path=tmp_path / "params.yaml")


def test_braces_that_nothing_fills_in_are_text():
    for text in ("photos/{1}", "photos/$}}", "photos/{$}", "photos/50%"):
        assert resolve({"import_photos_source": text})["import_photos_source"] == text


def test_a_pipeline_older_than_the_code_is_named():
    old = copy.deepcopy(SPEC)
    del old["root"]["inputDefinitions"]["parameters"]["finetune_ema"]
    with pytest.raises(InputError, match=r"does not know finetune_ema.*run `make compile`"):
        fill(resolve({}), old)


def test_the_pipeline_is_given_what_it_would_not_choose_by_itself():
    fill_form = fill(resolve({"finetune_rank": 8, "gate_copy_max": 0.1, "evaluate_profile": "standard"}), SPEC)
    assert fill_form == parameters(SPEC) | {"finetune_rank": 8, "overrides": '{"gate_copy_max": 0.1}'}


def read_again(values: dict[str, Any]) -> dict[str, Any]:
    """What `configure` makes of the form that a run is given."""
    form = fill(values, SPEC)
    return {"key": form["key"]} | flatten(resolve_with_recipes(*read_form(form)))


@given(changes())
def test_a_run_has_the_values_that_whoever_submits_it_resolved(asked: dict[str, Any]):
    """The command line and the API resolve alike, text or typed, and `configure` comes to the same from the form."""
    words = [word for name, value in asked.items() for word in ("--set", f"{name}={value}")]
    typed, text = resolve(asked), resolve(run.parameters_of(run._parser().parse_args(words)))
    assert typed == text == UNASKED | asked
    assert read_again(typed) == typed
    assert resolve(typed) == typed


def test_a_base_with_a_recipe_is_resolved_alike(root: Path):
    values = resolve({"base": "flux1-schnell", "finetune_steps": 100, "finetune_lr": 0.01})
    assert (values["finetune_steps"], values["finetune_batch_size"], values["finetune_base"]) == (
        100,
        1,
        "flux1-schnell",
    )
    assert fill(values, SPEC)["finetune_steps"] == 100, "which is the default, but not the recipe's"
    assert fill(values, SPEC)["finetune_batch_size"] == 0, "which is left to the recipe"
    assert read_again(values) == values


def test_a_compiled_file_that_changes_is_read_again(tmp_path: Path):
    file = tmp_path / "personalize.yaml"
    file.write_text("root: {}")
    assert read_spec(file) is read_spec(file) == {"root": {}}
    file.write_text("root: {dag: {}}")
    assert read_spec(file) == {"root": {"dag": {}}}
