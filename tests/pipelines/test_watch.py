"""What a person sees of a run: a line per change, or a table that fills."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from photoflux.runs import Run, State, new_run
from pipelines.watch import follow, table

STEPS = {"validate": "Check the photos", "register": "Register the model"}


def history() -> list[Run]:
    """A run at five moments."""
    queued = new_run("personalize", steps=STEPS, params={})
    started = replace(queued, state=State.running)
    running = started.with_step(started.step("validate").in_state(State.running))
    done = running.with_step(running.step("validate").in_state(State.succeeded))
    return [queued, started, running, running, done, done.finished(State.succeeded)]


def test_without_a_terminal_each_change_is_one_line():
    out = io.StringIO()
    moments = iter(history())
    run = follow(lambda: next(moments), Console(file=out, force_terminal=False, width=100))
    assert run.state is State.succeeded
    assert [" ".join(line.split()) for line in out.getvalue().splitlines()] == [
        "Check the photos running",
        "Check the photos succeeded 0.0 s",
        "Register the model skipped",
    ]


def test_on_a_terminal_the_table_ends_as_the_run_did():
    out = io.StringIO()
    moments = iter(history())
    follow(lambda: next(moments), Console(file=out, force_terminal=True, width=100, color_system=None))
    last = out.getvalue().split("seconds")[-1]
    assert "succeeded" in last
    assert "skipped" in last
    assert "queued" not in last


def test_a_running_steps_progress_stands_beside_it(tmp_path: Path):
    (tmp_path / "validate.log").write_text(
        "[KFP Executor 2026-01-01 INFO]: step 1 of 8, loss 1.2\nnoise\n"
        "[KFP Executor 2026-01-01 INFO]: step 2 of 8, loss [1.1]\nGot executor_input\n"
    )
    out = io.StringIO()
    Console(file=out, width=100).print(table(history()[2], logs=tmp_path))
    assert "step 2 of 8, loss [1.1]" in out.getvalue()
    assert "step 1 of 8" not in out.getvalue()
    assert 0 < out.getvalue().count("━") <= 10
    out = io.StringIO()
    Console(file=out, width=100).print(table(history()[4], logs=tmp_path))
    assert "of 8" not in out.getvalue()
    assert "━" not in out.getvalue()


def test_a_running_step_that_says_nothing_has_a_bar_that_moves():
    out = io.StringIO()
    Console(file=out, width=100).print(table(history()[2]))
    assert "━" in out.getvalue()


def test_the_table_has_a_row_per_step():
    console = Console(file=io.StringIO(), width=100)
    console.print(table(history()[4]))
    rows = [line.split() for line in console.file.getvalue().splitlines()]
    assert rows == [
        ["step", "state", "seconds"],
        ["Check", "the", "photos", "succeeded", "0.0"],
        ["Register", "the", "model", "queued"],
    ]
