"""Taking photos in: each is decoded and measured in a process of its own kind, with little memory and little time.

A picture decoder is the part of a service most often broken into or brought down. Here a hostile file can end a worker, and
its sender is told that the photo cannot be used.
"""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import TimeoutError as TooLong
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from photoflux.params import ValidateParams

if TYPE_CHECKING:
    from PIL import Image

    from photoflux.photos.table import Examined

log = logging.getLogger(__name__)

SECONDS, MEMORY_BYTES = 30.0, 4 << 30
STORED_PX, LONGEST_PX, THUMBNAIL_PX = 2048, 16_384, 320
"""Short and long side of what is stored at most: enough for training at 1024² with room to crop, and no more than JPEG can hold.
Long side of what is shown in lists."""
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
    """A pool of decoding processes, started when the first photo comes."""

    params: ValidateParams
    workers: int = 2
    _pool: Any = field(default=None, repr=False)

    def take(self, files: Sequence[bytes]) -> list[Taken]:
        """Decode, measure and shrink files; one after which a process had to be ended is no photo."""
        pool = self._opened()
        jobs = [pool.schedule(take, args=[data, self.params], timeout=SECONDS) for data in files]
        return [_result(job) for job in jobs]

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()

    def _opened(self) -> Any:
        if self._pool is None:
            from pebble import ProcessPool

            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPool(max_workers=self.workers, initializer=_confine, context=context)
        return self._pool


def _result(job: Any) -> Taken:
    from pebble import ProcessExpired

    try:
        taken = job.result()
        assert isinstance(taken, Taken)
        return taken
    except Exception as error:  # whatever a file does to a decoder is said of the file
        expected = isinstance(error, TooLong | ProcessExpired | MemoryError)
        (log.info if expected else log.exception)("a photo could not be decoded: %s", type(error).__name__)
        return refused("corrupt", CRASHED)


def refused(problem: str, message: str) -> Taken:
    """What is kept of a file that is not taken: why."""
    from photoflux.photos.table import UNKNOWN

    return Taken({"file": "", **UNKNOWN, "problem": problem, "problem_message": message})


def _confine() -> None:
    """Less memory than the machine has, one thread, no core dump with a photo in it, and no word of what decoders complain of."""
    import os
    import resource

    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


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

    from photoflux.photos.inspect import Fingerprint
    from photoflux.photos.table import Examined

    with np.load(io.BytesIO(measured), allow_pickle=False) as file:
        row = json.loads(str(file["row"])) | {"file": name}
        phash, dhash = ((file[kind][0], file[kind][1]) for kind in ("phash", "dhash"))
        return Examined(row, Fingerprint(row["sha256"], phash, dhash, file["thumb"]), file["background"])
