"""Processes for work on pictures: with little memory and little time, and after whoever answers requests.

A picture decoder is the part of a service most often broken into or brought down, and one that works keeps Python's lock for long.
"""

from __future__ import annotations

import importlib
import math
import multiprocessing
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

MEMORY_BYTES = 4 << 30
NICE = 10
"""How far they stand back where all cores are busy."""


@dataclass
class Confined:
    """A pool of such processes, started when the first work comes."""

    workers: int
    needs: tuple[str, ...] = ()
    """Modules that each process imports before its first work, whose time that would otherwise take."""
    _pool: Any = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def begin(self, work: Callable[..., Any], *args: Any, cpu_s: float, timeout_s: float) -> Any:
        """Do a function of a module in one of the processes; a future.

        Its result raises TimeoutError where the process was ended after `timeout_s`, which says as much of the machine as of the work;
        pebble.ProcessExpired where it ended by itself, or took `cpu_s` of processor time.
        """
        return self._opened().schedule(_bounded, args=[work, cpu_s, *args], timeout=timeout_s)

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
                self._pool = ProcessPool(
                    max_workers=self.workers, initializer=_confine, initargs=[self.needs], context=context
                )
            return self._pool


def _bounded(work: Callable[..., Any], cpu_s: float, *args: Any) -> Any:
    import resource

    spent = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(spent.ru_utime + spent.ru_stime + cpu_s)
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))
    return work(*args)


def _confine(needs: Sequence[str]) -> None:
    """Less memory than the machine has, one thread, no core dump with a photo in it, and no word of what decoders complain of."""
    import os
    import resource

    os.nice(NICE)
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for module in needs:
        importlib.import_module(module)
