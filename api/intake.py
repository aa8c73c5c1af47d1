"""Taking photos in: each is decoded and measured in a confined process.

A hostile file can end such a process, and its sender is told that the photo cannot be used.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from api.confined import Confined, Ended, Failed
from api.held import RETRY_S
from api.problems import Problem
from photoflux.params import ValidateParams
from photoflux.photos.inspect import Likeness

if TYPE_CHECKING:
    from PIL import Image

    from photoflux.photos.inspect import Fingerprint
    from photoflux.photos.table import Examined, Pair

log = logging.getLogger(__name__)

CPU_S, TIMEOUT_S = 30.0, 120.0
"""Of processor time for a photo; and all told, where the machine is busy with other things."""
PAIRS_AT_ONCE = 100
STORED_PX, LONGEST_PX, THUMBNAIL_PX = 2048, 16_384, 320
"""Short and long side of what is stored at most: enough for training at 1024² with room to crop, and no more than JPEG can hold.
Long side of what is shown in lists."""
BUSY = "The machine is busy, and a photo took too long to look at; send it again in a moment."
CRASHED = "could not be decoded: export the photo again as JPEG or PNG"


@dataclass(frozen=True)
class Taken:
    """A photo as it is kept: upright sRGB pixels without metadata. `measured` is what comparing it with others needs.

    A file that is no photo has its row alone, which says why.
    """

    row: dict[str, Any]
    photo: bytes = b""
    thumbnail: bytes = b""
    size: tuple[int, int] = (0, 0)
    measured: bytes = b""


@dataclass
class Intake:
    """Takes photos, in processes that are started when the first one comes."""

    params: ValidateParams
    processes: Confined = field(
        default_factory=lambda: Confined(2, needs=("photoflux.photos.table",), gives=(Taken, Likeness))
    )

    def take(self, files: Sequence[bytes], person: str = "") -> list[Taken]:
        """Decode, measure and shrink a person's files; one that ended its process is no photo. A problem of 503 where one took too long.

        Few of them wait in front of others' at a time, so that one photo does not wait behind twenty.
        """
        jobs, taken = deque[Any](), list[Taken]()
        for data in files:
            jobs.append(self.processes.begin(take, data, self.params, cpu_s=CPU_S, timeout_s=TIMEOUT_S, person=person))
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
            job = self.processes.begin(
                likenesses, [pairs[pair] for pair in some], cpu_s=CPU_S, timeout_s=TIMEOUT_S, person=person
            )
            try:
                found |= zip(some, job.result(), strict=True)
            except (TimeoutError, CancelledError, Ended) as error:
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
    except Ended:  # whatever a file does to a decoder is said of the file
        log.info("a photo ended its decoder")
    except Failed as error:
        (log.info if str(error) == "MemoryError" else log.error)("a photo could not be decoded: %s", error)
    return refused("corrupt", CRASHED)


def _busy() -> Problem:
    return Problem(503, "busy", BUSY, headers={"Retry-After": str(RETRY_S)})


def refused(problem: str, message: str) -> Taken:
    """What is kept of a file that is not taken: why."""
    from photoflux.photos.table import UNKNOWN

    return Taken({"file": "", **UNKNOWN, "problem": problem, "problem_message": message})


def take(data: bytes, params: ValidateParams) -> Taken:
    """What is kept of one file; runs in a decoding process."""
    from photoflux.photos.table import examine

    seen: list[Image.Image] = []
    one = examine("", data, params=params, keep=lambda _, image: seen.append(image))
    if not seen:
        return Taken(one.row)
    photo = _shrunk(seen[0], min(STORED_PX / min(seen[0].size), LONGEST_PX / max(seen[0].size)))
    small = _shrunk(photo, THUMBNAIL_PX / max(photo.size))
    return Taken(one.row, _jpeg(photo, 95), _jpeg(small, 85), photo.size, pack(one))


def _shrunk(image: Image.Image, factor: float) -> Image.Image:
    from PIL import Image

    if factor >= 1:
        return image
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def pack(one: Examined) -> bytes:
    """Row and fingerprint as bytes, to be sealed."""
    import numpy as np

    assert one.print is not None
    values: dict[str, Any] = {name: np.asarray(getattr(one.print, name)) for name in ("phash", "dhash", "thumb")}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, row=json.dumps(one.row), background=np.asarray(one.background), **values)
    return buffer.getvalue()


def unpack(measured: bytes, *, name: str) -> Examined:
    """What `pack` packed, under the name that verdicts call the photo by."""
    import numpy as np

    from photoflux.photos.inspect import Fingerprint, contrast
    from photoflux.photos.table import Examined

    with np.load(io.BytesIO(measured), allow_pickle=False) as file:
        row = json.loads(str(file["row"])) | {"file": name}
        if "contrast" not in row:  # packed before it was measured: of the small picture that is here it says the same
            row |= {"contrast": contrast(file["thumb"]), "luma_p1": float(np.percentile(file["thumb"], 1)) / 255}
        phash, dhash = ((file[kind][0], file[kind][1]) for kind in ("phash", "dhash"))
        return Examined(row, Fingerprint(row["sha256"], phash, dhash, file["thumb"]), file["background"])
