"""What honest people notice, and what memory the service takes, while it is abused in some twenty ways at once.

    python -m benchmarks.attack
    python -m benchmarks.attack --minutes 2 --any-speed --out build

Starts the service as `make serve` does, with its usual settings and limits. Five honest people sign in by the front door, look around,
ask for pictures and load them in another size; `benchmarks.attackers` says what the attackers do meanwhile. Both are processes of their
own on the machine that serves; the attackers' yields to the honest people's, since theirs would be other machines. Writes `attack.json`,
`attack.md` and `attack.png`; ends with 1 where an aim is missed. With `--any-speed` latency is told and not judged: what is measured on
a machine of unknown speed says nothing of a change. Growth of memory is judged where the attack is long enough to have an even part.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from benchmarks import attackers
from benchmarks.attackers import HOST, ROLES, WITH_MODEL, Account, Answer, Service, crafted, form_body, json_body
from benchmarks.log_check import lines_not_json, lines_with_words
from photoflux.manifest import digest, read_manifest, write_bytes, write_json, write_text

if TYPE_CHECKING:
    # late: honest people's process is a light one, without what trains and draws
    from benchmarks.chaos import RunningService

HONEST, QUIET_S = 5, 15.0
"""How many honest people there are, and how long they are alone before the attack begins."""
AIMS = {"api_rss_max_mb": 700.0, "api_growth": 0.05, "reads_p95_ms": 300.0, "honest_failures": 0, "wrong": 0}
FLAT_S = 600.0
"""Memory is to be flat in the last ten minutes; of a shorter attack the last two thirds are told."""
TIMES = ("reads_p95_ms",)
"""Aims that depend on the machine."""
READ_EVERY_S, GENERATE_EVERY_S, UPLOAD_EVERY_S, SIGN_IN_EVERY_S, WEBHOOK_EVERY_S = 1.0, 45.0, 120.0, 200.0, 30.0
READS_SHARE = 0.25
"""Of the reads that there would be if each took no time: fewer mean that honest people were kept waiting for ever."""
RETRY_S = 60.0
"""How long honest people go on where they are told to come back in a moment; reads are never told so."""
EVERY_S = {
    "generation": GENERATE_EVERY_S,
    "converted": GENERATE_EVERY_S,
    "sign-in": SIGN_IN_EVERY_S,
    "webhook": WEBHOOK_EVERY_S,
    "upload": UPLOAD_EVERY_S,
}
PARTS = ("api.main", "api.jobs.worker", "api.images.engine")
WORDS = ["example.org", "Person ", "on the beach", "a photo of"]
PHOTOS = sorted(Path("data/samples/dog").glob("*.jpg"))
PROMPTS, LARGE = 50, "2048x2048"
READS, REQUIRED = ("read",), ("read", "generation", "converted", "sign-in", "webhook", "upload")
"""Kinds whose latency is aimed at, and kinds that must not fail."""


# --- who is there ---------------------------------------------------------------------------------------------------------


async def prepare(served: RunningService, adapters: Sequence[Path], scratch: Path, *, password: str) -> dict[str, Any]:
    """Everybody with an account, consents, a subject and photos; models where they are needed; one large picture to attack."""
    port = int(served.base.rsplit(":", 1)[1])
    service = Service(port)
    honest: list[dict[str, Any]] = [{"email": f"p{n}@example.org", "adapter": str(adapters[n])} for n in range(HONEST)]
    abusers: dict[str, dict[str, Any]] = {role: {"email": f"p{HONEST + n}@example.org"} for n, role in enumerate(ROLES)}
    for role, adapter in zip(WITH_MODEL, adapters[HONEST:], strict=True):
        abusers[role]["adapter"] = str(adapter)
    accounts: dict[str, Account] = {}
    for role, one in [*((f"p{n}", one) for n, one in enumerate(honest)), *abusers.items()]:
        address = HOST if one in honest else attackers.address_of(role)
        accounts[role] = Account(service, str(one["email"]), password, address)
        await prepare_account(accounts[role], one, photos=6 if role in ("runs", "exports") else 2)
    plan: dict[str, Any] = {
        "port": port,
        "password": password,
        "photo": base64.b64encode(PHOTOS[0].read_bytes()).decode(),
        "honest": honest,
        "attackers": abusers,
    }
    plan = run_in_service(served, "insert_rows", plan, scratch)
    for role in WITH_MODEL:
        plan["attackers"][role]["result"] = await draw_large(accounts[role], plan["attackers"][role])
    return plan


async def prepare_account(account: Account, about: dict[str, Any], *, photos: int) -> None:
    """Sign in, agree, begin two subjects and upload photos to the first."""
    await account.sign_in()
    await account.agree()
    about["user"] = (await account.ask("GET", "/api/auth/me")).json()["id"]
    noun = read_manifest(Path(about["adapter"]))["subject"]["class_noun"] if "adapter" in about else "dog"
    about["noun"], depicts = noun, "me" if noun == "person" else "no_person"
    for name in ("subject", "other"):
        headers, body = json_body({"class_noun": noun, "depicts": depicts})
        about[name] = (await account.ask("POST", "/api/subjects", headers=headers, body=body)).json()["id"]
    files = [file.read_bytes() for file in PHOTOS[:photos]]
    headers, body = form_body({"subject": about["subject"]}, files)
    answer = await account.ask("POST", "/api/upload", headers=headers, body=body)
    if answer.outcome != "201":
        raise RuntimeError(f"an upload before the attack was answered {answer.outcome}: {answer.body[:300]!r}")


async def draw_large(account: Account, about: Mapping[str, Any]) -> str:
    """A picture of LARGE, and the id of its result."""
    headers, body = json_body({"subject": about["subject"], "prompt": f"a photo of sks {about['noun']}", "size": LARGE})
    result = str((await account.ask("POST", "/api/generate", headers=headers, body=body)).json()["id"])
    while not (shown := (await account.ask("GET", f"/api/results/{result}?wait=20")).json())["finished"]:
        pass
    if shown["state"] != "succeeded":
        raise RuntimeError(f"a picture before the attack failed: {shown['error']}")
    return result


def run_in_service(served: RunningService, name: str, plan: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    """What a function of this module makes of the plan, in a process with the service's settings."""
    file = write_json(scratch / "plan.json", plan)
    subprocess.run([sys.executable, "-c", _code(name), str(file)], env=served.environment, check=True)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def _code(name: str) -> str:
    return f"import sys; from benchmarks import attack; attack.{name}(*sys.argv[1:])"


