"""Moderation of uploaded photos and generated images: known ones by their perceptual hash, others by a classifier.

It fails closed: an image that cannot be checked does not pass. Without a classifier, which production insists on, only known images
are found.
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
"""Bits of 64 in which a known image's hash may differ after it was saved anew, shrunk or mirrored."""
CLASSES = ("adult", "violence", "racy")
LIKELY = {"adult": 4, "violence": 4, "racy": 5}
"""From which of Cloud Vision's likelihoods on, 1 very unlikely to 5 very likely, an image is refused."""
TIMEOUT_S = 10.0


class UnsafeImage(PhotoFluxError):
    """An image that is neither accepted nor delivered. The message does not say what was seen."""


class ModerationUnavailable(PhotoFluxError):
    """An image could not be checked now."""


class Check(Protocol):
    def __call__(self, image: bytes) -> None:
        """Raises UnsafeImage, or ModerationUnavailable."""


@dataclass(frozen=True)
class Moderator:
    """Runs all checks, one after the other."""

    checks: Sequence[Check] = ()

    def check(self, image: bytes) -> None:
        """Raises UnsafeImage, or ModerationUnavailable where a check failed in any way."""
        for check in self.checks:
            try:
                check(image)
            except UnsafeImage:
                raise
            except Exception as error:
                log.warning("an image could not be checked: %s", type(error).__name__)
                raise ModerationUnavailable("pictures cannot be checked now; try again in a minute") from error


class KnownImages:
    """Refuses images whose hashes are listed in a file, 16 hexadecimal digits a line; # begins a comment."""

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

    def __call__(self, image: bytes) -> None:
        import numpy as np

        for bits in _hashes(image):
            if np.any(np.count_nonzero(self._known != bits, axis=1) <= DISTANCE_MAX):
                raise UnsafeImage("this picture is not taken here")


def _hashes(file: bytes) -> list[Any]:
    """The perceptual hashes of an image and of its mirror image, 64 bits each."""
    from PIL import Image

    from photoflux.photos.inspect import phash

    with Image.open(io.BytesIO(file)) as opened:
        image = opened.convert("RGB")
    return [phash(one) for one in (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))]


class SafeSearch:
    """Asks Google's Cloud Vision, which stores nothing of the image."""

    def __init__(self, client: Any = None) -> None:
        self._client = client

    def __call__(self, image: bytes) -> None:
        from google.cloud import vision

        self._client = self._client or vision.ImageAnnotatorClient()
        request = vision.Image(content=image)
        answer = self._client.safe_search_detection(image=request, timeout=TIMEOUT_S)
        if answer.error.code:
            raise ModerationUnavailable("the classifier gave no answer")
        found = answer.safe_search_annotation
        if any(int(getattr(found, name)) >= LIKELY[name] for name in CLASSES):
            raise UnsafeImage("this picture is not taken here")
        if not all(int(getattr(found, name)) for name in CLASSES):
            raise ModerationUnavailable("the classifier did not say")


def open_moderator(settings: ApiSettings) -> Moderator:
    """The moderator with the checks of the settings."""
    makers: list[Callable[[], Check]] = []
    if settings.blocked_hashes:
        makers.append(lambda: KnownImages(Path(settings.blocked_hashes)))
    if settings.image_check == "vision":
        makers.append(SafeSearch)
    return Moderator([make() for make in makers])


def main(argv: Sequence[str]) -> int:
    """Print the hash of each image file, for the list of known ones."""
    import numpy as np

    for name in argv:
        print(np.packbits(_hashes(Path(name).read_bytes())[0]).tobytes().hex())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
