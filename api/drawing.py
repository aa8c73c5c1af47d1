"""Asking the engine: pictures for a prompt, with a capability for one adapter, waited for as long as it makes sense."""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx2

from api.tokens import Capability, Tokens
from photoflux.errors import PhotoFluxError

PATIENCE_S, CALL_S = 300.0, 55.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
AGAIN = (429, 502, 503, 504)


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
    """Talks to the engine at `url`, by the routes it was given."""

    def __init__(self, url: str, tokens: Tokens, *, predict_route: str = "/predict") -> None:
        self.tokens, self.predict_route = tokens, predict_route
        self._http = httpx2.Client(base_url=url, timeout=httpx2.Timeout(CALL_S + 5, connect=2.0))

    def draw(self, wanted: Wanted, *, still: Callable[[], bool]) -> list[bytes]:
        """PNG files, one per seed. While `still()` holds, an engine that is busy, stopping or away is asked again.

        Raises Refused, or GivenUp.
        """
        deadline, pause = time.monotonic() + PATIENCE_S, FIRST_PAUSE_S
        while time.monotonic() < deadline and still():
            answer = self._asked(wanted)
            if answer is not None and answer.status_code == 200:
                return [base64.b64decode(one["image"]) for one in answer.json()["predictions"]]
            if answer is not None and answer.status_code not in AGAIN:
                raise Refused(str(_detail(answer)))
            wait = float(answer.headers.get("retry-after", 0)) if answer is not None else 0.0
            time.sleep(min(LONGEST_PAUSE_S, max(wait, pause)) * random.uniform(0.8, 1.2))
            pause = min(LONGEST_PAUSE_S, pause * 1.6)
        raise GivenUp("the pictures could not be drawn in time; ask again")

    def forget(self, owner: str) -> None:
        """Have the engine drop what it keeps of an owner. Raises httpx2.HTTPError."""
        capability = self.tokens.capability(Capability(owner, ""))
        self._http.post("/forget", json={"capability": capability}).raise_for_status()

    def ready(self) -> bool:
        """Whether the engine answers."""
        try:
            return self._http.get("/health", timeout=2.0).status_code == 200
        except httpx2.HTTPError:
            return False

    def _asked(self, wanted: Wanted) -> httpx2.Response | None:
        """The engine's answer; None when it cannot be reached or went away."""
        one = {
            "model": wanted.model_id, "adapter_sha256": wanted.adapter_sha256, "prompt": wanted.prompt,
            "style": wanted.style,
        }  # fmt: skip
        capability = self.tokens.capability(Capability(wanted.owner, wanted.adapter_sha256))
        body = {
            "instances": [one | {"seed": seed} for seed in wanted.seeds],
            "parameters": {"capability": capability, "deadline_s": CALL_S},
        }
        try:
            return self._http.post(self.predict_route, json=body)
        except httpx2.HTTPError:
            return None


def _detail(answer: httpx2.Response) -> Any:
    try:
        return answer.json().get("detail", answer.text)
    except ValueError:
        return f"the engine answered {answer.status_code}"
