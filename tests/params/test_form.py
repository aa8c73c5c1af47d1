"""The form: few fields, each with a value that means "as the base says" where a recipe may decide, and the rest as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from photoflux.errors import InputError
from photoflux.params import STEP_PARAMS
from photoflux.params.form import NAMES, OVERRIDES_MAX, VALUES_MAX, fill_form, form, read_form
from photoflux.params.resolve import RECIPE_STEPS, STEPS, flatten, resolve
from tests.params.test_resolve import changes

KEY = "plain://demo"


def test_a_person_meets_few_fields_the_most_used_first():
    assert len(NAMES) <= 25
    assert NAMES[:3] == ("import_photos_source", "import_photos_class_noun", "base")
    assert NAMES[-2:] == ("overrides", "key")
    assert all(field.help and type(field.default) is field.kind for field in form().values())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("base", "overrides", "key")])
def test_what_a_recipe_may_decide_can_be_left_to_it(name: str):
    """By a value that the parameter itself may not have, said in its help; nothing else is left to anybody."""
    step = next(step for step in STEPS if name.startswith(f"{step}_"))
    field, model = form()[name], STEP_PARAMS[step]
    parameter = name.removeprefix(f"{step}_")
    assert field.left_to_base is (step in RECIPE_STEPS)
    if not field.left_to_base:
        assert field.default == model.model_fields[parameter].default
    elif field.default != model.model_fields[parameter].default:
        assert field.help.endswith("as the base says")
        with pytest.raises(InputError):
            model(**{parameter: field.default})


def test_an_untouched_form_leaves_everything_to_the_base_and_the_defaults():
    recipes = {"pocket": {"finetune": {"rank": 3}, "evaluate": {"profile": "smoke"}, "augment": {"variants": 0}}}
    blocks = resolve(*read_form(fill_form({}, key=KEY)), recipes=recipes)
    assert blocks == resolve(recipes=recipes)


@given(changes())
def test_what_is_filled_in_is_what_is_read(given: dict[str, Any]):
    assert flatten(resolve(*read_form(fill_form(given, key=KEY)), recipes={})) == flatten(resolve(recipes={})) | given


def test_what_the_form_has_no_field_for_is_an_override():
    values = fill_form({"gate_leakage_max": 0.2, "finetune_rank": 8, "base": "b"}, key="vault://ada")
    assert json.loads(values["overrides"]) == {"gate_leakage_max": 0.2}
    assert (values["finetune_rank"], values["base"], values["key"]) == (8, "b", "vault://ada")
    assert [*values] == [*NAMES]


def test_overrides_win():
    fields, overrides = read_form(fill_form({"finetune_rank": 8}, key=KEY) | {"overrides": '{"finetune_rank": 9}'})
    assert resolve(fields, overrides, recipes={})["finetune"].model_dump()["rank"] == 9


@pytest.mark.parametrize("text", ["", "{}", " {} "])
def test_no_overrides_are_none(text: str):
    assert read_form(fill_form({}, key=KEY) | {"overrides": text})[1] == {}


def test_what_a_server_would_refuse_for_its_length_is_refused_with_a_sentence():
    long = {"evaluate_prompts": "p" * OVERRIDES_MAX}
    with pytest.raises(
        InputError, match=r"1 parameters that the form has no field for take 40\d\d characters, and 4000 are"
    ):
        fill_form(long, key=KEY)
    with pytest.raises(InputError, match=r"the run's values take \d+ characters, and 9000 are allowed"):
        fill_form({"import_photos_source": "s" * VALUES_MAX}, key=KEY)
    assert fill_form({"evaluate_prompts": "p" * (OVERRIDES_MAX - 30)}, key=KEY)


@pytest.mark.parametrize("name", [name for name, field in form().items() if field.kind is str])
def test_nothing_that_an_orchestrator_replaces_goes_in_or_out(name: str):
    held = {name: '{"evaluate_prompts": "{{$}}"}' if name == "overrides" else "{{$}}"}
    with pytest.raises(InputError, match=rf"^{name}: holds '{{{{'"):
        read_form(fill_form({}, key=KEY) | held)
    with pytest.raises(InputError, match=r"holds '\{\{'"):
        fill_form({"evaluate_prompts" if name == "overrides" else name: "{{$}}"}, key="{{$}}" if name == "key" else KEY)
