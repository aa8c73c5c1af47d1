"""The provider's own forms under attack: who fails waits, who is right is let in, and little is done at a time."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from fastapi import FastAPI
from pwdlib import PasswordHash
from starlette.testclient import TestClient

from api.accounts.embedded_provider import CHECKS_AT_ONCE, CLIENT_ID, HASHING_NICE, Account, Accounts
from api.routes.provider_pages import FORM_BYTES, make_provider
from api.transport import password_checks
from tests.api.accounts.test_openid_client import QUICK
from tests.api.clocks import moved_by_hand
from tests.api.people import is_problem

EMAIL, PASSWORD, REDIRECT = "ada@example.org", "correct horse battery", "http://127.0.0.1:1/back"
HOME, ELSEWHERE = "192.0.2.1", "198.51.100.7"
ASKED = "/authorize?" + urlencode(
    {
        "response_type": "code",
        "client_id": CLIENT_ID,
        "redirect_uri": REDIRECT,
        "scope": "openid",
        "state": "s",
        "nonce": "n",
        "code_challenge": "x" * 43,
        "code_challenge_method": "S256",
    }
)
Later = Callable[[float], None]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Later:
    return moved_by_hand(monkeypatch)


@pytest.fixture
def provider(own_state: Path) -> FastAPI:
    accounts = Accounts(own_state / "accounts", hasher=QUICK)
    for email in (EMAIL, "bob@example.org"):
        accounts.add(email, name="Somebody", password=PASSWORD)
    return make_provider(issuer="http://127.0.0.1:1/provider", redirect_uri=REDIRECT, accounts=accounts)


def tried(
    provider: FastAPI, password: str, *, email: str = EMAIL, address: str = HOME, headers: dict[str, str] | None = None
) -> Any:
    client = TestClient(provider, client=(address, 50000), follow_redirects=False)
    return client.post(ASKED, data={"email": email, "password": password}, headers=headers)


def waits(answer: Any) -> int:
    """Asserts that an answer sends somebody away for a while, in plain words; the seconds."""
    assert answer.status_code == 429, answer.status_code
    seconds = int(answer.headers["retry-after"])
    assert f"Too many wrong passwords; try again in {seconds} s." in answer.text and "<form" in answer.text
    return seconds


def test_whoever_keeps_failing_waits_longer_each_time_up_to_a_quarter_of_an_hour(provider: FastAPI, later: Later):
    for _ in range(5):
        assert tried(provider, "wrong").status_code == 401
    seen = []
    for _ in range(13):
        seen.append(waits(tried(provider, "wrong")))
        later(seen[-1])
        assert tried(provider, "wrong").status_code == 401
    assert seen == [min(2**n, 900) for n in range(13)]


def test_a_right_password_waits_too_and_then_all_is_forgiven(provider: FastAPI, later: Later):
    for _ in range(5):
        tried(provider, "wrong")
    later(waits(tried(provider, PASSWORD)))
    assert tried(provider, PASSWORD).status_code == 302
    for _ in range(4):
        assert tried(provider, "wrong").status_code == 401
    assert tried(provider, PASSWORD).status_code == 302


def test_an_account_that_is_not_there_is_answered_alike(provider: FastAPI):
    for email in (EMAIL, "nobody@example.org"):
        answers = [tried(provider, "wrong", email=email.upper()) for _ in range(6)]
        assert [answer.status_code for answer in answers] == [401] * 5 + [429]


def fail_for_long(provider: FastAPI, later: Later, *, addresses: int) -> None:
    """Five failures from each of many addresses, with time between so that no address has to wait."""
    for number in range(addresses):
        for _ in range(5):
            tried(provider, "wrong", address=f"203.0.113.{number}")
            later(61)


def test_a_stranger_cannot_lock_somebody_out(provider: FastAPI, later: Later):
    """Where they signed in before they always can; elsewhere they wait a minute at most."""
    assert tried(provider, PASSWORD).status_code == 302
    fail_for_long(provider, later, addresses=22)
    tried(provider, "wrong", address="203.0.113.99")
    assert waits(tried(provider, PASSWORD, address=ELSEWHERE)) <= 60
    assert tried(provider, PASSWORD).status_code == 302
    later(61)
    assert tried(provider, PASSWORD, address=ELSEWHERE).status_code == 302


def test_an_address_that_tries_many_accounts_waits_but_for_who_is_at_home_there(provider: FastAPI):
    assert tried(provider, PASSWORD).status_code == 302
    for number in range(20):
        assert tried(provider, "wrong", email=f"p{number}@example.org").status_code == 401
    assert waits(tried(provider, PASSWORD, email="bob@example.org")) == 1
    assert tried(provider, PASSWORD).status_code == 302
    assert tried(provider, PASSWORD, email="bob@example.org", address=ELSEWHERE).status_code == 302


class Watched(Accounts):
    """Accounts whose checks wait until they are let go, and are counted."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, hasher=QUICK)
        self.now, self.most, self.all_checks, self.go, self.lock = 0, 0, 0, threading.Event(), threading.Lock()

    def check(self, email: str, password: str) -> Account | None:
        with self.lock:
            self.now, self.all_checks = self.now + 1, self.all_checks + 1
            self.most = max(self.most, self.now)
        self.go.wait(20)
        try:
            return super().check(email, password)
        finally:
            with self.lock:
                self.now -= 1


@pytest.fixture
def watched(provider: FastAPI, own_state: Path) -> Watched:
    accounts = Watched(own_state / "accounts")
    provider.state.provider.accounts = accounts
    return accounts


