"""What goes over the wire: strict, bounded, and without a field that is not meant."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, overload

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

from photoflux.params import FORMATS, STYLES

Item = TypeVar("Item")
Id = Annotated[str, Field(pattern="^[0-9a-f]{32}$", examples=["3f2b8c1d9e4a4f6db0c7a1e2d3f4a5b6"])]


def _written(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds")


Time = Annotated[
    AwareDatetime,
    PlainSerializer(_written),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-11-27T05:59:24.916+00:00"]}),
]
"""Written as ISO 8601 in UTC with milliseconds."""


def _sayable(text: str) -> str:
    """Words, without control characters that no keyboard types."""
    if any((ord(letter) < 32 and letter not in "\n\t") or ord(letter) == 127 for letter in text):
        raise ValueError("holds control characters; write words")
    if not text.strip():
        raise ValueError("is empty; say something")
    text.encode()  # a lone surrogate is no text
    return text


Words = Annotated[str, AfterValidator(_sayable)]
Prompt = Annotated[Words, Field(min_length=1, max_length=500, examples=["a photo of sks dog on the beach"])]
Name = Annotated[Words, Field(min_length=1, max_length=80, examples=["Rex"])]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Role = Literal["user", "operator", "auditor"]
Size = Annotated[str, Field(pattern="^[0-9]{2,4}x[0-9]{2,4}$", examples=["512x512"])]
Format = Literal[FORMATS]  # type: ignore[valid-type]
Style = Literal[STYLES]  # type: ignore[valid-type]
State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Depicts = Literal["me", "consenting_adult", "no_person"]
StepState = Literal["queued", "running", "succeeded", "reused", "failed", "skipped", "cancelled"]


class Asked(BaseModel):
    """What clients send: nothing is guessed, and nothing is ignored."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Listed(BaseModel, Generic[Item]):
    """One page of a list."""

    items: list[Item]
    next: str | None = Field(description="`cursor` of the next page; null at the end")


class Failure(BaseModel):
    """Why something came to nothing."""

    code: str = Field(description="for programs")
    message: str = Field(description="for people: what happened, and what to do about it")


class RunFailure(Failure):
    """Why a run made no model.

    `cancelled`: it was cancelled, its subject deleted or a consent withdrawn. `refused`: the check let no model through.
    `too-long`: it took longer than runs may. `killed`: its processes were killed again and again. `not-started`: the
    pipeline could not be started. `failed`: a step failed, and says why. `internal`: something went wrong here.
    """

    code: Literal["cancelled", "refused", "too-long", "killed", "not-started", "failed", "internal"]


class GenerationFailure(Failure):
    """Why there are no pictures.

    `cancelled`: a consent was withdrawn or the run that it waited for cancelled. `refused`: the engine did not take the request.
    `too-late`: it could not be drawn in time. `unsafe-image`: what was drawn is not given out. `model-missing`: the model was
    deleted. `no-model`: the run that it waited for made none. `killed`: its worker was killed again and again.
    `internal`: something went wrong here.
    """

    code: Literal["cancelled", "refused", "too-late", "unsafe-image", "model-missing", "no-model", "killed", "internal"]


class ExportFailure(Failure):
    """Why there is no ZIP.

    `cancelled`: the account was closed. `killed`: its worker was killed again and again. `internal`: something went wrong here.
    """

    code: Literal["cancelled", "killed", "internal"]


SomeFailure = TypeVar("SomeFailure", bound=Failure)


def failure(kind: type[SomeFailure], code: str | None, message: str | None) -> SomeFailure | None:
    """What is shown of a row's `error_code` and `error`; None without a message.

    A code that this program does not know, since an older or a newer one set it, is shown as `internal`.
    """
    if message is None:
        return None
    known = get_args(kind.model_fields["code"].annotation)
    return kind(code=code if code and code in known else "internal", message=message)


class Reason(BaseModel):
    code: str = Field(examples=["blurry"])
    message: str = Field(examples=["blurry: retake it with more light, a steadier hand and the focus on the subject"])


class PhotoShown(BaseModel):
    """An uploaded photo and what is said of it."""

    id: str | None = Field(description="null for a file that is no photo and was not kept")
    name: str
    status: Literal["ok", "warn", "reject"]
    reasons: list[Reason]
    width: int
    height: int
    thumbnail: str | None = Field(description="where its preview is loaded from")


