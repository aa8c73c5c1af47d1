"""TIFF. The decoder silently misreads some layouts, so that only those listed here are read and all others refused by name.

Samples in separate planes are among what it misreads: each plane is therefore opened as a grey picture of its own; see
docs/decisions/0027-what-is-read-is-read-right.md.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImagePalette, TiffImagePlugin

from photoflux.photos.kinds import RAW, check_pixels, several_frames, unsupported

Tags = Mapping[int, Any]

PAGES_MAX = 8
NEW_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 254, 256, 257, 258, 259, 262, 266
STRIPS, SAMPLES, STRIP_BYTES, PLANAR, COLOUR_MAP, TILES, TILE_BYTES = 273, 277, 279, 284, 320, 324, 325
SUB_IFDS, EXTRA, FORMAT, SUBSAMPLING, DNG = 330, 338, 339, 530, 50706
REDUCED = 1
WHITE_IS_ZERO, GREY, RGB, PALETTE, CMYK, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
COLOURS = {
    WHITE_IS_ZERO: "grey", GREY: "grey", RGB: "RGB", PALETTE: "palette", 4: "mask", CMYK: "CMYK", YCBCR: "YCbCr", LAB: "Lab",
    9: "Lab", 10: "Lab", 32844: "LogL", 32845: "LogLuv",
}  # fmt: skip
CHANNELS = {RGB: 3, CMYK: 4, YCBCR: 3, LAB: 3, 9: 3, 10: 3}
FLOAT = 3
FORMATS = {2: "signed ", FLOAT: "floating-point ", 5: "complex ", 6: "complex "}
RAW_COLOURS = (32803, 34892)
UNCOMPRESSED, OLD_JPEG, JPEG = 1, 6, 7
COMPRESSIONS = {UNCOMPRESSED, 2, 3, 4, 5, JPEG, 8, 32773, 32946, 34925, 50000}
UNREAD_COMPRESSIONS = {
    OLD_JPEG: "old-style JPEG", 34712: "JPEG 2000", 33003: "JPEG 2000", 33005: "JPEG 2000", 34887: "LERC", 50001: "WebP",
    50002: "JPEG XL", 52546: "JPEG XL", 34661: "JBIG", 34676: "SGILog", 34677: "SGILog24", 32809: "ThunderScan", 32766: "NeXT",
    32909: "PixarLog", 22610: "JPEG XR", 34934: "JPEG XR",
}  # fmt: skip
NONE, UNSPECIFIED, PREMULTIPLIED, STRAIGHT = -1, 0, 1, 2
READ: dict[tuple[int, int], tuple[int, ...]] = {
    **{(colour, bits): (NONE,) for colour in (WHITE_IS_ZERO, GREY) for bits in (1, 2, 4, 8, 16)},
    (GREY, 8): (NONE, UNSPECIFIED, PREMULTIPLIED, STRAIGHT),
    (GREY, 12): (NONE,),
    (RGB, 8): (NONE, UNSPECIFIED, PREMULTIPLIED, STRAIGHT),
    (RGB, 16): (NONE, UNSPECIFIED, PREMULTIPLIED, STRAIGHT),
    **{(PALETTE, bits): (NONE,) for bits in (1, 2, 4)},
    (PALETTE, 8): (NONE, UNSPECIFIED, STRAIGHT),
    (CMYK, 8): (NONE, UNSPECIFIED),
    (CMYK, 16): (NONE,),
    (YCBCR, 8): (NONE,),
    (LAB, 8): (NONE,),
}
"""Colours and bits of whole-number samples → what further channels may mean; tests/photos/test_formats.py checks each."""
PLANES = {(GREY, 8): "L", (RGB, 8): "RGB", (RGB, 16): "RGB", (CMYK, 8): "CMYK", (CMYK, 16): "CMYK"}
"""Colours and bits that may lie in planes, one after the other → mode that these are put together in."""
LIKE_LEVELS = 12.0
"""Mean difference up to which a small page is the large one's thumbnail."""


