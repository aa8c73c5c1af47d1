"""validate: photos in; verdict, good photos without metadata and a page to read out."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import heifs
from photoflux.__main__ import main
from photoflux.errors import InputError, ValidationFailed
from photoflux.manifest import digest, read_manifest, write_tar
from photoflux.params import ValidateParams
from photoflux.photos import rules
from photoflux.report import sealed_beside
from photoflux.steps import validate
from photoflux.vault import committed, opened
from tests.photos.pictures import animation, blurred, bomb, cropped, encoded, half, mirrored, photo

PARAMS = ValidateParams()
SUBJECT = {"id": "thing", "class_noun": "mug", "trigger": "sks", "consent": "sample"}


def imported(folder: Path, files: dict[str, bytes], **more: object) -> Path:
    """An import artifact as the step before writes it."""
    manifest = {"subject": SUBJECT, "source": "holiday", "files": [{"name": name} for name in sorted(files)], **more}
    folder.mkdir(exist_ok=True)
    path = folder / "photos.tar"
    write_tar(path, files={f"photos/{name}": data for name, data in files.items()}, manifest=manifest)
    return path


def good(count: int) -> dict[str, bytes]:
    return {f"{i:02}.jpg": encoded(photo(i)) for i in range(count)}


PAGES = ["data_docs.html", "expectations.json", "photos.tar", "report.html"]
"""What a run leaves beside its photos, also where it passes none on."""


def run(folder: Path, photos: Path, *, key: str = "plain://demo", **params: object):
    outputs = {"validated": "validated.tar", "report": "report.html", "expectations": "expectations.json"}
    outputs["data_docs"] = "data_docs.html"
    named = {name: folder / file for name, file in outputs.items()}
    return validate.run(photos, **named, params=ValidateParams(**params), key=key)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over five good photos and every planted defect."""
    folder = tmp_path_factory.mktemp("mixed")
    exif = Image.Exif()
    exif[0x010F] = "SecretMaker"
    exif.get_ifd(0x8825)[2] = (52.0, 30.0, 0.0)
    files = good(5) | {
        "00.jpg": encoded(photo(0), exif=exif),
        "10-mirror.jpg": encoded(mirrored(photo(1))),
        "11-crop.jpg": encoded(cropped(photo(2))),
        "12-blur.jpg": encoded(blurred(photo(3), 2.5)),
        "13-cut.jpg": half(encoded(photo(4))),
        "14-text.jpg": b"Dear reader, this is text.",
        "02.txt": b"a red  mug\non a table",
    }
    listed = sorted(set(files) - {"02.txt"})
    manifest = {"subject": SUBJECT, "source": "holiday", "files": [{"name": name} for name in listed]}
    write_tar(folder / "photos.tar", files={f"photos/{n}": d for n, d in files.items()}, manifest=manifest)
    result = run(folder, folder / "photos.tar")
    assert result.report == folder / "report.html"
    assert result.metrics["usable"] == 5
    assert result.metrics["rejected"] == 5
    return folder


def test_planted_defects_are_named_and_the_run_goes_on(mixed: Path):
    verdict = read_manifest(mixed / "validated.tar")["validation"]
    photos = {p["file"]: p for p in verdict["photos"]}
    told = {name: ([r["code"] for r in p["reasons"]][:1], p["duplicate_of"]) for name, p in photos.items()}
    assert told["10-mirror.jpg"] == (["duplicate"], "01.jpg")
    assert told["11-crop.jpg"] == (["duplicate"], "02.jpg")
    assert told["12-blur.jpg"] == (["blurry"], "03.jpg")
    assert told["13-cut.jpg"] == (["truncated"], None)
    assert told["14-text.jpg"] == (["not_a_photo"], None)
    assert [told[f"{i:02}.jpg"] for i in range(5)] == [([], None)] * 5
    assert verdict["verdict"] == "warn"