def insert_rows(plan_file: str) -> None:
    """What would take hours of work to come by: models, a run and a picture that never end, and prompts that are alike."""
    from api.records.database import Records, open_engine
    from api.records.tables import Generation, Run, new_id, prompt_label
    from api.settings import ApiSettings
    from photoflux.vault import open_keyring
    from photoflux.vault.objects import open_objects
    from photoflux.vault.sealed import seal_bytes

    plan = json.loads(Path(plan_file).read_text())
    records, keyring = Records(open_engine(ApiSettings().records_url)), open_keyring()
    objects, rng, roles = open_objects(keyring), random.Random(0), plan["attackers"]

    def generation(one: Mapping[str, Any], prompt: str, state: str) -> Any:
        row = Generation(
            id=new_id(),
            user_id=one["user"],
            subject_id=one["subject"],
            n=1,
            seed=0,
            size="512x512",
            format="png",
            style="none",
            state=state,
        )
        row.prompt = seal_bytes(prompt.encode(), label=prompt_label(row), keyring=keyring)
        return row

    with records.writing() as session:
        for one in (*plan["honest"], *(roles[role] for role in WITH_MODEL)):
            _insert_model(session, objects, one)
        endless = Run(
            id=new_id(),
            user_id=roles["streams"]["user"],
            subject_id=roles["streams"]["other"],
            state="running",
            params={},
            orchestrator="local",
            estimate={},
            steps=[],
        )
        waiting = generation(roles["polls"], "a photo that never comes", "queued")
        asked = [generation(roles["suggestions"], crafted(rng, 500), "cancelled") for _ in range(PROMPTS)]
        session.add_all([endless, waiting, *asked])
        roles["streams"]["run"], roles["polls"]["result"] = endless.id, waiting.id
    write_json(Path(plan_file), plan)


