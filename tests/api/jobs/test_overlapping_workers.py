"""Workers as processes: beside each other, killed, stopped and continued, replaced by newer ones. Nothing accepted is lost or doubled."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from api.jobs.leases import EXIT_LOST, LEASE_S
from benchmarks.chaos import RetryingClient, RollingUpdates, RunningService
from benchmarks.load import populate_service
from photoflux.flux import lora
from photoflux.flux.loading import load_pipeline
from photoflux.flux.spec import load_spec
from photoflux.manifest import write_tar
from photoflux.serving.adapters import WEIGHTS
from tests.api.conftest import new_database

pytestmark = pytest.mark.slow
GENERATIONS, IMAGES = 8, 8


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the pocket base that nobody trained."""
    folder, spec = tmp_path_factory.mktemp("adapter"), load_spec("pocket")
    transformer = load_pipeline(spec, device="cpu").transformer
    for parameter in lora.attach(transformer, spec=spec, rank=2, alpha=4, seed=0):
        with torch.no_grad():
            parameter.normal_(0, 0.05)
    weights = lora.save_adapter(transformer, folder / WEIGHTS)
    subject = {"id": "s", "class_noun": "dog", "trigger": "sks", "consent": "sample"}
    manifest = {"subject": subject, "base": {"name": spec.name, "hash": spec.hash}}
    write_tar(folder / "000.tar", files={WEIGHTS: weights}, manifest=manifest)
    return folder / "000.tar"


@pytest.fixture(params=["sqlite", "postgresql"])
def served(request: pytest.FixtureRequest, adapter: Path, tmp_path: Path) -> Iterator[RunningService]:
    """The service with one person who has a model."""
    with ExitStack() as stack:
        settings = {}
        if request.param == "postgresql":
            url = stack.enter_context(new_database(request.getfixturevalue("postgres")))
            settings["PHOTOFLUX_DATABASE_URL"] = url
        people = tmp_path / "people.json"
        running = RunningService(
            tmp_path, "--no-mlflow", before=lambda one: populate_service(one, [adapter], people), **settings
        )
        stack.callback(running.stop)
        yield running


@pytest.fixture
def ada(served: RunningService) -> RetryingClient:
    someone = RetryingClient(served, "p0@example.org")
    someone.sign_in()
    return someone


@pytest.fixture
def workers(served: RunningService) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts workers beside the service's own."""
    updates, started = RollingUpdates(served), list[subprocess.Popen[bytes]]()

    def start() -> subprocess.Popen[bytes]:
        started.append(updates._started())
        log = served.state / "logs" / f"worker-{updates.count}.log"
        until = time.monotonic() + 60
        while "working" not in log.read_text():
            assert time.monotonic() < until
            time.sleep(0.1)
        return started[-1]

    yield start
    for worker in started:
        worker.send_signal(signal.SIGCONT)
        worker.kill()
        worker.wait()


def ask_for_images(ada: RetryingClient) -> list[str]:
    subject = ada.ask("GET", "/api/subjects").json()["items"][0]["id"]
    body = {"subject": subject, "prompt": "a photo of sks dog", "n": IMAGES, "size": "256x256"}
    return [ada.ask("POST", "/api/generate", json=body | {"seed": n}).json()["id"] for n in range(GENERATIONS)]


def all_there(ada: RetryingClient, asked: list[str]) -> None:
    """Every picture that was asked for is there, once, and an export of all of them is what it says."""
    until = time.monotonic() + 240
    for result in asked:
        while (shown := ada.ask("GET", f"/api/results/{result}?wait=10").json())["finished"] is None:
            assert time.monotonic() < until, shown
        assert (shown["state"], len(shown["images"])) == ("succeeded", IMAGES), shown
        for image in shown["images"]:
            content = ada.ask("GET", image["url"])
            assert content.status_code == 200
            assert hashlib.sha256(content.content).hexdigest() == image["sha256"]
    listed = [one["id"] for one in ada.ask("GET", "/api/results?limit=100").json()["items"]]
    assert sorted(listed) == sorted(asked)
    export = ada.ask("POST", "/api/me/export").json()["id"]
    told: dict[str, Any] = {"state": "queued"}
    while told["state"] in ("queued", "running"):
        assert time.monotonic() < until
        time.sleep(0.3)
        told = ada.ask("GET", f"/api/me/exports/{export}").json()
    with zipfile.ZipFile(io.BytesIO(ada.ask("GET", told["url"]).content)) as archive:
        assert len([name for name in archive.namelist() if name.startswith("images/")]) == GENERATIONS * IMAGES


def test_a_worker_that_starts_takes_nothing_from_one_that_works(
    served: RunningService, ada: RetryingClient, workers: Any
):
    """As in a rolling update: a newer one begins in the midst of work, then the older one is told to stop."""
    older = workers()
    asked = ask_for_images(ada)
    workers()
    older.send_signal(signal.SIGTERM)
    assert older.wait(60) == 0
    all_there(ada, asked)


def test_a_killed_workers_work_is_taken_up_by_another(served: RunningService, ada: RetryingClient, workers: Any):
    beside = workers()
    asked = ask_for_images(ada)
    for pid in served.pids("api.jobs.worker"):
        if pid != beside.pid:
            os.kill(pid, signal.SIGKILL)
    all_there(ada, asked)


def test_a_worker_that_was_stopped_and_continued_past_its_lease_exits(
    served: RunningService, ada: RetryingClient, workers: Any
):
    beside = workers()
    asked = ask_for_images(ada)
    time.sleep(0.5)
    beside.send_signal(signal.SIGSTOP)
    try:
        all_there(ada, asked)
        time.sleep(LEASE_S + 5)
    finally:
        beside.send_signal(signal.SIGCONT)
    assert beside.wait(30) == EXIT_LOST
    all_there(ada, asked)
