"""The score of a set of photos, and advice that would raise it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from photoflux.params import ValidateParams
from photoflux.photos.rules import SET, WARN, Row, Rule

NAMES_SHOWN = 4


def score_parts(whole: Row, *, params: ValidateParams) -> list[dict[str, Any]]:
    """The 0-100 score in four parts: `part`, `points`, `of`, `why`. More good photos and more variety score
    higher.
    """
    usable = whole["usable"]
    flawed = usable - whole["flawless"]
    views = _ramp(whole["closeness"], zero=0.9, one=0.45) if usable > 1 else 0.0
    backgrounds = min(1.0, whole["backgrounds"] / params.backgrounds_min)
    return [
        _part(
            "number",
            30,
            usable / params.advised_min,
            f"{usable} good of {whole['files']}; full from {params.advised_min}",
        ),
        _part("quality", 30, (usable - flawed / 2) / max(1, usable), f"{flawed} of {usable} with a reservation"),
        _part("views", 20, views, f"mean likeness to the nearest other photo {whole['closeness']:.2f}"),
        _part(
            "backgrounds",
            20,
            backgrounds,
            f"{whole['backgrounds']} kinds; full from {params.backgrounds_min}",
        ),
    ]


def advice_for(
    rules: Sequence[Rule], broken: Mapping[str, Sequence[Rule]], set_broken: Sequence[Rule], whole: Row
) -> list[str]:
    """One sentence per thing to do, the set's first; a warning is left out where a stricter rule says it."""
    urgent = [rule for rule in set_broken if rule.severity != WARN]  # variety can wait until there are photos
    lines = [_filled(rule, whole, []) for rule in urgent or set_broken]
    for rule in rules:
        concerned = [name for name, found in broken.items() if rule in found and not _is_covered(rule, found)]
        if rule.level != SET and concerned:
            lines.append(_filled(rule, whole, concerned))
    return [line for line in dict.fromkeys(lines) if line]


def _filled(rule: Rule, whole: Row, concerned: Sequence[str]) -> str:
    values = {**whole, "low": rule.low, "high": rule.high}
    return rule.advice.format(**{**values, **({"files": names(concerned)} if concerned else {})})


def _is_covered(rule: Rule, found: Sequence[Rule]) -> bool:
    """Whether a rejected photo's advice comes from another rule: it is replaced anyway, whatever else is doubtful."""
    rejecting = sorted(
        (other for other in found if other.severity != WARN), key=lambda other: other.code == "duplicate"
    )
    return bool(rejecting) and rule is not rejecting[0]


def names(files: Sequence[str]) -> str:
    """`a.jpg, b.jpg and 3 more`."""
    shown, rest = list(files[:NAMES_SHOWN]), len(files) - NAMES_SHOWN
    if rest > 0:
        return f"{', '.join(shown)} and {rest} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else ""


def _part(name: str, of: int, share: float, why: str) -> dict[str, Any]:
    return {"part": name, "points": round(of * min(1.0, max(0.0, share)), 1), "of": of, "why": why}


def _ramp(value: float, *, zero: float, one: float) -> float:
    return min(1.0, max(0.0, (zero - value) / (zero - one)))
