"""The small pipeline, compiled; and one run of the real one, shared by the tests of its results."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from photoflux.runs import Run, load_run
from pipelines.orchestrators import LocalOrchestrator

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled small pipeline."""
    from kfp.compiler import Compiler

    spec = importlib.util.spec_from_file_location("tiny", HERE / "tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = tmp_path_factory.mktemp("tiny") / "gallery.yaml"
    Compiler().compile(module.gallery, str(path))
    return path


@pytest.fixture
def local(tiny: Path, tmp_path: Path) -> LocalOrchestrator:
    """Runs the small pipeline below a folder of the test's own."""
    return LocalOrchestrator(runs_dir=tmp_path / "runs", compiled=tiny)


@dataclass(frozen=True)
class Finished:
    """A run of the real pipeline that has ended, with what it printed."""

    run: Run
    folder: Path
    code: int
    out: str


@pytest.fixture(scope="session")
def personalised(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`make run` on the sample photos, the shortest way through every step: eight training steps, smoke profiles."""
    state = tmp_path_factory.mktemp("personalised")
    short = {"finetune_steps": 8, "finetune_checkpoint_every": 8, "finetune_preservation_prompts": 8}
    short |= {"evaluate_profile": "smoke", "evaluate_half_width_max": 1, "evaluate_bootstrap": 200}
    short |= {"audit_profile": "smoke", "audit_bootstrap": 200, "audit_permutations": 200}
    words = [word for name, value in short.items() for word in ("--set", f"{name}={value}")]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.run", "--photos", "data/samples/dog", "--class-noun", "dog", *words],
        cwd=ROOT,
        env=os.environ | {"PHOTOFLUX_STATE_DIR": str(state), "PHOTOFLUX_RUNS_DIR": str(state / "runs")},
        capture_output=True,
        text=True,
        check=False,
    )
    (folder,) = (state / "runs").iterdir()
    return Finished(load_run(folder), folder, done.returncode, done.stdout + done.stderr)
