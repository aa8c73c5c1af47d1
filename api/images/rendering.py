"""From a drawn picture to the file that somebody gets: style filter, size, mark, format and, last of all, credentials."""

from __future__ import annotations

import io
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from api.transport.concurrency import RETRY_S, Turns
from api.transport.problems import Problem
from photoflux.images import encode_image, fit_to_size, parse_size
from photoflux.sandbox import ProcessDied, SandboxPool
from photoflux.styles import FILTERS
from photoflux.watermark import embed

if TYPE_CHECKING:
    from PIL import Image

    from api.images.credentials import Credentials

SIDE_MAX = 2048
"""Pixels of a side of what is asked for: a picture of this size takes 0.1 GB and two seconds to convert."""
WAIT_S, CPU_S, TIMEOUT_S = 10.0, 20.0, 60.0
"""How long a conversion waits for its turn before it is sent away; processor time that it may take then, and time."""
BUSY = "Many pictures are being converted; ask for yours again in a moment."
MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "tiff": "image/tiff"}


@dataclass(frozen=True)
class Order:
    """How a picture is wanted: `size` WIDTHxHEIGHT, and what its file says of its making."""

    size: str
    format: str
    style: str
    provenance: dict[str, str]


@dataclass(frozen=True)
class Delivery:
    """Finishes pictures. Each file is marked at its own size and signed as it is, since either ends with any change."""

    credentials: Credentials
    turns: Turns = field(default_factory=lambda: Turns(1, per_person=1, wait_s=WAIT_S, told=BUSY))
    """Conversions for requests: one at a time, in a process that is started when the first one comes."""
    processes: SandboxPool = field(
        default_factory=lambda: SandboxPool(1, preload=("api.images.rendering", "PIL.Image"))
    )
    answers: Turns = field(default_factory=lambda: Turns(64, per_person=8, wait_s=WAIT_S, told=BUSY))
    """Pictures on their way to whoever asked: browsers ask for six at a time."""

    def finished(self, drawn: bytes, order: Order) -> bytes:
        """The file of a picture as the engine drew it."""
        image = FILTERS.get(order.style, lambda same: same)(fit_to_size(_opened(drawn), parse_size(order.size)))
        return self.credentials.sign(_file(image, order.format, order.provenance), MEDIA_TYPES[order.format])

    def converted(
        self, file: bytes, *, size: str | None, fmt: str | None, kept: str, provenance: dict[str, str]
    ) -> bytes:
        """A finished picture in another size or format; the same bytes when neither differs from what is kept.

        A problem of 503 where it took too long.
        """
        from PIL import Image

        with Image.open(io.BytesIO(file)) as header:
            wanted, fmt = parse_size(size) if size else header.size, fmt or kept
            if (wanted, fmt) == (header.size, kept):
                return file
        job = self.processes.submit(convert, file, wanted, fmt, provenance, cpu_s=CPU_S, timeout_s=TIMEOUT_S)
        try:
            return self.credentials.sign(job.result(), MEDIA_TYPES[fmt])
        except (TimeoutError, CancelledError, ProcessDied) as error:
            raise Problem(503, "busy", BUSY, headers={"Retry-After": str(RETRY_S)}) from error

    def close(self) -> None:
        """End the process that converts."""
        self.processes.close()


def convert(file: bytes, size: tuple[int, int], fmt: str, provenance: dict[str, str]) -> bytes:
    """A picture's file in another size or format, marked anew; runs in a confined process."""
    return _file(fit_to_size(_opened(file), size), fmt, provenance)


def _file(image: Image.Image, fmt: str, provenance: dict[str, str]) -> bytes:
    return encode_image(embed(image), fmt, provenance=provenance, quick=True)


def checked_size(text: str) -> tuple[int, int]:
    """Width and height of a picture that is asked for. A problem of 422 for a side beyond SIDE_MAX. Raises InputError."""
    size = parse_size(text)
    if max(size) > SIDE_MAX:
        raise Problem(422, "invalid", f"A side has at most {SIDE_MAX} pixels.")
    return size


def _opened(file: bytes) -> Image.Image:
    from PIL import Image

    with Image.open(io.BytesIO(file)) as image:
        return image.convert("RGB")
