"""HEIC files of known pixels, written from the standards alone (ITU-T H.265, ISO/IEC 23008-12): no encoder has a say in them.

Every coding unit is IPCM, so that the samples stand in the bitstream as they are. What is `noisy` has all of H.265's intra coding and
means nothing: its bits are random, and a decoder makes something of any.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

CTB = 16
SUBSAMPLING = {400: (0, 0, 0), 420: (1, 2, 2), 422: (2, 2, 1), 444: (3, 1, 1)}
"""Chroma format → chroma_format_idc, samples of luma per sample of chroma across and down."""
RANGE_LPS = (
    240, 227, 216, 205, 195, 185, 175, 166, 158, 150, 142, 135, 128, 122, 116, 110, 104, 99, 94, 89, 85, 80, 76, 72, 69, 65,
    62, 59, 56, 53, 50, 48, 45, 43, 41, 39, 37, 35, 33, 31, 30, 28, 27, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 14, 13,
    12, 12, 11, 11, 10, 9, 2,
)  # fmt: skip
"""rangeTabLps of H.265 9.3.4.3.2 by state, for ranges of 448 to 510, which are all that occur here."""


PROFILE = bytes([4]) + struct.pack(">I", 1 << 27) + b"\x90\0\0\0\0\0" + bytes([93])
"""general_profile_space to general_level_idc: format range extensions, which any chroma format is within."""


class Bits:
    """A bitstream with the descriptors of H.265 7.2."""

    def __init__(self) -> None:
        self.text: list[str] = []

    def u(self, value: int, count: int) -> None:
        self.text.append(format(value, f"0{count}b") if count else "")

    def flags(self, text: str) -> None:
        self.text.append(text)

    def ue(self, *values: int) -> None:
        for value in values:
            code = format(value + 1, "b")
            self.text.append("0" * (len(code) - 1) + code)

    def aligned(self, *, stop: bool) -> bytes:
        bits = "".join(self.text) + "1" * stop
        bits += "0" * (-len(bits) % 8)
        return int(bits, 2).to_bytes(len(bits) // 8, "big") if bits else b""


def hevc(planes: Sequence[np.ndarray], *, chroma: int, bits: int = 8) -> tuple[bytes, bytes]:
    """One picture as (decoder configuration for `hvcC`, item data): planes are Y or Y, Cb, Cr of unsigned integers."""
    height, width = planes[0].shape
    return _stream(_sps(width, height, chroma, bits), _pps(), _slice(planes, chroma, bits), chroma=chroma, bits=bits)


def _stream(sps: bytes, pps: bytes, coded: bytes, *, chroma: int, bits: int) -> tuple[bytes, bytes]:
    headers, coded = [_nal(32, _vps()), _nal(33, sps), _nal(34, pps)], _nal(19, coded)
    arrays = b"".join(
        struct.pack(">BHH", 0x80 | kind, 1, len(nal)) + nal for kind, nal in zip((32, 33, 34), headers, strict=True)
    )
    idc = SUBSAMPLING[chroma][0]
    config = (
        b"\x01"
        + PROFILE
        + struct.pack(">HBBBBHBB", 0xF000, 0xFC, 0xFC | idc, 0xF8 | bits - 8, 0xF8 | bits - 8, 0, 0x0F, 3)
    )
    return config + arrays, struct.pack(">I", len(coded)) + coded


def _nal(kind: int, payload: bytes) -> bytes:
    out, zeros = bytearray(), 0
    for byte in payload:
        if zeros >= 2 and byte <= 3:
            out.append(3)
            zeros = 0
        out.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return struct.pack(">BB", kind << 1, 1) + bytes(out)


def _vps() -> bytes:
    out = Bits()
    out.flags("0000110000000001")
    out.u(0xFFFF, 16)
    out.u(int.from_bytes(PROFILE, "big"), 96)
    out.flags("1")
    out.ue(0, 0, 0)
    out.u(0, 6)
    out.ue(0)
    out.flags("00")
    return out.aligned(stop=True)


def _sps(width: int, height: int, chroma: int, bits: int, *, pcm: bool = True) -> bytes:
    idc, across, down = SUBSAMPLING[chroma]
    coded = [-(-side // CTB) * CTB for side in (width, height)]
    out = Bits()
    out.flags("00000001")
    out.u(int.from_bytes(PROFILE, "big"), 96)
    out.ue(0, idc)
    if idc == 3:
        out.flags("0")
    out.ue(*coded)
    out.flags("1")
    out.ue(0, (coded[0] - width) // max(1, across), 0, (coded[1] - height) // max(1, down))
    out.ue(bits - 8, bits - 8, 0)
    out.flags("1")
    out.ue(0, 0, 0)
    if pcm:
        out.ue(1, 0, 0, 2, 0, 0)  # coding blocks of 16, transforms of 4 to 16
        out.flags("0001")  # no scaling lists, no AMP, no SAO; PCM
        out.u(bits - 1, 4)
        out.u(bits - 1, 4)
        out.ue(1, 0)  # PCM blocks of 16
        out.flags("1")
    else:
        out.ue(0, 3, 0, 3, 0, 2)  # coding blocks of 8 to 64, transforms of 4 to 32
        out.flags("10110")  # default scaling lists, AMP, SAO; no PCM
    out.ue(0)
    out.flags("00" + "01"[not pcm] + "00")
    return out.aligned(stop=True)


def _pps(*, plain: bool = True) -> bytes:
    """`plain`: without any tool of coding that can be left out, the deblocking filter among them."""
    out = Bits()
    out.ue(0, 0)
    out.flags("0000000" if plain else "0000010")
    out.ue(0, 0, 0)
    out.flags("000" if plain else "011")
    out.ue(*(0, 0) if plain else (0, 0, 0))
    out.flags("0000000" if plain else "0001000")
    out.flags("101" if plain else "0")
    out.flags("00")
    out.ue(0)
    out.flags("00")
    return out.aligned(stop=True)


def _slice(planes: Sequence[np.ndarray], chroma: int, bits: int) -> bytes:
    head = Bits()
    head.flags("10")
    head.ue(0, 2, 0)  # parameter set, I slice, no change of QP
    data = head.aligned(stop=True)
    _, across, down = SUBSAMPLING[chroma]
    sides = [(CTB, CTB)] + [(CTB // down, CTB // across)] * 2 if across else [(CTB, CTB)]
    padded = [_padded(plane, *side) for plane, side in zip(planes, sides, strict=True)]
    rows, columns = padded[0].shape[0] // CTB, padded[0].shape[1] // CTB
    for number in range(rows * columns):
        row, column = divmod(number, columns)
        data += _unit_start(number)
        for plane, (height, width) in zip(padded, sides, strict=True):
            data += _samples(plane[row * height :][:height, column * width :][:, :width], bits)
    return data + _flush(508)


def _padded(plane: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.pad(plane, ((0, -plane.shape[0] % height), (0, -plane.shape[1] % width)), mode="edge")


def _samples(block: np.ndarray, bits: int) -> bytes:
    if bits == 8:
        return block.astype(np.uint8).tobytes()
    text = "".join(format(int(value), f"0{bits}b") for value in block.ravel())
    return int(text, 2).to_bytes(len(text) // 8, "big")


def _unit_start(number: int) -> bytes:
    """What says that a coding unit is one IPCM block: end of slice (no), part_mode (whole), pcm_flag (yes).

    The arithmetic coder starts afresh after each block, but the state of part_mode's context goes on.
    """
    span = 510 if number == 0 else 508
    span -= RANGE_LPS[min(number, 62)]
    return _flush(span - 2)


def _flush(low: int) -> bytes:
    """What H.265's arithmetic coder writes after a terminating bin: seven renormalisations and three bits, then up to a byte."""
    bits, outstanding, first = "", 0, True

    def put(bit: int) -> None:
        nonlocal bits, outstanding, first
        bits += "" if first else str(bit)
        first = False
        bits += str(1 - bit) * outstanding
        outstanding = 0

    for _ in range(7):
        if low < 256:
            put(0)
        elif low >= 512:
            low -= 512
            put(1)
        else:
            low -= 256
            outstanding += 1
        low <<= 1
    put(low >> 9 & 1)
    bits += format(low >> 7 & 3 | 1, "02b")
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


