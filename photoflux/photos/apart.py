"""Decoding in a process of its own, for formats whose decoder a damaged file can end, and with it whoever called.

libheif is one: some two in ten thousand files with random damage end it. Decoders of the other formats have not been seen to.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import cache
from typing import Any

from photoflux.photos.kinds import corrupt
from photoflux.sandbox import Confined, Ended, Failed

CPU_S, TIMEOUT_S = 30.0, 120.0
"""Of processor time, and in all; as the service has them for what is uploaded."""


def decode_apart(work: Callable[..., Any], *args: Any) -> Any:
    """What `work` gives, which must be of Python's own types. Raises PhotoProblem where it ended its process, or took too long."""
    try:
        return _processes().begin(work, *args, cpu_s=CPU_S, timeout_s=TIMEOUT_S).result()
    except (Ended, Failed, TimeoutError, CancelledError) as error:
        raise corrupt() from error


@cache
def _processes() -> Confined:
    return Confined(1, needs=("photoflux.photos.decode",))
