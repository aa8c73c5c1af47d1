"""What becomes of a run: followed, tried again, settled once, whatever the orchestrator does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from api.privacy.erasure import DeletionPlan, erase_models
from api.records.tables import AuditEntry, Generation, Model, Run, Subject
from api.training.finetuning import FinetuningRuns, estimate, pipeline_params
from photoflux.errors import InputError
from photoflux.manifest import digest
from photoflux.runs import Failure, State, StepRun
from photoflux.runs import Run as PipelineRun
from photoflux.steps import register
from photoflux.vault import committed
from pipelines.orchestrators import LOST, RunNotFound, RunRef
from tests.api.people import Person, Site, is_problem
from tests.steps.test_register import judged


@dataclass
class Scripted:
    """An orchestrator whose runs end as they are told to; the files of a run are real, and sealed."""

    folder: Path
    ends: list[Any] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)
    submitted: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    looks: int = 0
    poll_interval_s: float = 0.01

    def submit(self, params: Any, *, name: str = "") -> RunRef:
        self.params = dict(params)
        self.submitted.append(name)
        where = self.folder / name
        where.mkdir(parents=True, exist_ok=True)
        return RunRef(name, str(where))

    def find(self, name: str) -> RunRef:
        if not (self.folder / name).is_dir():
            raise RunNotFound(name)
        return RunRef(name, str(self.folder / name))

    def status(self, ref: RunRef) -> PipelineRun:
        self.looks += 1
        if ref.id in self.cancelled:
            return run_of(State.cancelled)
        end = self.ends[0] if len(self.ends) == 1 else self.ends.pop(0)
        return end(Path(ref.where), self.params) if callable(end) else end

    def cancel(self, ref: RunRef) -> None:
        self.cancelled.append(ref.id)

    def discard(self, name: str) -> None:
        self.discarded.append(name)

    def collect(self, ref: RunRef, into: Path) -> tuple[PipelineRun, Path]:
        return self.status(ref), Path(ref.where)


def run_of(state: State, *, error: Failure | None = None, **more: Any) -> PipelineRun:
    steps = tuple(
        StepRun(name, name.title(), state if state.ended else State.running)
        for name in ("finetune", "evaluate", "gate", "register")
    )
    return PipelineRun("p", "personalize", steps, more.pop("params", {}), state=state, error=error, **more)


def passed(folder: Path, params: dict[str, Any]) -> PipelineRun:
    """A run that registered its adapter."""
    key, name = params["key"], params["register_name"]
    documents = {
        "adapter.tar": "an adapter",
        "decision.json": json.dumps({"verdict": "PASS", "reasons": []}),
        "receipt.json": json.dumps({"name": name, "version": 3, "alias": "champion"}),
        "card.md": "# A dog",
    }
    for file, content in documents.items():
        with committed(folder / file, key=key) as unsealed:
            unsealed.write_text(content)
    (folder / "report.html").write_text("numbers alone")
    with committed(folder / "report-sealed.html", key=key) as unsealed:
        unsealed.write_text("<img> of a dog")
    run = run_of(
        State.succeeded,
        verdict="PASS",
        params={"key": key},
        artifacts={
            "finetune": {"adapter": "adapter.tar"},
            "gate": {"decision": "decision.json", "report": "report.html"},
            "register": {"receipt": "receipt.json", "card": "card.md"},
        },
    )
    return run.with_step(replace(run.step("evaluate"), metrics={"identity_gain": 0.8}))


def refused(folder: Path, params: dict[str, Any]) -> PipelineRun:
    """A run that its gate let nothing through of."""
    reasons = [{"verdict": "FAIL", "message": "class leakage is .9"}, {"verdict": "PASS", "message": "fine"}]
    with committed(folder / "decision.json", key=params["key"]) as unsealed:
        unsealed.write_text(json.dumps({"verdict": "FAIL", "reasons": reasons}))
    return run_of(
        State.succeeded,
        verdict="FAIL",
        params={"key": params["key"]},
        artifacts={"gate": {"decision": "decision.json"}},
    )


@pytest.fixture(autouse=True)
def own_state(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps seal with the keyring of the site."""
    monkeypatch.setenv("PHOTOFLUX_STATE_DIR", str(site.folder / "state"))


