"""Console output of commands: our log lines, a progress bar, and of libraries each relevant warning once.

Without a terminal there is no bar, and each line of progress is a line of the log.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

OURS = ("photoflux", "components", "pipelines", "api")
LIBRARIES_WITH_HANDLERS = ("diffusers", "transformers")
"""Libraries with log handlers of their own, which would bypass ours."""
IGNORED_WARNINGS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
IGNORED_MESSAGE = re.compile(r"should be kept in float32: \[\]")
"""diffusers logs this for models without such modules, twice for every photo that is encoded."""
PROGRESS_COUNT = re.compile(r"\b(\d+) of (\d+)\b")
"""The count in our lines of progress."""
WARNING_CHARS = 300


def set_up(stream: TextIO | None = None) -> None:
    """Log to `stream`, by default standard error. Does nothing where logging is set up already."""
    if logging.root.handlers:
        return
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(LogLines())
    handler.addFilter(OwnOrNewWarnings())
    logging.root.addHandler(handler)
    logging.root.setLevel(logging.WARNING)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    for name in LIBRARIES_WITH_HANDLERS:
        _use_handler_alone(logging.getLogger(name), handler)
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")  # else it adds handlers that bypass ours
    if not sys.warnoptions:
        warnings.showwarning = _log_warning


class LogLines(logging.Formatter):
    """Our lines unchanged; a library's warning as one line with the library's name."""

    def format(self, record: logging.LogRecord) -> str:
        if _is_ours(record):
            return super().format(record)
        text = " ".join(record.getMessage().split())
        shortened = text if len(text) <= WARNING_CHARS else f"{text[:WARNING_CHARS]}…"
        return f"{record.levelname.lower()} ({_package(record.name)}): {shortened}"


class OwnOrNewWarnings(logging.Filter):
    """Passes all our lines, and of a library each warning once."""

    def __init__(self) -> None:
        super().__init__()
        self.shown_warnings = set[str]()

    def filter(self, record: logging.LogRecord) -> bool:
        if _is_ours(record):
            return True
        text = record.getMessage()
        if record.levelno < logging.WARNING or text in self.shown_warnings or IGNORED_MESSAGE.search(text):
            return False
        self.shown_warnings.add(text)
        return True


@contextmanager
def progress_bar(what: str) -> Iterator[None]:
    """On a terminal, a bar until the block ends: filled by the counts in lines of progress, pulsing before the first one.

    The block must not print; what it logs appears above the bar.
    """
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[text]}")
    shown = Progress(
        *columns, console=Console(file=sys.stderr), transient=True, redirect_stdout=False, redirect_stderr=False
    )
    ours = [one for one in logging.root.handlers if isinstance(one.formatter, LogLines)]
    with shown as bar, ExitStack() as stack:
        task = bar.add_task(what, total=None, text="")
        for handler in ours:
            stack.enter_context(_log_above_bar(bar, task, handler))
        yield


@contextmanager
def _log_above_bar(bar: Progress, task: TaskID, handler: logging.Handler) -> Iterator[None]:
    """Have a handler write above the bar, and lines of progress update it."""
    write = handler.emit

    def emit(record: logging.LogRecord) -> None:
        text = handler.format(record)
        if counted := PROGRESS_COUNT.search(text):
            bar.update(task, completed=int(counted[1]), total=int(counted[2]), text=text)
        else:
            bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    handler.emit = emit  # type: ignore[method-assign]
    try:
        yield
    finally:
        handler.emit = write  # type: ignore[method-assign]


def _use_handler_alone(library: logging.Logger, handler: logging.Handler) -> None:
    """Have a library log to our handler alone, also where it is imported later and adds its own."""
    library.handlers[:] = [handler]
    library.propagate = False
    library.addHandler = lambda hdlr: None  # type: ignore[method-assign] # noqa: ARG005


def _is_ours(record: logging.LogRecord) -> bool:
    return _package(record.name) in OURS


def _package(name: str) -> str:
    return name.partition(".")[0]


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    """Log a Python warning as a record of the library that it came from; deprecations are ignored."""
    if issubclass(category, IGNORED_WARNINGS):
        return
    library = Path(filename.rpartition("site-packages/")[2]).parts[0].removesuffix(".py")
    logging.getLogger(library).warning("%s", message)
