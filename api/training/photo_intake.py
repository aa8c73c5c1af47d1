"""Photo intake: each uploaded file is decoded and measured in a confined process.

A hostile file can at most end that process; its sender is then told that the photo cannot be used
(docs/decisions/0020).
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from api.training.photo_decoding import DecodedUpload, decode_upload, rejected
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
"""Seconds of processor time per photo, and of wall time, where the machine is busy with other things."""
PAIRS_AT_ONCE = 100
BUSY = "The machine is busy, and a photo took too long to look at; send it again in a moment."
CRASHED = "could not be decoded: export the photo again as JPEG or PNG"


@dataclass
class PhotoIntake:
    """Decodes and compares photos, in processes that are started when the first one comes."""

    params: ValidateParams
    processes: SandboxPool = field(
        default_factory=lambda: SandboxPool(
            2, preload=("photoflux.photos.table",), result_types=(DecodedUpload, Likeness)
        )
    )

    def decode(self, files: Sequence[bytes], person: str = "") -> list[DecodedUpload]:
        """Decode, measure and shrink a person's files; one that ended its process is no photo. A problem of 503 where one took too long.

        As many are under way as there are processes: another person's photo then waits behind two of these, not behind twenty.
        """
        tasks, decoded = deque[Any](), list[DecodedUpload]()
        for data in files:
            tasks.append(
                self.processes.submit(decode_upload, data, self.params, cpu_s=CPU_S, timeout_s=TIMEOUT_S, person=person)
            )
            if len(tasks) >= self.processes.workers:
                decoded.append(_result(tasks.popleft()))
        return decoded + [_result(task) for task in tasks]

    def compare(
        self, prints: Sequence[Fingerprint], known: Mapping[Pair, Likeness], person: str = ""
    ) -> dict[Pair, Likeness]:
        """The likeness of each pair of photos that `known` lacks. A problem of 503 where it took too long.

        PAIRS_AT_ONCE at a time, so that others' photos do not wait behind a large set.
        """
        from photoflux.photos.table import likenesses, pair_of

        pairs = {pair_of(a, b): (a, b) for a, b in itertools.combinations(prints, 2)}
        missing = [pair for pair in pairs if pair not in known]
        found: dict[Pair, Likeness] = {}
        for start in range(0, len(missing), PAIRS_AT_ONCE):
            some = missing[start : start + PAIRS_AT_ONCE]
            task = self.processes.submit(
                likenesses, [pairs[pair] for pair in some], cpu_s=CPU_S, timeout_s=TIMEOUT_S, person=person
            )
            try:
                found |= zip(some, task.result(), strict=True)
            except (TimeoutError, CancelledError, ProcessDied) as error:
                raise _busy() from error
        return found

    def close(self) -> None:
        """End the processes."""
        self.processes.close()


def _result(task: Any) -> DecodedUpload:
    try:
        decoded = task.result()
        assert isinstance(decoded, DecodedUpload)
        return decoded
    except (TimeoutError, CancelledError) as error:
        raise _busy() from error
    except ProcessDied:  # whatever a file does to a decoder is said of the file
        log.info("a photo ended its decoder")
    except WorkFailed as error:
        (log.info if str(error) == "MemoryError" else log.error)("a photo could not be decoded: %s", error)
    return rejected("corrupt", CRASHED)


def _busy() -> Problem:
    return Problem(503, "busy", BUSY, headers={"Retry-After": str(RETRY_S)})
