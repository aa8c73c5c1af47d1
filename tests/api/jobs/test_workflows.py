"""The queue of durable jobs: what is enqueued with a row is done once, in a fair order, and failures end somewhere."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import psycopg
import pytest
from dbos import DBOS
from sqlalchemy import text
from sqlalchemy.exc import DataError, OperationalError

from api.jobs import job_queue, workflows
from api.privacy.erasure import DeletionPlan, WorkInProgress
from api.records import database
from api.records.database import Records, open_engine
from api.records.tables import Generation, Run, Subject, User, Webhook, WebhookDelivery, new_id, now_ms
from pipelines.orchestrators import LOST
from tests.api.conftest import migrated


class Notes:
    """Stands in for what the workflows do: notes that it was asked to, and answers as it is told."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.answers: dict[str, list[Any]] = {}
        self.go = threading.Event()
        self.go.set()

    def _answer(self, *asked: str) -> str:
        assert self.go.wait(20)
        self.asked.append(asked)
        told = self.answers.get(asked[0], [])
        answer = told.pop(0) if told else "succeeded"
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    def poll_pipeline(self, run_id: str, attempt: int) -> str:
        return self._answer("poll_pipeline", run_id, str(attempt))

    def record_outcome(self, run_id: str, attempt: int, ended: str) -> str:
        return self._answer("record_outcome", run_id, str(attempt), ended)

    def fail(self, row_id: str, *why: str) -> str:
        return self._answer("fail", row_id, *why)

    def mark_failed(self, row_id: str, *why: str) -> str:
        return self._answer("mark_failed", row_id, *why)

    def reopen_sign_off(self, row_id: str) -> str:
        return self._answer("reopen_sign_off", row_id)

    def perform(self, *row_id: object) -> str:
        return self._answer("perform", *map(str, row_id))

    def generate(self, row_id: str) -> str:
        return self._answer("generate", row_id)

    def deliver(self, row_id: str, attempt: int) -> str:
        return self._answer("deliver", row_id, str(attempt))

    def register_signed(self, run_id: str) -> str:
        return self._answer("register_signed", run_id)

    def remove(self, gone: DeletionPlan) -> None:
        self._answer("remove", gone.owner, *gone.runs)

    def end(self, row_id: str, state: str, code: str, why: str) -> str:
        return self._answer("end", row_id, state, code, why)

    def wait_for(self, *asked: str, timeout_s: float = 20) -> None:
        until = time.monotonic() + timeout_s
        while asked not in self.asked:
            assert time.monotonic() < until, self.asked
            time.sleep(0.01)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def worker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Records, job_queue.JobQueue, Notes]]:
    """Records, the queue and the notes of a worker in this process, for all tests of the module."""
    with migrated(request, tmp_path_factory.mktemp("work")) as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(workflows, "FIRST_PAUSE_S", 0.01)
        patch.setattr(workflows, "AWAIT_PAUSE_S", 0.01)
        patch.setattr(workflows, "POLL_S", dict.fromkeys(workflows.POLL_S, 0.05))
        records, queue, notes = Records(open_engine(url)), job_queue.JobQueue(url), Notes()
        parts = dict.fromkeys((field.name for field in fields(workflows.WorkerServices)), notes) | {
            "records": records,
            "queue": queue,
        }
        workflows.launch(url, workflows.WorkerServices(**parts), worker_id="this-one", runs_at_once=1)  # type: ignore[arg-type]
        yield records, queue, notes
        notes.go.set()
        workflows.stop(5)
        queue.close()
        records.engine.dispose()


@pytest.fixture
def working(worker: tuple[Records, job_queue.JobQueue, Notes]) -> Iterator[tuple[Records, job_queue.JobQueue, Notes]]:
    """The worker with nothing noted and nothing told to answer."""
    yield worker
    _, _, notes = worker
    notes.go.set()
    notes.asked.clear()
    notes.answers.clear()


