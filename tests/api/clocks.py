"""A clock that tests move on."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest


def moved_by_hand(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves `time.time` on by seconds, for everybody in this process; it goes on by itself, too."""
    real, passed = time.time, 0.0
    monkeypatch.setattr(time, "time", lambda: real() + passed)

    def later(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    return later
