"""The attackers of `benchmarks.attack`: some twenty abuses of the service at once, each bounded in connections, rate and time.

Every attack says which answers are as they should be; any other answer, or more than a person may have, is noted as wrong. What
each was answered is counted, so that the result shows that it reached the service. Attackers speak HTTP over sockets of
their own, since no client library sends what they send, and come from other loopback addresses than honest people.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import io
import json
import os
import random
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from photoflux.manifest import write_json

HOST = "127.0.0.1"
CONNECTIONS_MAX, UPLOADS_MAX = 600, 40
"""What the attackers hold at a time, all together."""
ANSWER_S, HELD_S, CONNECT_S = 150.0, 60.0, 30.0
"""How long an answer is waited for; after which a connection that says nothing counts as held; how long connecting may take."""
BOMBS_S = 900.0
"""Whoever sends twenty files of fifty million pixels at a time waits for themselves."""
REFRESH_AFTER_S, SIGN_IN_S = 300.0, 120.0
NICE = 10
"""Attackers would have machines of their own: here they take what the service leaves."""
PIECE = os.urandom(1 << 16)
MB = 1_000_000
WEBHOOKS_MAX, SUBJECTS_MAX, RUNS_A_DAY, EXPORTS_A_DAY, COMPLAINTS_AN_HOUR, STREAMS = 5, 50, 10, 5, 10, 5
"""What the service allows a person, or an address, by its usual settings."""
FORMATS = ("png", "jpeg", "webp", "tiff")
PRIVATE_ADDRESSES = (
    "https://[64:ff9b::a9fe:a9fe]/", "https://[64:ff9b:1::7f00:1]/", "https://[2002:7f00:1::]/", "https://[::ffff:10.0.0.1]/",
    "https://[2001:0:a9fe:a9fe::]/", "https://[::10.0.0.1]/", "https://[fe80::5efe:10.0.0.1]/", "https://169.254.169.254/",
    "https://10.0.0.1/", "https://192.168.0.1/", "https://[fd00::1]/", "https://0.0.0.0/", "https://100.64.0.1/",
)  # fmt: skip
"""Metadata servers and private networks, as they are and as translators and tunnels would reach them."""
BUSY = ("429", "503")
Body = bytes | AsyncIterator[bytes]
Headers = Mapping[str, str]


class Unreachable(Exception):
    """The service does not listen."""


class NotSignedIn(Exception):
    """The front door stayed closed for SIGN_IN_S."""


@dataclass(frozen=True)
class Answer:
    """What came back. `outcome`: the status, or `closed` (without an answer), `unanswered`, `unreachable`."""

    outcome: str
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    ms: float = 0.0

    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str:
        return next((value for known, value in self.headers if known == name), "")

    def cookie(self, name: str) -> str:
        """The value of a cookie that is set; empty for one that is not."""
        for known, value in self.headers:
            if known == "set-cookie" and (found := SimpleCookie(value).get(name)):
                return found.value
        return ""


@dataclass
class Service:
    """The service as its clients reach it: HTTP/1.1, a connection for each request, CONNECTIONS_MAX at a time."""

    port: int
    held: int = 0
    held_max: int = 0
    uploads: int = 0
    uploads_max: int = 0
    _free: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONNECTIONS_MAX))
    _free_uploads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(UPLOADS_MAX))

    @asynccontextmanager
    async def connected(
        self, address: str = HOST, *, buffered: int = 0
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection from an address. `buffered`: bytes that this end takes unread, 0 for as usual. Raises Unreachable."""
        async with self._free:
            reader, writer = await self._connect(address, buffered)
            self.held += 1
            self.held_max = max(self.held_max, self.held)
            try:
                yield reader, writer
            finally:
                self.held -= 1
                writer.transport.abort()

    async def _connect(self, address: str, buffered: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        one = socket.socket()
        try:
            one.setblocking(False)
            one.bind((address, 0))
            if buffered:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffered)
            async with asyncio.timeout(CONNECT_S):
                await asyncio.get_running_loop().sock_connect(one, (HOST, self.port))
            return await asyncio.open_connection(sock=one, limit=buffered or 1 << 20)
        except ConnectionResetError:
            one.close()
            raise
        except (OSError, TimeoutError) as error:
            one.close()
            raise Unreachable(type(error).__name__) from error

    @asynccontextmanager
    async def uploading(self) -> AsyncIterator[None]:
        """One of the places for uploads."""
        async with self._free_uploads:
            self.uploads += 1
            self.uploads_max = max(self.uploads_max, self.uploads)
            try:
                yield
            finally:
                self.uploads -= 1

    async def ask(
        self,
        method: str,
        target: str,
        *,
        address: str = HOST,
        headers: Headers | None = None,
        body: Body | None = None,
        most: int = 1 << 20,
        within_s: float = ANSWER_S,
    ) -> Answer:
        """An answer, of whose body at most so many bytes are kept. A body that is longer than its place is sent all the same."""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(within_s), self.connected(address) as (reader, writer):
                sending = asyncio.create_task(_send(writer, self.head(method, target, headers, body), body))
                try:
                    answer = await read_answer(reader, most=most)
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)
        except Unreachable:
            answer = Answer("unreachable")
        except TimeoutError:
            answer = Answer("unanswered")
        except (OSError, EOFError, ValueError):
            answer = Answer("closed")
        return Answer(answer.outcome, answer.headers, answer.body, 1000 * (time.perf_counter() - started))

    def head(self, method: str, target: str, headers: Headers | None = None, body: Body | None = None) -> bytes:
        """A request's head; `Host` and `Connection` unless they are given."""
        given = dict(headers or {})
        if isinstance(body, bytes) or (body is None and method in ("POST", "PUT")):
            given.setdefault("Content-Length", str(len(body or b"")))
        lines = [f"{method} {target} HTTP/1.1"]
        usual = {"Host": f"{HOST}:{self.port}", "Connection": "close"}
        lines += [f"{name}: {value}" for name, value in {**usual, **given}.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def _send(writer: asyncio.StreamWriter, head: bytes, body: Body | None) -> None:
    with suppress(OSError):  # whoever refuses a body closes while it is sent
        writer.write(head + body if isinstance(body, bytes) else head)
        await writer.drain()
        if body is not None and not isinstance(body, bytes):
            async for piece in body:
                writer.write(piece)
                await writer.drain()


async def read_answer(reader: asyncio.StreamReader, *, most: int) -> Answer:
    """A whole answer, of whose body at most `most` bytes are kept. Raises EOFError, OSError or ValueError where there is none."""
    status, headers = await read_head(reader)
    length = next((int(value) for name, value in headers if name == "content-length"), None)
    body, read = bytearray(), 0
    while length is None or read < length:
        piece = await reader.read(1 << 16)
        if not piece:
            break
        read += len(piece)
        body += piece[: max(0, most - len(body))]
    if length is not None and read < length:
        raise EOFError
    return Answer(status, headers, bytes(body))


async def read_head(reader: asyncio.StreamReader) -> tuple[str, list[tuple[str, str]]]:
    """Status and headers, their names in small letters. Raises as `read_answer` does."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = [line.partition(":") for line in lines if line]
    return first.split(" ")[1], [(name.lower(), value.strip()) for name, _, value in pairs]


def json_body(value: Any) -> tuple[dict[str, str], bytes]:
    """Headers and body of a document."""
    return {"Content-Type": "application/json"}, json.dumps(value).encode()


def form_body(fields: Mapping[str, str], files: Sequence[bytes]) -> tuple[dict[str, str], bytes]:
    """Headers and body of an upload's form."""
    edge, parts = "benchmark" + os.urandom(8).hex(), list[bytes]()
    for name, value in fields.items():
        parts.append(f'--{edge}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
    for number, data in enumerate(files):
        about = f'Content-Disposition: form-data; name="photos"; filename="{number}.jpg"\r\nContent-Type: image/jpeg'
        parts += [f"--{edge}\r\n{about}\r\n\r\n".encode(), data, b"\r\n"]
    parts.append(f"--{edge}--\r\n".encode())
    return {"Content-Type": f"multipart/form-data; boundary={edge}"}, b"".join(parts)


@dataclass
class Account:
    """Somebody who signs in by the front door and stays signed in."""

    service: Service
    email: str
    password: str
    address: str = HOST
    token: str = ""
    refresh_token: str = ""
    media_token: str = ""
    _since: float = float("-inf")
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def sign_in(self) -> None:
        """The whole way over the provider, as a browser goes it; told to wait, it waits. Raises NotSignedIn."""
        until, said = time.monotonic() + SIGN_IN_S, ""
        while time.monotonic() < until:
            answer = await self._try_sign_in()
            if self.token and answer.outcome == "200":
                return
            said = f"{answer.outcome} {answer.body[:100]!r}"
            await asyncio.sleep(min(float(answer.header("retry-after") or 1), max(0.1, until - time.monotonic())))
        raise NotSignedIn(said)

    async def _try_sign_in(self) -> Answer:
        self.token = ""
        answer = await self.service.ask("GET", "/api/auth/login", address=self.address)
        if answer.outcome != "302":
            return answer
        begun = {"Cookie": f"photoflux_sign_in={answer.cookie('photoflux_sign_in')}"}
        form = urlencode({"email": self.email, "password": self.password}).encode()
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        where = target_of(answer.header("location"))
        answer = await self.service.ask("POST", where, address=self.address, headers=headers, body=form)
        if answer.outcome != "302":
            return answer
        where = target_of(answer.header("location"))
        answer = await self.service.ask("GET", where, address=self.address, headers=begun)
        if answer.outcome != "302":
            return answer
        self.refresh_token = answer.cookie("photoflux_refresh")
        return await self._refresh()

    async def _refresh(self) -> Answer:
        cookie = {"Cookie": f"photoflux_refresh={self.refresh_token}"}
        answer = await self.service.ask("POST", "/api/auth/refresh", address=self.address, headers=cookie)
        if answer.outcome == "200":
            self.token, self.media_token = answer.json()["access_token"], answer.cookie("photoflux_media")
            self.refresh_token, self._since = answer.cookie("photoflux_refresh"), time.monotonic()
        return answer

    async def bearer(self) -> dict[str, str]:
        """The header that says who asks; the sign-in goes on by its own cookie, or is begun anew. Raises NotSignedIn."""
        async with self._lock:
            if not self.token or (
                time.monotonic() - self._since > REFRESH_AFTER_S and (await self._refresh()).outcome == "401"
            ):
                await self.sign_in()
            return {"Authorization": f"Bearer {self.token}"}

    async def ask(self, method: str, target: str, *, headers: Headers | None = None, **more: Any) -> Answer:
        """As `Service.ask`, signed in and from this person's address."""
        signed = {**await self.bearer(), **(headers or {})}
        return await self.service.ask(method, target, address=self.address, headers=signed, **more)

    async def agree(self) -> None:
        """Agree to whatever is to be agreed to."""
        for wording in (await self.ask("GET", "/api/terms")).json()["items"]:
            if wording["agree"]:
                headers, body = json_body({name: wording[name] for name in ("purpose", "sha256")})
                await self.ask("POST", "/api/consents", headers=headers, body=body)


def target_of(url: str) -> str:
    """Path and query of an address."""
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


@dataclass
class AttackRun:
    """One running attack: its accounts, what it knows of the service, answers counted and what was wrong."""

    attack: Attack
    service: Service
    accounts: Mapping[str, Account]
    about: Mapping[str, Any]
    """By role, the ids of what an attacker has: `subject`, `other`, `run`, `result`; and `emails` of honest people."""
    until: float
    rng: random.Random
    answers: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    slowest_ms: float = 0.0
    unfinished: int = 0
    """Rounds that were under way when the time was over: slow readers and stalled uploads take minutes."""
    state: dict[str, Any] = field(default_factory=dict)
    """What an attack remembers between its rounds."""

    @property
    def address(self) -> str:
        """One of the attack's addresses."""
        return self.rng.choice(self.attack.addresses)

    @property
    def me(self) -> Account:
        """One of the attack's accounts."""
        return self.accounts[self.rng.choice(self.attack.roles)]

    def mine(self, name: str) -> str:
        """An id of what the attack's first account has."""
        return str(self.about[self.attack.roles[0]][name])

    def count(self, answer: Answer, *, fine: Iterable[str], told: str) -> Answer:
        """Count an answer; one that is not among the `fine` ones is wrong. `told`: the request, for whoever has to mend it."""
        self.answers[answer.outcome] += 1
        self.slowest_ms = max(self.slowest_ms, answer.ms)
        if answer.outcome not in fine:
            self.wrong[f"{told}: {answer.outcome}"] += 1
        return answer

    async def ask(
        self, method: str, target: str, *, fine: Iterable[str], me: Account | None = None, note: str = "", **more: Any
    ) -> Answer:
        """Ask and count."""
        told = f"{method} {re.sub('[0-9a-f]{32}', '…', target.split('?')[0])} {note}".strip()
        if me is not None:
            answer = await me.ask(method, target, **more)
        else:
            answer = await self.service.ask(method, target, **({"address": self.address} | more))
        return self.count(answer, fine=fine, told=told)

    async def post(self, target: str, value: Any, *, fine: Iterable[str], **more: Any) -> Answer:
        """POST a document."""
        headers, body = json_body(value)
        return await self.ask("POST", target, fine=fine, headers=headers | more.pop("headers", {}), body=body, **more)

    def too_many(self, name: str, count: int, most: int) -> None:
        """More than there may be is wrong."""
        if count > most:
            self.wrong[f"{count} {name} where {most} are allowed"] += 1


@dataclass(frozen=True)
class Attack:
    """An abuse: `act` is one round of it, of which `at_once` go on at a time, and `per_s` begin in a second at most."""

    name: str
    act: Callable[[AttackRun], Awaitable[None]]
    at_once: int
    per_s: float
    addresses: Sequence[str] = ("127.0.0.9",)
    roles: Sequence[str] = ()
    connections: int = 0
    """Connections that a round holds at most, where that is more than one."""
    uploads: bool = False

    @property
    def connections_max(self) -> int:
        return self.at_once * max(1, self.connections)


# --- bodies ---------------------------------------------------------------------------------------------------------------

ODD_TYPES = (
    "multipart/form-data; boundary=edge", "Multipart/form-data; boundary=edge", "multipart/FORM-data; boundary=edge",
    "MULTIPART/FORM-DATA", "multipart/form-data; boundary=other", "multipart/form-data ; Boundary=edge", "", "text/plain",
    "application/octet-stream", "application/x-www-form-urlencoded",
)  # fmt: skip
SIZES_MB = (1, 2, 5, 20, 120)
ELSEWHERE = (
    ("POST", "/api/subjects"), ("POST", "/api/generate"), ("POST", "/api/runs"), ("PUT", "/api/results/" + "0" * 32 + "/feedback"),
    ("POST", "/api/complaints"), ("POST", "/api/auth/refresh"), ("POST", "/provider/authorize"), ("POST", "/provider/token"),
    ("PUT", "/api/upload"), ("POST", "/api/upload/"), ("POST", "/API/UPLOAD"), ("POST", "//api/upload"), ("POST", "/nowhere"),
    ("PUT", "/livez"), ("POST", "/api/webhooks"), ("PATCH", "/api/subjects"),
)  # fmt: skip
REFUSED_BODY = ("307", "400", "401", "403", "404", "405", "408", "413", "415", "422", *BUSY, "closed")


async def zeros(size: int, *, chunked: bool) -> AsyncIterator[bytes]:
    """A body of a form's beginning and so many bytes after it."""
    start = b'--edge\r\nContent-Disposition: form-data; name="photos"; filename="a.jpg"\r\n\r\n'
    sent, piece = 0, start
    while sent < size:
        piece = piece[: size - sent]
        sent += len(piece)
        yield b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece
        piece = PIECE
    if chunked:
        yield b"0\r\n\r\n"


def _large(scene: AttackRun) -> tuple[dict[str, str], AsyncIterator[bytes], str]:
    size, kind, chunked = scene.rng.choice(SIZES_MB), scene.rng.choice(ODD_TYPES), scene.rng.random() < 0.5
    headers = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(size * MB)}
    headers |= {"Content-Type": kind} if kind else {}
    return headers, zeros(size * MB, chunked=chunked), f"({kind or 'no type'}{', chunked' if chunked else ''})"


async def upload_unsigned(scene: AttackRun) -> None:
    """Uploads of nobody: 1 to 120 MB under odd media types, with and without a length."""
    headers, body, note = _large(scene)
    if scene.rng.random() < 0.2:
        headers["Authorization"] = scene.rng.choice(("Bearer x", "Basic Og==", "Bearer "))
    async with scene.service.uploading():
        await scene.ask("POST", "/api/upload", headers=headers, body=body, fine=REFUSED_BODY, note=note)


async def send_large_bodies(scene: AttackRun) -> None:
    """Large bodies where small ones belong, or nothing; half of them signed in."""
    method, target = scene.rng.choice(ELSEWHERE)
    headers, body, note = _large(scene)
    me = scene.me if scene.rng.random() < 0.5 else None
    async with scene.service.uploading():
        await scene.ask(method, target, me=me, headers=headers, body=body, fine=REFUSED_BODY, note=note)


async def stall_uploads(scene: AttackRun) -> None:
    """Signed-in uploads of which nothing more comes after the first piece."""
    headers, start = form_body({"subject": scene.mine("subject")}, [PIECE])
    headers |= {"Content-Length": str(5 * MB)}

    async def stalling() -> AsyncIterator[bytes]:
        yield start[: len(PIECE)]  # in the middle of a file
        await asyncio.sleep(ANSWER_S)

    async with scene.service.uploading():
        await scene.ask(
            "POST",
            "/api/upload",
            me=scene.me,
            headers=headers,
            body=stalling(),
            note="(stalled)",
            fine=("408", *BUSY, "closed"),
        )


async def drip_bodies(scene: AttackRun) -> None:
    """Small bodies of which a byte comes every few seconds."""
    headers = {"Content-Type": "application/json", "Content-Length": "2000"}

    async def dripping() -> AsyncIterator[bytes]:
        for _ in range(60):
            yield b" "
            await asyncio.sleep(3)

    target, me = scene.rng.choice(("/api/complaints", "/api/subjects", "/api/generate")), scene.me
    await scene.ask(
        "POST",
        target,
        me=me,
        headers=headers,
        body=dripping(),
        note="(a byte every 3 s)",
        fine=("401", "408", "422", *BUSY, "closed"),
    )


def one_colour(width: int = 8000, height: int = 6250) -> list[bytes]:
    """Small files of fifty million pixels."""
    from PIL import Image

    files = []
    for mode in ("RGB", "L", "P", "RGBA"):
        buffer = io.BytesIO()
        Image.new(mode, (width, height)).save(buffer, format="PNG")
        files.append(buffer.getvalue())
    return files


async def upload_bombs(scene: AttackRun) -> None:
    """Twenty files at once, or one more: few bytes that are fifty million pixels, and damaged pictures of every kind."""
    if "bombs" not in scene.state:
        from benchmarks.fuzz import mutated

        scene.state["bombs"] = await asyncio.to_thread(one_colour)
        scene.state["damaged"] = mutated(1 << 30, seed=scene.rng.randrange(1 << 30))
    bombs = scene.rng.randrange(5, 21)
    files = [scene.rng.choice(scene.state["bombs"]) for _ in range(bombs)]
    files += [next(scene.state["damaged"]) for _ in range(scene.rng.choice((20, 20, 20, 21)) - bombs)]
    headers, body = form_body({"subject": scene.mine("subject")}, files)
    async with scene.service.uploading():
        await scene.ask(
            "POST",
            "/api/upload",
            me=scene.me,
            headers=headers,
            body=body,
            note=f"({bombs} bombs)",
            within_s=BOMBS_S,
            fine=("201", "400", "408", "409", "413", "422", *BUSY),
        )


# --- pictures -------------------------------------------------------------------------------------------------------------


def _picture(scene: AttackRun) -> tuple[str, tuple[str, ...], str]:
    size = scene.rng.choice(("4096x4096", "2048x2048", "2048x2048", "2047x2048"))
    target = f"/api/media/images/{scene.mine('result')}.0?size={size}&format={scene.rng.choice(FORMATS)}"
    return target, (("422",) if size.startswith("4096") else ("200",)), size


async def enlarge_by_token(scene: AttackRun) -> None:
    """A picture in the largest sizes and all formats, many at once, asked for with an access token."""
    target, fine, size = _picture(scene)
    await scene.ask("GET", target, me=scene.me, fine=(*fine, *BUSY), note=size, most=0)


async def enlarge_by_cookie(scene: AttackRun) -> None:
    """The same with the cookie that pages load pictures with."""
    await scene.me.bearer()
    target, fine, size = _picture(scene)
    cookie = {"Cookie": f"photoflux_media={scene.me.media_token}"}
    await scene.ask("GET", target, address=scene.me.address, headers=cookie, fine=(*fine, *BUSY), note=size, most=0)


# --- connections ----------------------------------------------------------------------------------------------------------


async def open_and_wait(scene: AttackRun) -> None:
    """More connections than an address may hold, that say nothing."""
    await _until_closed(scene, b"", every_s=HELD_S)


async def drip_heads(scene: AttackRun) -> None:
    """A request's head, of which a byte comes every few seconds."""
    await _until_closed(scene, scene.service.head("GET", "/livez")[:-2] + b"X-Slow: ", every_s=3)


async def _until_closed(scene: AttackRun, start: bytes, *, every_s: float) -> None:
    started, answer = time.monotonic(), Answer("closed")
    try:
        async with asyncio.timeout(HELD_S), scene.service.connected(scene.address) as (reader, writer):
            writer.write(start)
            while not reader.at_eof():
                with suppress(TimeoutError):
                    async with asyncio.timeout(every_s):
                        if piece := await reader.read(1 << 16):
                            answer = Answer(piece.split(b" ")[1].decode("latin-1") if b" " in piece else "bytes")
                writer.write(b"x")
    except TimeoutError:
        answer = Answer("held")
    except Unreachable:
        answer = Answer("unreachable")
    except OSError:
        pass
    if answer.outcome == "closed" and time.monotonic() - started < 1:
        answer = Answer("closed at once")
    scene.count(answer, fine=("closed", "closed at once", "400", "408"), told="a connection without a request")


async def read_slowly(scene: AttackRun) -> None:
    """Large pictures that are asked for and hardly read."""
    headers = await scene.me.bearer()
    target, answer = f"/api/media/images/{scene.mine('result')}.0", Answer("closed")
    try:
        async with (
            asyncio.timeout(ANSWER_S),
            scene.service.connected(scene.me.address, buffered=4096) as (reader, writer),
        ):
            writer.write(scene.service.head("GET", target, headers))
            status, _ = await read_head(reader)
            if status != "200":
                answer = Answer(status)
            while status == "200" and await reader.read(1024):
                await asyncio.sleep(2)
    except TimeoutError:
        answer = Answer("held")
    except Unreachable:
        answer = Answer("unreachable")
    except (OSError, EOFError, ValueError):
        pass
    # What the kernel took of an answer it sends for as long as it is read, however long ago the service has closed.
    scene.count(answer, fine=("closed", "held", *BUSY), told=f"GET {target[:20]}… (hardly read)")


async def flood_streams(scene: AttackRun) -> None:
    """A hundred event streams of one account, of which it may have a few."""
    headers = await scene.me.bearer()
    answer, state = Answer("closed"), scene.state
    try:
        async with asyncio.timeout(ANSWER_S), scene.service.connected(scene.me.address) as (reader, writer):
            writer.write(scene.service.head("GET", f"/api/runs/{scene.mine('run')}/events", headers))
            status, _ = await read_head(reader)
            answer = Answer(status)
            if status == "200":
                state["open"] = state.get("open", 0) + 1
                scene.too_many("event streams of a person", state["open"], STREAMS)
                try:
                    async with asyncio.timeout(HELD_S):
                        while await reader.read(1 << 12):
                            pass
                finally:
                    state["open"] -= 1
    except TimeoutError:
        answer = answer if answer.outcome == "200" else Answer("unanswered")
    except Unreachable:
        answer = Answer("unreachable")
    except (OSError, EOFError, ValueError):
        pass
    scene.count(answer, fine=("200", *BUSY), told="GET /api/runs/…/events")


async def flood_polls(scene: AttackRun) -> None:
    """Long polls of one account for a picture that never comes."""
    await scene.ask(
        "GET", f"/api/results/{scene.mine('result')}?wait=30", me=scene.me, fine=("200", *BUSY), note="?wait=30"
    )


# --- work -----------------------------------------------------------------------------------------------------------------


async def ask_for_exports(scene: AttackRun) -> None:
    """Exports, again and again."""
    answer = await scene.post("/api/me/export", {}, me=scene.me, fine=("202", *BUSY))
    if answer.outcome == "202":
        known = scene.state.setdefault("exports", set())
        known.add(answer.json()["id"])
        scene.too_many("exports a day", len(known), EXPORTS_A_DAY)


async def ask_for_runs(scene: AttackRun) -> None:
    """More fine-tunings than a day allows; each is cancelled at once, since only refusals are wanted."""
    me = scene.me
    answer = await scene.post("/api/runs", {"subject": scene.mine("subject")}, me=me, fine=("202", "409", *BUSY))
    if answer.outcome == "202":
        scene.state["runs"] = scene.state.get("runs", 0) + 1
        scene.too_many("runs a day", scene.state["runs"], RUNS_A_DAY)
        await scene.ask("POST", f"/api/runs/{answer.json()['id']}/cancel", me=me, fine=("202", "429"))


async def make_subjects(scene: AttackRun) -> None:
    """Twenty subjects at a time, whatever there is room for."""
    me, one = scene.me, {"class_noun": "dog", "depicts": "no_person"}
    await asyncio.gather(*(scene.post("/api/subjects", one, me=me, fine=("201", "409", *BUSY)) for _ in range(20)))
    answer = await scene.ask("GET", "/api/subjects?limit=100", me=me, fine=("200", *BUSY))
    if answer.outcome == "200":
        scene.too_many("subjects", len(answer.json()["items"]), SUBJECTS_MAX)


def crafted(rng: random.Random, letters: int) -> str:
    """Many words that are a little like each other."""
    words: list[str] = []
    while len(" ".join(words)) < letters:
        words.append("".join(rng.choice("ab") for _ in range(rng.randrange(1, 12))))
    return " ".join(words)[:letters].strip()


async def ask_for_suggestions(scene: AttackRun) -> None:
    """Suggestions where one's own prompts and what is typed are made to be compared for long."""
    query = urlencode({"subject": scene.mine("subject"), "q": crafted(scene.rng, 200), "limit": 20})
    await scene.ask("GET", f"/api/prompts/suggest?{query}", me=scene.me, fine=("200", *BUSY))


async def repeat_keys(scene: AttackRun) -> None:
    """An upload to one subject, and then to another one under the same key."""
    me, key = scene.me, {"Idempotency-Key": os.urandom(16).hex()}
    first, second = (form_body({"subject": scene.mine(name)}, [scene.about["photo"]]) for name in ("subject", "other"))
    async with scene.service.uploading():
        answer = await scene.ask(
            "POST", "/api/upload", me=me, headers=first[0] | key, body=first[1], fine=("201", "409", *BUSY)
        )
        taken = answer.outcome == "201"
        await scene.ask(
            "POST",
            "/api/upload",
            me=me,
            headers=second[0] | key,
            body=second[1],
            note="(same key, other subject)",
            fine=("422", "409", *BUSY) if taken else ("201", "422", "409", *BUSY),
        )


# --- signing in -----------------------------------------------------------------------------------------------------------


async def begin_sign_ins(scene: AttackRun) -> None:
    """Sign-ins that are begun and left."""
    await scene.ask("GET", "/api/auth/login", fine=("302", *BUSY))


async def come_back_with_rubbish(scene: AttackRun) -> None:
    """Ways back from the provider that nobody was sent on."""
    state = os.urandom(16).hex()
    query = urlencode({"state": state, "code": "x" * scene.rng.choice((0, 10, 1900))})
    headers = {"Cookie": f"photoflux_sign_in={scene.rng.choice((state, 'x', ''))}"}
    await scene.ask("GET", f"/api/auth/callback?{query}", headers=headers, fine=("400", "401", "422", *BUSY))


async def refresh_with_rubbish(scene: AttackRun) -> None:
    """Refresh tokens that never were."""
    headers = {"Cookie": f"photoflux_refresh={base64.urlsafe_b64encode(os.urandom(32)).decode()}"}
    await scene.ask("POST", "/api/auth/refresh", headers=headers, fine=("401", *BUSY))


async def guess_passwords(scene: AttackRun) -> None:
    """Wrong passwords in the names of honest people and of nobody."""
    if not scene.state.get("form") or scene.rng.random() < 0.05:
        answer = await scene.ask("GET", "/api/auth/login", fine=("302", *BUSY))
        if answer.outcome != "302":
            return
        scene.state["form"] = target_of(answer.header("location"))
    email = scene.rng.choice([*scene.about["emails"], f"{os.urandom(4).hex()}@example.org"])
    form = urlencode({"email": email, "password": os.urandom(8).hex()}).encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    await scene.ask(
        "POST", scene.state["form"], headers=headers, body=form, fine=("401", *BUSY), note="(wrong password)"
    )


async def reuse_refresh_tokens(scene: AttackRun) -> None:
    """One refresh token many times within its grace: its successor must be the same each time."""
    me = scene.me
    if not me.refresh_token:
        await me.sign_in()
    cookie = {"Cookie": f"photoflux_refresh={me.refresh_token}"}
    answers = await asyncio.gather(
        *(
            scene.ask("POST", "/api/auth/refresh", address=me.address, headers=cookie, fine=("200", "401", *BUSY))
            for _ in range(8)
        )
    )
    successors = {one.cookie("photoflux_refresh") for one in answers} - {""}
    if {"200", "401"} <= {one.outcome for one in answers}:
        scene.wrong["a refresh token was refused within its grace"] += 1
    scene.too_many("successors of a refresh token", len(successors), 1)
    me.refresh_token = next(iter(successors), "" if any(one.outcome == "401" for one in answers) else me.refresh_token)


def forged(real: str, kid: str, rng: random.Random) -> str:
    """An access token that the service did not sign, or not like this."""
    head, body, signature = real.split(".")
    claims = json.loads(_unpacked(body)) | {"role": "operator", "exp": int(time.time()) + 9999}
    kinds: list[dict[str, Any]] = [
        {"alg": "none", "typ": "at+jwt"},
        {"alg": "HS256", "typ": "at+jwt", "kid": kid},
        {"alg": "ES256", "typ": "at+jwt", "kid": kid},
        {"alg": "ES256", "typ": "at+jwt", "kid": os.urandom(16).hex()},
        {"alg": "ES256", "kid": kid, "jwk": {"kty": "oct", "k": "AA"}},
    ]
    chosen = rng.choice(kinds)
    said = f"{_packed(json.dumps(chosen).encode())}.{_packed(json.dumps(claims).encode())}"
    mac = hmac.new(kid.encode(), said.encode(), hashlib.sha256).digest()
    signed = {"none": "", "HS256": _packed(mac), "ES256": rng.choice((signature, _packed(os.urandom(64))))}[
        chosen["alg"]
    ]
    return rng.choice(
        (f"{said}.{signed}", f"{head}.{_packed(json.dumps(claims).encode())}.{signature}", "x.y.z", "x" * 4000)
    )


def _packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unpacked(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


async def forge_tokens(scene: AttackRun) -> None:
    """Access tokens with altered claims, other algorithms, and keys and signatures of the attacker's own."""
    if "kid" not in scene.state:
        answer = await scene.ask("GET", "/api/auth/jwks", fine=("200", *BUSY))
        scene.state["kid"] = answer.json()["keys"][0]["kid"] if answer.outcome == "200" else "unknown"
    await scene.me.bearer()
    token = forged(scene.me.token, scene.state["kid"], scene.rng)
    target = scene.rng.choice(
        ("/api/subjects", "/api/complaints", "/api/audit/entries", "/api/auth/me", "/api/results")
    )
    await scene.ask(
        "GET", target, headers={"Authorization": f"Bearer {token}"}, fine=("401", *BUSY), note="(forged token)"
    )


# --- protocol -------------------------------------------------------------------------------------------------------------


async def send_ahead(scene: AttackRun) -> None:
    """Requests without end on one connection, sent before those in front are answered."""
    await _pour(
        scene, scene.service.head("GET", "/livez", {"Connection": "keep-alive"}) * 500, fine=("closed", "204", "400")
    )


async def send_large_heads(scene: AttackRun) -> None:
    """Heads, header values and trailers of twenty megabytes."""
    head = scene.service.head("GET", "/livez")[:-2]
    chunked = scene.service.head("POST", "/api/complaints", {"Transfer-Encoding": "chunked"}, PIECE).replace(
        b"Content-Length: 65536\r\n", b""
    )
    start, piece = scene.rng.choice(
        ((head, b"a: b\r\n" * 8000), (head + b"X-Long: ", b"a" * 65536), (chunked + b"0\r\n", b"a: b\r\n" * 8000))
    )
    await _pour(scene, piece, start=start, fine=("closed", "400", "408", "413", "421", "422", "429"))


async def _pour(scene: AttackRun, piece: bytes, *, start: bytes = b"", fine: Iterable[str]) -> None:
    """Send a piece again and again, 20 MB at most, as long as it is taken."""
    answer = Answer("closed")
    try:
        async with asyncio.timeout(HELD_S), scene.service.connected(scene.address) as (_, writer):
            writer.write(start)
            for _ in range(20 * MB // len(piece)):
                writer.write(piece)
                await writer.drain()
            scene.wrong["twenty megabytes around bodies were taken"] += 1
    except TimeoutError:
        answer = Answer("held")
    except Unreachable:
        answer = Answer("unreachable")
    except OSError:
        pass
    scene.count(answer, fine=fine, told="a connection that is poured into")


async def drip_uploads(scene: AttackRun) -> None:
    """Uploads that say they are large, of which a byte comes every few seconds; some that do not say how large they are."""
    headers, body = form_body({"subject": scene.mine("subject")}, [PIECE])
    chunked = scene.rng.random() < 0.3
    headers |= (
        {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(scene.rng.choice((5, 40, 120)) * MB)}
    )

    async def dripping() -> AsyncIterator[bytes]:
        for at in range(30):
            yield b"1\r\n%b\r\n" % body[at : at + 1] if chunked else body[at : at + 1]
            await asyncio.sleep(4)

    async with scene.service.uploading():
        await scene.ask(
            "POST",
            "/api/upload",
            me=scene.me,
            headers=headers,
            body=dripping(),
            note="(a byte every 4 s)",
            fine=("408", "411", "413", *BUSY, "closed"),
        )


# --- what goes elsewhere --------------------------------------------------------------------------------------------------


@dataclass
class Receiver:
    """Where webhooks lead: an address that drips its answer, one that sends elsewhere, and the place it sends to."""

    port: int = 0
    private: int = 0
    """Requests to the place that must not be reached."""
    longest_s: float = 0.0
    messages: int = 0
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._receive, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        if self._server:
            self._server.close()

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        started = time.monotonic()
        try:
            async with asyncio.timeout(HELD_S):
                target = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
                self.messages += 1
                if target == b"/private":
                    self.private += 1
                if target == b"/redirect":
                    writer.write(
                        b"HTTP/1.1 307 Go\r\nLocation: /private\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    )
                else:
                    await _drip(reader, writer)
        except (OSError, EOFError, TimeoutError, IndexError, asyncio.CancelledError):  # the last one at the end of all
            pass
        finally:
            self.longest_s = max(self.longest_s, time.monotonic() - started)
            writer.close()


async def _drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A byte of an answer's head every second, until the other end is gone."""
    writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not reader.at_eof():
        writer.write(b"x")
        await writer.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await reader.read(1 << 12)


async def flood_webhooks(scene: AttackRun) -> None:
    """More webhooks than allowed, at once, and test messages to those: a dead address, one that drips, one that sends elsewhere."""
    me = scene.me
    if not scene.state.get("webhooks"):
        urls = [
            f"http://{HOST}:9/dead",
            *(f"http://{HOST}:{scene.about['receiver']}/{one}" for one in ("drip", "redirect")),
        ]
        await asyncio.gather(
            *(scene.post("/api/webhooks", {"url": urls[n % 3]}, me=me, fine=("201", "409", *BUSY)) for n in range(20))
        )
        answer = await scene.ask("GET", "/api/webhooks", me=me, fine=("200", *BUSY))
        found = answer.json() if answer.outcome == "200" else []
        webhooks = found["items"] if isinstance(found, dict) else found
        scene.state["webhooks"] = [one["id"] for one in webhooks]
        scene.too_many("webhooks", len(webhooks), WEBHOOKS_MAX)
        return
    webhook = scene.rng.choice(scene.state["webhooks"])
    await scene.post(f"/api/webhooks/{webhook}/test", {}, me=me, fine=("202", *BUSY))


async def point_inside(scene: AttackRun) -> None:
    """Webhooks to private networks, also by the addresses of translators and tunnels."""
    url = scene.rng.choice(PRIVATE_ADDRESSES)
    await scene.post("/api/webhooks", {"url": url}, me=scene.me, fine=("422", *BUSY), note=f"(to {url})")


FOREIGN: tuple[dict[str, str], ...] = (
    {"Host": "evil.example"}, {"Host": "127.0.0.1.evil.example"}, {"Host": ""}, {"Host": "127.0.0.1@evil.example"},
    {"Host": "evil.example\r\nHost: 127.0.0.1"}, {"X-Forwarded-For": "127.0.0.1"}, {"X-Forwarded-Host": "evil.example"},
    {"Forwarded": "for=127.0.0.1"}, {"X-Real-IP": "127.0.0.1"}, {"X-Forwarded-Proto": "https"},
)  # fmt: skip


async def come_by_other_names(scene: AttackRun) -> None:
    """Requests under foreign names, and with the headers of a proxy that is not there."""
    headers = scene.rng.choice(FOREIGN)
    target = scene.rng.choice(("/api/terms", "/api/auth/login", "/api/auth/jwks", "/openapi.json"))
    await scene.ask("GET", target, headers=headers, fine=("400", "421", "429"), note=f"({json.dumps(headers)})")


async def complain(scene: AttackRun) -> None:
    """Complaints of nobody."""
    address = scene.address
    answer = await scene.post(
        "/api/complaints", {"reason": "other", "text": crafted(scene.rng, 3000)}, address=address, fine=("201", *BUSY)
    )
    if answer.outcome == "201":
        scene.state[address] = scene.state.get(address, 0) + 1
        scene.too_many("complaints an hour of an address", scene.state[address], COMPLAINTS_AN_HOUR)


ATTACKS = (
    Attack("anonymous uploads", upload_unsigned, 8, 2, ("127.0.0.3",), uploads=True),
    Attack("large bodies elsewhere", send_large_bodies, 6, 1, ("127.0.0.3",), ("subjects",), uploads=True),
    Attack("stalled uploads", stall_uploads, 10, 1, roles=("stalls", "stalls too"), uploads=True),
    Attack("dripping uploads", drip_uploads, 6, 0.5, roles=("drips", "drips too"), uploads=True),
    Attack("photo bombs", upload_bombs, 6, 0.1, roles=("bombs",), uploads=True),
    Attack("dripping bodies", drip_bodies, 16, 1, roles=("subjects",)),
    Attack("enlarged pictures by token", enlarge_by_token, 8, 2, roles=("pictures",)),
    Attack("enlarged pictures by cookie", enlarge_by_cookie, 8, 2, roles=("cookies",)),
    Attack("half-open connections", open_and_wait, 262, 26, ("127.0.0.2",)),
    Attack("dripping heads", drip_heads, 40, 4, ("127.0.0.4",)),
    Attack("requests sent ahead", send_ahead, 1, 0.5, ("127.0.0.4",)),
    Attack("large heads", send_large_heads, 1, 0.5, ("127.0.0.4",)),
    Attack("slow readers", read_slowly, 16, 1, roles=("reader",)),
    Attack("event streams", flood_streams, 105, 4, roles=("streams",)),
    Attack("long polls", flood_polls, 32, 2, roles=("polls",)),
    Attack("exports", ask_for_exports, 3, 0.5, roles=("exports",)),
    Attack("runs beyond the quota", ask_for_runs, 1, 0.2, roles=("runs",)),
    Attack("subjects beyond the limit", make_subjects, 1, 0.1, roles=("subjects",), connections=20),
    Attack("crafted suggestions", ask_for_suggestions, 4, 2, roles=("suggestions",)),
    Attack("keys across subjects", repeat_keys, 2, 0.3, roles=("repeats",), uploads=True),
    Attack("sign-ins begun", begin_sign_ins, 2, 4.5, ("127.0.0.7",)),
    Attack("rubbish callbacks", come_back_with_rubbish, 2, 2, ("127.0.0.7",)),
    Attack("rubbish refreshes", refresh_with_rubbish, 2, 1.5, ("127.0.0.7",)),
    Attack("wrong passwords", guess_passwords, 4, 2, ("127.0.0.7", "127.0.0.8")),
    Attack("refresh reuse", reuse_refresh_tokens, 1, 0.1, roles=("reuse",), connections=8),
    Attack("forged tokens", forge_tokens, 2, 1, ("127.0.0.8",), ("subjects",)),
    Attack("webhook floods", flood_webhooks, 2, 1.5, roles=("webhooks",), connections=10),
    Attack("webhooks inside", point_inside, 1, 0.5, roles=("points",)),
    Attack("other names", come_by_other_names, 2, 1, ("127.0.0.8",)),
    Attack("complaints", complain, 2, 0.3, ("127.0.0.4", "127.0.0.7", "127.0.0.8")),
)
ROLES = tuple(dict.fromkeys(role for attack in ATTACKS for role in attack.roles))
"""Who has an account among the attackers."""
WITH_MODEL = ("pictures", "cookies", "reader")
"""Whose subject has a model, and who has one large picture of it."""


def address_of(role: str) -> str:
    """Where an attacker with an account comes from: streams and polls, which hold many connections, are not among the others."""
    return {"streams": "127.0.0.5", "polls": "127.0.0.6"}.get(role, "127.0.0.9")


@dataclass
class RateLimiter:
    """Limits rounds to `per_s`, evenly spaced."""

    per_s: float
    _next: float = 0.0

    async def wait(self) -> None:
        now = time.monotonic()
        self._next, at = max(self._next, now) + 1 / self.per_s, max(self._next, now)
        await asyncio.sleep(at - now)


async def run_attack(scene: AttackRun) -> None:
    """One attack until its time is over; a round that breaks by itself is wrong, too, since nothing was attacked by it."""
    limiter = RateLimiter(scene.attack.per_s)

    async def rounds() -> None:
        while time.monotonic() < scene.until:
            await limiter.wait()
            try:
                await scene.attack.act(scene)
            except asyncio.CancelledError:
                scene.unfinished += 1
                raise
            except NotSignedIn as error:
                scene.wrong[f"the attacker could not sign in: {error}"] += 1
            except Exception as error:
                scene.wrong[f"the attack broke: {type(error).__name__}: {error}"] += 1

    with suppress(TimeoutError):
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + scene.until - time.monotonic()):
            await asyncio.gather(*(rounds() for _ in range(scene.attack.at_once)))


async def attack(plan: Mapping[str, Any], *, seconds: float, seed: int) -> dict[str, Any]:
    """All attacks at once for so long, and what came of them. `plan`: as `benchmarks.attack.prepare` makes it."""
    service, receiver = Service(plan["port"]), Receiver()
    await receiver.start()
    about = {
        **plan["attackers"],
        "emails": [one["email"] for one in plan["honest"]],
        "receiver": receiver.port,
        "photo": base64.b64decode(plan["photo"]),
    }
    accounts = {
        role: Account(service, one["email"], plan["password"], address_of(role))
        for role, one in plan["attackers"].items()
    }
    for account in accounts.values():
        await account.sign_in()
    await wait_for_start()
    until = time.monotonic() + seconds
    scenes = [AttackRun(one, service, accounts, about, until, random.Random(f"{seed} {one.name}")) for one in ATTACKS]
    await asyncio.gather(*map(run_attack, scenes))
    receiver.stop()
    return summary(scenes, receiver) | {"connections_max": service.held_max, "uploads_max": service.uploads_max}


async def wait_for_start() -> None:
    """Print that this process is ready, and wait for a line on standard input."""
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)


def summary(scenes: Sequence[AttackRun], receiver: Receiver) -> dict[str, Any]:
    """What each attack was answered, and everything that was wrong."""
    wrong = [f"{one.attack.name}: {text} ({count} times)" for one in scenes for text, count in one.wrong.items()]
    wrong += [
        f"{one.attack.name}: it never reached the service" for one in scenes if not (one.answers or one.unfinished)
    ]
    if not receiver.messages:
        wrong.append("webhook floods: no message came")
    if receiver.private:
        wrong.append(f"webhook floods: a redirect was followed {receiver.private} times")
    if receiver.longest_s > HELD_S / 2:
        wrong.append(f"webhook floods: a delivery was held for {receiver.longest_s:.0f} s by an answer that drips")
    attacks = {
        one.attack.name: {
            "does": " ".join((one.attack.act.__doc__ or "").split()),
            "at_once": one.attack.at_once,
            "per_s": one.attack.per_s,
            "answers": dict(one.answers.most_common()),
            "unfinished": one.unfinished,
            "slowest_ms": round(one.slowest_ms),
        }
        for one in scenes
    }
    webhooks = {"received": receiver.messages, "longest_s": round(receiver.longest_s, 1)}
    return {"attacks": attacks, "wrong": wrong, "webhooks": webhooks}


def attack_all(plan_file: str, seconds: str, seed: str, out: str) -> None:
    """All attackers, in a process of their own; writes what they were answered, and the processor time that it took them."""
    os.nice(NICE)
    plan, before = json.loads(Path(plan_file).read_text()), sum(os.times()[:2])
    found = asyncio.run(attack(plan, seconds=float(seconds), seed=int(seed)))
    write_json(Path(out), found | {"cpu_s": round(sum(os.times()[:2]) - before, 1)})
