from __future__ import annotations

import io
import itertools
from dataclasses import astuple

import numpy as np
import pytest
from PIL import Image

from photoflux.__main__ import main
from photoflux.errors import InputError
from photoflux.params import ValidateParams
from photoflux.photos.inspect import fingerprint, likeness
from photoflux.photos.table import photo_table
from photoflux.photos.verdict import judge
from photoflux.pocket import photosets, world

PARAMS = ValidateParams()
SMALL = {"seed": 4, "size_px": 96}


@pytest.fixture(scope="module")
def subject() -> world.Subject:
    return photosets.unseen_subjects(1, seed=4, kind="mug")[0]


@pytest.fixture(scope="module")
def spoilt_set(subject: world.Subject, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The photo table of eight full-size photos and of spoilt copies of the first."""
    folder = tmp_path_factory.mktemp("mug")
    paths = photosets.write_photo_set(folder, subject, n=8, seed=4, spoilt=True)
    return photo_table(((path.name, path.read_bytes()) for path in paths), params=PARAMS)


def photos_only(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["file"][:2].isdigit()]


def test_the_photos_satisfy_every_production_rule(spoilt_set: list[dict]):
    photos = [row | {"duplicate_of": ""} for row in photos_only(spoilt_set)]
    verdict = judge(photos, params=PARAMS)
    assert verdict.verdict == "ok", [photo["reasons"] for photo in verdict.photos]
    assert min(row["sharpness"] for row in photos) >= 250
    assert {row["short_side_px"] for row in photos} == {1024}


def test_no_photo_repeats_another(spoilt_set: list[dict]):
    repeats = {row["file"]: row["duplicate_of"] for row in photos_only(spoilt_set)}
    del repeats["01.jpg"]  # its spoilt copies are judged elsewhere
    assert repeats == dict.fromkeys(repeats, "")


def test_perceptual_hashes_of_photos_are_far_apart(subject: world.Subject):
    prints = [fingerprint(image) for image, _ in photosets.photo_set(subject, n=8, seed=4, size_px=256)]
    distances = [likeness(a, b).phash for a, b in itertools.combinations(prints, 2)]
    assert min(distances) > PARAMS.duplicate_phash == 10


def test_every_spoilt_copy_is_noticed(spoilt_set: list[dict]):
    verdict = judge(spoilt_set, params=PARAMS)
    told = {photo["file"]: [reason["code"] for reason in photo["reasons"]] for photo in verdict.photos}
    assert "blurry" in told["blurred.jpg"]
    assert "duplicate" in told["cropped.jpg"]
    assert "duplicate" in told["mirrored.jpg"]
    assert "too_dark" in told["dark.jpg"]
    assert "too_small" in told["tiny.jpg"]
    assert told["truncated.jpg"] and not next(r for r in spoilt_set if r["file"] == "truncated.jpg")["decoded"]


def test_photos_vary_in_everything_but_the_subject_and_its_side(subject: world.Subject):
    scenes = [scene for _, scene in photosets.photo_set(subject, n=10, **SMALL)]
    assert {scene.subject for scene in scenes} == {subject}
    assert {(scene.style, scene.facing_left) for scene in scenes} == {("photo", True)}
    assert sorted(scene.place for scene in scenes) == sorted(world.PLACES)
    for values in zip(*((scene.scale, scene.x, scene.y, scene.light) for scene in scenes), strict=True):
        assert len(set(values)) == 10
    scales = sorted(scene.scale for scene in scenes)
    assert scales[0] < 0.87 and scales[-1] > 1.09, "from far to near"


def test_a_scene_tells_what_its_photo_shows(subject: world.Subject):
    from photoflux.pocket.render import render

    for image, scene in photosets.photo_set(subject, n=2, **SMALL):
        assert image.tobytes() == render(scene, size_px=96).tobytes()


def test_equal_arguments_give_equal_files(subject: world.Subject, tmp_path):
    first, again, other = (
        [path.read_bytes() for path in photosets.write_photo_set(tmp_path / name, subject, n=3, seed=seed, size_px=96)]
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again != other
    assert sorted(path.name for path in (tmp_path / "a").glob("*.jpg")) == ["01.jpg", "02.jpg", "03.jpg"]
    assert (tmp_path / "a" / "01.txt").read_text().startswith(f"a photo of a {subject.kind} ")


def test_a_set_can_be_drawn_again_but_not_into_another(subject: world.Subject, tmp_path):
    photosets.write_photo_set(tmp_path, subject, n=3, **SMALL)
    photosets.write_photo_set(tmp_path, subject, n=3, **SMALL)
    with pytest.raises(InputError, match=r"already holds 03\.jpg"):
        photosets.write_photo_set(tmp_path, subject, n=2, **SMALL)


@pytest.mark.parametrize(
    ("wrong", "said"), [({"n": 0}, "number of photos is 0"), ({"size_px": 9}, "size in pixels is 9")]
)
def test_impossible_sets_are_refused(subject: world.Subject, wrong: dict, said: str):
    with pytest.raises(InputError, match=said):
        photosets.photo_set(subject, **{"n": 2, "seed": 0} | wrong)


def test_unseen_subjects_share_their_looks_with_nothing_of_pretraining():
    def looks(of: world.Subject) -> tuple[str, ...]:
        return astuple(of)[:4]

    unseen = {looks(one) for one in photosets.unseen_subjects(100, seed=1)}
    seen = {looks(world.sample_subject(np.random.default_rng(seed))) for seed in range(1000)}
    assert len(unseen) > 80 and not unseen & seen


def test_an_unseen_subject_does_not_depend_on_how_many_are_asked_for():
    assert photosets.unseen_subjects(2, seed=1) == photosets.unseen_subjects(5, seed=1)[:2]
    assert {one.kind for one in photosets.unseen_subjects(5, seed=1, kind="car")} == {"car"}
    assert len({one.proportions for one in photosets.unseen_people(5, seed=1)}) == 5


@pytest.mark.parametrize(
    "fixed", [{"kind": "horse"}, {"kind": "dog", "colour": "red", "accent": "green", "pattern": "plain"}]
)
def test_looks_that_pretraining_has_seen_are_refused(fixed: dict[str, str]):
    with pytest.raises(InputError, match="fix fewer looks"):
        photosets.unseen_subjects(1, seed=0, **fixed)


def test_a_mirrored_photo_shows_its_mark_on_the_other_side():
    subject = photosets.unseen_subjects(1, seed=1, kind="dog", pattern="plain", mark_colour="purple")[0]
    image, scene = photosets.photo_set(subject, n=1, seed=1, size_px=128)[0]

    def mark_at(picture: Image.Image) -> float:
        away = np.abs(np.asarray(picture).astype(int) - subject.mark_rgb).max(axis=2)
        return float(np.nonzero(away < 40)[1].mean()) / 127

    assert mark_at(photosets.mirror(image)) == pytest.approx(1 - mark_at(image), abs=0.01)
    assert abs(mark_at(image) - 0.5 - scene.x) > 0.02, "off the middle of the subject"


def test_defects_do_what_they_say():
    image = Image.effect_noise((200, 100), 60).convert("RGB")
    assert np.asarray(photosets.blur(image, sigma_px=3)).std() < np.asarray(image).std() / 4
    assert photosets.crop(image, margin=0.1).size == (160, 80)
    red, green, blue = np.asarray(photosets.tint(image), dtype=float).mean(axis=(0, 1)) / np.asarray(image).mean()
    assert red > green > blue and green == pytest.approx(1)
    data = photosets.jpeg(image)
    assert Image.open(io.BytesIO(data)).format == "JPEG"
    assert (
        data.startswith(photosets.truncate(data, share=0.25))
        and len(photosets.truncate(data, share=0.25)) == len(data) // 4
    )


@pytest.mark.parametrize("kind", ["boat", "person"])
def test_the_command_draws_a_set_and_says_what_of(kind: str, tmp_path, capsys):
    assert main(["samples", "--out", str(tmp_path / "set"), "--kind", kind, "--photos", "2", "--size-px", "96"]) == 0
    assert len(list((tmp_path / "set").glob("*.jpg"))) == 2
    said = capsys.readouterr().out
    assert "2 photos, the first a photo of a" in said


def test_the_command_answers_a_wrong_folder_with_one_sentence(tmp_path, capsys):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    assert main(["samples", "--out", str(tmp_path), "--photos", "1", "--size-px", "96"]) == 2
    assert "already holds holiday.jpg; give a new or empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
