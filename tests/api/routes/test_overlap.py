"""What happens when requests of one person, or of a person and a worker, overlap."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from api.records.database import retry_on_rollback
from api.records.tables import LOCK_ORDER, Base, Complaint, Generation, Photo, Run, Subject, User, Webhook, new_id
from api.training.finetuning import FinetuningRuns
from tests.api.lock_order import locked_by
from tests.api.people import SAMPLES, Person, Site, is_problem
from tests.api.routes.test_generations import ask

TOGETHER = 20


def at_once(do: Callable[[int], httpx2.Response], count: int = TOGETHER) -> Counter[int]:
    """How often each status was answered when so many ask at the same time."""
    ready = threading.Barrier(count)

    def one(number: int) -> int:
        ready.wait(30)
        return do(number).status_code

    with ThreadPoolExecutor(count) as pool:
        return Counter(pool.map(one, range(count)))


def test_of_many_webhooks_at_once_as_many_are_made_as_may_be(site: Site, ada: Person):
    told = at_once(lambda n: ada.post("/api/webhooks", json={"url": f"http://127.0.0.1:9/{n}"}))
    assert told == {201: 5, 409: TOGETHER - 5}
    with site.service.records.reading() as session:
        assert len(list(session.scalars(select(Webhook).where(Webhook.user_id == ada.id)))) == 5


def test_of_many_subjects_at_once_as_many_are_made_as_may_be(site: Site, ada: Person, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(site.service.settings, "subjects_max", 5)
    told = at_once(lambda _: ada.post("/api/subjects", json={"class_noun": "dog", "depicts": "no_person"}))
    assert told == {201: 5, 409: TOGETHER - 5}


def test_of_many_generations_at_once_as_many_wait_as_may(site: Site, ada: Person):
    subject, most = ada.subject_with_model(), site.service.settings.generations_waiting
    body = {"subject": subject, "prompt": "a photo of sks dog"}
    assert at_once(lambda n: ada.post("/api/generate", json={**body, "seed": n})) == {202: most, 429: TOGETHER - most}


def test_of_many_photos_at_once_as_many_are_kept_as_may_be(site: Site, ada: Person, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(site.service.collection.__class__, "photos_max", 3, raising=False)
    object.__setattr__(site.service.collection, "photos_max", 3)
    subject, files = ada.subject(), [file.read_bytes() for file in SAMPLES[:6]]
    try:
        told = at_once(lambda n: ada.upload(subject, {f"{n}.jpg": files[n]}), len(files))
    finally:
        object.__setattr__(site.service.collection, "photos_max", site.service.settings.photos_max)
    assert told == {201: 3, 409: 3}
    assert len(site.objects.ids(ada.id, "photo")) == 3


def test_a_days_runs_are_counted_by_what_was_started(site: Site, ada: Person, monkeypatch: pytest.MonkeyPatch):
    """Deleting a subject does not give its runs back."""
    monkeypatch.setattr(site.service.settings, "runs_a_day", 2)
    for _ in range(2):
        subject = ada.subject_with_photos(5)
        assert ada.post("/api/runs", json={"subject": subject}).status_code == 202
        assert ada.ask("DELETE", f"/api/subjects/{subject}").status_code == 204
    is_problem(ada.post("/api/runs", json={"subject": ada.subject_with_photos(5)}), 429, "quota")


def test_what_is_refused_is_not_counted(site: Site, ada: Person, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(site.service.settings, "runs_a_day", 1)
    for _ in range(3):
        is_problem(ada.post("/api/runs", json={"subject": ada.subject()}), 409, "photos-unfit")
    assert ada.post("/api/runs", json={"subject": ada.subject_with_photos(5)}).status_code == 202


def test_what_is_kept_of_a_person_is_bounded(site: Site, ada: Person, monkeypatch: pytest.MonkeyPatch):
    subject = ada.subject_with_photos(5)
    monkeypatch.setattr(site.service.settings, "stored_bytes_max", 1000)
    is_problem(ada.upload(subject, {"a.jpg": SAMPLES[5].read_bytes()}), 409, "storage-full")
    is_problem(ada.post("/api/runs", json={"subject": subject}), 409, "storage-full")
    assert ada.post("/api/me/export").status_code == 202, "whoever has too much may still take it along"
    drawn = ada.subject_with_model()
    is_problem(ada.post("/api/generate", json={"subject": drawn, "prompt": "a dog"}), 409, "storage-full")


def keyed() -> dict[str, str]:
    return {"Idempotency-Key": uuid.uuid4().hex}


def test_an_upload_to_another_subject_is_another_request(site: Site, ada: Person):
    first, second, key = ada.subject(), ada.subject(), keyed()
    file = {"a.jpg": SAMPLES[0].read_bytes()}
    assert ada.upload(first, file, headers=key).status_code == 201
    assert ada.upload(first, file, headers=key).status_code == 201
    is_problem(ada.upload(second, file, headers=key), 422, "idempotency-mismatch")
    is_problem(ada.upload(first, {"b.jpg": SAMPLES[0].read_bytes()}, headers=key), 422, "idempotency-mismatch")
    with site.service.records.reading() as session:
        assert [p.subject_id for p in session.scalars(select(Photo).where(Photo.user_id == ada.id))] == [first]


def test_a_complaint_sent_again_is_the_same_complaint(site: Site):
    said, key = {"reason": "likeness", "text": "this is me"}, keyed()
    first = site.client.post("/api/complaints", json=said, headers=key)
    again = site.client.post("/api/complaints", json=said, headers=key)
    assert (first.status_code, again.status_code) == (201, 201), again.text
    assert first.json() == again.json()
    is_problem(
        site.client.post("/api/complaints", json=said | {"text": "another"}, headers=key), 422, "idempotency-mismatch"
    )
    with site.service.records.reading() as session:
        assert session.get(Complaint, first.json()["id"]).details.count(b"this is me") == 0  # type: ignore[union-attr]


def test_an_export_and_a_test_message_sent_again_are_the_same(site: Site, ada: Person):
    key = keyed()
    exports = [ada.post("/api/me/export", headers=key).json() for _ in range(2)]
    assert exports[0] == exports[1]
    webhook = ada.post("/api/webhooks", json={"url": "http://127.0.0.1:9/"}).json()["id"]
    key = keyed()
    answers = [ada.post(f"/api/webhooks/{webhook}/test", headers=key) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    from api.records.tables import WebhookDelivery

    with site.service.records.reading() as session:
        assert len(list(session.scalars(select(WebhookDelivery).where(WebhookDelivery.webhook_id == webhook)))) == 1


REPEATABLE = {
    "refresh": "gives the successor of the token that was sent",
    "logout": "ends what has ended",
    "giveConsent": "a consent to the same wording is the one that there is",
    "promoteModel": "promotes the same model",
    "cancelRun": "a run is cancelled once",
    "signOff": "a run is signed for once",
    "closeComplaint": "a complaint is closed once",
}
"""POSTs that do the same when they are sent again, key or no key."""


def test_every_post_may_be_sent_again(site: Site):
    schema = site.client.get("/openapi.json").json()
    posts = [path["post"] for path in schema["paths"].values() if "post" in path]
    keyed = {
        one["operationId"]
        for one in posts
        if any(p["name"].lower() == "idempotency-key" for p in one.get("parameters", []))
    }
    assert {one["operationId"] for one in posts} - keyed == set(REPEATABLE)


def test_cancelling_twice_is_noted_once(site: Site, ada: Person):
    run = ada.post("/api/runs", json={"subject": ada.subject_with_photos(5)}).json()["id"]
    for _ in range(2):
        assert ada.post(f"/api/runs/{run}/cancel").json()["state"] == "cancelled"
    from api.records.tables import AuditEntry

    query = select(AuditEntry.action).where(AuditEntry.object == run).order_by(AuditEntry.number)
    with site.service.records.reading() as session:
        assert list(session.scalars(query)) == ["run.created", "run.cancelled", "run.ended"]


def test_every_table_has_a_place_in_the_order():
    assert set(LOCK_ORDER) == set(Base.metadata.tables)


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("UPDATE runs SET state=%(s)s WHERE runs.id = %(i)s", "runs"), ("DELETE FROM subjects WHERE id = 1", "subjects"),
        ("SELECT runs.id, runs.error\nFROM runs\nWHERE runs.id = 1 FOR UPDATE", "runs"),
        ("SELECT workers.id \nFROM workers WHERE x FOR SHARE", "workers"), ("SELECT runs.id FROM runs", None),
        ("select pg_advisory_xact_lock(1)", "audit_log"), ("INSERT INTO runs VALUES (1)", None),
    ],
)  # fmt: skip
def test_what_a_statement_locks(statement: str, table: str | None):
    assert locked_by(statement) == table


def test_a_transaction_that_the_database_gave_up_is_repeated(site: Site, ada: Person, bob: Person):
    """Two lock two rows the wrong way round; PostgreSQL gives one of them up, and both are done in the end."""
    records = site.service.records
    if records.engine.dialect.name == "sqlite":
        pytest.skip("SQLite has one writer at a time; PostgreSQL finds deadlocks")
    met, tries = threading.Barrier(2), Counter[str]()

    @retry_on_rollback
    def lock(first: str, second: str) -> None:
        tries[first] += 1
        with records.writing() as session:
            session.get_one(User, first, with_for_update=True)
            if tries[first] == 1:
                met.wait(30)
            session.get_one(User, second, with_for_update=True)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(lock, ada.id, bob.id), pool.submit(lock, bob.id, ada.id)]:
            done.result(60)
    assert sum(tries.values()) == 3


@pytest.mark.parametrize("code", ["40P01", "40001"])
def test_a_request_that_the_database_gave_up_is_answered_all_the_same(
    site: Site, ada: Person, monkeypatch: pytest.MonkeyPatch, code: str
):
    """For a deadlock, or since it would not have been as if one transaction had come after the other."""

    class Cancelled(Exception):
        sqlstate = code

    failures = iter([True, True, False])
    record = type(site.service.audit_log).record

    def fail_twice(*args: Any, **more: Any) -> None:
        if next(failures, False):
            raise DBAPIError("UPDATE", {}, Cancelled())
        record(*args, **more)

    monkeypatch.setattr(type(site.service.audit_log), "record", fail_twice)
    assert ada.post("/api/subjects", json={"class_noun": "dog", "depicts": "no_person"}).status_code == 201
    assert len(ada.get("/api/subjects").json()["items"]) == 1


def test_people_and_workers_do_not_wait_for_each_other_for_ever(site: Site, ada: Person):
    """Sixty pairs of a request and a worker's step on the same run: nobody is answered 500, and every run ends once."""
    audit_log, records = site.service.audit_log, site.service.records
    runs = FinetuningRuns(
        records, site.objects, None, audit_log, enqueue_generation=site.service.queue.enqueue_generation
    )  # type: ignore[arg-type]
    for number in range(60):
        subject, run = ada.subject_with_model(), new_id()
        with records.writing() as session:
            facts: dict[str, Any] = {"params": {}, "orchestrator": "local", "estimate": {}, "steps": []}
            session.add(Run(id=run, user_id=ada.id, subject_id=subject, state="running", **facts))
        routes: list[Callable[[], httpx2.Response]] = [
            lambda: ada.post(f"/api/runs/{run}/cancel"),  # noqa: B023
            lambda: ada.ask("DELETE", f"/api/subjects/{subject}"),  # noqa: B023
            lambda: ada.ask("DELETE", "/api/consents/likeness"),
            lambda: ada.post("/api/generate", json={"subject": subject, "prompt": "a dog"}),  # noqa: B023
        ]
        with ThreadPoolExecutor(2) as pool:
            route = pool.submit(routes[number % len(routes)])
            pool.submit(runs.end_without_model, run, "failed", "it failed").result(60)
            assert route.result(60).status_code in (202, 204, 429)
        with records.reading() as session:
            found = session.get(Run, run)
            assert found is None or found.state in ("failed", "cancelled")
            waiting = select(Generation.id).where(Generation.run_id == run, Generation.state == "queued")
            assert list(session.scalars(waiting)) == []
            assert session.get(Subject, subject) is None or found is not None
        for waiting_id in [one["id"] for one in ada.get("/api/results").json()["items"]]:
            ada.ask("DELETE", f"/api/results/{waiting_id}")


def test_pictures_that_wait_are_told_of_when_their_run_fails(site: Site, ada: Person):
    """Whoever ends a piece of work: it is in the log, and whoever wants to be told is."""
    from api.records.tables import AuditEntry, WebhookDelivery

    subject = ada.subject_with_photos(5)
    webhook = ada.post("/api/webhooks", json={"url": "http://127.0.0.1:9/"}).json()["id"]
    waiting = ask(ada, subject)
    runs = FinetuningRuns(
        site.service.records, site.objects, None, site.service.audit_log, enqueue_generation=lambda *_: None
    )  # type: ignore[arg-type]
    runs.end_without_model(waiting["run"], "failed", "it failed")
    with site.service.records.reading() as session:
        entries = select(AuditEntry.action, AuditEntry.outcome).where(AuditEntry.object == waiting["id"])
        told = select(WebhookDelivery.object_id, WebhookDelivery.outcome).where(WebhookDelivery.webhook_id == webhook)
        assert ("generation.ended", "failed") in session.execute(entries).tuples().all()
        assert set(session.execute(told).tuples()) == {(waiting["run"], "failed"), (waiting["id"], "failed")}
