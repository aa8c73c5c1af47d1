"""The photo table: one row per file with its measures and which photo it repeats."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from photoflux.params import ValidateParams
from photoflux.photos.decode import PhotoProblem, decode
from photoflux.photos.inspect import (
    Fingerprint,
    Likeness,
    Measures,
    background,
    fingerprint,
    likeness,
    measure,
)
from photoflux.photos.rules import REJECT, broken_rules, rule_table, status_of

UNKNOWN: dict[str, Any] = {
    "decoded": False, "problem": "", "problem_message": "", "sha256": "", "facts": {}, "duplicate_of": "",
    "duplicate_note": "", "closest": 0.0, "background": -1, **dict.fromkeys(Measures.__dataclass_fields__),
}  # fmt: skip
Pair = tuple[str, str]
"""Digests of two photos' pixels, the smaller one first."""
Usable = Callable[[Sequence[Mapping[str, Any]]], Sequence[bool]]
"""For each row of a table, whether the photo can be used; asked before photos are compared."""
BACKGROUND_LIKE = 0.6
SHARPNESS_TIE = 1.5
CONFIRMING_PHASH_MARGIN, CONFIRMING_CORRELATION = 2, 0.8


@dataclass(frozen=True, eq=False)
class Examined:
    """One file: its row, and what comparing it with others needs (nothing when it could not be decoded)."""

    row: dict[str, Any]
    print: Fingerprint | None = None
    background: NDArray[np.float64] | None = None


def photo_table(
    files: Iterable[tuple[str, bytes]],
    *,
    params: ValidateParams,
    on_decoded: Callable[[str, Image.Image], None] = lambda _name, _image: None,
    usable: Usable | None = None,
) -> list[dict[str, Any]]:
    """The photo table of named files. `on_decoded` is given each decoded picture in turn, so that one is in memory
    at a time. Of photos that repeat one another the best that is `usable`, by the rule table unless given, stays.

    Columns: `file`, `decoded`, `problem`, `problem_message`, the fields of `Measures` (None when not
    decoded), `sha256`, `facts`, `duplicate_of`, `duplicate_note` ("" when unique), `closest` (correlation
    with the most similar other photo) and `background` (number of its kind of background).
    """
    examined = [examine(name, data, params=params, on_decoded=on_decoded) for name, data in files]
    return make_table(examined, params=params, usable=usable)


def make_table(
    examined: Sequence[Examined],
    *,
    params: ValidateParams,
    known: Mapping[Pair, Likeness] = MappingProxyType({}),
    usable: Usable | None = None,
) -> list[dict[str, Any]]:
    """The photo table of examined files, with the columns that come from comparing them. `known`: likenesses from before."""
    rows = [one.row for one in examined]
    by_pair = compare([one.print for one in examined], known)
    _mark_duplicates(rows, by_pair, params=params, usable=usable or _by_rules(params))
    _mark_closest(rows, by_pair)
    _mark_backgrounds(examined)
    return rows


def read_files(files: Mapping[str, Path]) -> Iterable[tuple[str, bytes]]:
    """Names and bytes, one file at a time."""
    return ((name, file.read_bytes()) for name, file in files.items())


def examine(
    name: str, data: bytes, *, params: ValidateParams, on_decoded: Callable[[str, Image.Image], None]
) -> Examined:
    """Decode and measure one file; a file that is no photo gets a row with the problem."""
    row = {"file": name, **UNKNOWN}
    limits = {"max_pixels": params.max_megapixels * 1_000_000, "max_bytes": params.max_file_mb * 1_000_000}
    try:
        decoded = decode(data, **limits)
    except PhotoProblem as problem:
        return Examined(row | {"problem": problem.code, "problem_message": problem.message})
    seen = fingerprint(decoded.image)
    facts = decoded.facts | {"format": decoded.format}
    row |= {"decoded": True, **measure(decoded.image).as_row(), "sha256": seen.sha256, "facts": facts}
    on_decoded(name, decoded.image)
    return Examined(row, seen, background(decoded.image))


def compare(
    prints: Sequence[Fingerprint | None], known: Mapping[Pair, Likeness] = MappingProxyType({})
) -> dict[tuple[int, int], Likeness]:
    """Likeness of every pair of decoded photos, by index (≈ 10 ms a pair that is not `known`)."""
    pairs = itertools.combinations([(i, one) for i, one in enumerate(prints) if one is not None], 2)
    return {(i, j): known.get(pair_of(a, b)) or likeness(a, b) for (i, a), (j, b) in pairs}


