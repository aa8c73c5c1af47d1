"""One verb, one file, one shape: `run(<inputs>, *, <outputs>, params, key) -> StepResult`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class StepResult:
    """What a step tells its caller besides the files it wrote."""

    metrics: dict[str, float] = field(default_factory=dict)
    report: Path | None = None