def _insert_model(session: Any, objects: Any, one: Mapping[str, Any]) -> None:
    from api.records.tables import Model, Run, Subject, new_id

    run, model, adapter = new_id(), new_id(), Path(one["adapter"])
    objects.put(one["user"], "adapter", model, adapter.read_bytes())
    session.add(
        Run(
            id=run,
            user_id=one["user"],
            subject_id=one["subject"],
            state="succeeded",
            params={},
            orchestrator="local",
            estimate={},
            steps=[],
        )
    )
    session.flush()
    session.add(
        Model(
            id=model,
            user_id=one["user"],
            subject_id=one["subject"],
            run_id=run,
            number=1,
            registry_version="1",
            registry_name=one["subject"],
            adapter_sha256=digest(adapter),
            verdict="PASS",
            metrics={},
        )
    )
    session.get_one(Subject, one["subject"]).champion_id = model


# --- honest people --------------------------------------------------------------------------------------------------------


@dataclass
class HonestUser:
    """An honest user. `events` has (seconds on the machine's clock, kind, milliseconds, outcome) of all they did."""

    account: Account
    about: Mapping[str, Any]
    rng: random.Random
    events: list[tuple[float, str, float, str]]
    pictures: list[str] = field(default_factory=list)

    async def run_until(self, seconds: float) -> None:
        """Everything that people do, at their own paces, until the time is over."""
        doings = (
            (self.read, READ_EVERY_S),
            (self.generate, GENERATE_EVERY_S),
            (self.upload, UPLOAD_EVERY_S),
            (self.sign_in, SIGN_IN_EVERY_S),
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(self._repeat(do, every_s) for do, every_s in doings))

    async def _repeat(self, do: Callable[[], Any], every_s: float) -> None:
        await asyncio.sleep(self.rng.uniform(0.1, 0.5) * every_s)
        while True:
            await do()
            await asyncio.sleep(self.rng.uniform(0.5, 1.5) * every_s)

    def note(self, kind: str, started: float, outcome: str) -> None:
        now = time.monotonic()
        self.events.append((now, kind, 1000 * (now - started), outcome))

    async def read(self) -> None:
        """A list, a subject, a thumbnail or a picture as it is; asked for once, whatever is answered."""
        subject = self.about["subject"]
        paths = [
            "/api/subjects",
            "/api/results?limit=10",
            "/api/models",
            "/api/runs?limit=10",
            "/api/auth/me",
            f"/api/subjects/{subject}",
            f"/api/subjects/{subject}/photos",
            *self.pictures[-2:],
        ]
        target = self.rng.choice(paths)
        await self.account.bearer()  # refreshing is no read
        started = time.monotonic()
        answer = await self.account.ask("GET", target)
        self.note("read", started, "ok" if answer.outcome == "200" else f"GET {_shape(target)}: {answer.outcome}")

    async def generate(self) -> None:
        """From asking to the picture's bytes; then the same picture in another size."""
        started, prompt = time.monotonic(), f"a photo of sks {self.about['noun']} on the beach"
        asked = {"subject": self.about["subject"], "prompt": prompt, "seed": self.rng.randrange(2**31)}
        headers, body = json_body(asked)
        answer = await self._ask_with_retries("POST", "/api/generate", headers=headers, body=body)
        state: dict[str, Any] = answer.json() if answer.outcome == "202" else {}
        while state and not state["finished"] and time.monotonic() - started < 2 * RETRY_S:
            answer = await self._ask_with_retries("GET", f"/api/results/{state['id']}?wait=20")
            state = answer.json() if answer.outcome == "200" else {}
        if not state or not state["images"]:
            said = state.get("state", answer.outcome)
            return self.note("generation", started, f"a generation: {said} {state.get('error') or ''}")
        url = state["images"][0]["url"]
        answer = await self._ask_with_retries("GET", url)
        self.note("generation", started, "ok" if answer.outcome == "200" else f"its picture: {answer.outcome}")
        self.pictures.append(url)
        started = time.monotonic()
        answer = await self._ask_with_retries("GET", f"{url}?size=1024x1024")
        return self.note(
            "converted", started, "ok" if answer.outcome == "200" else f"?size=1024x1024: {answer.outcome}"
        )

    async def upload(self) -> None:
        """One photo more, though attackers sit in places for uploads."""
        headers, body = form_body({"subject": self.about["subject"]}, [self.rng.choice(PHOTOS).read_bytes()])
        started = time.monotonic()
        answer = await self._ask_with_retries("POST", "/api/upload", headers=headers, body=body)
        self.note("upload", started, "ok" if answer.outcome == "201" else f"an upload: {answer.outcome}")

    async def sign_in(self) -> None:
        """Once more by the front door, as from another tab."""
        account, started = Account(self.account.service, self.account.email, self.account.password), time.monotonic()
        try:
            await account.sign_in()
            self.note("sign-in", started, "ok")
        except attackers.NotSignedIn as error:
            self.note("sign-in", started, f"signing in: {error}")

    async def receive_webhook(self) -> None:
        """A webhook's test message, from asking to its arrival at this process."""
        arrived = asyncio.Event()

        async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 204 Taken\r\nConnection: close\r\n\r\n")
            await writer.drain()
            writer.close()
            arrived.set()

        async with await asyncio.start_server(receive, HOST, 0) as server:
            headers, body = json_body({"url": f"http://{HOST}:{server.sockets[0].getsockname()[1]}/"})
            answer = await self._ask_with_retries("POST", "/api/webhooks", headers=headers, body=body)
            webhook = answer.json()["id"]
            while True:
                arrived.clear()
                started = time.monotonic()
                answer = await self._ask_with_retries("POST", f"/api/webhooks/{webhook}/test")
                outcome = "ok" if answer.outcome == "202" else f"a test message: {answer.outcome}"
                try:
                    async with asyncio.timeout(RETRY_S):
                        await arrived.wait()
                except TimeoutError:
                    outcome = f"a test message did not come in {RETRY_S:.0f} s"
                self.note("webhook", started, outcome)
                await asyncio.sleep(WEBHOOK_EVERY_S)

    async def _ask_with_retries(self, method: str, target: str, **more: Any) -> Answer:
        """As an ordinary client, which retries after `Retry-After`."""
        until = time.monotonic() + RETRY_S
        while True:
            answer = await self.account.ask(method, target, **more)
            wait_s = float(answer.header("retry-after") or 2)
            if answer.outcome not in ("429", "503") or time.monotonic() + wait_s > until:
                return answer
            await asyncio.sleep(wait_s)


