"""`python -m pipelines.run`, from outside: what it prints last, where, and with which exit code."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from photoflux.errors import InputError
from photoflux.runs import State, load_run
from pipelines.run import _parser, parameters_of

COMMAND = [sys.executable, "-m", "pipelines.run"]


def start(root: Path, *words: str) -> subprocess.Popen[str]:
    """A run that an interrupt reaches: a shell has what it starts in the background ignore it."""
    return subprocess.Popen(
        [*COMMAND, *words],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ.copy(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def the_run(state: Path) -> Path:
    (folder,) = (state / "runs").iterdir()
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder that holds no photos."""
    (tmp_path / "Rex & I").mkdir()
    (tmp_path / "Rex & I" / "notes.txt").write_text("no photos yet")
    return tmp_path / "Rex & I"


def test_the_failing_steps_sentence_comes_last(root: Path, photos: Path, own_state: Path):
    process = start(root, "--photos", str(photos), "--class-noun", "dog")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == (
        f"error: {photos}: holds no photos; give a folder with JPEG, PNG, TIFF, WebP, HEIC or AVIF files directly in it; "
        "there is notes.txt (a text)\n"
    )
    lines = out.splitlines()
    assert lines[0].startswith("run personalize-")
    assert any(re.fullmatch(r"Import the photos +failed +[0-9.]+ s", line) for line in lines)
    assert lines[-1].endswith("logs/import_data.log")
    assert "Traceback" not in out
    assert "Traceback" in (the_run(own_state) / "logs" / "import_data.log").read_text()


def test_what_was_left_out_is_named_on_the_terminal(root: Path, tmp_path: Path, own_state: Path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.jpg")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "b.bmp")
    process = start(root, "--photos", str(tmp_path), "--class-noun", "dog")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 2
    assert "only 0 of 1 photos can be used" in err
    assert "note     left out, being no JPEG, PNG, TIFF, WebP, HEIC or AVIF: b.bmp (a BMP)" in out.splitlines()


def test_a_path_that_is_not_utf8_is_named():
    with pytest.raises(InputError, match=r"^/home/café: its path is not UTF-8"):
        parameters_of(_parser().parse_args(["--photos", os.fsdecode(b"/home/caf\xe9")]))


def test_a_full_disk_is_named_and_nothing_half_written_stays(root: Path, tmp_path: Path, own_state: Path):
    """A limit on the size of any file stands in for the full disk: records still fit, the photos do not."""
    (tmp_path / "big.jpg").write_bytes(b"\xff\xd8\xff" + os.urandom(300_000))
    process = subprocess.Popen(
        [*COMMAND, "--photos", str(tmp_path), "--class-noun", "dog"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)),
    )
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == "error: no space left to write the output: free some disk space and run again\n"
    assert not (the_run(own_state) / "work").exists()
    assert "import_data" not in load_run(the_run(own_state)).artifacts


def test_a_runs_folder_that_cannot_be_made_is_named(root: Path, photos: Path, tmp_path: Path):
    (tmp_path / "runs").write_text("a file")
    done = subprocess.run(
        [*COMMAND, "--photos", str(photos)],
        cwd=root,
        env=os.environ | {"PHOTOFLUX_RUNS_DIR": str(tmp_path / "runs")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}/runs")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_everything_and_says_so(root: Path, photos: Path, own_state: Path, number: int):
    process = start(root, "--photos", str(photos))
    assert process.stdout.readline().startswith("run personalize-")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.startswith("cancelled: ")
    run = load_run(the_run(own_state))
    assert run.state is State.cancelled
    assert all(step.state.ended for step in run.steps)
    assert not (the_run(own_state) / "work").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "finetune_rnk=8"], "error: finetune_rnk: no such parameter; did you mean finetune_rank"),
        (["--set", "finetune_rank"], "error: --set finetune_rank: write NAME=VALUE"),
        (["--class-noun", "d0g!"], "class_noun is 'd0g!'"),
        (["--photos", "{{$}}"], "error: import_photos.source: holds '{{', which a pipeline replaces by what it knows"),
        (["--class-noun", "{{$}}"], "error: import_photos.class_noun: holds '{{'"),
        (["--set", "key=plain://{{$}}"], "error: key: holds '{{'"),
    ],
)
def test_a_mistake_on_the_command_line_starts_nothing(root: Path, own_state: Path, words: list[str], message: str):
    process = start(root, *words)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert out == ""
    assert not (own_state / "runs").exists()


