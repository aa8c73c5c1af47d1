"""Every layout of every format against pixels that were worked out without a decoder: read right, or refused by what it is.

The files are written from the standards by `tiffs`, `pngs` and `heifs`; where an encoder has to be used (JPEG, WebP, AV1), what goes in
is known and what comes out may differ by what such a codec loses.
"""

from __future__ import annotations

import itertools
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from benchmarks import heifs
from photoflux.photos.decode import PhotoProblem, decode
from tests.photos import pngs, tiffs
from tests.photos.pictures import encoded

H, W = 13, 21
RNG = np.random.default_rng(7)
NOISE = RNG.integers(0, 256, (H, W, 4)) / 255
"""Four channels [H, W, 4] of 0-1 in which no two neighbours are alike, so that nothing out of place goes unseen."""
OPACITY = RNG.integers(0, 256, (H, W, 1)) / 255
TURNED = {  # what a viewer does to the stored rows and columns, by TIFF's words for row 0 and column 0
    1: lambda p: p, 2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1), 6: lambda p: np.rot90(p, -1), 7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: lambda p: np.rot90(p, 1),
}  # fmt: skip


def read(data: bytes) -> np.ndarray:
    return np.asarray(decode(data).image).astype(np.float64)


def refusal(data: bytes) -> str:
    """What is said of a file of a kind that is not read."""
    with pytest.raises(PhotoProblem) as caught:
        decode(data)
    assert caught.value.code == "unsupported_format"
    assert "which cannot be read here: export it as JPEG or PNG" in caught.value.message
    return caught.value.message


def worst(data: bytes, truth: np.ndarray) -> float:
    """Largest difference, in levels of 255, from RGB [H, W, 3] of 0-1."""
    pixels = read(data)
    assert pixels.shape == truth.shape
    return float(np.abs(pixels - truth * 255).max())


def levels(values: np.ndarray, bits: int) -> np.ndarray:
    """0-1 as the nearest of the values that so many bits can say."""
    return np.rint(values * (2.0**bits - 1)) / (2.0**bits - 1)


