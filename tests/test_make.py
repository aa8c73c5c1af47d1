"""`make`, as people type it: what they give arrives as it is, nothing of it is run, and every program is the environment's own."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
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
    "serve": ["-m", "api.ops.serve"],
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
          ".gitignore", "api", "photoflux", "components", "pipelines", "data", "metrics", "models"]  # fmt: skip


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
    (folder / ".venv/shared").symlink_to(sysconfig.get_paths()["purelib"])
    (packages / "shared.pth").write_text(str(folder / ".venv/shared"))
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
    (clone / "build/params").mkdir(parents=True)
    (clone / "build/params/import_photos.yaml").write_text("import_photos: {max_files: 30}\n")
    done = shell(clone, ".venv/bin/python -m dvc repro --force --single-item import_photos", bare)
    assert done.returncode != 0
    assert "No module named 'PIL'" in done.stderr
    assert carried(clone) == before


SHORT = {
    "finetune_steps": 8, "finetune_checkpoint_every": 8, "finetune_preservation_prompts": 8, "evaluate_profile": "smoke",
    "evaluate_half_width_max": 1, "evaluate_bootstrap": 200, "audit_profile": "smoke", "audit_bootstrap": 200,
    "audit_permutations": 200, "gate_identity_gain_min": 0, "gate_identity_gain_warn": 0,
}  # fmt: skip
"""The shortest way through every step."""


@pytest.mark.slow
def test_a_run_and_its_pictures_from_a_folder_of_an_unlucky_name(clone: Path, bare: dict[str, str]):
    photos = clone / 'Rex\' & "I" $5'
    shutil.copytree(clone / "data/samples/dog", photos)
    words = [word for name, value in SHORT.items() for word in ("--set", f"{name}={value}")]
    args = shlex.join(["--name", "rex", "--consent", "sample", *words])
    done = subprocess.run(
        ["make", "run", f"PHOTOS={photos.name}", "CLASS=dog", f"ARGS={args}"],
        cwd=clone,
        env=bare,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) <= 40
    assert re.search(r"^verdict  \w+$", done.stdout, re.MULTILINE)
    (adapter,) = clone.glob("runs/*/artifacts/finetune/adapter.tar")
    prompt = 'sks dog\'s "house", 100% $5'
    done = subprocess.run(
        ["make", "generate", f"MODEL={adapter}", f"PROMPT={prompt}", "N=2"],
        cwd=clone,
        env=bare,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.splitlines() == ["picture 1 of 2", "picture 2 of 2"]
    pictures = [Path(line) for line in done.stdout.splitlines()[1:]]
    assert [picture.parent for picture in pictures] == [clone / ".photoflux/pictures"] * 2
    assert all(picture.is_file() for picture in pictures)


@contextmanager
def served(clone: Path, environment: dict[str, str]) -> Iterator[str]:
    """`make serve`, from its last line on until Ctrl-C; yields what it printed."""
    log = clone / "serve.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            ["make", "serve"],
            cwd=clone,
            env=environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        until = time.monotonic() + 180
        while "ready; " not in log.read_text():
            assert process.poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.2)
        yield log.read_text()
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(120)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_the_service_from_a_folder_of_an_unlucky_name(clone: Path, bare: dict[str, str]):
    ports = {name: f"http://127.0.0.1:{free_port()}" for name in ("PHOTOFLUX_PUBLIC_URL", "PHOTOFLUX_ENGINE_URL")}
    with served(clone, bare | ports) as said:
        lines = said.splitlines()
        assert len(lines) <= 8, said
        addresses = dict(line.split() for line in lines if re.match(r"(address|engine|mlflow) ", line))
        assert httpx2.get(f"{addresses['address']}/readyz", timeout=30).status_code == 204
        assert httpx2.get(addresses["mlflow"], timeout=30).status_code == 200
        assert not [file for file in clone.parent.iterdir() if file.name not in (clone.name, "bare")]
