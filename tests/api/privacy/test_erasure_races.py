"""Erasures that begin in the middle of something: whatever was under way, nothing is left that any key opens."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select

from api.images.generator import ImageGenerator
from api.privacy.erasure import Erasure, WorkInProgress
from api.privacy.export import Exports
from api.privacy.retention import Retention
from api.records.database import AccountClosed
from api.records.tables import Base, WebhookDelivery
from api.settings import RetentionPeriods
from api.training.finetuning import FinetuningRuns
from photoflux.errors import PhotoFluxError
from photoflux.runs import State
from photoflux.vault.blobs import CloudStore, FolderStore
from photoflux.vault.keyring import KeyMissing, Keyring
from photoflux.vault.sealed import FORMAT, Label, unseal_bytes
from tests.api.images.test_engine import client, generator, served_engine  # noqa: F401
from tests.api.jobs.test_webhook_delivery import Listener, listener, sender  # noqa: F401
from tests.api.people import SAMPLES, Person, Site
from tests.api.privacy.test_retention import age_subject
from tests.api.routes.test_generations import ask
from tests.api.training.test_finetuning import Scripted, begun, left_open, passed, run_of
from tests.serving.conftest import make_artifact, spec  # noqa: F401

EFFECTS = ("put_new", "put_file", "delete")
Work = Callable[[], object]


@dataclass
class Moments:
    """Counts what is stored, deleted and committed; calls `happen` once, at number `at`. Keeps a copy of all that is stored."""

    site: Site
    at: int = -1
    happen: Callable[[], None] = lambda: None
    count: int = 0
    copies: dict[str, bytes] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def tick(self) -> None:
        with self._lock:
            self.count += 1
            now = self.count == self.at
        if now:
            self.happen()

    @contextmanager
    def watching(self) -> Iterator[None]:
        engine = self.site.service.records.engine
        with pytest.MonkeyPatch.context() as patch:
            for store in (FolderStore, CloudStore):
                for name in EFFECTS:
                    patch.setattr(store, name, self._watched(getattr(store, name), name))
            event.listen(engine, "commit", self._committed)
            try:
                yield
            finally:
                event.remove(engine, "commit", self._committed)

    def _watched(self, effect: Any, kind: str) -> Any:
        def watched(store: Any, name: str, *args: Any) -> Any:
            self.tick()
            done = effect(store, name, *args)
            if kind != "delete":
                with suppress(PhotoFluxError):
                    self.copies[name] = store.get(name)
            return done

        return watched

    def _committed(self, connection: Any) -> None:
        if not connection.get_execution_options().get("reading"):
            self.tick()


@pytest.fixture(autouse=True)
def own_state(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps seal with the keyring of the site."""
    monkeypatch.setenv("PHOTOFLUX_STATE_DIR", str(site.folder / "state"))


@pytest.fixture
def begin(
    site: Site,
    generator: ImageGenerator,  # noqa: F811
    make_artifact: Callable[[int], Path],  # noqa: F811
    listener: Listener,  # noqa: F811
    tmp_path: Path,
) -> Callable[[str, Person], Work]:
    """Gets everything ready for a kind of work; what is returned does it."""
    service = site.service

    def tuning(*ends: Any) -> FinetuningRuns:
        orchestrator = Scripted(tmp_path / "runs", list(ends))
        return FinetuningRuns(
            service.records, service.objects, orchestrator, service.audit_log, enqueue_generation=lambda *_: None
        )

    def upload(person: Person) -> Work:
        subject = person.subject()
        return lambda: person.upload(subject, {file.name: file.read_bytes() for file in SAMPLES[:5]})

    def run(person: Person) -> Work:
        name, _ = begun(person)
        runs = tuning(run_of(State.running), passed)
        return lambda: runs.record_outcome(name, 1, runs.poll_pipeline(name, 1))

    def generation(person: Person) -> Work:
        from photoflux.manifest import digest

        artifact = make_artifact(1)
        subject = person.subject_with_model(adapter=artifact.read_bytes(), sha256=digest(artifact))
        result = ask(person, subject, n=2)["id"]
        return lambda: generator.generate(result)

    def export(person: Person) -> Work:
        generation(person)()
        person.subject_with_photos(3)
        asked = person.post("/api/me/export").json()["id"]
        return lambda: Exports(service.records, service.objects, service.audit_log).perform(asked)

    def webhook(person: Person) -> Work:
        made = person.post("/api/webhooks", json={"url": listener.url}).json()["id"]
        person.post(f"/api/webhooks/{made}/test")
        with service.records.reading() as session:
            delivery = session.scalars(select(WebhookDelivery.id).where(WebhookDelivery.webhook_id == made)).one()
        return lambda: sender(site).deliver(delivery)

    def retention(person: Person) -> Work:
        age_subject(person, person.subject_with_photos(5), days=400)
        generation(person)()
        sweep = Retention(
            service.records,
            service.objects,
            service.audit_log,
            service.tokens,
            RetentionPeriods(photos=1),
            lambda _: None,
            lambda *_: None,
            lambda _: 0,
            service.heads,
        )
        return sweep.perform

    def sign_off(person: Person) -> Work:
        name, _ = begun(person)
        runs = tuning(left_open)
        runs.record_outcome(name, 1, runs.poll_pipeline(name, 1))
        operator = site.person(role="operator")
        said = operator.post(
            f"/api/sign-offs/{name}", json={"reason": "I looked at all pictures", "findings": ["bias audit"]}
        )
        assert said.status_code == 202, said.text
        return lambda: runs.register_signed(name)

    kinds = {
        "upload": upload,
        "run": run,
        "generation": generation,
        "export": export,
        "webhook": webhook,
        "retention": retention,
        "sign-off": sign_off,
    }
    return lambda kind, person: kinds[kind](person)


