"""From an image of the engine to the file that is delivered: style filter, size, watermark, format and, last of all, credentials."""

from __future__ import annotations

import io
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from api.transport.concurrency import RETRY_S, FairLimiter
from api.transport.problems import Problem
from photoflux.images import encode_image, fit_to_size, parse_size
from photoflux.sandbox import ProcessDied, SandboxPool
from photoflux.styles import FILTERS
from photoflux.watermark import embed

if TYPE_CHECKING:
    from PIL import Image

    from api.images.credentials import Credentials

SIDE_MAX = 2048
"""Pixels of the longer side that may be asked for: an image of this size takes 0.1 GB and two seconds to convert."""
WAIT_S, CPU_S, TIMEOUT_S = 10.0, 20.0, 60.0
"""Seconds that a conversion waits for its turn before it is refused; processor time and wall time that it may take then."""
BUSY = "Many pictures are being converted; ask for yours again in a moment."
MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp", "tiff": "image/tiff"}


@dataclass(frozen=True)
class RenderRequest:
    """How an image is to be rendered: `size` is WIDTHxHEIGHT, `provenance` what its file says of its making."""

    size: str
    format: str
    style: str
    provenance: dict[str, str]


@dataclass(frozen=True)
class ImageRenderer:
    """Renders image files. Each is watermarked at its own size and signed last, since neither survives a change."""

    credentials: Credentials
    conversions: FairLimiter = field(
        default_factory=lambda: FairLimiter(1, per_person=1, wait_s=WAIT_S, busy_message=BUSY)
    )
    """Conversions for requests: one at a time, in a process that is started when the first one comes."""
    processes: SandboxPool = field(
        default_factory=lambda: SandboxPool(1, preload=("api.images.rendering", "PIL.Image"))
    )
    downloads: FairLimiter = field(
        default_factory=lambda: FairLimiter(64, per_person=8, wait_s=WAIT_S, busy_message=BUSY)
    )
    """Images being sent: browsers ask for six at a time."""

    def render(self, png: bytes, request: RenderRequest) -> bytes:
        """The signed file of an image that the engine gave as PNG."""
        style = FILTERS.get(request.style, lambda same: same)
        image = style(fit_to_size(_opened(png), parse_size(request.size)))
        return self.credentials.sign(_encoded(image, request.format, request.provenance), MEDIA_TYPES[request.format])

    def convert(
        self, file: bytes, *, size: str | None, fmt: str | None, stored_format: str, provenance: dict[str, str]
    ) -> bytes:
        """A rendered file in another size or format; the same bytes when neither differs from what is stored.

        A problem of 503 where it took too long.
        """
        from PIL import Image

        with Image.open(io.BytesIO(file)) as header:
            wanted, fmt = parse_size(size) if size else header.size, fmt or stored_format
            if (wanted, fmt) == (header.size, stored_format):
                return file
        task = self.processes.submit(convert_file, file, wanted, fmt, provenance, cpu_s=CPU_S, timeout_s=TIMEOUT_S)
        try:
            return self.credentials.sign(task.result(), MEDIA_TYPES[fmt])
        except (TimeoutError, CancelledError, ProcessDied) as error:
            raise Problem(503, "busy", BUSY, headers={"Retry-After": str(RETRY_S)}) from error

    def close(self) -> None:
        """End the process that converts."""
        self.processes.close()


def convert_file(file: bytes, size: tuple[int, int], fmt: str, provenance: dict[str, str]) -> bytes:
    """An image file in another size or format, watermarked anew; runs in a confined process."""
    return _encoded(fit_to_size(_opened(file), size), fmt, provenance)


def _encoded(image: Image.Image, fmt: str, provenance: dict[str, str]) -> bytes:
    return encode_image(embed(image), fmt, provenance=provenance, quick=True)


def checked_size(text: str) -> tuple[int, int]:
    """Width and height of an image that is asked for. A problem of 422 for a side beyond SIDE_MAX. Raises InputError."""
    size = parse_size(text)
    if max(size) > SIDE_MAX:
        raise Problem(422, "invalid", f"A side has at most {SIDE_MAX} pixels.")
    return size


def _opened(file: bytes) -> Image.Image:
    from PIL import Image

    with Image.open(io.BytesIO(file)) as image:
        return image.convert("RGB")