def test_options_are_pipeline_parameters(photos: Path):
    words = ["--photos", str(photos), "--class-noun", "mug", "--name", "my-mug", "--base", "models/x.yaml"]
    args = _parser().parse_args([*words, "--set", "finetune_rank=4"])
    assert parameters_of(args) == {
        "import_photos_source": str(photos),
        "import_photos_class_noun": "mug",
        "import_photos_subject_id": "my-mug",
        "register_name": "my-mug",
        "base": "models/x.yaml",
        "finetune_rank": "4",
    }


def test_a_dvc_source_is_passed_as_it_is():
    args = _parser().parse_args(["--photos", "dvc:.@main:data/samples/dog"])
    assert parameters_of(args) == {"import_photos_source": "dvc:.@main:data/samples/dog"}


def test_what_lies_below_the_working_directory_is_recorded_from_there(photos: Path, monkeypatch: pytest.MonkeyPatch):
    """So that the record of a run still says where, when the checkout was moved."""
    monkeypatch.chdir(photos.parent)
    words = ["--photos", str(photos), "--base", str(photos.parent / "models" / "x.yaml")]
    found = parameters_of(_parser().parse_args(words))
    assert found["import_photos_source"] == photos.name
    assert found["base"] == "models/x.yaml"


@pytest.mark.parametrize(
    ("words", "subject"),
    [
        ([], None),
        (["--name", "rex_2"], "rex-2"),
        (["--set", "register_name=rex"], "rex"),
        (["--name", "rex", "--subject", "the-dog"], "the-dog"),
        (["--name", "rex", "--set", "import_photos_subject_id=the-dog"], "the-dog"),
        (["--name", "Rex"], None),
    ],
)
def test_a_subject_is_called_as_asked_or_as_its_model_and_else_by_its_photos(words: list[str], subject: str | None):
    """A name that cannot be one is left to whoever refuses it."""
    assert (
        parameters_of(_parser().parse_args(["--photos", "photos", *words])).get("import_photos_subject_id") == subject
    )


def test_a_run_is_recorded_with_every_parameter(root: Path, photos: Path, own_state: Path):
    """As its pipeline was given them, and as they were settled, in a page beside the record."""
    words = ["--set", "augment_variants=1", "--set", "gate_copy_max=0.1"]
    start(root, "--photos", str(photos), *words).communicate(timeout=60)
    recorded = json.loads((the_run(own_state) / "run.json").read_text())
    assert recorded["params"]["augment_variants"] == 1
    assert json.loads(recorded["params"]["overrides"]) == {"gate_copy_max": 0.1}
    page = (the_run(own_state) / recorded["artifacts"]["configure"]["summary"]).read_text()
    assert "| augment_variants | `1` | `2` |" in page
    assert "| gate_copy_max | `0.1` | `0.05` |" in page
    assert "| leakage_max | `0.3` |" in page
    assert recorded["params"]["import_photos_source"] == str(photos)
    assert recorded["error"]["step"] == "import_data"


def test_what_could_not_end_well_ends_before_anything_is_imported(root: Path, photos: Path, own_state: Path):
    process = start(root, "--photos", str(photos), "--class-noun", "zeppelin")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("error: class noun 'zeppelin' is unknown to base 'pocket'; choose one of dog, cat")
    assert out.splitlines()[-1].endswith("logs/configure.log")
    assert load_run(the_run(own_state)).step("import_data").state is State.skipped