def on_white(colour: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    return colour * opacity + 1 - opacity


# --- TIFF ---------------------------------------------------------------------------------------------------------------

COLOURS = {"white-is-zero": 0, "grey": 1, "rgb": 2, "palette": 3, "cmyk": 5, "ycbcr": 6, "lab": 8, "iccLab": 9}
ALPHAS = {"none": None, "unspecified": 0, "premultiplied": 1, "straight": 2}
DEPTHS = ("u1", "u2", "u4", "u8", "u12", "u16", "u32", "i16", "f32")
TIFFS_READ = {
    *(("white-is-zero", depth, "none") for depth in ("u1", "u2", "u4", "u8", "u16")),
    *(("grey", depth, "none") for depth in ("u1", "u2", "u4", "u8", "u12", "u16", "f32")),
    *(("grey", "u8", alpha) for alpha in ("unspecified", "premultiplied", "straight")),
    *(("rgb", depth, alpha) for depth in ("u8", "u16") for alpha in ALPHAS),
    *(("palette", depth, "none") for depth in ("u1", "u2", "u4", "u8")),
    *(("palette", "u8", alpha) for alpha in ("unspecified", "straight")),
    ("cmyk", "u8", "none"), ("cmyk", "u8", "unspecified"), ("cmyk", "u16", "none"),
}  # fmt: skip
"""Colours, depth and alpha of one plane; whatever is not in here is refused."""
PLANES_READ = TIFFS_READ - {("palette", "u8", "straight")} | {
    (colours, depth, "unspecified") for colours, depth, alpha in TIFFS_READ if alpha == "none"
}
"""The same of several planes, one after the other, of which those that nothing is said of can be left out."""


def tiff_case(colours: str, depth: str, alpha: str) -> tuple[np.ndarray, np.ndarray, dict]:
    """Samples of that layout, the RGB that they mean, and the tags that say so."""
    kind, bits = depth[0], int(depth[1:])
    count = {"rgb": 3, "ycbcr": 3, "lab": 3, "iccLab": 3, "cmyk": 4}.get(colours, 1)
    values = NOISE[..., :count] if kind == "f" else levels(NOISE[..., :count], bits)
    opacity = OPACITY if kind == "f" else levels(OPACITY, bits)
    tags = {}
    if colours == "palette":
        table = np.random.default_rng(1).integers(0, 256, (2 ** min(bits, 8), 3))
        tags[320] = (3, [int(v) * 257 for v in table.T.ravel()])
        truth = table[np.rint(values[..., 0] * (len(table) - 1)).astype(int)] / 255
    else:
        truth = {
            "white-is-zero": lambda: 1 - values.repeat(3, 2),
            "grey": lambda: values.repeat(3, 2),
            "cmyk": lambda: (1 - values[..., :3]) * (1 - values[..., 3:]),
        }.get(colours, lambda: values)()
    if alpha != "none":
        tags[338] = (3, [ALPHAS[alpha]])
        if alpha == "premultiplied" and colours != "palette":
            values = values * opacity
            truth = truth * opacity
            truth = truth + 1 - opacity
        elif alpha == "straight":
            truth = on_white(truth, opacity)
        values = np.concatenate([values, opacity], axis=2)
    dtype = {"f": np.float32, "i": np.int16}.get(kind) or (
        np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
    )
    top = 1 if kind == "f" else 2 ** (bits - (kind == "i")) - 1
    samples = values * top if kind == "f" else np.rint(values * top)
    return samples.astype(dtype), truth, tags


def holds(data: bytes, truth: np.ndarray, *, right: bool, names: tuple[str, ...], within: float = 1.3) -> None:
    """That a file is read right where it should be, and else refused in words that name it."""
    if right:
        assert worst(data, truth) <= within
    else:
        said = refusal(data)
        assert all(name in said for name in names), said


def depth_words(depth: str) -> str:
    return f"{depth[1:]}-bit " + {"f": "floating-point ", "i": "signed "}.get(depth[0], "")


ALL = itertools.product(COLOURS, DEPTHS, ALPHAS)
OF_THEIR_OWN = {("ycbcr", "u8", "none"), ("lab", "u8", "none")}
"""Whose numbers are not those of the colours: they have tests of their own below."""


@pytest.mark.parametrize(("colours", "depth", "alpha"), [case for case in ALL if case not in OF_THEIR_OWN])
def test_tiff(colours: str, depth: str, alpha: str):
    samples, truth, tags = tiff_case(colours, depth, alpha)
    names = ("a TIFF with", depth_words(depth))
    within = 2.1 if alpha == "premultiplied" else 1.3
    for planar, order, compression in itertools.product(
        (1, 2), "<>", (tiffs.PLAIN, tiffs.LZW, tiffs.DEFLATE, tiffs.PACKBITS)
    ):
        right = (colours, depth, alpha) in (PLANES_READ if planar == 2 and samples.shape[2] > 1 else TIFFS_READ)
        if order == ">" and (depth == "u12" or (depth == "f32" and compression != tiffs.PLAIN)):
            right = False
        data = tiffs.tiff(
            samples,
            photometric=COLOURS[colours],
            planar=planar,
            compression=compression,
            order=order,
            bits=int(depth[1:]),
            rows=5,
            tags=tags,
        )
        holds(data, truth, right=right, names=names, within=within)


@pytest.mark.parametrize(
    "colours,depth", [("grey", "u8"), ("grey", "u16"), ("rgb", "u8"), ("rgb", "u16"), ("cmyk", "u8")]
)
@pytest.mark.parametrize("compression", [tiffs.PLAIN, tiffs.LZW, tiffs.DEFLATE, tiffs.OLD_DEFLATE])
def test_tiff_tiles_predictors_orders_and_sizes(colours: str, depth: str, compression: int):
    samples, truth, tags = tiff_case(colours, depth, "none")
    for planar, order, tile, predictor, big in itertools.product((1, 2), "<>", (0, 16), (1, 2), (False, True)):
        if predictor == 2 and compression == tiffs.PLAIN:
            continue
        data = tiffs.tiff(
            samples,
            photometric=COLOURS[colours],
            planar=planar,
            compression=compression,
            order=order,
            tile=tile,
            big=big,
            predictor=predictor,
            tags=tags,
        )
        holds(data, truth, right=not (big and order == ">"), names=("a BigTIFF in big-endian order",))


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("colours,depth,planar", [("rgb", "u8", 1), ("rgb", "u16", 2), ("white-is-zero", "u16", 1)])
def test_tiff_is_turned(colours: str, depth: str, planar: int, orientation: int):
    samples, truth, tags = tiff_case(colours, depth, "none")
    data = tiffs.tiff(samples, photometric=COLOURS[colours], planar=planar, tags=tags | {274: (3, [orientation])})
    assert worst(data, TURNED[orientation](truth)) <= 1.3


@pytest.mark.parametrize("extras", [(0, 0), (1, 0), (2, 0), (2, 0, 0), (0, 0, 0)])
@pytest.mark.parametrize("planar", [1, 2])
def test_tiff_with_more_channels_than_anybody_needs(extras: tuple[int, ...], planar: int):
    """What programs for retouching keep their masks in."""
    samples, _, _ = tiff_case("rgb", "u8", "none")
    opacity = np.rint(OPACITY * 255).astype(np.uint8)
    colour = np.rint(samples * OPACITY).astype(np.uint8) if extras[0] == 1 else samples
    data = tiffs.tiff(
        np.concatenate([colour, opacity, *[NOISE[..., 3:].astype(np.uint8)] * (len(extras) - 1)], axis=2),
        photometric=2,
        planar=planar,
        tags={338: (3, list(extras))},
    )
    truth = samples / 255 if not extras[0] else on_white(samples / 255, OPACITY)
    within = 2.1 if extras[0] == 1 else 1.3
    assert worst(data, truth) <= within


def test_tiff_whose_fourth_channel_nothing_is_said_of():
    """It is taken for opacity, as other programs take it."""
    samples = np.concatenate([NOISE[..., :3], OPACITY], axis=2)
    data = tiffs.tiff(np.rint(samples * 255).astype(np.uint8), photometric=2)
    assert worst(data, on_white(NOISE[..., :3], OPACITY)) <= 1.3


@pytest.mark.parametrize("depth", ["u1", "u4", "u8"])
def test_tiff_with_bits_in_reverse(depth: str):
    samples, truth, tags = tiff_case("grey", depth, "none")
    for compression in (tiffs.PLAIN, tiffs.DEFLATE):
        data = tiffs.tiff(samples, photometric=1, bits=int(depth[1:]), fill_order=2, compression=compression, tags=tags)
        assert worst(data, truth) <= 1.3


def test_tiff_with_bits_in_reverse_where_these_are_not_undone():
    for colours, planar in (("grey", 1), ("rgb", 1), ("rgb", 2)):
        samples, _, _ = tiff_case(colours, "u16", "none")
        data = tiffs.tiff(samples, photometric=COLOURS[colours], planar=planar, fill_order=2)
        assert "16-bit" in refusal(data)


def test_tiff_palette_of_eight_bits():
    """Against the standard, which has 16; libtiff takes small numbers for what they were meant as, too."""
    table = np.random.default_rng(1).integers(0, 256, (256, 3))
    samples = np.rint(NOISE[..., :1] * 255).astype(np.uint8)
    data = tiffs.tiff(samples, photometric=3, tags={320: (3, [int(v) for v in table.T.ravel()])})
    assert worst(data, table[samples[..., 0]] / 255) <= 1


@pytest.mark.parametrize("compression", [tiffs.PLAIN, tiffs.DEFLATE])
def test_tiff_ycbcr(compression: int):
    planes = heifs.ycbcr(NOISE[..., :3], chroma=444, matrix=6)
    samples = np.stack(planes, axis=2).astype(np.uint8)
    data = tiffs.tiff(samples, photometric=6, compression=compression, tags={530: (3, [1, 1])})
    assert worst(data, NOISE[..., :3]) <= 3


def test_tiff_ycbcr_with_fewer_samples_of_colour_than_the_decoder_takes():
    samples = np.zeros((H, W, 3), np.uint8)
    assert "8-bit YCbCr" in refusal(tiffs.tiff(samples, photometric=6))
    assert "in separate planes" in refusal(tiffs.tiff(samples, photometric=6, planar=2, tags={530: (3, [1, 1])}))


def test_tiff_lab():
    """CIE L*a*b* under D50, through XYZ and Bradford's matrix to sRGB, by their formulas."""
    lab = np.stack([NOISE[..., 0] * 80 + 10, NOISE[..., 1] * 60 - 30, NOISE[..., 2] * 60 - 30], axis=2)
    stored = np.stack([np.rint(lab[..., 0] * 2.55), np.rint(lab[..., 1]) % 256, np.rint(lab[..., 2]) % 256], axis=2)
    data = tiffs.tiff(stored.astype(np.uint8), photometric=8)
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=2)
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * 3 * (6 / 29) ** 2) * [0.9642, 1, 0.8249]
    to_srgb = [[3.1339, -1.6169, -0.4906], [-0.9788, 1.9161, 0.0335], [0.0719, -0.2290, 1.4052]]
    linear = np.clip(xyz @ np.array(to_srgb).T, 0, 1)
    truth = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    assert np.abs(read(data) - truth * 255).mean() < 2