def erased(site: Site, person: Person, busy: threading.Event, cache: Path) -> None:
    """Somebody asks for their erasure, and a worker does it once nothing is under way for them."""
    service = site.service
    erasure = Erasure(
        service.records,
        service.objects,
        service.keyring,
        service.audit_log,
        lambda _: None,
        lambda *_: 0,
        lambda _: None,
        cache,
        is_idle=lambda _: not busy.is_set(),
    )
    answer = person.ask("DELETE", "/api/me")
    assert answer.status_code == 202, answer.text
    until = time.monotonic() + 60
    while True:
        try:
            assert erasure.perform(answer.json()["receipt"]) == "done"
            return
        except WorkInProgress:
            assert time.monotonic() < until
            time.sleep(0.01)


def interrupted_at(site: Site, person: Person, work: Work, at: int, *, awaited: bool, folder: Path) -> Moments:
    """Do the work, and begin the erasure at one of its moments; both are over afterwards."""
    busy, begun_, faults = threading.Event(), threading.Event(), list[BaseException]()
    if awaited:
        busy.set()

    def erase() -> None:
        try:
            erased(site, person, busy, folder / "cache")
        except BaseException as error:
            faults.append(error)
        finally:
            begun_.set()

    eraser = threading.Thread(target=erase)

    def happen() -> None:
        eraser.start()
        # It may have to wait for a transaction of the work: so the work goes on after a moment all the same.
        until = time.monotonic() + 0.5
        while time.monotonic() < until and not site.service.keyring.is_erased(person.id):
            time.sleep(0.005)

    moments = Moments(site, at, happen)
    with moments.watching():
        with suppress(PhotoFluxError, AccountClosed):
            work()
        busy.clear()
        if eraser.ident is None:  # the work had fewer moments this time
            happen()
        eraser.join(90)
    assert not eraser.is_alive()
    assert faults == []
    return moments


def nothing_left(site: Site, person: Person, moments: Moments, folder: Path) -> None:
    """No row, no object, no keyset; and no copy of what was ever stored that a key opens."""
    service = site.service
    keyring = Keyring(service.keyring.store, service.keyring.kek_uri)
    assert keyring.versions(person.id) == []
    assert [name for name in service.objects.store.list() if person.id in name] == []
    assert [name for name in keyring.store.list() if person.id in name] == [f"erased/{person.id}"]
    with service.records.reading() as session:
        for table in Base.metadata.sorted_tables:
            if "user_id" in table.columns and table.name != "tombstones":
                assert session.execute(select(table).where(table.c.user_id == person.id)).first() is None, table.name
    for name, content in moments.copies.items():
        kind, _, rest = name.partition("/")
        owner, _, object_id = rest.partition("/")
        if owner == person.id and kind not in ("keysets", "erased"):
            with pytest.raises(KeyMissing):
                unseal_bytes(content, label=Label(owner, kind[:-1], object_id), keyring=keyring)
    for file in folder.rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        if content.startswith(b'{"format": "' + FORMAT.encode()) and person.id.encode() in content[:300]:
            told = json.loads(content.split(b"\n", 1)[0])  # whatever it says that it is
            with pytest.raises(KeyMissing):
                unseal_bytes(content, label=Label(told["owner"], told["kind"], told["id"]), keyring=keyring)


KINDS = ("upload", "run", "generation", "export", "webhook", "retention", "sign-off")


def moments_of(begin: Callable[[str, Person], Work], site: Site, kind: str, count: int) -> list[int]:
    """So many of the moments that the work has, at random, the first and the last among them."""
    work, counted = begin(kind, site.person()), Moments(site)
    with counted.watching():
        work()
    assert counted.count > 0
    inner = range(2, counted.count)
    chosen = random.Random(kind).sample(inner, min(len(inner), count - 2))
    return sorted({1, *chosen, counted.count})


def every_kind() -> Iterator[Any]:
    """Three moments of what is quick, ten of everything."""
    for kind in KINDS:
        if kind not in ("retention", "sign-off"):
            yield pytest.param(kind, 3)
        yield pytest.param(kind, 10, marks=pytest.mark.slow)


@pytest.mark.parametrize(("kind", "count"), every_kind())
def test_an_erasure_that_begins_at_any_moment_leaves_nothing(
    site: Site, begin: Callable[[str, Person], Work], kind: str, count: int, tmp_path: Path
):
    for at in moments_of(begin, site, kind, count):
        person = site.person()
        work = begin(kind, person)
        moments = interrupted_at(site, person, work, at, awaited=kind != "upload", folder=tmp_path)
        nothing_left(site, person, moments, tmp_path)


def test_the_watch_sees_what_is_left(site: Site, begin: Callable[[str, Person], Work], tmp_path: Path):
    """Without an erasure all of it is there and opens."""
    person = site.person()
    work, moments = begin("export", person), Moments(site)
    with moments.watching():
        work()
    assert any(name.startswith(f"exports/{person.id}/") for name in moments.copies)
    with pytest.raises(AssertionError):
        nothing_left(site, person, moments, tmp_path)
