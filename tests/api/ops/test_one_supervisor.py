"""`make serve` where it runs already, and how it ends: by any signal, asked once or more often, with requests held open."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.ops.inventory import inventory
from api.ops.serve import make_supervisor
from api.settings import ApiSettings
from tests.api.ops.test_serve import signed_in, start

__all__ = ["start"]


@pytest.fixture
def settings(tmp_path: Path) -> ApiSettings:
    return ApiSettings(state_dir=tmp_path, public_url="http://127.0.0.1:1", engine_url="http://127.0.0.1:2")


@pytest.fixture
def stranger() -> Iterator[int]:
    """Port of a program that is not ours."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_folder_is_served_once(settings: ApiSettings):
    supervisor, other = make_supervisor(settings), make_supervisor(settings)
    with (
        supervisor.exclusive(),
        pytest.raises(SystemExit, match=f"is served by process {os.getpid()}"),
        other.exclusive(),
    ):
        pass
    with other.exclusive():
        files = [str(path.relative_to(settings.state_dir)) for path in settings.state_dir.rglob("*") if path.is_file()]
    assert files
    assert [name for name in files if not inventory().holds_file(name)] == []


@pytest.mark.parametrize("name", ["public_url", "engine_url"])
def test_an_address_that_somebody_else_has_is_named(settings: ApiSettings, stranger: int, name: str):
    taken = settings.model_copy(update={name: f"http://127.0.0.1:{stranger}"})
    with pytest.raises(SystemExit, match=f"PHOTOFLUX_{name.upper()}"), make_supervisor(taken).exclusive():
        pass


@pytest.mark.slow
def test_a_second_service_in_the_same_folder_leaves_the_first_alone(start):
    served = start("--no-mlflow")
    scratch = {path: path.stat().st_ino for path in (served.state / "scratch").iterdir()}
    command = [sys.executable, "-m", "api.ops.serve", "--no-mlflow"]
    done = subprocess.run(command, env=served.environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {served.state} is served by process {served.process.pid}")
    assert {path: path.stat().st_ino for path in (served.state / "scratch").iterdir()} == scratch
    assert signed_in(served).get("/api/auth/me").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_ends_whole_by_any_signal_however_often_it_is_asked(start, number: signal.Signals):
    """And without waiting for who watches a run: that ends as it does after an hour, without a word and not broken off."""
    served = start("--no-mlflow")
    client = signed_in(served)
    subject = client.post("/api/subjects", json={"class_noun": "dog", "depicts": "no_person"}).json()["id"]
    photos = [("photos", file.open("rb")) for file in sorted(Path("data/samples/dog").glob("0[1-6].jpg"))]
    client.post("/api/upload", data={"subject": subject}, files=photos).raise_for_status()
    run = client.post("/api/runs", json={"subject": subject}).json()["id"]
    with client.stream("GET", f"/api/runs/{run}/events") as events:
        lines = events.iter_lines()
        next(lines)
        began = time.monotonic()
        for _ in range(3):
            served.process.send_signal(number)
            time.sleep(0.3)
        assert len(list(lines)) >= 1  # to its end: what is broken off raises
        held_s = time.monotonic() - began
    served.process.wait(60)
    print(f"{number.name}: watched for {held_s:.1f} s more, ended after {time.monotonic() - began:.1f} s")
    assert "Traceback" not in served.log.read_text()
    assert not [pid for name in ("api.", "pipelines.", "photoflux") for pid in served.pids(name)]
