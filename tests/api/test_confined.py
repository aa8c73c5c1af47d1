"""Processes that work on pictures: behind others, confined, ended when they take too long, and started anew."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator

import pytest
from pebble import ProcessExpired

from api.confined import MEMORY_BYTES, NICE, Confined


@pytest.fixture(scope="module")
def processes() -> Iterator[Confined]:
    made = Confined(1)
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


def test_what_works_on_pictures_stands_back_and_has_limits(processes: Confined):
    pid, nice, *limits = processes.begin(about, cpu_s=30, timeout_s=30).result()
    assert pid != os.getpid()
    assert nice == min(19, os.nice(0) + NICE)
    assert limits == [MEMORY_BYTES, 0]


def test_one_that_takes_too_long_or_ends_is_replaced(processes: Confined):
    with pytest.raises(TimeoutError):
        processes.begin(sleep, cpu_s=30, timeout_s=0.5).result()
    with pytest.raises(ProcessExpired):
        processes.begin(end, cpu_s=30, timeout_s=30).result()
    with pytest.raises(ProcessExpired):
        processes.begin(burn, cpu_s=1, timeout_s=60).result()
    assert processes.begin(about, cpu_s=30, timeout_s=30).result()


def test_processor_time_is_counted_for_each_piece_of_work():
    made = Confined(1, needs=("json",))
    for _ in range(3):
        assert made.begin(work_for, 0.7, cpu_s=1, timeout_s=60).result() is True
    made.close()


def test_one_that_was_never_needed_is_closed():
    Confined(1).close()
