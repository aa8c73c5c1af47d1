"""The pipeline's parameters: every field of every step's block in params.yaml, as `<step>_<field>`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components._fields import scalar_fields
from photoflux import params
from photoflux.errors import InputError
from pipelines.graph import Spec, parameters

ROOT = Path(__file__).resolve().parent.parent
STEPS = ("import_photos", "validate", "augment", "finetune", "evaluate", "audit", "gate", "register")


@dataclass(frozen=True)
class Flat:
    """One pipeline parameter and the field it stands for."""

    step: str
    field: str
    kind: type
    help: str


def flat_parameters() -> dict[str, Flat]:
    """Every pipeline parameter by name, in the order of the steps."""
    return {
        f"{step}_{field.name}": Flat(step, field.name, kind, field.metadata["help"])
        for step in STEPS
        for field, kind in scalar_fields(params.STEP_PARAMS[step])
    }


def defaults(path: Path = ROOT / "params.yaml") -> dict[str, Any]:
    """Every pipeline parameter's default, from params.yaml."""
    return _flat({step: params.load_params(step, path=path) for step in STEPS})


def resolve(given: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
    """The compiled defaults with `given` over them, typed and checked as the steps will check them.

    Raises InputError for an unknown name, a value of the wrong type or one out of range, or a spec of older parameters.
    """
    values = parameters(spec)
    if missing := sorted(flat_parameters().keys() - values.keys()):
        raise InputError(
            f"the compiled pipeline does not know {missing[0]}: it is older than the code; run `make compile`"
        )
    for name in given.keys() - values.keys():
        near = difflib.get_close_matches(name, values, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else "params.yaml lists them; write <step>_<name>"
        raise InputError(f"{name}: no such parameter; {hint}")
    values |= given
    blocks: dict[str, dict[str, Any]] = {step: {} for step in STEPS}
    for name, flat in flat_parameters().items():
        blocks[flat.step][flat.field] = values.pop(name)
    checked = {step: params.make_params(step, block) for step, block in blocks.items()}
    return {name: params.check_text(name, str(value)) for name, value in values.items()} | _flat(checked)


def _flat(blocks: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{step}_{name}": value for step, block in blocks.items() for name, value in params.as_dict(block).items()}
