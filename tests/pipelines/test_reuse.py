"""The real pipeline twice: what a changed parameter runs again, and what it does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from photoflux.runs import Run, load_run

SHORT = {
    "finetune_steps": 8, "finetune_checkpoint_every": 8, "finetune_preservation_prompts": 8, "evaluate_profile": "smoke",
    "evaluate_half_width_max": 1, "evaluate_bootstrap": 200, "audit_profile": "smoke", "audit_bootstrap": 200, "audit_permutations": 200,
}  # fmt: skip
NEVER = {"configure", "fetch_champion", "gate", "notify"}
"""Of the steps that run here; one that eight training steps do not reach is `register`."""


def ran(root: Path, state: Path, **changed: object) -> tuple[set[str], set[str], Run]:
    """The steps that ran and those that were reused."""
    words = [word for name, value in (SHORT | changed).items() for word in ("--set", f"{name}={value}")]
    before = set((state / "runs").glob("personalize-*"))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pipelines.run",
            "--photos",
            "data/samples/dog",
            "--class-noun",
            "dog",
            "--reuse",
            *words,
        ],
        cwd=root,
        env=os.environ | {"PHOTOFLUX_STATE_DIR": str(state), "PHOTOFLUX_RUNS_DIR": str(state / "runs")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = set((state / "runs").glob("personalize-*")) - before
    run = load_run(folder)
    states = {step.name: str(step.state) for step in run.steps}
    assert set(run.artifacts) == {name for name, state in states.items() if state in ("succeeded", "reused")}
    by_state = {state: {name for name in states if states[name] == state} for state in ("succeeded", "reused")}
    return by_state["succeeded"], by_state["reused"], run


@pytest.mark.slow
def test_a_changed_fine_tuning_value_runs_finetune_and_what_follows(root: Path, tmp_path: Path):
    first, none, _ = ran(root, tmp_path)
    assert none == set()
    again, reused, run = ran(root, tmp_path, finetune_ema=0.9)
    assert reused == {"import_data", "validate", "augment"}
    assert again == first - reused == NEVER | {"finetune", "evaluate", "audit"}
    assert run.step("validate").metrics
    unchanged, reused, _ = ran(root, tmp_path, finetune_ema=0.9)
    assert reused == {"import_data", "validate", "augment", "finetune", "audit"}
    assert unchanged == NEVER | {"evaluate"}, "evaluate compares with the champion of the moment"
