from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError

import pytest
import torch
from PIL import Image

from photoflux.errors import InputError
from photoflux.flux.base import BaseSpec, load_pipeline
from photoflux.serving.adapters import Adapter, AdapterKey
from photoflux.serving.engine import Busy, Draining, Engine, Request, TooLate

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
    go, draw = threading.Event(), engine._draw

    def wait(*args: str, **more: int) -> Image.Image:
        assert go.wait(30)
        return draw(*args, **more)

    monkeypatch.setattr(engine, "_draw", wait)
    yield go
    go.set()


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
    go, draw = threading.Event(), engine._draw
    monkeypatch.setattr(engine, "_draw", lambda *a, **k: go.wait(30) and draw(*a, **k))
    first = engine.submit(Request(key_of(1), PROMPTS[0], (0,)))
    while engine.drawing is None:
        time.sleep(0.001)
    rest = [engine.submit(Request(key_of(1), PROMPTS[0], (seed, 9))) for seed in (1, 2)]
    engine.pace.seconds = 3.0
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
    with pytest.raises(TooLate):
        late.result(60)


def test_waiting_and_running_requests_can_be_cancelled(engine: Engine, key_of: KeyOf, held_up: threading.Event):
    running, waiting = (Request(key_of(1), PROMPTS[0], (seed, seed + 1)) for seed in (0, 10))
    for request in (running, waiting):
        engine.submit(request)
    while engine.drawing is None:
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
    while engine.drawing is None:
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
    draw = engine._draw

    def fail(prompt: str, **more: int) -> Image.Image:
        if "space" in prompt:
            raise RuntimeError("out of memory")
        return draw(prompt, **more)

    monkeypatch.setattr(engine, "_draw", fail)
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
