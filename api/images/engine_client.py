"""The engine's HTTP client: images for a prompt, with a capability for one adapter, retried while somebody waits for them."""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import httpx2
from anyio.from_thread import start_blocking_portal

from api.accounts.tokens import Capability, Tokens
from photoflux.errors import PhotoFluxError

PATIENCE_S, CALL_S, ANSWER_S = 300.0, 55.0, 60.0
"""Seconds for which a request is retried, that one call may compute, and until a call's whole answer must be there."""
FORGET_S, READY_S, CONNECT_S = 10.0, 2.0, 2.0
WANTED_CHECK_S = 0.2
"""Seconds between checks whether the images are still wanted, also while a call is running."""
IMAGE_BYTES = 16 << 20
"""Bytes that one image of an answer may take: 1024 x 1024 px as PNG in base64 are 4 MiB at most."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
RETRIED_STATUSES = (429, 502, 503, 504)
READ_HEADERS = ("content-type", "retry-after")
TOO_LATE = "the pictures could not be drawn in time; ask again"


class Rejected(PhotoFluxError):
    """The engine refuses the request, however often it is sent."""


class Cancelled(PhotoFluxError):
    """Nobody waits for these images any more, or the engine did not get to them in time."""


@dataclass(frozen=True)
class EngineRequest:
    """Asks for images of one prompt, one per seed."""

    owner: str
    model_id: str
    adapter_sha256: str
    prompt: str
    seeds: list[int]
    style: str


class EngineClient:
    """Calls the engine at `url`. Calls run on the client's own thread, so that they can be cancelled."""

    def __init__(self, url: str, tokens: Tokens, *, predict_route: str = "/predict") -> None:
        self.tokens, self.predict_route = tokens, predict_route
        headers = {"Accept-Encoding": "identity"}  # uncompressed, so that limits count what arrives
        timeout = httpx2.Timeout(ANSWER_S, connect=CONNECT_S)
        self._http = httpx2.AsyncClient(base_url=url, headers=headers, timeout=timeout)
        self._open = ExitStack()
        self._portal = self._open.enter_context(start_blocking_portal(name="engine-client"))
        self._open.callback(self._portal.call, self._http.aclose)

    def close(self) -> None:
        """Close the connections and end the thread."""
        self._open.close()

    def generate(self, request: EngineRequest, *, is_wanted: Callable[[], bool]) -> list[bytes]:
        """PNG files, one per seed. While `is_wanted()`, a call to an engine that is busy, stopping or away is repeated.

        A call whose images are not wanted any more is cancelled, upon which the engine stops computing. Raises Rejected, or Cancelled.
        """
        deadline, pause = time.monotonic() + PATIENCE_S, FIRST_PAUSE_S
        while time.monotonic() < deadline and is_wanted():
            answer = self._predict(request, is_wanted)
            if answer is not None and answer.status_code == 200:
                return [base64.b64decode(one["image"]) for one in answer.json()["predictions"]]
            if answer is not None and answer.status_code not in RETRIED_STATUSES:
                raise Rejected(str(_detail(answer)))
            pause_s = max(_retry_after_s(answer), pause) * random.uniform(0.8, 1.2)
            _sleep(min(LONGEST_PAUSE_S, pause_s), is_wanted)
            pause = min(LONGEST_PAUSE_S, pause * 1.6)
        raise Cancelled(TOO_LATE)

    def forget(self, owner: str) -> None:
        """Have the engine drop an owner's adapters. Raises httpx2.HTTPError."""
        capability = self.tokens.capability_token(Capability(owner, ""))
        self._start_call("POST", "/forget", {"capability": capability}, seconds=FORGET_S).result().raise_for_status()

    def ready(self) -> bool:
        """Whether the engine answers."""
        try:
            return self._start_call("GET", "/health", seconds=READY_S).result().status_code == 200
        except httpx2.HTTPError:
            return False

    def _predict(self, request: EngineRequest, is_wanted: Callable[[], bool]) -> httpx2.Response | None:
        """The engine's answer; None where it cannot be reached, went away or answers without end. Raises Cancelled."""
        one = {
            "model": request.model_id,
            "adapter_sha256": request.adapter_sha256,
            "prompt": request.prompt,
            "style": request.style,
        }
        capability = self.tokens.capability_token(Capability(request.owner, request.adapter_sha256))
        body = {
            "instances": [one | {"seed": seed} for seed in request.seeds],
            "parameters": {"capability": capability, "deadline_s": CALL_S},
        }
        call = self._start_call("POST", self.predict_route, body, images=len(request.seeds))
        try:
            while not wait([call], timeout=WANTED_CHECK_S).done:
                if not is_wanted():
                    raise Cancelled(TOO_LATE)
            return call.result()
        except httpx2.HTTPError:
            return None
        finally:
            call.cancel()  # which closes its connection; does nothing to one that has its answer

    def _start_call(
        self, method: str, path: str, body: Any = None, *, seconds: float | None = None, images: int = 1
    ) -> Future[httpx2.Response]:
        """Starts a call on the client's own thread."""
        limits = {"seconds": seconds or ANSWER_S, "limit_bytes": images * IMAGE_BYTES}
        return self._portal.start_task_soon(partial(self._call, method, path, body, **limits))

    async def _call(self, method: str, path: str, body: Any, *, seconds: float, limit_bytes: float) -> httpx2.Response:
        """The whole answer. Raises httpx2.HTTPError, also where it takes longer or is larger than is allowed here."""
        content = bytearray()
        try:
            with anyio.fail_after(seconds):
                async with self._http.stream(method, path, json=body) as answer:
                    async for part in answer.aiter_raw():
                        content += part
                        if len(content) > limit_bytes:
                            raise httpx2.ReadError(f"the answer is larger than {limit_bytes} bytes")
        except TimeoutError as error:
            raise httpx2.ReadTimeout(f"the answer was not there whole after {seconds:g} s") from error
        headers = {name: answer.headers[name] for name in READ_HEADERS if name in answer.headers}
        return httpx2.Response(answer.status_code, headers=headers, content=bytes(content), request=answer.request)


def _sleep(seconds: float, is_wanted: Callable[[], bool]) -> None:
    """Sleep, but no longer than the images are wanted."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and is_wanted():
        time.sleep(min(left, WANTED_CHECK_S))


def _retry_after_s(answer: httpx2.Response | None) -> float:
    """Seconds of an answer's Retry-After; 0 where it has none, or a date."""
    value = answer.headers.get("retry-after", "") if answer is not None else ""
    return float(value) if value.isdecimal() else 0.0


def _detail(answer: httpx2.Response) -> Any:
    try:
        return answer.json().get("detail", answer.text)
    except ValueError:
        return f"the engine answered {answer.status_code}"
