"""Parameters given by a person: typed, checked before anything runs, every mistake named with a way out."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from photoflux.errors import InputError
from pipelines.graph import parameters, read_spec
from pipelines.parameters import defaults, flat_parameters, resolve

SPEC = read_spec()


def test_without_any_the_defaults_hold():
    assert resolve({}, SPEC) == parameters(SPEC)


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("augment_variants", "2", 2),
        ("augment_rotation_deg", "5", 5.0),
        ("import_photos_class_noun", "mug", "mug"),
        ("key", "plain://mine", "plain://mine"),
    ],
)
def test_text_becomes_what_the_field_is(name: str, given: str, value: object):
    resolved = resolve({name: given}, SPEC)
    assert resolved[name] == value
    assert type(resolved[name]) is type(value)
    assert {k: v for k, v in resolved.items() if k != name} == {k: v for k, v in parameters(SPEC).items() if k != name}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"augment_varaints": 2}, "augment_varaints: no such parameter; did you mean augment_variants"),
        ({"zzz": 2}, "zzz: no such parameter; params.yaml lists them"),
        ({"augment_variants": "many"}, "augment.variants: 'many' is not a valid int"),
        ({"augment_variants": 1.5}, "augment.variants: '1.5' is not a valid int"),
        ({"import_photos_trigger": "two words"}, "trigger is 'two words'"),
        ({"augment_heldout": 0}, "augment.heldout is 0"),
    ],
)
def test_a_mistake_is_named(given: dict, message: str):
    with pytest.raises(InputError) as error:
        resolve(given, SPEC)
    assert message in str(error.value)


TEXTS = [name for name, flat in flat_parameters().items() if flat.kind is str]
REPLACED = ["{{$}}", "photos/{{$.inputs.parameters['key']}}", "{{$.", "{{workflow.name}}", "/kfp-workspace/photos"]
"""What Kubeflow, Vertex or Argo fill in; half of a mark meets its other half in what it is written into."""


@pytest.mark.parametrize("text", REPLACED)
@pytest.mark.parametrize("name", ["key", *TEXTS])
def test_what_an_orchestrator_would_replace_is_refused(name: str, text: str):
    with pytest.raises(InputError) as error:
        resolve({name: text}, SPEC)
    assert name.rpartition("_")[2] in str(error.value)


@pytest.mark.parametrize("text", REPLACED)
def test_and_so_it_is_in_the_file_of_defaults(tmp_path: Path, text: str):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"import_photos": {"source": text}}))
    with pytest.raises(
        InputError, match=r"import_photos.source: holds '(\{\{|/kfp-workspace)', which a pipeline replaces"
    ):
        defaults(tmp_path / "params.yaml")


def test_braces_that_nothing_fills_in_are_text():
    for text in ("photos/{1}", "photos/$}}", "photos/{$}", "photos/50%"):
        assert resolve({"import_photos_source": text}, SPEC)["import_photos_source"] == text


def test_a_pipeline_older_than_the_code_is_named():
    old = copy.deepcopy(SPEC)
    del old["root"]["inputDefinitions"]["parameters"]["finetune_high_sigmas"]
    with pytest.raises(InputError, match=r"does not know finetune_high_sigmas.*run `make compile`"):
        resolve({}, old)


def test_a_compiled_file_that_changes_is_read_again(tmp_path: Path):
    file = tmp_path / "personalize.yaml"
    file.write_text("root: {}")
    assert read_spec(file) is read_spec(file) == {"root": {}}
    file.write_text("root: {dag: {}}")
    assert read_spec(file) == {"root": {"dag": {}}}
