"""Connections that say nothing, little or too much, or do not listen: on a real server, over sockets."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from api import main
from api.settings import ApiSettings
from api.transport import connections
from api.transport.connections import ConnectionCounter, Server, allow_open_files, listen, make_server
from benchmarks.postgres import free_port

PATIENCE_S = 20.0
GET = b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = 32 * 1024 * 1024


async def length_of(receive: Any) -> int:
    """Reads a body to its end."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    return length


class Answers:
    """An application with small, large and endless answers, which knows how many of them are under way."""

    def __init__(self) -> None:
        self.under_way, self.sent, self.asked = 0, 0, 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        kind, count, piece = {
            "/small": ("text/plain", 1, b"small"),
            "/medium": ("text/plain", 1, bytes(60_000)),
            "/large": ("image/png", 1, bytes(LARGE)),
            "/export": ("application/zip", LARGE // 65536, bytes(65536)),
            "/address": ("text/plain", 1, scope["client"][0].encode()),
            "/length": ("text/plain", 1, b"%d" % (await length_of(receive) if scope["path"] == "/length" else 0)),
        }[scope["path"]]
        self.asked += 1
        headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % (count * len(piece)))]
        self.under_way += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for number in range(count):
                await send({"type": "http.response.body", "body": piece, "more_body": number + 1 < count})
                self.sent += 1
        finally:
            self.under_way -= 1


