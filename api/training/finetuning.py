"""Runs: from a subject's photos to a registered model, on whichever orchestrator runs the pipeline.

Every method may be repeated: where a worker was killed, another one goes on from what was last recorded, and finds the pipeline in
whatever state it is.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.records.audit_log import AuditLog
from api.records.database import AccountClosed, Records, lock_owner, retry_on_rollback
from api.records.outcomes import CANCELLED, end_run
from api.records.tables import ACTIVE, Generation, Model, Run, Subject, now_ms
from photoflux.errors import PhotoFluxError
from photoflux.manifest import digest
from photoflux.params import RegisterParams
from photoflux.report import sealed_beside
from photoflux.runs import Run as PipelineRun
from photoflux.runs import State, read_document
from photoflux.signing import SignOff, open_findings
from photoflux.vault import VaultKey, opened
from photoflux.vault.blobs import BlobExists
from photoflux.vault.keyring import KeyMissing, Keyring
from photoflux.vault.objects import Objects
from photoflux.vault.sealed import Label, SealBroken, seal_bytes, unseal_bytes
from pipelines.orchestrators import LOST, Orchestrator, RunNotFound, RunRef
from pipelines.watch import progress

if TYPE_CHECKING:
    from photoflux.tracking import ChooseVersions

log = logging.getLogger(__name__)
R = TypeVar("R")

KILLED = (LOST, "SIGKILL", "SIGTERM")
"""Kinds of failure that say nothing about the run itself: the pipeline is started again."""
REPORTS = ("validate", "augment", "finetune", "evaluate", "audit", "gate")
CARD = "card"
REGISTER_INPUTS = (("finetune", "adapter"), ("gate", "decision"), ("evaluate", "evaluation"), ("audit", "audit"))
"""The artifacts that the register step reads, by the step that wrote them."""
AWAY_S = 300.0
"""Seconds for which an orchestrator may be away: a pipeline is polled for hours, and outages last minutes."""
DEFAULT_DURATION_S = 240.0
"""Seconds that a run is estimated to take before any has been timed."""


@dataclass(frozen=True)
class FinetuningRuns:
    """Carries out run rows. `enqueue_generation` is called in the transaction that ends a run, for each generation waiting for it."""

    records: Records
    objects: Objects
    orchestrator: Orchestrator
    audit_log: AuditLog
    enqueue_generation: Callable[[Session, Generation], None]
    price_per_hour: float = 0.0
    limit_s: float = 12 * 3600.0
    require: Callable[[], None] = lambda: None
    """Raises where this worker has lost its lease; called before pipelines are started or ended."""
    discard: Callable[[Session, Run], None] = lambda *_: None
    """Called in the transaction that marks a run failed whose pipeline may still be running: ends that and deletes its files."""
    unregister: Callable[[str, ChooseVersions], object] = lambda *_: None
    """Deletes versions of a subject's model from the registry."""
    recorded: Callable[[], object] = lambda: None
    """Called when a sign-off is in the audit log."""
    stopping: threading.Event = field(default_factory=threading.Event)
    """Once set, no state of a pipeline is recorded: this process is about to end, and may end pipelines with it."""

    def poll_pipeline(self, run_id: str, attempt: int) -> str:
        """Start the pipeline, or find it started, and poll it until it ends.

        Returns how it ended: a final state, or `LOST` when its process was killed.
        """
        row = self._row(run_id)
        if row is None or row.state == State.cancelled:
            return self._discard_deleted(run_id)
        if row.cancel_requested_ms:
            return State.cancelled
        self.require()
        params = pipeline_params(row)
        try:
            ref = self._retry_while_away(run_id, lambda: self.orchestrator.submit(params, name=f"{run_id}-{attempt}"))
        except PhotoFluxError as error:
            self.end_without_model(run_id, "not-started", str(error))
            return State.failed
        self._update(run_id, state="running", remote_id=ref.id, started_ms=row.started_ms or now_ms())
        run, row = self._poll_until_ended(run_id, ref), self._row(run_id)
        if row is None or row.state == State.cancelled:
            return self._discard_deleted(run_id)
        if run.error and run.error.kind in KILLED:
            return LOST
        return State.failed if row.error else run.state

    def _discard_deleted(self, run_id: str) -> str:
        """Discard a pipeline whose run ended while it was being submitted: the deletion may have found no pipeline yet."""
        self.require()
        self.orchestrator.discard(run_id)
        return State.cancelled

    def _retry_while_away(self, run_id: str, call: Callable[[], R]) -> R:
        """The orchestrator's answer. A failed call says nothing of the run, and is repeated for AWAY_S."""
        until = time.monotonic() + AWAY_S
        while True:
            try:
                return call()
            except PhotoFluxError:
                raise
            except Exception:
                if time.monotonic() > until:
                    raise
                log.warning("the orchestrator of run %s could not be reached; trying again", run_id)
                time.sleep(self.orchestrator.poll_interval_s)

    def _poll_until_ended(self, run_id: str, ref: RunRef) -> PipelineRun:
        recorded: list[Any] = []
        while True:
            run = self._retry_while_away(run_id, lambda: self.orchestrator.status(ref))
            while self.stopping.is_set():
                time.sleep(self.orchestrator.poll_interval_s)
            if (steps := steps_of(run, Path(ref.where) / "logs")) != recorded:
                self._update(run_id, steps=steps)
                recorded = steps
            if run.state.ended:
                return run
            row = self._row(run_id)
            if row is None or row.cancel_requested_ms or row.error:
                self.require()
                self.orchestrator.cancel(ref)
            elif now_ms() - (row.started_ms or now_ms()) > 1000 * self.limit_s:
                why = f"it took longer than {self.limit_s / 3600:g} hours and was ended; start it anew"
                self._update(run_id, error_code="too-long", error=why)
            time.sleep(self.orchestrator.poll_interval_s)

    def record_outcome(self, run_id: str, attempt: int, ended: str) -> str:
        """Record how a run ended, publish its model, and enqueue the generations that waited for it; returns the run's state."""
        row = self._row(run_id)
        if row is None or row.state not in ACTIVE:
            return row.state if row else State.cancelled
        try:
            return self._record_outcome(row, attempt, ended)
        except (AccountClosed, KeyMissing):  # erased meanwhile: its rows go with the account
            return self.end_without_model(run_id, "cancelled", CANCELLED, cancelled=True)
        except SealBroken:
            return self.end_without_model(
                run_id, "internal", "what the run made was altered or exchanged; start it anew"
            )
        except RunNotFound:  # deleted with what was learnt of the subject, where a consent was withdrawn
            current = self._row(run_id)
            if current is None or current.cancel_requested_ms:
                return self.end_without_model(run_id, "cancelled", CANCELLED, cancelled=True)
            return self.end_without_model(run_id, "internal", "what the run made is gone; start it anew")

    def _record_outcome(self, row: Run, attempt: int, ended: str) -> str:
        if ended != State.succeeded:
            return self.end_without_model(
                row.id, *self._failure(row, attempt, ended), cancelled=ended == State.cancelled
            )
        ref = self._retry_while_away(row.id, lambda: self.orchestrator.find(f"{row.id}-{attempt}"))
        with TemporaryDirectory(prefix="photoflux-") as scratch:
            run, folder = self._retry_while_away(row.id, lambda: self.orchestrator.collect(ref, Path(scratch)))
            check_key(row, run)
            self._store_reports(row, run, folder)
            model = self._publish_model(row, run, folder)
            decision = read_document(run, folder, "gate", "decision") if model is None else None
            champion = _is_champion(run, folder)
            return self._record_end(row, run, model, champion=champion, decision=decision, attempt=attempt)

    def _record_end(
        self,
        row: Run,
        run: PipelineRun,
        model: Model | None,
        *,
        champion: bool,
        decision: dict[str, Any] | None,
        attempt: int,
    ) -> str:
        """Record the end of a run whose pipeline succeeded; `model` is what it made, `decision` says why there is none."""
        with self.records.writing_for(row.user_id) as session:
            session.get(Subject, row.subject_id, with_for_update=True)
            found = session.get(Run, row.id, with_for_update=True)
            if found is None or found.state not in ACTIVE:
                return found.state if found else State.cancelled
            row = found
            if row.cancel_requested_ms:
                return self._end(session, row, "cancelled", "cancelled", CANCELLED)
            seconds = (now_ms() - (row.started_ms or now_ms())) / 1000
            cost = round(seconds / 3600 * self.price_per_hour, 4)
            row.actual = {"seconds": round(seconds, 1), "cost": cost, "verdict": run.verdict, "attempt": attempt}
            if model is None:
                if decision and decision.get("sign_off_possible"):
                    row.sign_off = "open"
                    row.actual = {**row.actual, "open": sorted(open_findings(decision))}
                return self._end(session, row, "failed", "refused", gate_refusal(run.verdict, decision))
            self._add_model(session, row, model, champion=champion)
            return self._end(session, row, "succeeded")

    def register_signed(self, run_id: str) -> str:
        """Register the model of a run that the gate left open and an operator signed off; it is used from then on."""
        row = self._row(run_id)
        if row is None or row.sign_off != "given" or row.state == "succeeded":
            return row.state if row else State.cancelled
        with suppress(AccountClosed, KeyMissing):  # erased meanwhile: its rows go with the account
            return self._register_signed(row)
        return State.cancelled

    def _register_signed(self, row: Run) -> str:
        attempt = (row.actual or {}).get("attempt", 1)
        ref = self._retry_while_away(row.id, lambda: self.orchestrator.find(f"{row.id}-{attempt}"))
        with TemporaryDirectory(prefix="photoflux-") as scratch:
            run, folder = self._retry_while_away(row.id, lambda: self.orchestrator.collect(ref, Path(scratch) / "run"))
            check_key(row, run)
            self.require()
            run = self._run_register_step(row, run, folder, Path(scratch))
            self._store_reports(row, run, folder)
            model = self._publish_model(row, run, folder)
            assert model is not None
            with self.records.writing_for(row.user_id) as session:
                session.get(Subject, row.subject_id, with_for_update=True)
                found = session.get(Run, row.id, with_for_update=True)
                if found is None or found.sign_off != "given":  # deleted, or its consent withdrawn
                    number = int(model.registry_version)
                    self.unregister(row.subject_id, lambda _: {number})
                    return State.cancelled
                if found.state == "succeeded":
                    return found.state
                self._add_model(session, found, model, champion=_is_champion(run, folder))
                self._end(session, found, "succeeded")
        self.recorded()
        return State.succeeded

    def reopen_sign_off(self, run_id: str) -> str:
        """Open a sign-off again whose model could not be registered for a reason of the service's."""
        with self.records.writing() as session:
            row = session.get(Run, run_id, with_for_update=True)
            if row is not None and row.sign_off == "given" and row.state != "succeeded":
                row.sign_off = "open"
        return row.state if row else State.cancelled

    def _run_register_step(self, row: Run, run: PipelineRun, folder: Path, scratch: Path) -> PipelineRun:
        """Run the register step, which the gate had kept from running; the run with the artifacts that it wrote."""
        from photoflux.steps import register

        assert row.sign_off_reason is not None
        label = Label(row.user_id, "sign-off", row.id)
        statement = json.loads(unseal_bytes(row.sign_off_reason, label=label, keyring=self.objects.keyring))
        decision = read_document(run, folder, "gate", "decision") or {"reasons": []}
        findings = statement.get("findings") or open_findings(decision)  # older sign-offs do not name them
        signed = SignOff(statement["by"], statement["reason"], tuple(findings))
        params = RegisterParams(name=row.params["register_name"])
        outputs = {"card": scratch / "card.md", "receipt": scratch / "receipt.json"}
        inputs = [folder / run.artifacts[step][name] for step, name in REGISTER_INPUTS]
        register.run(*inputs, **outputs, params=params, key=run.params["key"], sign_off=signed)
        written = {name: os.path.relpath(file, folder) for name, file in outputs.items()}
        return replace(run, artifacts={**run.artifacts, "register": written})

    def _failure(self, row: Run, attempt: int, ended: str) -> tuple[str, str]:
        """Code and sentence of why there is no model."""
        if ended == State.cancelled:
            return "cancelled", CANCELLED
        if ended == LOST:
            return "killed", "the run was killed again and again and was given up; start it anew"
        if row.error:
            return row.error_code or "failed", row.error
        name = f"{row.id}-{attempt}"
        run = self._retry_while_away(row.id, lambda: self.orchestrator.status(self.orchestrator.find(name)))
        return "failed", run.error.message if run.error else "the run failed"

    def _publish_model(self, row: Run, run: PipelineRun, folder: Path) -> Model | None:
        """Seal the registered adapter for the engines; its model, or None where the gate refused it."""
        receipt = read_document(run, folder, "register", "receipt")
        if receipt is None:
            return None
        model_id = uuid.uuid5(uuid.NAMESPACE_OID, row.id).hex
        with opened(folder / run.artifacts["finetune"]["adapter"], key=run.params["key"]) as adapter:
            sha256, stored = digest(adapter), adapter.stat().st_size
            with suppress(BlobExists):
                self.objects.put(row.user_id, "adapter", model_id, adapter.read_bytes())
        return Model(
            id=model_id,
            user_id=row.user_id,
            subject_id=row.subject_id,
            run_id=row.id,
            registry_name=receipt["name"],
            registry_version=str(receipt["version"]),
            adapter_sha256=sha256,
            stored_bytes=stored,
            verdict=run.verdict,
            metrics=run.step("evaluate").metrics,
        )

    def _store_reports(self, row: Run, run: PipelineRun, folder: Path) -> None:
        """Store the model's card and the reports, sealed: of two versions of a report the one with the subject's images."""
        key = run.params["key"]
        if named := run.artifacts.get("register", {}).get("card"):
            with opened(folder / named, key=key) as unsealed, suppress(BlobExists):
                self.objects.put(row.user_id, "report", f"{row.id}.{CARD}", unsealed.read_bytes())
        for step in REPORTS:
            if not (named := run.artifacts.get(step, {}).get("report")):
                continue
            page = folder / named
            sealed = sealed_beside(page)
            with suppress(BlobExists):
                if sealed.is_file():
                    with opened(sealed, key=key) as unsealed:
                        self.objects.put(row.user_id, "report", f"{row.id}.{step}", unsealed.read_bytes())
                else:
                    self.objects.put(row.user_id, "report", f"{row.id}.{step}", page.read_bytes())

    @staticmethod
    def _add_model(session: Session, row: Run, model: Model, *, champion: bool) -> None:
        """Record the model; it becomes the subject's champion, unless the present one was found better."""
        subject = session.get_one(Subject, row.subject_id, with_for_update=True)
        last = session.scalar(select(func.max(Model.number)).where(Model.subject_id == subject.id)) or 0
        model.number = last + 1
        session.add(model)
        session.flush()
        if champion or subject.champion_id is None:
            subject.champion_id = model.id

    @retry_on_rollback
    def end_without_model(self, run_id: str, code: str, why: str, *, cancelled: bool = False) -> str:
        """Record that there will be no model; returns the state the run is in then."""
        with self.records.writing() as session:
            lock_owner(session, Run, run_id)
            row = session.get(Run, run_id, with_for_update=True)
            if row is None or row.state not in ACTIVE:
                return row.state if row else State.cancelled
            return self._end(session, row, "cancelled" if cancelled else "failed", code, why)

    @retry_on_rollback
    def mark_failed(self, run_id: str, code: str, why: str) -> str:
        """As `end_without_model`, for a run whose pipeline is in an unknown state, and is discarded too."""
        with self.records.writing() as session:
            lock_owner(session, Run, run_id)
            row = session.get(Run, run_id, with_for_update=True)
            if row is None or row.state not in ACTIVE:
                return row.state if row else State.cancelled
            self.discard(session, row)
            return self._end(session, row, "failed", code, why)

    def _end(self, session: Session, row: Run, state: str, code: str | None = None, why: str | None = None) -> str:
        waiting = end_run(session, row, state, self.audit_log, code=code, why=why)
        for generation in waiting if state == "succeeded" else ():
            generation.model_id = session.get_one(Subject, row.subject_id).champion_id
            self.enqueue_generation(session, generation)
        return state

    def _row(self, run_id: str) -> Run | None:
        with self.records.reading() as session:
            return session.get(Run, run_id)

    def _update(self, run_id: str, **values: Any) -> None:
        with self.records.writing() as session:
            row = session.get(Run, run_id, with_for_update=True)
            if row is not None and row.state in ACTIVE:
                for name, value in values.items():
                    setattr(row, name, value)


