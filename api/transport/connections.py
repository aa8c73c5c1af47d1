"""Limits on connections: timeouts for everything that uvicorn awaits without one, and a maximum by client address.

A connection costs its client nothing and the service a descriptor and memory, so that clients that send nothing, send slowly or do not
read are disconnected.
"""

from __future__ import annotations

import asyncio
import ipaddress
import resource
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import uvicorn
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.transport.addresses import client_key
from api.transport.media_types import media_type

HEAD_S = 10.0
"""Until a request's head is complete, from when the connection was made or the head's first byte came."""
HANDSHAKE_S = 10.0
"""Until a TLS handshake is complete."""
SEND_S = 30.0
"""Until a piece of an answer is taken by its client; until everything is, when the connection is to be closed."""
ANSWER_S = 120.0
"""From the first to the last byte of an answer."""
STREAMED_TYPES = ("text/event-stream", "application/zip")
"""Answers that take as long as they take, each piece of them SEND_S at most: event streams, and exports that may be large."""
HEAD_BYTES, HEADERS_MAX, PIPELINED_MAX = 64 * 1024, 200, 8
"""Largest head of a request, and as much again around its body (sizes of chunks, trailers); requests sent ahead of their answers."""
PIECE_BYTES = 64 * 1024
CHECK_TICKS = 5
"""Connections are checked every so many ticks of uvicorn, of a tenth of a second each."""
STOP_S, CONNECTIONS_MAX = 15, 2000
SHUTDOWN = "shutdown"
"""Name in a request's state of the event that is set when the server shuts down."""
FILES_MAX = 65_536
REFUSED_AT_ONCE = 64
RESET = struct.pack("ii", 1, 0)
"""Value of SO_LINGER that closes a connection with a reset."""

Base: Any = HttpToolsProtocol
"""By httptools, which takes a fraction of the time of h11. It bounds nothing."""


class RequestTooLarge(ValueError):
    """Too many headers, or too many requests ahead of their answers."""


class TimedProtocol(Base):  # type: ignore[misc]
    """uvicorn's HTTP protocol with a limit on everything that it awaits and buffers."""

    app: ASGIApp

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._head_since: float | None = None
        self._paused_since: float | None = None
        self._answer_since: float | None = None
        self._active_cycles: set[Any] = set()
        self._closing_since: float | None = None
        self._in_head = True
        self._body_bytes = self._other_bytes = 0
        self._inner: ASGIApp = self.app
        self.app = self._answer

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._head_since = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        """uvicorn tells only the newest request that its client has disconnected; an earlier one may still be answered."""
        super().connection_lost(exc)
        for cycle in self._active_cycles:
            cycle.disconnected = True
            cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._head_since is None and not self._is_busy():
            self._head_since = self.loop.time()
        self._other_bytes += len(data)
        super().data_received(data)
        if self._other_bytes > HEAD_BYTES + self._body_bytes // 4 and not self.transport.is_closing():
            self.transport.abort()  # what is not complete is with the parser, which takes ever longer for it
        if self._is_busy():
            self._head_since = None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._body_bytes = self._other_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Ignores trailers, which would otherwise count as headers."""
        if self._in_head:
            if len(self.headers) >= HEADERS_MAX:
                raise RequestTooLarge
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()
        if len(self.pipeline) > PIPELINED_MAX:  # uvicorn reads on after each answer, however many wait
            self.transport.abort()
            raise RequestTooLarge

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._other_bytes = max(0, self._other_bytes - len(body))
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        if not self.transport.is_closing():
            super().send_400_response(msg)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._paused_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._paused_since = None

    def check_timeouts(self, now: float) -> None:
        """Close the connection where a timeout has passed; `now` is the loop's time."""
        if self.transport.is_closing():
            self._closing_since = self._closing_since or now
        elif self._head_since is not None and not self._is_busy() and now - self._head_since > HEAD_S:
            self.transport.close()
        since = ((self._paused_since, SEND_S), (self._closing_since, SEND_S), (self._answer_since, ANSWER_S))
        if any(began is not None and now - began > most for began, most in since):
            self.transport.abort()  # closing would wait for the client to take what there is

    def _is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, its response sent in pieces: the next one is made when the client has taken the last."""

        cycle: Any = receive.__self__  # type: ignore[attr-defined]
        since: float | None = None

        async def sending(message: Message) -> None:
            nonlocal since
            if message["type"] == "http.response.start":
                streamed = media_type(Headers(raw=list(message["headers"]))) in STREAMED_TYPES
                self._answer_since = since = None if streamed else self.loop.time()
            for piece in _pieces(message):
                await send(piece)

        self._active_cycles.add(cycle)
        try:
            await self._inner(scope, receive, sending)
        finally:
            self._active_cycles.discard(cycle)
            if self._answer_since is since:  # and not that of a request that was sent ahead and is answered by now
                self._answer_since = None


def _pieces(message: Message) -> Iterator[Message]:
    body = message.get("body", b"")
    if len(body) <= PIECE_BYTES:
        yield message
        return
    view, more = memoryview(body), message.get("more_body", False)
    for start in range(0, len(view), PIECE_BYTES):
        last = start + PIECE_BYTES >= len(view)
        yield {**message, "body": bytes(view[start : start + PIECE_BYTES]), "more_body": more or not last}


class Server(uvicorn.Server):
    """uvicorn's server; checks its connections twice a second, and sets an event for held requests when it shuts down."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.lifespan.state[SHUTDOWN] = self.ending = threading.Event()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.ending.set()
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        if counter % CHECK_TICKS == 0:
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, TimedProtocol):
                    connection.check_timeouts(now)
        return await super().on_tick(counter)


