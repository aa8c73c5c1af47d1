"""Pictures that are neither taken nor given out, and that nothing passes which could not be looked at."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from api.images.moderation import (
    KnownImages,
    ModerationUnavailable,
    Moderator,
    SafeSearch,
    UnsafeImage,
    main,
    open_moderator,
)
from api.settings import ApiSettings
from photoflux.errors import InputError
from tests.api.people import SAMPLES, Person, Site, is_problem
from tests.cloud import grpc_served, unary

PHOTO = SAMPLES[0].read_bytes()


def saved(image: Image.Image, fmt: str = "JPEG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=fmt, **more)
    return buffer.getvalue()


@pytest.fixture
def known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The first sample photo as a known picture."""
    assert main([str(SAMPLES[0])]) == 0
    file = tmp_path / "known.txt"
    file.write_text(f"# known pictures\n{capsys.readouterr().out.strip()}  # one\n\n")
    return file


def test_a_known_picture_is_known_again_after_changes(known: Path):
    check, image = KnownImages(known), Image.open(io.BytesIO(PHOTO)).convert("RGB")
    changed = [
        PHOTO,
        saved(image, quality=40),
        saved(image.resize((300, 300 * image.height // image.width))),
        saved(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        saved(image, "PNG"),
    ]
    for file in changed:
        with pytest.raises(UnsafeImage):
            check(file)


@pytest.mark.parametrize("other", SAMPLES[1:], ids=lambda file: file.stem)
def test_other_pictures_pass(known: Path, other: Path):
    KnownImages(known)(other.read_bytes())


@pytest.mark.parametrize("content", ["xyz", "12", "0" * 18, "0" * 15])
def test_a_file_that_is_no_list_of_hashes_is_refused(tmp_path: Path, content: str):
    (tmp_path / "known.txt").write_text(content)
    with pytest.raises(InputError, match="16 hexadecimal digits"):
        KnownImages(tmp_path / "known.txt")


def test_an_empty_list_knows_nothing(tmp_path: Path):
    (tmp_path / "known.txt").write_text("# nothing yet\n")
    KnownImages(tmp_path / "known.txt")(PHOTO)


def test_what_cannot_be_looked_at_does_not_pass():
    def broken(_: bytes) -> None:
        raise ZeroDivisionError

    with pytest.raises(ModerationUnavailable, match="try again"):
        Moderator([broken]).check(PHOTO)
    with pytest.raises(ModerationUnavailable):
        Moderator([lambda _: None, broken]).check(PHOTO)
    Moderator().check(PHOTO)


class Vision:
    """Safe search of Cloud Vision: says what it is told to."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {"adult": 1, "violence": 1, "racy": 2}
        self.error = 0
        self.images: list[bytes] = []

    def handler(self) -> Any:
        import grpc
        from google.cloud.vision_v1.types import BatchAnnotateImagesRequest, BatchAnnotateImagesResponse

        def annotate(request: BatchAnnotateImagesRequest, _: Any) -> BatchAnnotateImagesResponse:
            self.images += [one.image.content for one in request.requests]
            answer: dict[str, Any] = {"safe_search_annotation": self.seen}
            if self.error:
                answer["error"] = {"code": self.error, "message": "no"}
            return BatchAnnotateImagesResponse(responses=[answer])

        methods = {"BatchAnnotateImages": unary(annotate, BatchAnnotateImagesRequest, BatchAnnotateImagesResponse)}
        return grpc.method_handlers_generic_handler("google.cloud.vision.v1.ImageAnnotator", methods)


@pytest.fixture
def vision() -> Iterator[tuple[Vision, SafeSearch]]:
    """The real client, connected to a server of its protocol in this process."""
    from google.cloud.vision_v1 import ImageAnnotatorClient
    from google.cloud.vision_v1.services.image_annotator.transports import ImageAnnotatorGrpcTransport

    service = Vision()
    with grpc_served(service.handler()) as channel:
        yield service, SafeSearch(ImageAnnotatorClient(transport=ImageAnnotatorGrpcTransport(channel=channel)))


def test_the_classifier_passes_what_is_harmless(vision: tuple[Vision, SafeSearch]):
    service, check = vision
    check(PHOTO)
    assert service.images == [PHOTO]


@pytest.mark.parametrize(("name", "value"), [("adult", 4), ("adult", 5), ("violence", 4), ("racy", 5)])
def test_the_classifier_refuses_what_is_likely_harmful(vision: tuple[Vision, SafeSearch], name: str, value: int):
    service, check = vision
    service.seen[name] = value
    with pytest.raises(UnsafeImage):
        check(PHOTO)


def test_a_classifier_without_an_answer_passes_nothing(vision: tuple[Vision, SafeSearch]):
    service, check = vision
    service.error = 7
    with pytest.raises(ModerationUnavailable):
        check(PHOTO)
    service.error, service.seen = 0, {"adult": 0, "violence": 1, "racy": 1}
    with pytest.raises(ModerationUnavailable):
        check(PHOTO)


def test_the_settings_say_who_looks(known: Path):
    assert open_moderator(ApiSettings()).checks == []
    checks = open_moderator(ApiSettings(blocked_hashes=str(known), image_check="vision")).checks
    assert [type(one).__name__ for one in checks] == ["KnownImages", "SafeSearch"]


def test_a_photo_that_is_not_taken_is_not_kept(site: Site, ada: Person, known: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(site.service.__dict__, "moderator", Moderator([KnownImages(known)]))
    subject = ada.subject()
    files = {"one.jpg": PHOTO, "two.jpg": SAMPLES[1].read_bytes()}
    first, second = ada.upload(subject, files).json()["photos"]
    assert (first["id"], first["status"], first["reasons"][0]["code"]) == (None, "reject", "unsafe")
    assert second["id"] is not None
    assert ada.get(f"/api/subjects/{subject}").json()["photos"] == 1


def test_photos_that_cannot_be_looked_at_are_not_taken(site: Site, ada: Person, monkeypatch: pytest.MonkeyPatch):
    def away(_: bytes) -> None:
        raise ConnectionError

    monkeypatch.setitem(site.service.__dict__, "moderator", Moderator([away]))
    subject = ada.subject()
    is_problem(ada.upload(subject, {"one.jpg": PHOTO}), 503, "unchecked")
    assert ada.get(f"/api/subjects/{subject}").json()["photos"] == 0
