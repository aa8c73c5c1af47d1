"""The rivals' learning rate and steps, chosen on calibration subjects by a rule that was fixed before anything was measured.

Each rival is trained once per rate and subject, for as many steps as the longest, and judged after each number of steps: its rate is
constant, so that what it has then is what a shorter training ends with.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.pocket_base import machine
from benchmarks.recipes import (
    RIVALS,
    Bench,
    Recipe,
    evaluated,
    judged,
    load_bench_params,
    make_dataset,
    point,
    read,
    settings,
    short_hash,
    subjects_of,
)
from photoflux.manifest import write_json
from photoflux.params import as_dict
from photoflux.pocket.world import KINDS

log = logging.getLogger("benchmarks.tuning")

SCHEMA_VERSION = 1
RATES, STEPS = (3e-4, 1e-3, 3e-3), (100, 200, 400)
LADDER = (1e-5, 3e-5, 1e-4, *RATES, 1e-2, 3e-2, 1e-1)
"""Rates that follow where the best one is the lowest or the highest tried."""
EVERY = 3
"""Every how many kinds a subject is tuned on: a dog, a fish, a boat and a backpack."""
PROFILE = "standard"
"""Nothing passes on fewer pictures, whatever is on them: no copy among 20 leaves up to 16 % open, and the gate allows 5 %."""
RULE = (
    "Of all pairs of rate and steps the one with most subjects that pass the gate's rules about the evaluation is chosen, and "
    "of equals the one with the highest score: the mean over subjects of identity gain less leakage, with leakage below 0 as 0. "
    "While the best rate is the lowest or the highest tried, the next one beyond it is tried too; steps end at the most given."
)
MEASURED = ("identity_gain", "leakage", "prompt_change")


def tuning_params(profile: str | None) -> dict[str, Any]:
    """The shipped parameters, with as many pictures for every cell of the grid: seeds are never doubled."""
    params = load_bench_params(None, profile or PROFILE)
    return params | {"evaluate": params["evaluate"].replace(half_width_max=1.0)}


def tuned(bench: Bench, *, subjects: int | None = None, longest: int | None = None) -> dict[str, Any]:
    """Both rivals on the whole grid, and what is chosen for each. `longest` shrinks all numbers of steps alike."""
    counts = [round(count * longest / STEPS[-1]) for count in STEPS] if longest else list(STEPS)
    chosen = subjects_of(range(0, len(KINDS), EVERY)[:subjects], seed=bench.seed)
    grid: dict[str, list[dict[str, Any]]] = {rival.name: [] for rival in RIVALS}
    for rival in RIVALS:
        waiting = list(RATES)
        while waiting:
            lr = waiting.pop(0)
            runs = [_run(bench, rival, subject, seed, lr=lr, counts=counts) for subject, seed in chosen]
            grid[rival.name] += [_cell([run[count] for run in runs], lr=lr, steps=count) for count in counts]
            waiting = waiting or next_rate(grid[rival.name])
    return {
        "kind": "benchmark-tuning",
        "schema_version": SCHEMA_VERSION,
        "rule": RULE,
        "subjects": [subject.kind for subject, _ in chosen],
        "seeds": {"subjects": bench.seed},
        "profile": bench.params["evaluate"].profile,
        "limits": short_hash(as_dict(bench.params["gate"])),
        "base": {"name": bench.spec.name, "hash": bench.spec.hash},
        "machine": machine(),
        "grid": grid,
        "chosen": {name: best(cells) for name, cells in grid.items()},
    }


def best(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rate and steps that the rule chooses; of equals in all, the first."""
    one = max(cells, key=lambda cell: (cell["passes"], cell["score"]))
    return {name: one[name] for name in ("lr", "steps")}


def next_rate(cells: Sequence[Mapping[str, Any]]) -> list[float]:
    """The next rate where the best one lies at the edge of those tried, as long as there is one."""
    tried, lr = sorted({cell["lr"] for cell in cells}), best(cells)["lr"]
    at = LADDER.index(lr)
    ends = {tried[0]: LADDER[:at][-1:], tried[-1]: LADDER[at + 1 : at + 2]}
    return [rate for edge, rates in ends.items() if edge == lr for rate in rates]


def score(row: Mapping[str, Any]) -> float:
    """Identity gain less leakage."""
    return point(row, "identity_gain") - max(0.0, point(row, "leakage"))


def _cell(rows: Sequence[Mapping[str, Any]], *, lr: float, steps: int) -> dict[str, Any]:
    """All subjects at one rate and number of steps."""
    return {
        "lr": lr,
        "steps": steps,
        "subjects": len(rows),
        "passes": sum(row["verdict"] == "PASS" for row in rows),
        "score": fmean(score(row) for row in rows),
        **{name: fmean(point(row, name) for row in rows) for name in MEASURED},
        "verdicts": {row["subject"]: row["verdict"] for row in rows},
        "scores": {row["subject"]: score(row) for row in rows},
    }


def _run(
    bench: Bench, rival: Recipe, subject: Any, seed: int, *, lr: float, counts: Sequence[int]
) -> dict[int, dict[str, Any]]:
    """One training, judged after each number of steps. What is finished is read."""
    home = bench.folder / subject.kind
    dataset = make_dataset(home, subject, seed=seed, params=bench.params)
    one = replace(rival, rival=settings(rival, bench.params["finetune"], lr=lr, steps=max(counts)))
    folder = home / "tuning" / one.folder
    adapters = {count: folder / str(count) / "adapter.tar" for count in counts}
    if not all(file.is_file() for file in adapters.values()):
        _train(bench, dataset, adapters, one, cache=home / "tuning" / "latents")
    found = {count: _judge(bench, dataset, file) | {"subject": subject.kind} for count, file in adapters.items()}
    told = ", ".join(f"{count}: {row['verdict']} {score(row):.2f}" for count, row in found.items())
    log.info("%s at %g on %s: %s", rival.title, lr, subject.kind, told)
    return found


def _train(bench: Bench, dataset: Path, adapters: Mapping[int, Path], one: Recipe, *, cache: Path) -> None:
    from benchmarks import dreambooth

    if one.rival is not None:
        dreambooth.run(dataset, adapters=adapters, spec=bench.spec, how=one.rival, cache=cache)


def _judge(bench: Bench, dataset: Path, adapter: Path) -> dict[str, Any]:
    """The metrics of an adapter and its verdict, by today's limits."""
    done = adapter.with_name("row.json")
    if not done.is_file():
        measured, _, _ = evaluated(dataset, adapter, adapter.parent, bench.params["evaluate"])
        write_json(done, {"metrics": {name: measured["metrics"][name] for name in MEASURED}})
    return {**(read(done) or {}), **judged(adapter.parent, bench.params["gate"])}
