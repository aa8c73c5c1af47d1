"""HEIF containers: HEIC, which phones write, and AVIF. Only the primary picture is read, with the container's orientation.

HEIC is decoded by libheif and libde265 (pi-heif, which has no encoder), AVIF by libavif (Pillow).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pi_heif
from PIL import AvifImagePlugin, Image

from photoflux.photos.colour import HDR_TRANSFERS, profile_of_codes
from photoflux.photos.kinds import check_pixels, several_frames, unsupported

Box = tuple[bytes, int, int]
"""Kind, and where the content begins and ends."""
DERIVED = (b"grid", b"iden", b"iovl", b"tmap")
HEVC, AV1 = (b"hvc1", b"hev1"), (b"av01",)
CODECS = {
    b"avc1": "in H.264", b"vvc1": "in H.266", b"j2k1": "in JPEG 2000", b"jpeg": "in JPEG", b"unci": "without compression",
    b"evc1": "in EVC", b"mski": "of masks",
}  # fmt: skip
SEQUENCES = (b"hevc", b"hevx", b"hevm", b"hevs", b"msf1", b"avis", b"avcs")
AVIF_MAJORS = (b"avif", b"avis", b"mif1", b"msf1")
pi_heif.options.DECODE_THREADS = AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # sandboxed processes use one thread


@dataclass(frozen=True)
class Primary:
    """The container's description of its primary picture; primaries and transfer by H.273, 2 where unspecified."""

    codec: bytes
    properties: frozenset[bytes]
    primaries: int = 2
    transfer: int = 2
    full_range: bool = True
    exif_at: tuple[int, ...] = ()
    """Offsets of the item types of EXIF items."""


def open_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """The primary picture; not decoded yet if it is an AVIF. Raises PhotoProblem."""
    primary = primary_of(data)
    if primary.transfer in HDR_TRANSFERS:
        raise unsupported("an HDR picture")
    image: Image.Image
    if primary.codec in AV1:
        image = _open_avif(data, primary, max_pixels=max_pixels)
    elif primary.codec in HEVC:
        image = _open_heic(data, max_pixels=max_pixels)
        if not primary.full_range and "chroma" not in image.info:
            image = _stretched(image)
    else:
        raise unsupported(f"a HEIF picture {CODECS.get(primary.codec, 'of an unknown kind')}")
    image.info.pop("xmp", None)  # where Pillow would look for another orientation
    if "icc_profile" not in image.info and (profile := profile_of_codes(primary.primaries, primary.transfer)):
        image.info["icc_profile"] = profile
    return image


def _open_heic(data: bytes, *, max_pixels: int) -> Image.Image:
    container = pi_heif.open_heif(io.BytesIO(_as_brand(data, b"heic")), convert_hdr_to_8bit=True)
    heif_image = container[container.primary_index]
    check_pixels(heif_image.size[0], heif_image.size[1], max_pixels)
    image = heif_image.to_pillow()
    check_pixels(image.width, image.height, max_pixels)  # the bitstream may differ from the header
    image.format = "HEIF"
    return image


def _stretched(image: Image.Image) -> Image.Image:
    """Grey of a video's range, 16 to 235, as 0 to 255; the decoder does so with colours alone."""
    if image.mode == "I;16":
        grey = (np.asarray(image).astype(np.float64) / 256 - 16) * (255 / 219)
        stretched = Image.fromarray(np.rint(grey).clip(0, 255).astype(np.uint8))
    else:
        levels = [min(255, max(0, round((level - 16) * 255 / 219))) for level in range(256)]
        bands = [
            band if name in "Aa" else band.point(levels)
            for name, band in zip(image.getbands(), image.split(), strict=True)
        ]
        stretched = Image.merge(image.mode, bands)
    stretched.info, stretched.format = image.info, image.format
    return stretched


def _open_avif(data: bytes, primary: Primary, *, max_pixels: int) -> Image.Image:
    if b"clap" in primary.properties:
        raise unsupported("an AVIF with a crop")
    image = _avif(data if data[8:12] in AVIF_MAJORS else _as_brand(data, b"avif"), primary)
    check_pixels(image.width, image.height, max_pixels)
    if image.n_frames > 1:
        raise several_frames()
    return image


def _avif(data: bytes, primary: Primary) -> AvifImagePlugin.AvifImageFile:
    with suppress(Exception):  # damaged EXIF raises many kinds of errors, and the photo can be read without it
        return AvifImagePlugin.AvifImageFile(io.BytesIO(data))
    bare = bytearray(data)
    for at in primary.exif_at:
        bare[at : at + 4] = b"free"
    return AvifImagePlugin.AvifImageFile(io.BytesIO(bytes(bare)))