@pytest.fixture
def work(site: Site, tmp_path: Path) -> Callable[..., tuple[FinetuningRuns, Scripted, list[str]]]:
    def made(*ends: Any) -> tuple[FinetuningRuns, Scripted, list[str]]:
        orchestrator, drawn = Scripted(tmp_path, list(ends)), list[str]()
        service = site.service
        return (
            FinetuningRuns(
                service.records,
                service.objects,
                orchestrator,
                service.audit_log,
                enqueue_generation=lambda _, generation: drawn.append(generation.id),
            ),
            orchestrator,
            drawn,
        )

    return made


def why(person: Person, run: str, code: str) -> str:
    """What a person is told of a run that made no model, which must have that code."""
    failure = person.get(f"/api/runs/{run}").json()["error"]
    assert failure["code"] == code
    return str(failure["message"])


def begun(person: Person) -> tuple[str, str]:
    """Ids of a run and of a generation that waits for it."""
    answer = person.post("/api/generate", json={"subject": person.subject_with_photos(5), "prompt": "a dog"})
    return answer.json()["run"], answer.json()["id"]


def test_a_passed_run_makes_a_model_that_draws(site: Site, ada: Person, work):
    run, generation = begun(ada)
    tuning, orchestrator, drawn = work(run_of(State.running), passed)
    assert tuning.poll_pipeline(run, 1) == State.succeeded
    assert orchestrator.params["key"] == f"vault://{ada.id}/{run}"
    assert [step["name"] for step in ada.row(Run, run).steps] == ["finetune", "evaluate", "gate", "register"]
    assert tuning.record_outcome(run, 1, State.succeeded) == "succeeded"
    shown = ada.get(f"/api/runs/{run}").json()
    assert (shown["state"], shown["error"], shown["actual"]["verdict"]) == ("succeeded", None, "PASS")
    model = ada.get(f"/api/models/{shown['model']}").json()
    assert (model["champion"], model["number"], model["metrics"]) == (True, 1, {"identity_gain": 0.8})
    assert site.objects.get(ada.id, "adapter", model["id"]) == b"an adapter"
    assert drawn == [generation]
    assert ada.row(Generation, generation).model_id == model["id"]
    assert ada.get(f"/api/media/reports/{run}/gate").text == "<img> of a dog"
    card = ada.get(model["card"])
    assert (card.text, card.headers["content-type"]) == ("# A dog", "text/markdown; charset=utf-8")


def made_by(other: str, person: Person, name: str) -> Callable[[Path, dict[str, Any]], PipelineRun]:
    """A run that passed, one artifact of which was exchanged for that of another run of the same person."""

    def exchanged(folder: Path, params: dict[str, Any]) -> PipelineRun:
        theirs = folder.with_name("theirs")
        theirs.mkdir(exist_ok=True)
        passed(theirs, {**params, "key": pipeline_params(person.row(Run, other))["key"]})
        run = passed(folder, params)
        shutil.copy(theirs / name, folder / name)
        return run

    return exchanged


@pytest.mark.parametrize(
    "name",
    [
        "adapter.tar",
        "receipt.json",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("card.md", "report-sealed.html")),
    ],
)
def test_nothing_is_made_of_what_another_run_of_the_same_person_left(site: Site, ada: Person, work, name: str):
    run, _ = begun(ada)
    other, _ = begun(ada)
    tuning, _, drawn = work(made_by(other, ada, name))
    assert tuning.record_outcome(run, 1, tuning.poll_pipeline(run, 1)) == "failed"
    assert "altered or exchanged" in why(ada, run, "internal")
    assert site.objects.ids(ada.id, "adapter") == drawn == []
    assert ada.row(Subject, ada.row(Run, run).subject_id).champion_id is None


def test_a_record_that_names_another_runs_key_is_not_believed(ada: Person, work):
    """Or whoever can exchange a run's files and its record had made another run's model of it."""
    run, _ = begun(ada)
    other, _ = begun(ada)
    theirs = pipeline_params(ada.row(Run, other))["key"]
    tuning, *_ = work(lambda folder, params: passed(folder, {**params, "key": theirs}))
    assert tuning.record_outcome(run, 1, tuning.poll_pipeline(run, 1)) == "failed"
    assert "altered or exchanged" in why(ada, run, "internal")