def test_only_good_photos_are_passed_on_bare(mixed: Path):
    with tarfile.open(mixed / "validated.tar") as tar:
        names = [n for n in tar.getnames() if n != "manifest.json"]
        first = tar.extractfile("images/00.png").read()
    assert names == [f"images/{i:02}.png" for i in range(5)]
    assert b"SecretMaker" not in first
    with Image.open(io.BytesIO(first)) as picture:
        assert (picture.format, picture.mode, picture.info) == ("PNG", "RGB", {})
        source = Image.open(io.BytesIO(encoded(photo(0))))
        assert np.array_equal(np.asarray(picture), np.asarray(source))


def test_the_manifest_tells_where_each_photo_came_from(mixed: Path):
    manifest = read_manifest(mixed / "validated.tar")
    assert manifest["subject"] == SUBJECT
    entry = manifest["photos"][0]
    assert (entry["file"], entry["source"], entry["facts"]["had_gps"]) == ("images/00.png", "00.jpg", True)
    assert entry["sharpness"] > 250
    assert manifest["captions"] == {"images/02.png": "a red mug on a table"}
    assert any(line["rule"] == "blurry" and line["files"] == ["12-blur.jpg"] for line in manifest["expectations"])


def test_the_report_is_one_file_that_shows_every_photo(mixed: Path):
    html = (mixed / "report.html").read_text()
    for name in ("00.jpg", "10-mirror.jpg", "14-text.jpg"):
        assert name in html
    assert html.count("data:image/png;base64") >= 10
    assert "http" not in html.replace("http-equiv", "")
    assert "Blurry: retake it" in html
    assert "SecretMaker" not in html


def test_the_same_photos_give_the_same_artifacts(tmp_path: Path):
    photos, outputs = imported(tmp_path, good(5)), ("validated.tar", *PAGES)
    run(tmp_path, photos)
    first = [digest(tmp_path / name) for name in outputs]
    run(tmp_path, photos)
    assert [digest(tmp_path / name) for name in outputs] == first


def test_great_expectations_results_and_page_are_artifacts(mixed: Path):
    """The results as it gives them, and its own page, which says the same."""
    document = json.loads((mixed / "expectations.json").read_text())
    assert (document["kind"], document["verdict"]) == ("expectations", "warn")
    (blurry,) = (
        one for one in document["results"]["photos"]["results"] if one["expectation_config"]["meta"]["rule"] == "blurry"
    )
    assert not blurry["success"]
    assert [row["file"] for row in blurry["result"]["unexpected_index_list"]] == ["12-blur.jpg"]
    assert "12-blur.jpg" in (mixed / "data_docs.html").read_text()


def test_the_rule_table_has_no_say_in_the_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rules.Rule, "holds", lambda *_: pytest.fail("the rule table was asked"))
    files = good(5) | {"copy.jpg": encoded(photo(1)), "text.jpg": b"text"}
    assert run(tmp_path, imported(tmp_path, files)).metrics["usable"] == 5


def test_a_persons_pictures_and_names_are_on_the_sealed_pages_alone(tmp_path: Path):
    """The open pages keep the numbers; results name files, so that they are sealed."""
    files = {f"grandma-{name}": data for name, data in good(5).items()} | {
        "grandma-blur.jpg": encoded(blurred(photo(3), 9))
    }
    manifest = {"subject": {**SUBJECT, "consent": "own"}, "source": "grandmas-birthday"}
    with committed(tmp_path / "photos.tar", key="vault://ada/run-1") as plain:
        imported(tmp_path / "made", files, **manifest).rename(plain)
    run(tmp_path, tmp_path / "photos.tar", key="vault://ada/run-1")
    for name, shown in (("report.html", "Rules"), ("data_docs.html", "unexpected values found")):
        page = (tmp_path / name).read_text()
        assert shown in page
        assert "grandma" not in page
        assert page.count("data:image") == (name == "report.html"), "of the score alone"
        with opened(sealed_beside(tmp_path / name), key="vault://ada/run-1") as full:
            assert "grandma-blur.jpg" in full.read_text()
    left = [file for file in tmp_path.iterdir() if file.is_file() and b"grandma" in file.read_bytes()]
    assert left == []
    with opened(tmp_path / "expectations.json", key="vault://ada/run-1") as full:
        assert "grandma-blur.jpg" in full.read_text()


