"""The registry as a server: its password stands where only its own processes read it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner


def test_no_password_stands_in_a_command_line(root: Path):
    """Everybody on a machine reads command lines, and `docker inspect` keeps them."""
    services = yaml.safe_load((root / "mlflow" / "compose.yaml").read_text())["services"]
    for service in services.values():
        words = " ".join([*service.get("command", []), *map(str, service.get("healthcheck", {}).get("test", []))])
        assert "PASSWORD" not in words.upper()
        assert "://" not in words.replace("http://127.0.0.1:5000/health", "")


def test_the_registry_is_told_of_its_database_by_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch):
    """MLflow's own program takes it from there, without an option of that name."""
    from mlflow import cli, server

    told = yaml.safe_load((root / "mlflow" / "compose.yaml").read_text())["services"]["server"]["environment"]
    assert ":" not in told["MLFLOW_BACKEND_STORE_URI"].partition("://")[2], "the address holds no password"
    assert "PASSWORD" in told["PGPASSWORD"]
    taken: list[object] = []
    monkeypatch.setattr("mlflow.server.handlers.initialize_backend_stores", lambda *told, **_: taken.append(told[0]))
    monkeypatch.setattr(server, "_run_server", lambda **_: None)
    done = CliRunner().invoke(
        cli.server, ["--port", "5000"], env={"MLFLOW_BACKEND_STORE_URI": told["MLFLOW_BACKEND_STORE_URI"]}
    )
    assert done.exit_code == 0, done.output
    assert taken == [told["MLFLOW_BACKEND_STORE_URI"]]
