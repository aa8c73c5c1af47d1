"""Mutated pictures thrown at what takes uploads: no decoding process may crash, hang, or keep memory.

    python -m benchmarks.fuzz
    python -m benchmarks.fuzz --count 2000 --out build
    python -m benchmarks.fuzz --heif --count 20000

Pictures of every kind that decoders know are cut, spliced, flipped and have their numbers changed, and go the way of an upload: through
the confined processes of `api.training.photo_intake`. Writes `fuzz.json`; with `--heif`, of HEIC and AVIF alone, `fuzz_heif.json`.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image, ImageCms

from api.training.photo_decoding import DecodedUpload
from api.training.photo_intake import CRASHED, PhotoIntake
from benchmarks import heifs
from benchmarks.pocket_base import machine
from photoflux.manifest import write_json
from photoflux.params.files import load_params
from photoflux.sandbox import MEMORY_BYTES

COUNT, BATCH, SIDE = 100_000, 500, 48
NOISY = ((420, 8), (420, 10), (444, 8), (400, 8))
ODD = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x10000, 65535 * 65535 & 0xFFFFFFFF)
"""Numbers that lengths, widths and offsets go wrong at."""


def seeds() -> list[bytes]:
    """Small pictures of every kind, mode and compression."""
    rng = random.Random(0)
    rgb = Image.new("RGB", (SIDE, SIDE + 8))
    rgb.putdata([(rng.randrange(256), x % 256, (x * 7) % 256) for x in range(SIDE * (SIDE + 8))])
    grey, exif = rgb.convert("L"), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    frames: dict[str, Any] = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    kinds: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "JPEG", {"exif": exif}),
        (rgb, "JPEG", {"progressive": True, "quality": 30}),
        (grey, "JPEG", {}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "PNG", {}),
        (rgb.convert("P"), "PNG", {}),
        (grey.convert("1"), "PNG", {}),
        (rgb.convert("RGBA"), "PNG", {"exif": exif}),
        (grey.convert("I;16"), "PNG", {}),
        (rgb, "PNG", frames),
        (rgb, "TIFF", {}),
        (rgb, "TIFF", {"compression": "tiff_lzw"}),
        (rgb, "TIFF", {"compression": "tiff_adobe_deflate"}),
        (rgb, "TIFF", {"compression": "jpeg"}),
        (rgb, "TIFF", frames),
        (grey.convert("1"), "TIFF", {"compression": "group4"}),
        (grey.convert("I;16"), "TIFF", {}),
        (grey.convert("F"), "TIFF", {}),
        (rgb, "WEBP", {}),
        (rgb, "WEBP", {"lossless": True}),
        (rgb.convert("RGBA"), "WEBP", frames),
        (rgb.convert("P"), "GIF", {}),
        (rgb, "BMP", {}),
        (rgb, "PPM", {}),
    ]
    return [_saved(*kind) for kind in kinds] + heif_seeds()


def heif_seeds() -> list[bytes]:
    """Small HEIC and AVIF files: whole and in tiles, turned, with opacity, EXIF and profiles, and of bits that mean nothing."""
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.random((SIDE // 8, SIDE // 8, 3)), np.ones((8, 8, 1)))
    grey, exif = blocks[..., :1].repeat(3, 2), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    turned = [heifs.irot(1), heifs.imir(0)]
    heic = [
        [heifs.picture(blocks, chroma=420, more=turned), heifs.exif(exif.tobytes())],
        [heifs.picture(blocks, chroma=444, bits=10), heifs.alpha(blocks[..., 0])],
        [heifs.picture(grey, chroma=400)],
        [heifs.picture(blocks, chroma=422, colour=heifs.nclx(12, 13, 6))],
        heifs.grid(blocks, tile=16, more=turned),
        [heifs.picture(blocks, chroma=420, more=[heifs.icc(srgb())])],
        *([heifs.noisy(64, seed=n, chroma=chroma, bits=bits)] for n, (chroma, bits) in enumerate(NOISY)),
    ]
    rgb = Image.fromarray(np.uint8(blocks * 255))
    avif: list[dict[str, Any]] = [
        {},
        {"exif": exif},
        {"quality": 100, "subsampling": "4:4:4"},
        {"icc_profile": srgb()},
        {"tile_cols": 1, "autotiling": False},
    ]
    opaque = rgb.copy()
    opaque.putalpha(rgb.convert("L"))
    frames: dict[str, Any] = {"save_all": True, "append_images": [rgb.rotate(90)]}
    saved = [_saved(rgb, "AVIF", more) for more in avif] + [_saved(opaque, "AVIF", {}), _saved(rgb, "AVIF", frames)]
    return [heifs.container(items) for items in heic] + saved + [_saved(rgb.convert("L"), "AVIF", {})]


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _saved(image: Image.Image, fmt: str, more: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=fmt, **more)
    return buffer.getvalue()


def _flip(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _number(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    """Most numbers that matter are near the beginning."""
    size = rng.choice((1, 2, 4))
    at = rng.randrange(min(len(data), rng.choice((64, 512, len(data)))))
    value = rng.choice(ODD) & (256**size - 1)
    data[at : at + size] = struct.pack(rng.choice("<>") + {1: "B", 2: "H", 4: "I"}[size], value)


def _cut(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    del data[rng.randrange(len(data)) :]


def _drop(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randrange(1, 64)]


def _repeat(data: bytearray, rng: random.Random, _: Sequence[bytes]) -> None:
    at, length = rng.randrange(len(data)), rng.randrange(1, 256)
    data[at:at] = data[at : at + length] * rng.randrange(1, 20)


def _splice(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    other = rng.choice(others)
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


def _append(data: bytearray, rng: random.Random, others: Sequence[bytes]) -> None:
    """Two formats at once."""
    data.extend(rng.choice([*others, b"<?php echo 1; ?>", b"PK\x03\x04" + bytes(26), b"%PDF-1.7\n"]))


MUTATIONS: tuple[Callable[[bytearray, random.Random, Sequence[bytes]], None], ...] = (
    _flip, _flip, _number, _number, _number, _cut, _drop, _repeat, _splice, _append,
)  # fmt: skip


def mutated(count: int, *, seed: int, heif: bool = False) -> Iterator[bytes]:
    """So many files, the same for the same seed."""
    rng, known = random.Random(seed), heif_seeds() if heif else seeds()
    for _ in range(count):
        data = bytearray(rng.choice(known))
        for _ in range(rng.choice((1, 1, 2, 4))):
            if data:
                rng.choice(MUTATIONS)(data, rng, known)
        yield bytes(data)


def take_all(count: int, *, seed: int = 0, heif: bool = False) -> dict[str, Any]:
    """What became of so many mutated files, and how much memory the processes that took them had at most."""
    intake, outcomes, crashed = PhotoIntake(load_params("validate")), Counter[str](), list[bytes]()
    files, started, sizes = mutated(count, seed=seed, heif=heif), time.monotonic(), list[tuple[int, int]]()
    try:
        for done in range(0, count, BATCH):
            batch = [next(files) for _ in range(min(BATCH, count - done))]
            for data, upload in zip(batch, intake.decode(batch), strict=True):
                outcomes[_outcome(upload)] += 1
                if upload.row.get("problem_message") == CRASHED:
                    crashed.append(data)
            sizes.append((_largest("VmRSS"), _largest("VmHWM")))
            print(f"{done + len(batch)} of {count}, {sizes[-1][0] >> 20} MiB", end="\r", flush=True)
    finally:
        intake.close()
    resident, peaks = zip(*sizes, strict=True)
    early = resident[len(resident) // 10]
    return {
        "files": count,
        "crashed": len(crashed),
        "outcomes": dict(sorted(outcomes.items())),
        "memory_cap_bytes": MEMORY_BYTES,
        "peak_bytes": max(peaks),
        "resident_bytes_after_a_tenth": early,
        "resident_bytes_at_the_end": resident[-1],
        "growth": round(resident[-1] / early - 1, 4),
        "seconds": round(time.monotonic() - started, 1),
        "examples": [data[:64].hex() for data in crashed[:5]],
    }


def _outcome(upload: DecodedUpload) -> str:
    return "taken" if upload.photo else str(upload.row["problem"])


def _largest(field: str) -> int:
    """Of this process's children, the largest resident size: now (VmRSS), or the most so far (VmHWM)."""
    found = [Path(f"/proc/{child.pid}/status").read_text() for child in psutil.Process().children()]
    lines = (line for status in found for line in status.splitlines() if line.startswith(field))
    return max((int(line.split()[1]) << 10 for line in lines), default=0)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--heif", action="store_true", help="mutate HEIC and AVIF files alone")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(argv)
    found = take_all(options.count, seed=options.seed, heif=options.heif)
    result = {"kind": "benchmark-fuzz", "schema_version": 1, "machine": machine(), **found}
    write_json(options.out / ("fuzz_heif.json" if options.heif else "fuzz.json"), result)
    print(json.dumps(result, indent=2))
    return 1 if result["crashed"] or result["peak_bytes"] > MEMORY_BYTES else 0


if __name__ == "__main__":
    raise SystemExit(main())
