"""The engine over HTTP, and the workers' side of a generation, with a real engine on a tiny base."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
import uvicorn
from PIL import Image

from api.accounts.tokens import Capability
from api.images import engine as engine_app
from api.images.engine_client import Cancelled, EngineClient, EngineRequest
from api.images.generator import ImageGenerator
from api.records.tables import GeneratedImage, Generation
from api.settings import ApiSettings
from photoflux.flux.loading import load_pipeline
from photoflux.flux.spec import BaseSpec
from photoflux.images import provenance_of
from photoflux.manifest import digest
from photoflux.serving.engine import Engine
from tests.api.people import Person, Site, is_problem
from tests.api.routes.test_generations import ask
from tests.serving.conftest import DenoiseSteps, fetch, key_of, make_artifact, spec  # noqa: F401

PROMPT = "a photo of sks dog"


@pytest.fixture(scope="module")
def served_engine(site: Site, spec: BaseSpec) -> Iterator[tuple[str, Engine]]:  # noqa: F811
    """Address of an engine that trusts the site, and the engine itself."""
    fetcher = engine_app.fetcher(site.objects, spec)
    is_erased = site.objects.keyring.is_erased
    engine = Engine(load_pipeline(spec, device="cpu"), spec=spec, fetch=fetcher, is_erased=is_erased, waiting=4)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = engine_app.make_app(ApiSettings(), engine=engine, checker=site.service.tokens)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}", engine
    server.should_exit = True
    thread.join()


@pytest.fixture
def http(served_engine: tuple[str, Engine]) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=served_engine[0], timeout=60) as client:
        yield client


@pytest.fixture
def steps(served_engine: tuple[str, Engine]) -> Iterator[DenoiseSteps]:
    """The engine's denoise steps, which go on as they are told."""
    found = DenoiseSteps(served_engine[1].pipe.transformer)
    yield found
    found.go_on()
    found._hook.remove()
    until = time.monotonic() + 60
    while (served_engine[1].current or len(served_engine[1].queue)) and time.monotonic() < until:
        time.sleep(0.01)


@pytest.fixture
def client(site: Site, served_engine: tuple[str, Engine]) -> Iterator[EngineClient]:
    client = EngineClient(served_engine[0], site.service.tokens)
    yield client
    client.close()


@pytest.fixture
def subject(ada: Person, make_artifact: Callable[[int], Path]) -> str:  # noqa: F811
    artifact = make_artifact(1)
    return ada.subject_with_model(adapter=artifact.read_bytes(), sha256=digest(artifact))


@pytest.fixture
def generator(site: Site, client: EngineClient) -> ImageGenerator:
    service = site.service
    return ImageGenerator(
        service.records, service.objects, client, service.audit_log, service.renderer, service.moderator
    )


def asked(site: Site, person: Person, subject: str, **more: object) -> dict[str, object]:
    """A call for one picture of a subject's model."""
    model = person.get("/api/models", params={"subject": subject}).json()["items"][0]
    capability = site.service.tokens.capability_token(Capability(person.id, model["adapter_sha256"]))
    one = {"model": model["id"], "adapter_sha256": model["adapter_sha256"], "prompt": PROMPT, "seed": 3}
    return {"instances": [one | more], "parameters": {"capability": capability}}


def test_health_and_a_picture(site: Site, ada: Person, subject: str, http: httpx2.Client):
    assert http.get("/health").status_code == 200
    answer = http.post("/predict", json=asked(site, ada, subject))
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["predictions"]) == 1


def test_an_engine_of_one_machine_is_reached_by_no_other_name(http: httpx2.Client):
    """A page of somewhere else whose name was made to mean this machine cannot ask it."""
    for name in ("photos.example", "127.0.0.1.photos.example"):
        for method, path in (("POST", "/predict"), ("POST", "/forget"), ("GET", "/metrics")):
            assert http.request(method, path, headers={"Host": name}).status_code == 421
    assert http.get("/health", headers={"Host": "photos.example"}).status_code == 200  # whoever watches asks by address


