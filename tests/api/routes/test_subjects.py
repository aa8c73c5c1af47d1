"""Subjects and uploads: what is kept, what is said of it, and what is nobody else's business."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import func, select

from api.records.tables import Photo, Subject
from benchmarks import heifs
from photoflux.photos.table import likenesses
from photoflux.vault.blobs import BlobMissing
from tests.api.people import PAIRS, SAMPLES, Person, Site, is_problem


def encoded(image: Image.Image, fmt: str, **more: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=fmt, **more)
    return buffer.getvalue()


def sample(number: int) -> Image.Image:
    return Image.open(SAMPLES[number]).convert("RGB")


def stored(site: Site, person: Person) -> list[str]:
    return [*site.objects.ids(person.id, "photo"), *site.objects.ids(person.id, "thumbnail")]


def test_a_subject_is_begun_listed_and_deleted(ada: Person):
    subject = ada.subject(name="Rex é 雷克斯")
    shown = ada.get(f"/api/subjects/{subject}").json()
    assert (shown["name"], shown["class_noun"], shown["photos"]) == ("Rex é 雷克斯", "dog", 0)
    assert (shown["trigger"], shown["champion"]) == ("sks", None)
    assert [one["id"] for one in ada.get("/api/subjects").json()["items"]] == [subject]
    assert ada.ask("DELETE", f"/api/subjects/{subject}").status_code == 204
    is_problem(ada.get(f"/api/subjects/{subject}"), 404, "not-found")


def test_names_are_sealed(site: Site, ada: Person):
    row = ada.row(Subject, ada.subject(name="Rexington"))
    assert b"Rexington" not in row.name


@pytest.mark.parametrize(
    "asked",
    [
        {"class_noun": "unicorn", "depicts": "no_person"},
        {"class_noun": "person", "depicts": "no_person"},
        {"class_noun": "dog", "depicts": "me"},
        {"class_noun": "dog", "depicts": "no_person", "name": ""},
        {"class_noun": "dog", "depicts": "no_person", "name": "a\u0000b"},
        {"class_noun": "dog", "depicts": "no_person", "colour": "red"},
        {"class_noun": 7, "depicts": "no_person"},
        {"depicts": "no_person"},
    ],
)
def test_what_is_no_subject_is_refused(ada: Person, asked: dict[str, object]):
    is_problem(ada.post("/api/subjects", json=asked), 422, "invalid")


def test_a_base_that_lists_no_class_nouns_takes_any(site: Site, ada: Person):
    """As flux1-schnell, whose text encoders know every word."""
    listed = site.service.class_nouns
    object.__setattr__(site.service, "class_nouns", ())
    try:
        assert ada.post("/api/subjects", json={"class_noun": "axolotl", "depicts": "no_person"}).status_code == 201
    finally:
        object.__setattr__(site.service, "class_nouns", listed)


def test_nothing_without_agreeing_to_the_terms_and_no_people_without_consent(site: Site):
    eve = site.person(agreed=False)
    refused = eve.post("/api/subjects", json={"class_noun": "dog", "depicts": "no_person"})
    assert "terms" in is_problem(refused, 403, "consent-required")["detail"]
    terms = next(w for w in eve.get("/api/terms").json()["items"] if w["purpose"] == "terms")
    assert eve.post("/api/consents", json={"purpose": "terms", "sha256": terms["sha256"]}).status_code == 201
    assert eve.subject()
    me = eve.post("/api/subjects", json={"class_noun": "person", "depicts": "me"})
    assert "likeness" in is_problem(me, 403, "consent-required")["detail"]


def test_uploads_are_judged_like_in_the_pipeline_and_kept_sealed(site: Site, ada: Person):
    subject = ada.subject()
    tiff = encoded(sample(1), "TIFF")
    files = {
        "one.jpg": SAMPLES[0].read_bytes(),
        "two.tif": tiff,
        "雷.jpg": encoded(sample(2), "JPEG", quality=92),
        "notes.jpg": b"these are notes",
        "cut.jpg": SAMPLES[3].read_bytes()[:9000],
        "small.png": encoded(sample(4).resize((200, 200)), "PNG"),
    }
    answer = ada.upload(subject, files)
    assert answer.status_code == 201, answer.text
    photos = answer.json()["photos"]
    assert [photo["name"] for photo in photos] == list(files)
    assert [photo["status"] for photo in photos] == ["ok", "ok", "ok", "reject", "reject", "reject"]
    assert [photo["reasons"][0]["code"] for photo in photos[3:]] == ["not_a_photo", "truncated", "too_small"]
    assert [photo["id"] is None for photo in photos] == [False, False, False, True, True, False]
    said = answer.json()["set"]
    assert said["verdict"] == "reject"  # three usable photos are too few
    assert any("Add" in text for text in said["advice"])
    assert len(stored(site, ada)) == 2 * 4
    for photo in photos[:3]:
        raw = site.objects.store.get(f"photos/{ada.id}/{photo['id']}")
        assert b"JFIF" not in raw[:4000]
        shown = ada.get(photo["thumbnail"])
        assert shown.headers["content-type"] == "image/jpeg"
        assert max(Image.open(io.BytesIO(shown.content)).size) == 320
        again = ada.get(photo["thumbnail"], headers={"If-None-Match": shown.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_metadata_is_gone(site: Site, ada: Person):
    image, exif = sample(0), Image.Exif()
    exif[0x010E], exif[0x0112] = "canary-description", 6
    data = encoded(image, "JPEG", exif=exif, comment=b"canary-comment", quality=95)
    (photo,) = ada.upload(ada.subject(), {"a.jpg": data}).json()["photos"]
    kept = site.objects.get(ada.id, "photo", photo["id"])
    assert b"canary" not in kept
    assert (photo["width"], photo["height"]) == (image.height, image.width)


def test_the_same_picture_is_kept_once_whatever_file_it_comes_in(site: Site, ada: Person):
    subject = ada.subject()
    first = ada.upload(subject, {"a.png": encoded(sample(0), "PNG")}).json()["photos"][0]
    second = ada.upload(subject, {"b.tiff": encoded(sample(0), "TIFF")}).json()["photos"][0]
    assert first["id"] == second["id"]
    assert len(stored(site, ada)) == 2


def test_a_near_copy_is_named_in_the_set(ada: Person):
    subject = ada.subject_with_photos(5)
    mirrored = sample(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    (photo,) = ada.upload(subject, {"m.jpg": encoded(mirrored, "JPEG", quality=90)}).json()["photos"]
    listed = ada.get(f"/api/subjects/{subject}/photos").json()
    assert len(listed["photos"]) == 6
    codes = {one["id"]: [reason["code"] for reason in one["reasons"]] for one in listed["photos"]}
    assert "duplicate" in [code for found in codes.values() for code in found]
    assert ada.ask("DELETE", f"/api/photos/{photo['id']}").status_code == 204
    after = ada.get(f"/api/subjects/{subject}/photos").json()
    assert [one["status"] for one in after["photos"]] == ["ok"] * 5
    assert after["set"]["verdict"] != "reject"


def test_the_same_key_gives_the_same_answer_and_stores_once(site: Site, ada: Person):
    subject, files = ada.subject(), {"a.jpg": SAMPLES[0].read_bytes()}
    first = ada.upload(subject, files, headers={"Idempotency-Key": "k1"})
    again = ada.upload(subject, files, headers={"Idempotency-Key": "k1"})
    assert (first.status_code, again.json()) == (201, first.json())
    other = ada.upload(subject, {"a.jpg": SAMPLES[1].read_bytes()}, headers={"Idempotency-Key": "k1"})
    is_problem(other, 422, "idempotency-mismatch")
    assert len(stored(site, ada)) == 2


def test_two_at_once_with_one_key_make_one_subject(site: Site, ada: Person):
    def begin(_: int) -> int:
        asked = {"class_noun": "dog", "depicts": "no_person"}
        return ada.post("/api/subjects", json=asked, headers={"Idempotency-Key": "same"}).status_code

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(begin, range(8)))
    assert set(answers) <= {201, 409}
    assert 201 in answers
    with site.service.records.reading() as session:
        mine = select(func.count()).select_from(Subject).where(Subject.user_id == ada.id)
        assert session.scalar(mine) == 1


def test_what_somebody_else_has_does_not_exist(ada: Person, bob: Person):
    subject = ada.subject_with_photos(1)
    (photo,) = ada.get(f"/api/subjects/{subject}/photos").json()["photos"]
    for method, path in (
        ("GET", f"/api/subjects/{subject}"),
        ("DELETE", f"/api/subjects/{subject}"),
        ("GET", f"/api/subjects/{subject}/photos"),
        ("DELETE", f"/api/photos/{photo['id']}"),
        ("GET", photo["thumbnail"]),
    ):
        is_problem(bob.ask(method, path), 404, "not-found")
    is_problem(bob.upload(subject, {"a.jpg": SAMPLES[0].read_bytes()}), 404, "not-found")
    is_problem(bob.post("/api/generate", json={"subject": subject, "prompt": "a dog"}), 404, "not-found")
    is_problem(bob.post("/api/runs", json={"subject": subject}), 404, "not-found")
    assert ada.get(photo["thumbnail"]).status_code == 200


def test_a_hostile_file_costs_its_sender_an_answer_and_nobody_else_anything(ada: Person):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    bomb = encoded(Image.new("L", (12_000, 12_000)), "PNG")
    gif = encoded(Image.fromarray(noise), "GIF", save_all=True, append_images=[Image.fromarray(noise[::-1])])
    both = SAMPLES[0].read_bytes() + b"PK\x03\x04" + bytes(200)
    answer = ada.upload(ada.subject(), {"b.png": bomb, "a.gif": gif, "both.jpg": both, "e.jpg": b""})
    codes = [[r["code"] for r in photo["reasons"]] for photo in answer.json()["photos"]]
    assert codes[:2] == [["too_many_pixels"], ["unsupported_format"]]
    assert codes[2] == []
    assert codes[3][0] in ("not_a_photo", "truncated")


def test_a_file_whose_credentials_lie_elsewhere_asks_for_nothing(site: Site, ada: Person):
    """Whoever uploads a picture would choose an address that this service asks."""
    import socket

    from c2pa import Builder, Context, Settings

    from api.images.credentials import _manifest

    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        sink = io.BytesIO()
        with Context(settings=Settings()) as context, Builder(_manifest("image/jpeg"), context) as builder:
            builder.set_no_embed()
            builder.set_remote_url(f"http://127.0.0.1:{elsewhere.getsockname()[1]}/manifest.c2pa")
            signer = site.service.renderer.credentials._signer
            builder.sign(signer, "image/jpeg", io.BytesIO(SAMPLES[0].read_bytes()), sink)
        (photo,) = ada.upload(ada.subject(), {"a.jpg": sink.getvalue()}).json()["photos"]
        assert photo["status"] == "ok"
        elsewhere.settimeout(0.2)
        with pytest.raises(TimeoutError):
            elsewhere.accept()


def test_what_phones_make_is_taken_without_what_they_say_of_its_owner(site: Site, ada: Person):
    """HEIC and AVIF, whatever their names and brands are; turned as the file says, and without place, maker and credentials."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "canary-maker", 6
    exif.get_ifd(0x8825)[2] = (52.0, 30.0, 0.0)
    picture = heifs.picture(np.asarray(sample(1)) / 255, chroma=420, more=[heifs.irot(3)])
    credentials = heifs.box(b"uuid", bytes.fromhex("d8fec3d61b0e483c92975828877ec481"), b"canary-credentials")
    heic = heifs.container([picture, heifs.exif(exif.tobytes())], major=b"mif1") + credentials
    files = {
        "IMG_1.HEIC": heic,
        "IMG_2.jpg": encoded(sample(2), "AVIF", exif=exif, quality=95),
        "IMG_3.dng": encoded(sample(3), "BMP"),
    }
    photos = ada.upload(ada.subject(), files).json()["photos"]
    assert [photo["status"] for photo in photos] == ["ok", "ok", "reject"]
    assert photos[2]["reasons"] == [
        {"code": "unsupported_format", "message": "a BMP, which cannot be read here: export it as JPEG or PNG"}
    ]
    for photo, number in zip(photos[:2], (1, 2), strict=True):
        kept = site.objects.get(ada.id, "photo", photo["id"])
        assert b"canary" not in kept
        shown = np.asarray(Image.open(io.BytesIO(kept))).astype(int)
        upright = np.rot90(np.asarray(sample(number)), -1).astype(int)
        assert np.abs(shown - upright).mean() < 8


