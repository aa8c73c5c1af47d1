"""The engine: one worker thread draws, one request at a time, with the adapter merged that the request names.

FLUX is bound by arithmetic at one picture, so that batches of strangers gain nothing; what costs is waiting for an adapter.
So the next request's adapter is fetched while the current one draws.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from photoflux.errors import PhotoFluxError
from photoflux.serving.adapters import Adapter, AdapterKey, Pool
from photoflux.serving.queue import Closed, FairQueue, Full

if TYPE_CHECKING:
    from diffusers import FluxPipeline
    from PIL import Image

    from photoflux.flux.base import BaseSpec
    from photoflux.flux.text import PromptEmbeds

log = logging.getLogger(__name__)

WAITING = 64
PROMPTS_KEPT = 512
FIRST_ESTIMATE_S = 1.0


class Busy(PhotoFluxError):
    """The line is full. `retry_after_s` is when there should be room."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"too many pictures are waiting to be drawn; ask again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class Draining(PhotoFluxError):
    """The engine is about to stop and takes nothing new."""


class TooLate(PhotoFluxError):
    """The request's deadline passed before its pictures were drawn."""


@dataclass(eq=False)
class Request:
    """Pictures to draw: one per seed, each with the prompt and in the style. `deadline` is in `time.monotonic()` seconds."""

    key: AdapterKey
    prompt: str
    seeds: tuple[int, ...]
    style: str = "none"
    deadline: float = float("inf")
    result: Future[list[Image.Image]] = field(default_factory=Future)
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def owner(self) -> str:
        return self.key.owner

    @property
    def weight(self) -> int:
        """How much work it is, in pictures; a redrawn style costs another one or so."""
        from photoflux.styles import REDRAWS

        return len(self.seeds) * (2 if self.style in REDRAWS else 1)


class Pace:
    """Seconds per picture, as a moving average."""

    def __init__(self) -> None:
        self.seconds, self.known = FIRST_ESTIMATE_S, False

    def note(self, seconds: float, weight: int) -> None:
        each = seconds / max(1, weight)
        self.seconds = 0.8 * self.seconds + 0.2 * each if self.known else each
        self.known = True