@pytest.mark.parametrize("wrong", ["none", "access", "foreign", "other-adapter", "altered"])
def test_nothing_without_a_capability_for_this_very_adapter(
    site: Site, ada: Person, bob: Person, subject: str, http: httpx2.Client, wrong: str
):
    call = asked(site, ada, subject)
    tokens, sha256 = site.service.tokens, call["instances"][0]["adapter_sha256"]  # type: ignore[index]
    capability = {
        "none": "",
        "access": ada.token,
        "foreign": tokens.capability_token(Capability(bob.id, sha256)),
        "other-adapter": tokens.capability_token(Capability(ada.id, "1" * 64)),
        "altered": tokens.capability_token(Capability(ada.id, sha256))[:-4] + "AAAA",
    }[wrong]
    answer = http.post("/predict", json=call | {"parameters": {"capability": capability}})
    if wrong == "foreign":
        is_problem(answer, 404, "model-missing")  # bob has no such model: ada's is never looked for
    else:
        is_problem(answer, 401, "unauthorized")


@pytest.mark.parametrize("more", [{"seed": -1}, {"prompt": ""}, {"style": "oil"}, {"model": "../x"}, {"extra": 1}])
def test_what_is_no_call_is_refused(
    site: Site, ada: Person, subject: str, http: httpx2.Client, more: dict[str, object]
):
    is_problem(http.post("/predict", json=asked(site, ada, subject, **more)), 422, "invalid")


def test_an_adapter_that_is_another_than_recorded_is_never_drawn_with(
    site: Site,
    ada: Person,
    http: httpx2.Client,
    make_artifact: Callable[[int], Path],  # noqa: F811
):
    swapped = ada.subject_with_model(adapter=make_artifact(2).read_bytes(), sha256=digest(make_artifact(1)))
    is_problem(http.post("/predict", json=asked(site, ada, swapped)), 422, "invalid")


def test_a_full_line_says_when_to_come_back(
    site: Site,
    ada: Person,
    subject: str,
    http: httpx2.Client,
    served_engine: tuple[str, Engine],
    monkeypatch: pytest.MonkeyPatch,
):
    engine, go = served_engine[1], threading.Event()
    draw = engine._generate
    monkeypatch.setattr(engine, "_generate", lambda *a, **k: go.wait(30) and draw(*a, **k))
    call = asked(site, ada, subject)
    call["instances"] = call["instances"] * 8  # type: ignore[operator]
    answer = http.post("/predict", json=call)
    is_problem(answer, 429, "busy")
    assert int(answer.headers["retry-after"]) >= 1
    go.set()
    monkeypatch.undo()
    until = time.monotonic() + 30
    while (engine.current or len(engine.queue)) and time.monotonic() < until:
        time.sleep(0.01)
    assert http.post("/predict", json=asked(site, ada, subject)).status_code == 200


def wanted(person: Person, subject: str, *, seeds: int = 1) -> EngineRequest:
    """Pictures of a subject's model."""
    model = person.get("/api/models", params={"subject": subject}).json()["items"][0]
    return EngineRequest(person.id, model["id"], model["adapter_sha256"], PROMPT, list(range(seeds)), "none")


def test_a_call_is_broken_off_when_nobody_wants_its_pictures(
    ada: Person,
    subject: str,
    client: EngineClient,
    steps: DenoiseSteps,
    spec: BaseSpec,  # noqa: F811
):
    """Not once they are drawn: the engine ends with the denoise step that is under way, and draws for the next person."""
    still = threading.Event()
    still.set()
    with ThreadPoolExecutor(1) as pool:
        drawn = pool.submit(client.generate, wanted(ada, subject, seeds=4), is_wanted=still.is_set)
        steps.wait_for(1)
        steps.allow(1)
        still.clear()
        try:
            with pytest.raises(Cancelled):
                drawn.result(20)
        finally:
            time.sleep(1.0)  # for the engine to notice, ten times what that takes
            had_begun = steps.begun
            steps.go_on()
    assert len(client.generate(wanted(ada, subject), is_wanted=lambda: True)) == 1
    assert steps.begun == had_begun + spec.steps


def test_the_engine_notices_a_client_that_is_gone(
    site: Site, ada: Person, subject: str, http: httpx2.Client, steps: DenoiseSteps, served_engine: tuple[str, Engine]
):
    with pytest.raises(httpx2.ReadTimeout):
        http.post("/predict", json=asked(site, ada, subject), timeout=0.5)
    steps.wait_for(1)
    request = served_engine[1].current
    assert request is not None
    assert request.cancelled.wait(20)


