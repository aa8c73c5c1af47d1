"""The processes of a run: a runner and its steps, in a process group of their own; alive as long as they hold their locks.

The runner holds `lock`, and each of its steps `steps.lock` too: the system releases a lock when its last holder ends, however that was.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from photoflux.priority import lower_priority
from photoflux.settings import get_settings

ROOT = Path(__file__).resolve().parent.parent
LOCK, STEPS_LOCK, LOG = "lock", "steps.lock", "logs/runner.log"
SCRATCH = "tmp"
"""TMPDIR of the run and its steps, so that plaintext they leave when they are killed can be found and deleted."""
GRACE_S, KILL_TIMEOUT_S = 5.0, 30.0
"""Seconds from SIGTERM to SIGKILL, and from SIGKILL to TimeoutError."""
START_TIMEOUT_S = 60.0
"""Seconds within which a runner has to record its process id."""
POLL_S = 0.05
NICE = 10
"""Steps of `nice`: a training takes all cores for minutes, and people wait for pages and pictures on the same machine."""


@contextlib.contextmanager
def run_lock(folder: Path, *, has_started: Callable[[], bool]) -> Iterator[int | None]:
    """The run's lock as a file descriptor; None where another process has it and `has_started()` says that it runs."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while (lock := _try_lock(folder / LOCK)) is None and not has_started():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{folder.name}: another process is starting it and does not get on; start it again")
        time.sleep(POLL_S)
    try:
        yield lock
    finally:
        if lock is not None:
            os.close(lock)


def start(folder: Path, compiled: Path, *, lock: int, reuse: Path | None = None) -> subprocess.Popen[bytes]:
    """Start the runner in a session and process group of its own; it inherits the `lock`, so that it is held without a gap."""
    scratch = folder.resolve() / SCRATCH
    scratch.mkdir(mode=0o700, exist_ok=True)
    (folder / LOG).parent.mkdir(exist_ok=True)
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.local", str(folder), str(compiled), *([str(reuse)] if reuse else [])],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment() | {"TMPDIR": str(scratch)},
            start_new_session=True,
            pass_fds=[lock],
        )
    lower_priority(process.pid, NICE)
    return process


@contextlib.contextmanager
def steps_lock(folder: Path) -> Iterator[int]:
    """The lock for the runner to hand to each of its steps, as a file descriptor."""
    with (folder / STEPS_LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # waits: `_is_held` takes a shared lock for a moment
        yield lock.fileno()


def is_alive(folder: Path) -> bool:
    """Whether the runner or a step of the run is alive."""
    return _is_held(folder / LOCK) or _is_held(folder / STEPS_LOCK)


def runner_is_alive(folder: Path) -> bool:
    """Whether the runner is alive."""
    return _is_held(folder / LOCK)


def terminate(folder: Path, group: int) -> None:
    """Send SIGTERM to the process group of a run, and SIGKILL after GRACE_S. Raises TimeoutError after KILL_TIMEOUT_S more.

    Signals are sent while a lock is held only: then a member is alive, and the group's id cannot have been reused.
    """
    started, was_alive = time.monotonic(), False
    while is_alive(folder):
        was_alive, passed = True, time.monotonic() - started
        if passed > GRACE_S + KILL_TIMEOUT_S:
            raise TimeoutError(f"{folder.name}: process group {group} cannot be ended; look at what it waits for")
        _signal(group, signal.SIGTERM if passed < GRACE_S else signal.SIGKILL)
        time.sleep(POLL_S)
    if was_alive:
        _signal(group, signal.SIGKILL)  # programs that a step started hold no lock and may still run


def stderr_tail(folder: Path) -> str:
    """The last line of the runner's log, for a run that ended without an error of its own."""
    if not (folder / LOG).is_file():
        return "it was never started"
    lines = (folder / LOG).read_text(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it was killed")


def _try_lock(file: Path) -> int | None:
    """An exclusive lock on a file, as a descriptor that child processes do not inherit; None where another has it."""
    lock = os.open(file, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _is_held(file: Path) -> bool:
    """Whether another process has the exclusive lock; tested with a shared one, so that two testers do not see each other."""
    try:
        with file.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _environment() -> dict[str, str]:
    """Environment of the runner: this checkout importable, one thread per usable core, no telemetry."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quiet = {"GX_ANALYTICS_ENABLED": "false", "DVC_NO_ANALYTICS": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    threads = str(get_settings().threads or cores)
    # GOMP_SPINCOUNT: OpenMP threads of two programs that spin on the same cores bring each other to a standstill.
    return {"OMP_NUM_THREADS": threads, "GOMP_SPINCOUNT": "2000", **quiet, **os.environ, "PYTHONPATH": path}