@contextmanager
def running(app: Any, *, per_address: int = 0, send_buffer: int = 0, **how: Any) -> Iterator[tuple[int, Server]]:
    """A server of the application on this machine, and its port; `send_buffer`: bytes that the kernel takes from it unread."""
    server = make_server(app, **how)
    (listening,) = listen("0.0.0.0", 0, per_address=per_address)
    if send_buffer:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    port = listening.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield port, server
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that waits a second where it waits for half a minute in earnest."""
    for name in ("HEAD_S", "HANDSHAKE_S", "SEND_S"):
        monkeypatch.setattr(connections, name, 1.0)
    monkeypatch.setattr(connections, "CHECK_TICKS", 1)


@pytest.fixture
def served(patience: None) -> Iterator[tuple[int, Server, Answers]]:
    app = Answers()
    with running(app) as (port, server):
        yield port, server, app


def wait_for(fact: Callable[[], Any]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


def connected(port: int, *, source: str = "127.0.0.1", buffer: int = 0) -> socket.socket:
    """A connection to the server from an address of this machine; `buffer`: bytes that the kernel takes for it unread."""
    one = socket.socket()
    if buffer:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    one.bind((source, 0))
    one.settimeout(PATIENCE_S)
    one.connect(("127.0.0.1", port))
    return one


def drip(one: socket.socket) -> None:
    """Sends a byte again and again until the server has closed the connection."""
    with pytest.raises(ConnectionError):
        for _ in range(600):
            one.sendall(b"x")
            time.sleep(0.05)


def answer_of(one: socket.socket, *, end: bytes) -> bytes:
    """What arrives until it ends like that, or the connection is closed."""
    answer = b""
    while not answer.endswith(end) and (piece := one.recv(65536)):
        answer += piece
    return answer


def ended(one: socket.socket) -> bool:
    """Waits until the server has closed or reset the connection."""
    try:
        while one.recv(65536):
            pass
        return True
    except ConnectionError:
        return True


def is_closed(one: socket.socket) -> bool:
    """Whether the server has closed the connection by now."""
    if not select.select([one], [], [], 0)[0]:
        return False
    try:
        return one.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("begun", [b"", b"G", b"GET /small HTTP/1.1\r\nHost: x\r\n", GET + b"GET /sm"])
def test_a_connection_that_does_not_ask_is_closed(served: tuple[int, Server, Answers], begun: bytes):
    port, server, _ = served
    with connected(port) as one:
        one.sendall(begun)
        assert ended(one)
    wait_for(lambda: not server.server_state.connections)


@pytest.mark.parametrize("first", [b"", GET])
def test_a_head_that_comes_a_byte_at_a_time_is_not_waited_for(served: tuple[int, Server, Answers], first: bytes):
    """The first of a connection, and one that comes after a request that was answered."""
    with connected(served[0]) as one:
        one.sendall(first)
        drip(one)


def test_a_body_that_nobody_reads_any_more_is_not_waited_for(served: tuple[int, Server, Answers]):
    """The answer came before the body had: what is left of it may not drip for ever."""
    with connected(served[0]) as one:
        one.sendall(b"POST /small HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert one.recv(65536).startswith(b"HTTP/1.1 200")
        drip(one)


def test_a_connection_is_kept_for_the_next_request(served: tuple[int, Server, Answers]):
    with connected(served[0]) as one:
        for _ in range(20):
            one.sendall(GET)
            assert answer_of(one, end=b"small").startswith(b"HTTP/1.1 200")
            time.sleep(0.1)


@pytest.mark.parametrize("path", ["/large", "/export"])
def test_who_does_not_take_an_answer_is_let_go_of(served: tuple[int, Server, Answers], path: str):
    """The rest of the answer is not made for nobody, and nothing of it is kept."""
    port, server, app = served
    with connected(port, buffer=4096) as one:
        one.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
        wait_for(lambda: app.under_way == 1)
        wait_for(lambda: app.under_way == 0)
        wait_for(lambda: not server.server_state.connections)


def test_the_rest_of_an_answer_that_was_made_is_not_kept_for_ever(patience: None):
    """The application has ended, a part of its answer is with the transport, and closing waits for it to be taken."""
    with running(Answers(), send_buffer=4096) as (port, server), connected(port, buffer=4096) as one:
        one.sendall(b"GET /medium HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        wait_for(lambda: server.server_state.total_requests == 1)
        assert server.server_state.connections
        wait_for(lambda: not server.server_state.connections)


def test_an_answer_has_an_end_but_for_exports(served: tuple[int, Server, Answers], monkeypatch: pytest.MonkeyPatch):
    """Both are read steadily and slowly."""
    monkeypatch.setattr(connections, "ANSWER_S", 1.0)
    taken = {}
    for path in (b"/large", b"/export"):
        with connected(served[0], buffer=65536) as one:
            one.sendall(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path)
            taken[path] = 0
            with suppress(ConnectionError):
                while taken[path] < LARGE and (piece := one.recv(1 << 20)):
                    taken[path] += len(piece)
                    time.sleep(3.0 * len(piece) / LARGE)  # three seconds for the whole
    assert taken[b"/large"] < LARGE <= taken[b"/export"]


@pytest.mark.slow
def test_the_end_of_an_answer_is_not_put_off_by_the_one_before_it(patience: None, monkeypatch: pytest.MonkeyPatch):
    """The first one's tidying up ends when the second, which was sent ahead, is under way."""
    monkeypatch.setattr(connections, "ANSWER_S", 1.0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            if scope["path"] == "/first":
                await send({"type": "http.response.body", "body": b"1"})
                await asyncio.sleep(0.2)
                return
            for _ in range(int(PATIENCE_S / 0.1)):
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
                await asyncio.sleep(0.1)

    with running(app) as (port, _), connected(port) as one:
        one.sendall(b"".join(b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % path for path in (b"first", b"second")))
        since = time.monotonic()
        with suppress(ConnectionError):
            while one.recv(4096):
                assert time.monotonic() - since < PATIENCE_S / 2


def test_an_answer_knows_that_its_client_is_gone_whatever_was_sent_after_it(patience: None):
    gone: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            gone.append((await receive())["type"])

    with running(app) as (port, _):
        with connected(port) as one:
            one.sendall(GET + GET)
            assert one.recv(4096)
        wait_for(lambda: gone[:1] == ["http.disconnect"])


def test_a_large_answer_arrives_whole(served: tuple[int, Server, Answers]):
    answer = httpx2.get(f"http://127.0.0.1:{served[0]}/large", timeout=PATIENCE_S)
    assert len(answer.content) == LARGE


def test_a_large_answer_is_handed_on_in_pieces():
    body = bytes(range(256)) * 1000
    pieces = list(connections._pieces({"type": "http.response.body", "body": body, "more_body": False}))
    assert b"".join(piece["body"] for piece in pieces) == body
    assert [piece["more_body"] for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert max(len(piece["body"]) for piece in pieces) == connections.PIECE_BYTES


def test_an_address_holds_so_many_connections_and_no_more():
    with running(Answers(), per_address=8) as (port, _), ExitStack() as stack:
        mine, refused = list[socket.socket](), 0
        for _ in range(20):
            try:
                mine.append(stack.enter_context(connected(port, source="127.0.0.2")))
            except ConnectionResetError:  # before connecting was over
                refused += 1
        wait_for(lambda: refused + sum(map(is_closed, mine)) == 12)
        with connected(port, source="127.0.0.3") as other:
            other.sendall(GET)
            assert other.recv(100).startswith(b"HTTP/1.1 200")
        for one in mine:
            one.close()
        wait_for(lambda: answers(port, source="127.0.0.2"))


def answers(port: int, *, source: str) -> bool:
    with suppress(ConnectionError), connected(port, source=source) as one:
        one.sendall(GET)
        return one.recv(100).startswith(b"HTTP/1.1 200")
    return False


def test_only_proxies_that_are_named_are_believed_who_their_client_is():
    head = b"GET /address HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n"
    for proxies, shown in (("", b"127.0.0.1"), ("10.0.0.0/8", b"127.0.0.1"), ("10.0.0.1, 127.0.0.0/8", b"203.0.113.9")):
        with running(Answers(), proxies=proxies) as (port, _), connected(port) as one:
            one.sendall(head)
            assert answer_of(one, end=shown).endswith(b"\r\n" + shown)


@pytest.fixture
def certified(tmp_path: Path) -> dict[str, str]:
    issued = trustme.CA().issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    return {"tls_cert": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}


def test_a_handshake_that_stalls_is_counted_and_ends(patience: None, certified: dict[str, str]):
    with running(Answers(), per_address=4, **certified) as (port, _), ExitStack() as stack:
        stalled: list[socket.socket] = []
        for _ in range(8):
            with suppress(ConnectionResetError):  # one too many, and refused before it was seen to be there
                stalled.append(stack.enter_context(connected(port, source="127.0.0.2")))
        wait_for(lambda: 8 - len(stalled) + sum(map(is_closed, stalled)) == 4)
        wait_for(lambda: all(map(is_closed, stalled)))
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE

        def answered() -> bool:
            try:
                with context.wrap_socket(connected(port, source="127.0.0.2")) as one:
                    one.sendall(GET)
                    return one.recv(100).startswith(b"HTTP/1.1 200")
            except ConnectionError:  # the places are given back a moment after the connections are closed
                return False

        wait_for(answered)


def test_over_tls_who_does_not_listen_is_let_go_of(patience: None, certified: dict[str, str]):
    app = Answers()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with running(app, **certified) as (port, server), context.wrap_socket(connected(port, buffer=4096)) as one:
        one.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: app.under_way == 1)
        wait_for(lambda: app.under_way == 0 and not server.server_state.connections)


def test_nothing_is_logged_of_who_is_let_go_of(served: tuple[int, Server, Answers], caplog: pytest.LogCaptureFixture):
    """Or anybody could fill the disk."""
    port, server, app = served
    with caplog.at_level(logging.WARNING), connected(port, buffer=4096) as one, connected(port):
        one.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: app.under_way == 1)
        wait_for(lambda: app.under_way == 0 and not server.server_state.connections)
    assert caplog.records == []


