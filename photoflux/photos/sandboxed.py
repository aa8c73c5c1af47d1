"""Decode in a sandboxed process, for formats whose decoder a damaged file can crash, and the calling process with it.

libheif is one: about two in ten thousand files with random damage crash it. No other format's decoder was seen to crash.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import cache
from typing import Any

from photoflux.photos.kinds import corrupt
from photoflux.sandbox import ProcessDied, SandboxPool, WorkFailed

CPU_S, TIMEOUT_S = 30.0, 120.0
"""Processor time and wall time in seconds; the service has the same for uploads."""


def decode_in_sandbox(work: Callable[..., Any], *args: Any) -> Any:
    """The result of `work`, of Python's literal types. Raises PhotoProblem where it crashed its process or took too long."""
    try:
        return _sandbox().submit(work, *args, cpu_s=CPU_S, timeout_s=TIMEOUT_S).result()
    except (ProcessDied, WorkFailed, TimeoutError, CancelledError) as error:
        raise corrupt() from error


@cache
def _sandbox() -> SandboxPool:
    return SandboxPool(1, preload=("photoflux.photos.decode",))
