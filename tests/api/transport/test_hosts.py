"""Hosts: what was started for one machine answers this machine alone; everything else answers for its own name."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from api.settings import ApiSettings
from api.transport.hosts import TrustedHosts, requested_host, trusted_hosts
from tests.api.people import is_problem

HERE = [
    "127.0.0.1",
    "127.0.0.1:8000",
    "localhost",
    "LOCALHOST:1",
    "localhost.",
    "[::1]:8000",
    "[0:0:0:0:0:0:0:1]",
    "127.9.9.9",
]
ELSEWHERE = [
    "photos.example", "127.0.0.1.nip.io", "localhost.evil.example", "0.0.0.0", "192.168.1.4:8000", "[::]", "[fe80::1]",
    "evil.example:80@127.0.0.1", "127.0.0.1@evil.example", "localhost:80:80", "localhost:99999", "localhost:", "2130706433",
    "0x7f.1", "127.1", "localhost..", "", " ", "127.0.0.1, evil.example", "localhost/evil", "[::1", "[::1%25lo]", "[127.0.0.1]",
    "localhost\x00", "localhost\n",
]  # fmt: skip
PROXIED = ["Forwarded", "X-Forwarded-For", "x-forwarded-host", "X-FORWARDED-PROTO", "X-Forwarded-Anything", "X-Real-IP"]


async def answer_all(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("here")(scope, receive, send)


def status(app: Any, *hosts: str | bytes, path: str = "/", more: tuple[tuple[bytes, bytes], ...] = ()) -> int:
    """What a request with these Host headers is answered, as a server would hand it over."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    values = [host if isinstance(host, bytes) else host.encode("latin-1") for host in hosts]
    headers = [*((b"host", value) for value in values), *more]
    scope = {"type": "http", "method": "GET", "path": path, "headers": headers, "query_string": b""}
    asyncio.run(app(scope, None, send))
    return int(sent[0]["status"])


@pytest.fixture(scope="module")
def alone() -> Any:
    return TrustedHosts(answer_all)


@pytest.mark.parametrize("host", HERE)
def test_one_machine_is_reached_by_its_own_names(alone: Any, host: str):
    assert status(alone, host) == 200


@pytest.mark.parametrize("host", ELSEWHERE)
def test_one_machine_is_reached_by_no_other_name(alone: Any, host: str):
    assert status(alone, host) == 421


@pytest.mark.parametrize("name", PROXIED)
@pytest.mark.parametrize("path", ["/", "/metrics"])
def test_one_machine_has_no_proxy_in_front(alone: Any, name: str, path: str):
    assert status(alone, "127.0.0.1", path=path, more=((name.encode(), b"1.2.3.4"),)) == 421
    assert (
        status(TrustedHosts(answer_all, host="photos.example"), "photos.example", more=((name.encode(), b"1"),)) == 200
    )


def test_the_refusal_says_what_to_set():
    client = TestClient(TrustedHosts(answer_all), base_url="http://photos.example")
    assert "PHOTOFLUX_ENVIRONMENT" in is_problem(client.get("/"), 421, "misdirected")["detail"]


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
@pytest.mark.parametrize("host", ["", "photos.example"])
def test_probes_come_by_any_name(host: str, path: str):
    app = TrustedHosts(answer_all, host=host)
    assert status(app, "10.1.2.3:8000", path=path) == status(app, path=path) == 200
    assert status(app, "10.1.2.3:8000", path=path + "x") == 421


@pytest.mark.parametrize("host", ["photos.example", "PHOTOS.example:443", "photos.example."])
def test_a_public_service_answers_for_its_name(host: str):
    assert status(TrustedHosts(answer_all, host="Photos.Example"), host) == 200


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "evil.example", "photos.example.evil.example", "xphotos.example", ""]
)
def test_a_public_service_answers_for_no_other(host: str):
    assert status(TrustedHosts(answer_all, host="photos.example"), host) == 421


def test_several_hosts_or_none_are_refused(alone: Any):
    assert status(alone) == status(alone, "127.0.0.1", "evil.example") == status(alone, "localhost", "localhost") == 421


def test_the_settings_say_which_hosts_are_known():
    for facts, good, bad in (
        ({}, "localhost", "photos.example"),
        ({"environment": "development"}, "localhost:8000", "photos.example"),
        (
            {"environment": "development", "provider": "external", "public_url": "http://[2001:db8::1]:80"},
            "[2001:DB8:0::1]",
            "[::1]",
        ),
        (
            {"environment": "development", "provider": "external", "public_url": "http://photos.example"},
            "photos.example",
            "127.0.0.1",
        ),
    ):
        app = trusted_hosts(answer_all, ApiSettings(**facts))  # type: ignore[arg-type]
        assert (status(app, good), status(app, bad)) == (200, 421)


def test_websockets_are_closed_and_lifespans_pass(alone: Any):
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(alone({"type": "websocket", "path": "/", "headers": [(b"host", b"evil.example")]}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
    passed: list[str] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope["type"])

    asyncio.run(TrustedHosts(inner)({"type": "lifespan"}, None, send))  # type: ignore[arg-type]
    assert passed == ["lifespan"]


@given(st.binary(max_size=40))
@example(b"localhost\n")
@example(b"[::ffff:127.0.0.1]")
def test_whatever_a_header_holds_is_loopback_or_refused(value: bytes):
    """What passes is, to the letter, a loopback name or address with at most a port."""
    if status(TrustedHosts(answer_all), value) == 200:
        host = value.decode().lower()
        bare = host[1 : host.index("]")] if host.startswith("[") else host.partition(":")[0].removesuffix(".")
        assert bare == "localhost" or ipaddress.ip_address(bare).is_loopback


@given(st.ip_addresses(), st.none() | st.integers(0, 65535))
def test_addresses_are_read_as_the_standard_writes_them(ip: Any, port: int | None):
    text = (f"[{ip.exploded}]" if ip.version == 6 else str(ip)) + (f":{port}" if port is not None else "")
    assert requested_host([(b"Host", text.encode())]) == str(ip)


@given(st.sampled_from(HERE), st.text("abc.@:/\\#?%[] \t", min_size=1, max_size=5), st.booleans())
def test_nothing_can_be_put_before_or_after_a_name(name: str, more: str, before: bool):
    value = (more + name if before else name + more).encode()
    found = requested_host([(b"host", value)])
    assert found in (
        "",
        *(requested_host([(b"host", one.encode())]) for one in HERE),
    ) or found == value.decode().lower().partition(":")[0].removesuffix(".")


@pytest.mark.parametrize(("token", "expected"), [("", 421), ("0123456789abcdef", 200)])
def test_metrics_come_by_any_name_only_where_they_take_a_token(token: str, expected: int):
    """A page of somebody else's that was given this machine's address by its name must not read them."""
    app = trusted_hosts(answer_all, ApiSettings(metrics_token=token))  # type: ignore[arg-type]
    client = TestClient(app, base_url="http://evil.example")
    assert client.get("/metrics").status_code == expected
    assert client.get("/livez").status_code == 200
