"""`python -m api.registry_pages --port N …`: MLflow's pages, with the arguments of `mlflow ui` and logs as JSON lines."""

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

from api.observing import set_up_logs

SERVICE = "mlflow"
LOG_CONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "api.observing.JsonLines", "service": SERVICE}},
    "handlers": {"all": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["all"], "level": "WARNING"},
    "loggers": {"uvicorn": {"level": "WARNING"}},
}
"""For uvicorn, which MLflow runs in processes of its own."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run MLflow's server until SIGTERM; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    set_up_logs(SERVICE)
    with tempfile.TemporaryDirectory(prefix="photoflux-") as folder:
        config = Path(folder) / "log.json"
        config.write_text(json.dumps(LOG_CONFIG), encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "ui",
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
