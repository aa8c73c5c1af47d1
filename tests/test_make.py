"""`make`, as people type it: what they give arrives as it is, nothing of it is run, and every program is the environment's own."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

PROGRAM = """#!/bin/bash
# Stands in for the environment's python: writes down how many words it was called with, and the words, each ended by NUL.
case "$*" in "-m pipelines.with_args "*) exec {python} "$@" ;; esac
printf '%s\\0' "$#" "$@" >>"$RECORD"
printf '%s' "$PHOTOFLUX_STATE_DIR" >"$RECORD.state"
"""
HOSTILE = [
    "a photo of sks dog's house", 'a "quoted" word', "'", '"', "\\", "\\'", "$(shell touch ran)", "$(touch ran)", "`touch ran`",
    "$5", "$$", "$(PATH)", "${HOME}", "$", "two\nlines", "100%", "% #", "a # b", "#",
    "; touch ran", "| touch ran", "& touch ran", "> ran", "*", "~", "!!",
    "{a,b}", "-n", "--help", "", "a  b ", "ü€", "'$(shell touch ran)'\"`touch ran`\n$5 %#;&",
]  # fmt: skip
GENERATE = ("MODEL", "PROMPT", "N", "SEED", "SIZE", "FORMAT", "STYLE")
WITH_ARGS = {
    "serve": ["-m", "api.serve"],
    "load": ["-m", "benchmarks.load"],
    "chaos": ["-m", "benchmarks.chaos"],
    "attack": ["-m", "benchmarks.attack"],
    "repro": ["-m", "dvc", "repro"],
    "pretrain": ["-m", "photoflux", "pretrain", "--out", "models/pocket"],
    "test": ["-m", "pytest", "-m", "not slow", "-n", "auto", "--dist", "loadfile"],
    "test-slow": ["-m", "pytest", "-m", "slow"],
}
"""Targets that take ARGS, with what their program is given before."""
WITHOUT = ("help", "install", "demo", "demo-bad", "mlflow", "bench", "compile", "lint", "clean")
"""Targets that take nothing, or only settings."""


@pytest.fixture
def checkout(root: Path, tmp_path: Path) -> Path:
    """A checkout in a folder of an unlucky name, whose environment writes down what it is asked to run."""
    folder = tmp_path / "50%20off, Rex' photos"
    (folder / ".venv/bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "pipelines"):
        (folder / name).symlink_to(root / name)
    (folder / ".venv/bin/python").write_text(PROGRAM.format(python=shlex.quote(sys.executable)))
    (folder / ".venv/bin/python").chmod(0o755)
    (folder / ".venv/.installed").touch()
    return folder


def make(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`make` with the least of an environment; `variables` go there."""
    environment = {"PATH": "/usr/bin:/bin", "RECORD": str(folder / "record"), **variables}
    return subprocess.run(["make", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def recorded(folder: Path) -> list[list[str]]:
    """What was run: the words of each call."""
    record, calls = folder / "record", list[list[str]]()
    words = record.read_bytes().decode().split("\0")[:-1] if record.is_file() else []
    while words:
        end = 1 + int(words[0])
        calls.append(words[1:end])
        words = words[end:]
    return calls


def nothing_else_ran(folder: Path) -> bool:
    known = {".venv", "Makefile", "pyproject.toml", "constraints.txt", "pipelines", "record", "record.state"}
    return {file.name for file in folder.iterdir()} <= known


def test_every_documented_target_is_tried_here(root: Path):
    listed = make(root, "help").stdout.split("\n")
    targets = {line.split()[1] for line in listed if line.strip()}
    assert targets == {"run", "generate", *WITH_ARGS, *WITHOUT}


@pytest.mark.parametrize("given", HOSTILE)
@pytest.mark.parametrize("by", ["command line", "environment"])
def test_what_is_given_arrives_byte_for_byte(checkout: Path, given: str, by: str):
    variables = dict.fromkeys(("PHOTOS", "CLASS", *GENERATE), given)
    words = [f"{name}={value}" for name, value in variables.items()] if by == "command line" else []
    environment = variables if by == "environment" else {}
    for target in ("run", "generate"):
        done = make(checkout, target, *words, **environment)
        assert done.returncode == 0, done.stderr
    assert recorded(checkout) == [
        ["-m", "pipelines.run", f"--photos={given}", f"--class-noun={given}"],
        ["-m", "photoflux", "generate", *(f"--{name.lower()}={given}" for name in GENERATE)],
    ]
    assert nothing_else_ran(checkout)


@pytest.mark.parametrize("target", ["run", *WITH_ARGS])
@pytest.mark.parametrize("by", ["command line", "environment"])
def test_args_are_words_that_no_shell_reads(checkout: Path, target: str, by: str):
    given = [*filter(None, HOSTILE), "--name", "rex"]
    args = shlex.join(given)
    done = make(checkout, target, f"ARGS={args}") if by == "command line" else make(checkout, target, ARGS=args)
    assert done.returncode == 0, done.stderr
    before = WITH_ARGS.get(target) or ["-m", "pipelines.run", "--photos=.photoflux/demo/photos", "--class-noun=dog"]
    assert [*before, *given] in recorded(checkout)
    assert nothing_else_ran(checkout)


def test_a_quote_that_is_not_closed_is_named(checkout: Path):
    done = make(checkout, "serve", "ARGS=--name 'rex")
    assert done.returncode == 2
    assert "error: ARGS: no closing quotation: --name 'rex\n" in done.stderr
    assert recorded(checkout) == []


@pytest.mark.parametrize("given", HOSTILE)
def test_a_setting_given_to_make_is_the_programs_setting(checkout: Path, given: str):
    for target in ("demo", "demo-bad", "mlflow", "bench", "compile", "lint"):
        done = make(checkout, target, f"PHOTOFLUX_STATE_DIR={given}", f"PHOTOFLUX_PUBLIC_URL={given}")
        assert done.returncode == 0, done.stderr
        assert (checkout / "record.state").read_bytes().decode() == given
    assert nothing_else_ran(checkout)


def test_the_state_is_the_checkouts_own_unless_said_otherwise(checkout: Path):
    make(checkout, "demo")
    assert (checkout / "record.state").read_text() == str(checkout / ".photoflux")
    make(checkout, "demo", PHOTOFLUX_STATE_DIR="/else/where $5")
    assert (checkout / "record.state").read_text() == "/else/where $5"


@pytest.mark.parametrize("given", [value for value in HOSTILE if "\n" not in value])
def test_a_python_that_is_not_there_is_named(checkout: Path, given: str):
    (checkout / ".venv/.installed").unlink()
    done = make(checkout, "install", f"PYTHON={given}")
    assert done.returncode == 2
    assert f"error: {given} not found; install Python 3.11" in done.stderr
    assert recorded(checkout) == []
    assert nothing_else_ran(checkout)


CLONED = ["Makefile", "README.md", "pyproject.toml", "constraints.txt", "dvc.yaml", "dvc.lock", "params.yaml", ".dvc", ".dvcignore",
          ".gitignore", "photoflux", "components", "pipelines", "data", "metrics", "models"]  # fmt: skip


@pytest.fixture
def clone(root: Path, tmp_path: Path) -> Path:
    """What git tracks, in a folder of an unlucky name, with an environment of its own that shares this one's libraries."""
    folder, listed = (
        tmp_path / "50%20off, Rex' photos",
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
    )
    names = subprocess.run([*listed, "--", *CLONED], cwd=root, capture_output=True, text=True, check=True).stdout
    for name in filter(lambda n: (root / n).is_file(), names.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, folder / name)
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    venv.create(folder / ".venv", symlinks=True)
    (packages,) = (folder / ".venv").glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(sysconfig.get_paths()["purelib"])
    (folder / ".venv/bin/dvc").write_text('#!/bin/sh\nexec python -m dvc "$@"\n')
    (folder / ".venv/bin/dvc").chmod(0o755)
    (folder / ".venv/.installed").touch()
    return folder


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment whose `python` on the PATH knows no library."""
    (tmp_path / "bare").mkdir()
    for name in ("python", "python3"):
        (tmp_path / "bare" / name).write_text("#!/bin/sh\necho \"No module named 'PIL'\" >&2\nexit 1\n")
        (tmp_path / "bare" / name).chmod(0o755)
    return {"PATH": f"{tmp_path / 'bare'}:/usr/bin:/bin", "HOME": str(tmp_path), "DVC_NO_ANALYTICS": "true"}


def changed(folder: Path, **values: object) -> None:
    """Change parameters of the first step."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["import_photos"] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def shell(folder: Path, command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def carried(folder: Path) -> dict[Path, bytes]:
    """What git keeps of what stages write."""
    kept = [file for part in ("metrics", "data") for file in (folder / part).rglob("*") if file.is_file()]
    return {file: file.read_bytes() for file in kept if file.name != ".gitignore"}


def as_readme_says(root: Path) -> str:
    """What the README says to type before `dvc repro`."""
    (activate,) = re.findall(r"`([^`]+)` before `dvc repro`", (root / "README.md").read_text())
    return f"{activate} && dvc repro"


@pytest.mark.parametrize("how", ["make", "README"])
def test_stages_run_in_a_fresh_clone_whatever_python_is_on_the_path(
    root: Path, clone: Path, bare: dict[str, str], how: str
):
    before = carried(clone)
    source = 'data/samples/Rex\' "dogs" $(touch ran); touch ran'
    shutil.copytree(clone / "data/samples/dog", clone / source)
    changed(clone, source=source)
    command = {"make": "make repro ARGS=import_photos", "README": f"{as_readme_says(root)} import_photos"}[how]
    done = shell(clone, command, bare)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Running stage 'import_photos'" in done.stdout
    assert (clone / "build/photos.tar").is_file()
    assert before.items() <= carried(clone).items()
    assert not list(clone.rglob("ran"))


def test_a_stage_that_fails_leaves_what_git_keeps(clone: Path, bare: dict[str, str]):
    before = carried(clone)
    changed(clone, max_files=30)
    done = shell(clone, ".venv/bin/python -m dvc repro --force import_photos", bare)
    assert done.returncode != 0
    assert "No module named 'PIL'" in done.stderr
    assert carried(clone) == before
