"""Bytes of unknown origin in, an upright 8-bit sRGB picture without metadata out, or a `PhotoProblem`."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageCms, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from photoflux.errors import PhotoFluxError

PLUGINS = (JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)  # registered by import
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP")  # MPO opens as the JPEG it begins with
UNSUPPORTED = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"<svg": "an SVG",
}
CUT_SHORT = ("truncated", "incomplete", "eof", "not enough")  # how codecs say that data ran out
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif")
ORIENTATION, GPS, SERIAL, MAKER = 0x0112, 0x8825, 0xA431, 0x927C
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class PhotoProblem(PhotoFluxError):
    """A file that is no usable photo: a `code` for programs and a message that says what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Decoded:
    """An RGB picture and what was true of its file. Only these booleans outlive the file's metadata."""

    image: Image.Image
    format: str
    facts: dict[str, bool] = field(default_factory=dict)


def decode(data: bytes, *, max_pixels: int = 64_000_000, max_bytes: int = 30_000_000) -> Decoded:
    """Decode one still photo: JPEG (MPO: its first picture), PNG, TIFF or WebP, whatever its name says.

    The header is held against `max_pixels` before any pixel is decoded. Orientation is applied, colours are
    converted to sRGB, transparency is laid on white, deeper pixels are scaled to 8 bits, all metadata is
    dropped. Raises PhotoProblem, and nothing else, for anything that is not such a photo.
    """
    if len(data) > max_bytes:
        raise PhotoProblem(
            "too_many_bytes",
            f"file too large: {len(data) / 1e6:.0f} MB, at most {max_bytes / 1e6:.0f} are taken; export a smaller copy",
        )
    try:
        with _quiet():
            _check_header(data, max_pixels=max_pixels)
            return _read(data)
    except PhotoProblem:
        raise
    except Exception as error:  # a hostile file may raise anything at all inside a codec
        raise _explain(error, data) from error


def _check_header(data: bytes, *, max_pixels: int) -> None:
    """Look at the container only: kind, size, number of frames, checksums."""
    with _open(data) as image:
        megapixels = image.width * image.height / 1e6
        if image.width * image.height > max_pixels:
            raise PhotoProblem(
                "too_many_pixels",
                f"too many pixels: {megapixels:.0f} megapixels, at most {max_pixels / 1e6:.0f} are taken; "
                "export a smaller copy",
            )
        if image.format != "MPO" and _has_second_frame(image):
            raise PhotoProblem("several_frames", "animated or several pages: export one frame as JPEG or PNG")
    with _open(data) as image:
        image.verify()


def _read(data: bytes) -> Decoded:
    with _open(data) as image:
        image.load()
        facts = _facts(image)
        picture = _flatten(image)
        turn = UPRIGHT.get(_exif(image).get(ORIENTATION, 1))
        if turn is not None:
            picture = picture.transpose(turn)
        facts["was_rotated"] = turn is not None
        return Decoded(_bare(picture), str(image.format), facts)


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=FORMATS) if _known(data) else _refuse(data)


def _known(data: bytes) -> bool:
    return data[4:8] != b"ftyp" and not any(data.startswith(magic) for magic in UNSUPPORTED)


def _refuse(data: bytes) -> Image.Image:
    kind = next((name for magic, name in UNSUPPORTED.items() if data.startswith(magic)), "a video")
    if data[8:12] in HEIF_BRANDS:
        kind = "a HEIC or AVIF picture"
    raise PhotoProblem("unsupported_format", f"{kind}, which cannot be read here: export it as JPEG or PNG")


def _has_second_frame(image: Image.Image) -> bool:
    """Ask for frame 1 rather than count: counting walks a hostile TIFF's whole chain of pages."""
    try:
        image.seek(1)
    except EOFError:
        return False
    return True


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
    """The EXIF block, or an empty one where it is damaged: a photo is not lost for its label."""
    try:
        exif = image.getexif()
        exif.get_ifd(0x8769)
    except Exception:  # hostile tags fail in many ways
        return Image.Exif()
    return exif


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _flatten(image: Image.Image) -> Image.Image:
    """RGB in sRGB: depth first, then transparency set aside, then colour, then laid on white."""
    image = _eight_bit(image)
    if not _has_alpha(image):
        return _srgb(image)
    rgba = image.convert("RGBA")
    colour = rgba.convert("RGB")
    colour.info["icc_profile"] = image.info.get("icc_profile")
    white = Image.new("RGB", image.size, "white")
    return Image.composite(_srgb(colour), white, rgba.getchannel("A"))


def _eight_bit(image: Image.Image) -> Image.Image:
    """Scale 16- and 32-bit greys to 8 bits; float pictures span 0-1, 0-255 or their own maximum."""
    if not image.mode.startswith(("I", "F")):
        return image
    pixels = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    peak = pixels.max(initial=0.0)
    if image.mode == "F":
        full = 1.0 if peak <= 1 else max(255.0, peak)
    else:
        full = 65535.0 if image.mode.startswith("I;16") or peak > 255 else 255.0
        full = max(full, peak)
    scaled = Image.fromarray(np.rint(pixels.clip(0) * (255 / full)).astype(np.uint8), "L")
    scaled.info = {key: value for key, value in image.info.items() if key == "icc_profile"}
    return scaled


def _srgb(image: Image.Image) -> Image.Image:
    """Convert to sRGB through the embedded profile; a damaged or mismatched profile is ignored."""
    if image.mode == "LAB":
        return _through(image, ImageCms.createProfile("LAB"))
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "CMYK", "L"):
        return image.convert("RGB")
    try:
        return _through(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert("RGB")


def _through(image: Image.Image, profile: ImageCms.ImageCmsProfile | ImageCms.core.CmsProfile) -> Image.Image:
    converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None  # only inPlace=True returns None
    return converted


def _bare(image: Image.Image) -> Image.Image:
    """The same pixels in a picture that carries nothing else."""
    return Image.frombytes("RGB", image.size, image.tobytes())


def _explain(error: Exception, data: bytes) -> PhotoProblem:
    text = str(error).lower()
    if isinstance(error, Image.DecompressionBombError):
        return PhotoProblem("too_many_pixels", "too many pixels to decode safely; export a smaller copy")
    if isinstance(error, EOFError) or any(word in text for word in CUT_SHORT) or _declares_more(data):
        return PhotoProblem("truncated", "truncated: the file ends too early; export the photo again")
    if isinstance(error, Image.UnidentifiedImageError):
        return PhotoProblem("not_a_photo", "not a photo, whatever its name says: remove it or export a JPEG")
    return PhotoProblem("corrupt", "damaged: it cannot be decoded; export the photo again as JPEG or PNG")


def _declares_more(data: bytes) -> bool:
    """A container that names its own length (WebP) or where its directory lies (TIFF), beyond the file's end."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(data[:4])
    return order is not None and int.from_bytes(data[4:8], order) >= len(data)  # type: ignore[arg-type]


@contextmanager
def _quiet() -> Iterator[None]:
    """Codecs warn about odd files on stderr; the verdict says it better."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
