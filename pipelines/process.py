"""A run's own processes: started apart from ours, known to live by the locks they hold, ended as a group.

The runner holds `lock`, and each of its steps `steps.lock` besides: a lock goes when its last holder does, however that ended.
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

from photoflux.priority import stand_back
from photoflux.settings import get_settings

ROOT = Path(__file__).resolve().parent.parent
LOCK, STEPS_LOCK, LOG = "lock", "steps.lock", "logs/runner.log"
SCRATCH = "tmp"
"""Temporary files of the run and its steps: plaintext that they opened is then nowhere else when they are killed."""
GRACE_S, KILLED_S = 5.0, 30.0
"""Seconds from SIGTERM to SIGKILL, and from there until a process that still lives is given up."""
STARTING_S = 60.0
"""Within this many seconds a runner records its process id, or is taken for stuck."""
POLL_S = 0.05
NICE = 10
"""A training takes all cores for minutes; people who wait for a page or a picture on the same machine go first."""


@contextlib.contextmanager
def claimed(folder: Path, *, begun: Callable[[], bool]) -> Iterator[int | None]:
    """The run's lock as a file descriptor; None where another process has it and the run has `begun()`."""
    deadline = time.monotonic() + STARTING_S
    while (lock := _try_lock(folder / LOCK)) is None and not begun():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{folder.name}: another process is starting it and does not get on; start it again")
        time.sleep(POLL_S)
    try:
        yield lock
    finally:
        if lock is not None:
            os.close(lock)


def start(folder: Path, compiled: Path, *, lock: int, reuse: Path | None = None) -> subprocess.Popen[bytes]:
    """Start the runner in a process group of its own; it inherits the `lock`, held before it exists."""
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
    stand_back(process.pid, NICE)
    return process


@contextlib.contextmanager
def steps_lock(folder: Path) -> Iterator[int]:
    """The lock for the runner to hand to each of its steps, as a file descriptor."""
    with (folder / STEPS_LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # others have it for the moment in which they look whether it is held
        yield lock.fileno()


def is_alive(folder: Path) -> bool:
    """Whether any process of the run still lives: its runner or a step."""
    return _is_held(folder / LOCK) or _is_held(folder / STEPS_LOCK)


def runner_is_alive(folder: Path) -> bool:
    """Whether the run's own process still lives."""
    return _is_held(folder / LOCK)


def end(folder: Path, group: int) -> None:
    """End every process of a run: SIGTERM, and SIGKILL after GRACE_S. Raises TimeoutError where that does not end them.

    A group's id cannot have been given to others while a member lives, and a held lock says that one does.
    """
    started, held = time.monotonic(), False
    while is_alive(folder):
        held, passed = True, time.monotonic() - started
        if passed > GRACE_S + KILLED_S:
            raise TimeoutError(f"{folder.name}: process group {group} cannot be ended; look at what it waits for")
        _signal(group, signal.SIGTERM if passed < GRACE_S else signal.SIGKILL)
        time.sleep(POLL_S)
    if held:
        _signal(group, signal.SIGKILL)  # programs that a step started hold no lock


def last_words(folder: Path) -> str:
    """The last line that the runner left, for a run that ended without saying why."""
    if not (folder / LOG).is_file():
        return "it was never started"
    lines = (folder / LOG).read_text(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it was killed")


def _try_lock(file: Path) -> int | None:
    """An exclusive lock on a file as a descriptor that is not inherited; None where someone has it."""
    lock = os.open(file, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _is_held(file: Path) -> bool:
    """Whether someone has the exclusive lock; asking for a shared one, two who ask at once do not see each other."""
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
    """This checkout importable, one thread per core that this process may use, no telemetry."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quiet = {"GX_ANALYTICS_ENABLED": "false", "DVC_NO_ANALYTICS": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    threads = str(get_settings().threads or cores)
    # Threads of two programs that wait for each other by spinning on the same cores come to a standstill.
    return {"OMP_NUM_THREADS": threads, "GOMP_SPINCOUNT": "2000", **quiet, **os.environ, "PYTHONPATH": path}
