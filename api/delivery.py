"""From a drawn picture to the file that somebody gets: style filter, size, mark, format and, last of all, credentials."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from api.held import Turns
from api.problems import Problem
from photoflux.images import encoded, fitted, parse_size
from photoflux.marks import marked
from photoflux.styles import FILTERS

if TYPE_CHECKING:
    from PIL import Image

    from api.credentials import Credentials

SIDE_MAX = 2048
"""Pixels of a side of what is asked for: a picture of this size takes 0.1 GB and two seconds to convert."""
WAIT_S = 10.0
"""How long a conversion waits for its turn before it is sent away."""
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
    """Conversions for requests: one at a time in this process."""
    answers: Turns = field(default_factory=lambda: Turns(64, per_person=8, wait_s=WAIT_S, told=BUSY))
    """Pictures on their way to whoever asked: browsers ask for six at a time."""

    def finished(self, drawn: bytes, order: Order) -> bytes:
        """The file of a picture as the engine drew it."""
        image = FILTERS.get(order.style, lambda same: same)(fitted(_opened(drawn), parse_size(order.size)))
        return self._file(image, order.format, order.provenance)

    def converted(
        self, file: bytes, *, size: str | None, fmt: str | None, kept: str, provenance: dict[str, str]
    ) -> bytes:
        """A finished picture in another size or format; the same bytes when neither differs from what is kept."""
        from PIL import Image

        with Image.open(io.BytesIO(file)) as header:
            wanted = parse_size(size) if size else header.size
            if wanted == header.size and fmt in (None, kept):
                return file
        return self._file(fitted(_opened(file), wanted), fmt or kept, provenance)

    def _file(self, image: Image.Image, fmt: str, provenance: dict[str, str]) -> bytes:
        file = encoded(marked(image), fmt, provenance=provenance, quick=True)
        return self.credentials.sign(file, MEDIA_TYPES[fmt])


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