@dataclass(frozen=True)
class Layout:
    """The layout of a page's samples. `extras`: the meaning of each channel beyond its colours."""

    colours: int
    bits: tuple[int, ...]
    format: int
    extras: tuple[int, ...]
    planes: int
    compression: int
    subsampling: tuple[int, ...]
    reversed_bits: bool
    big_endian: bool

    @classmethod
    def of(cls, tags: TiffImagePlugin.ImageFileDirectory_v2) -> Layout:
        colours, samples = _number(tags, PHOTOMETRIC, WHITE_IS_ZERO), _number(tags, SAMPLES, 1)
        bits, further = _numbers(tags, BITS, (1,)), samples - CHANNELS.get(colours, 1)
        bits = bits * samples if len(bits) == 1 else bits[:samples]
        extras = _numbers(tags, EXTRA, (STRAIGHT,) * further)[:further]  # without the tag it is taken for alpha
        planes = samples if _number(tags, PLANAR, 1) == 2 else 1
        if planes > 1 and not any(extras):  # planes of unspecified meaning can be dropped
            extras, bits = (), bits[: samples - further]
        formats = set(_numbers(tags, FORMAT, (1,)))
        return cls(
            colours,
            bits,
            formats.pop() if len(formats) == 1 else 0,
            extras,
            planes,
            _number(tags, COMPRESSION, UNCOMPRESSED),
            _numbers(tags, SUBSAMPLING, (2, 2)),
            _number(tags, FILL_ORDER, 1) == 2,
            tags.prefix == b"MM",
        )

    @property
    def depth(self) -> int:
        return self.bits[0] if len(set(self.bits)) == 1 else 0

    def unsupported_feature(self) -> str:
        """The feature that is not supported, as the end of "a TIFF with ..."; empty where there is none."""
        if self.compression not in COMPRESSIONS:
            return f"{UNREAD_COMPRESSIONS.get(self.compression, 'unknown')} compression"
        if not self._samples_are_read() or not self._order_is_read():
            return self._samples()
        return ""

    def _samples_are_read(self) -> bool:
        first, *rest = self.extras or (NONE,)
        if self.format == FLOAT:
            return (self.colours, self.bits, self.extras) == (GREY, (32,), ())
        return self.format in (1, 4) and first in READ.get((self.colours, self.depth), ()) and not any(rest)

    def _order_is_read(self) -> bool:
        """Whether the order of bytes, bits and planes is one that the decoder undoes."""
        if len(self.bits) > 1 and self.planes > 1:
            known = (self.colours, self.depth) in PLANES
            return known and self.compression != JPEG and not self.reversed_bits
        if self.format == FLOAT or self.depth == 12:
            return not self.big_endian or (self.format == FLOAT and self.compression == UNCOMPRESSED)
        if self.reversed_bits and self.depth > 8:
            return False
        return self.colours != YCBCR or self.compression != UNCOMPRESSED or self.subsampling == (1, 1)

    def _samples(self) -> str:
        colours = COLOURS.get(self.colours, "unknown")
        bits = "/".join(map(str, dict.fromkeys(self.bits)))
        order = " in separate planes" if self.planes > 1 else ""
        alpha = " and transparency" if {PREMULTIPLIED, STRAIGHT}.intersection(self.extras) else ""
        further = "" if alpha or not self.extras else " and further"
        return f"{bits}-bit {FORMATS.get(self.format, '')}{colours}{alpha}{further} samples{order}"


