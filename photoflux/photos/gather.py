"""What lies in a folder: the photos by names that can be written anywhere, what is written beside them, and what is no photo."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from photoflux.errors import InputError
from photoflux.params import ImportParams
from photoflux.photos.kinds import HEAD_BYTES, READ, SUFFIXES, format_of, other_kind
from photoflux.photos.words import read_words

MAX_CAPTION_BYTES = 4096
MAX_NAME_BYTES = 90  # what a ustar header holds beside the folder's name
UNSEEN = ("desktop.ini", "thumbs.db")
"""What systems leave in folders, beside files whose names begin with a dot."""
NAMED_MAX = 12


@dataclass(frozen=True)
class Gathered:
    """What lies in a folder. Each photo has a name of its own that can be written anywhere, whatever its file is called."""

    photos: dict[str, Path] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    """Photo → what is written beside it."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Any other file → what it is."""

    @property
    def others(self) -> str:
        """What was left out, by name and kind: `a.bmp (a BMP), b.nef (a camera's raw file)`."""
        names = [f"{name} ({kind})" for name, kind in self.left_out.items()]
        rest = [f"{len(names) - NAMED_MAX} more"] * (len(names) > NAMED_MAX)
        return ", ".join([*names[:NAMED_MAX], *rest])

    @property
    def told(self) -> str:
        """One sentence that names what was left out, or nothing."""
        return f"left out, being no {READ}: {self.others}" if self.left_out else ""


def gather(folder: Path, *, params: ImportParams) -> Gathered:
    """The photos directly in `folder` by name, what is written beside them, and what else is there; hidden files aside.

    Raises InputError where there are no photos, or too many or too large ones.
    """
    files = [f for f in sorted(folder.iterdir()) if not f.name.startswith(".") and f.name.lower() not in UNSEEN]
    kinds = {file: _kind(file) for file in files}
    photos = _named([file for file in files if not kinds[file]])
    captions, used = _captions(photos, [file for file in files if kinds[file] and file.suffix.lower() == ".txt"])
    rest = _named([file for file in files if kinds[file] and file not in used])
    found = Gathered(photos, captions, {name: kinds[file] for name, file in rest.items()})
    where = readable(str(folder))
    if not photos:
        there = f"; there is {found.others}" if found.left_out else ""
        raise InputError(f"{where}: holds no photos; give a folder with {READ} files directly in it{there}")
    if len(photos) > params.max_files:
        raise InputError(
            f"{where}: holds {len(photos)} photos, more than import_photos.max_files = {params.max_files}; "
            "choose the best 5 to 20 of them"
        )
    for name, file in photos.items():
        _check(name, file, max_mb=params.max_file_mb)
    return found


def readable(name: str) -> str:
    """A file's name as it can be written anywhere: one that is not UTF-8 read as Windows wrote it, controls as underscores."""
    try:
        text = os.fsencode(name).decode()
    except UnicodeDecodeError:
        text = os.fsencode(name).decode("cp1252", errors="replace")
    except UnicodeEncodeError:  # half of a character, which no file system gave
        text = name
    return "".join(letter if letter.isprintable() and letter != "\ufffd" else "_" for letter in text)


def _named(files: Iterable[Path]) -> dict[str, Path]:
    """Files by readable names, of which no two are one, not even where upper case and lower case are."""
    named, taken = dict[str, Path](), set[str]()
    for file in files:
        name, number = readable(file.name), 1
        while _folded(name) in taken:
            number += 1
            whole = Path(readable(file.name))
            name = f"{whole.stem}-{number}{whole.suffix}"
        taken.add(_folded(name))
        named[name] = file
    return named


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _captions(photos: dict[str, Path], texts: Sequence[Path]) -> tuple[dict[str, str], set[Path]]:
    """What is written about each photo, in a text of its name, and in which files; in upper or lower case."""
    by_stem = {_folded(text.stem): text for text in texts} | {text.stem: text for text in texts}
    captions, used = dict[str, str](), set[Path]()
    for name, photo in photos.items():
        text = by_stem.get(photo.stem) or by_stem.get(_folded(photo.stem))
        if text and text.stat().st_size <= MAX_CAPTION_BYTES and (words := read_words(text.read_bytes())):
            captions[name] = words
            used.add(text)
    return captions, used


def _kind(file: Path) -> str:
    """What a file is that is no photo; nothing for one that is, or by its ending should be."""
    if not file.is_file():
        return "a folder" if file.is_dir() else "no file"
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    if kind := other_kind(head, file.name):
        return kind
    if file.suffix.lower() in SUFFIXES or format_of(head):
        return ""
    return "a text" if file.suffix.lower() == ".txt" else "no photo"


def _check(name: str, file: Path, *, max_mb: int) -> None:
    if file.stat().st_size > max_mb * 1_000_000:
        raise InputError(f"{name}: is larger than import_photos.max_file_mb = {max_mb} MB; export a smaller copy")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise InputError(f"{name}: the name is too long; use at most {MAX_NAME_BYTES} bytes")
