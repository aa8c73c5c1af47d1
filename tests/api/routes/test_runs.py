"""Runs over HTTP: what is accepted, what stands against it, and what is told of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import select, text

from api.records.tables import Run, Usage, now_ms
from photoflux.photos.sets import fetch_set
from tests.api.people import Person, Site, is_problem


@pytest.fixture
def subject(ada: Person) -> str:
    return ada.subject_with_photos(5)


def begin(person: Person, subject: str, **more: Any) -> dict[str, Any]:
    answer = person.post("/api/runs", json={"subject": subject, **more})
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def queued_job(site: Site, row_id: str) -> dict[str, Any] | None:
    """What the durable queue knows of a row."""
    schema = "dbos." if site.service.records.engine.dialect.name == "postgresql" else ""
    query = text(
        "select s.name, s.queue_name, s.status, s.priority, s.queue_partition_key, s.delay_until_epoch_ms, i.inputs "
        f"from {schema}workflow_status s left join {schema}workflow_input i on i.workflow_uuid = s.workflow_uuid "
        "where s.workflow_uuid = :id"
    )
    with site.service.records.reading() as session:
        row = session.execute(query, {"id": row_id}).mappings().first()
    return dict(row) if row else None


def test_a_run_is_recorded_and_put_in_line_with_ids_alone(site: Site, ada: Person, subject: str):
    run = begin(ada, subject, params={"finetune_steps": 60})
    assert (run["state"], run["steps"], run["model"]) == ("queued", [], None)
    assert run["estimate"]["seconds"] > 0
    queued = queued_job(site, run["id"])
    assert queued is not None
    assert (queued["name"], queued["queue_name"], queued["status"]) == ("run_finetuning", "runs", "ENQUEUED")
    assert json.loads(queued["inputs"]) == {"args": [run["id"]], "kwargs": {}}
    row = ada.row(Run, run["id"])
    assert row.params["finetune_steps"] == 60
    assert row.params["import_photos_consent"] == "own"
    assert "key" not in row.params
    assert [one["id"] for one in ada.get("/api/runs", params={"subject": subject}).json()["items"]] == [run["id"]]


def test_it_trains_on_the_photos_of_the_moment(site: Site, ada: Person, subject: str, tmp_path):
    run = begin(ada, subject)
    photos = ada.get(f"/api/subjects/{subject}/photos").json()["photos"]
    count = fetch_set(f"blob:{run['id']}", key=f"vault://{ada.id}", into=tmp_path, objects=site.objects)
    kept = [site.objects.get(ada.id, "photo", photo["id"]) for photo in photos]
    assert count == 5
    assert sorted(file.read_bytes() for file in tmp_path.iterdir()) == sorted(kept)
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"photo-{n:02}.jpg" for n in range(1, 6)]


def test_one_at_a_time_for_a_subject(ada: Person, subject: str):
    run = begin(ada, subject)
    is_problem(ada.post("/api/runs", json={"subject": subject}), 409, "run-active")
    cancelled = ada.post(f"/api/runs/{run['id']}/cancel")
    assert cancelled.status_code == 202


def test_the_same_key_starts_one_run(site: Site, ada: Person, subject: str):
    answers = [ada.post("/api/runs", json={"subject": subject}, headers={"Idempotency-Key": "a"}) for _ in range(3)]
    assert len({answer.json()["id"] for answer in answers}) == 1
    other = ada.post(
        "/api/runs", json={"subject": subject, "params": {"finetune_steps": 9}}, headers={"Idempotency-Key": "a"}
    )
    is_problem(other, 422, "idempotency-mismatch")


@pytest.mark.parametrize(
    "params",
    [
        {"gate_identity_gain_min": 0.0}, {"import_photos_source": "/etc"}, {"key": "vault://somebody"},
        {"finetune_steps": 0}, {"finetune_steps": 10**30}, {"finetune_steps": "many"}, {"finetune_lr": 1e9},
        {"evaluate_profile": "none"}, {"finetune_base": "/tmp/evil.yaml"},
    ],
)  # fmt: skip
def test_no_parameter_that_reads_a_path_loosens_the_gate_or_is_out_of_range(
    ada: Person, subject: str, params: dict[str, Any]
):
    is_problem(ada.post("/api/runs", json={"subject": subject, "params": params}), 422, "invalid")


def test_photos_that_cannot_be_trained_on_stand_against_it(ada: Person):
    subject = ada.subject_with_photos(2)
    said = is_problem(ada.post("/api/runs", json={"subject": subject}), 409, "photos-unfit")
    assert "Add" in said["detail"]


def test_a_person_may_start_so_many_a_day(site: Site, ada: Person, subject: str):
    with site.service.records.writing() as session:
        for _ in range(site.service.settings.runs_a_day):
            session.add(Usage(user_id=ada.id, kind="run"))
    answer = ada.post("/api/runs", json={"subject": subject})
    is_problem(answer, 429, "quota")
    assert int(answer.headers["retry-after"]) > 0


def test_a_second_run_of_one_person_waits_for_the_first_of_another(site: Site, ada: Person, bob: Person):
    mine = [begin(ada, ada.subject_with_photos(5))["id"] for _ in range(2)]
    theirs = begin(bob, bob.subject_with_photos(5))["id"]
    urgency = {row_id: (queued_job(site, row_id) or {})["priority"] for row_id in (*mine, theirs)}
    assert urgency[mine[0]] == urgency[theirs] < urgency[mine[1]]


def test_what_runs_is_watched_as_events(site: Site, ada: Person, subject: str):
    run = begin(ada, subject)
    with site.service.records.writing() as session:
        row = session.scalars(select(Run).where(Run.id == run["id"])).one()
        row.state, row.error_code, row.error, row.finished_ms = "failed", "refused", "the check said FAIL", now_ms()
    answer = ada.get(f"/api/runs/{run['id']}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "event: ended" in answer.text
    said = json.loads(answer.text.split("data: ", 1)[1].split("\n")[0])
    assert (said["state"], said["error"]) == ("failed", {"code": "refused", "message": "the check said FAIL"})


def test_somebody_elses_run_does_not_exist(ada: Person, bob: Person, subject: str):
    run = begin(ada, subject)["id"]
    for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/events")):
        is_problem(bob.ask(method, f"/api/runs/{run}{path}"), 404, "not-found")
    is_problem(bob.get(f"/api/media/reports/{run}/gate"), 404, "not-found")
    is_problem(ada.get(f"/api/media/reports/{run}/gate"), 404, "not-found")


def test_reports_are_pages_of_their_own(site: Site, ada: Person, subject: str):
    run = begin(ada, subject)["id"]
    site.objects.put(ada.id, "report", f"{run}.gate", b"<!doctype html><p>PASS")
    page = ada.get(f"/api/media/reports/{run}/gate")
    assert (page.text, page.headers["content-type"]) == ("<!doctype html><p>PASS", "text/html; charset=utf-8")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "script" not in page.headers["content-security-policy"]
    is_problem(ada.get(f"/api/media/reports/{run}/nonsense"), 422, "invalid")
