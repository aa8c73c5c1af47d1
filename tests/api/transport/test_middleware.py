"""Bodies that stall, uploads that wait their turn, and documents that are not sent twice; on a real server."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import httpx2
import pytest
import uvicorn
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from api import main
from api.accounts.tokens import AccessTokenClaims
from api.settings import ApiSettings
from api.transport import middleware
from benchmarks.postgres import free_port
from tests.api.conftest import innermost
from tests.api.people import Person, Site, is_problem

SECONDS = 1.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Site]]:
    """A server with little patience that takes one upload at a time."""
    folder = tmp_path_factory.mktemp("middleware")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHOTOFLUX_STATE_DIR", str(folder))
        patch.setattr(middleware, "WAIT_S", 0.5)
        settings = ApiSettings(public_url=f"http://127.0.0.1:{free_port()}", body_s=SECONDS, uploads_at_once=1)
        app = main.make_app(settings)
        server = uvicorn.Server(
            uvicorn.Config(app, host="127.0.0.1", port=urlsplit(settings.public_url).port or 0, log_level="warning")
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        with httpx2.Client(base_url=settings.public_url, timeout=30) as client:
            yield settings.public_url, Site(client, innermost(app).state.service, folder)
        server.should_exit = True
        thread.join()


@pytest.fixture(autouse=True)
def own_state() -> None:
    """The state is the module's."""


@pytest.fixture
def ada(served: tuple[str, Site]) -> Person:
    return served[1].person()


def send_slowly(base: str, head: str, *, body: bytes = b"") -> bytes:
    """What the server answers to a request of which it never gets the end."""
    address = urlsplit(base)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(head.encode() + b"\r\n" + body)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def test_a_body_that_stalls_is_a_timeout(served: tuple[str, Site], ada: Person):
    base, _ = served
    head = (
        f"POST /api/subjects HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {ada.token}\r\n"
        "Content-Type: application/json\r\n"
        "Content-Length: 1000\r\n"
    )
    started = time.monotonic()
    answer = send_slowly(base, head, body=b'{"class_noun"')
    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"].endswith("/timeout")
    assert time.monotonic() - started >= SECONDS * 0.9


def test_an_upload_that_stalls_ends_and_makes_room(served: tuple[str, Site], ada: Person):
    base, _ = served
    head = (
        f"POST /api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {ada.token}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n"
    )
    begun = b'--b\r\nContent-Disposition: form-data; name="photos"; filename="a.jpg"\r\n\r\nxx'
    assert send_slowly(base, head, body=begun).startswith(b"HTTP/1.1 408")
    assert ada.upload(ada.subject(), {"a.jpg": b"no photo"}).status_code == 201


@pytest.mark.parametrize(("length", "stalls"), [(10, False), (10, True), (100_000, True)])
def test_an_upload_of_which_nothing_arrives_loses_its_place_long_before_a_slow_one(
    monkeypatch: pytest.MonkeyPatch, length: int, stalls: bool
):
    monkeypatch.setattr(middleware, "IDLE_S", 0.3)
    pieces = iter([True] * 9 + [False])  # longer than is waited for without a byte, all together
    silent = stalls and length == 10  # of a longer body, what comes is too little

    async def receive() -> Message:
        await asyncio.sleep(60 if silent else 0.05)
        return {"type": "http.request", "body": b"x", "more_body": next(pieces)}

    async def take(_: Scope, receive: Receive, __: Send) -> None:
        while (await receive())["more_body"]:
            pass

    async def send(_: Message) -> None:
        raise AssertionError

    body_limits = middleware.BodyLimits(
        take, seconds=50, uploads=1, check=lambda _: cast(AccessTokenClaims, SimpleNamespace(user_id="x"))
    )
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/upload",
        "headers": [(b"authorization", b"Bearer x"), (b"content-length", b"%d" % length)],
    }
    with pytest.raises(HTTPException, match="408") if stalls else nullcontext():
        asyncio.run(body_limits(scope, receive, send))


def test_of_too_many_uploads_some_are_sent_away(served: tuple[str, Site], ada: Person):
    """One holds the only place and stalls; another waits for half its patience and is told to come back."""
    base, _ = served
    head = (
        f"POST /api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {ada.token}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n"
    )
    subject = ada.subject()
    holder = threading.Thread(target=send_slowly, args=(base, head))
    holder.start()
    time.sleep(0.2)
    answer = ada.upload(subject, {"a.jpg": b"no photo"})
    holder.join()
    is_problem(answer, 503, "busy")
    assert answer.headers["retry-after"] == "5"


def test_nobody_who_is_not_signed_in_uploads_a_byte(served: tuple[str, Site]):
    """The answer comes before the body has."""
    base, _ = served
    for token in ("", "Authorization: Bearer x.y.z\r\n", "Authorization: Basic YTpi\r\n"):
        head = (
            f"POST /api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\n{token}Content-Type: multipart/form-data; boundary=b\r\n"
        )
        answer = send_slowly(base, f"{head}Content-Length: 100000\r\n")
        assert answer.startswith(b"HTTP/1.1 401"), answer


