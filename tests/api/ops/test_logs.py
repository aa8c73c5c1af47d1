"""The log files of a service that really runs, is asked odd things, and has its processes killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import httpx2
import pytest

from benchmarks.chaos import RunningService
from benchmarks.log_check import lines_not_json, lines_with_words

WORD = "Kanarienvogel"
KILLED = ("api.main", "api.jobs.worker")


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=5).status_code < 500
    except httpx2.HTTPError:
        return False


@pytest.mark.slow
def test_every_line_of_every_log_file_is_json_without_words(tmp_path: Path):
    served = RunningService(tmp_path, WORD=WORD)
    (pages,) = [line.split()[1] for line in served.log.read_text().splitlines() if line.startswith("mlflow")]
    try:
        for base in (served.base, served.environment["PHOTOFLUX_ENGINE_URL"], pages):
            httpx2.get(f"{base}/{WORD}?{WORD}={WORD}", headers={"X-Request-Id": "of-a-proxy", "User-Agent": WORD})
            httpx2.post(f"{base}/predict", content=WORD, headers={"Content-Type": "application/json"})
        httpx2.post(
            f"{served.base}/api/auth/refresh", headers={"Cookie": f"refresh={WORD}", "Authorization": f"Bearer {WORD}"}
        )
        for part in KILLED:
            for pid in served.pids(part):
                os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + 120
        while not answers(f"{served.base}/readyz") or not served.pids("api.jobs.worker"):
            assert time.monotonic() < until
            time.sleep(0.2)
    finally:
        served.stop()
    logs = served.state / "logs"
    assert {file.stem for file in logs.glob("*.log")} == {"api", "engine", "worker", "mlflow"}
    assert lines_not_json(logs) == []
    assert lines_with_words(logs, [WORD]) == []
    assert all((logs / f"{name}.log").stat().st_size for name in ("api", "worker", "mlflow"))
