"""Image files: size, format, and provenance metadata which says that a machine made them."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from photoflux.errors import InputError
from photoflux.params import FORMATS

if TYPE_CHECKING:
    from PIL import Image

SIDE_PX = (16, 4096)
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's digital source type of images made by a trained model, which readers of provenance look for."""
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
NAMESPACE = "urn:photoflux:provenance"
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif"}
PNG_XMP, TIFF_XMP = "XML:com.adobe.xmp", 700
PNG_SRGB = b"\x00"  # rendering intent: perceptual


def parse_size(text: str) -> tuple[int, int]:
    """`WIDTHxHEIGHT` → (width, height) in pixels. Raises InputError."""
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    low, high = SIDE_PX
    if not match or not all(low <= int(side) <= high for side in match.groups()):
        raise InputError(f"size '{text}': write WIDTHxHEIGHT, each side from {low} to {high} pixels, such as 512x512")
    return int(match[1]), int(match[2])


def fit_to_size(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at `size` (Lanczos); where the aspect ratios differ it fills the frame and is cropped equally on two sides."""
    from PIL import Image, ImageOps

    if image.size == size:
        return image
    return ImageOps.fit(image, size, method=Image.Resampling.LANCZOS)


def encode_image(image: Image.Image, fmt: str, *, provenance: Mapping[str, str], quick: bool = False) -> bytes:
    """The image as a file of that format with its provenance inside; equal input gives equal bytes.

    PNG and TIFF are lossless; `quick` makes PNG and WebP files a little larger. Raises InputError for an unknown format.
    """
    if fmt not in FORMATS:
        raise InputError(f"format '{fmt}': choose one of {', '.join(FORMATS)}")
    packet = xmp(provenance)
    options: dict[str, Any] = {
        "png": lambda: {"pnginfo": _png_text(packet, provenance), "compress_level": 4 if quick else 9},
        "jpeg": lambda: {"xmp": packet, "quality": 95, "subsampling": 0},
        "webp": lambda: {"xmp": packet, "quality": 95, "method": 2 if quick else 6},
        "tiff": lambda: {"tiffinfo": {TIFF_XMP: packet}, "compression": "tiff_adobe_deflate"},
    }[fmt]()
    buffer = io.BytesIO()
    (image if image.mode == "RGB" else image.convert("RGB")).save(buffer, format=fmt, **options)
    return buffer.getvalue()


def xmp(provenance: Mapping[str, str]) -> bytes:
    """An XMP packet: the source type in IPTC's vocabulary, everything else in a namespace of our own."""
    own_fields = "".join(f"<p:{key}>{escape(value)}</p:{key}>" for key, value in sorted(provenance.items()))
    return (
        f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        f'<rdf:RDF xmlns:rdf="{RDF}"><rdf:Description rdf:about="" xmlns:e="{IPTC}" xmlns:p="{NAMESPACE}" '
        f"e:DigitalSourceType={quoteattr(SOURCE_TYPE)}>{own_fields}</rdf:Description></rdf:RDF></x:xmpmeta>"
        f'<?xpacket end="r"?>'
    ).encode()


def provenance_of(path: Path) -> dict[str, str]:
    """The provenance in an image file, `digitalSourceType` included; empty where there is none that can be read."""
    from PIL import Image

    with Image.open(path) as image:
        packet = image.info.get("xmp") or b""
    text = packet.decode(errors="replace") if isinstance(packet, bytes) else packet
    if "<!" in text:  # no packet needs a document type, and entities in one can be made to fill the memory
        return {}
    try:
        nodes = list(ElementTree.fromstring(text.encode()).iter())
    except ElementTree.ParseError:
        return {}
    mark = f"{{{NAMESPACE}}}"
    fields = {node.tag.removeprefix(mark): node.text or "" for node in nodes if node.tag.startswith(mark)}
    kind = next((kind for node in nodes if (kind := node.get(f"{{{IPTC}}}DigitalSourceType"))), None)
    return fields | ({"digitalSourceType": kind} if kind else {})


def _png_text(packet: bytes, provenance: Mapping[str, str]) -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add(b"sRGB", PNG_SRGB)
    info.add_itxt(PNG_XMP, packet.decode())
    info.add_itxt("digitalSourceType", SOURCE_TYPE)
    for key, value in sorted(provenance.items()):
        info.add_itxt(key, value)
    return info
