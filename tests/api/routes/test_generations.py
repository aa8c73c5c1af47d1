"""Pictures over HTTP: asking, reading, deleting, saying what one thinks; the drawing itself is the workers'."""

from __future__ import annotations

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

from api.images.rendering import ImageRenderer
from api.records.tables import Feedback, GeneratedImage, Generation, new_id, now_ms
from tests.api.people import Person, Site, is_problem
from tests.api.routes.test_runs import queued_job


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
        object_id = f"{result}.0.{new_id()}"
        session.add(GeneratedImage(position=0, object_id=object_id, stored_bytes=len(buffer.getvalue()), **facts))
    site.objects.put(person.id, "image", object_id, buffer.getvalue())
    return buffer.getvalue()


def test_a_subject_with_a_model_is_drawn_at_once(site: Site, ada: Person, subject: str):
    result = ask(ada, subject, n=3, seed=7, size="256x512", format="webp", style="pencil")
    assert (result["state"], result["run"], result["images"]) == ("queued", None, [])
    assert result["model"] is not None
    assert ada.get(f"/api/results/{result['id']}").json() == result
    queued = queued_job(site, result["id"])
    assert queued is not None
    assert (queued["name"], queued["queue_name"]) == ("generate_images", "generations")
    assert b"space" not in ada.row(Generation, result["id"]).prompt
    assert "space" not in str(queued)


def test_a_subject_without_a_model_is_fine_tuned_first(site: Site, ada: Person):
    subject = ada.subject_with_photos(5)
    first, second = ask(ada, subject), ask(ada, subject, seed=1)
    assert first["run"] == second["run"]
    assert queued_job(site, first["run"]) is not None
    assert queued_job(site, first["id"]) is None
    assert ada.get(f"/api/runs/{first['run']}").json()["state"] == "queued"


def test_waiting_gives_the_pictures_when_they_are_there(site: Site, ada: Person, subject: str):
    result = ask(ada, subject)["id"]
    assert ada.get(f"/api/results/{result}", params={"wait": 1}).json()["state"] == "queued"
    data = finish(site, ada, result)
    shown = ada.get(f"/api/results/{result}", params={"wait": 30}).json()
    (image,) = shown["images"]
    answer = ada.get(image["url"])
    assert (answer.content, answer.headers["content-type"]) == (data, "image/png")
    assert answer.headers["cache-control"] == "private, no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    again = ada.get(image["url"], headers={"If-None-Match": answer.headers["etag"]})
    assert again.status_code == 304


@pytest.mark.parametrize("fmt", ["png", "jpeg", "webp", "tiff"])
def test_a_picture_comes_in_the_size_and_format_that_is_asked_for(site: Site, ada: Person, subject: str, fmt: str):
    result = ask(ada, subject)["id"]
    finish(site, ada, result)
    answer = ada.get(f"/api/media/images/{result}.0", params={"size": "100x50", "format": fmt, "download": True})
    image = Image.open(io.BytesIO(answer.content))
    assert (image.size, image.format.lower()) == ((100, 50), fmt)
    assert answer.headers["content-disposition"].startswith("attachment; filename=")
    assert b"space" not in answer.content


def test_pictures_load_with_the_cookie_alone_and_only_there(site: Site, ada: Person, bob: Person, subject: str):
    result = ask(ada, subject)["id"]
    finish(site, ada, result)
    claims = site.service.tokens.verify_access(ada.token)
    cookie = {"Cookie": f"photoflux_media={site.service.tokens.media_token(claims)}"}
    path = f"/api/media/images/{result}.0"
    assert site.client.get(path, headers=cookie).status_code == 200
    is_problem(site.client.get(f"/api/results/{result}", headers=cookie), 401, "unauthorized")
    is_problem(site.client.get(path), 401, "unauthorized")
    is_problem(site.client.get(path, headers={"Cookie": f"photoflux_media={ada.token}"}), 401, "unauthorized")
    theirs = site.service.tokens.media_token(site.service.tokens.verify_access(bob.token))
    is_problem(site.client.get(path, headers={"Cookie": f"photoflux_media={theirs}"}), 404, "not-found")
    media = {"Authorization": f"Bearer {site.service.tokens.media_token(claims)}"}
    is_problem(site.client.get(f"/api/results/{result}", headers=media), 401, "unauthorized")