def open_page(data: bytes, *, max_pixels: int) -> Image.Image:
    """The one page of a file, lazily decoded where possible; thumbnails of it beside it are ignored.

    Raises PhotoProblem for what is too large, and by its kind for what would be read wrong or not at all.
    """
    if data.startswith(b"MM\0+"):
        raise unsupported("a BigTIFF in big-endian order")
    pages = list(_pages(data))
    if any(DNG in tags or _number(tags, PHOTOMETRIC, 0) in RAW_COLOURS for _, tags in pages):
        raise unsupported(RAW)
    whole = [page for page in pages if not _number(page[1], NEW_SUBFILE, 0) & REDUCED]
    if not whole and any(SUB_IFDS in tags for _, tags in pages):
        raise unsupported(RAW)
    if not pages:
        raise Image.UnidentifiedImageError("no directory")
    (offset, tags), *others = whole or pages
    check_pixels(_number(tags, WIDTH, 0), _number(tags, HEIGHT, 0), max_pixels)
    image = _opened(data, offset, tags)
    if not all(_repeats(image, data, *other) for other in others):
        raise several_frames()
    return image


def _pages(data: bytes) -> Iterator[tuple[int, TiffImagePlugin.ImageFileDirectory_v2]]:
    """Offset and tags of the directories of the first PAGES_MAX pages: a hostile file's chain may be endless."""
    stream, offset, seen = io.BytesIO(data), 0, {0}
    for number in range(PAGES_MAX):
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[: 16 if _is_big(data) else 8])
        offset = tags.next if number == 0 else offset
        if offset in seen or offset >= len(data):
            return
        seen.add(offset)
        stream.seek(offset)
        tags.load(stream)
        yield offset, tags
        offset = tags.next


def _opened(data: bytes, offset: int, tags: TiffImagePlugin.ImageFileDirectory_v2) -> Image.Image:
    layout = Layout.of(tags)
    if what := layout.unsupported_feature():
        raise unsupported(f"a TIFF with {what}")
    if len(layout.bits) > 1 and layout.planes > 1:
        return _from_planes(data, offset, layout)
    if (layout.colours, layout.depth) == (WHITE_IS_ZERO, 16):
        image = _as_grey(data, offset, 0, planes=layout.planes)
        return _like(image, Image.fromarray(np.uint16(65535) - np.asarray(image).astype(np.uint16)))
    planar = _number(tags, PLANAR, 1) != 1  # of one plane, which some depths are misread for
    one = {SAMPLES: 1, PLANAR: 1}
    image = _rewritten(data, offset, one, (EXTRA,), 0, layout.planes) if planar else _at(data, offset)
    if layout.depth == 12:
        image.info["white"] = 4095
    colours = _numbers(tags, COLOUR_MAP, ())
    # written by what did not know that they have 16 bits
    if layout.colours == PALETTE and colours and max(colours) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))
    return image


def _from_planes(data: bytes, offset: int, layout: Layout) -> Image.Image:
    """Each plane opened as a grey picture, and all put together in 8 bits."""
    mode = PLANES[layout.colours, layout.depth]
    mode += {STRAIGHT: "A", PREMULTIPLIED: "a"}.get(next(iter(layout.extras), NONE), "")
    planes = [_as_grey(data, offset, number, planes=layout.planes) for number in range(Image.getmodebands(mode))]
    return _like(planes[0], Image.merge(mode, [_eight_bit(plane) for plane in planes]))


def _like(source: Image.Image, made: Image.Image) -> Image.Image:
    """`made` with the profile and metadata of `source`."""
    made.info, made.format = source.info, source.format
    with suppress(Exception):  # damaged tags raise many kinds of errors, and the photo can be used without them
        made.info["exif"] = source.getexif().tobytes()
    return made


