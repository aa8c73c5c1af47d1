"""The form of a run: the parameters shown in a console, most used first, and `overrides` for all others.

A console submits every field, so a field that a base's recipe may decide has a default which means "as the base says": 0, or -1
where 0 is a valid value, or the empty string. Values of `params.yaml` reach a run as values of the form, never as its defaults.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from photoflux.errors import InputError
from photoflux.params import STEP_PARAMS, check_text, help_of
from photoflux.params.model import kind_of
from photoflux.params.resolve import BASE, RECIPE_STEPS, STEPS, Layer, unflatten

KEY, OVERRIDES = "key", "overrides"
DEFAULT_KEY = "plain://demo"
OVERRIDES_MAX, VALUES_MAX = 4_000, 9_000
"""Characters of `overrides` and of all values: servers refuse a run with longer values."""

NAMES = (
    "import_photos_source", "import_photos_class_noun", BASE, "register_name", "import_photos_subject_id", "import_photos_trigger",
    "import_photos_consent", "finetune_steps", "finetune_rank", "finetune_alpha", "finetune_lr", "finetune_batch_size",
    "finetune_preservation", "finetune_ema", "finetune_select", "finetune_seed", "augment_variants", "augment_crop", "augment_flip",
    "augment_colour_jitter", "evaluate_profile", "audit_profile", "audit_judge_card", OVERRIDES, KEY,
)  # fmt: skip


@dataclass(frozen=True)
class FormField:
    """One field: its type, default and help."""

    kind: type
    default: Any
    help: str
    left_to_base: bool = False
    """Whether the default stands for the value of the base's recipe, or the parameter's own default where that has none."""


def form() -> dict[str, FormField]:
    """The fields by name, most used first."""
    parameters = {f"{step}_{name}": (step, name) for step in STEPS for name in STEP_PARAMS[step].model_fields}
    own_fields = {
        BASE: FormField(str, "pocket", "Base model: a name in models/ or the path of a spec .yaml"),
        OVERRIDES: FormField(str, "{}", 'Any other parameter, as JSON: {"gate_leakage_max": 0.2}; they win'),
        KEY: FormField(str, DEFAULT_KEY, "Key URI under which every artifact of the run is sealed"),
    }
    return {name: own_fields[name] if name in own_fields else _field(*parameters[name]) for name in NAMES}


def _field(step: str, name: str) -> FormField:
    model = STEP_PARAMS[step]
    field, description = model.model_fields[name], help_of(model, name)
    if step not in RECIPE_STEPS:
        return FormField(kind_of(field), field.default, description)
    unset = _left_to_base_value(step, name)
    shown_default = "empty" if unset == "" else f"{unset:g}"
    return FormField(
        kind_of(field),
        unset,
        description if f"; {shown_default}: " in description else f"{description}; {shown_default}: as the base says",
        True,
    )


def _left_to_base_value(step: str, name: str) -> Any:
    """A value of the field's type that is no valid value of the parameter."""
    kind = kind_of(STEP_PARAMS[step].model_fields[name])
    if kind is str:
        return ""
    for value in (kind(0), kind(-1)):
        try:
            STEP_PARAMS[step](**{name: value})
        except InputError:
            return value
    raise TypeError(f"{step}.{name} has no value to spare: it cannot be a field of the form")


def fill_form(given: Mapping[str, Any], *, key: str) -> dict[str, Any]:
    """The form with these flat values: each in its field, or in `overrides`. Raises InputError for what a server would refuse."""
    fields = form()
    others = {name: value for name, value in given.items() if name not in fields}
    values = {name: field.kind(given.get(name, field.default)) for name, field in fields.items()}
    values |= {OVERRIDES: json.dumps(others, ensure_ascii=False), KEY: key}
    if len(values[OVERRIDES]) > OVERRIDES_MAX:
        raise InputError(
            f"{len(others)} parameters that the form has no field for take {len(values[OVERRIDES])} characters, and {OVERRIDES_MAX} "
            "are allowed: change fewer, or put them into the base's recipe"
        )
    if (length := sum(len(str(value)) for value in values.values())) > VALUES_MAX:
        raise InputError(
            f"the run's values take {length} characters, and {VALUES_MAX} are allowed: shorten the longest"
        )
    return {name: check_text(name, value) if isinstance(value, str) else value for name, value in values.items()}


def read_form(values: Mapping[str, Any]) -> tuple[Layer, Layer]:
    """A form as two layers: the fields that do not leave the value to the base, and `overrides` over them."""
    fields = form()
    for name, value in values.items():
        check_text(name, str(value))
    if len(values[OVERRIDES]) > OVERRIDES_MAX:
        raise InputError(f"overrides: {len(values[OVERRIDES])} characters; {OVERRIDES_MAX} are allowed")
    fields_set = {name: value for name, value in values.items() if name not in (OVERRIDES, KEY)}
    fields_set = {
        name: v for name, v in fields_set.items() if not (fields[name].left_to_base and v == fields[name].default)
    }
    try:
        overrides = json.loads(values[OVERRIDES] or "{}")
    except ValueError as error:
        raise InputError(f'overrides: not JSON ({error}); write {{"gate_leakage_max": 0.2}}') from None
    if not isinstance(overrides, dict):
        raise InputError('overrides: write one JSON object, such as {"gate_leakage_max": 0.2}')
    return unflatten(fields_set), unflatten(overrides)
