"""Colour profiles for what files say about their colours in numbers: primaries, white point, transfer curve."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

PQ, HLG = 16, 18
HDR_TRANSFERS = (PQ, HLG)
"""Of ITU-T H.273: brightness beyond what is white in a photo."""
D50 = np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D65 = (0.3127, 0.3290)
SRGB_POINTS = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
POINTS = {
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    8: (0.310, 0.316, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}  # fmt: skip
"""colour_primaries of H.273, as x and y of white, red, green and blue; those that are missing are sRGB's, or unspecified."""
GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0, 17: 2.6}
"""transfer_characteristics of H.273 that are a power; others are meant as sRGB's, or nearly so."""


def profile_of_codes(primaries: int, transfer: int) -> bytes:
    """An ICC profile for code points of H.273; nothing where they mean sRGB."""
    if primaries not in POINTS and transfer not in GAMMAS:
        return b""
    return profile_of(POINTS.get(primaries, SRGB_POINTS), gamma=GAMMAS.get(transfer, 0.0))


def profile_of(points: Sequence[float], *, gamma: float) -> bytes:
    """An ICC profile of a display: x and y of white, red, green and blue (none: sRGB's) and a power (0: sRGB's curve)."""
    columns = _to_d50(points or SRGB_POINTS).T
    curve = b"para" + bytes(4)
    if gamma:
        curve += struct.pack(">HHI", 0, 0, round(gamma * 65536))
    else:
        curve += struct.pack(
            ">HH5I", 3, 0, *(round(v * 65536) for v in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
        )
    text = (
        b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", 2, 28) + "p".encode("utf-16-be") + bytes(2)
    )
    tags = {b"desc": text, b"cprt": text, b"wtpt": _xyz(D50)}
    tags |= {name + b"XYZ": _xyz(column) for name, column in zip((b"r", b"g", b"b"), columns, strict=True)}
    tags |= {name + b"TRC": curve for name in (b"r", b"g", b"b")}
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"", 0x04200000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + _xyz(D50)[8:] + bytes(48)
    return head + table + body


def _to_d50(points: Sequence[float]) -> Matrix:
    """The matrix from linear RGB of these primaries to XYZ under D50, adapted as Bradford has it."""
    white, *primaries = (
        np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in zip(points[::2], points[1::2], strict=True)
    )
    columns = np.stack(primaries, axis=1)
    to_xyz = columns * np.linalg.solve(columns, white)
    adapted = np.diag((BRADFORD @ D50) / (BRADFORD @ white))
    matrix: Matrix = np.linalg.inv(BRADFORD) @ adapted @ BRADFORD @ to_xyz
    return matrix


def _xyz(values: Sequence[float] | Matrix) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(float(value) * 65536) for value in values))
