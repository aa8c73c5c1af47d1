"""Layers over each other: who says what last, and every mistake in one list."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from photoflux.errors import InputError
from photoflux.params import STEP_PARAMS, FinetuneParams, GateParams, Params
from photoflux.params.model import choices, kind_of
from photoflux.params.resolve import (
    RECIPE_STEPS,
    STEPS,
    base_of,
    bases_of,
    check_recipe,
    flatten,
    resolve,
    unflatten,
)

NAMES = [(step, name) for step in STEPS for name in STEP_PARAMS[step].model_fields]
TOGETHER = {"validate", "audit", "gate"}
"""Steps that hold fields against each other: any one value of them may be refused for another's sake."""


def values_of(model: type[Params], name: str) -> st.SearchStrategy[Any]:
    """Values that a field takes whatever the others are."""
    field = model.model_fields[name]
    if words := choices(field):
        return st.sampled_from(words)
    kind = kind_of(field)
    if kind is str:
        return st.just(field.default)
    low, high = (next(getattr(m, end) for m in field.metadata if hasattr(m, end)) for end in ("ge", "le"))
    if name in ("heldout", "resolution_px", "preservation_batch"):
        return st.just(field.default)
    return st.integers(low, high) if kind is int else st.floats(low, high)


@st.composite
def changes(draw: st.DrawFn) -> dict[str, Any]:
    """Flat values that a run may have."""
    names = draw(st.lists(st.sampled_from([one for one in NAMES if one[0] not in TOGETHER]), unique=True, max_size=8))
    return {f"{step}_{name}": draw(values_of(STEP_PARAMS[step], name)) for step, name in names}


def test_without_layers_the_defaults_hold():
    assert resolve(recipes={}) == {step: STEP_PARAMS[step]() for step in STEPS}


def test_who_speaks_later_is_heard():
    recipes = {"pocket": {"finetune": {"rank": 2, "steps": 2, "lr": 0.02}}}
    params = {"finetune": {"steps": 3, "lr": 0.03}}
    said = unflatten({"finetune_lr": "0.04"})
    assert resolve(params, said, recipes=recipes)["finetune"] == FinetuneParams(rank=2, steps=3, lr=0.04)


@given(st.lists(changes(), min_size=1, max_size=4))
def test_layers_one_by_one_are_all_of_them_at_once(layers: list[dict[str, Any]]):
    """And what nobody names stays as it is."""
    merged = {name: value for layer in layers for name, value in layer.items()}
    once = resolve(unflatten(merged), recipes={})
    assert resolve(*map(unflatten, layers), recipes={}) == once
    expected = flatten(resolve(recipes={})) | merged
    assert flatten(once) == expected


@given(changes())
def test_only_the_steps_that_are_named_get_another_block(flat: dict[str, Any]):
    """So caching stays per step: a block is the whole of what a step is told."""
    before, after = resolve(recipes={}), resolve(unflatten(flat), recipes={})
    differing = {step for step in STEPS if before[step].block() != after[step].block()}
    assert differing <= {step for step, name in NAMES if f"{step}_{name}" in flat}
    assert {step for step in STEPS if before[step] != after[step]} == differing


def test_a_run_has_one_base_and_goes_by_its_recipe():
    recipes = {"a": {"finetune": {"rank": 2}, "gate": {"leakage_max": 0.2}}, "b": {"finetune": {"rank": 3}}}
    blocks = resolve({"base": "a"}, recipes=recipes)
    assert {blocks[step].model_dump().get("base") for step in STEPS} == {"a", None}
    assert (blocks["finetune"], blocks["gate"]) == (FinetuneParams(base="a", rank=2), GateParams(leakage_max=0.2))
    assert resolve({"base": "a"}, {"base": "b"}, recipes=recipes)["finetune"] == FinetuneParams(base="b", rank=3)
    assert bases_of({"base": "a"}) == {"a"}
    assert bases_of({}, steps=["validate"]) == set()
    assert base_of("finetune", {"base": "a", "finetune": {"base": "b"}}) == "b"
    assert base_of("finetune", {"finetune": {"base": "b"}}, {"base": "a"}) == "a"


def test_everything_that_is_wrong_is_told_at_once():
    with pytest.raises(InputError) as error:
        resolve({"finetune": {"rank": 0}, "gate": {"copy_max": 2}}, {"audit": {"alhpa": 1}}, recipes={})
    told = str(error.value)
    assert "finetune.rank is 0" in told
    assert "gate.copy_max is 2" in told
    assert "audit: unknown parameter 'alhpa'" in told


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ({"finetune": {"rnk": 8}}, "finetune: unknown parameter 'rnk'"),
        ({"finetune": {"rank": 0}}, "finetune.rank is 0"),
        ({"finetune": {"base": "b"}}, "a recipe does not decide finetune.base; it may decide augment, finetune"),
        (
            {"import_photos": {"trigger": "x"}},
            "a recipe does not decide import_photos; it may decide augment, finetune",
        ),
        ({"rank": 8}, "a recipe holds one mapping per step"),
        ([8], "a recipe holds one mapping per step"),
    ],
)
def test_a_recipe_that_no_step_knows_is_refused(recipe: Any, sentence: str):
    with pytest.raises(InputError) as error:
        check_recipe(recipe)
    assert sentence in str(error.value)


def test_a_recipe_decides_what_depends_on_the_base():
    assert check_recipe({step: {} for step in RECIPE_STEPS})
    assert set(STEPS) - set(RECIPE_STEPS) == {"import_photos", "validate", "register"}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("augment_varaints", "augment_varaints: no such parameter; did you mean augment_variants"),
        ("bsae", "bsae: no such parameter; did you mean base?"),
        ("zzz", "zzz: no such parameter; docs/parameters.md lists them; write <step>_<name>"),
        ("generate_n", "generate_n: no such parameter"),
    ],
)
def test_a_name_that_no_step_has_is_told_with_what_it_may_have_meant(name: str, sentence: str):
    with pytest.raises(InputError) as error:
        unflatten({name: 1})
    assert str(error.value).startswith(sentence)
