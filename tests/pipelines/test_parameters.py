"""Parameters given by a person: typed, checked before anything runs, every mistake named with a way out."""

from __future__ import annotations

import copy

import pytest

from photoflux.errors import InputError
from pipelines.graph import parameters, read_spec
from pipelines.parameters import resolve

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


def test_a_pipeline_older_than_the_code_is_named():
    old = copy.deepcopy(SPEC)
    del old["root"]["inputDefinitions"]["parameters"]["finetune_high_sigmas"]
    with pytest.raises(InputError, match=r"does not know finetune_high_sigmas.*run `make compile`"):
        resolve({}, old)
