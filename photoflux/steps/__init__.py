"""One verb, one file, one shape: `run(<inputs>, *, <outputs>, params, key) -> StepResult`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StepResult:
    """What a step tells its caller besides the files it wrote."""

    metrics: dict[str, float] = field(default_factory=dict)
    report: Path | None = None

    def log_to(self, metrics: Any) -> None:
        """Write the metrics into an output of the pipeline; without a file at its place, the step would never be reused."""
        for name, value in self.metrics.items():
            metrics.log_metric(name, value)
        Path(metrics.path).touch()
