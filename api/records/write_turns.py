"""A fair queue of writers for SQLite, which has one writer at a time.

SQLite's waiters poll at growing intervals: where one process writes without a pause, another never polls at the right moment, and
fails after BUSY_MS. Here writers take turns, by two file locks: the next writer holds the place in front of the turn while it waits,
so that the one that has just written queues behind it.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path
from types import TracebackType

POLL_S, PLACE_S, WITHOUT_S = 0.002, 1.0, (10.0, 2.0)
"""Seconds between two tries of a lock; longest wait for the place in front; and, after a wait in vain, how long all writers skip the
place and the turn."""


class WriteTurns:
    """A context manager for the threads of this process; with a `database`, for all processes that write to that file.

    A writer that does not get the turn in `wait_s` goes on without it: SQLite's own lock decides then, and raises where a stopped process
    holds it. For WITHOUT_S the others skip the turn at once, so that not every writer waits for a stopped one.
    """

    def __init__(self, database: Path | None, *, wait_s: float) -> None:
        self._threads, self._local, self.wait_s = threading.Lock(), threading.local(), wait_s
        self._files = (
            [database.with_name(f".{database.name}.{name}.lock") for name in ("next", "turn")] if database else []
        )
        self._held: int | None = None
        self._without_until = [float("-inf")] * 2

    def __enter__(self) -> None:
        self._local.depth = getattr(self._local, "depth", 0) + 1
        if self._local.depth > 1:
            return
        self._local.has_turn = False
        try:
            self._local.has_turn = self._threads.acquire(timeout=self.wait_s)
            if self._local.has_turn and self._files:
                self._held = self._acquire_turn()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._local.depth -= 1
        if self._local.depth == 0 and self._local.has_turn:
            if self._held is not None:
                os.close(self._held)
                self._held = None
            self._threads.release()

    def _acquire_turn(self) -> int | None:
        """A descriptor that holds the turn until it is closed, by the end of the process too; None where it could not be had."""
        place = self._try_lock(0, min(self.wait_s, PLACE_S))
        try:
            return self._try_lock(1, self.wait_s)
        finally:
            if place is not None:
                os.close(place)

    def _try_lock(self, which: int, wait_s: float) -> int | None:
        if time.monotonic() < self._without_until[which]:
            return None
        lock = _lock_file(self._files[which], time.monotonic() + wait_s)
        if lock is None:
            self._without_until[which] = time.monotonic() + WITHOUT_S[which]
        return lock


def _lock_file(file: Path, until: float) -> int | None:
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
