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

POLL_S, PLACE_S, WITHOUT_S = 0.002, 1.0, (10.0, 2.0)
"""How often a lock is asked for, and how long for the place in front; how long is done without the place, and without the turn, where
it was not had in time."""


class WriteTurns:
    """A context manager for the threads of this process; with a `database`, for all processes that write to that file.

    Whoever does not get the turn in `wait_s` does without: SQLite's own lock decides then, and who was stopped while writing is told of
    there. For WITHOUT_S the others do without at once, so that not every writer waits for one that was stopped.
    """

    def __init__(self, database: Path | None, *, wait_s: float) -> None:
        self._threads, self._mine, self.wait_s = threading.Lock(), threading.local(), wait_s
        self._files = (
            [database.with_name(f".{database.name}.{name}.lock") for name in ("next", "turn")] if database else []
        )
        self._held: int | None = None
        self._without_until = [float("-inf")] * 2

    def __enter__(self) -> None:
        self._mine.depth = getattr(self._mine, "depth", 0) + 1
        if self._mine.depth > 1:
            return
        self._mine.has_turn = False
        try:
            self._mine.has_turn = self._threads.acquire(timeout=self.wait_s)
            if self._mine.has_turn and self._files:
                self._held = self._taken()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._mine.depth -= 1
        if self._mine.depth == 0 and self._mine.has_turn:
            if self._held is not None:
                os.close(self._held)
                self._held = None
            self._threads.release()

    def _taken(self) -> int | None:
        """A descriptor that holds the turn until it is closed, also by the end of the process; None where it could not be had."""
        place = self._locked(0, min(self.wait_s, PLACE_S))
        try:
            return self._locked(1, self.wait_s)
        finally:
            if place is not None:
                os.close(place)

    def _locked(self, which: int, wait_s: float) -> int | None:
        if time.monotonic() < self._without_until[which]:
            return None
        lock = _locked(self._files[which], time.monotonic() + wait_s)
        if lock is None:
            self._without_until[which] = time.monotonic() + WITHOUT_S[which]
        return lock


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