def add_user(records: Records) -> tuple[str, str]:
    with records.writing() as session:
        user = User(id=new_id(), login=new_id())
        session.add(user)
        session.flush()
        subject = Subject(id=new_id(), user_id=user.id, class_noun="dog", trigger="sks", depicts="no_person")
        session.add(subject)
    return user.id, subject.id


def run_of(user: str, subject: str) -> Run:
    facts: dict[str, Any] = {"params": {}, "orchestrator": "local", "estimate": {}, "steps": []}
    return Run(id=new_id(), user_id=user, subject_id=subject, **facts)


def generation_of(user: str, subject: str) -> Generation:
    return Generation(
        id=new_id(), user_id=user, subject_id=subject, prompt=b"", n=1, seed=0, size="64x64", format="png", style="none"
    )


def enqueue(records: Records, queue: job_queue.JobQueue, row: Any) -> str:
    with records.writing() as session:
        session.add(row)
        (queue.enqueue_run if isinstance(row, Run) else queue.enqueue_generation)(session, row)
    return str(row.id)


def test_what_is_recorded_is_done(working: tuple[Records, job_queue.JobQueue, Notes]):
    records, queue, notes = working
    user, subject = add_user(records)
    drawn = enqueue(records, queue, generation_of(user, subject))
    run = enqueue(records, queue, run_of(user, subject))
    notes.wait_for("generate", drawn)
    notes.wait_for("record_outcome", run, "1", "succeeded")


def test_what_is_rolled_back_is_not(working: tuple[Records, job_queue.JobQueue, Notes]):
    records, queue, notes = working
    user, subject = add_user(records)
    lost = generation_of(user, subject)
    with pytest.raises(RuntimeError), records.writing() as session:
        session.add(lost)
        queue.enqueue_generation(session, lost)
        raise RuntimeError("the route failed")
    again = enqueue(records, queue, generation_of(user, subject))
    notes.wait_for("generate", again)
    assert ("generate", lost.id) not in notes.asked


def test_a_killed_run_is_tried_again_and_given_up_in_the_end(working: tuple[Records, job_queue.JobQueue, Notes]):
    records, queue, notes = working
    user, subject = add_user(records)
    notes.answers["poll_pipeline"] = [LOST, "succeeded"]
    first = enqueue(records, queue, run_of(user, subject))
    notes.wait_for("record_outcome", first, "2", "succeeded")
    notes.answers["poll_pipeline"] = [LOST] * workflows.RUN_ATTEMPTS
    _, other = add_user(records)
    second = enqueue(records, queue, run_of(user, other))
    notes.wait_for("record_outcome", second, str(workflows.RUN_ATTEMPTS), LOST)


def test_what_fails_for_a_reason_of_ours_ends_with_a_word(working: tuple[Records, job_queue.JobQueue, Notes]):
    records, queue, notes = working
    user, subject = add_user(records)
    notes.answers["generate"] = [ValueError("canary")] * 3
    drawn = enqueue(records, queue, generation_of(user, subject))
    notes.wait_for("end", drawn, "failed", "internal", workflows.GENERATION_FAILED)
    assert notes.asked.count(("generate", drawn)) == 3
    assert "canary" not in workflows.GENERATION_FAILED


def test_what_a_deleted_subject_leaves_is_removed(working: tuple[Records, job_queue.JobQueue, Notes]):
    """Named by ids alone, in the transaction that deletes the rows, and until it is done."""
    records, queue, notes = working
    notes.answers["remove"] = [OSError("the registry is away")]
    with records.writing() as session:
        queue.enqueue_deletion(session, DeletionPlan("ada", [("photo", "1")], ["run-1", "run-2"], ["subject-1"]))
    notes.wait_for("remove", "ada", "run-1", "run-2")
    until = time.monotonic() + 20
    while notes.asked.count(("remove", "ada", "run-1", "run-2")) < 2:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_notice_is_sent(working: tuple[Records, job_queue.JobQueue, Notes]):
    records, queue, notes = working
    notes.wait_for("deliver", enqueued_delivery(records, queue, add_user(records)[0]), "1")


