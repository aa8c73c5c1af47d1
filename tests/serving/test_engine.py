from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest
import torch
from PIL import Image

from photoflux.errors import InputError
from photoflux.flux.loading import load_pipeline
from photoflux.flux.spec import BaseSpec
from photoflux.serving.adapters import Adapter, AdapterKey
from photoflux.serving.engine import Busy, DeadlineExceeded, Draining, Engine, OwnerForgotten, Request
from tests.serving.conftest import DenoiseSteps

PROMPTS = ("a photo of sks dog", "a photo of sks dog on the beach", "a cartoon of sks dog in space")
Fetch = Callable[[AdapterKey], Adapter]
KeyOf = Callable[[int], AdapterKey]


@pytest.fixture
def engine(spec: BaseSpec, fetch: Fetch) -> Iterator[Engine]:
    engine = Engine(load_pipeline(spec, device="cpu"), spec=spec, fetch=fetch)
    yield engine
    engine.drain(30)


def drawn(engine: Engine, key: AdapterKey, prompt: str = PROMPTS[0], seed: int = 0, **more: str) -> bytes:
    return engine.submit(Request(key, prompt, (seed,), **more)).result(60)[0].tobytes()


@pytest.fixture
def held_up(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The engine draws nothing until the event is set."""
    go, draw = threading.Event(), engine._generate

    def wait(*args: str, **more: int) -> Image.Image:
        assert go.wait(30)
        return draw(*args, **more)

    monkeypatch.setattr(engine, "_generate", wait)
    yield go
    go.set()


@pytest.fixture
def steps(engine: Engine) -> Iterator[DenoiseSteps]:
    found = DenoiseSteps(engine.pipe.transformer)
    yield found
    found.go_on()
    found._hook.remove()


def begun(engine: Engine, steps: DenoiseSteps, request: Request, *, passed: int = 0) -> Request:
    """A request that is being drawn and has passed so many denoise steps."""
    before = steps.begun
    engine.submit(request)
    steps.wait_for(before + 1)
    if passed:
        steps.allow(passed)
    return request


def test_what_is_deleted_under_way_gives_way_after_a_denoise_step(
    engine: Engine, key_of: KeyOf, spec: BaseSpec, steps: DenoiseSteps
):
    """Three calls of eight pictures are given up: the next request waits for the step that has begun, for no picture."""
    unwanted = [Request(key_of(1), PROMPTS[0], (8 * call + seed,)) for call in range(3) for seed in range(8)]
    begun(engine, steps, unwanted[0], passed=1)
    for request in unwanted[1:]:
        engine.submit(request)
    following = engine.submit(Request(key_of(2), PROMPTS[0], (0,)))
    for request in unwanted:
        engine.cancel(request)
    had_begun = steps.begun
    steps.go_on()
    assert following.result(60)
    assert steps.begun == had_begun + spec.steps
    for request in unwanted:
        with pytest.raises(CancelledError):
            request.result.result(60)


@pytest.mark.parametrize("style", ["none", "cartoon"])
def test_a_cancelled_request_changes_nobody_elses_pictures(engine: Engine, key_of: KeyOf, spec: BaseSpec, style: str):
    """A, then B given up at any of its denoise steps, then A: bit for bit the same."""
    first, whole = drawn(engine, key_of(1), style=style), drawn(engine, key_of(2), style=style)
    steps = DenoiseSteps(engine.pipe.transformer)
    for passed in range(spec.steps + (2 if style != "none" else 0)):
        request = begun(engine, steps, Request(key_of(2), PROMPTS[0], (0,), style=style), passed=passed)
        engine.cancel(request)
        had_begun = steps.begun
        steps.go_on()
        with pytest.raises(CancelledError):
            request.result.result(60)
        assert steps.begun == had_begun
        assert drawn(engine, key_of(1), style=style) == first
        assert drawn(engine, key_of(2), style=style) == whole
        steps._hook.remove()
        steps = DenoiseSteps(engine.pipe.transformer)
    steps._hook.remove()


def test_a_deadline_is_kept_between_denoise_steps(engine: Engine, key_of: KeyOf, steps: DenoiseSteps):
    late = begun(engine, steps, Request(key_of(1), PROMPTS[0], (0,), deadline=time.monotonic() + 0.3), passed=1)
    had_begun = steps.begun
    while time.monotonic() < late.deadline:
        time.sleep(0.01)
    steps.go_on()
    with pytest.raises(DeadlineExceeded):
        late.result.result(60)
    assert steps.begun == had_begun


def test_every_request_gets_its_own_adapter_whatever_is_drawn_between(engine: Engine, key_of: KeyOf):
    """Interleaved requests of several owners equal those of engines that draw one after the other."""
    jobs = [(owner, prompt, seed) for owner in range(5) for prompt in PROMPTS[:2] for seed in (1, 2)]
    reference = {job: drawn(engine, key_of(job[0]), job[1], job[2]) for job in jobs}
    assert len(set(reference.values())) == len(jobs)
    shuffled = jobs * 2
    random.Random(0).shuffle(shuffled)
    results = [engine.submit(Request(key_of(owner), prompt, (seed,))) for owner, prompt, seed in shuffled]
    for job, result in zip(shuffled, results, strict=True):
        assert result.result(60)[0].tobytes() == reference[job]


def test_a_b_a_draws_the_same_again(engine: Engine, key_of: KeyOf):
    first = drawn(engine, key_of(1))
    assert drawn(engine, key_of(2)) != first
    assert drawn(engine, key_of(1)) == first


def test_pictures_do_not_depend_on_their_company(engine: Engine, key_of: KeyOf):
    together = engine.submit(Request(key_of(1), PROMPTS[0], (4, 5, 6))).result(60)
    assert [picture.tobytes() for picture in together] == [drawn(engine, key_of(1), seed=seed) for seed in (4, 5, 6)]


def test_a_style_redraws_with_the_same_adapter(engine: Engine, key_of: KeyOf):
    plain, cartoon = (drawn(engine, key_of(1), style=style) for style in ("none", "cartoon"))
    assert plain != cartoon != drawn(engine, key_of(2), style="cartoon")
    assert drawn(engine, key_of(1), style="cartoon") == cartoon


def test_a_missing_adapter_is_an_error_and_never_the_base(engine: Engine, key_of: KeyOf, spec: BaseSpec):
    good = drawn(engine, key_of(1))
    wrong = AdapterKey("user-1", "1", "0" * 64)
    with pytest.raises(InputError, match="not the one"):
        drawn(engine, wrong)
    assert drawn(engine, key_of(1)) == good


def test_the_line_is_bounded_and_says_when_to_come_back(
    spec: BaseSpec, fetch: Fetch, key_of: KeyOf, monkeypatch: pytest.MonkeyPatch
):
    engine = Engine(load_pipeline(spec, device="cpu"), spec=spec, fetch=fetch, waiting=2)
    go, draw = threading.Event(), engine._generate
    monkeypatch.setattr(engine, "_generate", lambda *a, **k: go.wait(30) and draw(*a, **k))
    first = engine.submit(Request(key_of(1), PROMPTS[0], (0,)))
    while engine.current is None:
        time.sleep(0.001)
    rest = [engine.submit(Request(key_of(1), PROMPTS[0], (seed, 9))) for seed in (1, 2)]
    engine.latency.seconds = 3.0
    with pytest.raises(Busy, match="ask again in") as told:
        engine.submit(Request(key_of(1), PROMPTS[0], (3,)))
    assert told.value.retry_after_s == pytest.approx(15.0), "one is drawn and two of two wait, three seconds each"
    go.set()
    assert all(len(one.result(60)) for one in (first, *rest))
    assert engine.drain(30) and not engine.alive


def test_a_passed_deadline_is_told(engine: Engine, key_of: KeyOf, held_up: threading.Event):
    late = engine.submit(Request(key_of(1), PROMPTS[0], (0, 1), deadline=time.monotonic() + 0.05))
    time.sleep(0.1)
    held_up.set()
    with pytest.raises(DeadlineExceeded):
        late.result(60)


def test_waiting_and_running_requests_can_be_cancelled(engine: Engine, key_of: KeyOf, held_up: threading.Event):
    running, waiting = (Request(key_of(1), PROMPTS[0], (seed, seed + 1)) for seed in (0, 10))
    for request in (running, waiting):
        engine.submit(request)
    while engine.current is None:
        time.sleep(0.001)
    engine.cancel(waiting)
    with pytest.raises(CancelledError):
        waiting.result.result(1)
    engine.cancel(running)
    held_up.set()
    with pytest.raises(CancelledError):
        running.result.result(60)
    assert drawn(engine, key_of(2))


def test_the_next_adapter_is_fetched_while_one_draws(engine: Engine, key_of: KeyOf, held_up: threading.Event):
    running, following = (engine.submit(Request(key_of(owner), PROMPTS[0], (0, 1))) for owner in (3, 4))
    while engine.current is None:
        time.sleep(0.001)
    assert key_of(4) not in engine.device
    engine._fetch_next()
    until = time.monotonic() + 20
    while key_of(4) not in engine.device and time.monotonic() < until:
        time.sleep(0.001)
    assert key_of(4) in engine.device and not following.done()
    held_up.set()
    assert len(running.result(60)) == len(following.result(60)) == 2


def test_draining_finishes_what_waits_and_takes_nothing_new(engine: Engine, key_of: KeyOf):
    results = [engine.submit(Request(key_of(owner), PROMPTS[0], (0,))) for owner in (1, 2, 3)]
    assert engine.drain(60)
    assert all(result.done() for result in results)
    with pytest.raises(Draining):
        engine.submit(Request(key_of(1), PROMPTS[0], (0,)))


def test_a_failure_is_one_requests_own(engine: Engine, key_of: KeyOf, monkeypatch: pytest.MonkeyPatch):
    draw = engine._generate

    def fail(prompt: str, **more: int) -> Image.Image:
        if "space" in prompt:
            raise RuntimeError("out of memory")
        return draw(prompt, **more)

    monkeypatch.setattr(engine, "_generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        drawn(engine, key_of(1), PROMPTS[2])
    assert drawn(engine, key_of(1))


def test_an_erased_owner_is_forgotten_even_in_the_weights(engine: Engine, key_of: KeyOf):
    base = {name: weight.clone() for name, weight in engine.merger.weights.items()}
    drawn(engine, key_of(1))
    assert any(not torch.equal(base[name], weight) for name, weight in engine.merger.weights.items())
    engine.forget("user-2")
    assert key_of(1) in engine.device
    engine.forget("user-1")
    assert key_of(1) not in engine.device and key_of(1) not in engine.host
    assert all(torch.equal(base[name], weight) for name, weight in engine.merger.weights.items())
    assert drawn(engine, key_of(1)), "while the registry has it, it can be fetched again"


def test_forgetting_does_not_wait_for_somebody_elses_pictures(engine: Engine, key_of: KeyOf, steps: DenoiseSteps):
    steps._allowed.release(4)
    drawn(engine, key_of(1))
    other = begun(engine, steps, Request(key_of(2), PROMPTS[0], tuple(range(8))))
    with ThreadPoolExecutor(1) as pool:
        forgotten = pool.submit(engine.forget, "user-1")
        try:
            forgotten.result(20)
            assert not other.result.done()
        finally:
            steps.go_on()
    assert key_of(1) not in engine.device and key_of(1) not in engine.host
    assert len(other.result.result(60)) == 8


def test_forgetting_ends_what_waits_and_is_drawn_for_the_owner(engine: Engine, key_of: KeyOf, steps: DenoiseSteps):
    """The picture under way ends after its denoise step, and what waits is not drawn; the base is left."""
    base = {name: weight.clone() for name, weight in engine.merger.weights.items()}
    under_way = begun(engine, steps, Request(key_of(1), PROMPTS[0], tuple(range(8))), passed=1)
    waiting = engine.submit(Request(key_of(1), PROMPTS[0], (9,)))
    had_begun = steps.begun
    with ThreadPoolExecutor(1) as pool:
        forgotten = pool.submit(engine.forget, "user-1")
        with pytest.raises(CancelledError):
            waiting.result(60)
        steps.go_on()
        forgotten.result(60)
    with pytest.raises(CancelledError):
        under_way.result.result(60)
    assert steps.begun == had_begun
    assert key_of(1) not in engine.device and key_of(1) not in engine.host
    assert all(torch.equal(base[name], weight) for name, weight in engine.merger.weights.items())
    assert not engine._unfinished


class SlowFetch:
    """Gives adapters when it is told to."""

    def __init__(self, fetch: Fetch) -> None:
        self.fetch, self.asked, self.go, self.slow = fetch, list[str](), threading.Event(), False

    def __call__(self, key: AdapterKey) -> Adapter:
        self.asked.append(key.owner)
        assert not self.slow or self.go.wait(60)
        return self.fetch(key)


@pytest.mark.parametrize("when", ["fetched ahead", "fetched to be drawn"])
def test_an_adapter_that_is_being_fetched_is_not_kept_of_a_forgotten_owner(
    spec: BaseSpec, fetch: Fetch, key_of: KeyOf, when: str
):
    fetching = SlowFetch(fetch)
    engine = Engine(load_pipeline(spec, device="cpu"), spec=spec, fetch=fetching)
    steps = DenoiseSteps(engine.pipe.transformer)
    other = engine.submit(Request(key_of(2), PROMPTS[0], (0, 1))) if when == "fetched ahead" else None
    if other:
        steps.wait_for(1)
    fetching.slow = True
    request = Request(key_of(1), PROMPTS[0], (0,))
    engine.submit(request)
    steps.go_on()
    until = time.monotonic() + 60
    while "user-1" not in fetching.asked:
        assert time.monotonic() < until
        time.sleep(0.001)
    with ThreadPoolExecutor(1) as pool:
        forgotten = pool.submit(engine.forget, "user-1")
        try:
            forgotten.result(20)
        finally:
            fetching.go.set()
    with pytest.raises(CancelledError):
        request.result.result(60)
    if engine._fetching:
        engine._fetching.join(60)
    assert key_of(1) not in engine.device and key_of(1) not in engine.host
    assert drawn(engine, key_of(1)), "who asks anew is drawn for"
    assert engine.drain(60)


def test_an_erased_owner_is_forgotten_though_nobody_told_the_engine(
    spec: BaseSpec, fetch: Fetch, key_of: KeyOf, monkeypatch: pytest.MonkeyPatch
):
    """Adapters that lie idle are dropped, from the weights too, and others stay."""
    monkeypatch.setattr("photoflux.serving.engine.SWEEP_S", 0.05)
    monkeypatch.setattr("photoflux.serving.engine.IDLE_CHECK_S", 0.0)
    erased = set[str]()
    engine = Engine(load_pipeline(spec, device="cpu"), spec=spec, fetch=fetch, is_erased=erased.__contains__)
    base = {name: weight.clone() for name, weight in engine.merger.weights.items()}
    for number in (2, 1):
        drawn(engine, key_of(number))
    erased.add("user-1")
    until = time.monotonic() + 60
    while key_of(1) in engine.host or engine._merged:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert key_of(1) not in engine.device and key_of(2) in engine.device
    assert all(torch.equal(base[name], weight) for name, weight in engine.merger.weights.items())
    assert engine.drain(60)


def test_nothing_is_drawn_for_an_erased_owner(
    spec: BaseSpec, fetch: Fetch, key_of: KeyOf, monkeypatch: pytest.MonkeyPatch
):
    """A capability outlives its owner by a minute, an adapter in memory does not: it is asked at most every few seconds."""
    asked, erased = list[str](), set[str]()

    def is_erased(owner: str) -> bool:
        asked.append(owner)
        return owner in erased

    engine = Engine(load_pipeline(spec, device="cpu"), spec=spec, fetch=fetch, is_erased=is_erased)
    for _ in range(3):
        drawn(engine, key_of(1))
    assert asked == ["user-1"]
    monkeypatch.setattr("photoflux.serving.engine.ERASURE_CHECK_S", 0.0)
    erased.add("user-1")
    with pytest.raises(OwnerForgotten, match="erased"):
        drawn(engine, key_of(1))
    assert key_of(1) not in engine.device and key_of(1) not in engine.host
    assert drawn(engine, key_of(2))
    assert engine.drain(60)


def test_a_sweep_goes_on_after_a_store_that_was_away(
    spec: BaseSpec, fetch: Fetch, key_of: KeyOf, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("photoflux.serving.engine.SWEEP_S", 0.02)
    monkeypatch.setattr("photoflux.serving.engine.IDLE_CHECK_S", 0.0)
    away, failed, erased = threading.Event(), threading.Event(), set[str]()

    def is_erased(owner: str) -> bool:
        if away.is_set():
            failed.set()
            raise OSError("the keyring's store is away")
        return owner in erased

    engine = Engine(load_pipeline(spec, device="cpu"), spec=spec, fetch=fetch, is_erased=is_erased)
    drawn(engine, key_of(1))
    away.set()
    assert failed.wait(60)
    erased.add("user-1")
    away.clear()
    until = time.monotonic() + 60
    while key_of(1) in engine.host:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert engine.drain(60)