def _is_champion(run: PipelineRun, folder: Path) -> bool:
    """Whether the registry's champion alias went to the version that a run registered."""
    receipt = read_document(run, folder, "register", "receipt")
    return receipt is not None and receipt["alias"] == "champion"


def sign_off(session: Session, row: Run, *, by: str, reason: str, findings: Sequence[str], keyring: Keyring) -> None:
    """Record that an operator, by their pseudonym, signs off the findings that the gate left open, which they name."""
    statement = json.dumps({"by": by, "reason": reason, "findings": list(findings)}).encode()
    row.sign_off = "given"
    row.sign_off_reason = seal_bytes(statement, label=Label(row.user_id, "sign-off", row.id), keyring=keyring)
    session.flush()


def vault_key(row: Run) -> str:
    """URI of the key that everything of the run is sealed under: nothing of another run opens in its place."""
    return str(VaultKey(row.user_id, row.id))


def check_key(row: Run, run: PipelineRun) -> None:
    """Raises SealBroken unless the pipeline was given the run's own key (or its owner's, as older programs did)."""
    if run.params.get("key") not in (vault_key(row), str(VaultKey(row.user_id))):
        raise SealBroken(f"run {row.id}: its pipeline's record names a key that it was not given; start it anew")


def pipeline_params(row: Run) -> dict[str, Any]:
    """What the pipeline is given: the run's own parameters, its photos, and its key."""
    return {**row.params, "key": vault_key(row)}