def _shape(target: str) -> str:
    return re.sub("[0-9a-f]{32}", "{id}", target.split("?")[0])


def run_honest_users(plan_file: str, seconds: str, out: str) -> None:
    """Everybody honest, in a process of their own; writes what they did."""
    asyncio.run(_run_honest_users(json.loads(Path(plan_file).read_text()), float(seconds), Path(out)))


async def _run_honest_users(plan: Mapping[str, Any], seconds: float, out: Path) -> None:
    service, events = Service(plan["port"]), list[tuple[float, str, float, str]]()
    people = [
        HonestUser(Account(service, one["email"], plan["password"]), one, random.Random(n), events)
        for n, one in enumerate(plan["honest"])
    ]
    for one in people:
        await one.account.sign_in()
    await attackers.wait_for_start()
    told = asyncio.create_task(people[0].receive_webhook())
    await asyncio.gather(*(one.run_until(seconds) for one in people))
    told.cancel()
    with suppress(asyncio.CancelledError):
        await told  # raises what broke it
    write_json(out, events)


# --- what is measured -----------------------------------------------------------------------------------------------------


@dataclass
class MemoryMonitor:
    """Samples the service's processes every second: resident megabytes of each and of its children."""

    served: RunningService
    rows: list[dict[str, float]] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)
    pids: dict[str, set[int]] = field(default_factory=dict)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        site = psutil.Process(self.served.process.pid)
        while not self._stopped.wait(1.0):
            row = {"t": time.monotonic()}
            for process in site.children():
                with suppress(psutil.NoSuchProcess, OSError):  # it has just ended
                    row |= self._sample(process)
            self.rows.append(row)

    def stop(self) -> None:
        self._stopped.set()

    def _sample(self, process: psutil.Process) -> dict[str, float]:
        name = next((part for part in PARTS if part in process.cmdline()), None)
        if name is None:
            return {}
        self.pids.setdefault(name, set()).add(process.pid)
        highest = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        self.peaks[name] = max(self.peaks.get(name, 0.0), int(highest[1]) * 1024 / 1e6 if highest else 0.0)
        own, started = process.memory_info().rss / 1e6, 0.0
        for child in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                started += child.memory_info().rss / 1e6
        return {name: own, f"{name} children": started}


