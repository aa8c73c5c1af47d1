"""Bytes of unknown origin in, an upright 8-bit sRGB picture without metadata out, or a `PhotoProblem`."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageCms, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from photoflux import sandbox
from photoflux.photos import heif, jpeg, png, tiff
from photoflux.photos.kinds import (
    PhotoProblem,
    check_pixels,
    corrupt,
    format_of,
    other_kind,
    several_frames,
    unsupported,
)
from photoflux.photos.sandboxed import decode_in_sandbox

PLUGINS = (JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)  # registered by import
# in messages of codecs when data ends too early
TRUNCATION_WORDS = ("truncated", "incomplete", "eof", "not enough", "end of file")
ORIENTATION, GPS, SERIAL, MAKER = 0x0112, 0x8825, 0xA431, 0x927C
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


@dataclass(frozen=True)
class Decoded:
    """An RGB picture and facts about its file. No metadata of the file is kept but these booleans."""

    image: Image.Image
    format: str
    facts: dict[str, bool] = field(default_factory=dict)


def decode(data: bytes, *, max_pixels: int = 64_000_000, max_bytes: int = 30_000_000) -> Decoded:
    """Decode one still photo, whatever its name says: JPEG (MPO: its first picture), PNG, TIFF, WebP, HEIC or AVIF.

    The header is checked against `max_pixels` before any pixel is decoded. Orientation is applied, colours are
    converted to sRGB, transparency is laid on white, deeper pixels are scaled to 8 bits, all metadata is
    dropped. Raises PhotoProblem, and nothing else, for anything that is not such a photo.
    """
    if len(data) > max_bytes:
        raise PhotoProblem(
            "too_many_bytes",
            f"file too large: {len(data) / 1e6:.0f} MB, at most {max_bytes / 1e6:.0f} are taken; export a smaller copy",
        )
    if format_of(data) == "HEIF" and not sandbox.in_sandbox():
        return _from_literals(decode_in_sandbox(_decode_to_literals, data, max_pixels, max_bytes))
    try:
        with _no_warnings(), _open(data, max_pixels=max_pixels) as image:
            return _read(image)
    except PhotoProblem:
        raise
    except Exception as error:  # a hostile file may raise any exception inside a codec
        raise _explain(error, data) from error


def _decode_to_literals(data: bytes, max_pixels: int, max_bytes: int) -> tuple[Any, ...]:
    """Code and message of the problem with a file, or its size, pixels, format and facts; runs in a sandboxed process."""
    try:
        one = decode(data, max_pixels=max_pixels, max_bytes=max_bytes)
    except PhotoProblem as problem:
        return problem.code, problem.message
    return one.image.size, one.image.tobytes(), one.format, one.facts


def _from_literals(answer: tuple[Any, ...]) -> Decoded:
    if len(answer) == 2:
        raise PhotoProblem(*answer)
    size, pixels, kind, facts = answer
    return Decoded(Image.frombytes("RGB", size, pixels), kind, facts)


def _open(data: bytes, *, max_pixels: int) -> Image.Image:
    """The file as a picture whose header was read and checked: kind, size, number of frames."""
    readers = {
        "JPEG": jpeg.open_image,
        "PNG": png.open_image,
        "TIFF": tiff.open_page,
        "HEIF": heif.open_image,
        "WEBP": _open_webp,
    }
    kind = other_kind(data)
    if kind:
        raise unsupported(kind)
    reader = readers.get(format_of(data))
    if reader is None:
        raise Image.UnidentifiedImageError
    return reader(data, max_pixels=max_pixels)


def _open_webp(data: bytes, *, max_pixels: int) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=("WEBP",))
    check_pixels(*image.size, max_pixels)
    if image.n_frames > 1:  # type: ignore[attr-defined]
        raise several_frames()
    return image


def _read(image: Image.Image) -> Decoded:
    image.load()
    facts = _facts(image)
    decoded_image = _flatten(image)
    turn = UPRIGHT.get(_exif(image).get(ORIENTATION, 1))
    if turn is not None:
        decoded_image = decoded_image.transpose(turn)
    facts["was_rotated"] = turn is not None
    return Decoded(_without_metadata(decoded_image), str(image.format), facts)


def _facts(image: Image.Image) -> dict[str, bool]:
    exif = _exif(image)
    return {
        "had_exif": bool(exif),
        "had_gps": GPS in exif,
        "had_serial": any(tag in exif.get_ifd(0x8769) for tag in (SERIAL, MAKER)),
        "had_icc": bool(image.info.get("icc_profile")),
        "had_alpha": _has_alpha(image),
        "was_deep": image.mode.startswith(("I", "F")),
    }


def _exif(image: Image.Image) -> Image.Exif:
    """The EXIF block; an empty one where it is damaged, so that the photo can still be used."""
    try:
        exif = image.getexif()
        exif.get_ifd(0x8769)
    except Exception:  # hostile tags fail in many ways
        return Image.Exif()
    return exif


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _flatten(image: Image.Image) -> Image.Image:
    """RGB in sRGB: reduced to 8 bits, alpha split off, colours converted, then laid on white."""
    image = image.convert("LA") if image.mode == "La" else _eight_bit(image)
    if not _has_alpha(image):
        return _srgb(image)
    rgba = image.convert("RGBA")
    colour = rgba.convert("L" if image.mode in ("L", "LA") else "RGB")
    colour.info["icc_profile"] = image.info.get("icc_profile")
    white = Image.new("RGB", image.size, "white")
    return Image.composite(_srgb(colour), white, rgba.getchannel("A"))


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale greys of 10 to 16 bits to 8; float pictures span 0-1, 0-255 or their own maximum."""
    if not image.mode.startswith(("I", "F")):
        return image
    pixels = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    peak = pixels.max(initial=0.0)
    full = image.info.get("white", 65535.0)
    if image.mode == "F":
        full = 1.0 if peak <= 1 else max(255.0, peak)
    scaled = Image.fromarray(np.rint(pixels.clip(0) * (255 / full)).astype(np.uint8), "L")
    scaled.info = {key: value for key, value in image.info.items() if key == "icc_profile"}
    return scaled


