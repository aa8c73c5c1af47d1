"""Taking photos in: each is decoded and measured in a confined process.

A hostile file can end such a process, and its sender is told that the photo cannot be used.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from api.training.photo_decoding import Taken, refused, take
from api.transport.concurrency import RETRY_S
from api.transport.problems import Problem
from photoflux.params import ValidateParams
from photoflux.photos.inspect import Likeness
from photoflux.sandbox import ProcessDied, SandboxPool, WorkFailed

if TYPE_CHECKING:
    from photoflux.photos.inspect import Fingerprint
    from photoflux.photos.table import Pair

log = logging.getLogger(__name__)

CPU_S, TIMEOUT_S = 30.0, 120.0
"""Of processor time for a photo; and all told, where the machine is busy with other things."""
PAIRS_AT_ONCE = 100
BUSY = "The machine is busy, and a photo took too long to look at; send it again in a moment."
CRASHED = "could not be decoded: export the photo again as JPEG or PNG"


@dataclass
class Intake:
    """Takes photos, in processes that are started when the first one comes."""

    params: ValidateParams
    processes: SandboxPool = field(
        default_factory=lambda: SandboxPool(2, preload=("photoflux.photos.table",), result_types=(Taken, Likeness))
    )

    def take(self, files: Sequence[bytes], person: str = "") -> list[Taken]:
        """Decode, measure and shrink a person's files; one that ended its process is no photo. A problem of 503 where one took too long.

        Few of them wait in front of others' at a time, so that one photo does not wait behind twenty.
        """
        jobs, taken = deque[Any](), list[Taken]()
        for data in files:
            jobs.append(self.processes.submit(take, data, self.params, cpu_s=CPU_S, timeout_s=TIMEOUT_S, person=person))
            if len(jobs) >= self.processes.workers:
                taken.append(_result(jobs.popleft()))
        return taken + [_result(job) for job in jobs]

    def compare(
        self, prints: Sequence[Fingerprint], known: Mapping[Pair, Likeness], person: str = ""
    ) -> dict[Pair, Likeness]:
        """How alike photos are, each with each, but for pairs that are known. A problem of 503 where it took too long.

        Some pairs at a time, so that others' photos do not wait behind a large set.
        """
        from photoflux.photos.table import likenesses, pair_of

        pairs = {pair_of(a, b): (a, b) for a, b in itertools.combinations(prints, 2)}
        missing = [pair for pair in pairs if pair not in known]
        found: dict[Pair, Likeness] = {}
        for start in range(0, len(missing), PAIRS_AT_ONCE):
            some = missing[start : start + PAIRS_AT_ONCE]
            job = self.processes.submit(
                likenesses, [pairs[pair] for pair in some], cpu_s=CPU_S, timeout_s=TIMEOUT_S, person=person
            )
            try:
                found |= zip(some, job.result(), strict=True)
            except (TimeoutError, CancelledError, ProcessDied) as error:
                raise _busy() from error
        return found

    def close(self) -> None:
        """End the processes."""
        self.processes.close()


def _result(job: Any) -> Taken:
    try:
        taken = job.result()
        assert isinstance(taken, Taken)
        return taken
    except (TimeoutError, CancelledError) as error:
        raise _busy() from error
    except ProcessDied:  # whatever a file does to a decoder is said of the file
        log.info("a photo ended its decoder")
    except WorkFailed as error:
        (log.info if str(error) == "MemoryError" else log.error)("a photo could not be decoded: %s", error)
    return refused("corrupt", CRASHED)


def _busy() -> Problem:
    return Problem(503, "busy", BUSY, headers={"Retry-After": str(RETRY_S)})
