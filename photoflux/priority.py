"""How far a process stands back where all cores are busy: what takes minutes yields to what somebody waits for."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

NICE_MAX = 19


def stand_back(pid: int, by: int) -> None:
    """Lower the priority of a process that leads a session of its own, and so of whatever it starts, by so many steps of `nice`.

    Linux may weigh sessions against each other instead of processes (sched(7), autogroups): the session stands back, too. Does nothing
    to a process that has ended, or where the system does not allow it.
    """
    with suppress(OSError):
        nice = min(NICE_MAX, os.getpriority(os.PRIO_PROCESS, pid) + by)
        os.setpriority(os.PRIO_PROCESS, pid, nice)
        Path(f"/proc/{pid}/autogroup").write_text(str(nice), encoding="ascii")
