"""Processes for work on pictures: with little memory and little time, and after whoever answers requests.

A picture decoder is the part of a service most often broken into or brought down, and one that works keeps Python's lock for long.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MEMORY_BYTES = 4 << 30
NICE = 10
"""How far they stand back where all cores are busy."""


@dataclass
class Confined:
    """A pool of such processes, started when the first work comes."""

    workers: int
    _pool: Any = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def begin(self, work: Callable[..., Any], *args: Any, timeout_s: float) -> Any:
        """Do a function of a module in one of the processes; a future.

        Its result raises TimeoutError where the process was ended after `timeout_s`, pebble.ProcessExpired where it ended by itself.
        """
        return self._opened().schedule(work, args=list(args), timeout=timeout_s)

    def close(self) -> None:
        """End the processes."""
        with self._lock:
            if self._pool is not None:
                self._pool.stop()
                self._pool.join()

    def _opened(self) -> Any:
        with self._lock:
            if self._pool is None:
                from pebble import ProcessPool

                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPool(max_workers=self.workers, initializer=_confine, context=context)
            return self._pool


def _confine() -> None:
    """Less memory than the machine has, one thread, no core dump with a photo in it, and no word of what decoders complain of."""
    import os
    import resource

    os.nice(NICE)
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
