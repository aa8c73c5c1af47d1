"""What decoding processes make of odd files: an answer about the file, whatever it does to a decoder."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from api import intake as module
from api.decoding import LONGEST_PX, Taken, take
from api.intake import CRASHED, Intake
from api.problems import Problem
from benchmarks.fuzz import COUNT, MEMORY_BYTES, seeds, take_all
from photoflux.params import ValidateParams, load_params


@pytest.fixture(scope="module")
def params() -> ValidateParams:
    return load_params("validate")


@pytest.fixture(scope="module")
def intake(params: ValidateParams) -> Iterator[Intake]:
    made = Intake(params)
    yield made
    made.close()


def png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, 128).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(3, 70_000), (70_000, 40), (1, 65_536)])
def test_a_picture_longer_than_jpeg_can_hold_is_shrunk(params: ValidateParams, size: tuple[int, int]):
    taken = take(png(size), params)
    assert max(taken.size) <= LONGEST_PX
    assert Image.open(io.BytesIO(taken.photo)).size == taken.size
    assert (taken.row["width_px"], taken.row["height_px"]) == size


def die(*_: object) -> Taken:
    import os

    os.kill(os.getpid(), 11)
    raise AssertionError


def fill(*_: object) -> Taken:
    return Taken({"problem": str(len(bytearray(8 << 30)))})


def burn(*_: object) -> Taken:
    while True:
        pass


def stall(*_: object) -> Taken:
    import time

    time.sleep(60)
    raise AssertionError


def fail(*_: object) -> Taken:
    raise ZeroDivisionError


@pytest.mark.parametrize("hostile", [die, fail, *(pytest.param(slow, marks=pytest.mark.slow) for slow in (fill, burn))])
def test_what_ends_a_decoder_is_said_of_the_file_and_the_next_is_taken(
    intake: Intake, params: ValidateParams, monkeypatch: pytest.MonkeyPatch, hostile: object
):
    """Stand-ins for flaws in a decoder that nobody knows yet: a crash, all memory, no end, an exception."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "take", hostile)
        patch.setattr(module, "CPU_S", 1.0)
        (taken,) = intake.take([b"x"])
    assert (taken.photo, taken.row["problem_message"]) == (b"", CRASHED)
    (taken,) = intake.take([png((600, 600))])
    assert taken.photo


def test_a_photo_that_only_took_long_is_not_said_to_be_damaged(intake: Intake, monkeypatch: pytest.MonkeyPatch):
    """The machine may be busy with other things."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "take", stall)
        patch.setattr(module, "TIMEOUT_S", 0.5)
        with pytest.raises(Problem) as problem:
            intake.take([b"x"])
    assert (problem.value.status, problem.value.kind) == (503, "busy")


def test_seeds_of_the_mutations_are_what_they_should_be(params: ValidateParams):
    """Most are photos as they are; otherwise nothing deep would be reached."""
    taken = [take(data, params) for data in seeds()]
    assert sum(bool(one.photo) for one in taken) >= 12
    assert {one.row["problem"] for one in taken if not one.photo} >= {"unsupported_format", "several_frames"}


@pytest.mark.slow
def test_mutated_pictures_do_no_harm():
    """A part of what `python -m benchmarks.fuzz` does."""
    found = take_all(COUNT // 20, seed=1)
    assert (found["crashed"], found["examples"]) == (0, [])
    assert found["peak_bytes"] < MEMORY_BYTES
    assert found["growth"] < 0.5
    assert len(found["outcomes"]) >= 5


def test_decoding_imports_nothing_of_the_service(root: Path):
    """Each process that decodes would else begin more slowly and hold the service's libraries beside the picture."""
    script = "import sys, api.decoding; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert not {"fastapi", "sqlalchemy", "starlette", "dbos"} & set(loaded.stdout.split())