def steps_of(run: PipelineRun, logs: Path) -> list[dict[str, Any]]:
    """The steps as they are recorded; the running one with the last progress in its log."""
    return [
        {
            "name": step.name,
            "title": step.title,
            "state": str(step.state),
            "started": step.started,
            "ended": step.ended,
            "progress": progress(logs / f"{step.name}.log") if step.state is State.running else "",
        }
        for step in run.steps
    ]


def gate_refusal(verdict: str, decision: Mapping[str, Any] | None) -> str:
    """Why the gate refused the model: its first three messages."""
    if decision is None:
        return "the run ended without a verdict"
    against = [reason["message"] for reason in decision["reasons"] if reason["verdict"] != "PASS"]
    return f"the check said {verdict}: {'; '.join(against[:3])}"


def estimate(session: Session, params: Mapping[str, Any], *, price_per_hour: float) -> dict[str, Any]:
    """Seconds and cost to expect: the mean of the last ten runs of as many steps, and of those that wait before it."""
    query = select(Run).where(Run.state == "succeeded").order_by(Run.finished_ms.desc()).limit(50)
    same_length = [r for r in session.scalars(query) if r.params.get("finetune_steps") == params.get("finetune_steps")]
    known = [float(run.actual["seconds"]) for run in same_length[:10] if run.actual]
    seconds = sum(known) / len(known) if known else DEFAULT_DURATION_S
    ahead = session.scalar(select(func.count()).select_from(Run).where(Run.state.in_(ACTIVE))) or 0
    return {
        "seconds": round(seconds),
        "waiting_seconds": round(ahead * seconds),
        "cost": round(seconds / 3600 * price_per_hour, 4),
        "measured_runs": len(known),
    }
