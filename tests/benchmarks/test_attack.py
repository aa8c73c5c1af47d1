"""The attack's figures, bounds and tools; the attack itself is `python -m benchmarks.attack`."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from email import message_from_bytes
from typing import Any

import pytest

from api.routes.webhooks import WEBHOOKS_MAX
from api.settings import ApiSettings
from api.transport.concurrency import HELD_MAX
from api.transport.rate_limits import RATES
from benchmarks import attack, attackers
from benchmarks.attackers import ATTACKS, Attack, AttackRun, Receiver, Service

REFUSAL = b"HTTP/1.1 401 No\r\nContent-Length: 2\r\nSet-Cookie: one=two; Path=/\r\nConnection: close\r\n\r\nno"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answering(reply: bytes) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        writer.close()

    return handle


def with_server(handle: Handler, do: Callable[[Service], Awaitable[Any]]) -> Any:
    """What comes of talking to a server that answers every connection so."""

    async def run() -> Any:
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            return await do(Service(server.sockets[0].getsockname()[1]))

    return asyncio.run(run())


def a_scene(service: Service, act: Callable[[AttackRun], Awaitable[None]], *, seconds: float = 1.0) -> AttackRun:
    one = Attack("one", act, 2, 50, ("127.0.0.2",))
    return AttackRun(one, service, {}, {}, time.monotonic() + seconds, random.Random(0))


def test_attackers_stay_within_their_connections_and_uploads() -> None:
    assert sum(one.connections_max for one in ATTACKS) <= attackers.CONNECTIONS_MAX == 600
    assert sum(one.connections_max for one in ATTACKS if one.uploads) <= attackers.UPLOADS_MAX == 40


def test_only_the_half_open_connections_are_more_than_an_address_may_hold() -> None:
    held = Counter[str]()
    for one in ATTACKS:
        for address in {attackers.address_of(role) for role in one.roles} or set(one.addresses):
            held[address] += one.connections_max
    most = ApiSettings.model_fields["connections_per_address"].default
    assert [address for address, count in held.items() if count > most] == ["127.0.0.2"]
    assert "127.0.0.1" not in held


def test_attacks_have_names_of_their_own_and_say_what_they_do() -> None:
    assert len({one.name for one in ATTACKS}) == len(ATTACKS)
    assert all(one.act.__doc__ for one in ATTACKS)


def test_what_is_too_many_is_what_the_service_allows() -> None:
    fields = ApiSettings.model_fields
    allowed = {
        "WEBHOOKS_MAX": WEBHOOKS_MAX,
        "SUBJECTS_MAX": fields["subjects_max"].default,
        "STREAMS": HELD_MAX["stream"],
        "RUNS_A_DAY": fields["runs_a_day"].default,
        "EXPORTS_A_DAY": fields["exports_a_day"].default,
        "COMPLAINTS_AN_HOUR": int(RATES["complaint"].removesuffix("/hour")),
    }
    assert {name: getattr(attackers, name) for name in allowed} == allowed


@pytest.mark.parametrize(
    ("values", "rises"), [([100, 100, 100, 100], 0.0), ([95, 100, 105], 0.1), ([105, 100, 95], -0.1), ([1, 2], 0.0)]
)
def test_growth_is_the_rise_of_a_line_through_the_values(values: list[float], rises: float) -> None:
    assert attack.growth([1000.0 + 60 * n for n in range(len(values))], values) == pytest.approx(rises)


def test_memory_is_flat_when_it_rose_before_the_last_ten_minutes() -> None:
    rows = [{"t": 1.0 * t, "api.main": min(500.0, 200 + t), "api.main children": 0.0} for t in range(-10, 901)]
    found = attack.memory(rows, {"api.main": 650.0}, since=0, until=900)
    assert found["api_rss_max_mb"] == 650.0 and found["flat_over_s"] == 600
    assert found["api_growth"] == pytest.approx(0, abs=1e-3)


def test_memory_that_rises_to_the_end_is_not_flat() -> None:
    rows = [{"t": 1.0 * t, "api.main": 200.0 + t, "api.main children": 0.0} for t in range(120)]
    found = attack.memory(rows, {}, since=0, until=119)
    assert found["flat_over_s"] == 79 and found["api_growth"] == pytest.approx(79 / 280, rel=0.02)


def test_reads_are_told_apart_from_what_takes_longer_and_from_before_the_attack() -> None:
    events = [(1.0, "read", 9999.0, "ok"), (11.0, "read", 20.0, "ok"), (12.0, "converted", 900.0, "ok")]
    found = attack.honest(events, since=10.0)
    assert found["reads_p95_ms"] == 20.0 and found["honest_failures"] == 0
    assert found["by_kind"]["read"]["quiet"]["p95_ms"] == 9999.0


def test_what_must_not_fail_counts() -> None:
    events = [(11.0, kind, 1.0, "an answer: 503") for kind in ("upload", "read", "sign-in", "webhook")]
    found = attack.honest(events, since=10.0)
    assert found["honest_failures"] == 4 and len(found["failures"]) == 4


def test_a_service_that_hangs_fails() -> None:
    """Nobody is refused, and nobody is answered."""
    found = attack.honest([(1.0, "read", 9.0, "ok")], since=10.0, seconds=120.0)
    assert {text.split(":")[0] for text in found["failures"]} == {"read", "generation", "converted", "webhook"}
    assert found["honest_failures"] == 4


def test_a_figure_that_is_missing_meets_no_aim() -> None:
    found = {
        "api_rss_max_mb": 700.0,
        "api_growth": -0.2,
        "reads_p95_ms": None,
        "honest_failures": 1,
        "wrong": [],
        "flat_over_s": 600,
    }
    judged = {"api_rss_max_mb": True, "api_growth": True, "honest_failures": False, "wrong": True}
    assert attack.aims_met(found) == judged | {"reads_p95_ms": False}
    assert attack.aims_met(found, any_speed=True) == judged
    del judged["api_growth"]
    assert attack.aims_met(found | {"flat_over_s": 599}, any_speed=True) == judged


def test_make_serve_is_what_is_measured() -> None:
    assert attack.service_environment()["MALLOC_MMAP_MAX_"] == "0"


def test_an_answer_has_status_body_and_cookies() -> None:
    answer = with_server(answering(REFUSAL), lambda service: service.ask("GET", "/", address="127.0.0.2"))
    assert (answer.outcome, answer.body, answer.cookie("one"), answer.cookie("two")) == ("401", b"no", "two", "")


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", REFUSAL[:-1]])
def test_an_answer_that_is_broken_off_is_none(reply: bytes) -> None:
    assert with_server(answering(reply), lambda service: service.ask("GET", "/")).outcome == "closed"


def test_a_refusal_is_read_while_a_body_is_sent() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(REFUSAL)
        await writer.drain()
        await asyncio.sleep(0.5)
        writer.close()

    async def upload(service: Service) -> Any:
        return await service.ask("POST", "/", body=attackers.zeros(200_000_000, chunked=True))

    assert with_server(handle, upload).outcome == "401"


def test_a_service_that_does_not_listen_is_unreachable() -> None:
    async def ask() -> Any:
        return await Service(1).ask("GET", "/")

    assert asyncio.run(ask()).outcome == "unreachable"


def test_connections_are_counted_and_bounded() -> None:
    async def many(service: Service) -> Service:
        service._free = asyncio.Semaphore(3)
        await asyncio.gather(*(service.ask("GET", "/") for _ in range(10)))
        return service

    service = with_server(answering(REFUSAL), many)
    assert service.held == 0 and 1 <= service.held_max <= 3


def test_an_answer_that_must_not_be_is_wrong_and_told_with_its_request() -> None:
    async def act(scene: AttackRun) -> None:
        await scene.ask("GET", f"/api/runs/{'0' * 32}?q=1", fine=("403",), note="(signed)")

    async def run_attack(service: Service) -> AttackRun:
        scene = a_scene(service, act)
        await attackers.run_attack(scene)
        return scene

    scene = with_server(answering(REFUSAL), run_attack)
    assert set(scene.answers) == {"401"} and set(scene.wrong) == {"GET /api/runs/… (signed): 401"}
    assert attackers.summary([scene], Receiver(messages=1))["wrong"] == [
        f"one: GET /api/runs/… (signed): 401 ({scene.answers['401']} times)"
    ]


def test_an_attack_that_breaks_or_never_reaches_the_service_is_wrong() -> None:
    async def act(scene: AttackRun) -> None:
        raise ZeroDivisionError("by hand")

    scene = a_scene(Service(1), act)
    asyncio.run(attackers.run_attack(scene))
    told = attackers.summary([scene], Receiver(messages=1))["wrong"]
    assert any("ZeroDivisionError" in text for text in told) and any("never reached" in text for text in told)


def test_rounds_that_are_under_way_at_the_end_are_counted() -> None:
    async def act(scene: AttackRun) -> None:
        await asyncio.sleep(60)

    scene = a_scene(Service(1), act)
    asyncio.run(attackers.run_attack(scene))
    assert scene.unfinished >= 1 and not scene.wrong


def test_a_pace_lets_no_more_begin_than_it_says() -> None:
    async def count() -> int:
        limiter, begun, until = attackers.RateLimiter(20), 0, time.monotonic() + 0.5
        while time.monotonic() < until:
            await limiter.wait()
            begun += 1
        return begun

    assert 1 <= asyncio.run(count()) <= 12


def test_a_receiver_knows_whether_a_redirect_was_followed() -> None:
    async def run() -> Receiver:
        receiver = Receiver()
        await receiver.start()
        service = Service(receiver.port)
        assert (await service.ask("POST", "/redirect")).header("location") == "/private"
        assert (await service.ask("POST", "/drip", within_s=0.3)).outcome == "unanswered"
        assert receiver.private == 0
        await service.ask("POST", "/private", within_s=0.3)
        receiver.stop()
        return receiver

    receiver = asyncio.run(run())
    assert receiver.private == 1 and receiver.messages == 3


def test_a_form_holds_its_fields_and_files() -> None:
    headers, body = attackers.form_body({"subject": "abc"}, [b"\r\n--\xff", b""])
    read = message_from_bytes(f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body)
    assert [part.get_param("name", header="content-disposition") for part in read.get_payload()] == [  # type: ignore[union-attr]
        "subject",
        "photos",
        "photos",
    ]
    assert read.get_payload()[1].get_payload(decode=True) == b"\r\n--\xff"  # type: ignore[index,union-attr]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_as_large_as_it_says(chunked: bool) -> None:
    async def total() -> int:
        return sum([len(piece) async for piece in attackers.zeros(1_000_000, chunked=chunked)])

    assert asyncio.run(total()) == 1_000_000 if not chunked else asyncio.run(total()) > 1_000_000


def test_forged_tokens_are_never_the_real_one() -> None:
    real = f"{attackers._packed(b'{}')}.{attackers._packed(b'{}')}.{attackers._packed(b'signature')}"
    made = {attackers.forged(real, "kid", random.Random(n)) for n in range(200)}
    assert len(made) > 10 and real not in made


def test_what_is_written_says_what_was_found() -> None:
    rows = [{"t": 1.0 * t, "api.main": 300.0, "api.main children": 100.0} for t in range(60)]
    events = [(1.0 * t, "read", 20.0 + t, "ok") for t in range(60)]
    place = {"processor": "one", "cores": 2, "memory_gib": 8}
    scene = a_scene(Service(1), attackers.complain)
    scene.wrong["GET /x: 500"] += 2
    found = {
        "seconds": 50.0,
        **attack.memory(rows, {}, since=10, until=60),
        **attack.honest(events, since=10),
        "machine": place,
        "cpu_shares": {"attackers": 0.3},
        **attackers.summary([scene], Receiver(messages=1)),
        "connections_max": 9,
        "uploads_max": 1,
    }
    told = attack.page(found | {"met": attack.aims_met(found)})
    assert "GET /x: 500 (2 times)" in told and "| **no** |" in told and "Complaints of nobody." in told
    assert "| at most | found | met |" in told
    assert attack.plot(rows, events, since=10).startswith(b"\x89PNG")