@pytest.mark.parametrize("how", ["jpeg", "tiff_lzw", "lzma", "zstd", "packbits", "group3", "group4"])
def test_tiff_as_the_usual_library_writes_it(how: str):
    smooth = np.asarray(Image.fromarray(np.uint8(NOISE[:6, :8, :3] * 255)).resize((96, 64), Image.Resampling.BICUBIC))
    picture = Image.fromarray(smooth)
    truth, within = smooth / 255, 0.1
    if how.startswith("group"):
        picture = picture.convert("1")
        truth = np.asarray(picture)[..., None].repeat(3, 2).astype(float)
    elif how == "jpeg":
        within = 40
    options = {"quality": 95} if how == "jpeg" else {}
    data = encoded(picture, "TIFF", compression=how, **options)
    pixels = read(data)
    assert np.abs(pixels - truth * 255).max() <= within
    assert np.abs(pixels - truth * 255).mean() <= (3 if within > 1 else 0.01)


@pytest.mark.parametrize(
    ("compression", "name"),
    [
        (6, "old-style JPEG"),
        (50001, "WebP"),
        (34712, "JPEG 2000"),
        (50002, "JPEG XL"),
        (34887, "LERC"),
        (32809, "ThunderScan"),
        (9, "unknown"),
    ],
)
def test_tiff_of_an_unread_compression(compression: int, name: str):
    data = tiffs.tiff(np.zeros((H, W, 3), np.uint8), photometric=2, tags={259: (3, [compression])})
    assert f"a TIFF with {name} compression" in refusal(data)


def test_tiff_beside_its_own_thumbnail():
    """One that says so or not, before or behind; another picture is another picture, whatever its size."""
    rng = np.random.default_rng(3)
    large = np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    small, other = large[::8, ::8], rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    main = tiffs.page(large, photometric=2)
    said, unsaid, foreign, half = (
        tiffs.page(pixels, photometric=2, tags=tags)
        for pixels, tags in ((other, {254: (4, [1])}), (small, {}), (other, {}), (large[::2], {}))
    )
    for several in ([main, said], [said, main], [main, unsaid], [main, said, unsaid]):
        assert worst(tiffs.pages(several), large / 255) == 0
        assert worst(tiffs.pages(several, order="<", big=True), large / 255) == 0
    for several in ([main, main], [main, foreign], [main, half], [main, said, foreign]):
        with pytest.raises(PhotoProblem) as caught:
            decode(tiffs.pages(several))
        assert caught.value.code == "several_frames"


