"""Sign-offs: a person takes responsibility for the findings that the gate left open, each by name.

Possible only after the gate: a person cannot answer for findings that nobody has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from photoflux.errors import InputError

REASON_MIN_CHARS = 10


@dataclass(frozen=True)
class SignOff:
    """Who signs, why, and for which open rules of the gate. Raises InputError for an empty name or a short reason."""

    by: str
    reason: str
    findings: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.by.strip():
            raise InputError("a sign-off needs the name of who signs")
        if len(self.reason.strip()) < REASON_MIN_CHARS:
            raise InputError(
                f"the reason is too short: say in at least {REASON_MIN_CHARS} characters why this model may be used"
            )


def open_findings(decision: Mapping[str, Any]) -> dict[str, str]:
    """The rules that a decision leaves open → their messages."""
    return {str(r["rule"]): str(r["message"]) for r in decision["reasons"] if r["verdict"] != "PASS"}


def check_signed(decision: Mapping[str, Any], sign_off: SignOff) -> None:
    """Raises InputError unless the sign-off names exactly what is open."""
    found = open_findings(decision)
    if missing := sorted(found.keys() - set(sign_off.findings)):
        messages = "; ".join(found[rule] for rule in missing)
        raise InputError(f"the sign-off does not name what it answers for: {messages}")
    if closed := sorted(set(sign_off.findings) - found.keys()):
        raise InputError(f"'{closed[0]}' is not open in this decision; open is {', '.join(sorted(found))}")
