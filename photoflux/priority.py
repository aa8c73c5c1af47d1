"""CPU priorities: work that takes minutes yields to work that a person waits for."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

NICE_MAX = 19


def lower_priority(pid: int, by: int) -> None:
    """Raise the `nice` value of a session leader, and so of whatever it starts later, by `by`.

    Where Linux schedules sessions instead of processes (sched(7), autogroups), that of its session is raised too. Does nothing where
    the process has ended or the system does not allow it.
    """
    with suppress(OSError):
        nice = min(NICE_MAX, os.getpriority(os.PRIO_PROCESS, pid) + by)
        os.setpriority(os.PRIO_PROCESS, pid, nice)
        Path(f"/proc/{pid}/autogroup").write_text(str(nice), encoding="ascii")