def test_what_is_signed_for_is_registered(working: tuple[Records, job_queue.JobQueue, Notes]):
    records, queue, notes = working
    user, subject = add_user(records)
    run = run_of(user, subject)
    with records.writing() as session:
        session.add(run)
        queue.enqueue_sign_off(session, run)
    notes.wait_for("register_signed", run.id)


def test_work_that_has_long_ended_is_forgotten(working: tuple[Records, job_queue.JobQueue, Notes]):
    records, queue, notes = working
    user, subject = add_user(records)
    drawn = enqueue(records, queue, generation_of(user, subject))
    notes.wait_for("generate", drawn)
    until = time.monotonic() + 20
    while DBOS.retrieve_workflow(drawn).get_status().status != "SUCCESS":
        assert time.monotonic() < until
    notes.go.clear()
    waiting = enqueue(records, queue, generation_of(user, subject))
    assert queue.delete_ended(now_ms() - 3_600_000) == 0
    assert queue.delete_ended(now_ms() + 1000) >= 1
    known = {one.workflow_id for one in DBOS.list_workflows()}
    assert (drawn in known, waiting in known) == (False, True)
    notes.go.set()
    notes.wait_for("generate", waiting)


def test_the_sweep_is_scheduled_once_and_runs(working: tuple[Records, job_queue.JobQueue, Notes]):
    _, _, notes = working
    (schedule,) = DBOS.list_schedules()
    assert (schedule["schedule_name"], schedule["schedule"]) == ("retention", workflows.RETENTION_CRON)
    DBOS.trigger_schedule("retention")
    notes.wait_for("perform")


def pending(executor: str, workflow_id: str, records: Records) -> None:
    """As if another worker had taken a piece of work and were gone."""
    schema = "dbos." if records.engine.dialect.name == "postgresql" else ""
    taken = "status = 'PENDING', executor_id = :who, application_version = :version"
    values = {"who": executor, "which": workflow_id, "version": job_queue.VERSION}
    with records.writing() as session:
        session.execute(text(f"update {schema}workflow_status set {taken} where workflow_uuid = :which"), values)


def enqueue_delayed(records: Records, queue: job_queue.JobQueue, row: Any) -> str:
    """Enqueue it so that nobody dequeues it for now."""
    with records.writing() as session:
        session.add(row)
        session.flush()
        queue.enqueue(session, job_queue.GENERATIONS, "generate_images", row.id, owner=row.user_id, delay_s=3600)
    return str(row.id)


def test_what_the_dead_had_under_way_is_taken_up_once(working: tuple[Records, job_queue.JobQueue, Notes]):
    records, queue, notes = working
    user, subject = add_user(records)
    left, running = (enqueue_delayed(records, queue, generation_of(user, subject)) for _ in range(2))
    pending("dead", left, records)
    pending("another", running, records)
    for _ in range(3):
        workflows.recover_dead(lambda: {"this-one", "another"})
    notes.wait_for("generate", left)
    done = enqueue(records, queue, generation_of(user, subject))
    notes.wait_for("generate", done)
    assert notes.asked.count(("generate", left)) == 1
    assert ("generate", running) not in notes.asked
    workflows.recover_dead(lambda: {"this-one"})
    notes.wait_for("generate", running)


def test_work_that_kills_its_workers_is_given_up_with_a_word(working: tuple[Records, job_queue.JobQueue, Notes]):
    records, queue, notes = working
    user, subject = add_user(records)
    drawn = enqueue_delayed(records, queue, generation_of(user, subject))
    schema = "dbos." if records.engine.dialect.name == "postgresql" else ""
    with records.writing() as session:
        session.execute(
            text(f"update {schema}workflow_status set recovery_attempts = 1000 where workflow_uuid = :which"),
            {"which": drawn},
        )
    pending("dead", drawn, records)
    workflows.recover_dead(lambda: {"this-one"})
    until = time.monotonic() + 20
    while not queue.exhausted():
        assert time.monotonic() < until
        time.sleep(0.05)
    assert queue.exhausted() == [("generate_images", drawn)]
    workflows.fail_exhausted()
    notes.wait_for("end", drawn, "failed", "killed", workflows.KILLED_TOO_OFTEN)
    assert ("generate", drawn) not in notes.asked
    assert queue.exhausted() == []