def growth(times: Sequence[float], values: Sequence[float]) -> float:
    """By how much of its mean a line through the values rises from the first time to the last; negative where it falls."""
    if len(times) < 3:
        return 0.0
    slope = float(np.polyfit(np.asarray(times) - times[0], values, 1)[0])
    return slope * (times[-1] - times[0]) / float(np.mean(values))


def memory(
    rows: Sequence[Mapping[str, float]], peaks: Mapping[str, float], *, since: float, until: float
) -> dict[str, Any]:
    """Megabytes by process, and the API's growth in the last FLAT_S, or the last two thirds of what is shorter."""
    attacked = [row for row in rows if since <= row["t"] <= until and "api.main" in row]
    first = until - min(FLAT_S, 2 / 3 * (until - since))
    late = [row for row in attacked if row["t"] >= first]
    table = {}
    for name in PARTS:
        own, started = ([row[key] for row in attacked if key in row] for key in (name, f"{name} children"))
        if own:
            table[name] = {
                "first_mb": round(own[0], 1),
                "mean_mb": round(float(np.mean(own)), 1),
                "last_mb": round(own[-1], 1),
                "max_mb": round(max([*own, peaks.get(name, 0.0)]), 1),
                "children_max_mb": round(max(started), 1),
            }
    rises = growth([row["t"] for row in late], [row["api.main"] for row in late])
    return {
        "api_rss_max_mb": table["api.main"]["max_mb"],
        "api_growth": round(rises, 4),
        "flat_over_s": round(until - first),
        "memory": table,
    }


def honest(events: Iterable[Sequence[Any]], *, since: float, seconds: float = 0.0) -> dict[str, Any]:
    """Latencies by kind before and during the attack, and what failed of what must not fail.

    What was not finished once in `seconds` of attack has failed, too.
    """
    times: dict[tuple[str, str], list[float]] = {}
    failed, tried = Counter[str](), Counter[str]()
    for at, kind, ms, outcome in events:
        when = "attacked" if at >= since else "quiet"
        tried[kind] += 1
        times.setdefault((kind, when), []).append(ms)
        if outcome != "ok":
            failed[f"{kind}: {outcome}"] += 1
    least = {kind: 1 for kind, every_s in EVERY_S.items() if seconds > 2 * every_s}
    least |= {"read": round(READS_SHARE * HONEST * seconds / READ_EVERY_S)}
    for kind, count in least.items():
        if (done := len(times.get((kind, "attacked"), []))) < count:
            failed[f"{kind}: {done} were finished of {count} at least"] += 1
    table = {
        kind: {
            "count": count,
            **{when: _spread(times[kind, when]) for when in ("quiet", "attacked") if (kind, when) in times},
        }
        for kind, count in sorted(tried.items())
    }
    reads = [ms for (kind, when), all_ms in times.items() if kind in READS and when == "attacked" for ms in all_ms]
    must_not = sum(count for text, count in failed.items() if text.split(":")[0] in REQUIRED)
    return {
        "reads_p95_ms": _spread(reads)["p95_ms"] if reads else None,
        "honest_failures": must_not,
        "failures": dict(failed),
        "by_kind": table,
    }