@given(
    st.lists(st.tuples(st.sampled_from(["192.0.2.1", "::ffff:192.0.2.1", "2001:db8::1", "2001:db8::2"]), st.booleans()))
)
def test_whatever_comes_and_goes_none_holds_more_than_it_may(happening: list[tuple[str, bool]]):
    """The two addresses of IPv4 are one client, and so are the two of one network of IPv6."""
    counted, held = ConnectionCounter(3), {"4": 0, "6": 0}
    for host, comes in happening:
        client = "4" if "." in host else "6"
        if comes:
            assert counted.acquire(host) is (held[client] < 3)
            held[client] = min(3, held[client] + 1)
        elif held[client]:
            counted.release(host)
            held[client] -= 1
        assert counted.held(host) == held[client]


def test_as_many_files_may_be_open_as_the_system_allows():
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import resource; from api.transport.connections import allow_open_files as a; "
            "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard)); "
            "print(a(), resource.getrlimit(resource.RLIMIT_NOFILE)[0], hard)",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert said[0] == said[1] == str(min(65_536, int(said[2])))
    assert allow_open_files() >= resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_an_address_that_is_taken_is_an_error():
    (taken,) = listen("127.0.0.1", 0, per_address=0)
    with taken:
        taken.listen()
        with pytest.raises(OSError) as failed:
            listen("127.0.0.1", taken.getsockname()[1], per_address=0)
    assert failed.value.errno == errno.EADDRINUSE


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The service's API as it is started in earnest, in a process of its own."""
    folder = tmp_path_factory.mktemp("service")
    settings = ApiSettings(public_url=f"http://127.0.0.1:{free_port()}")
    environment = os.environ | {"PHOTOFLUX_STATE_DIR": str(folder), "PHOTOFLUX_PUBLIC_URL": settings.public_url}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "api.main"], env=environment, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 120
        while True:
            with suppress(httpx2.HTTPError):
                if httpx2.get(f"{settings.public_url}/readyz").status_code == 204:
                    break
            assert process.poll() is None and time.monotonic() < until, (folder / "log").read_text()
            time.sleep(0.1)
        yield settings.public_url
    finally:
        process.terminate()
        process.wait(60)


