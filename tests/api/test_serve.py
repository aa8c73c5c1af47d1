"""The service as `make serve` runs it, used by the README's own lines; and its processes killed under it."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from benchmarks.chaos import QUICK, Served, live_through

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    running: list[Served] = []

    def started(*options: str, **settings: str) -> Served:
        running.append(Served(tmp_path, *options, **settings))
        return running[-1]

    yield started
    for served in running:
        served.stop()


def signed_in(served: Served, verify: Any = True) -> httpx2.Client:
    """A client with an access token that agreed to the terms."""
    client = httpx2.Client(base_url=served.base, timeout=60, verify=verify)
    page = client.get("/api/auth/login").headers["location"]
    password = (served.state / "demo-password").read_text()
    back = client.post(page, data={"email": "demo@photoflux.local", "password": password}).headers["location"]
    client.get(back)
    client.headers["Authorization"] = f"Bearer {client.post('/api/auth/refresh').json()['access_token']}"
    for wording in client.get("/api/terms").json():
        if wording["agree"]:
            client.post("/api/consents", json={name: wording[name] for name in ("purpose", "sha256")})
    return client


def test_the_readmes_lines_do_what_they_say(start: Any, tmp_path: Path):
    """The block as it stands there, run by bash; figures go to the test's output."""
    block = re.search(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block
    served, folder = start("--no-mlflow"), tmp_path / "shell"
    folder.mkdir()
    (folder / "data").symlink_to(ROOT / "data")
    started = time.monotonic()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block[1]], cwd=folder, env=served.environment | {"BASE": served.base},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    print(f"README's lines: {time.monotonic() - started:.0f} s")
    said = done.stdout
    assert '["succeeded"]' in said
    assert '"state": "succeeded"' in said
    picture = Image.open(folder / "rex.jpg")
    assert (picture.size, picture.format) == ((512, 512), "JPEG")


def test_nothing_is_lost_or_doubled_while_processes_are_killed(tmp_path: Path):
    """Three people's day with ten kills; `python -m benchmarks.chaos` is the same with twenty and fifty."""
    served = Served(tmp_path, "--no-mlflow", people=3, PHOTOFLUX_RUN_DEFAULTS=json.dumps(QUICK))
    try:
        found = live_through(served, people=3, kills=10, seed=1)
    finally:
        served.stop()
    assert found["wrong"] == []
    assert found["killed"] >= 5, found


def test_it_serves_over_tls_with_an_authority_of_its_own(start: Any):
    import ssl

    served = start("--no-mlflow", "--tls")
    trusted = ssl.create_default_context(cafile=str(served.state / "tls" / "ca.pem"))
    client = signed_in(served, verify=trusted)
    assert client.get("/api/subjects").json() == {"items": [], "next": None}
    cookie = client.get("/api/auth/login").headers["set-cookie"]
    assert "Secure" in cookie
    assert (served.state / "tls" / "key.pem").stat().st_mode & 0o077 == 0
