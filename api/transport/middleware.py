"""What lies between the server and the routes: careful headers, answers that are not sent twice, and bodies that must arrive."""

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
"""Of uploads that are in memory at a time, all told: two of the largest, since a person may have half of it."""
LENGTH_DIGITS, PERSONS = 16, 8
"""PERSONS: how many people together can take all places for uploads, each their share."""
WAIT_S, IDLE_S = 20.0, 15.0
"""How long an upload waits for its turn before it is sent away, and how long it has its place while nothing arrives."""
BUSY = "Many photos are arriving; send yours again in a moment."
STRICT = "max-age=31536000; includeSubDomains"


class SecurityHeaders:
    """Headers that keep browsers from guessing, framing, sharing and storing, unless a page sets its own."""

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
    """An `ETag` on every JSON document, and 304 to a client that has it already: polling costs little.

    Browsers still store nothing of it; it is the client that remembers.
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
    """How large a body says that it is; None where it does not say."""
    length = Headers(scope=scope).get("content-length", "")
    return int(length) if length.isdecimal() and len(length) < LENGTH_DIGITS else None


def _is_json(message: Message) -> bool:
    headers = Headers(raw=message["headers"])
    return (
        message["status"] == 200 and media_type(headers) == "application/json" and "cache-control" not in headers
    )  # fmt: skip


class BodyLimits:
    """A request's body has arrived in time or the request is over; uploads come from people who signed in, few at a time.

    A form is read before its route is asked: without this anybody could have the service hold files for them, and a client that
    sends a byte a minute would hold a place for ever. What an upload is says the route that takes it, never its sender.
    `check` tells whose an access token is, or raises BadToken or SignedOut.
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
        """Who sends an upload; None for somebody who is not signed in."""
        kind, _, token = authorization.partition(" ")
        try:
            return await run_in_threadpool(self.check, token) if kind.lower() == "bearer" else None
        except (BadToken, SignedOut):
            return None

    def _with_deadline(self, receive: Receive, *, length: int = 0) -> Receive:
        """A `receive` that gives up when the body's end is not there in time; afterwards it waits as long as it is asked to.

        Of a body of a `length` something arrives every IDLE_S, and it is never later by more than them than one that comes evenly.
        """
        now = asyncio.get_running_loop().time
        last, received, waited, arrived = now() + self.seconds, 0, 0.0, False

        def most() -> float:
            """Until when the next piece is waited for; what the service itself took since the last one does not count."""
            behind = IDLE_S + self.seconds * received / length - waited if length else float("inf")
            return min(last, now() + min(IDLE_S if length else float("inf"), behind))

        async def receiving() -> Message:
            nonlocal arrived, received, waited
            if arrived:
                return await receive()
            since = now()
            try:
                async with asyncio.timeout_at(most()):
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
    """Turns what escapes the application, or answers outside of its handlers, into problems: 413 and 500 among them."""

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
    """Headers that mean something beside the body."""
    wanted = (b"retry-after", b"www-authenticate", b"allow", b"connection")
    return {name.decode(): value.decode() for name, value in message["headers"] if name.lower() in wanted}