def _as_brand(data: bytes, brand: bytes) -> bytes:
    """The file with the major brand that the decoder expects: writers choose it with little regard to the content."""
    return data[:8] + brand + data[12:]


def primary_of(data: bytes) -> Primary:
    """Read the container's headers. Raises PhotoProblem where it is no still picture, LookupError where it is damaged."""
    top = {kind: (start, end) for kind, start, end in reversed(list(boxes(data, 0, len(data))))}
    if b"mini" in top:
        raise unsupported("a HEIF picture with a minimised header")
    if b"moov" in top and (b"meta" not in top or data[8:12] in SEQUENCES):
        raise several_frames()
    start, end = top[b"meta"]
    inner = {kind: (a, b) for kind, a, b in boxes(data, start + 4, end)}
    kinds, exif_at = _items(data, *inner[b"iinf"])
    number = _number_after(data, *inner[b"pitm"])
    codec = _codec(number, kinds, dict(_derived_from(data, *inner[b"iref"])) if b"iref" in inner else {})
    owned = list(_properties(data, *inner[b"iprp"], of=number))
    found = [data[a : a + 11] for kind, a, _ in owned if kind == b"colr" and data[a : a + 4] == b"nclx"]
    coded = found[0] if found else bytes((0, 0, 0, 0, 0, 2, 0, 2, 0, 2, 0x80))
    primaries, transfer = (int.from_bytes(coded[at : at + 2], "big") for at in (4, 6))
    return Primary(codec, frozenset(kind for kind, _, _ in owned), primaries, transfer, coded[10] >= 0x80, exif_at)


def ends_early(data: bytes) -> bool:
    """Whether a box's declared size goes beyond the file's end."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        size = int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size or len(data) - at
        at += max(size, 8)
    return at > len(data)


def boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    """The boxes within a part of a file; one that declares more than there is is cut off at its end."""
    while start + 8 <= end:
        size, kind, head = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        size = size or end - start
        if size < head:
            return
        yield kind, start + head, min(start + size, end)
        start += size


def _codec(number: int, kinds: dict[int, bytes], made_of: dict[int, int]) -> bytes:
    """The codec of an item; of a derived one, that of the first item it is made of."""
    seen = set[int]()
    while kinds.get(number) in DERIVED and number not in seen:
        seen.add(number)
        number = made_of.get(number, 0)
    return kinds.get(number, b"")


def _items(data: bytes, start: int, end: int) -> tuple[dict[int, bytes], tuple[int, ...]]:
    """Item types by item number, and the offsets of the types of EXIF items."""
    kinds, exif_at = dict[int, bytes](), []
    for kind, at, _ in boxes(data, start + (6 if data[start] == 0 else 8), end):
        if kind == b"infe" and data[at] in (2, 3):
            wide = 2 if data[at] == 2 else 4
            place = at + 4 + wide + 2
            kinds[int.from_bytes(data[at + 4 : at + 4 + wide], "big")] = data[place : place + 4]
            if data[place : place + 4] == b"Exif":
                exif_at.append(place)
    return kinds, tuple(exif_at)


def _number_after(data: bytes, start: int, end: int) -> int:
    return int.from_bytes(data[start + 4 : min(end, start + (6 if data[start] == 0 else 8))], "big")


def _derived_from(data: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Derived items, and the first of those that each is made of."""
    wide = 2 if data[start] == 0 else 4
    for kind, at, _ in boxes(data, start + 4, end):
        if kind == b"dimg":
            yield (
                int.from_bytes(data[at : at + wide], "big"),
                int.from_bytes(data[at + wide + 2 : at + 2 * wide + 2], "big"),
            )


def _properties(data: bytes, start: int, end: int, *, of: int) -> Iterator[Box]:
    """The properties of an item."""
    inner = {kind: (a, b) for kind, a, b in boxes(data, start, end)}
    known = list(boxes(data, *inner[b"ipco"]))
    at, last = inner[b"ipma"]
    wide, two = 2 if data[at] == 0 else 4, data[at + 3] & 1
    count, at = int.from_bytes(data[at + 4 : at + 8], "big"), at + 8
    for _ in range(count):
        if at >= last:
            return
        number, several = int.from_bytes(data[at : at + wide], "big"), data[at + wide]
        at += wide + 1
        for place in range(at, at + several * (1 + two), 1 + two):
            index = int.from_bytes(data[place : place + 1 + two], "big") & (0x7FFF if two else 0x7F)
            if number == of and 0 < index <= len(known):
                yield known[index - 1]
        at += several * (1 + two)
