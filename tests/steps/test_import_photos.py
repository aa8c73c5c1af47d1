"""Importing: every photo unchanged and in order, everything else named and refused."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from photoflux.errors import InputError
from photoflux.manifest import digest, read_manifest
from photoflux.params import ImportParams
from photoflux.steps.import_photos import run, subject_of

PARAMS = ImportParams(class_noun="mug", trigger="sks", subject_id="red-mug", consent="own")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photos, one without a suffix, beside things that are none."""
    folder = tmp_path / "mug"
    (folder / "more").mkdir(parents=True)
    for name, kind in (("b.jpg", "JPEG"), ("a.PNG", "PNG"), ("scan", "TIFF")):
        Image.new("RGB", (32, 24), (200, 30, 30)).save(folder / name, kind)
    (folder / "README.md").write_text("not a photo")
    (folder / ".DS_Store").write_bytes(b"\x00")
    Image.new("RGB", (8, 8)).save(folder / "more" / "c.jpg")
    return folder


def test_photos_travel_unchanged_and_in_order(folder: Path, tmp_path: Path):
    result = run(str(folder), photos=tmp_path / "photos.tar", params=PARAMS)
    with tarfile.open(tmp_path / "photos.tar") as tar:
        contents = {m.name: tar.extractfile(m).read() for m in tar if m.name != "manifest.json"}
    assert list(contents) == ["photos/a.PNG", "photos/b.jpg", "photos/scan"]
    assert all(content == (folder / Path(name).name).read_bytes() for name, content in contents.items())
    assert result.metrics["files"] == 3


def test_the_manifest_says_whose_photos_these_are(folder: Path, tmp_path: Path):
    run(str(folder), photos=tmp_path / "photos.tar", params=PARAMS)
    manifest = read_manifest(tmp_path / "photos.tar")
    assert manifest["subject"] == {"id": "red-mug", "class_noun": "mug", "trigger": "sks", "consent": "own"}
    assert manifest["source"] == "mug"
    first = manifest["files"][0]
    assert first["sha256"] == hashlib.sha256((folder / "a.PNG").read_bytes()).hexdigest()
    assert first["bytes"] == (folder / "a.PNG").stat().st_size


def test_the_same_photos_give_the_same_bytes_wherever_they_lie(folder: Path, tmp_path: Path):
    run(str(folder), photos=tmp_path / "one.tar", params=PARAMS)
    (tmp_path / "elsewhere").mkdir()
    moved = folder.rename(tmp_path / "elsewhere" / "mug")
    run(str(moved), photos=tmp_path / "two.tar", params=PARAMS)
    assert digest(tmp_path / "one.tar") == digest(tmp_path / "two.tar")


def test_an_origin_is_recorded_instead_of_where_it_was_fetched_to(folder: Path, tmp_path: Path):
    run(str(folder), photos=tmp_path / "photos.tar", params=PARAMS, origin="dvc:photos@abc:mug")
    assert read_manifest(tmp_path / "photos.tar")["source"] == "dvc:photos@abc:mug"


SOURCES = (
    "rex/photos",
    "cup/photos",
    "写真",
    "фото",
    "📷",
    "photos",
    "Photos",
    "photos-",
    "dvc:.@main:photos",
    "blob:photos",
)


def test_no_two_sources_are_one_subject():
    ids = [subject_of(source) for source in SOURCES]
    assert len(set(ids)) == len(ids)
    assert [name.rpartition("-")[0] for name in ids] == [
        "photos", "photos", "subject", "subject", "subject", "photos", "photos", "photos", "photos", "photos",
    ]  # fmt: skip


def test_a_home_that_nobody_has_is_a_folder_that_is_not_there(tmp_path: Path):
    assert subject_of("~nobody-has-this/rex").startswith("rex-")
    with pytest.raises(InputError, match="nobody-has-this"):
        run("~nobody-has-this/rex", photos=tmp_path / "photos.tar", params=ImportParams(class_noun="dog"))


@given(st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_any_source_makes_an_id_that_a_subject_can_have(source: str):
    assert ImportParams(source="x", subject_id=subject_of(source)).subject_id


def test_a_subject_stays_the_same_when_its_checkout_moves(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """However the folder is written; one outside the working directory is told by its whole path."""
    monkeypatch.chdir(tmp_path)
    same = {subject_of(source) for source in ("mug", "./mug/", "mug/../mug", str(folder))}
    (tmp_path / "moved").mkdir()
    folder.rename(tmp_path / "moved" / "mug")
    monkeypatch.chdir(tmp_path / "moved")
    assert same == {subject_of("mug")}
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert subject_of("~/moved/mug") == subject_of(str(tmp_path / "moved" / "mug")) not in same


def test_without_an_id_the_subject_is_told_by_what_was_written(folder: Path, tmp_path: Path):
    """Where the photos were fetched to says nothing."""
    run(str(folder), photos=tmp_path / "a.tar", params=ImportParams())
    assert read_manifest(tmp_path / "a.tar")["subject"]["id"] == subject_of(str(folder))
    fetched = ImportParams(source="dvc:.@main:photos/rex")
    run(str(folder), photos=tmp_path / "b.tar", params=fetched, origin="dvc:photos@abc:photos/rex")
    assert read_manifest(tmp_path / "b.tar")["subject"]["id"] == subject_of("dvc:.@main:photos/rex")


def test_a_text_file_named_jpg_is_left_for_validation_to_judge(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.jpg").write_text("hello")
    assert run(str(tmp_path / "in"), photos=tmp_path / "out.tar", params=PARAMS).metrics["files"] == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{tmp}/none", "{tmp}/none: does not exist; give a folder of photos"),
        ("{tmp}/file.txt", "{tmp}/file.txt: is a file; give a folder of photos"),
        ("{tmp}/empty", "{tmp}/empty: holds no photos; give a folder with JPEG"),
        ("blob:set-7", "blob:set-7: uploaded and DVC-tracked sets are fetched by the pipeline"),
        ("dvc:.@main:photos", "dvc:.@main:photos: uploaded and DVC-tracked sets are fetched by the pipeline"),
    ],
)
def test_an_unusable_source_is_named_and_nothing_is_written(tmp_path: Path, source: str, message: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("no photos here")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(InputError) as error:
        run(source.format(tmp=tmp_path), photos=tmp_path / "out" / "photos.tar", params=PARAMS)
    assert str(error.value).startswith(message.format(tmp=tmp_path))
    assert not (tmp_path / "out").exists()


def test_too_many_too_large_and_too_long_are_named(folder: Path, tmp_path: Path):
    few = ImportParams(max_files=2)
    with pytest.raises(InputError, match=r"holds 3 photos, more than import_photos.max_files = 2"):
        run(str(folder), photos=tmp_path / "out.tar", params=few)
    (folder / "big.jpg").write_bytes(b"\xff\xd8\xff" + bytes(1_000_001))
    with pytest.raises(InputError, match=r"big.jpg: is larger than import_photos.max_file_mb = 1 MB"):
        run(str(folder), photos=tmp_path / "out.tar", params=ImportParams(max_file_mb=1))
    (folder / "big.jpg").rename(folder / ("x" * 120 + ".jpg"))
    with pytest.raises(InputError, match="the name is too long"):
        run(str(folder), photos=tmp_path / "out.tar", params=PARAMS)