@pytest.fixture
def suites(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The shipped suites in a folder of their own, which the settings name."""
    folder = tmp_path / "suites"
    shutil.copytree(root / "data" / "expectations", folder)
    monkeypatch.setenv("PHOTOFLUX_EXPECTATIONS_DIR", str(folder))
    return folder


def test_an_edited_suite_changes_the_verdict_and_no_code(suites: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    """What `photoflux validate` says of good photos of 800 px, before and after somebody tightens a bound in the file."""
    (tmp_path / "photos").mkdir()
    for name, data in good(8).items():
        (tmp_path / "photos" / name).write_bytes(data)
    command = ["validate", "--photos", str(tmp_path / "photos")]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("OK")
    file = suites / "photos.json"
    file.write_text(file.read_text().replace('{"$PARAMETER": "short_side_min_px"}', "900"))
    assert main(command) == 1
    said = capsys.readouterr().out
    assert said.startswith("REJECT")
    assert "800 px on its short side, 900 are needed" in said
    file.write_text(file.read_text().replace('"expect_column_values_to_be_in_set"', '"expect_nothing"'))
    assert main(command) == 2
    assert "photos.json: expectation 1, expect_nothing, is broken" in capsys.readouterr().err


def test_a_set_that_only_its_suite_rejects_is_told_in_its_words(suites: Path, tmp_path: Path):
    photos = imported(tmp_path, good(5))
    file = suites / "photo_set.json"
    content = json.loads(file.read_text())
    content["expectations"].append(
        {
            "type": "expect_column_values_to_be_between",
            "kwargs": {"column": "backgrounds", "min_value": 9},
            "severity": "critical",
            "meta": {"message": "{backgrounds} backgrounds, this project needs {low}"},
        }
    )
    file.write_text(json.dumps(content))
    with pytest.raises(
        ValidationFailed, match=r"holiday: \d backgrounds, this project needs 9; change the set, or the suite"
    ):
        run(tmp_path, photos)
    assert not (tmp_path / "validated.tar").exists()
    assert json.loads((tmp_path / "expectations.json").read_text())["verdict"] == "reject"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (good(1), ["only 1 of 1", "5 are needed", "add at least 4"]),
        ({"a.jpg": b"text"}, ["only 0 of 1", "a.jpg: not a photo"]),
        ({**good(4), "cut.jpg": half(encoded(photo(9)))}, ["only 4 of 5", "cut.jpg: truncated", "add at least 1"]),
        ({**good(4), "bomb.png": bomb()}, ["bomb.png: too many pixels"]),
        ({**good(4), "moving.webp": animation()}, ["moving.webp: animated"]),
        ({f"{i}.png": encoded(photo(1), "PNG", compress_level=i) for i in range(6)}, ["only 1 of 6", "same as"]),
    ],
    ids=["one", "text", "truncated", "bomb", "animated", "duplicates"],
)  # fmt: skip
def test_an_unusable_set_ends_in_one_sentence(files: dict[str, bytes], words: list[str], tmp_path: Path):
    with pytest.raises(ValidationFailed) as caught:
        run(tmp_path, imported(tmp_path, files))
    sentence = str(caught.value)
    assert sentence.startswith("holiday: ")
    assert "\n" not in sentence
    for word in words:
        assert word in sentence
    assert not (tmp_path / "validated.tar").exists()
    assert "REJECT" in (tmp_path / "report.html").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == PAGES


def test_a_long_list_of_reasons_is_cut(tmp_path: Path):
    with pytest.raises(ValidationFailed, match="3 more"):
        run(tmp_path, imported(tmp_path, {f"{i}.jpg": b"text" for i in range(9)}))


def test_large_photos_are_stored_reduced_and_names_stay_apart(tmp_path: Path):
    files = good(4) | {"wide.jpg": encoded(photo(8, size=(1400, 1000))), "wide.png": encoded(photo(9), "PNG")}
    run(tmp_path, imported(tmp_path, files), stored_side_px=512)
    manifest = read_manifest(tmp_path / "validated.tar")
    names = {entry["source"]: entry["file"] for entry in manifest["photos"]}
    assert len(set(names.values())) == 6
    assert names["wide.jpg"] == "images/wide.png"
    with tarfile.open(tmp_path / "validated.tar") as tar:
        stored = Image.open(io.BytesIO(tar.extractfile("images/wide.png").read()))
    assert stored.size == (717, 512)


def test_a_folder_is_judged_without_an_artifact(tmp_path: Path):
    for name, data in (good(5) | {"x.jpg": b"text", "notes.txt": b"no photo"}).items():
        (tmp_path / name).write_bytes(data)
    verdict = validate.validate_folder(tmp_path, params=PARAMS)
    assert json.loads(json.dumps(verdict)) == verdict
    assert [p["file"] for p in verdict["photos"]] == [*(f"{i:02}.jpg" for i in range(5)), "x.jpg"]
    assert (verdict["verdict"], verdict["photos"][-1]["status"]) == ("warn", "reject")


def test_what_was_left_out_is_told_with_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture):
    """In the report, in the verdict on a folder and on the terminal, by name and kind."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in (good(5) | {"x.bmp": encoded(photo(9), "BMP"), "y.nef": b"II*\0"}).items():
        (folder / name).write_bytes(data)
    said = (
        "Left out, being no JPEG, PNG, TIFF, WebP, HEIC or AVIF: x.bmp (a BMP), y.nef (a camera's raw file): "
        "export as JPEG what is a photo."
    )
    assert validate.validate_folder(folder, params=PARAMS)["advice"][-1] == said
    assert main(["validate", "--photos", str(folder)]) == 0
    assert said in capsys.readouterr().out
    left_out = {"x.bmp": "a BMP", "y.nef": "a camera's raw file"}
    run(tmp_path, imported(tmp_path, good(5), left_out=left_out))
    assert read_manifest(tmp_path / "validated.tar")["validation"]["advice"][-1] == said
    assert "x.bmp (a BMP)" in (tmp_path / "report.html").read_text()


def test_heic_photos_are_validated_like_any_other(tmp_path: Path):
    files = {name.replace("jpg", "HEIC"): heic(photo(i, size=(600, 560))) for i, name in enumerate(good(5))}
    run(tmp_path, imported(tmp_path, files, captions={"02.HEIC": "a  red\x00 mug"}))
    manifest = read_manifest(tmp_path / "validated.tar")
    assert [(entry["facts"]["format"], entry["facts"]["had_gps"]) for entry in manifest["photos"]] == [
        ("HEIF", True)
    ] * 5
    assert manifest["captions"] == {"images/02.png": "a red mug"}
    with tarfile.open(tmp_path / "validated.tar") as tar:
        for member in tar:
            assert b"SecretMaker" not in tar.extractfile(member).read()


def heic(picture: Image.Image) -> bytes:
    """As a phone writes it, with where it was taken and by what."""
    exif = Image.Exif()
    exif[0x010F] = "SecretMaker"
    exif.get_ifd(0x8825)[2] = (52.0, 30.0, 0.0)
    return heifs.container([heifs.picture(np.asarray(picture) / 255, chroma=420), heifs.exif(exif.tobytes())])


def test_folders_without_photos_are_named(tmp_path: Path):
    (tmp_path / "notes.md").write_text("words")
    with pytest.raises(InputError, match="holds no photos"):
        validate.validate_folder(tmp_path, params=PARAMS)
    with pytest.raises(InputError, match="no such folder"):
        validate.validate_folder(tmp_path / "nowhere", params=PARAMS)


def test_nothing_is_left_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    photos = imported(tmp_path, good(5))
    monkeypatch.setattr(validate, "write_tar", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path, photos)
    assert sorted(p.name for p in tmp_path.iterdir()) == PAGES
