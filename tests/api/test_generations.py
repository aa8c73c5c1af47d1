"""Pictures over HTTP: asking, reading, deleting, saying what one thinks; the drawing itself is the workers'."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from api.db import Feedback, Generation, Picture, now_ms
from tests.api.people import Person, Site, is_problem
from tests.api.test_runs import in_line


@pytest.fixture
def subject(ada: Person) -> str:
    return ada.subject_with_model()


def ask(person: Person, subject: str, **more: Any) -> dict[str, Any]:
    answer = person.post("/api/generate", json={"subject": subject, "prompt": "a photo of sks dog in space", **more})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def finish(site: Site, person: Person, result: str, *, fmt: str = "png") -> bytes:
    """A picture, as a worker leaves it."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(buffer, format=fmt)
    with site.service.records.writing() as session:
        row = session.get_one(Generation, result)
        row.state, row.finished_ms = "succeeded", now_ms()
        facts = {"user_id": person.id, "generation_id": result, "seed": row.seed, "sha256": "ab" * 32}
        session.add(Picture(position=0, stored_bytes=len(buffer.getvalue()), **facts))
    site.objects.put(person.id, "picture", f"{result}.0", buffer.getvalue())
    return buffer.getvalue()


def test_a_subject_with_a_model_is_drawn_at_once(site: Site, ada: Person, subject: str):
    result = ask(ada, subject, n=3, seed=7, size="256x512", format="webp", style="pencil")
    assert (result["state"], result["run"], result["images"]) == ("queued", None, [])
    assert result["model"] is not None
    assert ada.get(f"/api/results/{result['id']}").json() == result
    queued = in_line(site, result["id"])
    assert queued is not None
    assert (queued["name"], queued["queue_name"]) == ("draw", "drawings")
    assert b"space" not in ada.row(Generation, result["id"]).prompt
    assert "space" not in str(queued)


def test_a_subject_without_a_model_is_fine_tuned_first(site: Site, ada: Person):
    subject = ada.subject_with_photos(5)
    first, second = ask(ada, subject), ask(ada, subject, seed=1)
    assert first["run"] == second["run"]
    assert in_line(site, first["run"]) is not None
    assert in_line(site, first["id"]) is None
    assert ada.get(f"/api/runs/{first['run']}").json()["state"] == "queued"


def test_waiting_gives_the_pictures_when_they_are_there(site: Site, ada: Person, subject: str):
    result = ask(ada, subject)["id"]
    assert ada.get(f"/api/results/{result}", params={"wait": 1}).json()["state"] == "queued"
    data = finish(site, ada, result)
    shown = ada.get(f"/api/results/{result}", params={"wait": 30}).json()
    (image,) = shown["images"]
    picture = ada.get(image["url"])
    assert (picture.content, picture.headers["content-type"]) == (data, "image/png")
    assert picture.headers["cache-control"] == "private, no-cache"
    assert picture.headers["x-content-type-options"] == "nosniff"
    again = ada.get(image["url"], headers={"If-None-Match": picture.headers["etag"]})
    assert again.status_code == 304


@pytest.mark.parametrize("fmt", ["png", "jpeg", "webp", "tiff"])
def test_a_picture_comes_in_the_size_and_format_that_is_asked_for(site: Site, ada: Person, subject: str, fmt: str):
    result = ask(ada, subject)["id"]
    finish(site, ada, result)
    picture = ada.get(f"/api/media/pictures/{result}.0", params={"size": "100x50", "format": fmt, "download": True})
    image = Image.open(io.BytesIO(picture.content))
    assert (image.size, image.format.lower()) == ((100, 50), fmt)
    assert picture.headers["content-disposition"].startswith("attachment; filename=")
    assert b"space" not in picture.content


