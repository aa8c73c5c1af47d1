"""The engine: one worker thread draws one request at a time, with the request's adapter merged into the weights.

FLUX is compute-bound at batch size 1, so that batching requests gains nothing; fetching adapters is what costs. So the next
request's adapter is fetched while the current request is drawn.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from photoflux.errors import PhotoFluxError
from photoflux.serving.adapters import Adapter, AdapterKey, AdapterPool
from photoflux.serving.queue import FairQueue, QueueClosed, QueueFull

if TYPE_CHECKING:
    from diffusers import FluxPipeline
    from PIL import Image

    from photoflux.flux.spec import BaseSpec
    from photoflux.flux.text import PromptEmbeds

log = logging.getLogger(__name__)

QUEUE_LIMIT = 64
PROMPTS_CACHED = 512
FIRST_ESTIMATE_S = 1.0
ERASURE_CHECK_S, IDLE_CHECK_S, SWEEP_S = 5.0, 20.0, 5.0
"""Whether an owner was erased is checked when their adapter is used, at most every ERASURE_CHECK_S; for idle adapters by a sweep every
SWEEP_S, at most every IDLE_CHECK_S. So an erased owner's adapter is in memory for IDLE_CHECK_S + SWEEP_S at most."""


class Busy(PhotoFluxError):
    """The queue is full. `retry_after_s` is when there should be room."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"too many pictures are waiting to be drawn; ask again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class Draining(PhotoFluxError):
    """The engine is about to stop and takes nothing new."""


class DeadlineExceeded(PhotoFluxError):
    """The request's deadline passed before its images were drawn."""


class OwnerForgotten(PhotoFluxError):
    """The request's owner was erased: nothing is drawn for them any more."""


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

    def is_wanted(self) -> bool:
        """Whether it was not cancelled."""
        return not self.cancelled.is_set()

    @property
    def cost(self) -> int:
        """How much work it is, in pictures; redrawing in a style costs about one more for each."""
        from photoflux.styles import REDRAWS

        return len(self.seeds) * (2 if self.style in REDRAWS else 1)


class LatencyEstimator:
    """Seconds per unit of cost, about one picture, as a moving average."""

    def __init__(self) -> None:
        self.seconds, self.measured = FIRST_ESTIMATE_S, False

    def observe(self, seconds: float, cost: int) -> None:
        per_cost = seconds / max(1, cost)
        self.seconds = 0.8 * self.seconds + 0.2 * per_cost if self.measured else per_cost
        self.measured = True


