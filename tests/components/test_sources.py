"""Photo sets from DVC: a real repository, a local-directory remote, an empty cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from components.sources import fetched_source, parse_dvc, source_state
from photoflux.errors import InputError
from photoflux.photos.sets import write_set
from photoflux.vault.objects import open_objects

KEY = "plain://demo"


def test_a_tracked_set_is_fetched_at_its_revision(dvc_repo):
    with fetched_source(f"dvc:{dvc_repo.folder}@{dvc_repo.first}:photos/dog", key=KEY) as (folder, origin):
        assert sorted(p.name for p in Path(folder).iterdir()) == ["00.jpg", "01.jpg", "02.jpg"]
        assert origin == f"dvc:{dvc_repo.folder.name}@{dvc_repo.first}:photos/dog"
    assert not Path(folder).exists()


def test_a_repository_is_recorded_as_it_was_written_where_it_may_be_moved(dvc_repo, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(dvc_repo.folder)
    with fetched_source(f"dvc:.@{dvc_repo.first}:photos/dog", key=KEY) as (_, origin):
        assert origin == f"dvc:.@{dvc_repo.first}:photos/dog"


def test_a_branch_is_recorded_as_the_commit_it_stood_for(dvc_repo):
    with fetched_source(f"dvc:{dvc_repo.folder}@main:photos/dog/", key=KEY) as (folder, origin):
        assert len(list(Path(folder).iterdir())) == 5
        assert dvc_repo.second in origin


def test_an_uploaded_set_is_opened_for_its_owner_alone(tmp_path: Path):
    objects = open_objects()
    for number in (1, 2):
        objects.put("ada", "photo", f"p{number}", f"photo {number}".encode())
    source = write_set(objects, "ada", "set-1", ["p2", "p1"])
    with fetched_source(source, key="vault://ada") as (folder, origin):
        assert [file.read_bytes() for file in sorted(Path(folder).iterdir())] == [b"photo 2", b"photo 1"]
        assert origin == "the upload"
    assert not Path(folder).exists()
    assert write_set(objects, "ada", "set-1", ["p1"]) == source  # the first one stands
    with fetched_source(source, key="vault://ada/run-1") as (folder, _):
        assert len(list(Path(folder).iterdir())) == 2
    for key, named in (("vault://bob", "is gone"), ("plain://demo", "give their owner's key")):
        with pytest.raises(InputError, match=named), fetched_source(source, key=key):
            pass
    objects.delete("ada", "photo", "p1")
    with pytest.raises(InputError, match="upload them and start again"), fetched_source(source, key="vault://ada"):
        pass


def test_a_folder_is_passed_on(tmp_path: Path):
    with fetched_source(str(tmp_path), key=KEY) as (folder, origin):
        assert (folder, origin) == (str(tmp_path), "")


@pytest.mark.parametrize(
    ("rev", "path", "named"),
    [("main", "photos/cat", "photos/cat: no such folder"), ("v9", "photos/dog", "at v9")],
)
def test_a_missing_path_or_revision_is_named(dvc_repo, rev: str, path: str, named: str):
    with pytest.raises(InputError, match=named), fetched_source(f"dvc:{dvc_repo.folder}@{rev}:{path}", key=KEY):
        pass


def test_a_missing_repository_is_named(tmp_path: Path):
    with (
        pytest.raises(InputError, match=r"cannot fetch photos from .*/none at main"),
        fetched_source(f"dvc:{tmp_path}/none@main:photos", key=KEY),
    ):
        pass


def test_an_emptied_remote_is_told(dvc_repo, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(dvc_repo.folder, copy)
    (copy / ".dvc" / "config").write_text("[core]\n    remote = here\n['remote \"here\"']\n    url = /nowhere/at/all\n")
    with (
        pytest.raises(InputError, match="cannot fetch photos/dog"),
        fetched_source(f"dvc:{copy}@main:photos/dog", key=KEY),
    ):
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


def test_what_a_source_holds_is_one_word_until_it_holds_something_else(tmp_path: Path):
    """By which a run knows whether photos that were imported before are still those."""
    (tmp_path / "a.jpg").write_bytes(b"1")
    first = source_state(str(tmp_path))
    assert source_state(str(tmp_path)) == first
    words = {first}
    for change in (
        lambda: (tmp_path / "b.jpg").write_bytes(b"1"),
        lambda: (tmp_path / "b.jpg").rename(tmp_path / "c.jpg"),
        lambda: (tmp_path / "a.jpg").write_bytes(b"22"),
        lambda: os.utime(tmp_path / "a.jpg", ns=(1, 1)),
        lambda: (tmp_path / "a.jpg").unlink(),
    ):
        change()
        words.add(source_state(str(tmp_path)))
    assert len(words) == 6


@pytest.mark.parametrize("source", ["blob:set-1", f"dvc:.@{'0' * 40}:photos"])
def test_what_never_changes_has_one_word(source: str):
    assert source_state(source) == source_state(source)


@pytest.mark.parametrize("source", ["dvc:.@main:photos", "dvc:.@v1:photos", "dvc:nonsense", "/nowhere/at/all"])
def test_what_may_have_changed_has_another_each_time(source: str):
    assert source_state(source) != source_state(source)
