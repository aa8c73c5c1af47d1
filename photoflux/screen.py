"""What a terminal shows of a command: our own lines, a bar while it works, and of its libraries the warnings that matter, each once.

Elsewhere than on a terminal the bar is left out, and each line of progress is a line.
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
LOUD = ("diffusers", "transformers")
"""Libraries that bring a handler of their own, which would write past ours."""
FOR_PROGRAMMERS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
MEANINGLESS = re.compile(r"should be kept in float32: \[\]")
"""diffusers says so of a model that has no such modules, twice for every photo that is encoded."""
COUNTED = re.compile(r"\b(\d+) of (\d+)\b")
"""How our lines of progress say how far a step is."""
WARNING_CHARS = 300


def set_up(stream: TextIO | None = None) -> None:
    """Have this program's log go to `stream`, by default its error output. Does nothing where logging is set up already."""
    if logging.root.handlers:
        return
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(Lines())
    handler.addFilter(Matters())
    logging.root.addHandler(handler)
    logging.root.setLevel(logging.WARNING)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    for name in LOUD:
        _speaks_through(logging.getLogger(name), handler)
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")  # it would have its own loggers write past ours, too
    if not sys.warnoptions:
        warnings.showwarning = _log_warning


class Lines(logging.Formatter):
    """Our lines as they are; a library's warning as one line that says whose it is."""

    def format(self, record: logging.LogRecord) -> str:
        if _is_ours(record):
            return super().format(record)
        said = " ".join(record.getMessage().split())
        shortened = said if len(said) <= WARNING_CHARS else f"{said[:WARNING_CHARS]}…"
        return f"{record.levelname.lower()} ({_package(record.name)}): {shortened}"


class Matters(logging.Filter):
    """Whether a person is told: whatever we say, and what a library warns of for the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.told = set[str]()

    def filter(self, record: logging.LogRecord) -> bool:
        if _is_ours(record):
            return True
        said = record.getMessage()
        if record.levelno < logging.WARNING or said in self.told or MEANINGLESS.search(said):
            return False
        self.told.add(said)
        return True


@contextmanager
def working(what: str) -> Iterator[None]:
    """On a terminal, a bar until the block ends: filled as far as the last line of progress says, moving where none does.

    Nothing is to be printed meanwhile; what is logged appears above the bar.
    """
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[said]}")
    shown = Progress(
        *columns, console=Console(file=sys.stderr), transient=True, redirect_stdout=False, redirect_stderr=False
    )
    ours = [one for one in logging.root.handlers if isinstance(one.formatter, Lines)]
    with shown as bar, ExitStack() as stack:
        task = bar.add_task(what, total=None, said="")
        for handler in ours:
            stack.enter_context(_onto(bar, task, handler))
        yield


@contextmanager
def _onto(bar: Progress, task: TaskID, handler: logging.Handler) -> Iterator[None]:
    """Have a handler write above the bar, and lines of progress into it."""
    write = handler.emit

    def emit(record: logging.LogRecord) -> None:
        said = handler.format(record)
        if counted := COUNTED.search(said):
            bar.update(task, completed=int(counted[1]), total=int(counted[2]), said=said)
        else:
            bar.console.print(said, markup=False, highlight=False, soft_wrap=True)

    handler.emit = emit  # type: ignore[method-assign]
    try:
        yield
    finally:
        handler.emit = write  # type: ignore[method-assign]


def _speaks_through(library: logging.Logger, handler: logging.Handler) -> None:
    """Have a library, imported or not yet, write to our handler alone."""
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
    """A warning of Python's, as a record of the library that it came from; not what its own callers have to mend."""
    if issubclass(category, FOR_PROGRAMMERS):
        return
    library = Path(filename.rpartition("site-packages/")[2]).parts[0].removesuffix(".py")
    logging.getLogger(library).warning("%s", message)