def test_raw_files_that_begin_like_a_tiff_are_no_small_photos():
    """Their first page is a preview of 160 pixels; what the camera saw lies elsewhere."""
    preview = np.zeros((12, 16, 3), np.uint8)
    for tags in ({254: (4, [1]), 330: (4, [8])}, {50706: (1, [1, 4, 0, 0])}, {262: (3, [32803])}):
        assert "a camera's raw file" in refusal(tiffs.tiff(preview, photometric=2, tags=tags))
    cr2 = bytearray(tiffs.tiff(preview, photometric=2))
    cr2[8:10] = b"CR"
    assert "a camera's raw file" in refusal(bytes(cr2))


# --- PNG ----------------------------------------------------------------------------------------------------------------

PNG_DEPTHS = {
    pngs.GREY: (1, 2, 4, 8, 16), pngs.RGB: (8, 16), pngs.PALETTE: (1, 2, 4, 8), pngs.GREY_ALPHA: (8, 16), pngs.RGB_ALPHA: (8, 16),
}  # fmt: skip


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("colour", "bits", "clear"),
    [
        (colour, bits, clear)
        for colour, depths in PNG_DEPTHS.items()
        for bits in depths
        for clear in ("", "least", "middle", "most")
        if not clear or colour not in (pngs.GREY_ALPHA, pngs.RGB_ALPHA)  # the standard forbids both
    ],
)
def test_png(colour: int, bits: int, clear: str, interlaced: bool):
    """`clear`: one colour of the picture is transparent."""
    count = {pngs.RGB: 3, pngs.GREY_ALPHA: 2, pngs.RGB_ALPHA: 4}.get(colour, 1)
    samples = np.rint(NOISE[..., :count] * (2**bits - 1)).astype(int)
    samples[3:9] = {"least": 0, "most": 2**bits - 1}.get(clear, 2**bits // 3)
    values, before = samples / (2**bits - 1), []
    if colour == pngs.PALETTE:
        table = np.random.default_rng(1).integers(0, 256, (2**bits, 3))
        before.append(pngs.chunk(b"PLTE", table.astype(np.uint8).tobytes()))
        truth = table[samples[..., 0]] / 255
    else:
        truth = values[..., :3] if count >= 3 else values[..., :1].repeat(3, 2)
    if colour in (pngs.GREY_ALPHA, pngs.RGB_ALPHA):
        truth = on_white(truth, values[..., -1:])
    elif clear:
        truth[(samples == samples[3, 0]).all(axis=2)] = 1
        if colour == pngs.PALETTE:
            opacity = bytes(0 if n == samples[3, 0, 0] else 255 for n in range(2**bits))
            before.append(pngs.chunk(b"tRNS", opacity))
        else:
            before.append(pngs.chunk(b"tRNS", struct.pack(f">{count}H", *samples[3, 0])))
    data = pngs.png(samples, colour=colour, bits=bits, interlaced=interlaced, before=before)
    right = not (clear and bits == 16)
    holds(data, truth, right=right, names=("a PNG with 16-bit samples and a transparent colour",))


def text_chunks() -> list[bytes]:
    """Megabytes of words, more than one of each kind, and some that inflate to more."""
    long = b"a" * 3_000_000
    return [
        pngs.chunk(b"tEXt", b"Comment\0" + long),
        *[pngs.chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80_000_000)))] * 3,
        pngs.chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(long)),
    ]


def test_png_is_not_lost_for_its_words_or_for_a_chunk_that_nobody_needs():
    samples = np.rint(NOISE[..., :3] * 255).astype(int)
    broken = pngs.chunk(b"tEXt", b"Comment\0words")[:-4] + b"\0\0\0\0"
    dated = pngs.chunk(b"tIME", bytes(7))[:-4] + b"\0\0\0\0"
    for more in (text_chunks(), [broken], [dated, pngs.chunk(b"prVt", b"own")]):
        for where in ("before", "after"):
            assert worst(pngs.png(samples, colour=pngs.RGB, **{where: more}), NOISE[..., :3]) <= 0.6


def test_png_with_a_wrong_checksum_where_it_matters():
    samples = np.rint(NOISE[..., :3] * 255).astype(int)
    for kind, body in ((b"iCCP", b"p\0\0" + zlib.compress(b"x")), (b"gAMA", struct.pack(">I", 100_000))):
        with pytest.raises(PhotoProblem) as caught:
            decode(pngs.png(samples, colour=pngs.RGB, before=[pngs.chunk(kind, body)[:-4] + b"\0\0\0\0"]))
        assert caught.value.code == "corrupt"


def swapped(profile: bytes) -> bytes:
    """A display profile in which red and blue have changed places."""
    return profile.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")