@pytest.mark.slow
def test_a_run_that_could_not_be_followed_is_ended_where_it_runs(working: tuple[Records, job_queue.JobQueue, Notes]):
    records, queue, notes = working
    user, subject = add_user(records)
    notes.answers["poll_pipeline"] = [OSError("away")] * 5
    run = enqueue(records, queue, run_of(user, subject))
    notes.wait_for("mark_failed", run, "internal", workflows.RUN_FAILED, timeout_s=60)


def test_an_erasure_waits_for_what_is_under_way_without_holding_a_place(
    working: tuple[Records, job_queue.JobQueue, Notes],
):
    records, queue, notes = working
    receipt, other = new_id(), new_id()
    notes.answers["perform"] = [WorkInProgress("a picture")] * 3
    with records.writing() as session:
        queue.enqueue_erasure(session, receipt)
    until = time.monotonic() + 20
    while notes.asked.count(("perform", receipt)) < 4:
        assert time.monotonic() < until, notes.asked
        time.sleep(0.01)
    with records.writing() as session:
        queue.enqueue_erasure(session, other)
    notes.wait_for("perform", other)


def test_an_erased_persons_work_is_taken_out_of_the_line_and_awaited(
    working: tuple[Records, job_queue.JobQueue, Notes],
):
    records, queue, notes = working
    (ada, hers), (bob, his) = add_user(records), add_user(records)
    notes.go.clear()
    under_way = enqueue(records, queue, generation_of(ada, hers))
    until = time.monotonic() + 20
    while DBOS.retrieve_workflow(under_way).get_status().status != "PENDING":
        assert time.monotonic() < until
        time.sleep(0.01)
    waiting, bobs = (
        enqueue_delayed(records, queue, generation_of(ada, hers)),
        enqueue_delayed(records, queue, generation_of(bob, his)),
    )
    assert queue.drain(ada) is False
    states = {one.workflow_id: one.status for one in DBOS.list_workflows()}
    assert (states[waiting], states[bobs]) == ("CANCELLED", "DELAYED")
    assert queue.drain(ada) is False
    notes.go.set()
    while not queue.drain(ada):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_flood_of_one_owners_messages_does_not_delay_anothers(working: tuple[Records, job_queue.JobQueue, Notes]):
    """Forty of one owner's hang; another's is sent meanwhile."""
    records, queue, _ = working
    hanging = threading.Event()
    sent: list[str] = []

    class Hanging(Notes):
        def deliver(self, row_id: str, attempt: int) -> str:
            with records.reading() as session:
                if session.get_one(WebhookDelivery, row_id).user_id == ada:
                    assert hanging.wait(60)
            sent.append(row_id)
            return "succeeded"

    before, workflows.services.webhooks = workflows.services.webhooks, Hanging()  # type: ignore[assignment]
    try:
        (ada, _), (bob, _) = add_user(records), add_user(records)
        for _ in range(40):
            enqueued_delivery(records, queue, ada)
        bobs = enqueued_delivery(records, queue, bob)
        until = time.monotonic() + 20
        while bobs not in sent:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert sent == [bobs]
        hanging.set()
        while len(sent) < 41:
            assert time.monotonic() < until + 40
            time.sleep(0.01)
    finally:
        hanging.set()
        workflows.services.webhooks = before


def enqueued_delivery(records: Records, queue: job_queue.JobQueue, user: str) -> str:
    """Id of a delivery that was enqueued."""
    with records.writing() as session:
        webhook = Webhook(id=new_id(), user_id=user, address=b"", secret=b"")
        session.add(webhook)
        session.flush()
        delivery = WebhookDelivery(
            id=new_id(), user_id=user, webhook_id=webhook.id, event="x", object_id="y", outcome="z"
        )
        session.add(delivery)
        queue.enqueue_delivery(session, delivery)
    return str(delivery.id)


