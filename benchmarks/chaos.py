"""A day of people on one machine while processes are killed at random; nothing accepted may be lost or done twice.

    python -m benchmarks.chaos
    python -m benchmarks.chaos --people 3 --kills 8 --out build

Everybody signs in, uploads six photos, asks for pictures of a subject that has no model yet, waits, and asks again. Meanwhile API,
engine, worker and the pipeline's processes are killed with SIGKILL. Writes `chaos.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2

from api.embedded_provider import Accounts
from benchmarks.pocket_base import machine
from photoflux.manifest import write_json
from photoflux.pocket.photosets import jpeg, photo_set, unseen_subjects

ROOT = Path(__file__).resolve().parent.parent
QUICK = {
    "finetune_steps": 20, "finetune_checkpoint_every": 20, "finetune_save_every": 10, "evaluate_profile": "smoke",
    "audit_profile": "smoke", "gate_identity_gain_min": 0.0, "gate_accuracy_drop_max": 1.0, "gate_leakage_max": 1.0,
    "gate_drift_drop_max": 1.0, "gate_drift_kid_sd_max": 100.0, "gate_diversity_min": 0.0, "gate_sharpness_min": 0.0,
    "gate_copy_max": 1.0, "gate_gap_max": 1.0, "gate_bad_max": 1.0, "gate_cosine_drop_max": 1.0,
}  # fmt: skip
"""Twenty steps and few pictures, and a gate that lets nearly everything through: what is tried is that nothing is lost."""
TARGETS = ("api.main", "api.engine", "api.worker", "pipelines.local", "kfp.dsl.executor_main")
PASSWORD = "correct horse battery staple"
KINDS = ("dog", "cat", "bird", "car", "teapot", "lamp")
FINAL = ("succeeded", "failed", "cancelled")


class Served:
    """A running `python -m api.serve` with a state of its own."""

    def __init__(
        self, folder: Path, *options: str, people: int = 0, before: Callable[[Served], None] | None = None, **settings: str
    ) -> None:
        self.folder, self.state, tls = folder, folder / "state", "--tls" in options
        self.base = f"{'https' if tls else 'http'}://127.0.0.1:{free_port()}"
        self.environment = os.environ | {
            "PHOTOFLUX_STATE_DIR": str(self.state), "PHOTOFLUX_RUNS_DIR": str(folder / "runs"),
            "PHOTOFLUX_PUBLIC_URL": self.base, "PHOTOFLUX_ENGINE_URL": f"http://127.0.0.1:{free_port()}", **settings,
        }  # fmt: skip
        self._add_accounts(people)
        if before:
            before(self)
        self.log = folder / "serve.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "api.serve", *options], cwd=ROOT, env=self.environment, stdout=log,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._wait_until_ready()

    def _add_accounts(self, count: int) -> None:
        if not count:
            return
        code = f"from benchmarks.chaos import add_accounts; add_accounts({count})"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=self.environment, check=True)

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + 180
        while "ready" not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(self.log.read_text())
            time.sleep(0.1)

    def stop(self) -> None:
        """End everything."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)

    def pids(self, name: str) -> list[int]:
        """Processes of this service by a piece of their command."""
        listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
        rows = [line.split(maxsplit=1) for line in listed.splitlines()]
        return [int(pid) for pid, args in rows if name in args and self._ours(int(pid))]

    def _ours(self, pid: int) -> bool:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return f"PHOTOFLUX_STATE_DIR={self.state}".encode() in environment


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def add_accounts(count: int) -> None:
    """`p0@example.org`, `p1@example.org`, …"""
    from photoflux.settings import get_settings

    accounts = Accounts(get_settings().state_dir / "accounts")
    for number in range(count):
        accounts.add(f"p{number}@example.org", name=f"Person {number}", password=PASSWORD)


