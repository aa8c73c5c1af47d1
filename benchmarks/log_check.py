"""What must hold of the service's log files: every line one JSON object, and none of them with a person's words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path


def lines_not_json(folder: Path) -> list[str]:
    """Lines of the log files in a folder that are not one JSON object each, as `file:number: text`."""
    return [f"{file.name}:{number}: {line[:200]}" for file, number, line in _lines(folder) if not _is_object(line)]


def lines_with_words(folder: Path, words: Iterable[str]) -> list[str]:
    """Lines of the log files in a folder that hold one of the words, in whatever letter case, as `file:number: word`."""
    wanted = [word for word in words if word]
    return [
        f"{file.name}:{number}: {word}"
        for file, number, line in _lines(folder)
        for word in wanted
        if word.casefold() in _read(line).casefold()
    ]


def _lines(folder: Path) -> Iterator[tuple[Path, int, str]]:
    files = sorted(folder.glob("*.log"))
    if not files:
        raise FileNotFoundError(f"{folder}: there are no log files to check")
    for file in files:
        text = file.read_bytes().decode("utf-8", errors="backslashreplace")
        yield from ((file, number, line) for number, line in enumerate(text.split("\n"), 1) if line)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _read(line: str) -> str:
    """A line without JSON's escapes, after the line itself."""
    try:
        return f"{line}\n{json.dumps(json.loads(line), ensure_ascii=False)}"
    except ValueError:
        return line
