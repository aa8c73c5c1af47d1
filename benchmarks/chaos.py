"""A day of people on one machine while processes are killed at random; nothing accepted may be lost or done twice.

    python -m benchmarks.chaos
    python -m benchmarks.chaos --people 3 --kills 8 --database sqlite --out build

Everybody signs in by the front door, with the limits that ship, uploads six photos, asks for pictures of a subject that has no model yet,
waits, and takes an export along; every third person is erased at the end of their day. Meanwhile API, engine, workers and the
pipeline's processes are killed with SIGKILL, and a second worker works beside the first, which is replaced by a newer one now and then,
as by a rolling update. On SQLite, and again on PostgreSQL. Writes `chaos.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2

from api.accounts.embedded_provider import Accounts
from benchmarks.log_check import lines_not_json, lines_with_words
from benchmarks.pocket_base import machine
from benchmarks.postgres import free_port, postgres_server
from photoflux.manifest import write_json
from photoflux.pocket.photosets import jpeg, photo_set, unseen_subjects
from photoflux.settings import sqlite_url

ROOT = Path(__file__).resolve().parent.parent
QUICK = {
    "finetune_steps": 20, "finetune_checkpoint_every": 20, "finetune_save_every": 10, "evaluate_profile": "smoke",
    "audit_profile": "smoke", "gate_identity_gain_min": 0.0, "gate_accuracy_drop_max": 1.0, "gate_leakage_max": 1.0,
    "gate_drift_drop_max": 1.0, "gate_drift_kid_max": 8.0, "gate_diversity_min": 0.0, "gate_sharpness_min": 0.0,
    "gate_copy_max": 1.0, "gate_gap_max": 1.0, "gate_bad_max": 1.0, "gate_cosine_drop_max": 1.0,
}  # fmt: skip
"""Twenty steps and few pictures, and a gate that lets nearly everything through: what is tried is that nothing is lost."""
TARGETS = ("api.main", "api.images.engine", "api.jobs.worker", "pipelines.local", "kfp.dsl.executor_main")
PASSWORD = "correct horse battery staple"
KINDS = ("dog", "cat", "bird", "car", "teapot", "lamp")
FINAL = ("succeeded", "failed", "cancelled")
FAULTS = (500, 501, 502, 505)
"""Not 503 and 504: a service that is busy, starting or stopping says so."""
ERASES_EVERY = 3
"""Every so many-th person is erased at the end of their day."""


class RunningService:
    """A running `python -m api.ops.serve` with a state of its own."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        people: int = 0,
        before: Callable[[RunningService], None] | None = None,
        **settings: str,
    ) -> None:
        self.folder, self.state, tls = folder, folder / "state", "--tls" in options
        self.base = f"{'https' if tls else 'http'}://127.0.0.1:{free_port()}"
        self.environment = os.environ | {
            "PHOTOFLUX_STATE_DIR": str(self.state),
            "PHOTOFLUX_RUNS_DIR": str(folder / "runs"),
            "PHOTOFLUX_PUBLIC_URL": self.base,
            "PHOTOFLUX_ENGINE_URL": f"http://127.0.0.1:{free_port()}",
            **settings,
        }
        self._add_accounts(people)
        if before:
            before(self)
        self.log = folder / "serve.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "api.ops.serve", *options],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
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


def add_accounts(count: int) -> None:
    """`p0@example.org`, `p1@example.org`, …"""
    from photoflux.settings import get_settings

    accounts = Accounts(get_settings().state_dir / "accounts")
    for number in range(count):
        accounts.add(f"p{number}@example.org", name=f"Person {number}", password=PASSWORD)