def _spread(all_ms: Sequence[float]) -> dict[str, float]:
    return {
        f"p{share}_ms": round(float(np.percentile(all_ms, share, method="higher")), 1) for share in (50, 95, 99)
    } | {"max_ms": round(max(all_ms), 1)}


def aims_met(found: Mapping[str, Any], *, any_speed: bool = False) -> dict[str, bool]:
    """Which of the aims that are judged were met; a figure that is not there meets none."""
    told, passed_over = {**found, "wrong": len(found["wrong"])}, TIMES if any_speed else ()
    if found["flat_over_s"] < FLAT_S:
        passed_over = (*passed_over, "api_growth")
    return {
        name: told[name] is not None and told[name] <= most for name, most in AIMS.items() if name not in passed_over
    }


def logged_errors(folder: Path) -> dict[str, int]:
    """Errors in the service's logs by file and event: none belongs there, whatever is sent."""
    counts = Counter[str]()
    for file in sorted(folder.glob("*.log")):
        for line in file.read_text(errors="replace").splitlines():
            if '"error"' in line or '"critical"' in line:
                try:
                    told = json.loads(line)
                except ValueError:
                    continue
                if told.get("level") in ("error", "critical"):
                    event = re.sub("[0-9a-f]{32}", "…", str(told.get("event")))
                    where = " < ".join(reversed([told["place"]] if "place" in told else told.get("places", [])[-4:]))
                    counts[f"{file.name}: {event} {told.get('exception') or ''} {where}"[:400]] += 1
    return dict(counts.most_common(20))


# --- what is written ------------------------------------------------------------------------------------------------------


