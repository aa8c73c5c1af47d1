"""The verdict on a set of photos from the rules that it breaks: status, score and advice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from photoflux.params import ValidateParams
from photoflux.photos.rules import REJECT, WARN, Row, Rule, broken_rules, broken_set_rules, rule_table, status_of
from photoflux.photos.score import advice_for, score_parts

UNUSABLE_SCORE_MAX = 40


@dataclass(frozen=True)
class Verdict:
    """What was decided. `failures` holds (file, rule code) for photos and ("", rule code) for the set."""

    verdict: str
    score: int
    advice: list[str]
    photos: list[dict[str, Any]]
    failures: frozenset[tuple[str, str]] = frozenset()
    whole: dict[str, Any] = field(default_factory=dict)
    parts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def accepted(self) -> list[str]:
        return [photo["file"] for photo in self.photos if photo["status"] != REJECT]

    def as_json(self) -> dict[str, Any]:
        return {"verdict": self.verdict, "score": self.score, "advice": self.advice, "photos": self.photos}


def judge(photos: Sequence[Row], *, params: ValidateParams) -> Verdict:
    """Check a photo table, as `photo_table` makes it, against the rule table; pure and quick."""
    rules = rule_table(params)
    broken = {row["file"]: broken_rules(row, rules) for row in photos}
    return make_verdict(
        photos, broken, rules=rules, judge_set=lambda whole: broken_set_rules(whole, rules), params=params
    )


def make_verdict(
    photos: Sequence[Row],
    broken: Mapping[str, Sequence[Rule]],
    *,
    rules: Sequence[Rule],
    judge_set: Callable[[Row], Sequence[Rule]],
    params: ValidateParams,
) -> Verdict:
    """The verdict from the rules that each photo breaks, and those that the usable photos break as a set.

    `rules` are those that photos were checked against, in the order in which advice is given; `judge_set` gives the broken
    rules for the set's row, which exists once it is known which photos can be used.
    """
    judged = [_photo_entry(row, broken[row["file"]]) for row in photos]
    whole = whole_row(photos, judged)
    set_broken = judge_set(whole)
    whole["missing"] = _missing(whole, set_broken)
    rejected = any(rule.severity == REJECT for rule in set_broken)
    parts = score_parts(whole, params=params)
    score = round(sum(part["points"] for part in parts))
    doubtful = set_broken or any(photo["status"] != "ok" for photo in judged)
    return Verdict(
        verdict=REJECT if rejected else WARN if doubtful else "ok",
        score=min(score, UNUSABLE_SCORE_MAX) if rejected else score,
        advice=advice_for(rules, broken, set_broken, whole),
        photos=judged,
        failures=frozenset(
            [(name, rule.code) for name, found in broken.items() for rule in found]
            + [("", rule.code) for rule in set_broken]
        ),
        whole=whole,
        parts=parts,
    )


def whole_row(photos: Sequence[Row], judged: Sequence[Row]) -> dict[str, Any]:
    """The set in one row, from its photos: counts, shares and variety of what can be used."""
    usable = [row for row, photo in zip(photos, judged, strict=True) if photo["status"] != REJECT]
    copies = sum(bool(row["duplicate_of"]) for row in photos)
    return {
        "files": len(photos),
        "usable": len(usable),
        "flawless": sum(photo["status"] == "ok" for photo in judged),
        "near_copies": copies,
        "near_copy_share": copies / max(1, len(photos)),
        "closeness": _mean([row["closest"] for row in usable]),
        "backgrounds": len({row["background"] for row in usable}),
        "dim_share": _mean([float(row["luma_p50"] < 0.2) for row in usable]),
    }


def _missing(whole: Row, set_broken: Sequence[Rule]) -> int:
    """How many more good photos the set needs, by the strictest rule that it breaks."""
    needed = [rule.low for rule in set_broken if rule.column == "usable" and rule.severity == REJECT and rule.low]
    return max([0, *(math.ceil(low - whole["usable"]) for low in needed)])


def _photo_entry(row: Row, found: Sequence[Rule]) -> dict[str, Any]:
    reported = [rule for rule in found if rule.severity == REJECT] or found  # a rejected photo gets no warnings
    reported = sorted(reported, key=lambda rule: rule.code == "duplicate")
    return {
        "file": row["file"],
        "status": status_of(found),
        "reasons": [{"code": row["problem"] or rule.code, "message": rule.message_for(row)} for rule in reported],
        "duplicate_of": row["duplicate_of"] or None,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
