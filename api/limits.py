"""How often things may be asked for: per person, and per address where nobody has signed in yet."""

from __future__ import annotations

import time

from limits import parse
from limits.storage import storage_from_string
from limits.strategies import MovingWindowRateLimiter

from api.problems import Problem

RATES = {"sign-in": "30/minute", "ask": "900/minute", "make": "120/minute", "complain": "10/hour"}
"""Signing in and complaining, by address; any request, by person; uploading and starting work, by person."""


class Limits:
    """Counts in `storage`: of this process (`memory://`), or of all (`redis://…`)."""

    def __init__(self, storage: str, *, rates: dict[str, str] | None = None) -> None:
        self._limiter = MovingWindowRateLimiter(storage_from_string(storage))
        self._rates = {kind: parse(rate) for kind, rate in {**RATES, **(rates or {})}.items()}

    def check(self, kind: str, who: str) -> None:
        """Count one more. A problem of 429 that says when there is room again."""
        rate = self._rates[kind]
        if self._limiter.hit(rate, kind, who):
            return
        wait = max(1, round(self._limiter.get_window_stats(rate, kind, who).reset_time - time.time()))
        raise Problem(
            429, "too-many-requests", f"Too many requests: {rate}; try again in {wait} s.",
            headers={"Retry-After": str(wait)},
        )  # fmt: skip
