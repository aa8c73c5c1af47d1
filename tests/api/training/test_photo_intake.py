"""What decoding processes make of odd files: an answer about the file, whatever it does to a decoder."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from api.training import photo_intake as module
from api.training.photo_decoding import LONGEST_PX, DecodedUpload, decode_upload, unpack
from api.training.photo_intake import CRASHED, PhotoIntake
from api.transport.problems import Problem
from benchmarks import heifs
from benchmarks.fuzz import COUNT, MEMORY_BYTES, heif_seeds, seeds, take_all
from photoflux.params import ValidateParams
from photoflux.params.files import load_params
from tests.photos.pictures import encoded, photo


@pytest.fixture(scope="module")
def params() -> ValidateParams:
    return load_params("validate")


@pytest.fixture(scope="module")
def intake(params: ValidateParams) -> Iterator[PhotoIntake]:
    made = PhotoIntake(params)
    yield made
    made.close()


def png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, 128).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(3, 70_000), (70_000, 40), (1, 65_536)])
def test_a_picture_longer_than_jpeg_can_hold_is_shrunk(params: ValidateParams, size: tuple[int, int]):
    upload = decode_upload(png(size), params)
    assert max(upload.size) <= LONGEST_PX
    assert Image.open(io.BytesIO(upload.photo)).size == upload.size
    assert (upload.row["width_px"], upload.row["height_px"]) == size


def die(*_: object) -> DecodedUpload:
    import os

    os.kill(os.getpid(), 11)
    raise AssertionError


def fill(*_: object) -> DecodedUpload:
    return DecodedUpload({"problem": str(len(bytearray(8 << 30)))})


def burn(*_: object) -> DecodedUpload:
    while True:
        pass


def stall(*_: object) -> DecodedUpload:
    import time

    time.sleep(60)
    raise AssertionError


def fail(*_: object) -> DecodedUpload:
    raise ZeroDivisionError


@pytest.mark.parametrize("hostile", [die, fail, *(pytest.param(slow, marks=pytest.mark.slow) for slow in (fill, burn))])
def test_what_ends_a_decoder_is_said_of_the_file_and_the_next_is_taken(
    intake: PhotoIntake, params: ValidateParams, monkeypatch: pytest.MonkeyPatch, hostile: object
):
    """Stand-ins for flaws in a decoder that nobody knows yet: a crash, all memory, no end, an exception."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "decode_upload", hostile)
        patch.setattr(module, "CPU_S", 1.0)
        (upload,) = intake.decode([b"x"])
    assert (upload.photo, upload.row["problem_message"]) == (b"", CRASHED)
    (upload,) = intake.decode([png((600, 600))])
    assert upload.photo


def test_a_photo_that_only_took_long_is_not_said_to_be_damaged(intake: PhotoIntake, monkeypatch: pytest.MonkeyPatch):
    """The machine may be busy with other things."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "decode_upload", stall)
        patch.setattr(module, "TIMEOUT_S", 0.5)
        with pytest.raises(Problem) as problem:
            intake.decode([b"x"])
    assert (problem.value.status, problem.value.kind) == (503, "busy")


def test_seeds_of_the_mutations_are_what_they_should_be(params: ValidateParams):
    """Most are photos as they are; otherwise nothing deep would be reached."""
    uploads = [decode_upload(data, params) for data in seeds()]
    assert sum(bool(one.photo) for one in uploads) >= 12
    assert {one.row["problem"] for one in uploads if not one.photo} >= {"unsupported_format", "several_frames"}


@pytest.mark.parametrize("data", heif_seeds(), ids=lambda data: f"{data[8:12].decode()}, {len(data)} bytes")
def test_heic_and_avif_are_taken_within_the_decoders_limits(intake: PhotoIntake, data: bytes):
    """Under its cap on memory, by one thread, and without anything of the file's but its pixels."""
    (upload,) = intake.decode([data])
    assert upload.row["problem_message"] != CRASHED
    if upload.photo:
        assert b"a description" not in upload.photo + upload.thumbnail
        assert Image.open(io.BytesIO(upload.photo)).getexif() == {}


def test_a_hostile_heic_is_refused_and_the_next_is_taken(intake: PhotoIntake):
    """One that says it is small and is not, one that says it is huge, and one of tiles without end."""
    item = heifs.picture(np.zeros((16, 16, 3)))
    large = heifs.noisy(4096, seed=0)
    large.properties[1] = heifs.ispe(16, 16)
    huge = heifs.picture(np.zeros((16, 16, 3)))
    huge.properties[1] = heifs.ispe(60_000, 60_000)
    layout = struct.pack(">BBBBHH", 0, 0, 255, 255, 65535, 65535)
    tiles = heifs.Item(b"grid", layout, [heifs.ispe(65_535, 65_535)], [(b"dimg", [2] * 60_000)])
    for items in ([large], [huge], [tiles, item]):
        (upload,) = intake.decode([heifs.container(items)])
        assert not upload.photo or max(upload.size) <= 16
    (upload,) = intake.decode([heifs.container([item])])
    assert upload.row["decoded"]


def test_a_photo_that_was_measured_before_contrast_was_is_judged_like_any_other(params: ValidateParams):
    upload = decode_upload(encoded(photo(1)), params)
    with np.load(io.BytesIO(upload.measured), allow_pickle=False) as file:
        parts = dict(file)
    row = json.loads(str(parts["row"]))
    now = {name: row.pop(name) for name in ("contrast", "luma_p1")}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **(parts | {"row": json.dumps(row)}))
    before = unpack(buffer.getvalue(), name="x").row
    assert before["contrast"] > 0.5 * now["contrast"] > params.contrast_min
    assert before["luma_p1"] == pytest.approx(now["luma_p1"], abs=0.15)


@pytest.mark.slow
def test_mutated_heif_does_no_harm():
    """What `python -m benchmarks.fuzz --heif --count 20000` does, a part of it."""
    found = take_all(COUNT // 100, seed=2, heif=True)
    assert (found["crashed"], found["examples"]) == (0, [])
    assert found["peak_bytes"] < MEMORY_BYTES


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
    script = "import sys, api.training.photo_decoding; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert not {"fastapi", "sqlalchemy", "starlette", "dbos"} & set(loaded.stdout.split())