def test_png_with_a_large_profile():
    """As those of printers are; one beyond all measure is told by name."""
    profile = swapped(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red = np.full((4, 4, 3), (255, 0, 0))
    for size in (2_500_000, 15_000_000):
        chunk = pngs.chunk(b"iCCP", b"p\0\0" + zlib.compress(profile + bytes(size)))
        pixels = read(pngs.png(red, colour=pngs.RGB, before=[chunk]))
        assert np.abs(pixels[0, 0] - [0, 0, 255]).max() <= 2
    chunk = pngs.chunk(b"iCCP", b"p\0\0" + zlib.compress(profile + bytes(17 << 20)))
    assert "a PNG with a colour profile of more than 16 MB" in refusal(pngs.png(red, colour=pngs.RGB, before=[chunk]))


def test_png_colours_that_are_told_in_numbers():
    """A linear file, one of Display P3 in two ways, and one of an HDR screen's, by the formulas of each."""
    samples = np.rint(NOISE[..., :3] * 255).astype(int)
    linear = pngs.png(samples, colour=pngs.RGB, before=[pngs.chunk(b"gAMA", struct.pack(">I", 100_000))])
    assert worst(linear, curved(samples / 255)) <= 2
    usual = pngs.png(samples, colour=pngs.RGB, before=[pngs.chunk(b"gAMA", struct.pack(">I", 45_455))])
    assert worst(usual, samples / 255) == 0
    coded = pngs.png(samples, colour=pngs.RGB, before=[pngs.chunk(b"cICP", bytes([12, 13, 0, 1]))])
    assert worst(coded, from_p3(samples / 255)) <= 2
    for transfer in (16, 18):
        hdr = pngs.png(samples, colour=pngs.RGB, before=[pngs.chunk(b"cICP", bytes([9, transfer, 0, 1]))])
        assert "an HDR picture" in refusal(hdr)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("colour", [pngs.GREY, pngs.PALETTE, pngs.GREY_ALPHA, pngs.RGB_ALPHA])
def test_png_colours_are_applied_however_they_are_stored(colour: int, bits: int):
    """Greys, palettes and pictures with opacity, by a linear curve and by a profile; one of another kind of colours is ignored."""
    if colour == pngs.PALETTE:
        bits, table = 8, np.random.default_rng(1).integers(0, 256, (256, 3))
        samples, before = (
            np.rint(NOISE[..., :1] * 255).astype(int),
            [pngs.chunk(b"PLTE", table.astype(np.uint8).tobytes())],
        )
        truth = table[samples[..., 0]] / 255
    else:
        count, before = {pngs.GREY: 1, pngs.GREY_ALPHA: 2, pngs.RGB_ALPHA: 4}[colour], []
        samples = np.rint(NOISE[..., :count] * (2**bits - 1)).astype(int)
        truth = samples[..., :3] / (2**bits - 1) if count == 4 else samples[..., :1].repeat(3, 2) / (2**bits - 1)
    opacity = samples[..., -1:] / (2**bits - 1) if colour in (pngs.GREY_ALPHA, pngs.RGB_ALPHA) else np.ones((H, W, 1))
    linear = pngs.chunk(b"gAMA", struct.pack(">I", 100_000))
    data = pngs.png(samples, colour=colour, bits=bits, before=[linear, *before])
    # in 8 bits dark steps are large
    assert np.abs(read(data) - on_white(curved(truth), opacity) * 255).max() <= (13 if bits == 16 else 2)
    profile = swapped(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    data = pngs.png(
        samples, colour=colour, bits=bits, before=[pngs.chunk(b"iCCP", b"p\0\0" + zlib.compress(profile)), *before]
    )
    assert np.abs(read(data) - on_white(truth[..., ::-1], opacity) * 255).max() <= 3
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    data = pngs.png(
        samples, colour=colour, bits=bits, before=[pngs.chunk(b"iCCP", b"p\0\0" + zlib.compress(lab)), *before]
    )
    assert np.abs(read(data) - on_white(truth, opacity) * 255).max() <= 1.3


def test_colours_that_no_display_could_have_are_ignored():
    samples = np.rint(NOISE[..., :3] * 255).astype(int)
    for gamma, points in ((1, (0,) * 8), (100_000, (0,) * 8), (100_000, (31270, 32900) * 4), (1, ())):
        chunks = [pngs.chunk(b"gAMA", struct.pack(">I", gamma))] + (
            [pngs.chunk(b"cHRM", struct.pack(">8I", *points))] if points else []
        )
        assert read(pngs.png(samples, colour=pngs.RGB, before=chunks)).shape == (H, W, 3)


def curved(linear: np.ndarray) -> np.ndarray:
    return np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def straightened(curve: np.ndarray) -> np.ndarray:
    return np.where(curve > 0.04045, ((curve + 0.055) / 1.055) ** 2.4, curve / 12.92)


def from_p3(values: np.ndarray) -> np.ndarray:
    """Display P3 0-1 as sRGB: the matrix between their linear lights, and sRGB's curve, which both have."""
    matrix = [[1.2249, -0.2247, 0.0], [-0.0420, 1.0419, 0.0], [-0.0197, -0.0786, 1.0979]]
    return curved(np.clip(straightened(values) @ np.array(matrix).T, 0, 1))


# --- JPEG and WebP --------------------------------------------------------------------------------------------------------

SMOOTH = np.asarray(Image.fromarray(np.uint8(NOISE[:5, :7, :3] * 255)).resize((112, 80), Image.Resampling.BICUBIC))
"""A picture [80, 112, 3] that a lossy codec keeps."""


@pytest.mark.parametrize(
    "options",
    [
        {}, {"subsampling": 0}, {"subsampling": 1}, {"subsampling": 2}, {"progressive": True}, {"optimize": True},
        {"keep_rgb": True}, {"restart_marker_rows": 1}, {"smooth": 1},
    ],
)  # fmt: skip
def test_jpeg(options: dict):
    pixels = read(encoded(Image.fromarray(SMOOTH), "JPEG", quality=97, **options))
    assert np.abs(pixels - SMOOTH).mean() < 1.5


def test_jpeg_in_grey_and_cmyk():
    """Adobe's files hold the inverse of each ink, which says so."""
    grey = Image.fromarray(SMOOTH).convert("L")
    assert np.abs(read(encoded(grey, "JPEG", quality=97))[..., 0] - np.asarray(grey)).mean() < 1
    inks = np.concatenate([255 - SMOOTH, np.full((*SMOOTH.shape[:2], 1), 30, np.uint8)], axis=2)
    truth = SMOOTH * (1 - 30 / 255)
    data = encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=97)
    assert np.abs(read(data) - truth).mean() < 2


@pytest.mark.parametrize(
    ("marker", "header", "name"),
    [
        (0xC1, (12, 8, 8, 3), "a 12-bit JPEG"), (0xC3, (8, 8, 8, 3), "a lossless JPEG"), (0xC5, (8, 8, 8, 3), "a hierarchical JPEG"),
        (0xC0, (8, 8, 8, 2), "a JPEG of 2 channels"), (0xF7, (8, 8, 8, 3), "a JPEG-LS picture"),
    ],
)  # fmt: skip
def test_jpeg_of_another_process(marker: int, header: tuple[int, ...], name: str):
    frame = struct.pack(">BHHB", *header) + b"".join(bytes([n, 0x11, 0]) for n in range(header[3]))
    data = b"\xff\xd8\xff" + bytes([marker]) + struct.pack(">H", len(frame) + 2) + frame + b"\xff\xd9"
    assert name in refusal(data)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("lossless", [True, False])
def test_webp(mode: str, lossless: bool):
    values = SMOOTH[..., :1].repeat(3, 2) if mode == "L" else SMOOTH
    opacity = np.tile(np.linspace(0, 255, 112).astype(np.uint8)[None, :, None], (80, 1, 1))
    stored = np.concatenate([values, opacity], axis=2) if mode == "RGBA" else values
    picture = Image.fromarray(stored, "RGBA" if mode == "RGBA" else "RGB").convert(mode)
    pixels = read(encoded(picture, "WEBP", lossless=lossless, exact=True, quality=98))
    truth = on_white(values / 255, opacity / 255) * 255 if mode == "RGBA" else values
    assert np.abs(pixels - truth).mean() < (0.6 if lossless else 2.5)


# --- HEIC and AVIF --------------------------------------------------------------------------------------------------------

BLOCKS = np.kron(NOISE[..., :3], np.ones((2, 2, 1)))
"""Noise in blocks of four pixels, which any subsampling of colour keeps."""
BRANDS = ("heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "miaf", "mif2", "avif", "isom")


@pytest.mark.parametrize("full_range", [True, False])
@pytest.mark.parametrize("matrix", [1, 6, 9])
@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("chroma", [400, 420, 422, 444])
def test_heic(chroma: int, bits: int, matrix: int, full_range: bool):
    truth = BLOCKS[..., :1].repeat(3, 2) if chroma == 400 else BLOCKS
    item = heifs.picture(truth, chroma=chroma, bits=bits, matrix=matrix, full_range=full_range)
    assert worst(heifs.container([item]), truth) <= 4


@pytest.mark.parametrize("brand", BRANDS)
def test_heic_under_every_brand(brand: str):
    """What a file says first tells little: cameras and converters write any of these over HEVC."""
    data = heifs.container([heifs.picture(BLOCKS)], major=brand.encode(), brands=[b"mif1", b"heic"])
    decoded = decode(data)
    assert decoded.format == "HEIF"
    assert np.abs(np.asarray(decoded.image) - BLOCKS * 255).max() <= 3


TRANSFORMS = {
    (0, None): 1, (1, None): 8, (2, None): 3, (3, None): 6, (0, 0): 4, (0, 1): 2, (1, 0): 5, (3, 0): 7, (1, 1): 7, (3, 1): 5,
}  # fmt: skip
"""Quarter turns counter-clockwise, then top and bottom (0) or left and right (1) exchanged → the same as TIFF would say it."""


def exif_saying(orientation: int, *, gps: bool = False) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "SecretMaker"
    if gps:
        exif.get_ifd(0x8825)[2] = (52.0, 30.0, 0.0)
    return exif.tobytes()


@pytest.mark.parametrize("exif", [None, 1, 3, 6])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_heic_is_turned_once(transform: tuple[int, int | None], exif: int | None):
    """As its container says, and not once more for what EXIF says."""
    turns, axis = transform
    more = [heifs.irot(turns)] * bool(turns) + [heifs.imir(axis or 0)] * (axis is not None)
    items = [heifs.picture(BLOCKS, more=more)] + ([heifs.exif(exif_saying(exif))] if exif else [])
    assert worst(heifs.container(items), TURNED[TRANSFORMS[transform]](BLOCKS)) <= 3


def test_heic_in_tiles_as_phones_write_it():
    grid = heifs.grid(BLOCKS, tile=16, more=[heifs.irot(3)])
    assert worst(heifs.container([*grid, heifs.exif(exif_saying(6))]), TURNED[6](BLOCKS)) <= 4


@pytest.mark.parametrize("full_range", [True, False])
@pytest.mark.parametrize("chroma", [400, 444])
def test_heic_with_opacity(chroma: int, full_range: bool):
    opacity = np.kron(OPACITY, np.ones((2, 2, 1)))
    truth = BLOCKS[..., :1].repeat(3, 2) if chroma == 400 else BLOCKS
    picture = heifs.picture(truth, chroma=chroma, full_range=full_range)
    decoded = decode(heifs.container([picture, heifs.alpha(opacity[..., 0])]))
    assert decoded.facts["had_alpha"]
    assert np.abs(np.asarray(decoded.image) - on_white(truth, opacity) * 255).max() <= 4


def test_heic_colours():
    """By its profile; or by numbers, which phones say Display P3 with, and screens for HDR what no photo holds."""
    profile = swapped(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    item = heifs.picture(np.full((16, 16, 3), (1.0, 0, 0)), more=[heifs.icc(profile)])
    assert np.abs(read(heifs.container([item]))[0, 0] - [0, 0, 255]).max() <= 3
    calm = BLOCKS * 0.6 + 0.2
    item = heifs.picture(calm, colour=heifs.nclx(12, 13, 6))
    assert np.abs(read(heifs.container([item])) - from_p3(calm) * 255).mean() < 1.5
    for transfer in (16, 18):
        item = heifs.picture(BLOCKS, bits=10, colour=heifs.nclx(9, transfer, 9), matrix=9)
        assert "an HDR picture" in refusal(heifs.container([item]))


def test_a_heic_is_its_primary_picture():
    """Beside further pictures, thumbnails and maps of what is brighter than white: those are not asked."""
    gain = heifs.picture(1 - BLOCKS, colour=heifs.nclx(9, 16, 9))
    thumbnail = heifs.picture(1 - BLOCKS[:16, :16])
    thumbnail.refers.append((b"thmb", [1]))
    assert worst(heifs.container([heifs.picture(BLOCKS), gain, thumbnail]), BLOCKS) <= 3


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (b"avc1", "in H.264"), (b"vvc1", "in H.266"), (b"j2k1", "in JPEG 2000"), (b"jpeg", "in JPEG"),
        (b"unci", "without compression"), (b"abcd", "unknown"),
    ],
)  # fmt: skip
def test_heif_in_another_codec(kind: bytes, name: str):
    item = heifs.picture(BLOCKS)
    item.kind = kind
    said = refusal(heifs.container([item], major=b"mif1", brands=[b"mif1"]))
    assert "a HEIF picture" in said and name in said


def test_heif_sequences_are_animated():
    still = heifs.container([heifs.picture(BLOCKS)], major=b"msf1")
    bare = heifs.box(b"ftyp", b"hevc", bytes(4), b"msf1") + heifs.box(b"moov", heifs.box(b"trak"))
    for data in (still + heifs.box(b"moov", heifs.box(b"trak")), bare):
        with pytest.raises(PhotoProblem) as caught:
            decode(data)
        assert caught.value.code == "several_frames"
    film = heifs.container([heifs.picture(BLOCKS)]) + heifs.box(b"moov", heifs.box(b"trak"))
    assert worst(film, BLOCKS) <= 3, "a photo with a film of the moment behind it"


def av1(picture: np.ndarray, **options: object) -> tuple[bytes, list[bytes]]:
    """The coded item of an AVIF, and those of its properties that say how it is coded."""
    data = encoded(Image.fromarray(picture), "AVIF", quality=100, subsampling="4:4:4", **options)
    top = dict(boxes_of(data, 0, len(data)))
    meta = top[b"meta"]
    props = dict(boxes_of(data, meta[0] + 4, meta[1]))[b"iprp"]
    ipco = dict(boxes_of(data, *props))[b"ipco"]
    kept = [data[a - 8 : b] for kind, (a, b) in boxes_of(data, *ipco) if kind in (b"av1C", b"ispe", b"pixi", b"colr")]
    return data[slice(*top[b"mdat"])], kept


def boxes_of(data: bytes, start: int, end: int) -> list[tuple[bytes, tuple[int, int]]]:
    found = []
    while start < end:
        size = int.from_bytes(data[start : start + 4], "big")
        found.append((data[start + 4 : start + 8], (start + 8, start + size)))
        start += size
    return found


AV1_DATA, AV1_BOXES = av1(SMOOTH)


@pytest.mark.parametrize("brand", ["avif", "mif1", "miaf", "MA1A", "heic"])
@pytest.mark.parametrize("transform", [(0, None), (1, None), (3, 0)])
@pytest.mark.parametrize("exif", [None, 6])
def test_avif_under_every_brand_is_turned_once(brand: str, transform: tuple[int, int | None], exif: int | None):
    turns, axis = transform
    more = [heifs.irot(turns)] * bool(turns) + [heifs.imir(axis or 0)] * (axis is not None)
    items = [heifs.Item(b"av01", AV1_DATA, [*AV1_BOXES, *more])] + ([heifs.exif(exif_saying(exif))] if exif else [])
    data = heifs.container(items, major=brand.encode(), brands=[b"mif1", b"avif"])
    decoded = decode(data)
    truth = TURNED[TRANSFORMS[transform]](SMOOTH).astype(float)
    assert decoded.format == "AVIF"
    assert np.asarray(decoded.image).shape == truth.shape
    assert np.abs(np.asarray(decoded.image) - truth).mean() < 1.5


@pytest.mark.parametrize("options", [{"range": "limited"}, {"range": "full"}, {"tile_cols": 1, "autotiling": False}])
def test_avif(options: dict):
    pixels = read(encoded(Image.fromarray(SMOOTH), "AVIF", quality=100, subsampling="4:4:4", **options))
    assert np.abs(pixels - SMOOTH).mean() < 1.5


def test_avif_with_opacity_in_grey_and_with_a_profile():
    opacity = np.tile(np.linspace(0, 255, 112).astype(np.uint8)[None, :, None], (80, 1, 1))
    stored = Image.fromarray(np.concatenate([SMOOTH, opacity], axis=2), "RGBA")
    for premultiplied in (False, True):
        pixels = read(encoded(stored, "AVIF", quality=100, subsampling="4:4:4", alpha_premultiplied=premultiplied))
        assert np.abs(pixels - on_white(SMOOTH / 255, opacity / 255) * 255).mean() < 1.5
    grey = Image.fromarray(SMOOTH).convert("L")
    for span in ("full", "limited"):
        pixels = read(encoded(grey, "AVIF", quality=100, range=span))
        assert np.abs(pixels[..., 0] - np.asarray(grey)).mean() < 1.5
    profile = swapped(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red = Image.new("RGB", (32, 32), (255, 0, 0))
    assert np.abs(read(encoded(red, "AVIF", quality=100, icc_profile=profile))[0, 0] - [0, 0, 255]).max() <= 4


def test_avif_colours_that_are_told_in_numbers():
    others = [one for one in AV1_BOXES if one[4:8] != b"colr"]
    item = heifs.Item(b"av01", AV1_DATA, [*others, heifs.nclx(12, 13, 6)])
    data = heifs.container([item], major=b"avif", brands=[b"avif"])
    assert np.abs(read(data) - from_p3(SMOOTH / 255) * 255).mean() < 2
    for transfer in (16, 18):
        item = heifs.Item(b"av01", AV1_DATA, [*others, heifs.nclx(9, transfer, 9)])
        assert "an HDR picture" in refusal(heifs.container([item], major=b"avif", brands=[b"avif"]))


def test_avif_with_a_crop_is_told_so():
    crop = heifs.box(b"clap", struct.pack(">8I", 16, 1, 16, 1, 0, 1, 0, 1))
    item = heifs.Item(b"av01", AV1_DATA, [*AV1_BOXES, crop])
    assert "an AVIF with a crop" in refusal(heifs.container([item], major=b"avif", brands=[b"avif"]))


def test_an_animated_avif_is_told_so():
    frames = [Image.fromarray(SMOOTH), Image.fromarray(SMOOTH[::-1])]
    with pytest.raises(PhotoProblem) as caught:
        decode(encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:]))
    assert caught.value.code == "several_frames"


