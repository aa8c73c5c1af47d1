"""What a terminal shows of a command: our lines, libraries' warnings that matter, once, and a bar while it works."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

SPEAKS = """
import logging, sys, time, warnings
from photoflux import screen

screen.set_up()
ours, library = logging.getLogger("photoflux.steps"), logging.getLogger("diffusers.models")
brought = logging.getLogger("diffusers")
brought.addHandler(logging.StreamHandler())
brought.setLevel(logging.INFO)
ours.info("a line of ours")
ours.warning("a warning of ours")
logging.getLogger("great_expectations.core").info("Calculating Metrics")
for photo in range(8):
    library.warning("There are modules in AutoencoderKL that should be kept in float32: []. Casting directly …")
    library.warning("the prompt was\\n truncated")
    warnings.warn("not for people", DeprecationWarning)
logging.getLogger("mlflow").error("x" * 1000)
"""


def run(code: str, *, words: tuple[str, ...] = ("-c",)) -> str:
    """What a program writes to its error output, which is no terminal."""
    return subprocess.run([sys.executable, *words, code], capture_output=True, text=True, check=True).stderr


def on_a_terminal(command: list[str], **settings: str) -> str:
    """What a program writes to a terminal of 100 columns."""
    ours, its = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40", **settings}
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=environment)
    os.close(its)
    said = bytearray()
    while True:
        try:
            said += os.read(ours, 1 << 16)
        except OSError:  # whoever wrote there has ended
            break
    assert process.wait() == 0, said.decode()
    os.close(ours)
    return said.decode()


def test_our_lines_and_each_warning_of_a_library_once():
    assert run(SPEAKS).splitlines() == [
        "a line of ours",
        "a warning of ours",
        "warning (diffusers): the prompt was truncated",
        f"error (mlflow): {'x' * 300}…",
    ]


def test_python_shows_more_when_it_is_asked_to():
    assert "DeprecationWarning: not for people" in run(SPEAKS, words=("-Wdefault", "-c"))


def test_logging_that_is_set_up_is_left_alone():
    said = run("import logging; logging.basicConfig(format='mine: %(message)s')\n" + SPEAKS)
    assert "mine: a warning of ours" in said


COUNTS = """
import logging, time
from photoflux import screen

screen.set_up()
log = logging.getLogger("photoflux.flux")
with screen.progress_bar("finetune"):
    log.info("a line above the bar")
    for step in (1, 2, 8):
        log.info("step %d of 8, loss 0.5", step)
        time.sleep(0.2)
print("done")
"""


def test_elsewhere_than_on_a_terminal_progress_is_lines():
    assert run(COUNTS).splitlines() == ["a line above the bar", *(f"step {n} of 8, loss 0.5" for n in (1, 2, 8))]


def test_on_a_terminal_progress_is_a_bar_that_goes_when_the_work_is_done():
    said = on_a_terminal([sys.executable, "-c", COUNTS])
    assert "a line above the bar\r\n" in said
    assert "finetune" in said
    assert "━" in said
    assert "step 2 of 8, loss 0.5" in said
    assert said.rstrip().endswith("done")
    shown = said.rpartition("\x1b[2K")[2]  # the bar's own line was cleared last
    assert "finetune" not in shown


@pytest.mark.slow
def test_a_folder_is_judged_without_the_libraries_words(root: Path):
    command = [sys.executable, "-m", "photoflux", "validate", "--photos", "data/samples/dog"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) <= 12


@pytest.mark.slow
def test_steps_say_their_measurements_and_nothing_else(root: Path, tmp_path: Path):
    photos = ["--photos", str(tmp_path / "photos.tar")]
    outputs = ("validated", "report", "expectations", "data_docs")
    written = [word for name in outputs for word in (f"--{name}", str(tmp_path / name))]
    for words in (["import_photos", *photos], ["validate", *photos, *written]):
        command = [sys.executable, "-m", "photoflux", *words]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert set(json.loads(done.stdout)) >= {"files" if words[0] == "import_photos" else "score"}
