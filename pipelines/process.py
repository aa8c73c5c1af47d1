"""A run's own process: started apart from ours, known to live by the lock it holds, ended as a group."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from photoflux.settings import get_settings

ROOT = Path(__file__).resolve().parent.parent
LOCK, LOG = "lock", "logs/runner.log"
SCRATCH = "tmp"
"""Temporary files of the run and its steps: plaintext that they opened is then nowhere else when they are killed."""
GRACE_S = 5.0


def start(folder: Path, compiled: Path) -> subprocess.Popen[bytes]:
    """Start the runner in a process group of its own; it inherits the lock, held before it exists."""
    lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    scratch = folder.resolve() / SCRATCH
    scratch.mkdir(mode=0o700, exist_ok=True)
    try:
        with (folder / LOG).open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "pipelines.local", str(folder), str(compiled)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment() | {"TMPDIR": str(scratch)},
                start_new_session=True,
                pass_fds=[lock],
            )
    finally:
        os.close(lock)


def was_started(folder: Path) -> bool:
    """Whether a process ever began on the run in a folder: its log is opened last."""
    return (folder / LOG).is_file()


def lives(folder: Path) -> bool:
    """Whether the run's process still lives."""
    with (folder / LOCK).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def end(folder: Path, group: int) -> None:
    """End every process of a run: kindly, then for good."""
    deadline = time.monotonic() + GRACE_S
    while lives(folder):
        _signal(group, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
        time.sleep(0.05)
    _signal(group, signal.SIGKILL)  # steps that outlived the runner


def last_words(folder: Path) -> str:
    """The last line that the runner left, for a run that ended without saying why."""
    lines = (folder / LOG).read_text(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it was killed")


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _environment() -> dict[str, str]:
    """This checkout importable, one thread per core that this process may use, no telemetry."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quiet = {"GX_ANALYTICS_ENABLED": "false", "DVC_NO_ANALYTICS": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    threads = str(get_settings().threads or cores)
    # Threads of two programs that wait for each other by spinning on the same cores come to a standstill.
    return {"OMP_NUM_THREADS": threads, "GOMP_SPINCOUNT": "2000", **quiet, **os.environ, "PYTHONPATH": path}
