"""The rule table: what a photo and a set of photos must satisfy, and what to say where they do not.

It decides at the API, photo by photo and in milliseconds. In the pipeline the suites of `suite.py` decide, in the words of
this table; a test holds both equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from photoflux.params import ValidateParams

Row = Mapping[str, Any]

REJECT, WARN = "reject", "warn"
FILE, PHOTO, SET = "file", "photo", "set"


@dataclass(frozen=True)
class Rule:
    """A column, what its values may be (`low` ≤ value ≤ `high`, or one of `allowed`), and what to say
    otherwise.

    `message` is filled from the row and the bounds; `advice` too, with `files`, the names of the photos
    concerned.
    """

    code: str
    level: str
    severity: str
    column: str
    message: str
    low: float | None = None
    high: float | None = None
    allowed: tuple[str, ...] | None = None
    advice: str = ""

    def holds(self, value: Any) -> bool:
        if self.allowed is not None:
            return value in self.allowed
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def message_for(self, row: Row) -> str:
        return self.message.format(**{**row, "low": self.low, "high": self.high})


UNMEASURED = Rule("unmeasured", PHOTO, REJECT, "", "could not be measured: export the photo again as JPEG or PNG")
UNMEASURED_SET = Rule("unmeasured_set", SET, REJECT, "", "the photos could not be measured together: import them again")
"""Broken by a decoded photo, or a set, with an empty measure. They are no part of the table, since they apply to every column."""


def rule_table(params: ValidateParams) -> tuple[Rule, ...]:
    """Every rule, bounds taken from the parameters, in the order in which reasons are listed."""
    return (
        *_file_rules(),
        *_size_rules(params),
        *_sharpness_rules(params),
        *_light_rules(params),
        *_set_rules(params),
    )


def _file_rules() -> tuple[Rule, ...]:
    return (
        Rule("decodable", FILE, REJECT, "problem", "{problem_message}", allowed=("",),
             advice="Replace what could not be read: {files}."),
        Rule("duplicate", PHOTO, REJECT, "duplicate_of", allowed=("",),
             message="same as {duplicate_of}{duplicate_note}: one of them is enough",
             advice="Fewer near-copies: new views would help more than {files}."),
    )  # fmt: skip


def _size_rules(params: ValidateParams) -> tuple[Rule, ...]:
    return (
        Rule("too_small", PHOTO, REJECT, "short_side_px", low=params.short_side_min_px,
             message="too small: {short_side_px} px on its short side, {low} are needed; use the original",
             advice="Send the originals, not previews, of {files}."),
        Rule("small", PHOTO, WARN, "short_side_px", low=params.short_side_advised_px,
             message="small: {short_side_px} px on its short side; {low} or more keep more detail",
             advice="Use larger originals where there are any: short side under {low} px in {files}."),
        Rule("too_narrow", PHOTO, REJECT, "aspect", low=params.aspect_min,
             message="too long and narrow: crop it nearer to a square around the subject"),
        Rule("narrow", PHOTO, WARN, "aspect", low=params.aspect_advised,
             message="long and narrow: only a square part of it is used"),
        Rule("enlarged", PHOTO, WARN, "detail", low=params.detail_min,
             message="looks enlarged from a smaller picture: use the original"),
    )  # fmt: skip


def _sharpness_rules(params: ValidateParams) -> tuple[Rule, ...]:
    return (
        Rule("blurry", PHOTO, REJECT, "sharpness", low=params.sharpness_min,
             message="blurry: retake it with more light, a steadier hand and the focus on the subject",
             advice="Retake in focus: {files}."),
        Rule("soft", PHOTO, WARN, "sharpness", low=params.sharpness_advised,
             message="a little soft: retake it if you can, with the focus on the subject",
             advice="Retake if you can, with the focus on the subject: {files}."),
        Rule("shaken", PHOTO, WARN, "reblur", high=params.reblur_max,
             message="perhaps shaken or out of focus: look at it at full size, retake it if it is",
             advice="Look at {files} at full size: shaken or out-of-focus photos teach blur."),
        Rule("grainy", PHOTO, WARN, "sharpness_trust", low=params.sharpness_trust_min,
             message="so grainy that its sharpness cannot be judged: retake it with more light",
             advice="More light: grain hides the detail in {files}."),
    )  # fmt: skip


def _light_rules(params: ValidateParams) -> tuple[Rule, ...]:
    return (
        Rule("too_dark", PHOTO, REJECT, "luma_p99", low=params.bright_p99_min,
             message="too dark: retake it with more light", advice="More light: {files} cannot be made out."),
        Rule("too_light", PHOTO, REJECT, "luma_p1", high=params.dark_p1_max,
             message="too light: retake it with less exposure", advice="Less exposure: nothing but white in {files}."),
        Rule("burnt_out", PHOTO, WARN, "clipped_high", high=params.clipped_high_max,
             message="large parts are pure white: retake it with less exposure if the subject is among them"),
        Rule("lost_shadows", PHOTO, WARN, "clipped_low", high=params.clipped_low_max,
             message="large parts are pure black: retake it with more light if the subject is among them",
             advice="More light: large parts of {files} are black."),
        Rule("empty", PHOTO, REJECT, "contrast", low=params.contrast_min,
             message="shows next to nothing: replace it with a photo of the subject"),
    )  # fmt: skip


def _set_rules(params: ValidateParams) -> tuple[Rule, ...]:
    full = f"{params.advised_min} to {params.advised_max} good ones work best"
    return (
        Rule("too_few", SET, REJECT, "usable", low=params.min_photos,
             message="only {usable} of {files} photos can be used and {low} are needed",
             advice=f"Add {{missing}} more good photos: {{low}} are needed, {full}."),
        Rule("few", SET, WARN, "usable", low=params.advised_min, message="{usable} good photos",
             advice=f"Add more photos: {{usable}} will do, {full}."),
        Rule("too_many", SET, REJECT, "usable", high=params.max_photos,
             message="{usable} photos are more than the {high} that are taken", advice="Choose the best 20."),
        Rule("many", SET, WARN, "usable", high=params.advised_max, message="{usable} good photos",
             advice="Keep the best {high}: more than that add little and take longer."),
        Rule("near_copies", SET, WARN, "near_copy_share", high=params.duplicate_share_max,
             message="{near_copies} of {files} photos repeat others"),
        Rule("one_view", SET, WARN, "closeness", high=params.closeness_max,
             message="the photos are framed alike (closeness {closeness:.2f})",
             advice="More angles: these are framed alike; walk around the subject, come closer, step back."),
        Rule("backgrounds", SET, WARN, "backgrounds", low=params.backgrounds_min,
             message="{backgrounds} kinds of background",
             advice="More backgrounds: {backgrounds} seen, {low} or more are better, because what never changes is "
             "learnt with the subject."),
        Rule("dim", SET, WARN, "dim_share", high=0.5, message="most photos are dim",
             advice="More light: most photos are dim; daylight shows colours and surfaces best."),
    )  # fmt: skip


def broken_rules(row: Row, rules: Sequence[Rule]) -> list[Rule]:
    """The file and photo rules that a row breaks; a photo that cannot be decoded breaks only that one."""
    files = [rule for rule in rules if rule.level == FILE and not rule.holds(row[rule.column])]
    if files:
        return files
    return _broken(row, [rule for rule in rules if rule.level == PHOTO], empty=UNMEASURED)


def broken_set_rules(whole: Row, rules: Sequence[Rule]) -> list[Rule]:
    """The rules that a set breaks, by its row."""
    return _broken(whole, [rule for rule in rules if rule.level == SET], empty=UNMEASURED_SET)


def _broken(row: Row, rules: Sequence[Rule], *, empty: Rule) -> list[Rule]:
    found = [rule for rule in rules if not is_empty(row[rule.column]) and not rule.holds(row[rule.column])]
    return found + [empty] * any(is_empty(row[rule.column]) for rule in rules)


def is_empty(value: Any) -> bool:
    """Whether a measure is missing: None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def status_of(found: Sequence[Rule]) -> str:
    """`reject`, `warn` or `ok`, by the severest rule broken."""
    severities = {rule.severity for rule in found}
    return REJECT if REJECT in severities else WARN if WARN in severities else "ok"