class SetShown(BaseModel):
    """What is said of a subject's photos as a set."""

    verdict: Literal["ok", "warn", "reject"]
    score: int = Field(description="0 to 100")
    advice: list[str]


class Uploaded(BaseModel):
    photos: list[PhotoShown] = Field(description="in the order in which they were sent")
    set: SetShown


class SubjectAsked(Asked):
    """A new subject."""

    class_noun: Annotated[str, Field(pattern="^[a-z][a-z -]{0,31}$", examples=["dog"])]
    depicts: Annotated[Depicts, Field(description="who can be seen: nobody, you, or an adult who agreed")]
    name: Name | None = None


class SubjectShown(BaseModel):
    id: str
    class_noun: str
    depicts: Depicts
    name: str
    trigger: str = Field(description="the word that stands for it in prompts, before the class noun", examples=["sks"])
    photos: int
    champion: str | None = Field(description="the model that draws; null before the first run has passed")
    created: Time


def _begun(at: object) -> object:
    """A step's record has an empty time until it is known."""
    return at or None


class StepShown(BaseModel):
    """A step of a run."""

    name: str
    title: str
    state: StepState
    started: Annotated[Time | None, BeforeValidator(_begun)] = Field(description="null until it has begun")
    ended: Annotated[Time | None, BeforeValidator(_begun)] = Field(description="null until it has ended")
    progress: str = Field(description="what it last said of itself while it runs; else empty")


class RunAsked(Asked):
    """A fine-tuning of a subject."""

    subject: Id
    params: Annotated[dict[str, int | float | str], Field(max_length=16)] = Field(
        default={},
        description="pipeline parameters to change, such as finetune_steps",
        examples=[{"finetune_steps": 60}],
    )


class RunShown(BaseModel):
    id: str
    subject: str
    state: State
    steps: list[StepShown]
    error: RunFailure | None
    estimate: dict[str, float]
    actual: dict[str, Any] | None
    model: str | None
    created: Time
    finished: Time | None


class GenerateAsked(Asked):
    """Pictures to draw."""

    subject: Id
    prompt: Prompt
    n: Annotated[int, Field(ge=1, le=8)] = 1
    seed: Annotated[int, Field(ge=0, lt=2**31, description="the same seed draws the same picture")] = 0
    size: Size = "512x512"
    format: Format = "png"
    style: Style = "none"


class ImageShown(BaseModel):
    position: int
    seed: int
    sha256: str
    url: str = Field(description="`?size=256x256&format=webp` gives it in another size or format")


class ResultShown(BaseModel):
    """A generation and its pictures."""

    id: str
    subject: str
    state: State
    prompt: str
    n: int
    seed: int
    size: str
    format: Format
    style: Style
    model: str | None
    run: str | None = Field(description="the fine-tuning it waits for, or waited for")
    error: GenerationFailure | None
    images: list[ImageShown]
    created: Time
    finished: Time | None


class FeedbackAsked(Asked):
    rating: Annotated[int, Field(ge=1, le=5)]
    reason: Literal["likeness", "prompt", "quality", "bias", "offensive", "other"] | None = None
    text: Annotated[Words, Field(max_length=1000)] | None = None


class ModelShown(BaseModel):
    """A registered model of a subject."""

    id: str
    subject: str
    run: str
    number: int
    verdict: str
    champion: bool
    metrics: dict[str, float]
    adapter_sha256: str
    reports: dict[str, str] = Field(description="pages by step")
    card: str = Field(description="its card, as Markdown")
    created: Time


class WordingShown(BaseModel):
    """A text that is agreed to, or shown."""

    purpose: str
    version: str
    sha256: str
    text: str
    agree: bool = Field(description="whether it is agreed to, or only shown")


class ConsentAsked(Asked):
    purpose: Literal["terms", "likeness"]
    sha256: Sha256


class ConsentShown(BaseModel):
    purpose: str
    version: str
    sha256: str
    granted: Time


@overload
def utc(at_ms: int) -> datetime: ...
@overload
def utc(at_ms: int | None) -> datetime | None: ...
def utc(at_ms: int | None) -> datetime | None:
    """The time so many milliseconds after 1970 began, in UTC."""
    return None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC)


def iso(at_ms: int | None) -> str | None:
    """Milliseconds since 1970 as ISO 8601."""
    at = utc(at_ms)
    return None if at is None else _written(at)