def pair_of(a: Fingerprint, b: Fingerprint) -> Pair:
    """The key of two photos' likeness, in whatever order they come."""
    return min(a.sha256, b.sha256), max(a.sha256, b.sha256)


def likenesses(pairs: Sequence[tuple[Fingerprint, Fingerprint]]) -> list[Likeness]:
    """Likeness of each pair."""
    return [likeness(a, b) for a, b in pairs]


def is_same(pair: Likeness, *, params: ValidateParams) -> bool:
    """Whether two photos are one for the purpose of training.

    A small dHash distance alone is not enough, since any two drawings of a figure on a plain ground have one: pHash or
    correlation must confirm it.
    """
    confirmed = (
        pair.phash <= params.duplicate_phash + CONFIRMING_PHASH_MARGIN or pair.correlation >= CONFIRMING_CORRELATION
    )
    return (
        pair.same_pixels
        or pair.phash <= params.duplicate_phash
        or (pair.dhash <= params.duplicate_dhash and confirmed)
        or pair.correlation >= params.duplicate_ncc
    )


def clusters(count: int, pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Connected groups of 0..count-1, each sorted, in order of their first member."""
    if not count:
        return []
    edges = np.array([*pairs], dtype=np.intp).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), edges.T), shape=(count, count))
    _, group = connected_components(graph, directed=False)
    return sorted(np.flatnonzero(group == one).tolist() for one in range(group.max() + 1))


def _by_rules(params: ValidateParams) -> Usable:
    rules = rule_table(params)
    return lambda rows: [status_of(broken_rules(row, rules)) != REJECT for row in rows]


def _mark_duplicates(
    rows: list[dict[str, Any]], by_pair: Mapping[tuple[int, int], Likeness], *, params: ValidateParams, usable: Usable
) -> None:
    """In each cluster of duplicates all but the best photo get `duplicate_of`."""
    same = [pair for pair, one in by_pair.items() if is_same(one, params=params)]
    if not same:
        return
    can_be_used = usable(rows)
    for members in clusters(len(rows), same):
        best = _best(members, rows, can_be_used)
        for i in set(members) - {best}:
            pair = by_pair[min(i, best), max(i, best)]
            rows[i]["duplicate_of"] = rows[best]["file"]
            rows[i]["duplicate_note"] = _note(pair, params=params)


def _best(members: Sequence[int], rows: Sequence[Mapping[str, Any]], usable: Sequence[bool]) -> int:
    """A usable photo before a rejected one, then the sharpest; of those about as sharp the likeliest
    original.

    A copy that was cropped or saved again can measure a little sharper, so sharpness decides only where it
    differs.
    """
    eligible = [i for i in members if usable[i]] or list(members)
    sharpest = max((rows[i]["sharpness"] or 0.0 for i in eligible), default=0.0)
    sharp = [i for i in eligible if (rows[i]["sharpness"] or 0.0) * SHARPNESS_TIE >= sharpest]

    def likely_original(i: int) -> tuple[float, ...]:
        row = rows[i]
        pixels = (row["width_px"] or 0) * (row["height_px"] or 0)
        return (pixels, row["facts"].get("had_exif", False), -len(row["file"]), -i)

    return max(sharp, key=likely_original)


def _note(pair: Likeness, *, params: ValidateParams) -> str:
    if pair.same_pixels:
        return ""
    mirrored = pair.mirrored and pair.correlation >= params.duplicate_ncc
    cropped = pair.scale < 1 and pair.correlation >= params.duplicate_ncc
    words = [word for word, true in (("mirrored", mirrored), ("cropped", cropped)) if true]
    return f" ({' and '.join(words)})" if words else ""


def _mark_closest(rows: list[dict[str, Any]], by_pair: Mapping[tuple[int, int], Likeness]) -> None:
    for (i, j), pair in by_pair.items():
        if not rows[i]["duplicate_of"] and not rows[j]["duplicate_of"]:
            for k in (i, j):
                rows[k]["closest"] = max(rows[k]["closest"], round(pair.correlation, 4))


def _mark_backgrounds(examined: Sequence[Examined]) -> None:
    """Number the kinds of background: surroundings that share most of their colours are of one kind."""
    seen = [(i, one.background) for i, one in enumerate(examined) if one.background is not None]
    pairs = [(i, j) for (i, a), (j, b) in itertools.combinations(seen, 2) if np.minimum(a, b).sum() >= BACKGROUND_LIKE]
    for number, members in enumerate(clusters(len(examined), pairs)):
        for i in members:
            examined[i].row["background"] = number
