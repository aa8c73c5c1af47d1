"""Whose turn it is to write to SQLite, which has one writer at a time.

SQLite lets those who wait ask again and again, less and less often: where one process writes without a pause, another never asks
at the right moment, and after BUSY_MS fails. Here they take turns, by two locks on files: whoever waits for the turn holds the place
in front of it, so that whoever has just had it waits behind them.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path
from types import TracebackType

POLL_S, PLACE_S = 0.002, 1.0
"""How often a lock is asked for, and how long for the place in front: a process that was stopped while it waited holds up nobody."""


class WriteTurns:
    """A context manager for the threads of this process; with a `database`, for all processes that write to that file.

    After `wait_s` it gives way to SQLite's own lock: a process that was stopped while it wrote is told of there.
    """

    def __init__(self, database: Path | None, *, wait_s: float) -> None:
        self._threads, self._depth, self.wait_s = threading.RLock(), 0, wait_s
        self._files = (
            [database.with_name(f".{database.name}.{name}.lock") for name in ("next", "turn")] if database else []
        )
        self._held: int | None = None

    def __enter__(self) -> None:
        self._threads.acquire()
        self._depth += 1
        if self._depth == 1 and self._files:
            try:
                self._held = self._taken()
            except BaseException:
                self.__exit__(None, None, None)
                raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._depth -= 1
        if self._depth == 0 and self._held is not None:
            os.close(self._held)
            self._held = None
        self._threads.release()

    def _taken(self) -> int | None:
        """A descriptor that holds the turn until it is closed, also by the end of the process; None where it could not be had."""
        until = time.monotonic() + self.wait_s
        place = _locked(self._files[0], min(until, time.monotonic() + PLACE_S))
        try:
            return _locked(self._files[1], until)
        finally:
            if place is not None:
                os.close(place)


def _locked(file: Path, until: float) -> int | None:
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(descriptor)
                return None
            time.sleep(POLL_S)
        except BaseException:
            os.close(descriptor)
            raise