@dataclass
class Item:
    """One item of a HEIF file: `properties` are boxes, `refers` is (kind of reference, items) pairs."""

    kind: bytes
    data: bytes
    properties: list[bytes] = field(default_factory=list)
    refers: list[tuple[bytes, list[int]]] = field(default_factory=list)


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", len(body) + 8) + kind + body


def full(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def ispe(width: int, height: int) -> bytes:
    return full(b"ispe", 0, 0, struct.pack(">II", width, height))


def nclx(primaries: int = 1, transfer: int = 13, matrix: int = 6, *, full_range: bool = True) -> bytes:
    return box(b"colr", b"nclx", struct.pack(">HHHB", primaries, transfer, matrix, full_range << 7))


def icc(profile: bytes) -> bytes:
    return box(b"colr", b"prof", profile)


def irot(quarter_turns: int) -> bytes:
    """Turned counter-clockwise."""
    return box(b"irot", bytes([quarter_turns]))


def imir(axis: int) -> bytes:
    """0: top and bottom change places; 1: left and right."""
    return box(b"imir", bytes([axis]))


def container(items: Sequence[Item], *, major: bytes = b"heic", brands: Sequence[bytes] = (b"mif1", b"heic")) -> bytes:
    """A HEIF file whose first item is the primary one."""
    ftyp = box(b"ftyp", major, bytes(4), *brands)
    boxes = list(dict.fromkeys(one for item in items for one in item.properties))
    infos = [
        full(
            b"infe",
            2,
            0,
            struct.pack(">HH4s", n, 0, item.kind),
            b"\0",
            b"application/rdf+xml\0" * (item.kind == b"mime"),
        )
        for n, item in enumerate(items, 1)
    ]
    owned = b"".join(
        struct.pack(">HB", n, len(item.properties)) + bytes(0x80 | boxes.index(one) + 1 for one in item.properties)
        for n, item in enumerate(items, 1)
    )
    refers = b"".join(
        box(kind, struct.pack(f">HH{len(to)}H", n, len(to), *to))
        for n, item in enumerate(items, 1)
        for kind, to in item.refers
    )
    props = box(b"iprp", box(b"ipco", *boxes), full(b"ipma", 0, 0, struct.pack(">I", len(items)), owned))

    def meta(start: int) -> bytes:
        at, places = start, b""
        for n, item in enumerate(items, 1):
            places += struct.pack(">HHHII", n, 0, 1, at, len(item.data))
            at += len(item.data)
        return full(
            b"meta",
            0,
            0,
            full(b"hdlr", 0, 0, bytes(4), b"pict", bytes(13)),
            full(b"pitm", 0, 0, b"\0\1"),
            full(b"iloc", 0, 0, b"\x44\0", struct.pack(">H", len(items)), places),
            full(b"iinf", 0, 0, struct.pack(">H", len(items)), *infos),
            props,
            full(b"iref", 0, 0, refers) if refers else b"",
        )

    before = len(ftyp) + len(meta(0)) + 8
    return ftyp + meta(before) + box(b"mdat", *(item.data for item in items))


def ycbcr(
    rgb: np.ndarray, *, chroma: int = 444, bits: int = 8, matrix: int = 6, full_range: bool = True
) -> list[np.ndarray]:
    """RGB [H, W, 3] of 0-1 as planes, by the formulas of H.273 with the weights of a matrix; chroma is averaged."""
    red, blue = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}[matrix]
    luma = rgb @ np.array([red, 1 - red - blue, blue])
    cb, cr = (rgb[..., 2] - luma) / (2 - 2 * blue), (rgb[..., 0] - luma) / (2 - 2 * red)
    top, scale = 2**bits - 1, 2 ** (bits - 8)
    span = (top, top, 0, 2 ** (bits - 1)) if full_range else (219 * scale, 224 * scale, 16 * scale, 128 * scale)
    _, across, down = SUBSAMPLING[chroma]
    planes = [luma * span[0] + span[2]]
    if across:
        for plane in (cb, cr):
            even = np.pad(plane, ((0, -plane.shape[0] % down), (0, -plane.shape[1] % across)), mode="edge")
            blocks = even.reshape(even.shape[0] // down, down, even.shape[1] // across, across)
            planes.append(blocks.mean(axis=(1, 3)) * span[1] + span[3])
    return [np.rint(plane).clip(0, top).astype(np.uint16) for plane in planes]


def picture(
    rgb: np.ndarray,
    *,
    chroma: int = 444,
    bits: int = 8,
    matrix: int = 6,
    full_range: bool = True,
    colour: bytes | None = None,
    more: Sequence[bytes] = (),
) -> Item:
    """An item that shows RGB [H, W, 3] of 0-1."""
    config, data = hevc(
        ycbcr(rgb, chroma=chroma, bits=bits, matrix=matrix, full_range=full_range), chroma=chroma, bits=bits
    )
    colours = [nclx(matrix=matrix, full_range=full_range)] if colour is None else [colour] * bool(colour)
    return Item(b"hvc1", data, [box(b"hvcC", config), ispe(rgb.shape[1], rgb.shape[0]), *colours, *more])


def noisy(size: int, *, seed: int, chroma: int = 420, bits: int = 8) -> Item:
    """An item whose picture is whatever a decoder makes of random bits."""
    head = Bits()
    head.flags("10")
    head.ue(0, 2)
    head.flags("1" if chroma == 400 else "11")
    head.ue(0)
    noise = np.random.default_rng(seed).integers(0, 256, size * size // 4, dtype=np.uint8).tobytes()
    coded = head.aligned(stop=True) + noise
    config, data = _stream(
        _sps(size, size, chroma, bits, pcm=False), _pps(plain=False), coded, chroma=chroma, bits=bits
    )
    return Item(b"hvc1", data, [box(b"hvcC", config), ispe(size, size), nclx()])


def exif(payload: bytes, *, of: int = 1) -> Item:
    return Item(b"Exif", struct.pack(">I", 6 * payload.startswith(b"Exif")) + payload, [], [(b"cdsc", [of])])


def alpha(opacity: np.ndarray, *, of: int = 1) -> Item:
    """The opacity [H, W] of 0-1 of another item."""
    config, data = hevc([np.rint(opacity * 255).astype(np.uint16)], chroma=400)
    kind = full(b"auxC", 0, 0, b"urn:mpeg:hevc:2015:auxid:1\0")
    return Item(
        b"hvc1", data, [box(b"hvcC", config), ispe(opacity.shape[1], opacity.shape[0]), kind], [(b"auxl", [of])]
    )


def grid(rgb: np.ndarray, *, tile: int, more: Sequence[bytes] = (), start: int = 2) -> list[Item]:
    """A picture in tiles, as phones write it: the grid first, then its tiles; `start` is the number of the first of them."""
    height, width = rgb.shape[:2]
    rows, columns = -(-height // tile), -(-width // tile)
    whole = np.pad(rgb, ((0, rows * tile - height), (0, columns * tile - width), (0, 0)), mode="edge")
    tiles = [
        picture(whole[row * tile :][:tile, column * tile :][:, :tile], chroma=420)
        for row in range(rows)
        for column in range(columns)
    ]
    layout = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height)
    refers = [(b"dimg", list(range(start, start + len(tiles))))]
    return [Item(b"grid", layout, [ispe(width, height), nclx(), *more], refers), *tiles]
