"""The kind of a file, by its first bytes and its name alone; and the problems of photos that cannot be used."""

from __future__ import annotations

from pathlib import PurePath

from photoflux.errors import PhotoFluxError

READ = "JPEG, PNG, TIFF, WebP, HEIC or AVIF"
"""The formats that are read, as sentences name them."""
HEAD_BYTES = 512
"""Bytes at the start of a file that `format_of` and `other_kind` need."""
SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".tif", ".tiff", ".webp", ".heic", ".heics", ".heif", ".heifs",
    ".hif", ".avif", ".avifs",
))  # fmt: skip
"""Suffixes of formats that are read; a file with one is taken for a photo, and rejected by `decode` where it is none."""
RAW_SUFFIXES = frozenset((
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef",
    ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
))  # fmt: skip
RAW = "a camera's raw file"
MAGIC = {
    b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF",
    b"MM\0+": "TIFF", b"MM*\0": "TIFF", b"II\0*": "TIFF",
}  # fmt: skip
HEIF_BRANDS = frozenset(
    b"heic heix heim heis hevc hevx hevm hevs mif1 mif2 mif3 msf1 miaf avif avis avio MA1A MA1B avci avcs jpeg jpgs j2ki j2is "
    b"vvic vvis evbi evbs".split()
)
OTHERS = {
    b"GIF8": "a GIF", b"%PDF": "a PDF", b"PK\x03\x04": "a ZIP archive", b"<svg": "an SVG", b"8BPS": "a Photoshop file",
    b"\xff\x0a": "a JPEG XL picture", b"\0\0\0\x0cJXL \r\n\x87\n": "a JPEG XL picture",
    b"\0\0\0\x0cjP  \r\n\x87\n": "a JPEG 2000 picture", b"\xff\x4f\xff\x51": "a JPEG 2000 picture",
    b"II\xbc": "a JPEG XR picture", b"\0\0\1\0": "an icon", b"v/1\1": "an OpenEXR picture", b"#?RADIANCE": "an HDR picture",
    b"qoif": "a QOI picture", b"DDS ": "a DDS texture", b"\x1aE\xdf\xa3": "a video", b"FUJIFILMCCD-RAW": RAW, b"IIRO": RAW,
    b"IIRS": RAW, b"MMOR": RAW, b"IIU\0": RAW, b"FOVb": RAW, b"\0MRM": RAW, b"gimp xcf": "a GIMP file",
    b"\xff\xd8\xff\xf7": "a JPEG-LS picture",
}  # fmt: skip
"""First bytes of formats that are not read → name in a sentence."""
BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)


class PhotoProblem(PhotoFluxError):
    """A file that is no usable photo: a `code` for programs and a message that says what to do."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def unsupported(kind: str) -> PhotoProblem:
    """The problem of a file of a kind that is not read; `kind` with its article."""
    return PhotoProblem("unsupported_format", f"{kind}, which cannot be read here: export it as JPEG or PNG")


def corrupt() -> PhotoProblem:
    """The problem of a file whose decoder fails, crashes or takes too long."""
    return PhotoProblem("corrupt", "damaged: it cannot be decoded; export the photo again as JPEG or PNG")


def several_frames() -> PhotoProblem:
    """The problem of a file with more than one picture of equal rank."""
    return PhotoProblem("several_frames", "animated or several pages: export one frame as JPEG or PNG")


def check_pixels(width: int, height: int, most: int) -> None:
    """To be called before any pixel is decoded. Raises PhotoProblem."""
    if width * height > most:
        raise PhotoProblem(
            "too_many_pixels",
            f"too many pixels: {width * height / 1e6:.0f} megapixels, at most {most / 1e6:.0f} are taken; "
            "export a smaller copy",
        )


def format_of(head: bytes) -> str:
    """JPEG, PNG, TIFF, WEBP or HEIF (AVIF included); empty for what is not read."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return "HEIF" if HEIF_BRANDS.intersection(brands(head)) else ""
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), "")


def other_kind(head: bytes, name: str = "") -> str:
    """The name, in a sentence, of a format that is not read; empty where it is unknown or is read.

    Raw files of most cameras begin like a TIFF, and their ending alone tells them apart.
    """
    if PurePath(name).suffix.lower() in RAW_SUFFIXES or (head[:2] in (b"II", b"MM") and head[8:10] == b"CR"):
        return RAW
    if head[4:8] == b"ftyp" and not format_of(head):
        return RAW if b"crx " in brands(head) else "a video"
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"WAVE"):
        return "a video" if head[8:12] == b"AVI " else "a sound"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in BMP_HEADERS:
        return "a BMP"
    if head[:1] == b"P" and head[1:2] in b"1234567" and head[2:3] in b" \t\r\n" and head[2:3]:
        return "a Netpbm picture"
    if b"<svg" in head[:HEAD_BYTES].lower() and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "an SVG"
    return next((kind for magic, kind in OTHERS.items() if head.startswith(magic)), "")


def brands(head: bytes) -> list[bytes]:
    """Major and compatible brands of a file that begins with an `ftyp` box."""
    end = min(int.from_bytes(head[:4], "big"), len(head)) if head[:4] != b"\0\0\0\1" else len(head)
    return [head[8:12], *(head[at : at + 4] for at in range(16, end, 4))]
