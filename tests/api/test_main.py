"""The application as it is served, on loopback, with its embedded provider; and that every error is a problem."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import uvicorn

from api import main
from api.accounts.embedded_provider import Accounts
from api.settings import ApiSettings

EMAIL, PASSWORD = "ada@example.org", "correct horse battery"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running service with one account."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PHOTOFLUX_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = ApiSettings(public_url=f"http://127.0.0.1:{port}")
        Accounts(settings.state_dir / "accounts").add(EMAIL, name="Ada", password=PASSWORD)
        config = uvicorn.Config(main.make_app(settings), host="127.0.0.1", port=port, log_level="warning")
        served = uvicorn.Server(config)
        thread = threading.Thread(target=served.run)
        thread.start()
        until = time.monotonic() + 60
        while not served.started and time.monotonic() < until:
            time.sleep(0.01)
        yield settings.public_url
        served.should_exit = True
        thread.join()


@pytest.fixture(autouse=True)
def own_state() -> None:
    """The state is the module's."""


@pytest.fixture
def browser(server: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server) as client:
        yield client


def sign_in(browser: httpx2.Client) -> httpx2.Response:
    asked = browser.get("/api/auth/login")
    assert asked.status_code == 302
    back = browser.post(asked.headers["location"], data={"email": EMAIL, "password": PASSWORD})
    assert back.status_code == 302, back.text
    return browser.get(back.headers["location"])


def token_of(browser: httpx2.Client) -> str:
    return browser.post("/api/auth/refresh").json()["access_token"]


def is_problem(answer: httpx2.Response, status: int, kind: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["type"].endswith(f"/{kind}") and body["status"] == status and body["title"] and body["detail"]
    return body


def test_a_person_signs_in_asks_who_they_are_and_signs_out(browser: httpx2.Client):
    assert sign_in(browser).headers["location"] == "/"
    headers = {"Authorization": f"Bearer {token_of(browser)}"}
    me = browser.get("/api/auth/me", headers=headers).json()
    assert (me["name"], me["email"], me["role"]) == ("Ada", EMAIL, "user")
    assert browser.post("/api/auth/logout").status_code == 204
    is_problem(browser.get("/api/auth/me", headers=headers), 401, "signed-out")
    is_problem(browser.post("/api/auth/refresh"), 401, "signed-out")


def test_cookies_are_out_of_reach(browser: httpx2.Client):
    asked = browser.get("/api/auth/login")
    kept = sign_in(browser)
    for answer, name, same_site in ((asked, "photoflux_sign_in", "lax"), (kept, "photoflux_refresh", "strict")):
        (cookie,) = [
            c for c in answer.headers.get_list("set-cookie") if c.startswith(f"{name}=") and "Max-Age=0" not in c
        ]
        assert "HttpOnly" in cookie and "Path=/api/auth" in cookie and f"SameSite={same_site}" in cookie


def test_another_browser_cannot_finish_a_sign_in(browser: httpx2.Client, server: str):
    asked = browser.get("/api/auth/login")
    back = browser.post(asked.headers["location"], data={"email": EMAIL, "password": PASSWORD})
    with httpx2.Client(base_url=server) as other:
        is_problem(other.get(back.headers["location"]), 400, "sign-in-failed")
        other.get("/api/auth/login")
        is_problem(other.get(back.headers["location"]), 400, "sign-in-failed")
    assert browser.get(back.headers["location"]).status_code == 302
    is_problem(browser.get(back.headers["location"]), 400, "sign-in-failed")


def test_another_site_cannot_use_the_cookie(browser: httpx2.Client, server: str):
    sign_in(browser)
    for origin in ("https://evil.example", "null", server.replace("http", "https")):
        is_problem(browser.post("/api/auth/refresh", headers={"Origin": origin}), 403, "other-site")
    assert browser.post("/api/auth/refresh", headers={"Origin": server}).status_code == 200


@pytest.mark.parametrize("header", [None, "Bearer", "Bearer x", "Bearer x.y.z", "Basic YTpi", "bearer \xff"])
def test_nobody_without_a_good_token(browser: httpx2.Client, header: str | None):
    answer = browser.get("/api/auth/me", headers={"Authorization": header.encode("latin-1")} if header else {})
    is_problem(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_errors_outside_of_routes_are_problems(browser: httpx2.Client):
    is_problem(browser.get("/api/nothing"), 404, "not-found")
    is_problem(browser.delete("/api/auth/login"), 405, "method-not-allowed")
    is_problem(browser.post("/api/auth/refresh", content=b"x" * (main.BODY_BYTES + 1)), 413, "too-large")
    errors = is_problem(browser.get("/api/auth/callback"), 422, "invalid")["errors"]
    assert errors[0]["where"] == "query.state"


def test_what_was_sent_is_not_said_back(browser: httpx2.Client):
    answer = browser.get("/api/auth/callback", params={"state": "canary" * 100})
    assert "canary" not in is_problem(answer, 422, "invalid")["detail"] and "canary" not in answer.text


def test_a_crash_is_a_problem_without_its_reason(server: str, monkeypatch: pytest.MonkeyPatch, browser: httpx2.Client):
    from api.accounts.openid_client import Identities

    def crash(self: Identities) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(Identities, "begin", crash)
    answer = browser.get("/api/auth/login")
    is_problem(answer, 500, "internal")
    assert "secret" not in answer.text and "Zero" not in answer.text


def test_every_answer_keeps_browsers_careful(browser: httpx2.Client):
    for path in ("/livez", "/api/nothing", "/api/auth/jwks"):
        headers = browser.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "private, no-store"
        assert headers["content-security-policy"].startswith("default-src 'none'")
    page = browser.get(browser.get("/api/auth/login").headers["location"])
    assert "style-src" in page.headers["content-security-policy"], "a page's own policy stands"


def test_probes_answer(browser: httpx2.Client):
    assert browser.get("/livez").status_code == browser.get("/readyz").status_code == 204


def test_public_keys_are_public(browser: httpx2.Client):
    sign_in(browser)
    token_of(browser)
    assert all("d" not in key for key in browser.get("/api/auth/jwks").json()["keys"])