class Answering(ThreadingHTTPServer):
    """An engine that answers as a test says; counts connections."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None]) -> None:
        self.connections = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                with suppress(OSError):  # the client breaks off
                    answer(self)

            def log_message(self, *_: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)

    def get_request(self) -> tuple[socket.socket, object]:
        self.connections += 1
        return super().get_request()


@contextmanager
def answering(site: Site, answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[tuple[EngineClient, Answering]]:
    with Answering(answer) as server:
        server.daemon_threads, server.block_on_close = True, False
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        client = EngineClient(f"http://127.0.0.1:{server.server_port}", site.service.tokens)
        try:
            yield client, server
        finally:
            client.close()
            server.shutdown()
            thread.join()


ONE = EngineRequest("ada", "model", "0" * 64, PROMPT, [1], "none")


def test_calls_share_a_connection_and_closing_ends_the_clients_thread(site: Site):
    body = json.dumps({"predictions": [{"image": base64.b64encode(b"a picture").decode()}]}).encode()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    before = set(threading.enumerate())
    with answering(site, answer) as (client, server):
        for _ in range(3):
            assert client.generate(ONE, is_wanted=lambda: True) == [b"a picture"]
        client.forget("ada")
        assert server.connections == 1
    assert not {thread for thread in set(threading.enumerate()) - before if thread.name == "engine-client"}


def test_an_engine_that_drips_its_answer_is_given_up(site: Site, monkeypatch: pytest.MonkeyPatch):
    """Each byte comes in time, the answer does not."""
    monkeypatch.setattr("api.images.engine_client.ANSWER_S", 0.5, raising=False)
    monkeypatch.setattr("api.images.engine_client.PATIENCE_S", 1.0)
    monkeypatch.setattr("api.images.engine_client.FORGET_S", 1.0)
    ended = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "1000000")
        handler.end_headers()
        while not ended.wait(0.05):
            handler.wfile.write(b" ")

    with answering(site, answer) as (client, _), ThreadPoolExecutor(1) as pool:
        try:
            with pytest.raises(Cancelled):
                pool.submit(client.generate, ONE, is_wanted=lambda: True).result(20)
            with pytest.raises(httpx2.HTTPError):
                client.forget("ada")
        finally:
            ended.set()


def test_an_answer_without_end_is_not_read_to_its_end(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("api.images.engine_client.IMAGE_BYTES", 1 << 20, raising=False)
    monkeypatch.setattr("api.images.engine_client.PATIENCE_S", 1.0)
    sent, ended = [0], threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        sent[0] = 0
        while not ended.is_set() and sent[0] < 1 << 30:
            sent[0] += handler.wfile.write(b" " * (1 << 16))

    with answering(site, answer) as (client, _), ThreadPoolExecutor(1) as pool:
        try:
            with pytest.raises(Cancelled):
                pool.submit(client.generate, ONE, is_wanted=lambda: True).result(30)
        finally:
            ended.set()
    assert sent[0] < 64 << 20


def test_what_is_no_longer_wanted_is_not_waited_for_between_calls(site: Site):
    """A busy engine may ask to come back later than anybody waits."""
    still = threading.Event()
    still.set()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(503)
        handler.send_header("retry-after", "Fri, 31 Dec 2100 23:59:59 GMT")
        handler.send_header("content-length", "0")
        handler.end_headers()
        still.clear()

    with answering(site, answer) as (client, _), pytest.raises(Cancelled):
        client.generate(ONE, is_wanted=still.is_set)


@pytest.mark.parametrize("path", ["/predict", "/forget"])
def test_a_body_larger_than_any_call_is_refused(http: httpx2.Client, path: str):
    is_problem(http.post(path, json={"capability": "x" * 2_000_000}), 413, "too-large")
    is_problem(http.post(path, content=iter([b"x" * 100_000] * 20)), 413, "too-large")


def test_an_erased_owners_adapter_is_not_drawn_with(
    site: Site,
    subject: str,
    ada: Person,
    http: httpx2.Client,
    monkeypatch: pytest.MonkeyPatch,
    served_engine: tuple[str, Engine],
):
    """Though their capability still holds for a minute, and nobody told the engine."""
    monkeypatch.setattr("photoflux.serving.engine.ERASURE_CHECK_S", 0.0)
    call = asked(site, ada, subject)
    assert http.post("/predict", json=call).status_code == 200
    site.service.keyring.erase(ada.id)
    is_problem(http.post("/predict", json=call), 404, "model-missing")
    assert ada.id not in served_engine[1].host.owners() | served_engine[1].device.owners()


def test_forgetting_empties_the_pools(
    site: Site, ada: Person, subject: str, http: httpx2.Client, served_engine: tuple[str, Engine], client: EngineClient
):
    http.post("/predict", json=asked(site, ada, subject))
    engine = served_engine[1]
    assert any(key.owner == ada.id for key in engine.host._adapters)
    client.forget(ada.id)
    assert not any(key.owner == ada.id for key in engine.host._adapters)


def test_a_generation_is_drawn_sealed_and_shown(
    site: Site, ada: Person, subject: str, generator: ImageGenerator, tmp_path: Path
):
    result = ask(ada, subject, n=2, seed=5, size="96x64", format="png", style="pencil", prompt=PROMPT)
    assert generator.generate(result["id"]) == "succeeded"
    shown = ada.get(f"/api/results/{result['id']}").json()
    assert [(image["position"], image["seed"]) for image in shown["images"]] == [(0, 5), (1, 6)]
    for image in shown["images"]:
        content = ada.get(image["url"]).content
        opened = Image.open(io.BytesIO(content))
        assert (opened.size, opened.format) == ((96, 64), "PNG")
        (tmp_path / "p.png").write_bytes(content)
        said = provenance_of(tmp_path / "p.png")
        assert said["digitalSourceType"].endswith("trainedAlgorithmicMedia")
        assert said["seed"] == str(image["seed"])
        assert ada.id not in str(said)
        assert PROMPT.encode() not in content
        (name,) = site.objects.ids(ada.id, "image", prefix=f"{result['id']}.{image['position']}.")
        assert b"PNG" not in site.objects.store.get(f"images/{ada.id}/{name}")
    assert generator.generate(result["id"]) == "succeeded"
    with site.service.records.reading() as session:
        assert session.query(GeneratedImage).where(GeneratedImage.generation_id == result["id"]).count() == 2


def test_the_same_seed_draws_the_same_picture_again(ada: Person, subject: str, generator: ImageGenerator):
    results = [ask(ada, subject, seed=9, prompt=PROMPT)["id"] for _ in range(2)]
    for result in results:
        generator.generate(result)
    first, second = (Image.open(io.BytesIO(ada.get(f"/api/media/images/{r}.0").content)) for r in results)
    assert first.tobytes() == second.tobytes()  # the files differ: each is signed at its own time


def test_a_kill_after_storing_leaves_no_double(
    site: Site, ada: Person, subject: str, generator: ImageGenerator, monkeypatch: pytest.MonkeyPatch
):
    result = ask(ada, subject, prompt=PROMPT)["id"]
    put = type(site.objects).put

    def killed(*args: object) -> None:
        put(*args)  # type: ignore[arg-type]
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(type(site.objects), "put", killed)
        generator.generate(result)
    assert ada.row(Generation, result).state == "running"
    assert generator.generate(result) == "succeeded"
    (left,) = site.objects.ids(ada.id, "image")
    assert left.startswith(f"{result}.0.")


def test_what_was_deleted_meanwhile_is_not_kept(
    site: Site, ada: Person, subject: str, generator: ImageGenerator, monkeypatch: pytest.MonkeyPatch
):
    result = ask(ada, subject, prompt=PROMPT)["id"]
    drawn = ImageGenerator._generated

    def delete_then_draw(self: ImageGenerator, *args: object) -> list[bytes]:
        images = drawn(self, *args)  # type: ignore[arg-type]
        ada.ask("DELETE", f"/api/results/{result}")
        return images

    monkeypatch.setattr(ImageGenerator, "_generated", delete_then_draw)
    assert generator.generate(result) == "cancelled"
    assert site.objects.ids(ada.id, "image") == []


def test_without_its_model_a_generation_fails_with_a_word(ada: Person, generator: ImageGenerator):
    subject = ada.subject_with_model(adapter=b"not an adapter")
    result = ask(ada, subject)["id"]
    assert generator.generate(result) == "failed"
    assert ada.get(f"/api/results/{result}").json()["error"]


def test_an_engine_that_is_away_is_waited_for(site: Site, ada: Person, subject: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("api.images.engine_client.PATIENCE_S", 1.0)
    service = site.service
    away = ImageGenerator(
        service.records,
        service.objects,
        EngineClient("http://127.0.0.1:9", service.tokens),
        service.audit_log,
        service.renderer,
        service.moderator,
    )
    result = ask(ada, subject)["id"]
    started = time.monotonic()
    assert away.generate(result) == "failed"
    assert time.monotonic() - started > 0.9
    failure = ada.get(f"/api/results/{result}").json()["error"]
    assert failure["code"] == "too-late"
    assert "could not be drawn in time" in failure["message"]
