"""Many people sign in by the front door of the whole service, from one address, with the limits that ship."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
import uvicorn
from sqlalchemy import func, select

from api.accounts.embedded_provider import Accounts
from api.main import make_app
from api.records.database import Records, open_engine
from api.records.tables import LoginFlow
from api.settings import ApiSettings
from api.transport.rate_limits import RATES
from benchmarks.postgres import free_port
from tests.api.accounts.test_openid_client import QUICK
from tests.api.people import is_problem

PASSWORD, PEOPLE = "correct horse battery", 100


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiSettings]:
    """A running service where a hundred people have accounts, whose passwords are checked quickly."""
    settings = ApiSettings(public_url=f"http://127.0.0.1:{free_port()}")
    accounts = Accounts(settings.state_dir / "accounts", hasher=QUICK)
    for number in range(PEOPLE):
        accounts.add(f"p{number}@example.org", name=f"Person {number}", password=PASSWORD)
    port = int(settings.public_url.rsplit(":", 1)[1])
    server = uvicorn.Server(
        uvicorn.Config(make_app(settings), host="127.0.0.1", port=port, log_level="warning", timeout_keep_alive=60)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    until = time.monotonic() + 60
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    yield settings
    server.should_exit = True
    thread.join()


def signed_in(base: str, number: int) -> list[int]:
    """The way from the first page to an access token; the statuses met."""
    with httpx2.Client(base_url=base, timeout=60, verify=False) as browser:
        answers = [browser.get("/api/auth/login")]
        where = answers[0].headers.get("location", "/")
        answers.append(browser.post(where, data={"email": f"p{number}@example.org", "password": PASSWORD}))
        answers.append(browser.get(answers[1].headers.get("location", "/")))
        answers.append(browser.post("/api/auth/refresh"))
        return [answer.status_code for answer in answers]


@pytest.mark.slow
def test_a_hundred_people_behind_one_address_all_get_in(served: ApiSettings):
    with ThreadPoolExecutor(PEOPLE) as pool:
        met = list(pool.map(lambda number: signed_in(served.public_url, number), range(PEOPLE)))
    assert met == [[302, 302, 302, 200]] * PEOPLE


@pytest.mark.slow
def test_sign_ins_that_are_begun_and_left_are_bounded(served: ApiSettings):
    allowed = int(RATES["login"].split("/")[0])
    with httpx2.Client(base_url=served.public_url, timeout=60) as stranger:
        statuses = [stranger.get("/api/auth/login").status_code for _ in range(allowed + 5)]
        is_problem(stranger.get("/api/auth/login"), 429, "too-many-requests")
    assert statuses == [302] * allowed + [429] * 5
    engine = open_engine(served.records_url)
    with Records(engine).reading() as session:
        assert session.scalar(select(func.count()).select_from(LoginFlow)) == allowed
    engine.dispose()


def test_one_account_finishes_so_many_sign_ins(served: ApiSettings):
    met = [signed_in(served.public_url, 0) for _ in range(21)]
    assert met[:20] == [[302, 302, 302, 200]] * 20
    assert met[20] == [302, 302, 429, 401]
    assert signed_in(served.public_url, 1) == [302, 302, 302, 200]


def test_what_the_provider_refuses_is_a_problem(served: ApiSettings):
    with httpx2.Client(base_url=served.public_url) as stranger:
        where = stranger.get("/api/auth/login").headers["location"]
        is_problem(stranger.post(where, files={"email": b"a"}), 415, "unsupported-media-type")
        is_problem(stranger.post(where, data={"email": "a" * 5000}), 413, "too-large")
