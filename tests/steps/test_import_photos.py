"""Importing: every photo unchanged and in order, everything else named and refused."""

from __future__ import annotations

import codecs
import hashlib
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks import heifs
from photoflux.errors import InputError
from photoflux.manifest import digest, read_manifest
from photoflux.params import ImportParams
from photoflux.photos.gather import _by_unique_name
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


def test_what_is_no_photo_is_named(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """By its kind, whatever its ending; what people see nowhere is not told."""
    others = {
        "a.bmp": b"BM\x36\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0",
        "b.jxl": b"\xff\x0a\xfa\x7f",
        "c.gif": b"GIF89a",
        "d.NEF": (folder / "scan").read_bytes(),
        "e.cr3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
        "f.mov": b"\0\0\0\x14ftypqt  ",
        "g.jpg": b"%PDF-1.7",
        "h.raf": b"FUJIFILMCCD-RAW 0201",
        "i.jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
        "j.psd": b"8BPS",
        "Thumbs.db": b"",
        "k.txt": b"a caption of nothing",
        "l.svg": b"<?xml version='1.0'?><svg/>",
    }
    for name, data in others.items():
        (folder / name).write_bytes(data)
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    with caplog.at_level("INFO"):
        result = run(str(folder), photos=tmp_path / "photos.tar", params=PARAMS)
    manifest = read_manifest(tmp_path / "photos.tar")
    assert manifest["left_out"] == {
        "README.md": "no photo",
        "a.bmp": "a BMP",
        "b.jxl": "a JPEG XL picture",
        "c.gif": "a GIF",
        "d.NEF": "a camera's raw file",
        "e.cr3": "a camera's raw file",
        "f.mov": "a video",
        "g.jpg": "a PDF",
        "gone.jpg": "no file",
        "h.raf": "a camera's raw file",
        "i.jp2": "a JPEG 2000 picture",
        "j.psd": "a Photoshop file",
        "k.txt": "a text",
        "l.svg": "an SVG",
        "more": "a folder",
    }
    assert [entry["name"] for entry in manifest["files"]] == ["a.PNG", "b.jpg", "scan"]
    assert result.metrics["left_out"] == 15
    told = caplog.messages[-1]
    assert told.startswith(
        "left out, being no JPEG, PNG, TIFF, WebP, HEIC or AVIF: README.md (no photo), a.bmp (a BMP), "
    )
    assert told.endswith("i.jp2 (a JPEG 2000 picture), j.psd (a Photoshop file), 3 more") or "more" in told


@pytest.mark.parametrize("ending", ["heic", "HEIF", "hif", "avif", "jfif", "txt", ""])
def test_heic_and_avif_are_photos_under_any_ending(ending: str, tmp_path: Path):
    (tmp_path / "in").mkdir()
    data = heifs.container([heifs.picture(np.zeros((16, 16, 3)))], major=b"mif1", brands=[b"heic"])
    (tmp_path / "in" / f"photo.{ending}".rstrip(".")).write_bytes(data)
    assert run(str(tmp_path / "in"), photos=tmp_path / "out.tar", params=PARAMS).metrics["files"] == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a mug on the tråden".encode(), "a mug on the tråden"),
        ("a mug on the tråden".encode("utf-8-sig"), "a mug on the tråden"),
        ("a mug on the tråden".encode("utf-16"), "a mug on the tråden"),
        (b"\xfe\xff" + "a mug".encode("utf-16-be"), "a mug"),
        ("a mug on a table".encode("utf-16-le"), "a mug on a table"),
        ("a mug on a table".encode("utf-16-be"), "a mug on a table"),
        (codecs.BOM_UTF32_LE + "a mug".encode("utf-32-le"), "a mug"),
        ("a “mug” on the tråden – red".encode("cp1252"), "a “mug” on the tråden – red"),
        (b"a\x00 mug\x07 on\x1b[31m\r\n a\ttable\x1a", "a mug on [31m a table"),
        ("a mug\u202e on a\u200b table\ufeff".encode(), "a mug on a table"),
        ("家族 👩\u200d👧 e\u0301".encode(), "家族 👩\u200d👧 é"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("ending", [".txt", ".TXT", ".Txt"])
def test_captions_are_read_as_they_were_meant(data: bytes, words: str, ending: str, folder: Path, tmp_path: Path):
    (folder / f"b{ending}").write_bytes(data)
    run(str(folder), photos=tmp_path / "photos.tar", params=PARAMS)
    manifest = read_manifest(tmp_path / "photos.tar")
    assert manifest["captions"] == {"b.jpg": words}
    assert f"b{ending}" not in manifest["left_out"]


def test_what_is_no_caption_is_named(folder: Path, tmp_path: Path):
    for name, data in (("b.txt", bytes(range(256)) * 4), ("a.txt", b"word " * 1000), ("scan.txt", b" \r\n")):
        (folder / name).write_bytes(data)
    run(str(folder), photos=tmp_path / "photos.tar", params=PARAMS)
    manifest = read_manifest(tmp_path / "photos.tar")
    assert manifest["captions"] == {}
    assert {"a.txt", "b.txt", "scan.txt"} <= set(manifest["left_out"])


def test_names_that_are_not_utf8_are_read_as_they_were_meant(folder: Path, tmp_path: Path):
    """And those with controls in them, and those that differ in case alone; each photo keeps a name of its own."""
    data = (folder / "b.jpg").read_bytes()
    cafe = tmp_path / os.fsdecode(b"caf\xe9")
    cafe.mkdir()
    odd = (
        b"caf\xe9.jpg",
        "café.jpg".encode(),
        b"caf\xe9-2.JPG",
        b"new\nline.jpg",
        b"P1.jpg",
        b"p1.jpg",
        b"bad\x81.jpg",
    )
    for name in odd:
        (cafe / os.fsdecode(name)).write_bytes(data)
    (cafe / os.fsdecode(b"caf\xe9.txt")).write_bytes("ein Café".encode("cp1252"))
    run(str(cafe), photos=tmp_path / "photos.tar", params=PARAMS)
    manifest = read_manifest(tmp_path / "photos.tar")
    names = [entry["name"] for entry in manifest["files"]]
    assert sorted(names) == ["P1.jpg", "bad_.jpg", "café-2.JPG", "café-3.jpg", "café.jpg", "new_line.jpg", "p1-2.jpg"]
    assert list(manifest["captions"].values()) == ["ein Café"]
    assert manifest["source"] == "café"
    with tarfile.open(tmp_path / "photos.tar") as tar:
        assert len({m.name for m in tar}) == len(names) + 1


def test_what_is_said_of_odd_names_can_be_printed(folder: Path, tmp_path: Path):
    (folder / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"\xff\xd8\xff" + bytes(1_000_001))
    (tmp_path / os.fsdecode(b"empt\xe9")).mkdir()
    for source, said in (
        (folder, "café.jpg: is larger"),
        (tmp_path / os.fsdecode(b"empt\xe9"), "empté: holds no photos"),
        (tmp_path / os.fsdecode(b"\xe9"), "é: does not exist"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            run(str(source), photos=tmp_path / "out.tar", params=ImportParams(max_file_mb=1))
        assert str(caught.value).encode()


@given(
    st.lists(
        st.binary(min_size=1, max_size=6).filter(lambda n: not {0, 47} & set(n) and n not in (b".", b"..")), max_size=8
    )
)
def test_any_names_become_names_of_their_own(names: list[bytes]):
    made = _by_unique_name([Path(os.fsdecode(b"/x/" + name)) for name in names])
    assert len({name.casefold() for name in made}) == len(made) == len(names)
    assert all(name.encode() and name.isprintable() for name in made)


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
        "photos",
        "photos",
        "subject",
        "subject",
        "subject",
        "photos",
        "photos",
        "photos",
        "photos",
        "photos",
    ]


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