def test_whoever_holds_hundreds_of_connections_keeps_nobody_out(service: str):
    port = int(service.rpartition(":")[2])
    with ExitStack() as stack:
        half_open = [stack.enter_context(connected(port, source="127.0.0.2")) for _ in range(600)]
        for one in half_open:
            with suppress(ConnectionError):
                one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        assert httpx2.get(f"{service}/readyz").status_code == 204
        wait_for(lambda: sum(map(is_closed, half_open)) >= 600 - 256)
        assert httpx2.get(f"{service}/readyz").status_code == 204


def test_the_service_is_served_by_these_connections(monkeypatch: pytest.MonkeyPatch):
    """`main` hands on what the settings say."""
    told: dict[str, Any] = {}
    monkeypatch.setenv("PHOTOFLUX_CONNECTIONS_PER_ADDRESS", "7")
    monkeypatch.setattr(connections, "serve", lambda app, **how: told.update(how))
    monkeypatch.setattr(main, "set_up_logs", lambda name: None)
    assert main.main() == 0
    assert (told["host"], told["port"], told["per_address"], told["proxies"]) == ("127.0.0.1", 8000, 7, "")


@pytest.mark.parametrize(
    "flood",
    [
        b"GET /small HTTP/1.1\r\nHost: x\r\n" + b"a:b\r\n" * 100_000,
        b"GET /small HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 1_000_000,
        b"GET /" + b"a" * 1_000_000,
        b"POST /length HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 200_000,
        b"POST /length HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1;" + b"a" * 1_000_000,
    ],
    ids=["headers", "a header", "an address", "trailers", "a chunk's extension"],
)
def test_what_is_around_a_body_is_bounded(served: tuple[int, Server, Answers], flood: bytes):
    """The parser keeps all of it, and takes the longer for it the more there is."""
    port, server, _ = served
    with connected(port) as one, suppress(ConnectionError):
        one.sendall(flood)
        assert ended(one)
    wait_for(lambda: not server.server_state.connections)


def test_bodies_in_small_chunks_arrive(served: tuple[int, Server, Answers]):
    with connected(served[0]) as one:
        one.sendall(b"POST /length HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        one.sendall(b"".join(b"40\r\n%s\r\n" % (b"a" * 64) for _ in range(40_000)) + b"0\r\n\r\n")
        assert answer_of(one, end=b"2560000").startswith(b"HTTP/1.1 200")


def test_requests_may_be_sent_ahead_but_not_without_end(served: tuple[int, Server, Answers]):
    port, server, app = served
    with connected(port) as one:
        one.sendall(GET * 4)
        assert answer_of(one, end=b"small").count(b"HTTP/1.1 200") >= 1
    with connected(port) as one, suppress(ConnectionError):
        for _ in range(200):
            one.sendall(GET * 1000)
        assert ended(one)
    assert app.asked < 2000
    wait_for(lambda: not server.server_state.connections)


def test_a_trailer_is_no_header():
    """Behind a proxy that passes them on, a trailer would say who the client is."""
    head = b"POST /address HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Forwarded-For: 203.0.113.9\r\n"
    body = b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-Forwarded-For: 198.51.100.77\r\n\r\n"
    with running(Answers(), proxies="127.0.0.0/8") as (port, _), connected(port) as one:
        one.sendall(head + body)
        assert answer_of(one, end=b"203.0.113.9").endswith(b"\r\n203.0.113.9")


def test_proxies_hold_as_many_connections_as_their_clients_need_and_others_do_not():
    counted = ConnectionCounter(2, proxies="10.0.0.0/8, 2001:db8::1")
    for host, most in (("10.1.2.3", 9), ("2001:db8::1", 9), ("192.0.2.1", 2), ("2001:db8:1::1", 2)):
        assert sum(counted.acquire(host) for _ in range(9)) == most
