"""Requests that are held open, and work that waits for its turn: by person, and on a real server."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx2
import pytest
from PIL import Image

from api import main
from api.records.tables import GeneratedImage, Generation, Run, now_ms
from api.settings import ApiSettings
from api.transport.concurrency import HELD_MAX, FairLimiter, HeldRequests, MemoryBudget
from api.transport.connections import listen, make_server
from api.transport.problems import Problem
from tests.api.conftest import innermost
from tests.api.people import Person, Site, is_problem

PATIENCE_S = 30.0
LARGE = 16 * 1024 * 1024


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The service over sockets: streams and long polls last."""
    folder = tmp_path_factory.mktemp("held")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHOTOFLUX_STATE_DIR", str(folder))
        (listening,) = listen("127.0.0.1", 0, per_address=0)
        settings = ApiSettings(public_url=f"http://127.0.0.1:{listening.getsockname()[1]}")
        app = main.make_app(settings)
        server = make_server(app)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        wait_for(lambda: server.started)
        with httpx2.Client(base_url=settings.public_url, timeout=PATIENCE_S, limits=httpx2.Limits()) as client:
            yield Site(client, innermost(app).state.service, folder)
        server.should_exit = True
        thread.join()


@pytest.fixture(autouse=True)
def own_state() -> None:
    """The state is the module's."""


