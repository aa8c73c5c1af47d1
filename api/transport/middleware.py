"""Middleware around the routes: security headers, ETags, limits on bodies, and errors as problems."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.accounts.login_sessions import SignedOut
from api.accounts.tokens import AccessTokenClaims, BadToken
from api.transport.concurrency import FairLimiter
from api.transport.media_types import media_type
from api.transport.problems import Problem, problem

log = logging.getLogger(__name__)

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, no-store",
}
UPLOAD = ("POST", "/api/upload")
UPLOADS_BYTES = 256_000_000
"""Bytes of uploads in memory at a time, of all people: two of the largest, since one person may have half."""
LENGTH_DIGITS, PERSONS = 16, 8
"""PERSONS: how many people it takes to occupy all places for uploads."""
WAIT_S, IDLE_S = 20.0, 15.0
"""How long an upload waits for a place, and how long it keeps the place while nothing arrives."""
BUSY = "Many photos are arriving; send yours again in a moment."
STRICT = "max-age=31536000; includeSubDomains"


class SecurityHeaders:
    """Adds headers against content sniffing, framing, use by other sites and caching, unless a response has its own."""

    def __init__(self, app: ASGIApp, *, tls: bool) -> None:
        self.app, self.headers = app, HEADERS | ({"Strict-Transport-Security": STRICT} if tls else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                ours = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
                message["headers"] = [*message["headers"], *(one for one in ours if one[0] not in present)]
            await send(message)

        await self.app(scope, receive, sending)


class ETags:
    """Adds an `ETag` to every JSON document, and answers 304 to a client that sends it back, so that polling costs little.

    `no-store` stays: the client keeps the document, not the browser's cache.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            return await self.app(scope, receive, send)
        known = Headers(scope=scope).get("if-none-match", "")
        start: Message = {}
        body = bytearray()

        async def sending(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and _is_json(message):
                start = message
            elif not start:
                await send(message)
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    await self._send(start, bytes(body), known, send)

        return await self.app(scope, receive, sending)

    @staticmethod
    async def _send(start: Message, body: bytes, known: str, send: Send) -> None:
        etag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
        same = known == etag
        headers = [
            (name, value) for name, value in start["headers"] if not (same and name.lower().startswith(b"content-"))
        ]
        headers.append((b"etag", etag.encode()))
        await send({**start, "status": 304 if same else start["status"], "headers": headers})
        await send({"type": "http.response.body", "body": b"" if same else body})


def _content_length(scope: Scope) -> int | None:
    """The body's declared length in bytes; None without a valid one."""
    length = Headers(scope=scope).get("content-length", "")
    return int(length) if length.isdecimal() and len(length) < LENGTH_DIGITS else None


def _is_json(message: Message) -> bool:
    headers = Headers(raw=message["headers"])
    return message["status"] == 200 and media_type(headers) == "application/json" and "cache-control" not in headers


class BodyLimits:
    """Bodies must arrive within `seconds`; uploads are taken from signed-in people alone, few at a time.

    FastAPI reads a form before it resolves a route's dependencies: without this anybody could make the service hold files, and a client
    that sends a byte a minute would hold a place for ever. Uploads are recognised by method and path, never by a header.
    `check` gives the claims of an access token, or raises BadToken or SignedOut.
    """

    def __init__(
        self, app: ASGIApp, *, seconds: float, uploads: int, check: Callable[[str], AccessTokenClaims]
    ) -> None:
        self.app, self.seconds, self.check = app, seconds, check
        self._turns = FairLimiter(
            uploads, per_person=max(1, uploads // PERSONS), wait_s=WAIT_S, busy_message=BUSY, memory_bytes=UPLOADS_BYTES
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if (scope["method"], scope["path"]) != UPLOAD:
            return await self.app(scope, self._with_deadline(receive), send)
        sender = await self._sender(Headers(scope=scope).get("authorization", ""))
        if sender is None:
            refusal = problem(401, headers={"WWW-Authenticate": "Bearer", "Connection": "close"})
            return await refusal(scope, receive, send)
        if (length := _content_length(scope)) is None:
            return await problem(411, headers={"Connection": "close"})(scope, receive, send)
        try:
            async with self._turns.take(sender.user_id, length):
                return await self.app(scope, self._with_deadline(receive, length=length), send)
        except Problem as busy:
            headers = busy.headers | {"Connection": "close"}
            return await problem(busy.status, busy.kind, busy.detail, headers=headers)(scope, receive, send)

    async def _sender(self, authorization: str) -> AccessTokenClaims | None:
        """The claims of an upload's sender; None without a valid access token."""
        kind, _, token = authorization.partition(" ")
        try:
            return await run_in_threadpool(self.check, token) if kind.lower() == "bearer" else None
        except (BadToken, SignedOut):
            return None

    def _with_deadline(self, receive: Receive, *, length: int = 0) -> Receive:
        """A `receive` that raises 408 unless the body's end arrives in time; after the body it waits without a limit.

        Of a body with a `length` (bytes) something must arrive every IDLE_S, and it may be IDLE_S behind an even pace.
        """
        now = asyncio.get_running_loop().time
        last, received, waited, arrived = now() + self.seconds, 0, 0.0, False

        def deadline() -> float:
            """The loop's time until which the next piece is awaited; what the service itself took does not count."""
            behind = IDLE_S + self.seconds * received / length - waited if length else float("inf")
            return min(last, now() + min(IDLE_S if length else float("inf"), behind))

        async def receiving() -> Message:
            nonlocal arrived, received, waited
            if arrived:
                return await receive()
            since = now()
            try:
                async with asyncio.timeout_at(deadline()):
                    message = await receive()
            except TimeoutError as error:
                arrived = True
                raise HTTPException(408, headers={"Connection": "close"}) from error
            waited += now() - since
            received += len(message.get("body", b""))
            arrived = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        return receiving


class ErrorBoundary:
    """Turns unhandled exceptions and plain-text errors of the framework, such as 413, into problems."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        replaced, started = False, False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal replaced, started
            if message["type"] == "http.response.start":
                started = True
                replaced = message["status"] >= 400 and _is_plain_text(message)
                if replaced:
                    return await problem(message["status"], headers=_kept_headers(message))(scope, receive, send)
            elif replaced:
                return None
            return await send(message)

        try:
            return await self.app(scope, receive, sending)
        except Exception:
            log.exception("a request failed")
            if started:
                raise
            return await problem(500)(scope, receive, send)


def _is_plain_text(message: Message) -> bool:
    return media_type(Headers(raw=list(message["headers"]))) in ("", "text/plain")


def _kept_headers(message: Message) -> dict[str, str]:
    """Headers of the replaced response that the problem keeps."""
    wanted = (b"retry-after", b"www-authenticate", b"allow", b"connection")
    return {name.decode(): value.decode() for name, value in message["headers"] if name.lower() in wanted}