@pytest.mark.parametrize("size", ["4096x4096", "2049x16", "16x2049", "8x8"])
def test_no_picture_is_made_larger_than_one_that_is_asked_for(site: Site, ada: Person, subject: str, size: str):
    result = ask(ada, subject)["id"]
    finish(site, ada, result)
    is_problem(ada.get(f"/api/media/images/{result}.0", params={"size": size}), 422, "invalid")
    assert ada.get(f"/api/media/images/{result}.0", params={"size": "2048x16"}).status_code == 200


def test_pictures_are_converted_one_after_another(
    site: Site, ada: Person, bob: Person, subject: str, monkeypatch: pytest.MonkeyPatch
):
    results, under_way, most = [], 0, 0
    for person, its in ((ada, subject), (bob, bob.subject_with_model())):
        results.append((person, ask(person, its)["id"]))
        finish(site, *results[-1])
    convert = ImageRenderer.convert

    def converted(*args: Any, **how: Any) -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        time.sleep(0.02)
        try:
            return convert(*args, **how)
        finally:
            under_way -= 1

    monkeypatch.setattr(ImageRenderer, "convert", converted)
    with ThreadPoolExecutor(8) as pool:
        asked = [
            pool.submit(person.get, f"/api/media/images/{result}.0", params={"size": f"{side}x{side}"})
            for side in range(16, 20)
            for person, result in results
        ]
        assert {one.result().status_code for one in asked} == {200}
    assert most == 1


def test_a_conversion_that_has_no_turn_in_time_is_sent_away(
    site: Site, ada: Person, bob: Person, subject: str, monkeypatch: pytest.MonkeyPatch
):
    """While another one takes long; what is kept as it is wanted needs no turn."""
    mine, theirs = ask(ada, subject)["id"], ask(bob, bob.subject_with_model())["id"]
    finish(site, ada, mine)
    data = finish(site, bob, theirs)
    begun, go_on, convert = threading.Event(), threading.Event(), ImageRenderer.convert

    def converted(*args: Any, **how: Any) -> bytes:
        if how["size"] == "16x16":
            begun.set()
            go_on.wait(30)
        return convert(*args, **how)

    monkeypatch.setattr(ImageRenderer, "convert", converted)
    monkeypatch.setattr(site.service.renderer.conversions, "wait_s", 0.05)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ada.get, f"/api/media/images/{mine}.0", params={"size": "16x16"})
        begun.wait(30)
        second = bob.get(f"/api/media/images/{theirs}.0", params={"format": "jpeg"})
        kept = bob.get(f"/api/media/images/{theirs}.0")
        go_on.set()
        assert first.result().status_code == 200
    is_problem(second, 503, "busy")
    assert int(second.headers["retry-after"]) > 0
    assert kept.content == data
    assert bob.get(f"/api/media/images/{theirs}.0", params={"format": "jpeg"}).status_code == 200


def test_what_is_loaded_with_the_cookie_is_counted_like_anything_else(site: Site, ada: Person, bob: Person):
    """Pictures, previews, reports, cards and exports; each is counted though it is not there."""
    cookie = {
        "Cookie": f"photoflux_media={site.service.tokens.media_token(site.service.tokens.verify_access(ada.token))}"
    }
    nothing = "0" * 32
    paths = [
        f"/api/media/{one}"
        for one in (
            f"images/{nothing}.0",
            f"photos/{nothing}",
            f"reports/{nothing}/gate",
            f"cards/{nothing}",
            f"exports/{nothing}",
        )
    ]
    for path in paths:
        is_problem(site.client.get(path, headers=cookie), 404, "not-found")
    for _ in range(890):
        site.service.rate_limiter.check("request", ada.id)
    answers = [site.client.get(paths[n % len(paths)], headers=cookie).status_code for n in range(10)]
    assert answers[-1] == 429
    assert site.client.get("/api/auth/me", headers={"Authorization": f"Bearer {ada.token}"}).status_code == 429
    assert bob.get("/api/auth/me").status_code == 200


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
    assert site.objects.ids(ada.id, "image") == []
    is_problem(ada.get(f"/api/media/images/{result}.0"), 404, "not-found")


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