def wait_for(fact: Callable[[], Any]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not fact():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def run(ada: Person) -> str:
    answer = ada.post("/api/runs", json={"subject": ada.subject_with_photos(5)})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


@pytest.fixture
def result(ada: Person) -> str:
    asked = {"subject": ada.subject_with_model(), "prompt": "a photo of sks dog"}
    return str(ada.post("/api/generate", json=asked).json()["id"])


class Watched:
    """An event stream that is read by a thread."""

    def __init__(self, answer: httpx2.Response) -> None:
        self.answer, self.events = answer, list[tuple[str, Any]]()
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        kind = ""
        with suppress(httpx2.HTTPError):  # a test that has seen enough closes the stream
            for line in self.answer.iter_lines():
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    self.events.append((kind, json.loads(line.removeprefix("data: "))))

    def last(self) -> tuple[str, Any]:
        """The last event, when the stream has ended."""
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        return self.events[-1]


@contextmanager
def watching(person: Person, run: str) -> Iterator[Watched]:
    headers = {"Authorization": f"Bearer {person.token}"}
    with person.site.client.stream("GET", f"/api/runs/{run}/events", headers=headers) as answer:
        assert answer.status_code == 200
        watched = Watched(answer)
        wait_for(lambda: watched.events)
        yield watched


def held(site: Site, kind: str, person: Person) -> int:
    return site.service.held_requests.count(kind, person.id)


def test_a_person_watches_so_many_runs_at_a_time(site: Site, ada: Person, bob: Person, run: str):
    with ExitStack() as stack:
        for _ in range(HELD_MAX["stream"]):
            stack.enter_context(watching(ada, run))
        refused = ada.get(f"/api/runs/{run}/events")
        is_problem(refused, 429, "too-many-streams")
        assert int(refused.headers["retry-after"]) > 0
        is_problem(bob.get(f"/api/runs/{run}/events"), 404, "not-found")  # counted for himself
        assert held(site, "stream", ada) == HELD_MAX["stream"]
        ada.post(f"/api/runs/{run}/cancel")
    wait_for(lambda: held(site, "stream", ada) == 0)
    assert "event: ended" in ada.get(f"/api/runs/{run}/events").text


def test_a_stream_whose_reader_has_gone_is_over(site: Site, ada: Person, run: str):
    headers = {"Authorization": f"Bearer {ada.token}"}
    url = f"{site.service.settings.public_url}/api/runs/{run}/events"
    with httpx2.stream("GET", url, headers=headers) as answer:
        lines = answer.iter_lines()  # kept, since the stream is closed with it
        next(lines)
        assert held(site, "stream", ada) == 1
    wait_for(lambda: held(site, "stream", ada) == 0)


def test_a_stream_ends_with_the_sign_in(site: Site, ada: Person, run: str):
    with watching(ada, run) as watched:
        site.service.login_sessions.end_all(ada.id)
        assert watched.last() == ("signed-out", {"id": run})


def test_a_run_that_is_deleted_while_it_is_watched_is_told_so(ada: Person, run: str, caplog: pytest.LogCaptureFixture):
    subject = ada.get(f"/api/runs/{run}").json()["subject"]
    with caplog.at_level(logging.WARNING), watching(ada, run) as watched:
        assert ada.ask("DELETE", f"/api/subjects/{subject}").status_code == 204
        assert watched.last() == ("deleted", {"id": run})
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_run_that_ends_is_the_last_event_of_its_stream(site: Site, ada: Person, run: str):
    with watching(ada, run) as watched:
        with site.service.records.writing() as session:
            row = session.get_one(Run, run)
            row.state, row.finished_ms = "succeeded", now_ms()
        kind, said = watched.last()
    assert (kind, said["state"]) == ("ended", "succeeded")


class Polled:
    """A long poll that is under way."""

    def __init__(self, person: Person, result: str, *, wait: int = 30) -> None:
        self.answer: httpx2.Response | None = None
        self.thread = threading.Thread(target=self._ask, args=(person, result, wait))
        self.thread.start()

    def _ask(self, person: Person, result: str, wait: int) -> None:
        self.answer = person.get(f"/api/results/{result}", params={"wait": wait})

    def ended(self) -> httpx2.Response:
        self.thread.join(PATIENCE_S)
        assert self.answer is not None
        return self.answer


def test_a_person_waits_for_so_many_results_at_a_time(site: Site, ada: Person, result: str):
    polls = [Polled(ada, result) for _ in range(HELD_MAX["poll"])]
    wait_for(lambda: held(site, "poll", ada) == HELD_MAX["poll"])
    refused = ada.get(f"/api/results/{result}", params={"wait": 1})
    is_problem(refused, 429, "too-many-streams")
    assert int(refused.headers["retry-after"]) > 0
    assert ada.get(f"/api/results/{result}").json()["state"] == "queued"  # who does not wait is not held
    with site.service.records.writing() as session:
        row = session.get_one(Generation, result)
        row.state, row.finished_ms = "failed", now_ms()
    assert {poll.ended().json()["state"] for poll in polls} == {"failed"}
    assert held(site, "poll", ada) == 0


def test_who_waits_for_a_result_hears_that_it_was_deleted(site: Site, ada: Person, result: str):
    poll = Polled(ada, result)
    wait_for(lambda: held(site, "poll", ada))
    ada.ask("DELETE", f"/api/results/{result}")
    is_problem(poll.ended(), 404, "not-found")


def test_who_waits_for_a_result_hears_that_they_were_signed_out(site: Site, ada: Person, result: str):
    poll = Polled(ada, result)
    wait_for(lambda: held(site, "poll", ada))
    site.service.login_sessions.end_all(ada.id)
    is_problem(poll.ended(), 401, "signed-out")


def test_nothing_is_held_for_who_has_gone(site: Site, ada: Person, result: str):
    headers = {"Authorization": f"Bearer {ada.token}"}
    with pytest.raises(httpx2.TimeoutException):
        url = f"{site.service.settings.public_url}/api/results/{result}?wait=30"
        httpx2.get(url, headers=headers, timeout=1.0)
    wait_for(lambda: held(site, "poll", ada) == 0)


def test_of_pictures_that_a_person_does_not_take_few_are_in_memory(
    site: Site, ada: Person, bob: Person, monkeypatch: pytest.MonkeyPatch
):
    """They are sent to connections that read nothing; another one waits, and is sent away, and others are not kept waiting."""
    monkeypatch.setattr(site.service.renderer.downloads, "wait_s", 0.2)
    paths = [large_picture(site, person) for person in (ada, bob)]
    with ExitStack() as stack:
        for _ in range(site.service.renderer.downloads.per_person):
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(("127.0.0.1", site.client.base_url.port))
            one.sendall(
                f"GET {paths[0]} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {ada.token}\r\n\r\n".encode()
            )
            one.recv(1)
        is_problem(ada.get(paths[0]), 503, "busy")
        assert len(bob.get(paths[1]).content) == LARGE
    wait_for(lambda: ada.get(paths[0]).status_code == 200)


def large_picture(site: Site, person: Person) -> str:
    """Path of a picture that no kernel takes whole from a server while its client reads nothing."""
    asked = {"subject": person.subject_with_model(), "prompt": "a photo of sks dog"}
    result = str(person.post("/api/generate", json=asked).json()["id"])
    with site.service.records.writing() as session:
        facts = {"user_id": person.id, "generation_id": result, "seed": 1, "sha256": "ab" * 32}
        session.add(GeneratedImage(position=0, object_id=f"{result}.0", stored_bytes=LARGE, **facts))
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, format="PNG")
    site.objects.put(person.id, "image", f"{result}.0", buffer.getvalue().ljust(LARGE, b"x"))
    return f"/api/media/images/{result}.0"


