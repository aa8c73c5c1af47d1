"""The small pipeline, compiled; and one run of the real one, shared by the tests of its results."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from pipelines.orchestrators import LocalOrchestrator

HERE = Path(__file__).resolve().parent


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