@dataclass
class Someone:
    """A person whose client does not give up: what was not answered is sent again under the same key."""

    served: Served
    email: str
    password: str = PASSWORD
    patience_s: float = 120.0
    retries: int = 0
    client: httpx2.Client = field(default_factory=lambda: httpx2.Client(timeout=60))

    def ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        """The answer, whatever is killed meanwhile. Raises after the patience is over."""
        more["headers"] = {"Idempotency-Key": uuid.uuid4().hex}
        until = time.monotonic() + self.patience_s
        while time.monotonic() < until:
            try:
                answer = self.client.request(method, self.served.base + path, **more)
                again = answer.status_code >= 500 or answer.status_code == 429 or "problems/conflict" in answer.text[:200]
                if answer.status_code == 401:
                    self.sign_in()
                elif not again:
                    return answer
            except httpx2.HTTPError:
                pass
            self.retries += 1
            time.sleep(0.5)
        raise TimeoutError(f"{method} {path} was not answered")

    def sign_in(self) -> None:
        """The whole way over the provider, begun again where it broke off."""
        until = time.monotonic() + self.patience_s
        while time.monotonic() < until:
            try:
                self.client.cookies.clear()
                page = self.client.get(f"{self.served.base}/api/auth/login").headers["location"]
                back = self.client.post(page, data={"email": self.email, "password": self.password})
                self.client.get(back.headers["location"])
                token = self.client.post(f"{self.served.base}/api/auth/refresh").json()["access_token"]
                self.client.headers["Authorization"] = f"Bearer {token}"
                return
            except (httpx2.HTTPError, KeyError, ValueError):
                time.sleep(0.5)
        raise TimeoutError("signing in did not work")

    def agree(self) -> None:
        for wording in self.ask("GET", "/api/terms").json():
            if wording["agree"]:
                asked = {name: wording[name] for name in ("purpose", "sha256")}
                self.ask("POST", "/api/consents", json=asked).raise_for_status()


@dataclass
class Day:
    """What one person did, and what they were promised."""

    someone: Someone
    kind: str
    photos: list[bytes]
    subject: str = ""
    uploaded: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    error: str = ""

    def live(self) -> None:
        """From signing in to the last picture."""
        try:
            self._live()
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"[:300]

    def _live(self) -> None:
        me = self.someone
        me.sign_in()
        me.agree()
        subject = me.ask("POST", "/api/subjects", json={"class_noun": self.kind, "depicts": "no_person"})
        self.subject = subject.json()["id"]
        for half in (self.photos[:3], self.photos[3:]):
            files = [("photos", (f"{n}.jpg", data, "image/jpeg")) for n, data in enumerate(half)]
            answer = me.ask("POST", "/api/upload", data={"subject": self.subject}, files=files)
            self.uploaded += [photo["id"] for photo in answer.json()["photos"]]
        for seed in range(3):
            answer = me.ask("POST", "/api/generate", json={"subject": self.subject, "prompt": self.prompt, "seed": seed})
            answer.raise_for_status()
            self.asked.append(answer.json()["id"])
        self._wait()

    @property
    def prompt(self) -> str:
        return f"a photo of sks {self.kind} on the beach"

    def _wait(self, patience_s: float = 3600) -> None:
        until = time.monotonic() + patience_s
        for result in self.asked:
            while time.monotonic() < until:
                state = self.someone.ask("GET", f"/api/results/{result}?wait=10").json()["state"]
                if state in FINAL:
                    break


def kill_at_random(served: Served, kills: int, *, over: threading.Event, seed: int, pause_s: float) -> Counter[str]:
    """SIGKILL a process of a random kind now and then, until so many were killed or the day is over."""
    rng, killed = random.Random(seed), Counter[str]()
    while sum(killed.values()) < kills and not over.is_set():
        time.sleep(rng.uniform(0.5, 1.5) * pause_s)
        name = rng.choice(TARGETS)
        if found := served.pids(name):
            with suppress(ProcessLookupError):
                os.kill(rng.choice(found), signal.SIGKILL)
                killed[name] += 1
    return killed


