"""The daily sweep: what is past its time goes, what is in use stays, and what no row names is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api.privacy import retention
from api.privacy.erasure import DeletionPlan, Erasure, WorkInProgress, erase_models
from api.privacy.retention import DAY_MS, Retention
from api.records.tables import (
    Export,
    Generation,
    IdempotencyKey,
    LoginSession,
    Model,
    Photo,
    Run,
    SigningKey,
    Subject,
    Tombstone,
    User,
    new_id,
    now_ms,
)
from api.settings import ApiSettings, RetentionPeriods
from photoflux.tracking import ChooseVersions
from tests.api.people import Person, Site, is_problem
from tests.api.routes.test_generations import ask, finish


@pytest.fixture
def taken() -> list[str]:
    """What was asked of the engine, the registry and the orchestrator."""
    return []


@pytest.fixture
def sweep(site: Site, tmp_path: Path, taken: list[str]) -> Callable[..., dict[str, int]]:
    service = site.service

    def note(kind: str) -> Callable[..., Any]:
        return lambda name, *_: taken.append(f"{kind} {name}")

    erasure = Erasure(
        service.records,
        service.objects,
        service.keyring,
        service.audit_log,
        note("forget"),
        note("unregister"),
        note("discard"),
        tmp_path / "cache",
    )
    left, forgotten = list[DeletionPlan](), list[int]()

    def perform(**periods: int) -> dict[str, int]:
        kept = RetentionPeriods(**periods)
        swept = Retention(
            service.records,
            service.objects,
            service.audit_log,
            service.tokens,
            kept,
            note("discard"),
            lambda _, gone: left.append(gone),
            forgotten.append,
            service.heads,
        ).perform()
        while left:
            erasure.remove(left.pop())
        return swept

    return perform


def age(person: Person, kind: Any, row_id: str, *, days: int, column: str = "created_ms") -> None:
    """Have a row be that old."""
    with person.site.service.records.writing() as session:
        setattr(session.get_one(kind, row_id), column, now_ms() - days * DAY_MS - 1000)


def age_subject(person: Person, subject: str, *, days: int) -> None:
    with person.site.service.records.writing() as session:
        session.get_one(Subject, subject).created_ms = now_ms() - days * DAY_MS - 1000
        for kind in (Photo, Run, Generation, Model):
            session.flush()
            for row in session.query(kind).filter(kind.subject_id == subject):
                row.created_ms = now_ms() - days * DAY_MS - 1000


def test_nothing_of_today_goes(site: Site, ada: Person, sweep: Callable[..., dict[str, int]]):
    subject = ada.subject_with_photos(5)
    result = ask(ada, ada.subject_with_model())["id"]
    finish(site, ada, result)
    sweep(photos=1, models=1, images=1, runs=1)
    assert ada.get(f"/api/subjects/{subject}").json()["photos"] == 5
    assert len(ada.get(f"/api/results/{result}").json()["images"]) == 1
    assert ada.get(f"/api/media/images/{result}.0").status_code == 200


def test_photos_go_after_their_time_and_the_subject_stays(
    site: Site, ada: Person, sweep: Callable[..., dict[str, int]]
):
    old, used = ada.subject_with_photos(5), ada.subject_with_photos(5)
    age_subject(ada, old, days=31)
    age_subject(ada, used, days=31)
    run = ada.post("/api/runs", json={"subject": used}).json()["id"]
    photo = ada.get(f"/api/subjects/{old}/photos").json()["photos"][0]["id"]
    assert sweep(photos=30)["photos"] == 5
    assert ada.get(f"/api/subjects/{old}").json()["photos"] == 0
    assert ada.get(f"/api/subjects/{used}").json()["photos"] == 5
    assert photo not in site.objects.ids(ada.id, "photo")
    assert ada.row(Run, run) is not None


def test_a_model_that_is_not_drawn_with_goes_everywhere(
    site: Site, ada: Person, sweep: Callable[..., dict[str, int]], taken: list[str]
):
    idle, used = ada.subject_with_model(), ada.subject_with_model()
    run = ada.get("/api/models", params={"subject": idle}).json()["items"][0]["run"]
    age_subject(ada, idle, days=91)
    age_subject(ada, used, days=91)
    ask(ada, used)
    assert sweep(models=90)["models"] == 1
    assert ada.get(f"/api/subjects/{idle}").json()["champion"] is None
    assert ada.get(f"/api/subjects/{used}").json()["champion"] is not None
    assert {f"forget {ada.id}", f"unregister {idle}", f"discard {run}"} <= set(taken)
    assert len(site.objects.ids(ada.id, "adapter")) == 1


def test_a_removal_that_was_put_off_leaves_what_was_trained_since(site: Site, ada: Person, tmp_path: Path):
    """The registry was away for a while: the subject has a newer model by then, or one is being made."""
    service, there, gone = site.service, {1, 2}, list[int]()
    subject = ada.subject_with_model()

    def unregister(name: str, doomed: ChooseVersions) -> None:
        assert name == subject
        gone.extend(sorted(doomed(sorted(there))))

    erasure = Erasure(
        service.records,
        service.objects,
        service.keyring,
        service.audit_log,
        lambda _: None,
        unregister,
        lambda _: None,
        tmp_path / "cache",
    )
    with service.records.writing() as session:
        row = session.get_one(Subject, subject, with_for_update=True)
        left = erase_models(session, row, service.audit_log, "withdrawn")
        run = new_id()
        session.add(
            Run(
                id=run,
                user_id=ada.id,
                subject_id=subject,
                state="queued",
                params={},
                orchestrator="local",
                estimate={},
                steps=[],
            )
        )
    with pytest.raises(WorkInProgress):
        erasure.remove(left)
    with service.records.writing() as session:
        session.get_one(Run, run).state = "succeeded"
        session.add(
            Model(
                user_id=ada.id,
                subject_id=subject,
                run_id=run,
                number=1,
                registry_name=subject,
                registry_version="2",
                adapter_sha256="0" * 64,
                verdict="PASS",
                metrics={},
            )
        )
    (work,) = (erasure.cache_dir / "finetune" / ada.id / trained for trained in left.runs)
    work.mkdir(parents=True)
    erasure.remove(left)
    assert gone == [1]
    assert not work.exists(), "what a training that was killed left is learnt of the subject, too"
    with service.records.writing() as session:
        session.get_one(User, ada.id).state = "erasing"
    erasure.remove(DeletionPlan(ada.id, runs=[run], registered=[subject]))
    assert gone == [1, 1, 2], "of a closed account all go, whose rows are there until the end"
    with service.records.writing() as session:
        session.get_one(User, ada.id).state = "active"
    ada.ask("DELETE", f"/api/subjects/{subject}")
    erasure.remove(left)
    assert gone == [1, 1, 2, 1, 2]


def test_zero_days_keep_things(ada: Person, sweep: Callable[..., dict[str, int]]):
    subject = ada.subject_with_model()
    age_subject(ada, subject, days=4000)
    sweep(models=0, photos=0, images=0, runs=0)
    assert ada.get(f"/api/subjects/{subject}").json()["champion"] is not None


def test_pictures_exports_and_leftover_rows_go(site: Site, ada: Person, sweep: Callable[..., dict[str, int]]):
    result = ask(ada, ada.subject_with_model())["id"]
    finish(site, ada, result)
    age(ada, Generation, result, days=31)
    export, login_session, receipt = new_id(), new_id(), new_id()
    with site.service.records.writing() as session:
        session.add(
            Export(id=export, user_id=ada.id, state="succeeded", expires_ms=now_ms() - 1, object_id=f"{export}.1")
        )
        session.add(LoginSession(id=login_session, user_id=ada.id, expires_ms=now_ms() - 1))
        session.add(
            IdempotencyKey(user_id=ada.id, key_digest="k", request_digest="r", created_ms=now_ms() - 2 * DAY_MS)
        )
        session.add(Tombstone(receipt=receipt, login="x", user_id="y", erased_ms=0, done_ms=1))
    site.objects.put(ada.id, "export", f"{export}.1", b"zip")
    swept = sweep(images=30)
    assert (swept["images"], swept["exports"]) == (1, 1)
    is_problem(ada.get(f"/api/results/{result}"), 404, "not-found")
    assert site.objects.ids(ada.id, "image") == site.objects.ids(ada.id, "export") == []
    with site.service.records.reading() as session:
        assert session.get(LoginSession, login_session) is None
        assert session.get(Tombstone, receipt) is None
        assert session.get(IdempotencyKey, (ada.id, "k")) is None


def test_pipelines_files_go_once_a_run_has_long_ended(
    ada: Person, sweep: Callable[..., dict[str, int]], taken: list[str]
):
    ada.subject_with_model()
    run = ada.get("/api/models").json()["items"][0]["run"]
    with ada.site.service.records.writing() as session:
        row = session.get_one(Run, run)
        row.remote_id, row.finished_ms = "x", now_ms() - 8 * DAY_MS
    assert sweep(runs=7)["runs"] == 1
    assert f"discard {run}" in taken
    taken.clear()
    assert "runs" not in sweep(runs=7)
    assert taken == []


def test_what_a_killed_process_left_is_found_after_a_day(
    site: Site, ada: Person, sweep: Callable[..., dict[str, int]], monkeypatch: pytest.MonkeyPatch
):
    subject = ada.subject_with_photos(5)
    ada.post("/api/runs", json={"subject": subject})
    result = ask(ada, ada.subject_with_model())["id"]
    finish(site, ada, result)
    named = sorted(site.objects.store.list())
    lost = {
        "photo": new_id(),
        "thumbnail": new_id(),
        "adapter": new_id(),
        "set": new_id(),
        "report": f"{new_id()}.gate",
        "image": f"{result}.0.{new_id()}",
        "export": new_id(),
    }
    for kind, object_id in lost.items():
        site.objects.put(ada.id, kind, object_id, b"left behind")
    assert "objects" not in sweep()
    monkeypatch.setattr(retention, "ORPHAN_AGE_S", -1.0)
    assert sweep()["objects"] == len(lost)
    assert sorted(site.objects.store.list()) == named


def test_tokens_are_signed_with_a_new_key_after_a_month(site: Site, ada: Person, sweep: Callable[..., dict[str, int]]):
    assert "signing keys" not in sweep()
    with site.service.records.writing() as session:
        for row in session.query(SigningKey):
            row.created_ms -= 31 * DAY_MS
    before = {key["kid"] for key in site.client.get("/api/auth/jwks").json()["keys"]}
    assert sweep()["signing keys"] == 1
    after = {key["kid"] for key in site.client.get("/api/auth/jwks").json()["keys"]}
    assert len(after - before) == 1
    assert ada.get("/api/auth/me").status_code == 200, "tokens of the key before stay good"


def test_keysets_of_the_erased_go_and_others_stay(site: Site, ada: Person, sweep: Callable[..., dict[str, int]]):
    gone, unknown = new_id(), new_id()
    for owner in (gone, unknown):
        site.service.keyring.create(owner)
    with site.service.records.writing() as session:
        session.add(Tombstone(receipt=new_id(), login="z", user_id=gone, erased_ms=now_ms()))
    ada.subject(name="Rex")
    sweep()
    assert site.service.keyring.versions(gone) == []
    assert site.service.keyring.versions(unknown) != [], "a keyset without a row is not ours to judge"
    assert site.service.keyring.versions(ada.id) != []


def test_withdrawn_likeness_ends_work_and_deletes_models_of_people(site: Site, ada: Person):
    thing = ada.subject_with_model()
    person = ada.subject_with_model()
    with site.service.records.writing() as session:
        session.get_one(Subject, person).depicts = "me"
    waiting, other = ask(ada, person)["id"], ask(ada, thing)["id"]
    assert ada.ask("DELETE", "/api/consents/likeness").status_code == 204
    assert ada.get(f"/api/subjects/{person}").json()["champion"] is None
    shown = ada.get(f"/api/results/{waiting}").json()
    withdrawn = {"code": "cancelled", "message": "the consent that it needs was withdrawn"}
    assert (shown["state"], shown["error"]) == ("cancelled", withdrawn)
    assert ada.get(f"/api/results/{other}").json()["state"] == "queued"
    assert ada.get(f"/api/subjects/{thing}").json()["champion"] is not None
    is_problem(ada.post("/api/generate", json={"subject": person, "prompt": "x"}), 403, "consent-required")


def test_withdrawn_terms_end_all_work_and_keep_what_is_there(ada: Person):
    subject = ada.subject_with_model()
    waiting = ask(ada, subject)["id"]
    run = ada.post("/api/runs", json={"subject": ada.subject_with_photos(5)}).json()["id"]
    assert ada.ask("DELETE", "/api/consents/terms").status_code == 204
    assert ada.get(f"/api/results/{waiting}").json()["state"] == "cancelled"
    assert ada.get(f"/api/runs/{run}").json()["state"] == "cancelled"
    assert ada.get(f"/api/subjects/{subject}").json()["champion"] is not None


def test_the_settings_say_how_long(monkeypatch: pytest.MonkeyPatch):
    assert ApiSettings().retention == RetentionPeriods()
    monkeypatch.setenv("PHOTOFLUX_RETENTION", '{"photos": 7}')
    assert ApiSettings().retention.photos == 7
    monkeypatch.setenv("PHOTOFLUX_RETENTION", '{"photos": -1}')
    with pytest.raises(ValueError, match="photos"):
        ApiSettings()
