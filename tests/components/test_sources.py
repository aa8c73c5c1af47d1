"""Photo sets from DVC: a real repository, a local-directory remote, an empty cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from components.sources import fetched, parse_dvc
from photoflux.errors import InputError


def test_a_tracked_set_is_fetched_at_its_revision(dvc_repo):
    with fetched(f"dvc:{dvc_repo.folder}@{dvc_repo.first}:photos/dog") as (folder, origin):
        assert sorted(p.name for p in Path(folder).iterdir()) == ["00.jpg", "01.jpg", "02.jpg"]
        assert origin == f"dvc:{dvc_repo.folder.name}@{dvc_repo.first}:photos/dog"
    assert not Path(folder).exists()


def test_a_branch_is_recorded_as_the_commit_it_stood_for(dvc_repo):
    with fetched(f"dvc:{dvc_repo.folder}@main:photos/dog/") as (folder, origin):
        assert len(list(Path(folder).iterdir())) == 5
        assert dvc_repo.second in origin


def test_a_folder_is_passed_on(tmp_path: Path):
    with fetched(str(tmp_path)) as (folder, origin):
        assert (folder, origin) == (str(tmp_path), "")


@pytest.mark.parametrize(
    ("rev", "path", "named"),
    [("main", "photos/cat", "photos/cat: no such folder"), ("v9", "photos/dog", "at v9")],
)
def test_a_missing_path_or_revision_is_named(dvc_repo, rev: str, path: str, named: str):
    with pytest.raises(InputError, match=named), fetched(f"dvc:{dvc_repo.folder}@{rev}:{path}"):
        pass


def test_a_missing_repository_is_named(tmp_path: Path):
    with (
        pytest.raises(InputError, match=r"cannot fetch photos from .*/none at main"),
        fetched(f"dvc:{tmp_path}/none@main:photos"),
    ):
        pass


def test_an_emptied_remote_is_told(dvc_repo, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(dvc_repo.folder, copy)
    (copy / ".dvc" / "config").write_text("[core]\n    remote = here\n['remote \"here\"']\n    url = /nowhere/at/all\n")
    with pytest.raises(InputError, match="cannot fetch photos/dog"), fetched(f"dvc:{copy}@main:photos/dog"):
        pass


@pytest.mark.parametrize(
    "source", ["dvc:", "dvc:repo", "dvc:repo@main", "dvc:repo@main:", "dvc:@main:photos", "dvc:repo@:photos"]
)
def test_a_malformed_source_says_how_to_write_one(source: str):
    with pytest.raises(InputError, match="write dvc:REPO@REV:PATH"):
        parse_dvc(source)


def test_a_url_may_hold_colons_and_ats():
    assert parse_dvc("dvc:ssh://git@host:22/photos.git@v1:a/b") == (
        "ssh://git@host:22/photos.git",
        "v1",
        "a/b",
    )
