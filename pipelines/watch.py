"""Show a run until it ends: a live table on a terminal, one line per change of state elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from photoflux.runs import Run, State, StepRun
from photoflux.screen import PROGRESS_COUNT

COLOURS = {
    State.queued: "dim",
    State.running: "bold cyan",
    State.succeeded: "green",
    State.reused: "green",
    State.failed: "bold red",
    State.skipped: "dim",
    State.cancelled: "yellow",
}
REFRESH_S, BAR_WIDTH = 0.25, 10
TAIL_BYTES = 4096
PROGRESS = re.compile(r"\]: (.*\b\d+ of \d+\b.*)$", re.MULTILINE)


def follow(status: Callable[[], Run], console: Console, *, logs: Path | None = None) -> Run:
    """Ask for the run's status until it has ended, showing its steps; returns the ended run.

    On a terminal, what a running step last said of its progress in `logs` stands beside it.
    """
    return _follow_live(status, console, logs) if console.is_terminal else _follow_lines(status, console)


def table(run: Run, *, logs: Path | None = None) -> Table:
    """The steps of a run: title, state, seconds, and of a running one a bar and what it last said of its progress."""
    grid = Table(box=None, pad_edge=False, header_style="dim")
    grid.add_column("step", min_width=32)
    grid.add_column("state", min_width=10)
    grid.add_column("seconds", justify="right", min_width=8)
    grid.add_column("", width=BAR_WIDTH)
    grid.add_column("", style="dim", no_wrap=True, overflow="ellipsis")
    for step in run.steps:
        seconds = f"{step.seconds:.1f}" if step.started else ""
        running = step.state is State.running
        progress_line = progress(logs / f"{step.name}.log") if logs and running else ""
        bar = _bar(progress_line) if running else ""
        grid.add_row(step.title, f"[{COLOURS[step.state]}]{step.state}[/]", seconds, bar, escape(progress_line))
    return grid


def progress(log: Path) -> str:
    """The last thing of the form `3 of 8` that a step logged, or nothing."""
    if not log.is_file():
        return ""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - TAIL_BYTES))
        progress_line = PROGRESS.findall(stream.read().decode(errors="replace"))
    return progress_line[-1] if progress_line else ""


def _bar(progress_line: str) -> ProgressBar:
    """Filled to the `3 of 8` in the text; pulsing where there is none."""
    if counted := PROGRESS_COUNT.search(progress_line):
        return ProgressBar(total=int(counted[2]), completed=int(counted[1]), width=BAR_WIDTH)
    return ProgressBar(pulse=True, width=BAR_WIDTH)


def _follow_live(status: Callable[[], Run], console: Console, logs: Path | None) -> Run:
    run = status()
    with Live(table(run, logs=logs), console=console, refresh_per_second=1 / REFRESH_S) as live:
        while not run.state.ended:
            time.sleep(REFRESH_S)
            run = status()
            live.update(table(run, logs=logs))
    return run


def _follow_lines(status: Callable[[], Run], console: Console) -> Run:
    shown: dict[str, State] = {}
    while True:
        run = status()
        for step in run.steps:
            if step.state is not State.queued and shown.get(step.name) is not step.state:
                shown[step.name] = step.state
                console.print(_line(step), markup=False, highlight=False)
        if run.state.ended:
            return run
        time.sleep(REFRESH_S)


def _line(step: StepRun) -> str:
    seconds = f"{step.seconds:8.1f} s" if step.state.ended and step.started else ""
    return f"{step.title:32} {step.state:10}{seconds}".rstrip()