KINDS = (
    "multipart/form-data; boundary=b", "Multipart/form-data; boundary=b", "multipart/form-data ;boundary=b", "image/jpeg",
    "application/x-www-form-urlencoded", "application/json", "",
)  # fmt: skip


def opened(base: str) -> socket.socket:
    address = urlsplit(base)
    return socket.create_connection((address.hostname, address.port), timeout=20)


def answer_to_a_flood(base: str, line: str, *, kind: str, chunked: bool, size: int) -> bytes:
    """What is answered to an anonymous body of which `size` bytes come and the rest never: who waits for more cannot answer."""
    length = "Transfer-Encoding: chunked" if chunked else "Content-Length: 100000000"
    head = f"{line} HTTP/1.1\r\nHost: 127.0.0.1\r\n{length}\r\n" + (f"Content-Type: {kind}\r\n" if kind else "")
    part = b'--b\r\nContent-Disposition: form-data; name="photos"; filename="a.jpg"\r\n\r\n'
    piece = 8192
    with opened(base) as connection:
        connection.sendall(head.encode() + b"\r\n")
        sent = 0
        try:
            while sent < size:
                body = (part if sent == 0 else b"").ljust(piece, b"x")
                connection.sendall(b"%x\r\n%s\r\n" % (piece, body) if chunked else body)
                sent += piece
            return connection.recv(65536)
        except ConnectionError:  # it was answered, and closed, while this was sending
            return b"closed"


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", ["/api/upload", "/api/%75pload", "/api/upload?x=1", "//api/upload", "/api/upload/"])
def test_nobody_unknown_has_an_upload_held_whatever_they_call_it(
    served: tuple[str, Site], path: str, kind: str, chunked: bool
):
    answer = answer_to_a_flood(served[0], f"POST {path}", kind=kind, chunked=chunked, size=main.BODY_BYTES * 3)
    assert answer == b"closed" or int(answer[9:12]) in (307, 401, 404, 413), answer


@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "chunked"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "line",
    [
        "PUT /api/upload", "HEAD /api/upload", "DELETE /api/upload", "PATCH /api/upload", "POST /api/complaints",
        "POST /api/complaints/", "POST /provider/authorize", "POST /provider/token", "PUT /provider/token",
        "POST /api/auth/refresh", "POST /api/subjects", "POST /nowhere",
    ],
)  # fmt: skip
def test_of_nobody_unknown_more_than_a_small_body_is_held(
    served: tuple[str, Site], line: str, kind: str, chunked: bool
):
    answer = answer_to_a_flood(served[0], line, kind=kind, chunked=chunked, size=main.BODY_BYTES * 3)
    assert answer == b"closed" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 307")), answer


@pytest.mark.parametrize("kind", ["Multipart/form-data", "MULTIPART/FORM-DATA", "multipart/Form-Data "])
def test_a_form_is_a_form_in_any_letters(ada: Person, kind: str):
    body = (
        f'--B\r\nContent-Disposition: form-data; name="subject"\r\n\r\n{ada.subject()}\r\n'
        '--B\r\nContent-Disposition: form-data; name="photos"; filename="a.jpg"\r\n\r\nno photo\r\n--B--\r\n'
    )
    answer = ada.post("/api/upload", content=body.encode(), headers={"Content-Type": f"{kind}; boundary=B"})
    assert answer.status_code == 201, answer.text


def test_who_has_signed_out_uploads_nothing(served: tuple[str, Site], ada: Person):
    """Though the access token is good for some minutes more."""
    base, site = served
    site.service.login_sessions.end_all(ada.id)
    head = (
        f"POST /api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {ada.token}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n"
    )
    assert send_slowly(base, head).startswith(b"HTTP/1.1 401")


def test_photos_stay_in_memory_until_they_are_sealed():
    from starlette.formparsers import MultiPartParser

    from api.routes.subjects import UPLOAD_BYTES

    assert MultiPartParser.spool_max_size >= UPLOAD_BYTES


def test_a_document_that_is_known_is_not_sent_again(ada: Person):
    subject = ada.subject()
    first = ada.get(f"/api/subjects/{subject}")
    etag = first.headers["etag"]
    assert etag.startswith('W/"')
    same = ada.get(f"/api/subjects/{subject}", headers={"If-None-Match": etag})
    assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", etag)
    assert same.headers["cache-control"] == "private, no-store"
    ada.upload(subject, {"a.jpg": b"no photo"})
    other = ada.get("/api/subjects", headers={"If-None-Match": etag})
    assert other.status_code == 200
    assert other.headers["etag"] != etag
    assert "etag" not in ada.get("/api/subjects/" + "0" * 32).headers


def test_what_is_streamed_passes_as_it_comes(ada: Person):
    run = ada.post("/api/runs", json={"subject": ada.subject_with_photos(5)}).json()["id"]
    ada.post(f"/api/runs/{run}/cancel")
    answer = ada.get(f"/api/runs/{run}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "event: ended" in answer.text


@pytest.mark.parametrize("tls", [False, True])
def test_strict_transport_over_tls_alone(tls: bool):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(middleware.SecurityHeaders(app, tls=tls)({"type": "http"}, None, send))  # type: ignore[arg-type]
    assert ("strict-transport-security" in {name.decode() for name, _ in sent[0]["headers"]}) is tls
