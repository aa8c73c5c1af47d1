"""The limit that has no scale of its own, from the calibration subjects, by a rule that was fixed before they were measured with it.

    python -m benchmarks.limits

A kernel distance has the scale of a base and its judges, so that nobody can say beforehand how large one may be. `gate.drift_kid_max`
is the upper bound below which, with 95 % confidence, nine in ten adapters lie that are as good as ours: the normal tolerance bound of
the logarithms of the twelve upper bounds that the shipped recipe has on the calibration subjects, rounded up to two digits. Prints
what goes into `photoflux/params/gate.py` (docs/decisions/0026).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from photoflux.judges.gate_rules import KERNEL_RULE
from photoflux.params import GateParams
from photoflux.steps.gate import scale_of

MEASURED = Path("benchmarks/results/calibration.json")
CONTENT, CONFIDENCE, DIGITS = 0.90, 0.95, 2


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "measured", type=Path, nargs="?", default=MEASURED, help="results of `python -m benchmarks.subjects`"
    )
    result = json.loads(parser.parse_args(argv).measured.read_text(encoding="utf-8"))
    print(text(result))


def text(result: Mapping[str, Any]) -> str:
    """What the gate's parameters are to be, beside what they are, and which subjects lie where."""
    shipped, limit = GateParams(), drift_kid_max(result["subjects"])
    wanted = {"drift_kid_max": limit, "drift_kid_of": scale_of(result), "calibration": result["hashes"]["calibration"]}
    bounds = sorted(upper_bounds(result["subjects"]))
    lines = [
        f"  {name}: {json.dumps(value)}    # is {json.dumps(getattr(shipped, name))}" for name, value in wanted.items()
    ]
    return "\n".join(
        ["gate:", *lines, f"# upper bounds of {len(bounds)} subjects: {', '.join(f'{one:.4f}' for one in bounds)}"]
    )


def drift_kid_max(subjects: Sequence[Mapping[str, Any]]) -> float:
    """The limit by the rule above. Raises ValueError for fewer than two subjects or a bound that is not above zero."""
    bounds = upper_bounds(subjects)
    if len(bounds) < 2 or min(bounds) <= 0:
        raise ValueError(f"a tolerance bound needs at least two upper bounds above 0, not {bounds}")
    logs = np.log(bounds)
    bound = float(np.exp(logs.mean() + tolerance_factor(len(logs)) * logs.std(ddof=1)))
    step = 10.0 ** (math.floor(math.log10(bound)) - DIGITS + 1)
    return round(math.ceil(bound / step - 1e-9) * step, 12)


def upper_bounds(subjects: Sequence[Mapping[str, Any]]) -> list[float]:
    """Upper bound of the kernel distance of the shipped recipe's adapter, by subject."""
    return [float(row["ours"]["rules"][KERNEL_RULE]["hi"]) for row in subjects]


def tolerance_factor(count: int, *, content: float = CONTENT, confidence: float = CONFIDENCE) -> float:
    """Standard deviations above the mean of `count` normal values below which `content` of all lie, with `confidence`."""
    from scipy.stats import nct, norm

    return float(nct.ppf(confidence, count - 1, norm.ppf(content) * count**0.5) / count**0.5)


if __name__ == "__main__":
    main()