def test_what_was_held_is_forgotten():
    requests = HeldRequests({"stream": 1})
    with requests.hold("stream", "ada"):
        with pytest.raises(Problem), requests.hold("stream", "ada"):
            pass
        with requests.hold("stream", "bob"):
            assert requests.count("stream", "bob") == 1
    assert not requests._held
    with pytest.raises(ValueError, match="x"), requests.hold("stream", "ada"):
        raise ValueError("x")
    assert not requests._held


def test_looking_takes_few_threads():
    requests, seen = HeldRequests(), set[int]()

    def look() -> None:
        seen.add(threading.get_ident())
        time.sleep(0.01)

    async def many() -> None:
        await asyncio.gather(*(requests.run(look) for _ in range(50)))

    asyncio.run(many())
    assert len(seen) <= 4


def test_who_asks_for_much_waits_behind_themselves():
    """One place: ten pieces of work of one person, then one of another, which is done second."""
    done: list[str] = []

    async def work(turns: FairLimiter, person: str) -> None:
        async with turns.take(person):
            await asyncio.sleep(0.01)
            done.append(person)

    async def all_of_it() -> None:
        turns = FairLimiter(1, per_person=1, wait_s=PATIENCE_S, busy_message="Wait.")
        async with asyncio.TaskGroup() as group:
            for person in ["ada"] * 10 + ["bob"]:
                group.create_task(work(turns, person))
        assert not turns._own

    asyncio.run(all_of_it())
    assert done.index("bob") <= 1


def test_who_waits_too_long_for_a_turn_is_sent_away():
    async def refused() -> Problem:
        turns = FairLimiter(1, per_person=1, wait_s=0.05, busy_message="Wait.")
        async with turns.take("ada"):
            for person in ("ada", "bob"):
                with pytest.raises(Problem) as problem:
                    async with turns.take(person):
                        pass
        async with turns.take("bob"):  # the place was given back
            return problem.value

    problem = asyncio.run(refused())
    assert (problem.status, problem.kind, problem.headers["Retry-After"]) == (503, "busy", "5")


def test_what_is_shared_out_is_never_more_than_there_is():
    """Whoever gives up while waiting, or is given their share just then, leaves all of it for others."""

    async def share(seed: int) -> None:
        rng, budget, held, most = random.Random(seed), MemoryBudget(10), 0, 0

        async def one(amount: int, patience_s: float) -> None:
            nonlocal held, most
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s), budget.take(amount):
                    held += min(amount, 10)
                    most = max(most, held)
                    try:
                        await asyncio.sleep(rng.random() / 500)
                    finally:
                        held -= min(amount, 10)

        await asyncio.gather(*(one(rng.randrange(1, 14), rng.choice((0.001, 0.01, 5.0))) for _ in range(60)))
        assert 0 < most <= 10
        assert held == 0
        async with asyncio.timeout(5), budget.take(10):
            pass

    for seed in range(20):
        asyncio.run(share(seed))


def test_who_came_first_has_theirs_first():
    async def take() -> list[int]:
        budget, order = MemoryBudget(4), list[int]()

        async def one(number: int, amount: int) -> None:
            async with budget.take(amount):
                order.append(number)

        async with budget.take(4):
            waiting = [asyncio.create_task(one(number, amount)) for number, amount in enumerate((4, 1, 1))]
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
        return order

    assert asyncio.run(take()) == [0, 1, 2], "a large one is not passed by small ones for ever"


def test_who_holds_much_memory_leaves_others_half_of_it():
    async def served() -> list[str]:
        turns, done = FairLimiter(8, per_person=4, wait_s=0.2, busy_message="Wait.", memory_bytes=100), list[str]()
        async with turns.take("ada", 100):
            async with turns.take("bob", 50):
                done.append("bob")
            with pytest.raises(Problem):
                async with turns.take("ada", 1):
                    done.append("ada")
        return done

    assert asyncio.run(served()) == ["bob"]