def test_too_many_parts_and_too_much_are_refused(ada: Person):
    subject = ada.subject()
    is_problem(ada.upload(subject, {f"{n}.jpg": b"x" for n in range(1000)}), 400, "bad-request")
    is_problem(ada.upload("nonsense", {"a.jpg": b"x"}), 422, "invalid")
    is_problem(ada.post("/api/upload", data={"subject": subject}), 422, "invalid")
    is_problem(ada.post("/api/subjects", content=b"{" * 70_000), 413, "too-large")


def test_a_failed_upload_leaves_nothing(site: Site, ada: Person, monkeypatch: pytest.MonkeyPatch):
    subject = ada.subject()

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the records are away")

    monkeypatch.setattr(type(site.service.collection), "add", broken)
    is_problem(ada.upload(subject, {"a.jpg": SAMPLES[0].read_bytes()}), 500, "internal")
    assert stored(site, ada) == []
    with site.service.records.reading() as session:
        assert session.scalar(select(func.count()).select_from(Photo).where(Photo.user_id == ada.id)) == 0


def test_deleting_a_subject_deletes_its_pixels(site: Site, ada: Person):
    subject = ada.subject_with_photos(2)
    (first, _) = ada.get(f"/api/subjects/{subject}/photos").json()["photos"]
    ada.ask("DELETE", f"/api/subjects/{subject}")
    assert stored(site, ada) == []
    with pytest.raises(BlobMissing):
        site.objects.get(ada.id, "photo", first["id"])