def test_pictures_load_with_the_cookie_alone_and_only_there(site: Site, ada: Person, bob: Person, subject: str):
    result = ask(ada, subject)["id"]
    finish(site, ada, result)
    bearer = site.service.tokens.bearer(ada.token)
    cookie = {"Cookie": f"photoflux_media={site.service.tokens.media(bearer)}"}
    path = f"/api/media/pictures/{result}.0"
    assert site.client.get(path, headers=cookie).status_code == 200
    is_problem(site.client.get(f"/api/results/{result}", headers=cookie), 401, "unauthorized")
    is_problem(site.client.get(path), 401, "unauthorized")
    is_problem(site.client.get(path, headers={"Cookie": f"photoflux_media={ada.token}"}), 401, "unauthorized")
    theirs = site.service.tokens.media(site.service.tokens.bearer(bob.token))
    is_problem(site.client.get(path, headers={"Cookie": f"photoflux_media={theirs}"}), 404, "not-found")
    media = {"Authorization": f"Bearer {site.service.tokens.media(bearer)}"}
    is_problem(site.client.get(f"/api/results/{result}", headers=media), 401, "unauthorized")


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": ""}, {"prompt": "   "}, {"prompt": "x" * 501}, {"prompt": "a\u0007b"}, {"prompt": None},
        {"n": 0}, {"n": 9}, {"n": "2"}, {"n": True}, {"seed": -1}, {"seed": 2**31}, {"seed": 2**64}, {"seed": 1.5},
        {"size": "8x8"}, {"size": "99999x8"}, {"size": "4096x4096"}, {"size": "big"}, {"format": "gif"},
        {"style": "oil"}, {"subject": "x"}, {"more": 1},
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(ada: Person, subject: str, asked: dict[str, Any]):
    is_problem(ada.post("/api/generate", json={"subject": subject, "prompt": "a dog", **asked}), 422, "invalid")


def test_a_lone_surrogate_and_a_long_body_are_refused(ada: Person, subject: str):
    body = b'{"subject": "%s", "prompt": "\\ud800 dog"}' % subject.encode()
    is_problem(ada.post("/api/generate", content=body, headers={"Content-Type": "application/json"}), 422, "invalid")
    is_problem(ada.post("/api/generate", json={"subject": subject, "prompt": "x" * 100_000}), 413, "too-large")


@pytest.mark.parametrize(
    "prompt", ["a photo of sks dog beheading", "a nude woman", "a n\u200bu\u200bd\u200be man", "a n@k3d person"]
)
def test_what_is_not_drawn_is_said_without_repeating_it(ada: Person, subject: str, prompt: str):
    said = is_problem(ada.post("/api/generate", json={"subject": subject, "prompt": prompt}), 422, "unsafe-prompt")
    assert prompt not in str(said)


def test_mixed_scripts_are_words_like_others(ada: Person, subject: str):
    assert ask(ada, subject, prompt="a photo of sks dog на пляже 砂浜で 🐕")["prompt"].endswith("🐕")


def test_so_many_may_wait(site: Site, ada: Person, subject: str):
    for seed in range(site.service.settings.generations_waiting):
        ask(ada, subject, seed=seed)
    answer = ada.post("/api/generate", json={"subject": subject, "prompt": "a dog"})
    is_problem(answer, 429, "quota")
    assert answer.headers["retry-after"]


def test_deleting_takes_the_pictures_along(site: Site, ada: Person, subject: str):
    result = ask(ada, subject)["id"]
    finish(site, ada, result)
    assert ada.ask("DELETE", f"/api/results/{result}").status_code == 204
    assert site.objects.ids(ada.id, "picture") == []
    is_problem(ada.get(f"/api/media/pictures/{result}.0"), 404, "not-found")


def test_feedback_is_sealed_and_replaced(site: Site, ada: Person, bob: Person, subject: str):
    result = ask(ada, subject)["id"]
    for rating in (1, 5):
        said = {"rating": rating, "reason": "likeness", "text": "the ears are canary"}
        assert ada.ask("PUT", f"/api/results/{result}/feedback", json=said).status_code == 204
    with site.service.records.reading() as session:
        (row,) = session.query(Feedback).where(Feedback.generation_id == result)
    assert (row.rating, row.reason) == (5, "likeness")
    assert b"canary" not in row.text
    is_problem(ada.ask("PUT", f"/api/results/{result}/feedback", json={"rating": 6}), 422, "invalid")
    is_problem(bob.ask("PUT", f"/api/results/{result}/feedback", json={"rating": 1}), 404, "not-found")


def test_models_are_shown_promoted_and_rolled_back(ada: Person, bob: Person, subject: str):
    (model,) = ada.get("/api/models", params={"subject": subject}).json()["items"]
    assert (model["champion"], model["verdict"], model["metrics"]) == (True, "PASS", {"identity_gain": 0.8})
    assert ada.post(f"/api/models/{model['id']}/promote").json()["champion"] is True
    assert ada.get(f"/api/models/{model['id']}").json()["number"] == 1
    is_problem(bob.get(f"/api/models/{model['id']}"), 404, "not-found")
    is_problem(bob.post(f"/api/models/{model['id']}/promote"), 404, "not-found")