def plot(rows: Sequence[Mapping[str, float]], events: Sequence[Sequence[Any]], *, since: float) -> bytes:
    """The API's memory, and honest people's reads, in minutes from the attack's beginning; a PNG."""
    from photoflux.pages.palette import BAD, BLUE, GREY, SOFT
    from photoflux.pages.plots import new_figure

    figure, (left, right) = new_figure(11, 3.8, columns=2)
    api = [row for row in rows if "api.main" in row]
    minutes = [(row["t"] - since) / 60 for row in api]
    left.plot(minutes, [row["api.main"] for row in api], color=BLUE, lw=1.4, label="API")
    left.plot(minutes, [row["api.main children"] for row in api], color=GREY, lw=1, label="its decoders")
    left.axhline(AIMS["api_rss_max_mb"], color=BAD, lw=1, ls=":")
    left.set_title("resident memory, MB", loc="left", fontsize=10, color=SOFT)
    left.legend(frameon=False, fontsize=9)
    reads = [(at, ms) for at, kind, ms, _ in events if kind in READS]
    right.plot([(at - since) / 60 for at, _ in reads], [ms for _, ms in reads], ".", color=GREY, ms=2)
    bins: dict[int, list[float]] = {}
    for at, ms in reads:
        bins.setdefault(int((at - since) // 15), []).append(ms)
    for share, tone in ((95, BAD), (50, BLUE)):
        line = [(bin_ / 4, float(np.percentile(all_ms, share))) for bin_, all_ms in sorted(bins.items())]
        right.plot([x for x, _ in line], [y for _, y in line], color=tone, lw=1.4, label=f"p{share} of 15 s")
    right.axhline(AIMS["reads_p95_ms"], color=BAD, lw=1, ls=":")
    right.set_yscale("log")
    right.set_title("honest people's reads, ms", loc="left", fontsize=10, color=SOFT)
    right.legend(frameon=False, fontsize=9)
    for axis in (left, right):
        axis.axvline(0, color=SOFT, lw=0.8, ls="--")
        axis.set_xlabel("minutes from the attack's beginning", fontsize=9, color=SOFT)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def page(result: Mapping[str, Any]) -> str:
    """The figures for people, as Markdown."""
    place, aims = result["machine"], []
    told = {**result, "wrong": len(result["wrong"])}
    names = {
        "api_rss_max_mb": "most resident memory of the API, MB",
        "reads_p95_ms": "honest people's reads, p95 ms",
        "api_growth": f"growth of that memory in the last {result['flat_over_s']} s, of its mean",
        "honest_failures": "honest requests that failed",
        "wrong": "things that must not be",
    }
    for name, most in AIMS.items():
        cell = {True: "yes", False: "**no**", None: "not judged"}[result["met"].get(name)]
        aims.append((names[name], f"{most:g}", f"{told[name]}", cell))
    kinds = [
        (kind, str(one["count"]), *(_p95(one.get(when)) for when in ("quiet", "attacked")))
        for kind, one in result["by_kind"].items()
    ]
    abuses = [
        (
            name,
            one["does"],
            f"{one['at_once']} at once, {one['per_s']:g}/s",
            ", ".join(
                f"{answer} × {count}" for answer, count in (one["answers"] | {"at the end": one["unfinished"]}).items()
            ),
        )
        for name, one in result["attacks"].items()
    ]
    wrong = "\n".join(f"- {text}" for text in result["wrong"]) or "Nothing."
    failures = "\n".join(f"- {text} ({count} times)" for text, count in result["failures"].items()) or "Nothing."
    return f"""# The service under attack

{result["seconds"]:.0f} s of {len(result["attacks"])} abuses at once by at most {result["connections_max"]} connections and
{result["uploads_max"]} uploads at a time, against `make serve` with its usual settings, on a machine that also attacked
({result["cpu_shares"]["attackers"]:.0%} of a core): {place["processor"]}, {place["cores"]} cores, {place["memory_gib"]} GiB.
Attackers come from 127.0.0.2 to 127.0.0.9, {HONEST} honest people from 127.0.0.1. `python -m benchmarks.attack` makes this page.

{_table(("", "at most", "found", "met"), aims)}

![memory and latency](attack.png)

Honest people, p95 in ms; `generation` is from asking to the picture's bytes, `converted` the same picture in another size:

{_table(("kind", "count", "alone", "attacked"), kinds)}

## What failed for honest people
{failures}

## What must not be
{wrong}

## What the attackers were answered
`closed`: without an answer; `closed at once`: beyond the connections that an address may hold; `at the
end`: under way when the time was over.

{_table(("attack", "what", "pace", "answers"), abuses)}
"""


def _p95(spread: Mapping[str, float] | None) -> str:
    return "–" if spread is None else f"{spread['p95_ms']:.0f}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))


# --- the whole ------------------------------------------------------------------------------------------------------------


def service_environment() -> dict[str, str]:
    """The environment variables of malloc and OpenMP that `make serve` exports."""
    makefile = Path("Makefile").read_text(encoding="utf-8")
    return dict(re.findall(r"^export ((?:MALLOC|GOMP)\w+) \?= (\S+)$", makefile, re.MULTILINE))


def run(served: RunningService, plan: Mapping[str, Any], *, seconds: float, seed: int, scratch: Path) -> dict[str, Any]:
    """Run honest users and attackers against the service, and measure."""
    file, said, came = write_json(scratch / "plan.json", plan), scratch / "honest.json", scratch / "attack.json"
    monitor, started = MemoryMonitor(served), list[subprocess.Popen[str]]()
    sampling = threading.Thread(target=monitor.run)
    sampling.start()
    try:
        started.append(_start_ready("benchmarks.attackers", "attack_all", file, seconds, seed, came))
        started.append(_start_ready("benchmarks.attack", "run_honest_users", file, QUIET_S + seconds, said))
        _release(started[1])
        time.sleep(QUIET_S)
        _release(started[0])
        since, before = time.monotonic(), _cpu(served)
        for process in started:
            process.wait(seconds + 180)
        after = _cpu(served)
    finally:
        for process in started:
            process.kill()
        monitor.stop()
        sampling.join()
    if not (said.is_file() and came.is_file()):
        raise SystemExit("error: honest people or attackers ended early; why stands above")
    events, found = json.loads(said.read_text()), json.loads(came.read_text())
    wrong = [
        *found.pop("wrong"),
        *(f"{name} was started {len(pids)} times" for name, pids in monitor.pids.items() if len(pids) > 1),
        *(f"no JSON in {line[:150]}" for line in lines_not_json(served.state / "logs")),
        *(f"words in the log {line[:150]}" for line in lines_with_words(served.state / "logs", WORDS)),
        *(f"logged {count} times: {text}" for text, count in logged_errors(served.state / "logs").items()),
    ]
    cpu_s = {"attackers": found.pop("cpu_s"), **{name: after[name] - before.get(name, 0.0) for name in after}}
    return {
        "seconds": seconds,
        **memory(monitor.rows, monitor.peaks, since=since, until=since + seconds),
        **honest(events, since=since, seconds=seconds),
        "wrong": wrong,
        "cpu_shares": {name: round(spent / seconds, 3) for name, spent in cpu_s.items()},
        **found,
        "figure": plot(monitor.rows, events, since=since),
    }


def _start_ready(module: str, name: str, *given: object) -> subprocess.Popen[str]:
    """A process that is ready: everybody in it has signed in."""
    code = f"import sys; from {module} import {name}; {name}(*sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, given)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise SystemExit(f"error: {name} did not begin; why stands above")
    return process


def _release(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def _cpu(served: RunningService) -> dict[str, float]:
    """Seconds of processor time of each part and of what it started and outlived."""
    spent: dict[str, float] = {}
    for process in psutil.Process(served.process.pid).children():
        name = next((part for part in PARTS if part in process.cmdline()), "")
        if name:
            every = [process, *process.children(recursive=True)]
            spent[name] = sum(sum(one.cpu_times()[:2]) for one in every) + sum(process.cpu_times()[2:4])
    return spent


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attack", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--any-speed", action="store_true", help="judge nothing that depends on the machine's speed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(argv)
    from benchmarks.chaos import PASSWORD, QUICK, RunningService
    from benchmarks.load import ADAPTERS, make_adapters
    from benchmarks.pocket_base import machine

    adapters = make_adapters(HONEST + len(WITH_MODEL), ADAPTERS)
    with TemporaryDirectory(prefix="photoflux-attack-") as folder:
        scratch, settings = Path(folder), {"PHOTOFLUX_RUN_DEFAULTS": json.dumps(QUICK), **service_environment()}
        served = RunningService(scratch, "--no-mlflow", people=HONEST + len(ROLES), before=None, **settings)
        try:
            plan = asyncio.run(prepare(served, adapters, scratch, password=PASSWORD))
            found = run(served, plan, seconds=60 * options.minutes, seed=options.seed, scratch=scratch)
        finally:
            served.stop()
    figure = found.pop("figure")
    result = {
        "kind": "benchmark-attack",
        "schema_version": 1,
        "machine": machine(),
        "aims": AIMS,
        "met": aims_met(found, any_speed=options.any_speed),
        **found,
    }
    write_json(options.out / "attack.json", result)
    write_bytes(options.out / "attack.png", figure)
    write_text(options.out / "attack.md", page(result))
    print(json.dumps({name: result[name] for name in (*AIMS, "met", "failures", "by_kind", "cpu_shares")}, indent=2))
    return 0 if all(result["met"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