class Engine:
    """Draws with a base and any number of adapters, of which `host_bytes` stay in memory and `device_bytes` on the device.

    `fetch` gives the adapter of a key, from wherever it is kept; what it raises fails that request and no other.
    """

    def __init__(
        self,
        pipe: FluxPipeline,
        *,
        spec: BaseSpec,
        fetch: Callable[[AdapterKey], Adapter],
        waiting: int = WAITING,
        host_bytes: int = 8 << 30,
        device_bytes: int = 2 << 30,
    ) -> None:
        from photoflux.serving.merging import Merger

        self.pipe, self.spec = pipe, spec
        self.merger = Merger(pipe.transformer, spec.lora_targets)
        self.host = Pool(host_bytes, lambda key: fetch(key).pinned())
        self.device = Pool(device_bytes, lambda key: self.host.get(key).to(pipe.device))
        self.line: FairQueue[Request] = FairQueue(waiting)
        self.pace = Pace()
        self.drawing: Request | None = None
        self._fetching: threading.Thread | None = None
        self._merged: AdapterKey | None = None
        self._turn = threading.Lock()
        self._prompts: OrderedDict[str, PromptEmbeds] = OrderedDict()
        self._worker = threading.Thread(target=self._work, name="engine", daemon=True)
        self._worker.start()

    def submit(self, request: Request) -> Future[list[Image.Image]]:
        """Put a request in line. Raises Busy with an estimate when there is no room, Draining when the engine stops."""
        try:
            self.line.put(request)
        except Full:
            raise Busy(self.wait_s(request.owner)) from None
        except Closed:
            raise Draining("the engine is stopping; ask another one") from None
        return request.result

    def wait_s(self, owner: str) -> float:
        """About how long a new request of this owner would wait: what is drawn before it, at the pace of late."""
        now = self.drawing
        ahead = sum(request.weight for request in self.line.ahead_of(owner)) + (now.weight if now else 0)
        return max(1.0, ahead * self.pace.seconds)

    def cancel(self, request: Request) -> None:
        """Take it out of the line, or stop it after the picture that is being drawn."""
        request.cancelled.set()
        if self.line.remove(request):
            _fail(request, CancelledError())

    def forget(self, owner: str) -> None:
        """Drop all that is kept of an owner, once the request that is being drawn is done."""
        with self._turn:
            self.host.forget(owner)
            self.device.forget(owner)
            self._prompts.clear()
            if self._merged and self._merged.owner == owner:
                self._merged = None
                self.merger.restore()

    def drain(self, timeout_s: float | None = None) -> bool:
        """Take nothing new and finish what waits; False when that took longer than `timeout_s`."""
        self.line.close()
        self._worker.join(timeout_s)
        return not self._worker.is_alive()

    @property
    def alive(self) -> bool:
        return self._worker.is_alive()

    def _work(self) -> None:
        while True:
            try:
                request = self.line.get()
            except Closed:
                return
            self.drawing = request
            try:
                with self._turn:
                    self._serve(request)
            except BaseException as error:
                _fail(request, error)
                if not isinstance(error, PhotoFluxError | CancelledError):
                    log.exception("a request failed")
            finally:
                self.drawing = None

    def _serve(self, request: Request) -> None:
        self._check(request)
        self._merge(request.key, self.device.get(request.key))
        pictures = []
        for seed in request.seeds:
            self._check(request)
            self._fetch_next()
            started = time.monotonic()
            pictures.append(self._draw(request.prompt, seed=seed, style=request.style))
            self.pace.note(time.monotonic() - started, request.weight // len(request.seeds))
        request.result.set_result(pictures)

    def _check(self, request: Request) -> None:
        if request.cancelled.is_set():
            raise CancelledError
        if time.monotonic() > request.deadline:
            raise TooLate("the pictures could not be drawn in time; ask again, or for fewer")

    def _fetch_next(self) -> None:
        """Get the next request's adapter while this one draws. Its failure is told when its turn comes."""
        following = self.line.peek()
        if following and following.key not in self.device and not (self._fetching and self._fetching.is_alive()):
            self._fetching = threading.Thread(target=_quietly, args=(self.device.get, following.key), daemon=True)
            self._fetching.start()

    def _merge(self, key: AdapterKey, adapter: Adapter) -> None:
        if self._merged == key:
            return
        self._merged = None
        self.merger.merge(adapter)
        self._merged = key

    def _draw(self, prompt: str, *, seed: int, style: str) -> Image.Image:
        from photoflux.flux.sampling import decode, noise_for, sample_latents
        from photoflux.styles import REDRAWS, redrawn

        latents = sample_latents(
            self.pipe.transformer, self._embedded(prompt), noise_for([seed], spec=self.spec), spec=self.spec
        )
        image = decode(self.pipe.vae, latents)[0]
        if style not in REDRAWS:
            return image
        return redrawn(image, prompt, style=REDRAWS[style], pipe=self.pipe, spec=self.spec, seed=seed)

    def _embedded(self, prompt: str) -> PromptEmbeds:
        """The prompt's embedding, of the last few hundred from memory; the words themselves are not kept."""
        from photoflux.flux.text import encode_prompts

        name = hashlib.sha256(prompt.encode()).hexdigest()
        if name not in self._prompts:
            self._prompts[name] = encode_prompts(self.pipe, [prompt], spec=self.spec)
            while len(self._prompts) > PROMPTS_KEPT:
                self._prompts.popitem(last=False)
        self._prompts.move_to_end(name)
        return self._prompts[name]


def _fail(request: Request, error: BaseException) -> None:
    if not request.result.done():
        request.result.set_exception(error)


def _quietly(get: Callable[[AdapterKey], Adapter], key: AdapterKey) -> None:
    try:
        get(key)
    except Exception as error:
        log.info("an adapter could not be fetched ahead: %s", error)
