"""The service's own pages: what they load is there, and their policies let them."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import uvicorn

from api.main import make_app
from api.privacy import consents
from api.settings import ApiSettings
from benchmarks.postgres import free_port
from tests.api.people import Site, is_problem

PAGES = ("/", "/docs", "/terms")
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


class Page(HTMLParser):
    """What a page loads and links, and what is written in it that a policy without 'unsafe-inline' refuses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads, self.links, self.inline = list[str](), list[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag in ("script", "img"):
            self.loads.append(str(named.get("src")))
        if tag == "link":
            self.loads.append(str(named.get("href")))
        if tag == "a":
            self.links.append(str(named.get("href")))
        if tag == "style" or any(name == "style" or name.startswith("on") for name in named):
            self.inline.append(self.get_starttag_text() or tag)


def policy(headers: dict[str, str]) -> dict[str, str]:
    """Directives of a security policy."""
    parts = [one.strip().partition(" ") for one in headers["content-security-policy"].split(";")]
    return {name: value for name, _, value in parts}


@pytest.mark.parametrize("path", PAGES)
def test_a_page_keeps_to_its_policy(site: Site, path: str) -> None:
    answer = site.client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    allowed = policy(dict(answer.headers))
    assert allowed["default-src"] == "'none'"
    assert allowed["script-src"] == "'self'"
    assert allowed["connect-src"] == "'self'"
    assert allowed["frame-ancestors"] == "'none'"
    page = Page(answer.text)
    assert page.inline == []
    assert page.loads
    for address in page.loads:
        assert re.match("/[a-z]|data:image/", address), f"{path} loads {address}"
        if address.startswith("/"):
            loaded = site.client.get(address)
            assert loaded.status_code == 200, address
            assert loaded.headers["content-type"].partition(";")[0] == TYPES[Path(address).suffix]


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_somewhere(site: Site, path: str) -> None:
    for address in Page(site.client.get(path).text).links:
        if address.startswith("/"):
            answer = site.client.get(address, follow_redirects=False)
            away = address == "/api/auth/login"  # the provider is not there in this process: a problem of its own
            assert answer.status_code in ((302, 400) if away else (200,)), address
        else:
            assert address.startswith("#"), address


def test_only_pages_have_a_policy_that_lets_scripts_run(site: Site) -> None:
    for path in ("/api/terms", "/openapi.json", "/livez", "/docs/nothing", "/api/nothing"):
        assert "script-src" not in policy(dict(site.client.get(path).headers))
    for path in PAGES:
        assert "unsafe" not in site.client.get(path).headers["content-security-policy"]


@pytest.mark.parametrize(
    "path", ["/redoc", "/docs/oauth2-redirect", "/docs/__init__.py", "/docs/home.html", "/pages/docs.html",
             "/pages/%2e%2e/main.py", "/docs/nothing"],
)  # fmt: skip
def test_nothing_else_is_served(site: Site, path: str) -> None:
    is_problem(site.client.get(path), 404, "not-found")


def test_files_are_kept_by_browsers_and_asked_for_again_by_their_tag(site: Site) -> None:
    first = site.client.get("/docs/swagger-ui-bundle.js")
    assert first.headers["cache-control"] == "public, max-age=3600"
    again = site.client.get("/docs/swagger-ui-bundle.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_terms_are_shown_as_they_are_agreed_to(site: Site) -> None:
    page = site.client.get("/terms").text
    for wording in consents.terms_documents().values():
        assert f'id="{wording.purpose}"' in page
        assert wording.version in page
    assert "<h2>" in page
    assert "**" not in page


@pytest.fixture
def served(own_state: Path) -> Iterator[str]:
    """Address of the service on a port of this machine."""
    settings = ApiSettings(public_url=f"http://127.0.0.1:{free_port()}")
    port = int(settings.public_url.rpartition(":")[2])
    server = uvicorn.Server(uvicorn.Config(make_app(settings), host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    until = time.monotonic() + 60
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    yield settings.public_url
    server.should_exit = True
    thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "shown"), [("/docs", "createSubject"), ("/", "Sign in"), ("/terms", "Terms of service")]
)
def test_a_browser_shows_the_page_and_refuses_nothing(served: str, tmp_path: Path, path: str, shown: str) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no browser here; install the package chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={tmp_path}"]
    done = subprocess.run(
        [browser, *options, "--virtual-time-budget=20000", "--dump-dom", served + path],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert shown in done.stdout
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert [line for line in said if "Content Security Policy" in line or "Uncaught" in line] == []