def containers() -> dict[str, bytes]:
    """A HEIC and an AVIF with everything in them that says whose they are."""
    told = [
        heifs.exif(exif_saying(6, gps=True)),
        heifs.Item(b"mime", b"<x:xmpmeta>SecretPlace tiff:Orientation='6'", [], [(b"cdsc", [1])]),
    ]
    return {
        "heic": heifs.container([heifs.picture(BLOCKS), *told]) + heifs.box(b"uuid", b"C2PA" * 4, b"SecretMaker"),
        "avif": heifs.container([heifs.Item(b"av01", AV1_DATA, AV1_BOXES), *told], major=b"avif", brands=[b"avif"]),
    }


@pytest.mark.parametrize("kind", ["heic", "avif"])
def test_what_heif_says_of_its_maker_is_noted_and_dropped(kind: str):
    decoded = decode(containers()[kind])
    assert decoded.facts["had_gps"] and decoded.facts["had_exif"]
    assert not decoded.facts["was_rotated"]
    assert decoded.image.info == {} and dict(decoded.image.getexif()) == {}
    assert b"Secret" not in encoded(decoded.image, "PNG")


@pytest.mark.parametrize("kind", ["heic", "avif"])
@pytest.mark.parametrize("exif", [b"", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\xff" * 40, b"II*\0\x08\0\0\0\xff\xff"])
def test_damaged_exif_does_not_lose_a_heif(kind: str, exif: bytes):
    picture = heifs.picture(BLOCKS) if kind == "heic" else heifs.Item(b"av01", AV1_DATA, AV1_BOXES)
    data = heifs.container([picture, heifs.exif(exif)], major=kind.encode(), brands=[b"mif1", kind.encode()])
    assert read(data).shape[2] == 3


@pytest.mark.parametrize("kind", ["heic", "avif"])
def test_heif_is_held_against_limits_before_it_is_decoded(kind: str):
    data = containers()[kind]
    with pytest.raises(PhotoProblem) as caught:
        decode(data, max_pixels=1000)
    assert caught.value.code == "too_many_pixels"
    for cut in (len(data) // 2, len(data) - 200):
        with pytest.raises(PhotoProblem) as caught:
            decode(data[:cut])
        assert caught.value.code == "truncated"