def test_people_take_turns(working: tuple[Records, job_queue.JobQueue, Notes]):
    """While one run is under way, two of Ada's and one of Bob's are enqueued: Bob's is second, not last."""
    records, queue, notes = working
    notes.go.clear()
    (blocker, its), (ada, hers), (bob, his) = (add_user(records) for _ in range(3))
    enqueue(records, queue, run_of(blocker, its))
    time.sleep(0.5)
    _, more = add_user(records)
    first, second = enqueue(records, queue, run_of(ada, hers)), enqueue(records, queue, run_of(ada, more))
    third = enqueue(records, queue, run_of(bob, his))
    notes.go.set()
    notes.wait_for("record_outcome", second, "1", "succeeded")
    order = [asked[1] for asked in notes.asked if asked[0] == "poll_pipeline"][1:]
    assert order == [first, third, second]


def test_arguments_and_results_are_readable_json(working: tuple[Records, job_queue.JobQueue, Notes]):
    records, queue, notes = working
    user, subject = add_user(records)
    drawn = enqueue(records, queue, generation_of(user, subject))
    notes.wait_for("generate", drawn)
    json = job_queue.Json()
    assert json.deserialize(json.serialize({"args": [drawn]})) == {"args": [drawn]}
    serialized = json.serialize(ValueError("a prompt"))
    assert "prompt" not in serialized
    assert isinstance(json.deserialize(serialized), RuntimeError)
    until = time.monotonic() + 10
    while DBOS.retrieve_workflow(drawn).get_status().status != "SUCCESS":
        assert time.monotonic() < until
        time.sleep(0.01)
    assert DBOS.retrieve_workflow(drawn).get_result() == "succeeded"


def test_an_erasure_waits_until_what_was_deleted_before_is_gone(working: tuple[Records, job_queue.JobQueue, Notes]):
    """It names what no row names any more, and is not cancelled in the queue."""
    records, queue, notes = working
    ada, _ = add_user(records)
    notes.go.clear()
    with records.writing() as session:
        queue.enqueue_deletion(session, DeletionPlan(ada, runs=["a run"]))
    assert queue.drain(ada) is False
    notes.go.set()
    notes.wait_for("remove", ada, "a run")
    until = time.monotonic() + 20
    while not queue.drain(ada):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_work_outlasts_a_database_that_is_away(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(database, "OUTAGE_RETRY_S", 0.01)
    busy = sqlite3.OperationalError("database is locked")
    busy.sqlite_errorcode = sqlite3.SQLITE_BUSY
    wrong = sqlite3.OperationalError("no such table")
    wrong.sqlite_errorcode = sqlite3.SQLITE_ERROR
    left = [OperationalError("", {}, busy), OperationalError("", {}, psycopg.OperationalError("connection refused"))]

    def step() -> str:
        if left:
            raise left.pop()
        return "done"

    assert database.retry_on_outage(step)() == "done"
    for told in (OperationalError("", {}, wrong), DataError("", {}, psycopg.DataError("too long"))):
        left.append(told)
        with pytest.raises(type(told)):
            database.retry_on_outage(step)()
    monkeypatch.setattr(database, "OUTAGE_MAX_S", 0.05)
    left += [OperationalError("", {}, busy)] * 1000
    with pytest.raises(OperationalError):
        database.retry_on_outage(step)()


def test_each_outage_has_its_own_time(monkeypatch: pytest.MonkeyPatch):
    """A watch of hours meets several."""
    monkeypatch.setattr(database, "OUTAGE_RETRY_S", 0.01)
    monkeypatch.setattr(database, "OUTAGE_MAX_S", 0.2)
    away = OperationalError("", {}, psycopg.OperationalError("connection refused"))
    left = [away, away, away]

    def step() -> str:
        time.sleep(0.3)
        if left:
            raise left.pop()
        return "done"

    assert database.retry_on_outage(step)() == "done"
