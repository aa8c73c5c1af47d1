"""Fixtures every test may use; folders have conftests of their own for what only they need."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.cloud import storage_emulator

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile("house", deadline=None)  # no test depends on how busy the machine is
settings.load_profile("house")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DVC_NO_ANALYTICS", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tests have their state folders. Beside the temporary folders, which are counted for each new one, they would double those."""
    return tmp_path_factory.mktemp("states")


@pytest.fixture(autouse=True)
def own_state(states: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has registry, caches and runs of its own."""
    state = Path(tempfile.mkdtemp(dir=states))
    monkeypatch.setenv("PHOTOFLUX_STATE_DIR", str(state))
    monkeypatch.setenv("PHOTOFLUX_RUNS_DIR", str(state / "runs"))
    return state


@pytest.fixture(scope="session")
def emulator() -> Iterator[str]:
    """Address of a Cloud Storage emulator."""
    with storage_emulator() as address:
        yield address


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with its tables, which take seconds to make."""
    from photoflux.tracking import Registry

    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHOTOFLUX_STATE_DIR", str(folder))
        assert Registry().names() == []
    return folder / "mlflow.db"