@dataclass
class RetryingClient:
    """A person whose client retries: what was not answered is sent again under the same key."""

    served: RunningService
    email: str
    password: str = PASSWORD
    patience_s: float = 120.0
    retries: int = 0
    faults: Counter[int] = field(default_factory=Counter)
    """Answers that say that something went wrong in the service, by status."""
    client: httpx2.Client = field(default_factory=lambda: httpx2.Client(timeout=60))

    def ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        """The answer, whatever is killed meanwhile. Raises after the patience is over."""
        more["headers"] = {"Idempotency-Key": uuid.uuid4().hex}
        until = time.monotonic() + self.patience_s
        while time.monotonic() < until:
            try:
                answer = self.client.request(method, self.served.base + path, **more)
                self.faults.update([answer.status_code] if answer.status_code in FAULTS else [])
                busy = answer.status_code >= 500 or answer.status_code == 429
                again = busy or (answer.status_code == 409 and "problems/conflict" in answer.text[:200])
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
        until, base = time.monotonic() + self.patience_s, self.served.base
        while time.monotonic() < until:
            wait_s = 0.5
            try:
                self.client.cookies.clear()
                answer = self.client.get(f"{base}/api/auth/login")
                if answer.is_redirect:
                    form = {"email": self.email, "password": self.password}
                    answer = self.client.post(answer.headers["location"], data=form)
                if answer.is_redirect:
                    answer = self.client.get(answer.headers["location"])
                if answer.is_redirect:
                    answer = self.client.post(f"{base}/api/auth/refresh")
                wait_s = float(answer.headers.get("retry-after", wait_s))
                self.client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
                return
            except (httpx2.HTTPError, KeyError, ValueError):
                time.sleep(min(wait_s, max(0.0, until - time.monotonic())))
        raise TimeoutError("signing in did not work")

    def agree(self) -> None:
        for wording in self.ask("GET", "/api/terms").json()["items"]:
            if wording["agree"]:
                asked = {name: wording[name] for name in ("purpose", "sha256")}
                self.ask("POST", "/api/consents", json=asked).raise_for_status()


@dataclass
class UserDay:
    """The day of one person: what they did, and what the service accepted."""

    someone: RetryingClient
    kind: str
    photos: list[bytes]
    erases: bool = False
    user_id: str = ""
    subject: str = ""
    uploaded: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def run(self) -> None:
        """From signing in to the last picture, or to the account's erasure."""
        try:
            self._run()
            if self.erases:
                self.found = check(self)
                self._erase_account()
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"[:300]

    def _run(self) -> None:
        me = self.someone
        me.sign_in()
        self.user_id = me.ask("GET", "/api/auth/me").json()["id"]
        me.agree()
        subject = me.ask("POST", "/api/subjects", json={"class_noun": self.kind, "depicts": "no_person"})
        self.subject = subject.json()["id"]
        for half in (self.photos[:3], self.photos[3:]):
            files = [("photos", (f"{n}.jpg", data, "image/jpeg")) for n, data in enumerate(half)]
            answer = me.ask("POST", "/api/upload", data={"subject": self.subject}, files=files)
            self.uploaded += [photo["id"] for photo in answer.json()["photos"]]
        for seed in range(3):
            answer = me.ask(
                "POST", "/api/generate", json={"subject": self.subject, "prompt": self.prompt, "seed": seed}
            )
            answer.raise_for_status()
            self.asked.append(answer.json()["id"])
        self._wait()
        self._check_export()

    def _check_export(self) -> None:
        """Ask for an export, and check its digest."""
        me, export = self.someone, self.someone.ask("POST", "/api/me/export").json()["id"]
        until = time.monotonic() + 600
        while (shown := me.ask("GET", f"/api/me/exports/{export}").json())["state"] not in FINAL:
            if time.monotonic() > until:
                raise TimeoutError("the export was not packed")
            time.sleep(1.0)
        if shown["state"] != "succeeded":
            raise RuntimeError(f"the export {shown['state']}: {shown['error']}")
        content = me.ask("GET", shown["url"]).content
        if hashlib.sha256(content).hexdigest() != shown["sha256"] or zipfile.ZipFile(io.BytesIO(content)).testzip():
            raise RuntimeError("the export is not what it says")

    def _erase_account(self) -> None:
        """Ask to be erased until it is answered, or the account is closed, and wait until it is done."""
        me, receipt, until = self.someone, "", time.monotonic() + 600
        while time.monotonic() < until:
            try:
                answer = me.client.delete(f"{me.served.base}/api/me")
                receipt = answer.json()["receipt"] if answer.status_code == 202 else ""
                if receipt or answer.status_code == 401:
                    break
            except (httpx2.HTTPError, ValueError):
                time.sleep(0.5)
        while time.monotonic() < until and find_remains(me.served, self.user_id):
            time.sleep(1.0)
        if receipt and me.ask("GET", f"/api/erasures/{receipt}").json()["state"] != "done":
            raise RuntimeError("the erasure was not done")

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


