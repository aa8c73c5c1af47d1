"""The content of a folder: photos by printable names, captions from text files beside them, and files that are no photos."""

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
SYSTEM_FILES = ("desktop.ini", "thumbs.db")
"""Files that operating systems leave in folders; files whose names begin with a dot are hidden too."""
NAMES_SHOWN = 12


@dataclass(frozen=True)
class Gathered:
    """The content of a folder. Each photo has a unique printable name, whatever its file is called."""

    photos: dict[str, Path] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    """Photo → caption."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Any other file → its kind, as sentences name it."""

    @property
    def left_out_names(self) -> str:
        """What was left out, by name and kind: `a.bmp (a BMP), b.nef (a camera's raw file)`."""
        names = [f"{name} ({kind})" for name, kind in self.left_out.items()]
        rest = [f"{len(names) - NAMES_SHOWN} more"] * (len(names) > NAMES_SHOWN)
        return ", ".join([*names[:NAMES_SHOWN], *rest])

    @property
    def left_out_sentence(self) -> str:
        """A sentence that names what was left out; empty where nothing was."""
        return f"left out, being no {READ}: {self.left_out_names}" if self.left_out else ""


def gather(folder: Path, *, params: ImportParams) -> Gathered:
    """The photos directly in `folder`, their captions and all other files; hidden files are ignored.

    Raises InputError where there are no photos, or too many or too large ones.
    """
    files = [f for f in sorted(folder.iterdir()) if not f.name.startswith(".") and f.name.lower() not in SYSTEM_FILES]
    kinds = {file: _kind(file) for file in files}
    photos = _by_unique_name([file for file in files if not kinds[file]])
    captions, used = _captions(photos, [file for file in files if kinds[file] and file.suffix.lower() == ".txt"])
    rest = _by_unique_name([file for file in files if kinds[file] and file not in used])
    found = Gathered(photos, captions, {name: kinds[file] for name, file in rest.items()})
    where = readable(str(folder))
    if not photos:
        there = f"; there is {found.left_out_names}" if found.left_out else ""
        raise InputError(f"{where}: holds no photos; give a folder with {READ} files directly in it{there}")
    if len(photos) > params.max_files:
        raise InputError(
            f"{where}: holds {len(photos)} photos, more than import_photos.max_files = {params.max_files}; "
            "choose the best 5 to 20 of them"
        )
    for name, file in photos.items():
        _check_file(name, file, max_mb=params.max_file_mb)
    return found


def readable(name: str) -> str:
    """A file's name as printable text: one that is not UTF-8 is read as Windows-1252, controls become underscores."""
    try:
        text = os.fsencode(name).decode()
    except UnicodeDecodeError:
        text = os.fsencode(name).decode("cp1252", errors="replace")
    except UnicodeEncodeError:  # a lone surrogate, which no file system gave
        text = name
    return "".join(letter if letter.isprintable() and letter != "\ufffd" else "_" for letter in text)


def _by_unique_name(files: Iterable[Path]) -> dict[str, Path]:
    """Files by printable names that are unique also on file systems that ignore case."""
    named, taken = dict[str, Path](), set[str]()
    for file in files:
        name, number = readable(file.name), 1
        while _fold_case(name) in taken:
            number += 1
            whole = Path(readable(file.name))
            name = f"{whole.stem}-{number}{whole.suffix}"
        taken.add(_fold_case(name))
        named[name] = file
    return named


def _fold_case(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _captions(photos: dict[str, Path], texts: Sequence[Path]) -> tuple[dict[str, str], set[Path]]:
    """Captions by photo, from the text file with the photo's stem in any case; and the text files that were used."""
    by_stem = {_fold_case(text.stem): text for text in texts} | {text.stem: text for text in texts}
    captions, used = dict[str, str](), set[Path]()
    for name, photo in photos.items():
        text = by_stem.get(photo.stem) or by_stem.get(_fold_case(photo.stem))
        if text and text.stat().st_size <= MAX_CAPTION_BYTES and (words := read_words(text.read_bytes())):
            captions[name] = words
            used.add(text)
    return captions, used


def _kind(file: Path) -> str:
    """The kind of a file that is no photo; empty for a photo, and for a file with a photo's suffix."""
    if not file.is_file():
        return "a folder" if file.is_dir() else "no file"
    with file.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    if kind := other_kind(head, file.name):
        return kind
    if file.suffix.lower() in SUFFIXES or format_of(head):
        return ""
    return "a text" if file.suffix.lower() == ".txt" else "no photo"


def _check_file(name: str, file: Path, *, max_mb: int) -> None:
    if file.stat().st_size > max_mb * 1_000_000:
        raise InputError(f"{name}: is larger than import_photos.max_file_mb = {max_mb} MB; export a smaller copy")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise InputError(f"{name}: the name is too long; use at most {MAX_NAME_BYTES} bytes")
