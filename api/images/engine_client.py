"""Asking the engine: pictures for a prompt, with a capability for one adapter, waited for as long as it makes sense."""

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
"""For how long an engine is asked again, how long it may draw in one call, and when its answer must be there whole."""
FORGET_S, READY_S, CONNECT_S = 10.0, 2.0, 2.0
STILL_S = 0.2
"""How often is asked whether anybody still waits, also while a call is under way."""
PICTURE_BYTES = 16 << 20
"""What one picture of an answer may take: 1024 x 1024 px as PNG in base64 are 4 MiB at most."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
AGAIN = (429, 502, 503, 504)
KEPT_HEADERS = ("content-type", "retry-after")
TOO_LATE = "the pictures could not be drawn in time; ask again"


class Refused(PhotoFluxError):
    """The engine will not draw this, however often it is asked."""


class GivenUp(PhotoFluxError):
    """Nobody waits for these pictures any more, or the engine did not get to them in time."""


@dataclass(frozen=True)
class Wanted:
    """Pictures of one prompt, one per seed."""

    owner: str
    model_id: str
    adapter_sha256: str
    prompt: str
    seeds: list[int]
    style: str


class EngineClient:
    """Talks to the engine at `url`, by the routes it was given. Calls run on a thread of its own, so that they can be broken off."""

    def __init__(self, url: str, tokens: Tokens, *, predict_route: str = "/predict") -> None:
        self.tokens, self.predict_route = tokens, predict_route
        headers = {"Accept-Encoding": "identity"}  # what arrives is then what is counted
        timeout = httpx2.Timeout(ANSWER_S, connect=CONNECT_S)
        self._http = httpx2.AsyncClient(base_url=url, headers=headers, timeout=timeout)
        self._open = ExitStack()
        self._portal = self._open.enter_context(start_blocking_portal(name="engine-client"))
        self._open.callback(self._portal.call, self._http.aclose)

    def close(self) -> None:
        """Close the connections and end the thread."""
        self._open.close()

    def draw(self, wanted: Wanted, *, still: Callable[[], bool]) -> list[bytes]:
        """PNG files, one per seed. While `still()` holds, an engine that is busy, stopping or away is asked again.

        A call whose pictures nobody waits for any more is broken off, upon which the engine ends drawing. Raises Refused, or
        GivenUp.
        """
        deadline, pause = time.monotonic() + PATIENCE_S, FIRST_PAUSE_S
        while time.monotonic() < deadline and still():
            answer = self._asked(wanted, still)
            if answer is not None and answer.status_code == 200:
                return [base64.b64decode(one["image"]) for one in answer.json()["predictions"]]
            if answer is not None and answer.status_code not in AGAIN:
                raise Refused(str(_detail(answer)))
            pause_s = max(_retry_after_s(answer), pause) * random.uniform(0.8, 1.2)
            _sleep(min(LONGEST_PAUSE_S, pause_s), still)
            pause = min(LONGEST_PAUSE_S, pause * 1.6)
        raise GivenUp(TOO_LATE)

    def forget(self, owner: str) -> None:
        """Have the engine drop what it keeps of an owner. Raises httpx2.HTTPError."""
        capability = self.tokens.capability_token(Capability(owner, ""))
        self._begun("POST", "/forget", {"capability": capability}, seconds=FORGET_S).result().raise_for_status()

    def ready(self) -> bool:
        """Whether the engine answers."""
        try:
            return self._begun("GET", "/health", seconds=READY_S).result().status_code == 200
        except httpx2.HTTPError:
            return False

    def _asked(self, wanted: Wanted, still: Callable[[], bool]) -> httpx2.Response | None:
        """The engine's answer; None when it cannot be reached, went away or answers without end. Raises GivenUp."""
        one = {
            "model": wanted.model_id, "adapter_sha256": wanted.adapter_sha256, "prompt": wanted.prompt,
            "style": wanted.style,
        }  # fmt: skip
        capability = self.tokens.capability_token(Capability(wanted.owner, wanted.adapter_sha256))
        body = {
            "instances": [one | {"seed": seed} for seed in wanted.seeds],
            "parameters": {"capability": capability, "deadline_s": CALL_S},
        }
        call = self._begun("POST", self.predict_route, body, pictures=len(wanted.seeds))
        try:
            while not wait([call], timeout=STILL_S).done:
                if not still():
                    raise GivenUp(TOO_LATE)
            return call.result()
        except httpx2.HTTPError:
            return None
        finally:
            call.cancel()  # which closes its connection; does nothing to one that has its answer

    def _begun(
        self, method: str, path: str, body: Any = None, *, seconds: float | None = None, pictures: int = 1
    ) -> Future[httpx2.Response]:
        """A call that is under way on the client's own thread."""
        limits = {"seconds": seconds or ANSWER_S, "limit_bytes": pictures * PICTURE_BYTES}
        return self._portal.start_task_soon(partial(self._called, method, path, body, **limits))

    async def _called(
        self, method: str, path: str, body: Any, *, seconds: float, limit_bytes: float
    ) -> httpx2.Response:
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
        headers = {name: answer.headers[name] for name in KEPT_HEADERS if name in answer.headers}
        return httpx2.Response(answer.status_code, headers=headers, content=bytes(content), request=answer.request)


def _sleep(seconds: float, still: Callable[[], bool]) -> None:
    """Sleep, but no longer than `still()` holds."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and still():
        time.sleep(min(left, STILL_S))


def _retry_after_s(answer: httpx2.Response | None) -> float:
    """Seconds after which a busy engine wants to be asked again; 0 where it does not say so as a number."""
    told = answer.headers.get("retry-after", "") if answer is not None else ""
    return float(told) if told.isdecimal() else 0.0


def _detail(answer: httpx2.Response) -> Any:
    try:
        return answer.json().get("detail", answer.text)
    except ValueError:
        return f"the engine answered {answer.status_code}"
