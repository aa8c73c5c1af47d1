"""A run's parameters by their flat names, `<step>_<field>`: resolved as `configure` will, and put into the pipeline's form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from photoflux.errors import InputError
from photoflux.params import check_text
from photoflux.params.files import read_layer, resolve_with_recipes
from photoflux.params.form import DEFAULT_KEY, KEY, NAMES, fill_form
from photoflux.params.resolve import BASE, flatten, unflatten
from pipelines.graph import Spec, parameters

ROOT = Path(__file__).resolve().parent.parent


def resolve(given: Mapping[str, Any], *, path: Path = ROOT / "params.yaml") -> dict[str, Any]:
    """Every parameter by its flat name, and the key: the params file with `given` over it, checked as the steps will check them.

    Raises InputError for an unknown name, a value of the wrong type or one out of range.
    """
    key = check_text(KEY, str(given.get(KEY, DEFAULT_KEY)))
    layer = unflatten({name: value for name, value in given.items() if name != KEY})
    return {KEY: key} | flatten(resolve_with_recipes(read_layer(path), layer))


def fill(values: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
    """The form for resolved values: only those are filled in that `configure` would not choose by itself.

    Raises InputError for a compiled file of other code, and for what a server would refuse.
    """
    if missing := sorted(set(NAMES) - parameters(spec).keys()):
        raise InputError(
            f"the compiled pipeline does not know {missing[0]}: it is older than the code; run `make compile`"
        )
    base = values[f"finetune_{BASE}"]
    unchanged = flatten(resolve_with_recipes({BASE: base}))
    changed = {name: value for name, value in values.items() if name != KEY and value != unchanged[name]}
    return fill_form({BASE: base, **changed}, key=values[KEY])
