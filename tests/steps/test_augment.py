"""augment: validated photos in; a captioned training set at the base's resolution out, held-out photos first."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from photoflux.errors import InputError
from photoflux.manifest import digest, read_manifest, write_tar
from photoflux.params import AugmentParams
from photoflux.photos.inspect import fingerprint
from photoflux.report import sealed_beside
from photoflux.steps import augment
from photoflux.vault import committed, opened
from tests.photos.pictures import encoded, photo

SPEC = """
name: tiny
folder: nowhere
resolution_px: 64
steps: 4
guidance_scale: 0.0
text_length: 16
dtype: float32
lora_targets: []
class_nouns: [dog, mug, person]
"""


@pytest.fixture
def params(tmp_path: Path) -> AugmentParams:
    (tmp_path / "tiny.yaml").write_text(SPEC)
    return AugmentParams(base=str(tmp_path / "tiny.yaml"))


def validated(
    folder: Path,
    pictures: list[Image.Image],
    *,
    noun: str = "mug",
    captions: dict | None = None,
    consent: str = "sample",
) -> Path:
    entries = [
        {"file": f"images/{i:02}.png", "source": f"{i:02}.jpg", "sha256": fingerprint(picture).sha256}
        for i, picture in enumerate(pictures)
    ]
    manifest = {
        "subject": {"id": "thing", "class_noun": noun, "trigger": "sks", "consent": consent},
        "validation": {"score": 80},
        "photos": entries,
        "captions": captions or {},
    }
    path = folder / "validated.tar"
    files = {entry["file"]: encoded(picture, "PNG") for entry, picture in zip(entries, pictures, strict=True)}
    write_tar(path, files=files, manifest=manifest)
    return path


def pictures(count: int) -> list[Image.Image]:
    return [photo(i, size=(260, 200)) for i in range(count)]


def test_a_persons_pictures_and_names_are_on_the_sealed_page_alone(tmp_path: Path, params: AugmentParams):
    """The open page is one that a console can show, and has the numbers."""
    source = validated(tmp_path, pictures(5), consent="own")
    plain = source.rename(tmp_path / "plain.tar")
    with committed(source, key="vault://ada/run-1") as sealed:
        plain.rename(sealed)
    outputs = {"dataset": tmp_path / "dataset.tar", "report": tmp_path / "report.html"}
    augment.run(source, **outputs, params=params, key="vault://ada/run-1")
    page = outputs["report"].read_text()
    assert "5 photos became 12 training pictures; 1 held out" in page
    assert "00.jpg" not in page and "data:image" not in page
    with opened(sealed_beside(outputs["report"]), key="vault://ada/run-1") as full:
        assert "00.jpg" in full.read_text() and "data:image" in full.read_text()


def run(folder: Path, source: Path, params: AugmentParams) -> dict:
    result = augment.run(source, dataset=folder / "dataset.tar", report=folder / "report.html", params=params)
    assert result.report == folder / "report.html"
    return read_manifest(folder / "dataset.tar")


def split(manifest: dict) -> dict[str, set[str]]:
    return {name: {i["source"] for i in manifest["items"] if i["split"] == name} for name in ("train", "heldout")}


@pytest.mark.parametrize(("count", "held"), [(3, 1), (5, 1), (7, 1), (8, 2), (12, 2)])
def test_photos_are_held_out_before_anything_is_varied(count: int, held: int, tmp_path: Path, params: AugmentParams):
    manifest = run(tmp_path, validated(tmp_path, pictures(count)), params)
    sides = split(manifest)
    assert len(sides["heldout"]) == held
    assert len(sides["train"]) == count - held
    assert not sides["heldout"] & sides["train"]
    assert all(not item["transforms"]["variant"] for item in manifest["items"] if item["split"] == "heldout")


def test_every_item_is_a_picture_at_the_resolution_of_the_base(tmp_path: Path, params: AugmentParams):
    manifest = run(tmp_path, validated(tmp_path, pictures(5)), params)
    assert manifest["base"] == {"name": "tiny", "resolution_px": 64}
    with tarfile.open(tmp_path / "dataset.tar") as tar:
        names = set(tar.getnames()) - {"manifest.json"}
        assert names == {item["file"] for item in manifest["items"]}
        for name in names:
            picture = Image.open(io.BytesIO(tar.extractfile(name).read()))
            assert (picture.size, picture.mode, picture.info) == ((64, 64), "RGB", {})


@pytest.mark.parametrize("variants", [0, 1, 2])
def test_originals_are_at_least_half_and_samples_at_most_four_times(
    variants: int, tmp_path: Path, params: AugmentParams
):
    manifest = run(tmp_path, validated(tmp_path, pictures(6)), params.replace(variants=variants))
    train = [item for item in manifest["items"] if item["split"] == "train"]
    originals = [item for item in train if not item["transforms"]["variant"]]
    assert len(originals) * 2 >= len(train)
    assert len(train) <= 4 * 5
    assert len({item["file"] for item in train}) == 5 * (1 + variants)


def test_the_same_seed_gives_the_same_dataset_and_another_another(tmp_path: Path, params: AugmentParams):
    source = validated(tmp_path, pictures(6))
    run(tmp_path, source, params)
    first = digest(tmp_path / "dataset.tar")
    run(tmp_path, source, params)
    assert digest(tmp_path / "dataset.tar") == first
    drawn = {frozenset(split(run(tmp_path, source, params.replace(seed=seed)))["heldout"]) for seed in range(8)}
    assert len(drawn) > 1


def test_photos_of_one_moment_stay_on_one_side(tmp_path: Path, params: AugmentParams):
    burst = [photo(0, size=(300, 300)).crop((dx, 0, 260 + dx, 260)) for dx in (0, 16)]
    source = validated(tmp_path, burst + pictures(5)[1:])
    for seed in range(6):
        held = split(run(tmp_path, source, params.replace(seed=seed)))["heldout"]
        assert held.isdisjoint({"00.jpg", "01.jpg"})
    both = split(run(tmp_path, source, params.replace(heldout=2)))["heldout"]
    assert len(both & {"00.jpg", "01.jpg"}) != 1


def test_too_few_photos_to_hold_any_out(tmp_path: Path, params: AugmentParams):
    with pytest.raises(InputError, match="too few to train on"):
        run(tmp_path, validated(tmp_path, pictures(2)), params)
    same = [photo(0, size=(200, 200)), photo(0, size=(200, 200)).rotate(1), photo(0, size=(200, 200)).rotate(2)]
    with pytest.raises(InputError, match="add photos with other views"):
        run(tmp_path, validated(tmp_path, same), params)
    assert not (tmp_path / "dataset.tar").exists()


def test_captions_are_written_or_described(tmp_path: Path, params: AugmentParams):
    captions = {f"images/{i:02}.png": "a photo of a red mug in the snow" for i in range(3)}
    manifest = run(tmp_path, validated(tmp_path, pictures(6), captions=captions), params)
    told = {item["source"]: item["caption"] for item in manifest["items"]}
    assert told["00.jpg"] == "a photo of sks mug in the snow"
    assert told["05.jpg"].startswith("a photo of sks mug with a")


def test_people_keep_their_side_and_their_colours(tmp_path: Path, params: AugmentParams):
    for noun, relit in (("person", False), ("mug", True)):
        manifest = run(tmp_path, validated(tmp_path, pictures(6), noun=noun), params)
        variants = [item["transforms"] for item in manifest["items"] if item["transforms"]["variant"]]
        assert not any(made["mirrored"] for made in variants)
        assert any(made["brightness"] != 1 for made in variants) is relit


def test_a_class_noun_the_base_does_not_know(tmp_path: Path, params: AugmentParams):
    with pytest.raises(InputError, match=r"class noun 'giraffe'.*one of dog, mug, person"):
        run(tmp_path, validated(tmp_path, pictures(5), noun="giraffe"), params)


def test_no_photo_is_lost_to_anothers_variant(tmp_path: Path, params: AugmentParams):
    """Photos may be called whatever a variant could be: `p1-v1.jpg` beside `p1.jpg` was one file with its first variant."""
    names = ["p1", "p1-v1", "p1-v2", "v1", "p1.v1", "train", "p1-v1-v1", "v1-p1"]
    source = validated(tmp_path, pictures(len(names)))
    manifest = read_manifest(source)
    with tarfile.open(source) as tar:
        files = {f"images/{name}.png": tar.extractfile(f"images/{i:02}.png").read() for i, name in enumerate(names)}
    for entry, name in zip(manifest["photos"], names, strict=True):
        entry |= {"file": f"images/{name}.png", "source": f"{name}.jpg"}
    write_tar(source, files=files, manifest=manifest)
    made = run(tmp_path, source, params)
    sides = split(made)
    assert sides["train"] | sides["heldout"] == {f"{name}.jpg" for name in names}
    owners = {}
    for item in made["items"]:
        assert owners.setdefault(item["file"], (item["source"], item["transforms"]["variant"])) == (
            item["source"],
            item["transforms"]["variant"],
        )
    assert len(owners) == 3 * len(sides["train"]) + len(sides["heldout"])
    with tarfile.open(tmp_path / "dataset.tar") as tar:
        assert set(tar.getnames()) - {"manifest.json"} == set(owners)


def test_a_resolution_of_ones_own(tmp_path: Path, params: AugmentParams):
    manifest = run(tmp_path, validated(tmp_path, pictures(5)), params.replace(resolution_px=96))
    assert manifest["base"]["resolution_px"] == 96
    with tarfile.open(tmp_path / "dataset.tar") as tar:
        original = next(i for i in manifest["items"] if not i["transforms"]["variant"])
        assert Image.open(io.BytesIO(tar.extractfile(original["file"]).read())).size == (96, 96)


def test_the_original_is_the_square_of_the_photo(tmp_path: Path, params: AugmentParams):
    squares = [photo(i, size=(64, 64)) for i in range(5)]
    manifest = run(tmp_path, validated(tmp_path, squares), params)
    with tarfile.open(tmp_path / "dataset.tar") as tar:
        for item in manifest["items"]:
            if not item["transforms"]["variant"]:
                made = np.asarray(Image.open(io.BytesIO(tar.extractfile(item["file"]).read())))
                assert np.array_equal(made, np.asarray(squares[int(item["source"][:2])]))


def test_the_report_shows_both_sides(tmp_path: Path, params: AugmentParams):
    run(tmp_path, validated(tmp_path, pictures(5)), params)
    html = (tmp_path / "report.html").read_text()
    assert "Held out: never seen in training" in html
    assert html.count("data:image/") == 2
    assert "turned" in html
    assert "http" not in html
