from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from photoflux.priority import NICE_MAX, lower_priority


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Leads a session of its own, and starts another process once it reads a line."""
    code = "import subprocess, sys; sys.stdin.readline(); subprocess.run(['sleep', '60'])"
    begun = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, start_new_session=True)
    yield begun
    for one in psutil.Process(begun.pid).children():
        one.kill()
    begun.kill()
    begun.wait()


def test_a_process_stands_back_with_all_that_it_starts(process: subprocess.Popen[bytes]):
    own = os.getpriority(os.PRIO_PROCESS, 0)
    lower_priority(process.pid, 5)
    assert psutil.Process(process.pid).nice() == min(NICE_MAX, own + 5)
    assert process.stdin is not None
    process.stdin.write(b"go\n")
    process.stdin.flush()
    while not (started := psutil.Process(process.pid).children()):
        pass
    assert started[0].nice() == psutil.Process(process.pid).nice()
    group = Path(f"/proc/{started[0].pid}/autogroup")
    if group.exists():  # the kernel weighs sessions
        assert group.read_text().split()[-1] == str(psutil.Process(process.pid).nice())
    lower_priority(process.pid, 100)
    assert psutil.Process(process.pid).nice() == NICE_MAX


def test_one_that_has_ended_is_no_error():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lower_priority(ended.pid, 5)
