"""What all parameter models share: how loose values are read, and how a mistake is told."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from photoflux.errors import InputError

FILLED_IN = ("{{", "/kfp-workspace")
"""What Kubeflow, Vertex and Argo look for in the texts of a run: `{{$}}` becomes a step's whole input, its key URI with it."""
HELD = "held"
"""Type of the error of a text that holds one of these."""


class Params(BaseModel):
    """The parameters of one step: flat typed scalars, which read the same as text, as JSON and as YAML.

    Raises InputError for whatever is wrong, a sentence for each mistake: the field, the value, what is allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)
    step: ClassVar[str]

    @field_validator("*", mode="before")
    @classmethod
    def _read_strictly(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and kind_of(cls.model_fields[str(info.field_name)]) is not bool:
            raise PydanticCustomError("bool", "YAML's `on` and `yes` are no numbers")
        return _unfilled(value) if isinstance(value, str) else value

    if not TYPE_CHECKING:  # type checkers keep the signature that is made of the fields

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                told = [_sentence(type(self), one) for one in error.errors(include_url=False, include_context=False)]
                raise InputError(" ".join(told)) from None

    @classmethod
    def from_block(cls, block: str) -> Self:
        """The parameters out of a step's block: one JSON object, as `block` wrote it."""
        return cls(**json.loads(block))

    def block(self) -> str:
        """The parameters as one JSON object, in which no orchestrator finds anything to replace."""
        return json.dumps(self.model_dump(), ensure_ascii=False).replace("{{", r"{\u007b")

    def replace(self, **changes: Any) -> Self:
        """These parameters but for some, checked anew."""
        return type(self)(**{**self.model_dump(), **changes})


def matching(pattern: str, told: str) -> AfterValidator:
    """A check of a text field; `told` says what to write instead."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{told}.")
        return text

    return AfterValidator(check)


def check_text(name: str, text: str) -> str:
    """The text itself. Raises InputError for one that an orchestrator would replace parts of."""
    try:
        return _unfilled(text)
    except PydanticCustomError as error:
        raise InputError(f"{name}: {error.message()}") from None


def _unfilled(text: str) -> str:
    for replaced in FILLED_IN:
        if replaced in text:
            told = f"holds '{replaced}', which a pipeline replaces by what it knows; write it without"
            raise PydanticCustomError(HELD, "{told}", {"told": told})
    return text


def as_dict(params: Params) -> dict[str, Any]:
    """A params object as plain values, for manifests and lineage."""
    return params.model_dump()


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The words a field is limited to, if it is."""
    return get_args(field.annotation) if get_origin(field.annotation) is Literal else ()


def limits(field: FieldInfo) -> tuple[str, str] | None:
    """The least and the largest value of a number field, as people write them."""
    low = next((m.ge for m in field.metadata if isinstance(m, Ge)), None)
    high = next((m.le for m in field.metadata if isinstance(m, Le)), None)
    return None if low is None or high is None else (_number(low), _number(high))


def kind_of(field: FieldInfo) -> type:
    """str, int, float or bool."""
    return str if choices(field) else cast(type, field.annotation)


def allowed(field: FieldInfo) -> str:
    """What a field may be, in a few words; empty where its sentence says it."""
    if words := choices(field):
        return ", ".join(words)
    return " to ".join(limits(field) or ())


def help_of(model: type[Params], name: str) -> str:
    """A field's sentence with what is allowed."""
    field = model.model_fields[name]
    told, words = allowed(field), choices(field)
    if not told or (words and all(word in str(field.description) for word in words)):
        return str(field.description)
    return f"{field.description} ({told})"


def _number(value: Any) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _sentence(model: type[Params], error: ErrorDetails) -> str:
    """One mistake of pydantic's as our users read it."""
    name, value = str(error["loc"][0]) if error["loc"] else "", error["input"]
    where, field = f"{model.step}.{name}", model.model_fields.get(name)
    if error["type"] == "extra_forbidden":
        return f"{model.step}: unknown parameter '{name}'; known are {', '.join(sorted(model.model_fields))}"
    if field is None:  # of several fields together
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == HELD:
        return f"{where}: {error['msg']}"
    if error["type"] == "value_error":
        return f"{where} is {value!r}: {error['msg'].removeprefix('Value error, ')}"
    if error["type"] == "literal_error":
        return f"{where} is {value!r}: choose one of {', '.join(choices(field))}."
    if error["type"] in ("greater_than_equal", "less_than_equal"):
        low, high = limits(field) or ("", "")
        return f"{where} is {value}: choose a value from {low} to {high}."
    return f"{where}: '{value}' is not a valid {kind_of(field).__name__}"
