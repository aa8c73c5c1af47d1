"""A sign-off: a person answers for what the gate left open, each finding by name.

Only afterwards, with the findings at hand: what nobody has seen yet, nobody can answer for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from photoflux.errors import InputError

REASON_LEAST = 10


@dataclass(frozen=True)
class SignOff:
    """Who answers, why, and for which rules of the gate: each that is open, by name. Raises InputError for one that says nothing."""

    by: str
    reason: str
    findings: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.by.strip():
            raise InputError("a sign-off needs the name of who signs")
        if len(self.reason.strip()) < REASON_LEAST:
            raise InputError(
                f"the reason is too short: say in at least {REASON_LEAST} characters why this model may be used"
            )


def open_findings(decision: Mapping[str, Any]) -> dict[str, str]:
    """The rules that a decision leaves open, and what each says."""
    return {str(r["rule"]): str(r["message"]) for r in decision["reasons"] if r["verdict"] != "PASS"}


def check_signed(decision: Mapping[str, Any], sign_off: SignOff) -> None:
    """Raises InputError unless the sign-off names exactly what is open."""
    found = open_findings(decision)
    if missing := sorted(found.keys() - set(sign_off.findings)):
        told = "; ".join(found[rule] for rule in missing)
        raise InputError(f"the sign-off does not name what it answers for: {told}")
    if other := sorted(set(sign_off.findings) - found.keys()):
        raise InputError(f"'{other[0]}' is not open in this decision; open is {', '.join(sorted(found))}")
