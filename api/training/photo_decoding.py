"""Decoding, measuring and shrinking one uploaded file, in a confined process.

This module imports nothing else of the service: a decoding process then starts several times as fast and is several times as small.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from photoflux.params import ValidateParams

if TYPE_CHECKING:
    from PIL import Image

    from photoflux.photos.table import Examined

STORED_PX, LONGEST_PX, THUMBNAIL_PX = 2048, 16_384, 320
"""Short and long side of what is stored at most: enough for training at 1024² with room to crop, and no more than JPEG can hold.
Long side of what is shown in lists."""


@dataclass(frozen=True)
class DecodedUpload:
    """A photo as it is stored: upright sRGB pixels without metadata, as JPEG. `measured` is what comparing it with others needs.

    A file that is no photo has a row alone, which says why.
    """

    row: dict[str, Any]
    photo: bytes = b""
    thumbnail: bytes = b""
    size: tuple[int, int] = (0, 0)
    measured: bytes = b""


def rejected(problem: str, message: str) -> DecodedUpload:
    """The result for a file that is not accepted: a row that says why."""
    from photoflux.photos.table import UNKNOWN

    return DecodedUpload({"file": "", **UNKNOWN, "problem": problem, "problem_message": message})


def decode_upload(data: bytes, params: ValidateParams) -> DecodedUpload:
    """Decode, measure and shrink one file; runs in a decoding process."""
    from photoflux.photos.table import examine

    seen: list[Image.Image] = []
    one = examine("", data, params=params, on_decoded=lambda _, image: seen.append(image))
    if not seen:
        return DecodedUpload(one.row)
    photo = _shrunk(seen[0], min(STORED_PX / min(seen[0].size), LONGEST_PX / max(seen[0].size)))
    small = _shrunk(photo, THUMBNAIL_PX / max(photo.size))
    return DecodedUpload(one.row, _jpeg(photo, 95), _jpeg(small, 85), photo.size, pack(one))


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
    """A photo's measured row and fingerprint as bytes (npz), to be sealed."""
    import numpy as np

    assert one.print is not None
    values: dict[str, Any] = {name: np.asarray(getattr(one.print, name)) for name in ("phash", "dhash", "thumb")}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, row=json.dumps(one.row), background=np.asarray(one.background), **values)
    return buffer.getvalue()


def unpack(measured: bytes, *, name: str) -> Examined:
    """The inverse of `pack`; verdicts call the photo by `name`."""
    import numpy as np

    from photoflux.photos.inspect import Fingerprint, contrast
    from photoflux.photos.table import Examined

    with np.load(io.BytesIO(measured), allow_pickle=False) as file:
        row = json.loads(str(file["row"])) | {"file": name}
        if "contrast" not in row:  # packed by an older program: measured on the thumbnail, contrast comes out the same
            row |= {"contrast": contrast(file["thumb"]), "luma_p1": float(np.percentile(file["thumb"], 1)) / 255}
        phash, dhash = ((file[kind][0], file[kind][1]) for kind in ("phash", "dhash"))
        return Examined(row, Fingerprint(row["sha256"], phash, dhash, file["thumb"]), file["background"])
