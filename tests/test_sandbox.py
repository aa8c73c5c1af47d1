"""Processes that work on pictures: behind others, confined, ended when they take too long, and started anew."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import psutil
import pytest

from photoflux.sandbox import MEMORY_BYTES, NICE, ProcessDied, SandboxPool, WorkFailed


@pytest.fixture(scope="module")
def processes() -> Iterator[SandboxPool]:
    made = SandboxPool(1)
    yield made
    made.close()


def about() -> tuple[int, int, int, int]:
    memory, core = (resource.getrlimit(which)[0] for which in (resource.RLIMIT_AS, resource.RLIMIT_CORE))
    return os.getpid(), os.nice(0), memory, core


def work_for(seconds: float) -> bool:
    """Uses so much processor time."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
    return True


def end() -> None:
    os.kill(os.getpid(), 9)


def burn() -> None:
    while True:
        pass


def sleep() -> None:
    time.sleep(60)


def test_what_works_on_pictures_stands_back_and_has_limits(processes: SandboxPool):
    pid, nice, *limits = processes.submit(about, cpu_s=30, timeout_s=30).result()
    assert pid != os.getpid()
    assert nice == min(19, os.nice(0) + NICE)
    assert limits == [MEMORY_BYTES, 0]


def test_one_that_takes_too_long_or_ends_is_replaced(processes: SandboxPool):
    with pytest.raises(TimeoutError):
        processes.submit(sleep, cpu_s=30, timeout_s=0.5).result()
    with pytest.raises(ProcessDied):
        processes.submit(end, cpu_s=30, timeout_s=30).result()
    with pytest.raises(ProcessDied):
        processes.submit(burn, cpu_s=1, timeout_s=60).result()
    assert processes.submit(about, cpu_s=30, timeout_s=30).result()


def test_processor_time_is_counted_for_each_piece_of_work():
    made = SandboxPool(1, preload=("json",))
    for _ in range(3):
        assert made.submit(work_for, 0.7, cpu_s=1, timeout_s=60).result() is True
    made.close()


def test_one_that_was_never_needed_is_closed():
    SandboxPool(1).close()


def child_of(made: SandboxPool) -> int:
    return int(made.submit(os.getpid, cpu_s=30, timeout_s=30).result())


@pytest.mark.parametrize("workers", [1, 2])
def test_one_that_is_killed_while_it_has_no_work_is_replaced(workers: int):
    """The library's pool that was used before was broken for good: every upload was a 500 until the service was started again."""
    made = SandboxPool(workers)
    for _ in range(3):
        os.kill(child_of(made), signal.SIGKILL)
    assert child_of(made)
    made.close()


def test_one_that_is_killed_while_work_is_handed_to_it_holds_up_nobody_else():
    """A pipe takes 64 KB: of more, most is still to be read by one that is stopped."""
    made = SandboxPool(2)
    pids = {child_of(made) for _ in range(1)}
    stopped = pids.pop()
    os.kill(stopped, signal.SIGSTOP)
    jobs = [made.submit(len, bytes(10_000_000), cpu_s=30, timeout_s=3) for _ in range(4)]
    ends = [job.exception(timeout=60) for job in jobs]
    assert [type(end) for end in ends if end] == [TimeoutError]
    assert child_of(made) != stopped
    made.close()


def test_work_that_fails_says_how(processes: SandboxPool):
    with pytest.raises(WorkFailed, match=r"^ZeroDivisionError$"):
        processes.submit(divmod, 1, 0, cpu_s=30, timeout_s=30).result()
    with pytest.raises(WorkFailed, match=r"^MemoryError$"):
        processes.submit(bytes, MEMORY_BYTES, cpu_s=30, timeout_s=30).result()


class Trap:
    """Runs something where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_an_answer_runs_nothing_where_it_is_read(processes: SandboxPool, tmp_path: Path):
    """A decoder that a file has taken over answers what it likes."""
    with pytest.raises(ProcessDied):
        processes.submit(Trap, tmp_path / "here", cpu_s=30, timeout_s=30).result()
    assert not (tmp_path / "here").exists()
    assert processes.submit(about, cpu_s=30, timeout_s=30).result()


def test_without_work_they_are_ended():
    """What the last person's photo left in their memory is then nowhere."""
    made = SandboxPool(1, idle_s=0.2)
    pid, until = child_of(made), time.monotonic() + 20
    while psutil.pid_exists(pid):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert child_of(made) != pid
    made.close()


def test_whoever_waits_when_all_is_closed_is_told_so():
    made = SandboxPool(1)
    child_of(made)
    jobs = [made.submit(sleep, cpu_s=30, timeout_s=60) for _ in range(3)]
    time.sleep(0.2)
    made.close()
    for job in jobs:
        with pytest.raises(CancelledError):
            job.result(timeout=20)


def test_whoever_sends_what_takes_long_is_in_front_of_nobody_else():
    made, order = SandboxPool(2), list[str]()
    jobs = []
    for name, person in [(f"ada {n}", "ada") for n in range(6)] + [(f"bob {n}", "bob") for n in range(2)]:
        jobs.append(made.submit(time.sleep, 0.3, cpu_s=30, timeout_s=60, person=person))
        jobs[-1].add_done_callback(lambda _, name=name: order.append(name))
    for job in jobs:
        job.result(timeout=60)
    assert order.index("bob 1") < order.index("ada 4")
    assert not +made._running_by_person
    made.close()


def test_a_process_that_does_not_begin_says_nothing_of_the_work():
    """It cannot be started, say, or memory is short: no photo is damaged for that."""
    made = SandboxPool(1, preload=("there.is.no.such.module",))
    with pytest.raises(TimeoutError):
        child_of(made)
    made.close()