def test_a_run_that_began_before_runs_had_keys_is_settled_with_its_owners(site: Site, ada: Person, work):
    run, _ = begun(ada)
    tuning, *_ = work(lambda folder, params: passed(folder, {**params, "key": f"vault://{ada.id}"}))
    assert tuning.record_outcome(run, 1, tuning.poll_pipeline(run, 1)) == "succeeded"
    (model,) = site.objects.ids(ada.id, "adapter")
    assert site.objects.get(ada.id, "adapter", model) == b"an adapter"


def test_a_run_that_takes_too_long_is_ended_and_says_so(ada: Person, work):
    run, generation = begun(ada)
    tuning, orchestrator, _ = work(run_of(State.running))
    hasty = replace(tuning, limit_s=0.05)
    assert hasty.poll_pipeline(run, 1) == State.failed
    assert orchestrator.cancelled
    assert hasty.record_outcome(run, 1, State.failed) == "failed"
    assert "took longer than" in why(ada, run, "too-long")
    assert ada.row(Generation, generation).state == "failed"


def test_the_true_cost_is_told(site: Site, ada: Person, work):
    run, _ = begun(ada)
    tuning, *_ = work(passed)
    dear = replace(tuning, price_per_hour=3600.0)
    dear.poll_pipeline(run, 1)
    dear.record_outcome(run, 1, State.succeeded)
    actual = ada.get(f"/api/runs/{run}").json()["actual"]
    assert actual["cost"] == pytest.approx(actual["seconds"], abs=0.06)


def test_what_is_settled_stays_settled(site: Site, ada: Person, work):
    run, _ = begun(ada)
    tuning, _, drawn = work(passed)
    for _ in range(3):
        tuning.poll_pipeline(run, 1)
        assert tuning.record_outcome(run, 1, State.succeeded) == "succeeded"
    assert tuning.record_outcome(run, 1, State.failed) == "succeeded"
    with site.service.records.reading() as session:
        assert len(list(session.scalars(select(Model).where(Model.run_id == run)))) == 1
    assert len(drawn) == 1


