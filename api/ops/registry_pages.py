"""`python -m api.ops.registry_pages --port N …`: MLflow's pages, with the arguments of `mlflow ui` and logs as JSON lines.

They show the registry in the state folder unless they are given another.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from api.ops.telemetry import JsonLines, set_up_logs
from photoflux.settings import get_settings, sqlite_url
from photoflux.tracking import allow_percent_signs

SERVICE = "mlflow"
LOG_CONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "api.ops.registry_pages.json_lines", "service": SERVICE}},
    "handlers": {"all": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["all"], "level": "WARNING"},
    "loggers": {"uvicorn": {"level": "WARNING"}},
}
"""For uvicorn, which MLflow runs in processes of its own."""


def json_lines(service: str) -> JsonLines:
    """The formatter of those processes; patches MLflow there too, before its pages are loaded."""
    allow_percent_signs()
    return JsonLines(service)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run MLflow's server until SIGTERM; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    registry = sqlite_url(get_settings().state_dir.absolute() / "mlflow.db")
    set_up_logs(SERVICE)
    with tempfile.TemporaryDirectory(prefix="photoflux-") as folder:
        config = Path(folder) / "log.json"
        config.write_text(json.dumps(LOG_CONFIG), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "photoflux.tracking",
            "ui",
            *("--backend-store-uri", registry, "--workers", "1"),
            *arguments,
            "--uvicorn-opts",
            f"--log-config {shlex.quote(str(config))}",
        ]
        server = subprocess.Popen(command, env=os.environ | {"MLFLOW_CONFIGURE_LOGGING": "false"})
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: server.terminate())
        return server.wait()


if __name__ == "__main__":
    raise SystemExit(main())
