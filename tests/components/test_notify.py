"""The exit step speaks for the failing one, and claims nothing after a success."""

import json
from pathlib import Path

import pytest
from kfp.dsl import Markdown, PipelineTaskFinalStatus

from components.notify import notify


def told(tmp_path: Path, *, state: str, message: str | None = None) -> str:
    (tmp_path / "notify").mkdir()
    summary = Markdown(name="summary", uri=str(tmp_path / "notify" / "summary"))
    status = PipelineTaskFinalStatus(state, "jobs/7", "exit-handler-1", None, message)
    notify.python_func(summary=summary, status=status)
    return Path(summary.path).read_text()


def leave_failure(tmp_path: Path) -> None:
    record = {"step": "validate", "message": "only 1 photo: add 4", "kind": "ValidationFailed"}
    (tmp_path / "failure.json").write_text(json.dumps(record))


def test_a_failure_is_told_in_the_steps_own_words(tmp_path: Path):
    leave_failure(tmp_path)
    assert told(tmp_path, state="FAILED", message="Task exit-handler-1 failed.") == (
        "**jobs/7** ended: FAILED. validate: only 1 photo: add 4\n"
    )


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED"])
def test_without_words_the_orchestrators_are_passed_on(tmp_path: Path, state: str):
    assert told(tmp_path, state=state, message="Task x failed.") == f"**jobs/7** ended: {state}. Task x failed.\n"


def test_a_success_is_just_that_even_if_an_earlier_try_failed(tmp_path: Path):
    leave_failure(tmp_path)
    assert told(tmp_path, state="SUCCEEDED") == "**jobs/7** ended: SUCCEEDED.\n"