def _eight_bit(plane: Image.Image) -> Image.Image:
    if plane.mode == "L":
        plane.load()
        return plane
    return Image.fromarray(((np.asarray(plane).astype(np.uint32) + 128) // 257).astype(np.uint8))


def _as_grey(data: bytes, offset: int, number: int, *, planes: int) -> Image.Image:
    """Plane `number` of `planes`, as a grey picture."""
    return _rewritten(data, offset, {PHOTOMETRIC: GREY, SAMPLES: 1, PLANAR: 1}, (EXTRA, COLOUR_MAP), number, planes)


def _rewritten(
    data: bytes,
    offset: int,
    replaced: Mapping[int, int],
    left_out: tuple[int, ...] = (),
    number: int = 0,
    planes: int = 1,
) -> Image.Image:
    """The page with `replaced` tags and the samples of plane `number` of `planes`, by a new directory appended to the file."""
    order, word, value_type, entries = _order(data), *(("Q", "8s") if _is_big(data) else ("I", "4s")), []
    for tag, kind, count, value in _entries(data, offset):
        if tag in (STRIPS, TILES, STRIP_BYTES, TILE_BYTES):
            count, value = _part(data, kind, count, value, number=number, planes=planes)
        elif tag in (BITS, FORMAT) and planes > 1:
            count, value = _part(data, kind, count, value, number=0, planes=count)
        elif tag in replaced:
            kind, count, value = 3, 1, struct.pack(order + "H", replaced[tag]).ljust(len(value), b"\0")
        if tag not in left_out:
            entries.append(struct.pack(f"{order}HH{word}{value_type}", tag, kind, count, value))
    padded = data + bytes(-len(data) % 8)
    head = struct.pack(order + ("Q" if _is_big(data) else "H"), len(entries))
    return _at(padded + head + b"".join(entries) + bytes(8), len(padded))


def _entries(data: bytes, offset: int) -> Iterator[tuple[int, int, int, bytes]]:
    """Tag, type, count and value (or where it lies) of each entry of a directory."""
    one = _order(data) + ("HHQ8s" if _is_big(data) else "HHI4s")
    counted = _order(data) + ("Q" if _is_big(data) else "H")
    (count,) = struct.unpack_from(counted, data, offset)
    start = offset + struct.calcsize(counted)
    for number in range(count):
        yield struct.unpack_from(one, data, start + number * struct.calcsize(one))


def _part(data: bytes, kind: int, count: int, value: bytes, *, number: int, planes: int) -> tuple[int, bytes]:
    """An array's part for one plane, as count and value: where it lies, or the numbers themselves where they fit in."""
    size, share = {3: 2, 4: 4, 16: 8}[kind], count // planes
    word = _order(data) + ("Q" if _is_big(data) else "I")
    if count * size <= len(value):
        return share, value[number * share * size :][: share * size].ljust(len(value), b"\0")
    at = struct.unpack(word, value)[0] + number * share * size
    if share * size <= len(value):
        return share, data[at : at + share * size].ljust(len(value), b"\0")
    return share, struct.pack(word, at)


def _at(data: bytes, offset: int) -> Image.Image:
    """The page whose directory lies at `offset`, opened as if it were the file's first."""
    at, word = (8, "Q") if _is_big(data) else (4, "I")
    place = struct.pack(_order(data) + word, offset)
    return Image.open(io.BytesIO(data[:at] + place + data[at + len(place) :]), formats=("TIFF",))


def _repeats(image: Image.Image, data: bytes, offset: int, tags: TiffImagePlugin.ImageFileDirectory_v2) -> bool:
    """Whether a page is an undeclared thumbnail of the picture: at most half its size, of its shape, and like it."""
    width, height = _number(tags, WIDTH, 0), _number(tags, HEIGHT, 0)
    if not (0 < width * 2 <= image.width and 0 < height * 2 <= image.height):
        return False
    if abs(width * image.height - height * image.width) > max(image.size):
        return False
    shown = _opened(data, offset, tags).convert("RGB")
    shrunk = image.convert("RGB").resize(shown.size, Image.Resampling.BOX)
    return bool(np.asarray(ImageChops.difference(shown, shrunk)).mean() <= LIKE_LEVELS)


def _is_big(data: bytes) -> bool:
    return data[2:4] == b"+\0"


def _order(data: bytes) -> str:
    return "<" if data[:2] == b"II" else ">"


def _numbers(tags: Tags, tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
    value = tags.get(tag, default)
    return tuple(int(one) for one in (value if isinstance(value, tuple) else (value,)))


def _number(tags: Tags, tag: int, default: int) -> int:
    return next(iter(_numbers(tags, tag, (default,))), default)