@pytest.fixture
def client(provider: FastAPI) -> Iterator[TestClient]:
    """One loop for all requests, as they are served."""
    with TestClient(provider, client=(HOME, 50000), follow_redirects=False) as client:
        yield client


def test_two_passwords_are_checked_at_a_time_and_pages_are_served_meanwhile(client: TestClient, watched: Watched):
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(client.post, ASKED, data={"email": EMAIL, "password": PASSWORD}) for _ in range(8)]
        until = time.monotonic() + 20
        while watched.now < CHECKS_AT_ONCE and time.monotonic() < until:
            time.sleep(0.01)
        assert client.get(ASKED).status_code == 200, "nothing of it holds up the loop"
        watched.go.set()
        assert [one.result().status_code for one in asked] == [302] * 8
    assert (watched.most, watched.all_checks) == (CHECKS_AT_ONCE, 8)


def test_who_waits_too_long_for_their_turn_is_told_to_come_again(
    client: TestClient, watched: Watched, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(password_checks, "QUEUE_TIMEOUT_S", 0.2)
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(client.post, ASKED, data={"email": EMAIL, "password": PASSWORD}) for _ in range(3)]
        until = time.monotonic() + 20
        while not any(one.done() for one in asked) and time.monotonic() < until:
            time.sleep(0.01)
        watched.go.set()
        answers = sorted((one.result() for one in asked), key=lambda answer: answer.status_code)
    assert [answer.status_code for answer in answers] == [302, 302, 503]
    assert "try again in a moment" in answers[2].text and answers[2].headers["retry-after"] == "5"
    assert client.post(ASKED, data={"email": EMAIL, "password": PASSWORD}).status_code == 302, "their places are free"


def test_guesses_in_parallel_are_no_more_than_one_after_the_other(client: TestClient, watched: Watched):
    with ThreadPoolExecutor(30) as pool:
        asked = [pool.submit(client.post, ASKED, data={"email": EMAIL, "password": f"wrong {n}"}) for n in range(30)]
        watched.go.set()
        statuses = [one.result().status_code for one in asked]
    assert set(statuses) == {401, 429}
    assert 5 <= watched.all_checks <= 5 + CHECKS_AT_ONCE - 1
    assert statuses.count(401) == watched.all_checks


@pytest.mark.parametrize("path", [ASKED, "/token"])
@pytest.mark.parametrize(
    "kind", ["multipart/form-data; boundary=x", "Multipart/Form-Data; boundary=x", "application/json", "", "x"]
)
def test_only_plain_forms_are_taken(client: TestClient, path: str, kind: str):
    answer = client.post(path, content=b"email=a&password=b", headers={"Content-Type": kind})
    is_problem(answer, 415, "unsupported-media-type")
    answer = client.post(
        path, content=b"email=a", headers={"Content-Type": "Application/X-WWW-Form-Urlencoded; Charset=utf-8"}
    )
    assert answer.status_code in (400, 401) and "application/problem+json" not in answer.headers["content-type"]


@pytest.mark.parametrize("path", [ASKED, "/token"])
def test_forms_are_small(client: TestClient, watched: Watched, path: str):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post(path, content=b"email=" + b"x" * FORM_BYTES, headers=headers).status_code == 413
    parts = (b"x" * 1024 for _ in range(8))
    assert client.post(path, content=parts, headers=headers).status_code == 413
    many = "&".join(f"f{n}=1" for n in range(17)).encode()
    for body in (many, b"email=\xff", b"email=%ff"):
        is_problem(client.post(path, content=body, headers=headers), 400, "bad-request")
    assert watched.all_checks == 0


@pytest.mark.parametrize(("email", "password"), [("x" * 255, "y"), (EMAIL, "y" * 1001), ("\0", "\0"), ("İ" * 254, "")])
def test_fields_are_bounded_and_too_long_a_password_is_a_wrong_one(
    provider: FastAPI, watched: Watched, email: str, password: str
):
    watched.go.set()
    assert tried(provider, password, email=email).status_code == 401
    assert watched.all_checks == (len(email.lower()) <= 254 and len(password) <= 1000)


def test_a_request_that_gets_no_code_has_no_password_checked(client: TestClient, watched: Watched):
    answer = client.post(
        re.sub("client_id=\\w+", "client_id=other", ASKED), data={"email": EMAIL, "password": PASSWORD}
    )
    assert answer.status_code == 400 and watched.all_checks == 0


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_of_others_cannot_send_the_form(provider: FastAPI, site: str):
    """They could keep somebody out, a wrong password after the other."""
    for _ in range(8):
        assert tried(provider, "wrong", headers={"Sec-Fetch-Site": site}).status_code == 403
    assert tried(provider, PASSWORD, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 302


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux weighs threads")
def test_hashing_yields_to_whoever_answers_requests(own_state: Path):
    hasher = Weighed(QUICK.hashers)
    accounts = Accounts(own_state / "accounts", hasher=hasher)
    accounts.add(EMAIL, name="Somebody", password=PASSWORD)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert accounts.check(EMAIL, PASSWORD) is not None
    assert hasher.seen == [min(19, before + HASHING_NICE)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


class Weighed(PasswordHash):
    """Notes with which priority it checks."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: list[int] = []

    def verify(self, password: str | bytes, hash: str | bytes) -> bool:  # noqa: A002
        self.seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return super().verify(password, hash)
