"""The base class of all parameter models: how values are read, and how errors are worded."""

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

PLACEHOLDERS = ("{{", "/kfp-workspace")
"""Placeholders that Kubeflow, Vertex and Argo replace in a run's texts: `{{$}}` by a step's whole input, key URI included."""
PLACEHOLDER_ERROR = "held"
"""Type of the error of a text with a placeholder."""


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
        return _check_placeholders(value) if isinstance(value, str) else value

    if not TYPE_CHECKING:  # so that type checkers see the signature that pydantic makes of the fields

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                messages = [
                    _sentence(type(self), one) for one in error.errors(include_url=False, include_context=False)
                ]
                raise InputError(" ".join(messages)) from None

    @classmethod
    def from_block(cls, block: str) -> Self:
        """The parameters from a step's block, a JSON object as `block` writes it."""
        return cls(**json.loads(block))

    def block(self) -> str:
        """The parameters as one JSON object without placeholders of orchestrators."""
        return json.dumps(self.model_dump(), ensure_ascii=False).replace("{{", r"{\u007b")

    def replace(self, **changes: Any) -> Self:
        """A copy with some parameters changed, validated again."""
        return type(self)(**{**self.model_dump(), **changes})


def matching(pattern: str, message: str) -> AfterValidator:
    """A check of a text field; `message` says what to write instead."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{message}.")
        return text

    return AfterValidator(check)


def check_text(name: str, text: str) -> str:
    """The text itself. Raises InputError for one with a placeholder of an orchestrator."""
    try:
        return _check_placeholders(text)
    except PydanticCustomError as error:
        raise InputError(f"{name}: {error.message()}") from None


def _check_placeholders(text: str) -> str:
    for placeholder in PLACEHOLDERS:
        if placeholder in text:
            message = f"holds '{placeholder}', which a pipeline replaces by what it knows; write it without"
            raise PydanticCustomError(PLACEHOLDER_ERROR, "{message}", {"message": message})
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
    """The allowed values of a field, in a few words; empty where it has no range or choices."""
    if words := choices(field):
        return ", ".join(words)
    return " to ".join(limits(field) or ())


def help_of(model: type[Params], name: str) -> str:
    """A field's sentence with what is allowed."""
    field = model.model_fields[name]
    values, words = allowed(field), choices(field)
    if not values or (words and all(word in str(field.description) for word in words)):
        return str(field.description)
    return f"{field.description} ({values})"


def _number(value: Any) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _sentence(model: type[Params], error: ErrorDetails) -> str:
    """One of pydantic's errors as a sentence for people."""
    name, value = str(error["loc"][0]) if error["loc"] else "", error["input"]
    where, field = f"{model.step}.{name}", model.model_fields.get(name)
    if error["type"] == "extra_forbidden":
        return f"{model.step}: unknown parameter '{name}'; known are {', '.join(sorted(model.model_fields))}"
    if field is None:  # of several fields together
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == PLACEHOLDER_ERROR:
        return f"{where}: {error['msg']}"
    if error["type"] == "value_error":
        return f"{where} is {value!r}: {error['msg'].removeprefix('Value error, ')}"
    if error["type"] == "literal_error":
        return f"{where} is {value!r}: choose one of {', '.join(choices(field))}."
    if error["type"] in ("greater_than_equal", "less_than_equal"):
        low, high = limits(field) or ("", "")
        return f"{where} is {value}: choose a value from {low} to {high}."
    return f"{where}: '{value}' is not a valid {kind_of(field).__name__}"