def _srgb(image: Image.Image) -> Image.Image:
    """Convert to sRGB through the embedded profile; a damaged or mismatched profile is ignored."""
    if image.mode == "LAB":
        return _to_srgb(image, ImageCms.createProfile("LAB"))
    data = image.info.get("icc_profile")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data)) if data else None
        space = profile.profile.xcolor_space.strip() if profile else ""
        if profile and space == "RGB" and image.mode != "CMYK":
            return _to_srgb(image.convert("RGB"), profile)  # it may be stored as a palette or as greys
        if profile and space == {"L": "GRAY", "CMYK": "CMYK"}.get(image.mode):
            return _to_srgb(image, profile)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        pass
    return image.convert("RGB")


def _to_srgb(image: Image.Image, profile: ImageCms.ImageCmsProfile | ImageCms.core.CmsProfile) -> Image.Image:
    converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None  # only inPlace=True returns None
    return converted


def _without_metadata(image: Image.Image) -> Image.Image:
    """A picture with the same pixels and no metadata."""
    return Image.frombytes("RGB", image.size, image.tobytes())


def _explain(error: Exception, data: bytes) -> PhotoProblem:
    text = str(error).lower()
    if isinstance(error, Image.DecompressionBombError):
        return PhotoProblem("too_many_pixels", "too many pixels to decode safely; export a smaller copy")
    if isinstance(error, EOFError) or any(word in text for word in TRUNCATION_WORDS) or _is_cut_short(data):
        return PhotoProblem("truncated", "truncated: the file ends too early; export the photo again")
    if isinstance(error, Image.UnidentifiedImageError):
        return PhotoProblem("not_a_photo", "not a photo, whatever its name says: remove it or export a JPEG")
    return corrupt()


def _is_cut_short(data: bytes) -> bool:
    """Whether the container's own length (WebP, HEIF) or its directory's offset (TIFF) lies beyond the file's end."""
    if data[4:8] == b"ftyp":
        return heif.ends_early(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(data[:4])
    return order is not None and int.from_bytes(data[4:8], order) >= len(data)  # type: ignore[arg-type]


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Ignore warnings of codecs about odd files: the verdict covers them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