def test_a_kill_between_publishing_and_recording_is_made_good(site: Site, ada: Person, work, monkeypatch):
    run, _ = begun(ada)
    tuning, _, _ = work(passed)
    tuning.poll_pipeline(run, 1)

    def killed(*_: Any, **__: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(FinetuningRuns, "_add_model", killed)
        tuning.record_outcome(run, 1, State.succeeded)
    assert len(site.objects.ids(ada.id, "adapter")) == 1
    assert tuning.record_outcome(run, 1, State.succeeded) == "succeeded"
    assert len(site.objects.ids(ada.id, "adapter")) == 1


def test_a_second_model_takes_over_and_is_numbered_on(site: Site, ada: Person, work):
    run, _ = begun(ada)
    tuning, _, _ = work(passed)
    tuning.record_outcome(run, 1, tuning.poll_pipeline(run, 1))
    subject = ada.row(Run, run).subject_id
    again = ada.post("/api/runs", json={"subject": subject}).json()["id"]
    tuning.record_outcome(again, 1, tuning.poll_pipeline(again, 1))
    models = ada.get("/api/models", params={"subject": subject}).json()["items"]
    assert [(model["number"], model["champion"]) for model in models] == [(2, True), (1, False)]
    with site.service.records.reading() as session:
        expected = estimate(session, ada.row(Run, run).params, price_per_hour=36.0)
    assert expected["measured_runs"] >= 2


def test_what_the_gate_refuses_is_said_and_nothing_is_drawn(ada: Person, work):
    run, generation = begun(ada)
    tuning, _, drawn = work(refused)
    assert tuning.record_outcome(run, 1, tuning.poll_pipeline(run, 1)) == "failed"
    assert "class leakage is .9" in why(ada, run, "refused")
    shown = ada.get(f"/api/results/{generation}").json()
    assert (shown["state"], drawn) == ("failed", [])
    assert shown["error"]["code"] == "no-model"
    assert "class leakage" in shown["error"]["message"]


def test_a_failed_step_is_told_in_its_own_words(ada: Person, work):
    run, _ = begun(ada)
    tuning, _, _ = work(run_of(State.failed, error=Failure("validate", "05.jpg: blurry", "InputError")))
    assert tuning.poll_pipeline(run, 1) == State.failed
    assert tuning.record_outcome(run, 1, State.failed) == "failed"
    assert why(ada, run, "failed") == "05.jpg: blurry"


@pytest.mark.parametrize("kind", [LOST, "SIGKILL"])
def test_a_killed_pipeline_is_lost_and_not_failed(ada: Person, work, kind: str):
    run, _ = begun(ada)
    tuning, _, _ = work(run_of(State.failed, error=Failure("finetune", "was killed", kind)))
    assert tuning.poll_pipeline(run, 1) == LOST
    assert ada.get(f"/api/runs/{run}").json()["state"] == "running"
    assert tuning.record_outcome(run, 3, LOST) == "failed"
    assert "killed again and again" in why(ada, run, "killed")


def test_cancelling_ends_the_pipeline_and_what_waits(ada: Person, work):
    run, generation = begun(ada)
    tuning, orchestrator, _ = work(run_of(State.running))
    assert ada.post(f"/api/runs/{run}/cancel").json()["state"] == "cancelled"  # it had not begun
    assert tuning.poll_pipeline(run, 1) == State.cancelled
    assert orchestrator.submitted == []
    assert tuning.record_outcome(run, 1, State.cancelled) == "cancelled"
    assert ada.get(f"/api/results/{generation}").json()["state"] == "cancelled"


def test_a_running_pipeline_is_cancelled(ada: Person, work):
    run, _ = begun(ada)

    def cancelled_now(*_: Any) -> PipelineRun:
        ada.post(f"/api/runs/{run}/cancel")
        return run_of(State.running)

    tuning, orchestrator, _ = work(cancelled_now)
    assert tuning.poll_pipeline(run, 1) == State.cancelled
    assert orchestrator.cancelled == [f"{run}-1"]


def test_deleting_the_subject_ends_its_run(ada: Person, work):
    run, _ = begun(ada)
    subject = ada.row(Run, run).subject_id

    def deleted_now(*_: Any) -> PipelineRun:
        ada.ask("DELETE", f"/api/subjects/{subject}")
        return run_of(State.running)

    tuning, orchestrator, _ = work(deleted_now)
    assert tuning.poll_pipeline(run, 1) == State.cancelled
    assert orchestrator.cancelled == [f"{run}-1"]
    assert tuning.record_outcome(run, 1, State.cancelled) == State.cancelled
    assert ada.row(Subject, subject) is None


def test_a_run_that_is_given_up_is_told_of_and_discarded_in_one_transaction(site: Site, ada: Person, work):
    """What makes it end elsewhere is enqueued with the verdict, or neither is there."""
    run, generation = begun(ada)
    tuning, _, _ = work(run_of(State.running))

    def put(session: Session, row: Run) -> None:
        site.service.queue.enqueue_deletion(session, DeletionPlan(row.user_id, runs=[row.id]))

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        replace(tuning, discard=fail).mark_failed(run, "internal", "it could not be followed")
    assert ada.row(Run, run).state == "queued"
    put_before = removals(site)
    assert replace(tuning, discard=put).mark_failed(run, "internal", "it could not be followed") == "failed"
    assert removals(site) == put_before + 1
    assert why(ada, run, "internal") == "it could not be followed"
    assert ada.row(Generation, generation).state == "failed"
    # it is over: nothing to be ended
    assert replace(tuning, discard=fail).mark_failed(run, "internal", "again") == "failed"


def removals(site: Site) -> int:
    """How many deletions were ever enqueued."""
    with site.service.records.engine.connect() as connection:
        table = "dbos.workflow_status" if connection.dialect.name == "postgresql" else "workflow_status"
        return int(connection.scalar(text(f"SELECT count(*) FROM {table} WHERE name = 'delete_subject'")))


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("how", ["deleted", "withdrawn"])
def test_a_pipeline_that_appears_after_its_subject_was_deleted_is_deleted_too(
    site: Site, ada: Person, work, monkeypatch: pytest.MonkeyPatch, killed: bool, how: str
):
    """Whoever deleted what is its subject's looked for pipelines before this one was there; its worker may be killed in between."""
    run, _ = begun(ada)
    subject = ada.row(Run, run).subject_id
    tuning, orchestrator, _ = work(run_of(State.running))
    submit = orchestrator.submit

    def slow(*args: Any, **more: Any) -> RunRef:
        if how == "deleted":
            ada.ask("DELETE", f"/api/subjects/{subject}")
        else:
            with site.service.records.writing() as session:
                row = session.get_one(Subject, subject, with_for_update=True)
                erase_models(session, row, site.service.audit_log, "withdrawn")
        ref = submit(*args, **more)
        if killed:
            raise KeyboardInterrupt
        return ref

    monkeypatch.setattr(orchestrator, "submit", slow)
    if killed:
        with pytest.raises(KeyboardInterrupt):
            tuning.poll_pipeline(run, 1)
    assert tuning.poll_pipeline(run, 1) == State.cancelled
    assert orchestrator.discarded == [run]
    assert orchestrator.submitted == [f"{run}-1"]


def test_parameters_that_the_pipeline_refuses_fail_the_run(ada: Person, work, monkeypatch):
    run, _ = begun(ada)
    tuning, orchestrator, _ = work(passed)

    def refuse(*_: Any, **__: Any) -> RunRef:
        raise InputError("finetune.rank is 0")

    monkeypatch.setattr(orchestrator, "submit", refuse)
    assert tuning.poll_pipeline(run, 1) == State.failed
    assert why(ada, run, "not-started") == "finetune.rank is 0"


def test_the_published_adapter_is_the_plaintexts_digest(site: Site, ada: Person, work, tmp_path: Path):
    run, _ = begun(ada)
    tuning, _, _ = work(passed)
    tuning.record_outcome(run, 1, tuning.poll_pipeline(run, 1))
    (tmp_path / "unsealed").write_bytes(b"an adapter")
    with site.service.records.reading() as session:
        model = session.scalars(select(Model).where(Model.run_id == run)).one()
    assert model.adapter_sha256 == digest(tmp_path / "unsealed")


SIGNS = {"reason": "I looked at all pictures", "findings": ["bias audit"]}


def no_better(folder: Path, params: dict[str, Any]) -> PipelineRun:
    """A run whose model is registered, but not as champion."""
    run = passed(folder, params)
    with committed(folder / "receipt.json", key=params["key"]) as unsealed:
        unsealed.write_text(json.dumps({"name": params["register_name"], "version": 4, "alias": "challenger"}))
    return run


def test_a_model_that_is_no_better_is_kept_and_does_not_draw(site: Site, ada: Person, work):
    first, _ = begun(ada)
    tuning, *_ = work(passed, no_better)
    tuning.record_outcome(first, 1, tuning.poll_pipeline(first, 1))
    second = ada.post("/api/runs", json={"subject": ada.row(Run, first).subject_id}).json()["id"]
    tuning.record_outcome(second, 1, tuning.poll_pipeline(second, 1))
    drawn = {run: ada.get(f"/api/runs/{run}").json()["model"] for run in (first, second)}
    champions = {run: ada.get(f"/api/models/{model}").json()["champion"] for run, model in drawn.items()}
    assert champions == {first: True, second: False}


def left_open(folder: Path, params: dict[str, Any]) -> PipelineRun:
    """A run whose audit could not tell, with the documents that the real steps write."""
    key, made = params["key"], folder.parent / f"{folder.name}-judged"
    judged(made, audit="INCONCLUSIVE", severity="inconclusive")
    documents = {
        "finetune": "adapter.tar",
        "gate": "decision.json",
        "evaluate": "evaluation.json",
        "audit": "audit.json",
    }
    names = {"finetune": "adapter", "gate": "decision", "evaluate": "evaluation", "audit": "audit"}
    for file in documents.values():
        with committed(folder / file, key=key) as unsealed:
            unsealed.write_bytes((made / file).read_bytes())
    shutil.rmtree(made)
    artifacts = {step: {names[step]: file} for step, file in documents.items()}
    return run_of(State.succeeded, verdict="INCONCLUSIVE", params={"key": key}, artifacts=artifacts)


def waiting_for_an_answer(site: Site, ada: Person, work) -> tuple[str, FinetuningRuns]:
    run, _ = begun(ada)
    tuning, *_ = work(left_open)
    tuning.poll_pipeline(run, 1)
    assert tuning.record_outcome(run, 1, State.succeeded) == "failed"
    return run, tuning


def test_an_operator_signs_for_what_the_check_left_open(site: Site, ada: Person, work):
    run, tuning = waiting_for_an_answer(site, ada, work)
    operator = site.person(role="operator")
    listed = {one["run"]: one for one in operator.get("/api/sign-offs?limit=100").json()["items"]}
    assert "INCONCLUSIVE" in listed[run]["reasons"]
    assert listed[run]["findings"] == ["bias audit"]
    for wrong in (
        {"reason": "fine"},
        {"findings": []},
        {"findings": ["class leakage"]},
        {"findings": ["bias audit"] * 2},
    ):
        is_problem(operator.post(f"/api/sign-offs/{run}", json=SIGNS | wrong), 422, "invalid")
    answer = operator.post(f"/api/sign-offs/{run}", json=SIGNS)
    assert (answer.status_code, answer.json()["signed"]) == (202, True)
    assert run not in {one["run"] for one in operator.get("/api/sign-offs?limit=100").json()["items"]}
    assert b"looked" not in ada.row(Run, run).sign_off_reason

    assert tuning.register_signed(run) == "succeeded"
    assert tuning.register_signed(run) == "succeeded"
    shown = ada.get(f"/api/runs/{run}").json()
    assert (shown["state"], shown["error"]) == ("succeeded", None)
    model = ada.get(f"/api/models/{shown['model']}").json()
    assert model["champion"]
    card = ada.get(model["card"]).text
    assert site.service.audit_log.pseudonym(operator.id) in card
    assert "I looked at all pictures" in card
    with site.service.records.reading() as session:
        assert "run.signed-off" in session.scalars(select(AuditEntry.action).where(AuditEntry.object == run)).all()


def test_nobody_signs_for_what_was_refused_or_is_gone(site: Site, ada: Person, work):
    run, _ = begun(ada)
    tuning, *_ = work(refused)
    tuning.poll_pipeline(run, 1)
    tuning.record_outcome(run, 1, State.succeeded)
    operator, why = site.person(role="operator"), SIGNS
    is_problem(operator.post(f"/api/sign-offs/{run}", json=why), 404, "not-found")
    assert tuning.register_signed(run) == "failed"
    left, tuning = waiting_for_an_answer(site, ada, work)
    with site.service.records.writing() as session:
        session.get_one(Run, left).remote_id = None
    is_problem(operator.post(f"/api/sign-offs/{left}", json=why), 409, "too-late")


def test_a_withdrawn_consent_takes_the_question_away(site: Site, ada: Person, work):
    run, tuning = waiting_for_an_answer(site, ada, work)
    operator, why = site.person(role="operator"), SIGNS
    operator.post(f"/api/sign-offs/{run}", json=why)
    with site.service.records.writing() as session:
        subject = session.get_one(Subject, session.get_one(Run, run).subject_id)
        erase_models(session, subject, site.service.audit_log, "withdrawn")
    assert tuning.register_signed(run) == "failed"
    is_problem(operator.post(f"/api/sign-offs/{run}", json=why), 404, "not-found")
    assert ada.get("/api/models").json()["items"] == []


def test_a_consent_withdrawn_while_a_model_is_registered_takes_that_version_back(
    site: Site, ada: Person, work, monkeypatch: pytest.MonkeyPatch
):
    run, tuning = waiting_for_an_answer(site, ada, work)
    site.person(role="operator").post(f"/api/sign-offs/{run}", json=SIGNS)
    subject, really, taken = ada.row(Run, run).subject_id, register.run, list[Any]()

    def slow(*args: Any, **more: Any) -> Any:
        made = really(*args, **more)
        with site.service.records.writing() as session:
            erase_models(session, session.get_one(Subject, subject), site.service.audit_log, "withdrawn")
        return made

    monkeypatch.setattr("photoflux.steps.register.run", slow)
    tuning = replace(tuning, unregister=lambda name, doomed: taken.append((name, doomed([1, 2]))))
    assert tuning.register_signed(run) == State.cancelled
    assert taken == [(subject, {1})]
    assert ada.get("/api/models").json()["items"] == []


def test_what_could_not_be_registered_is_open_again(site: Site, ada: Person, work, monkeypatch: pytest.MonkeyPatch):
    run, tuning = waiting_for_an_answer(site, ada, work)
    operator, why = site.person(role="operator"), SIGNS
    operator.post(f"/api/sign-offs/{run}", json=why)

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr("photoflux.steps.register.run", away)
    with pytest.raises(ConnectionError):
        tuning.register_signed(run)
    assert tuning.reopen_sign_off(run) == "failed"
    monkeypatch.undo()
    monkeypatch.setenv("PHOTOFLUX_STATE_DIR", str(site.folder / "state"))
    assert operator.post(f"/api/sign-offs/{run}", json=why).json()["signed"]
    assert tuning.register_signed(run) == "succeeded"


def test_a_pipeline_that_was_deleted_is_not_begun_anew_to_be_settled(site: Site, ada: Person, work):
    """It had ended, its worker was killed, and the consent was withdrawn before another worker took it up."""
    run, _ = begun(ada)
    tuning, orchestrator, _ = work(passed)
    assert tuning.poll_pipeline(run, 1) == State.succeeded
    with site.service.records.writing() as session:
        subject = session.get_one(Subject, session.get_one(Run, run).subject_id)
        erase_models(session, subject, site.service.audit_log, "withdrawn")
    shutil.rmtree(orchestrator.folder / f"{run}-1")
    assert tuning.record_outcome(run, 1, State.succeeded) == "cancelled"
    assert orchestrator.submitted == [f"{run}-1"]
    assert ada.get("/api/models").json()["items"] == []


def test_whoever_runs_pipelines_may_be_away_for_a_while(ada: Person, work, monkeypatch: pytest.MonkeyPatch):
    """Whatever is asked of them: a training of hours was given up, and deleted, after a minute."""
    run, _ = begun(ada)
    tuning, orchestrator, _ = work(passed)
    away: list[str] = []

    def failing(name: str) -> None:
        really, left = getattr(orchestrator, name), [True] * 20

        def call(*args: Any, **more: Any) -> Any:
            if left:
                left.pop()
                away.append(name)
                raise ConnectionError
            return really(*args, **more)

        monkeypatch.setattr(orchestrator, name, call)

    for name in ("submit", "status", "find", "collect"):
        failing(name)
    assert tuning.poll_pipeline(run, 1) == State.succeeded
    assert tuning.record_outcome(run, 1, State.succeeded) == "succeeded"
    assert {name: away.count(name) for name in away} == dict.fromkeys(("submit", "status", "find", "collect"), 20)


def test_a_call_that_fails_now_and_then_does_not_end_a_watch(ada: Person, work, monkeypatch: pytest.MonkeyPatch):
    run, _ = begun(ada)
    away: list[bool] = []

    def unreachable(*_: Any) -> PipelineRun:
        away.append(True)
        raise ConnectionError

    tuning, _, _ = work(*([unreachable] * 5 + [run_of(State.running)]) * 3, passed)
    assert tuning.poll_pipeline(run, 1) == State.succeeded
    assert len(away) == 15
    run, _ = begun(ada)
    tuning, _, _ = work(unreachable)
    monkeypatch.setattr("api.training.finetuning.AWAY_S", 0.1)
    with pytest.raises(ConnectionError):
        tuning.poll_pipeline(run, 1)


def test_a_pipeline_that_is_gone_for_no_reason_of_its_owners_has_failed(ada: Person, work):
    run, _ = begun(ada)
    tuning, orchestrator, _ = work(passed)
    tuning.poll_pipeline(run, 1)
    shutil.rmtree(orchestrator.folder / f"{run}-1")
    assert tuning.record_outcome(run, 1, State.succeeded) == "failed"
    assert "is gone" in why(ada, run, "internal")
