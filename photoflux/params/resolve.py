"""Resolve a run's parameters: the models' defaults ← the base's recipe ← params.yaml or the request ← the command line.

A layer names what it changes by step, `{"finetune": {"rank": 8}}`, and the base of all steps by `base`. People and programs
write flat names, `finetune_rank`, which `unflatten` turns into a layer. Nothing here reads a file.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from photoflux.errors import InputError
from photoflux.params import STEP_PARAMS, Params

STEPS = ("import_photos", "validate", "augment", "finetune", "evaluate", "audit", "gate", "register")
"""The steps of a run that have parameters, in order."""
RECIPE_STEPS = ("augment", "finetune", "evaluate", "audit", "gate")
"""Steps that a base's recipe may decide: neither the subject nor the checks of photos."""
BASE = "base"

Layer = Mapping[str, Any]
Blocks = dict[str, Params]


def resolve(*layers: Layer, recipes: Mapping[str, Layer], steps: Iterable[str] = STEPS) -> Blocks:
    """The parameters of each step, later layers overriding earlier ones; `recipes` has that of every base which the layers name.

    Raises InputError with all errors.
    """
    blocks, errors = Blocks(), list[str]()
    for step in steps:
        recipe = recipes.get(base_of(step, *layers), {})
        try:
            blocks[step] = STEP_PARAMS[step](**{**recipe.get(step, {}), **_merged_block(step, layers)})
        except InputError as error:
            errors.append(str(error))
    if errors:
        raise InputError(" ".join(errors))
    return blocks


def base_of(step: str, *layers: Layer) -> str:
    """The base whose recipe applies to a step; a step without a base has that of fine-tuning."""
    step = step if BASE in STEP_PARAMS[step].model_fields else "finetune"
    return str(_merged_block(step, layers).get(BASE, STEP_PARAMS[step].model_fields[BASE].default))


def bases_of(*layers: Layer, steps: Iterable[str] = STEPS) -> set[str]:
    """Every base that `resolve` needs the recipe of."""
    return {base_of(step, *layers) for step in steps if step in RECIPE_STEPS}


def check_recipe(recipe: Any) -> Layer:
    """The recipe itself. Raises InputError for what no step knows, and for values out of range."""
    if not isinstance(recipe, Mapping) or not all(isinstance(block, Mapping) for block in recipe.values()):
        raise InputError("a recipe holds one mapping per step")
    for step, block in recipe.items():
        if step not in RECIPE_STEPS or BASE in block:
            undecided = f"{step}.{BASE}" if step in RECIPE_STEPS else step
            raise InputError(f"a recipe does not decide {undecided}; it may decide {', '.join(RECIPE_STEPS)}")
        STEP_PARAMS[step](**block)
    return recipe


def assignment(text: str) -> tuple[str, str]:
    """`finetune_rank=8`, as the command line has it. Raises InputError."""
    name, separator, value = text.partition("=")
    if not separator:
        raise InputError(f"--set {text}: write NAME=VALUE, such as finetune_steps=200")
    return name.strip(), value


def unflatten(flat: Mapping[str, Any]) -> Layer:
    """`{"finetune_rank": 8}` as a layer. Raises InputError for a name that no step has."""
    layer: dict[str, Any] = {}
    for name, value in flat.items():
        if name == BASE:
            layer[BASE] = value
        elif name in _NAMES:
            step, field = _NAMES[name]
            layer.setdefault(step, {})[field] = value
        else:
            raise InputError(f"{name}: no such parameter; {_hint(name)}")
    return layer


def flatten(blocks: Mapping[str, Params]) -> dict[str, Any]:
    """Every value by its flat name, in the order of the steps."""
    return {f"{step}_{name}": value for step, params in blocks.items() for name, value in params.model_dump().items()}


_NAMES = {f"{step}_{name}": (step, name) for step in STEPS for name in STEP_PARAMS[step].model_fields}


def _hint(name: str) -> str:
    near = difflib.get_close_matches(name, [BASE, *_NAMES], n=2)
    return f"did you mean {' or '.join(near)}?" if near else "docs/parameters.md lists them; write <step>_<name>"


def _merged_block(step: str, layers: Iterable[Layer]) -> dict[str, Any]:
    """The merged values of a step, later layers overriding; a layer's own `base` applies where its block names none."""
    given: dict[str, Any] = {}
    for layer in layers:
        if BASE in layer and BASE in STEP_PARAMS[step].model_fields:
            given[BASE] = layer[BASE]
        given |= layer.get(step, {})
    return given