class Engine:
    """Draws with a base and any number of adapters, of which up to `host_bytes` are cached in memory and `device_bytes` on the device.

    `fetch` loads the adapter of a key; what it raises fails that request and no other. `is_erased` says whether an owner was erased;
    without it only `forget` drops an owner's adapters.
    """

    def __init__(
        self,
        pipe: FluxPipeline,
        *,
        spec: BaseSpec,
        fetch: Callable[[AdapterKey], Adapter],
        is_erased: Callable[[str], bool] | None = None,
        waiting: int = QUEUE_LIMIT,
        host_bytes: int = 8 << 30,
        device_bytes: int = 2 << 30,
    ) -> None:
        from photoflux.serving.merging import Merger

        self.pipe, self.spec = pipe, spec
        self.merger = Merger(pipe.transformer, spec.lora_targets)
        self.host = AdapterPool(host_bytes, lambda key, _: fetch(key).pinned())
        self.device = AdapterPool(device_bytes, lambda key, wanted: self.host.get(key, wanted=wanted).to(pipe.device))
        self.queue: FairQueue[Request] = FairQueue(waiting)
        self.latency = LatencyEstimator()
        self.current: Request | None = None
        self._fetching: threading.Thread | None = None
        self._merged: AdapterKey | None = None
        self._weights_lock, self._current_owner = threading.Lock(), ""
        self._unfinished = set[Request]()
        self._prompts: OrderedDict[str, PromptEmbeds] = OrderedDict()
        self._prompts_lock = threading.Lock()
        self._is_erased, self._checked_at = is_erased, dict[str, float]()
        self._stopped = threading.Event()
        self._worker = threading.Thread(target=self._run_worker, name="engine", daemon=True)
        self._worker.start()
        if is_erased:
            threading.Thread(target=self._sweep, name="engine-sweep", daemon=True).start()

    def submit(self, request: Request) -> Future[list[Image.Image]]:
        """Queue a request. Raises Busy with an estimate when there is no room, Draining when the engine stops."""
        self._unfinished.add(request)  # before it waits, so that `forget` misses none
        try:
            self.queue.put(request)
        except (QueueFull, QueueClosed) as error:
            self._unfinished.discard(request)
            if isinstance(error, QueueFull):
                raise Busy(self.wait_s(request.owner)) from None
            raise Draining("the engine is stopping; ask another one") from None
        request.result.add_done_callback(lambda _: self._unfinished.discard(request))
        return request.result

    def wait_s(self, owner: str) -> float:
        """Estimated seconds until a new request of this owner begins: the cost before it times the latency."""
        current = self.current
        ahead = sum(request.cost for request in self.queue.ahead_of(owner)) + (current.cost if current else 0)
        return max(1.0, ahead * self.latency.seconds)

    def cancel(self, request: Request) -> None:
        """Take it out of the queue, or stop it after the denoise step that is under way."""
        request.cancelled.set()
        if self.queue.remove(request):
            _fail(request, CancelledError())

    def forget(self, owner: str) -> None:
        """Drop an owner's cached adapters and prompts, and cancel their requests.

        Waits for the denoise step under way if it is theirs, but never for other owners' requests.
        """
        for request in [request for request in list(self._unfinished) if request.owner == owner]:
            self.cancel(request)
        self._drop_adapters(owner)
        while self._is_in_weights(owner):
            if self._weights_lock.acquire(timeout=0.05):
                try:
                    self._restore(owner)
                finally:
                    self._weights_lock.release()
        with self._prompts_lock:
            self._prompts.clear()

    def _drop_adapters(self, owner: str) -> None:
        self.host.forget(owner)
        self.device.forget(owner)

    def _is_in_weights(self, owner: str) -> bool:
        """Whether an owner's adapter is merged into the weights, or about to be."""
        merged = self._merged
        return self._current_owner == owner or (merged is not None and merged.owner == owner)

    def _restore(self, owner: str) -> None:
        if self._merged and self._merged.owner == owner:
            self._merged = None
            self.merger.restore()

    def drain(self, timeout_s: float | None = None) -> bool:
        """Take nothing new and finish what waits; False when that took longer than `timeout_s`."""
        self.queue.close()
        self._worker.join(timeout_s)
        self._stopped.set()
        return not self._worker.is_alive()

    @property
    def alive(self) -> bool:
        return self._worker.is_alive()

    def _run_worker(self) -> None:
        while True:
            try:
                request = self.queue.get()
            except QueueClosed:
                return
            self.current = request
            try:
                self._serve(request)
            except BaseException as error:
                _fail(request, error)
                if not isinstance(error, PhotoFluxError | CancelledError):
                    log.exception("a request failed")
            finally:
                self.current = None

    def _serve(self, request: Request) -> None:
        if not request.result.set_running_or_notify_cancel():
            return
        self._check(request)
        self._refuse_erased(request.owner)
        adapter = self.device.get(request.key, wanted=request.is_wanted)
        with self._weights_lock:
            # set before the check: `forget` cancels first and reads this afterwards
            self._current_owner = request.owner
            try:
                self._check(request)
                self._merge(request.key, adapter)
                images = [self._generate_timed(request, seed) for seed in request.seeds]
            finally:
                self._current_owner = ""
        request.result.set_result(images)

    def _generate_timed(self, request: Request, seed: int) -> Image.Image:
        """One image of a request; its duration goes into the latency estimate."""
        self._fetch_next()
        started = time.monotonic()
        check = partial(self._check_between_denoise_steps, request)
        image = self._generate(request.prompt, seed=seed, style=request.style, check=check)
        self.latency.observe(time.monotonic() - started, request.cost // len(request.seeds))
        return image

    def _check_between_denoise_steps(self, request: Request) -> None:
        """End a request between denoise steps. Raises CancelledError, DeadlineExceeded."""
        if self.pipe.device.type == "cuda":
            import torch

            # CUDA calls are asynchronous: without waiting, all steps would be queued before the first check.
            torch.cuda.current_stream(self.pipe.device).synchronize()
        self._check(request)

    def _check(self, request: Request) -> None:
        if request.cancelled.is_set():
            raise CancelledError
        if time.monotonic() > request.deadline:
            raise DeadlineExceeded("the pictures could not be drawn in time; ask again, or for fewer")

    def _refuse_erased(self, owner: str) -> None:
        """Raises OwnerForgotten for an erased owner, after dropping their adapters."""
        if self._was_erased(owner, within_s=ERASURE_CHECK_S):
            self._drop_adapters(owner)  # the sweep also restores the weights, which would wait for this thread
            raise OwnerForgotten("nothing is drawn for an account that was erased")

    def _was_erased(self, owner: str, *, within_s: float) -> bool:
        """Whether an owner is erased; a check that said no within the last `within_s` seconds is not repeated."""
        now = time.monotonic()
        if self._is_erased is None or self._checked_at.get(owner, float("-inf")) > now - within_s:
            return False
        if self._is_erased(owner):
            return True
        self._checked_at[owner] = now
        return False

    def _sweep(self) -> None:
        """Forget erased owners whose adapters are idle, also where this engine was not told to `forget`."""
        while not self._stopped.wait(SWEEP_S):
            merged = self._merged
            owners = self.host.owners() | self.device.owners() | ({merged.owner} if merged else set())
            for owner in owners:
                try:
                    if self._was_erased(owner, within_s=IDLE_CHECK_S):
                        self.forget(owner)
                except Exception as error:  # the next sweep tries again
                    log.warning("whether an owner was erased could not be asked: %s", type(error).__name__)
            for gone in self._checked_at.keys() - owners:
                self._checked_at.pop(gone, None)

    def _fetch_next(self) -> None:
        """Fetch the next request's adapter in the background; a failure is raised again when that request is drawn."""
        following = self.queue.peek()
        if following and following.key not in self.device and not (self._fetching and self._fetching.is_alive()):
            get = partial(self.device.get, following.key, wanted=following.is_wanted)
            self._fetching = threading.Thread(target=_fetch_ahead, args=(get,), daemon=True)
            self._fetching.start()

    def _merge(self, key: AdapterKey, adapter: Adapter) -> None:
        if self._merged == key:
            return
        self._merged = None
        self.merger.merge(adapter)
        self._merged = key

    def _generate(self, prompt: str, *, seed: int, style: str, check: Callable[[], None]) -> Image.Image:
        from photoflux.flux.sampling import decode, noise_for, sample_latents
        from photoflux.styles import REDRAWS, redraw_image

        embeds, noise = self._embed(prompt), noise_for([seed], spec=self.spec)
        latents = sample_latents(self.pipe.transformer, embeds, noise, spec=self.spec, check=check)
        check()
        image = decode(self.pipe.vae, latents)[0]
        if style not in REDRAWS:
            return image
        redraw = REDRAWS[style]
        return redraw_image(image, prompt, style=redraw, pipe=self.pipe, spec=self.spec, seed=seed, check=check)

    def _embed(self, prompt: str) -> PromptEmbeds:
        """The prompt's embedding, cached by the prompt's digest: the text itself is not stored."""
        from photoflux.flux.text import encode_prompts

        name = hashlib.sha256(prompt.encode()).hexdigest()
        with self._prompts_lock:
            embeds = self._prompts.pop(name, None)
        if embeds is None:
            embeds = encode_prompts(self.pipe, [prompt], spec=self.spec)
        with self._prompts_lock:
            self._prompts[name] = embeds  # most recently used last
            while len(self._prompts) > PROMPTS_CACHED:
                self._prompts.popitem(last=False)
        return embeds


def _fail(request: Request, error: BaseException) -> None:
    with suppress(InvalidStateError):  # the waiting thread has just cancelled it
        if not request.result.done():
            request.result.set_exception(error)


def _fetch_ahead(get: Callable[[], Adapter]) -> None:
    try:
        get()
    except CancelledError:
        log.info("an adapter that was fetched ahead is no longer wanted")
    except Exception as error:
        log.info("an adapter could not be fetched ahead: %s", type(error).__name__)