def live_through(served: Served, *, people: int, kills: int, seed: int = 0, pause_s: float = 5.0) -> dict[str, Any]:
    """Everybody's day, and what was found wrong with it afterwards."""
    days = [_day(served, number) for number in range(people)]
    threads = [threading.Thread(target=day.live) for day in days]
    over, killed = threading.Event(), Counter[str]()
    killer = threading.Thread(
        target=lambda: killed.update(kill_at_random(served, kills, over=over, seed=seed, pause_s=pause_s))
    )
    started = time.monotonic()
    for thread in (*threads, killer):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    killer.join()
    wrong, states = [], Counter[str]()
    for day in days:
        found = check(day)
        wrong += [f"{day.someone.email}: {text}" for text in found["wrong"]]
        states.update(found["states"])
    return {
        "people": people, "kills": dict(killed), "killed": sum(killed.values()), "wrong": wrong, "states": dict(states),
        "retries": sum(day.someone.retries for day in days), "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def _day(served: Served, number: int) -> Day:
    kind = KINDS[number % len(KINDS)]
    subject = unseen_subjects(1, seed=7000 + number, kind=kind)[0]
    photos = [jpeg(image) for image, _ in photo_set(subject, n=6, seed=7000 + number)]
    return Day(Someone(served, f"p{number}@example.org"), kind, photos)


def check(day: Day) -> dict[str, Any]:
    """Hold what somebody was promised against what is there."""
    if day.error:
        return {"wrong": [day.error], "states": []}
    me, wrong = day.someone, []
    photos = [photo["id"] for photo in me.ask("GET", f"/api/subjects/{day.subject}/photos").json()["photos"]]
    if sorted(photos) != sorted(day.uploaded):
        wrong.append(f"{len(day.uploaded)} photos were accepted and {len(photos)} are there")
    subjects = me.ask("GET", "/api/subjects").json()["items"]
    results = me.ask("GET", "/api/results?limit=100").json()["items"]
    runs = me.ask("GET", "/api/runs?limit=100").json()["items"]
    models = me.ask("GET", "/api/models?limit=100").json()["items"]
    if len(subjects) != 1:
        wrong.append(f"one subject was begun and {len(subjects)} are there")
    if sorted(result["id"] for result in results) != sorted(day.asked):
        wrong.append(f"{len(day.asked)} generations were accepted and {len(results)} are there")
    wrong += [f"run {run['id']} is still {run['state']}" for run in runs if run["state"] not in FINAL]
    good = sum(run["state"] == "succeeded" for run in runs)
    if good != len(models):
        wrong.append(f"{good} runs succeeded and made {len(models)} models")
    for result in results:
        if result["state"] not in FINAL:
            wrong.append(f"generation {result['id']} is still {result['state']}")
        if (result["state"] == "succeeded") != (len(result["images"]) == result["n"]):
            wrong.append(f"generation {result['id']} {result['state']} with {len(result['images'])} pictures")
        if result["state"] == "failed" and not result["error"]:
            wrong.append(f"generation {result['id']} failed without a word")
        for image in result["images"]:
            if me.ask("GET", image["url"]).status_code != 200:
                wrong.append(f"a picture of generation {result['id']} is gone")
    said = [f"run {run['state']}" for run in runs] + [f"generation {result['state']}" for result in results]
    said += [f"run: {run['error'][:60]}" for run in runs if run["error"]]
    return {"wrong": wrong, "states": said}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(argv)
    with TemporaryDirectory(prefix="photoflux-chaos-") as scratch:
        settings = {"PHOTOFLUX_RUN_DEFAULTS": json.dumps(QUICK), "PHOTOFLUX_RATES": json.dumps({"sign-in": "9999/minute"})}
        served = Served(Path(scratch), "--no-mlflow", people=options.people, **settings)
        try:
            found = live_through(served, people=options.people, kills=options.kills, seed=options.seed)
        finally:
            served.stop()
    result = {"kind": "benchmark-chaos", "schema_version": 1, "machine": machine(), **found}
    write_json(options.out / "chaos.json", result)
    print(json.dumps(result, indent=2))
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
