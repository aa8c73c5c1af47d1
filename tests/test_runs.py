"""A run's record: what is written is read, ends are final, a failure speaks in its step's own words."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from photoflux.errors import InputError, ValidationFailed
from photoflux.runs import (
    FAILURE,
    RECORD,
    Failure,
    State,
    load_run,
    new_run,
    read_failure,
    report_failure,
    save_run,
    sentence,
)

STEPS = {
    "validate": "Check the photos",
    "finetune": "Fine-tune the adapter",
    "register": "Register the model",
}


def a_run():
    return new_run("personalize", steps=STEPS, params={"finetune_rank": 8, "key": "plain://demo"})


def test_a_new_run_waits_with_all_its_steps():
    run = a_run()
    assert run.state is State.queued
    assert [(s.name, s.title, s.state, s.seconds) for s in run.steps] == [
        ("validate", "Check the photos", State.queued, 0.0),
        ("finetune", "Fine-tune the adapter", State.queued, 0.0),
        ("register", "Register the model", State.queued, 0.0),
    ]


def test_ids_do_not_repeat_within_a_second():
    assert len({a_run().id for _ in range(20)}) == 20


def test_what_is_saved_is_what_is_loaded(tmp_path: Path):
    run = a_run().with_step(a_run().step("validate").in_state(State.running).in_state(State.succeeded))
    run = run.finished(State.failed, error=Failure("finetune", "rank is 0: choose 1 or more", "InputError"))
    save_run(run, tmp_path)
    assert load_run(tmp_path) == run
    recorded = json.loads((tmp_path / RECORD).read_text())
    assert recorded["state"] == "failed"
    assert recorded["steps"][0]["seconds"] >= 0
    assert [p.name for p in tmp_path.iterdir()] == [RECORD]


@pytest.mark.parametrize("text", ["", "{", '{"id": "x"'])
def test_an_unreadable_record_is_named(tmp_path: Path, text: str):
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(InputError, match="no readable run there"):
        load_run(tmp_path)


@given(
    st.lists(st.sampled_from(list(State)), min_size=3, max_size=3),
    st.sampled_from(["succeeded", "failed", "cancelled"]),
)
def test_no_step_of_an_ended_run_is_left_open(states: list[State], end: str):
    run = a_run()
    for step, state in zip(run.steps, states, strict=True):
        run = run.with_step(step.in_state(State.running).in_state(state))
    ended = run.finished(State(end))
    for before, after in zip(states, ended.steps, strict=True):
        assert after.state.ended
        if before.ended:
            assert after.state is before
    assert ended.state == end


def test_seconds_stop_when_a_step_ends():
    step = a_run().step("finetune").in_state(State.running)
    assert step.seconds >= 0
    done = step.in_state(State.succeeded)
    assert done.seconds == done.seconds


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where an orchestrator tells a step to write: <run>/<task>/<output>."""
    path = tmp_path / "finetune" / "adapter"
    path.parent.mkdir()
    return path


def test_a_failing_step_leaves_its_own_sentence(tmp_path: Path, output: Path):
    with pytest.raises(ValidationFailed), report_failure("validate", output=output):
        raise ValidationFailed("only 1 photo is left:\n add 4 more")
    assert read_failure(tmp_path) == Failure("validate", "only 1 photo is left: add 4 more", "ValidationFailed")


def test_a_step_that_succeeds_leaves_nothing(tmp_path: Path, output: Path):
    with report_failure("validate", output=str(output)):
        pass
    assert read_failure(tmp_path) is None
    assert not (tmp_path / FAILURE).exists()


def test_a_failure_that_cannot_be_recorded_still_is_the_one_raised(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="rank"),
        report_failure("finetune", output=tmp_path / "file" / "task" / "out"),
    ):
        raise InputError("rank is 0")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InputError("rank is 0: choose 1 or more"), "rank is 0: choose 1 or more"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/adapter"),
            "no space left to write /x/adapter: free some",
        ),
        (OSError(errno.EFBIG, "File too large"), "no space left to write the output: free some"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: permission denied; check it and run again"),
        (MemoryError(), "out of memory: close other programs"),
        (KeyError("rank"), "unexpected KeyError: 'rank'"),
        (ValueError(), "unexpected ValueError"),
    ],
)
def test_every_error_becomes_one_line(error: Exception, expected: str):
    said = sentence(error)
    assert said.startswith(expected)
    assert "\n" not in said


def test_a_full_disk_is_told_even_through_a_chain(output: Path, tmp_path: Path):
    with pytest.raises(OSError), report_failure("augment", output=output):
        Path("/dev/full").write_text("x" * 100_000)
    assert read_failure(tmp_path).message.startswith("no space left to write")
