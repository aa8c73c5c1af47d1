"""The service as `make serve` runs it, used by the README's own lines; and its processes killed under it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.api.people import SAMPLES

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
QUICK = {"finetune_steps": 20, "finetune_checkpoint_every": 20, "evaluate_profile": "smoke", "audit_profile": "smoke"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """A running `python -m api.serve`."""

    def __init__(self, folder: Path, *options: str, **settings: str) -> None:
        self.folder, self.state, tls = folder, folder / "state", "--tls" in options
        self.base = f"{'https' if tls else 'http'}://127.0.0.1:{free_port()}"
        self.environment = os.environ | {
            "PHOTOFLUX_STATE_DIR": str(self.state), "PHOTOFLUX_RUNS_DIR": str(folder / "runs"),
            "PHOTOFLUX_PUBLIC_URL": self.base, "PHOTOFLUX_ENGINE_URL": f"http://127.0.0.1:{free_port()}", **settings,
        }  # fmt: skip
        self.log = folder / "serve.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "api.serve", *options], cwd=ROOT, env=self.environment, stdout=log,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        until = time.monotonic() + 180
        while "ready" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)

    def pids(self, name: str) -> list[int]:
        """Processes of this service by a piece of their command, the youngest last."""
        listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
        rows = [line.split(maxsplit=1) for line in listed.splitlines()]
        wanted = [int(pid) for pid, args in rows if name in args]
        return [pid for pid in wanted if self._ours(pid)]

    def _ours(self, pid: int) -> bool:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return f"PHOTOFLUX_STATE_DIR={self.state}".encode() in environment


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


def test_nothing_is_lost_when_processes_are_killed(start: Any):
    """A run and a generation survive the deaths of the worker, the engine, the API and the pipeline itself."""
    served = start("--no-mlflow", PHOTOFLUX_RUN_DEFAULTS=json.dumps(QUICK))
    client = signed_in(served)
    subject = client.post("/api/subjects", json={"class_noun": "dog", "depicts": "no_person"}).json()["id"]
    files = [("photos", (file.name, file.read_bytes())) for file in SAMPLES[:6]]
    client.post("/api/upload", data={"subject": subject}, files=files).raise_for_status()
    asked = client.post("/api/generate", json={"subject": subject, "prompt": "a photo of sks dog"}).json()

    killed = 0
    for name in ("api.worker", "pipelines.local", "api.engine", "api.main", "api.worker"):
        until = time.monotonic() + 60
        while not (found := served.pids(name)) and time.monotonic() < until:
            time.sleep(0.1)
        if found:
            os.kill(found[-1], signal.SIGKILL)
            killed += 1
        time.sleep(2.5)
    assert killed >= 4
    until, state = time.monotonic() + 400, {}
    while time.monotonic() < until and not state.get("finished"):
        try:
            state = client.get(f"/api/results/{asked['id']}", params={"wait": 5}).json()
        except httpx2.HTTPError:
            time.sleep(0.5)
    run = client.get(f"/api/runs/{asked['run']}").json()
    assert run["state"] in ("succeeded", "failed"), run
    assert state["state"] == run["state"], (state, run)
    if run["state"] == "failed":  # twenty steps may not pass the gate: then it says so
        assert "the check said" in run["error"], run
    assert len(client.get("/api/runs").json()["items"]) == 1
    assert len(client.get("/api/models").json()["items"]) == (run["state"] == "succeeded")


def test_it_serves_over_tls_with_an_authority_of_its_own(start: Any):
    import ssl

    served = start("--no-mlflow", "--tls")
    trusted = ssl.create_default_context(cafile=str(served.state / "tls" / "ca.pem"))
    client = signed_in(served, verify=trusted)
    assert client.get("/api/subjects").json() == {"items": [], "next": None}
    cookie = client.get("/api/auth/login").headers["set-cookie"]
    assert "Secure" in cookie
    assert (served.state / "tls" / "key.pem").stat().st_mode & 0o077 == 0