class EventLoop(asyncio.SelectorEventLoop):
    """An event loop whose servers wait less long for a TLS handshake: uvicorn has no setting for it, and a minute is the default."""

    async def create_server(self, *args: Any, **more: Any) -> asyncio.Server:
        if more.get("ssl"):
            more = {"ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": SEND_S, **more}
        return await super().create_server(*args, **more)


class ConnectionCounter:
    """Counts open connections by client address; one beyond `most` is closed at once, 0 sets no limit.

    A proxy's are not limited: they are its clients', which it has to count itself.
    """

    def __init__(self, most: int, *, proxies: str = "") -> None:
        self.most, self._held = most, Counter[str]()
        self._proxies = [ipaddress.ip_network(one.strip()) for one in proxies.split(",") if one.strip()]

    def acquire(self, host: str) -> bool:
        """Count a connection; False where its address has `most` already."""
        client = client_key(host)
        if self.most and self._held[client] >= self.most and not self._is_proxy(host):
            return False
        self._held[client] += 1
        return True

    def _is_proxy(self, host: str) -> bool:
        return any(ipaddress.ip_address(host.partition("%")[0]) in network for network in self._proxies)

    def release(self, host: str) -> None:
        """Count a connection as closed."""
        client = client_key(host)
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]

    def held(self, host: str) -> int:
        """How many connections an address holds."""
        return self._held[client_key(host)]


class Connection(socket.socket):
    """An accepted connection that is counted until it is closed, during its TLS handshake too."""

    counter: ConnectionCounter | None = None
    host = ""

    def close(self) -> None:
        super().close()
        if self.counter is not None and self.fileno() == -1:
            self.counter.release(self.host)
            self.counter = None


class Listener(socket.socket):
    """A listening socket that limits the connections of a client address."""

    counter = ConnectionCounter(CONNECTIONS_MAX)

    def accept(self) -> tuple[socket.socket, Any]:
        """A connection and its address. Raises BlockingIOError when there is none, as any socket that does not block."""
        for _ in range(REFUSED_AT_ONCE):
            accepted, address = super().accept()
            host = str(address[0])
            if self.counter.acquire(host):
                connection = Connection(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
                connection.counter, connection.host = self.counter, host
                return connection, address
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            accepted.close()
        raise BlockingIOError("others have a turn before more are refused")


def listen(host: str, port: int, *, per_address: int, proxies: str = "") -> list[socket.socket]:
    """Sockets that listen at every address of `host`. Raises OSError for one that is taken or not this machine's."""
    counter = ConnectionCounter(per_address, proxies=proxies)
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        one = Listener(family, kind, protocol)
        one.counter = counter
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
        sockets.append(one)
    return sockets


def allow_open_files() -> int:
    """Raise how many files this process may have open to as many as it is allowed to, FILES_MAX at most; returns the number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return soft


def make_server(app: ASGIApp, *, proxies: str = "", tls_cert: str = "", tls_key: str = "") -> Server:
    """A server of the application. `proxies`: addresses and networks, by commas, that are believed who their client is."""
    tls: dict[str, Any] = {"ssl_certfile": tls_cert, "ssl_keyfile": tls_key} if tls_cert else {}
    return Server(
        uvicorn.Config(
            app,
            http=TimedProtocol,
            ws="none",
            loop=f"{__name__}:{EventLoop.__name__}",
            proxy_headers=bool(proxies),
            forwarded_allow_ips=proxies,
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=STOP_S,
            limit_concurrency=CONNECTIONS_MAX,
            **tls,
        )
    )


def serve(
    app: ASGIApp, *, host: str, port: int, per_address: int, proxies: str = "", tls_cert: str = "", tls_key: str = ""
) -> None:
    """Serve until SIGTERM; requests that are being answered are finished. Raises OSError for an address that cannot be had."""
    allow_open_files()
    sockets = listen(host, port, per_address=per_address, proxies=proxies)
    with suppress(KeyboardInterrupt):
        make_server(app, proxies=proxies, tls_cert=tls_cert, tls_key=tls_key).run(sockets)