@dataclass
class RollingUpdates:
    """A worker of its own beside the service's: a newer one is started, works beside it, and the older one is told to stop."""

    served: RunningService
    count: int = 0

    def run(self, over: threading.Event, every_s: float) -> None:
        older = self._started()
        while not over.wait(every_s):
            newer = self._started()
            over.wait(every_s / 3)
            self._stop(older)
            older = newer
        self._stop(older)

    def _started(self) -> subprocess.Popen[bytes]:
        self.count += 1
        name = f"worker-{self.count}"
        scratch = self.served.folder / name
        scratch.mkdir()
        with (self.served.state / "logs" / f"{name}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "api.jobs.worker"],
                cwd=ROOT,
                env=self.served.environment | {"TMPDIR": str(scratch)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @staticmethod
    def _stop(worker: subprocess.Popen[bytes]) -> None:
        worker.send_signal(signal.SIGTERM)  # harmless where it was killed
        worker.wait(60)


def find_remains(served: RunningService, user_id: str) -> list[str]:
    """Rows, keysets, sealed files and names that remain of an erased person."""
    from sqlalchemy import select

    from api.records.database import Records, open_engine
    from api.records.tables import Base

    folders = (served.state, served.folder / "runs")
    found = []
    for file in (
        Path(place) / name for folder in folders for place, below, files in os.walk(folder) for name in (*below, *files)
    ):
        with suppress(OSError):  # it is being erased: what is gone between a look and the next is not left
            named = user_id in str(file) or (
                file.is_file() and file.suffix not in (".db", ".log") and _is_sealed_for(file, user_id)
            )
            if named and file.is_file() and file.parent.name != "erased":
                found.append(str(file.relative_to(served.folder)))
    engine = open_engine(served.environment.get("PHOTOFLUX_DATABASE_URL") or sqlite_url(served.state / "photoflux.db"))
    with Records(engine).reading() as session:
        tables = [table for table in Base.metadata.sorted_tables if "user_id" in table.c and table.name != "tombstones"]
        found += [t.name for t in tables if session.execute(select(t.c.user_id).where(t.c.user_id == user_id)).first()]
    engine.dispose()
    return found


def _is_sealed_for(file: Path, user_id: str) -> bool:
    """Whether a file begins with the line that says whose sealed bytes follow."""
    with file.open("rb") as opened:
        return user_id.encode() in opened.read(400)


def kill_at_random(
    served: RunningService, kills: int, *, over: threading.Event, seed: int, pause_s: float
) -> Counter[str]:
    """SIGKILL a process of a random kind now and then, until so many were killed or the day is over."""
    rng, killed, left = random.Random(seed), Counter[str](), list[str]()
    while sum(killed.values()) < kills and not over.is_set():
        time.sleep(rng.uniform(0.5, 1.5) * pause_s)
        left = left or rng.sample(TARGETS, len(TARGETS))  # each kind in turn, so that none is left out
        name = left.pop()
        if found := served.pids(name):
            with suppress(ProcessLookupError):
                os.kill(rng.choice(found), signal.SIGKILL)
                killed[name] += 1
    return killed


def run_day(served: RunningService, *, people: int, kills: int, seed: int = 0, pause_s: float = 5.0) -> dict[str, Any]:
    """Everybody's day, and what was found wrong with it afterwards."""
    days = [_day(served, number) for number in range(people)]
    threads = [threading.Thread(target=day.run) for day in days]
    over, killed, updates = threading.Event(), Counter[str](), RollingUpdates(served)
    killer = threading.Thread(
        target=lambda: killed.update(kill_at_random(served, kills, over=over, seed=seed, pause_s=pause_s))
    )
    updater = threading.Thread(target=updates.run, args=(over, 6 * pause_s))
    started = time.monotonic()
    for thread in (*threads, killer, updater):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    killer.join()
    updater.join()
    wrong, states, faults = [], Counter[str](), Counter[int]()
    for day in days:
        found = day.found or check(day)
        told = [*found["wrong"], *([day.error] if day.error and day.error not in found["wrong"] else [])]
        if day.erases:
            told += [f"is left of an erased person: {name}" for name in find_remains(served, day.user_id)]
        wrong += [f"{day.someone.email}: {text}" for text in told]
        states.update(found["states"])
        faults.update(day.someone.faults)
    wrong += [f"{count} answers of {status}" for status, count in faults.items()]
    wrong += [f"{name} was never killed" for name in TARGETS[:3] if not killed[name]]
    if sum(killed.values()) < kills / 2:
        wrong.append(f"of {kills} kills only {sum(killed.values())} found anything to kill")
    if updates.count < 2:
        wrong.append("no worker was replaced by a newer one")
    return {
        "people": people,
        "kills": dict(killed),
        "killed": sum(killed.values()),
        "rolling_updates": updates.count,
        "erased": sum(day.erases for day in days),
        "wrong": wrong,
        "states": dict(states),
        "retries": sum(day.someone.retries for day in days),
        "seconds": round(time.monotonic() - started, 1),
    }


def _day(served: RunningService, number: int) -> UserDay:
    kind = KINDS[number % len(KINDS)]
    subject = unseen_subjects(1, seed=7000 + number, kind=kind)[0]
    photos = [jpeg(image) for image, _ in photo_set(subject, n=6, seed=7000 + number)]
    return UserDay(RetryingClient(served, f"p{number}@example.org"), kind, photos, erases=number % ERASES_EVERY == 1)


def check(day: UserDay) -> dict[str, Any]:
    """Problems of a day: what was accepted and is not there, or is there twice."""
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
    said += [f"run: {run['error']['code']}: {run['error']['message'][:60]}" for run in runs if run["error"]]
    return {"wrong": wrong, "states": said}


def run_on_database(database: str, *, people: int, kills: int, seed: int, pause_s: float) -> dict[str, Any]:
    """A day on one kind of database, with what its logs say."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="photoflux-chaos-")))
        settings = {"PHOTOFLUX_RUN_DEFAULTS": json.dumps(QUICK)}
        if database == "postgresql":
            settings["PHOTOFLUX_DATABASE_URL"] = f"{stack.enter_context(postgres_server())}/postgres"
        served = RunningService(scratch, "--no-mlflow", people=people, **settings)
        try:
            found = run_day(served, people=people, kills=kills, seed=seed, pause_s=pause_s)
        finally:
            served.stop()
        logs = served.state / "logs"
        words = ["example.org", "Person ", "on the beach", "a photo of"]
        found["wrong"] += [f"no JSON in {line[:150]}" for line in lines_not_json(logs)]
        found["wrong"] += [f"words in the log {line}" for line in lines_with_words(logs, words)]
        return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--pause", type=float, default=12.0, metavar="S", help="seconds between kills, on average")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), action="append", help="both unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(argv)
    days = {}
    for database in options.database or ("sqlite", "postgresql"):
        days[database] = run_on_database(
            database, people=options.people, kills=options.kills, seed=options.seed, pause_s=options.pause
        )
        print(json.dumps({database: days[database]}, indent=2), flush=True)
    result = {"kind": "benchmark-chaos", "schema_version": 2, "machine": machine(), "days": days}
    write_json(options.out / "chaos.json", result)
    return 1 if any(day["wrong"] for day in days.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
