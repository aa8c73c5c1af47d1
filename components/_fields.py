"""A parameter block as a form: its fields with their types. No kfp in here: callers without it ask too."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

SCALARS = (str, int, float, bool)


def scalar_fields(block: type | None) -> list[tuple[dataclasses.Field[Any], type]]:
    """The fields of a parameter block with their types. Raises TypeError for one that is no plain scalar."""
    if block is None:
        return []
    hints = typing.get_type_hints(block)
    typed = [(field, hints[field.name]) for field in dataclasses.fields(block)]
    for field, kind in typed:
        if kind not in SCALARS:
            where = f"{block.__name__}.{field.name}"
            raise TypeError(f"{where} is {kind}: a pipeline parameter is str, int, float or bool")
    return typed