def test_lists_come_in_pages_that_new_rows_do_not_shift(ada: Person):
    made = [ada.subject() for _ in range(5)]
    first = ada.get("/api/subjects", params={"limit": 2}).json()
    ada.subject()
    second = ada.get("/api/subjects", params={"limit": 2, "cursor": first["next"]}).json()
    third = ada.get("/api/subjects", params={"limit": 2, "cursor": second["next"]}).json()
    listed = [one["id"] for page in (first, second, third) for one in page["items"]]
    assert listed == made[::-1]
    assert third["next"] is None
    for wrong in ("x", "////", "bm9uZQ==", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OmE="):
        is_problem(ada.get("/api/subjects", params={"cursor": wrong}), 422, "invalid")
    is_problem(ada.get("/api/subjects", params={"limit": 101}), 422, "invalid")
    is_problem(ada.get("/api/subjects", params={"limit": 10**30}), 422, "invalid")


def test_photos_are_compared_while_nothing_is_locked(site: Site, ada: Person, monkeypatch: pytest.MonkeyPatch):
    """Forty photos are 780 pairs: others waited five seconds for whoever sent the last. One that comes meanwhile is compared, too."""
    comparing, go_on, submit = threading.Event(), threading.Event(), site.service.intake.processes.submit
    pairs: list[int] = []

    def slow(work: Any, *args: Any, **more: Any) -> Any:
        if work is likenesses:
            pairs.append(len(args[0]))
            comparing.set()
            assert go_on.wait(60)
        return submit(work, *args, **more)

    monkeypatch.setattr(site.service.intake.processes, "submit", slow)
    monkeypatch.setattr("photoflux.photos.table.likeness", None)  # not in this process
    subject, bob = ada.subject(), site.person()
    PAIRS.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ada.upload, subject, {f"{n}.jpg": SAMPLES[n].read_bytes() for n in range(3)})
        assert comparing.wait(60)
        assert bob.post("/api/subjects", json={"class_noun": "dog", "depicts": "no_person"}).status_code == 201
        assert ada.upload(subject, {"alone.jpg": SAMPLES[4].read_bytes()}).status_code == 201
        go_on.set()
        assert first.result().status_code == 201
    assert pairs == [3, 3], "three, and each of them with the one that came meanwhile"
    assert len(ada.get(f"/api/subjects/{subject}/photos").json()["photos"]) == 4
    photo = ada.get(f"/api/subjects/{subject}/photos").json()["photos"][0]["id"]
    assert ada.ask("DELETE", f"/api/photos/{photo}").status_code == 204
    ada.upload(subject, {f"more {n}.jpg": SAMPLES[n].read_bytes() for n in range(6)})
    photo = ada.get(f"/api/subjects/{subject}/photos").json()["photos"][0]["id"]
    ada.ask("DELETE", f"/api/photos/{photo}")
    pairs.clear()
    PAIRS.clear()
    assert ada.post("/api/runs", json={"subject": subject}).status_code == 202
    assert pairs == [10]
