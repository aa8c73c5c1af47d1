"""From a drawn picture to the file that somebody gets: style filter, size, mark, format and, last of all, credentials."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from photoflux.images import encoded, fitted, parse_size
from photoflux.marks import marked
from photoflux.styles import FILTERS

if TYPE_CHECKING:
    from PIL import Image

    from api.credentials import Credentials

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

    def finished(self, drawn: bytes, order: Order) -> bytes:
        """The file of a picture as the engine drew it."""
        image = FILTERS.get(order.style, lambda same: same)(fitted(_opened(drawn), parse_size(order.size)))
        return self._file(image, order.format, order.provenance)

    def converted(
        self, file: bytes, *, size: str | None, fmt: str | None, kept: str, provenance: dict[str, str]
    ) -> bytes:
        """A finished picture in another size or format; the same bytes when neither differs from what is kept."""
        image = _opened(file)
        wanted = parse_size(size) if size else image.size
        if wanted == image.size and fmt in (None, kept):
            return file
        return self._file(fitted(image, wanted), fmt or kept, provenance)

    def _file(self, image: Image.Image, fmt: str, provenance: dict[str, str]) -> bytes:
        file = encoded(marked(image), fmt, provenance=provenance, quick=True)
        return self.credentials.sign(file, MEDIA_TYPES[fmt])


def _opened(file: bytes) -> Image.Image:
    from PIL import Image

    with Image.open(io.BytesIO(file)) as image:
        return image.convert("RGB")
