"""Pictures that are neither taken nor given out: known ones by their perceptual hash, others by a classifier.

Everything fails closed: what cannot be looked at is not passed. Without a classifier, which production insists on, only known
pictures are found.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from photoflux.errors import InputError, PhotoFluxError

if TYPE_CHECKING:
    from api.settings import ApiSettings

log = logging.getLogger(__name__)

DISTANCE_MAX = 6
"""Bits of 64 in which a known picture may differ after it was saved anew, shrunk or mirrored."""
CLASSES = ("adult", "violence", "racy")
LIKELY = {"adult": 4, "violence": 4, "racy": 5}
"""From which of Cloud Vision's likelihoods on, 1 very unlikely to 5 very likely, a picture is refused."""
TIMEOUT_S = 10.0


class UnsafePicture(PhotoFluxError):
    """A picture that is neither taken nor given out. The message does not say what was seen."""


class Unchecked(PhotoFluxError):
    """A picture could not be looked at now."""


class Check(Protocol):
    def __call__(self, picture: bytes) -> None:
        """Raises UnsafePicture, or Unchecked."""


@dataclass(frozen=True)
class Guard:
    """All checks, one after the other."""

    checks: Sequence[Check] = ()

    def look(self, picture: bytes) -> None:
        """Raises UnsafePicture, or Unchecked where a check failed in any way."""
        for check in self.checks:
            try:
                check(picture)
            except UnsafePicture:
                raise
            except Exception as error:
                log.warning("a picture could not be checked: %s", type(error).__name__)
                raise Unchecked("pictures cannot be checked now; try again in a minute") from error


class KnownPictures:
    """Pictures whose hashes are listed in a file, 16 hexadecimal digits a line; # begins a remark."""

    def __init__(self, file: Path) -> None:
        import numpy as np

        lines = [line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
        try:
            known = [np.unpackbits(np.frombuffer(bytes.fromhex(line), dtype=np.uint8)) for line in lines if line]
            self._known = np.stack(known) if known else np.zeros((0, 64), dtype=np.uint8)
            if self._known.shape[1] != 64:
                raise ValueError("another length")
        except ValueError as error:
            raise InputError(f"{file}: every line is a hash of 16 hexadecimal digits; mend it") from error

    def __call__(self, picture: bytes) -> None:
        import numpy as np

        for bits in _hashes(picture):
            if np.any(np.count_nonzero(self._known != bits, axis=1) <= DISTANCE_MAX):
                raise UnsafePicture("this picture is not taken here")


def _hashes(picture: bytes) -> list[Any]:
    """The perceptual hash of a picture and of its mirror image, 64 bits each."""
    from PIL import Image

    from photoflux.photos.inspect import phash

    with Image.open(io.BytesIO(picture)) as opened:
        image = opened.convert("RGB")
    return [phash(one) for one in (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))]


class SafeSearch:
    """Google's Cloud Vision, which sees the picture and keeps nothing of it."""

    def __init__(self, client: Any = None) -> None:
        self._client = client

    def __call__(self, picture: bytes) -> None:
        from google.cloud import vision

        self._client = self._client or vision.ImageAnnotatorClient()
        image = vision.Image(content=picture)
        said = self._client.safe_search_detection(image=image, timeout=TIMEOUT_S)
        if said.error.code:
            raise Unchecked("the classifier gave no answer")
        seen = said.safe_search_annotation
        if any(int(getattr(seen, name)) >= LIKELY[name] for name in CLASSES):
            raise UnsafePicture("this picture is not taken here")
        if not all(int(getattr(seen, name)) for name in CLASSES):
            raise Unchecked("the classifier did not say")


def open_guard(settings: ApiSettings) -> Guard:
    """The checks of the settings."""
    makers: list[Callable[[], Check]] = []
    if settings.blocked_hashes:
        makers.append(lambda: KnownPictures(Path(settings.blocked_hashes)))
    if settings.image_check == "vision":
        makers.append(SafeSearch)
    return Guard([make() for make in makers])


def main(argv: Sequence[str]) -> int:
    """Print the hash of each picture, for the file of known ones."""
    import numpy as np

    for name in argv:
        print(np.packbits(_hashes(Path(name).read_bytes())[0]).tobytes().hex())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
