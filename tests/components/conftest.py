"""A real git + DVC repository with one tracked photo set in two revisions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

DVC = [sys.executable, "-m", "dvc"]


@dataclass(frozen=True)
class DvcRepo:
    """`folder` tracks `photos/dog`; its cache is empty, its remote holds both revisions."""

    folder: Path
    remote: Path
    first: str
    second: str


def run(*command: str, cwd: Path) -> str:
    identity = {
        f"GIT_{who}_{what}": "tester@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    env = {**os.environ, **identity, "DVC_NO_ANALYTICS": "true", "GIT_CONFIG_GLOBAL": os.devnull}
    return subprocess.run(command, cwd=cwd, env=env, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path, *, photos: int) -> str:
    (folder / "photos" / "dog").mkdir(parents=True, exist_ok=True)
    for number in range(photos):
        Image.new("RGB", (40, 30), (number * 20, 90, 30)).save(folder / "photos" / "dog" / f"{number:02}.jpg")
    run(*DVC, "add", "photos/dog", cwd=folder)
    run("git", "add", "-A", cwd=folder)
    run("git", "commit", "-q", "-m", f"{photos} photos", cwd=folder)
    return run("git", "rev-parse", "HEAD", cwd=folder)


@pytest.fixture(scope="session")
def dvc_repo(tmp_path_factory: pytest.TempPathFactory) -> DvcRepo:
    base = tmp_path_factory.mktemp("dvc")
    folder, remote = base / "repo", base / "remote"
    folder.mkdir()
    run("git", "init", "-q", "-b", "main", cwd=folder)
    run(*DVC, "init", "-q", cwd=folder)
    run(*DVC, "remote", "add", "-q", "-d", "here", str(remote), cwd=folder)
    first = commit(folder, photos=3)
    second = commit(folder, photos=5)
    run(*DVC, "push", "-q", "--all-commits", cwd=folder)
    shutil.rmtree(folder / ".dvc" / "cache")
    shutil.rmtree(folder / "photos" / "dog")
    return DvcRepo(folder, remote, first, second)
