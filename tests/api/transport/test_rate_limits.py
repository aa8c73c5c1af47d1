from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits.storage import memory
from starlette.requests import Request

from api.accounts.tokens import AccessTokenClaims
from api.settings import ApiSettings
from api.transport.problems import Problem
from api.transport.rate_limits import BACK_OFFS, RATES, BackOff, MemoryCounts, RateLimiter, client_address
from benchmarks.postgres import free_port
from photoflux.errors import InputError
from tests.api.clocks import moved_by_hand
from tests.api.people import Person, Site, is_problem

COUNT = RateLimiter.check


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server that several APIs could count in, on loopback, gone after the module."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        pytest.skip("neither redis-server nor valkey-server is installed; install the package redis-server")
    port, folder = free_port(), tmp_path_factory.mktemp("redis")
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}"
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with suppress(Exception):
            if RateLimiter(url)._storage.check():
                break
        time.sleep(0.05)
    yield url
    server.terminate()
    server.wait(20)


@pytest.fixture(params=["memory", "redis"])
def counting(request: pytest.FixtureRequest) -> Callable[..., RateLimiter]:
    """Makes limits that count in one place, as two processes would with redis; in memory there is one process."""
    if request.param == "redis":
        url = request.getfixturevalue("redis")
        RateLimiter(url)._storage.reset()
        return lambda **more: RateLimiter(url, **more)
    one: dict[str, RateLimiter] = {}
    return lambda **more: one.setdefault(str(more), RateLimiter("memory://", **more))


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock on."""
    return moved_by_hand(monkeypatch)


def test_each_has_room_of_their_own_and_is_told_when_there_is_more(counting: Callable[..., RateLimiter]):
    rates = {"work": "2/minute"}
    for who in ("ada", "bob"):
        for _ in range(2):
            counting(rates=rates).check("work", who)
    with pytest.raises(Problem) as refused:
        counting(rates=rates).check("work", "ada")
    assert refused.value.status == 429
    assert 1 <= int(refused.value.headers["Retry-After"]) <= 60
    counting(rates=rates).check("request", "ada")


def test_several_rates_of_a_kind_hold_together(later: Callable[[float], None]):
    limits = RateLimiter("memory://", rates={"login": "2/minute; 3/10 minutes"})
    for kinds in range(2):
        limits.check("login", "here")
        limits.check("login", f"there {kinds}")
    for wait, fits in ((61, True), (61, False), (600, True)):
        later(wait)
        if fits:
            limits.check("login", "here")
        else:
            with pytest.raises(Problem) as refused:
                limits.check("login", "here")
            assert int(refused.value.headers["Retry-After"]) > 60


def test_failures_are_followed_by_waits_that_double_and_end(counting: Callable[..., RateLimiter]):
    """Across processes, where they count in one place."""
    for _ in range(4):
        counting().record_failure("password", "ada, here")
    assert counting().wait_s("password", "ada, here") == 0
    for wait_s in (1, 2, 4, 8):
        counting().record_failure("password", "ada, here")
        assert wait_s - 1 <= counting().wait_s("password", "ada, here") <= wait_s
    assert counting().wait_s("password", "ada, there") == counting().wait_s("password-address", "ada, here") == 0
    counting().clear_failures("password", "ada, here")
    assert counting().wait_s("password", "ada, here") == 0
    counting().record_failure("password", "ada, here")
    assert counting().wait_s("password", "ada, here") == 0, "it counts from one again"


def test_somebody_is_remembered_for_a_while(counting: Callable[..., RateLimiter]):
    counting().mark_known("password", "ada", seconds=60)
    assert counting().is_known("password", "ada") and not counting().is_known("password", "bob")


def test_a_wait_is_over_in_time(later: Callable[[float], None]):
    limits = RateLimiter("memory://")
    for _ in range(40):
        limits.record_failure("password", "ada")
    assert limits.wait_s("password", "ada") == 900
    later(899.5)
    assert limits.wait_s("password", "ada") == 1
    later(1)
    assert limits.wait_s("password", "ada") == 0


@given(st.sampled_from(list(BACK_OFFS.values())), st.integers(0, 10**6))
def test_waits_never_shrink_with_failures_and_are_bounded(back_off: BackOff, failures: int):
    assert 0 <= back_off.wait_s(failures) <= back_off.wait_s(failures + 1) <= back_off.most_s
    assert (back_off.wait_s(failures) > 0) == (failures >= back_off.first)


def test_what_is_counted_does_not_say_who_it_is(counting: Callable[..., RateLimiter], redis: str):
    limits = RateLimiter(redis)
    limits.record_failure("password", "ada@example.org")
    assert not any(b"ada" in key for key in limits._storage.storage.keys("*"))  # type: ignore[attr-defined]


def test_threads_that_meet_in_the_library_start_no_timer_twice(monkeypatch: pytest.MonkeyPatch):
    """Where one had made a timer and another thread made the next before it was started, that one was started twice: a 500.

    Storing the new timer drops the last reference to the old one, whose end runs Python code, where threads may change: here a callback
    stands in for the other thread.
    """

    class Watched(threading.Timer):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            weakref.finalize(self, meet)

    def meet() -> None:
        if not met:
            met.append(True)
            limits.check("work", "bob")

    met = [True]
    limits = RateLimiter("memory://", rates={"work": "100/minute"})
    monkeypatch.setattr(memory, "threading", SimpleNamespace(Timer=Watched, RLock=threading.RLock))
    for turn in range(3):
        if turn:
            met.clear()
        limits.check("work", "ada")
        time.sleep(0.1)


def test_threads_count_together(monkeypatch: pytest.MonkeyPatch):
    limits = RateLimiter("memory://", rates={"work": "100/minute"})
    monkeypatch.setattr("api.transport.rate_limits.SWEEP_S", 0.0)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            refused = sum(pool.map(lambda _: sum(limited(limits) for _ in range(10)), range(40)))
            list(
                pool.map(
                    lambda n: [limits.record_failure("password-account", f"{n} {at}") for at in range(10)], range(8)
                )
            )
    finally:
        sys.setswitchinterval(before)
    assert refused == 300


def limited(limits: RateLimiter) -> bool:
    """Whether one more is too many."""
    try:
        limits.check("work", "ada")
    except Problem:
        return True
    return False


def test_names_are_dropped_once_nothing_of_them_counts(later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch):
    """The library kept every name that it ever saw, and went over all of them a hundred times a second."""
    monkeypatch.setattr("api.transport.rate_limits.SWEEP_S", 0.0)
    limits = RateLimiter("memory://")
    for number in range(50):
        limits.check("refresh", f"sign-in {number}")
        limits.record_failure("password", f"somebody {number}")
    later(25 * 3600)
    limits.check("request", "ada")
    counts = limits._storage
    assert isinstance(counts, MemoryCounts)
    assert (len(counts.events), len(counts.expirations), len(counts.storage)) == (1, 0, 0)
    assert len(counts.locks) <= 1


@pytest.mark.parametrize("rates", [{"sign-in": "9/minute"}, {"request": "often"}, {"request": ""}])
def test_a_rate_that_is_not_known_or_not_readable_is_refused(rates: dict[str, str]):
    with pytest.raises(InputError, match="rate"):
        RateLimiter("memory://", rates=rates)


def test_limits_are_counted_in_memory_or_in_redis():
    with pytest.raises(InputError, match="PHOTOFLUX_LIMITS"):
        RateLimiter("async+memory://")


def asked_from(host: str | None) -> Request:
    return Request({"type": "http", "client": (host, 1) if host else None, "headers": []})


@pytest.mark.parametrize(
    ("host", "counted"),
    [("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
     ("2001:db8:1:2::9", "2001:db8:1:2::/64"), ("::1", "::/64"), ("testclient", "testclient"), (None, "nowhere")],
)  # fmt: skip
def test_one_who_has_a_whole_network_is_one_address(host: str | None, counted: str):
    assert client_address(asked_from(host)) == counted


def test_one_person_asking_too_often_does_not_hold_up_another(
    site: Site, ada: Person, bob: Person, monkeypatch: pytest.MonkeyPatch
):
    tight = RateLimiter("memory://", rates={"request": "3/minute"})
    monkeypatch.setattr(RateLimiter, "check", lambda _, kind, who: COUNT(tight, kind, who))
    answers = [ada.get("/api/subjects") for _ in range(4)]
    assert [answer.status_code for answer in answers[:3]] == [200] * 3
    is_problem(answers[3], 429, "too-many-requests")
    assert int(answers[3].headers["retry-after"]) >= 1
    assert bob.get("/api/subjects").status_code == 200


def refreshed(site: Site, token: str) -> Any:
    site.client.cookies.clear()
    return site.client.post("/api/auth/refresh", headers={"Cookie": f"photoflux_refresh={token}"})


def test_refreshing_is_limited_by_sign_in_and_not_by_address(site: Site, ada: Person, bob: Person):
    """Both come from one address. One refreshes until there is no more room; neither tokens nor the other is harmed."""
    busy, calm = (site.service.login_sessions.begin(one.id).token for one in (ada, bob))
    answers = [refreshed(site, busy) for _ in range(31)]
    assert [answer.status_code for answer in answers[:30]] == [200] * 30
    is_problem(answers[30], 429, "too-many-requests")
    assert refreshed(site, calm).status_code == 200


def test_tokens_that_never_were_are_limited_by_address_and_lock_nobody_out(site: Site, ada: Person):
    known = site.service.login_sessions.begin(ada.id).token
    answers = [refreshed(site, f"never-{n}") for n in range(61)]
    is_problem(answers[59], 401, "signed-out")
    is_problem(answers[60], 429, "too-many-requests")
    assert refreshed(site, known).status_code == 200
    site.client.cookies.clear()
    is_problem(site.client.post("/api/auth/refresh"), 401, "signed-out")


def test_a_cookie_is_not_replaced_by_an_older_one(site: Site, ada: Person):
    first = site.service.login_sessions.begin(ada.id).token
    second = refreshed(site, first).cookies["photoflux_refresh"]
    assert refreshed(site, first).cookies["photoflux_refresh"] == second, "the other tab is given the same"
    assert refreshed(site, second).status_code == 200
    late = refreshed(site, first)
    assert late.status_code == 200 and late.json()["access_token"] and "photoflux_refresh" not in late.cookies


def test_the_limits_of_the_settings_are_those_of_the_service(site: Site, own_state: Path):
    assert set(ApiSettings().rates) <= set(RATES)
    assert site.service.rate_limiter._rates["refresh"] == RateLimiter("memory://")._rates["refresh"]


def test_a_token_of_a_sign_in_that_is_over_takes_nothing_from_its_owner(
    site: Site, ada: Person, monkeypatch: pytest.MonkeyPatch
):
    tight = RateLimiter("memory://", rates={"request": "3/minute"})
    stolen = ada.token
    site.service.login_sessions.end_all(ada.id)
    monkeypatch.setattr(RateLimiter, "check", lambda _, kind, who: COUNT(tight, kind, who))
    asked = {"headers": {"Authorization": f"Bearer {stolen}"}}
    assert [site.client.get("/api/subjects", **asked).status_code for _ in range(5)] == [401] * 3 + [429] * 2
    begun = site.service.login_sessions.begin(ada.id)
    anew = {
        "headers": {
            "Authorization": f"Bearer {site.service.tokens.access_token(AccessTokenClaims(ada.id, 'user', begun.login_session_id))}"
        }
    }
    assert site.client.get("/api/subjects", **anew).status_code == 200
