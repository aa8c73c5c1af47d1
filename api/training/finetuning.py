"""Runs: from a subject's photos to a model that draws, whichever orchestrator does the work.

Everything here may be repeated: a worker that is killed anywhere is started again from the last thing it recorded, and finds
the pipeline where it is.
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

from api.records.audit_log import Journal
from api.records.database import AccountClosed, Records, hold_owner, retried
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
"""Kinds of failure that say nothing about the run itself: it is tried again."""
REPORTS = ("validate", "augment", "finetune", "evaluate", "audit", "gate")
CARD = "card"
SIGNED = (("finetune", "adapter"), ("gate", "decision"), ("evaluate", "evaluation"), ("audit", "audit"))
"""What registering takes, by the step that wrote it."""
AWAY_S = 300.0
"""For how long nothing may be learnt of a pipeline: a watch takes hours, and who runs it may be away for minutes."""
GUESS_S = 240.0
"""How long a run takes on one machine before any has been timed."""


@dataclass(frozen=True)
class FineTuning:
    """Does what a run row asks for. `after` is called in the transaction that ends a run, with its waiting generations."""

    records: Records
    objects: Objects
    orchestrator: Orchestrator
    journal: Journal
    after: Callable[[Session, Generation], None]
    price_per_hour: float = 0.0
    limit_s: float = 12 * 3600.0
    require: Callable[[], None] = lambda: None
    """Raises where this worker's work is another's by now; asked before pipelines are started or ended."""
    discard: Callable[[Session, Run], None] = lambda *_: None
    """Called in the transaction that gives a run up whose pipeline may still be under way: has it ended, and its files deleted."""
    unregister: Callable[[str, ChooseVersions], object] = lambda *_: None
    """Deletes versions of a subject's model from the registry."""
    recorded: Callable[[], object] = lambda: None
    """Called when a sign-off is in the log."""
    stopping: threading.Event = field(default_factory=threading.Event)
    """Once set, nothing is concluded from how pipelines stand: this process is about to end, and may end them too."""

    def follow(self, run_id: str, attempt: int) -> str:
        """Start the pipeline, or find it started, and watch it until it ends.

        Returns how it ended: a final state, or `LOST` when its process was killed.
        """
        row = self._row(run_id)
        if row is None or row.state == State.cancelled:
            return self._deleted(run_id)
        if row.cancel_ms:
            return State.cancelled
        self.require()
        params = pipeline_params(row)
        try:
            ref = self._asked(run_id, lambda: self.orchestrator.submit(params, name=f"{run_id}-{attempt}"))
        except PhotoFluxError as error:
            self.fail(run_id, "not-started", str(error))
            return State.failed
        self._note(run_id, state="running", remote_id=ref.id, started_ms=row.started_ms or now_ms())
        run, row = self._watched(run_id, ref), self._row(run_id)
        if row is None or row.state == State.cancelled:
            return self._deleted(run_id)
        if run.error and run.error.kind in KILLED:
            return LOST
        return State.failed if row.error else run.state

    def _deleted(self, run_id: str) -> str:
        """It was ended while its pipeline was being submitted: who removes what it left may have found no pipeline yet."""
        self.require()
        self.orchestrator.discard(run_id)
        return State.cancelled

    def _asked(self, run_id: str, ask: Callable[[], R]) -> R:
        """What the orchestrator answers, asked again where a call fails: that says nothing of the run."""
        until = time.monotonic() + AWAY_S
        while True:
            try:
                return ask()
            except PhotoFluxError:
                raise
            except Exception:
                if time.monotonic() > until:
                    raise
                log.warning("who runs the pipeline of %s could not be asked; it is asked again", run_id)
                time.sleep(self.orchestrator.poll_interval_s)

    def _watched(self, run_id: str, ref: RunRef) -> PipelineRun:
        told: list[Any] = []
        while True:
            run = self._asked(run_id, lambda: self.orchestrator.status(ref))
            while self.stopping.is_set():
                time.sleep(self.orchestrator.poll_interval_s)
            if (steps := steps_of(run, Path(ref.where) / "logs")) != told:
                self._note(run_id, steps=steps)
                told = steps
            if run.state.ended:
                return run
            row = self._row(run_id)
            if row is None or row.cancel_ms or row.error:
                self.require()
                self.orchestrator.cancel(ref)
            elif now_ms() - (row.started_ms or now_ms()) > 1000 * self.limit_s:
                why = f"it took longer than {self.limit_s / 3600:g} hours and was ended; start it anew"
                self._note(run_id, error_code="too-long", error=why)
            time.sleep(self.orchestrator.poll_interval_s)

    def settle(self, run_id: str, attempt: int, ended: str) -> str:
        """Record how a run ended, publish its model, and send what waited for it on its way; returns the run's state."""
        row = self._row(run_id)
        if row is None or row.state not in ACTIVE:
            return row.state if row else State.cancelled
        try:
            return self._settle(row, attempt, ended)
        except (AccountClosed, KeyMissing):  # erased meanwhile: its rows go with the account
            return self.fail(run_id, "cancelled", CANCELLED, cancelled=True)
        except SealBroken:
            return self.fail(run_id, "internal", "what the run made was altered or exchanged; start it anew")
        except RunNotFound:  # deleted with what was learnt of the subject, where a consent was withdrawn
            current = self._row(run_id)
            if current is None or current.cancel_ms:
                return self.fail(run_id, "cancelled", CANCELLED, cancelled=True)
            return self.fail(run_id, "internal", "what the run made is gone; start it anew")

    def _settle(self, row: Run, attempt: int, ended: str) -> str:
        if ended != State.succeeded:
            return self.fail(row.id, *self._why(row, attempt, ended), cancelled=ended == State.cancelled)
        ref = self._asked(row.id, lambda: self.orchestrator.find(f"{row.id}-{attempt}"))
        with TemporaryDirectory(prefix="photoflux-") as scratch:
            run, folder = self._asked(row.id, lambda: self.orchestrator.collect(ref, Path(scratch)))
            check_key(row, run)
            self._keep_reports(row, run, folder)
            made = self._published(row, run, folder)
            left = read_document(run, folder, "gate", "decision") if made is None else None
            champion = _is_champion(run, folder)
            return self._conclude(row, run, made, champion=champion, decision=left, attempt=attempt)

    def _conclude(
        self,
        row: Run,
        run: PipelineRun,
        made: Model | None,
        *,
        champion: bool,
        decision: dict[str, Any] | None,
        attempt: int,
    ) -> str:
        """Record the end of a run that the pipeline went through; `made` is its model, `decision` says why there is none."""
        with self.records.writing_for(row.user_id) as session:
            session.get(Subject, row.subject_id, with_for_update=True)
            found = session.get(Run, row.id, with_for_update=True)
            if found is None or found.state not in ACTIVE:
                return found.state if found else State.cancelled
            row = found
            if row.cancel_ms:
                return self._end(session, row, "cancelled", "cancelled", CANCELLED)
            seconds = (now_ms() - (row.started_ms or now_ms())) / 1000
            cost = round(seconds / 3600 * self.price_per_hour, 4)
            row.actual = {"seconds": round(seconds, 1), "cost": cost, "verdict": run.verdict, "attempt": attempt}
            if made is None:
                if decision and decision.get("sign_off_possible"):
                    row.sign_off = "open"
                    row.actual = {**row.actual, "open": sorted(open_findings(decision))}
                return self._end(session, row, "failed", "refused", refusal(run.verdict, decision))
            self._enter(session, row, made, champion=champion)
            return self._end(session, row, "succeeded")

    def sign(self, run_id: str) -> str:
        """Register the model of a run that the check left open and an operator signed for; it draws from then on."""
        row = self._row(run_id)
        if row is None or row.sign_off != "given" or row.state == "succeeded":
            return row.state if row else State.cancelled
        with suppress(AccountClosed, KeyMissing):  # erased meanwhile: its rows go with the account
            return self._sign(row)
        return State.cancelled

    def _sign(self, row: Run) -> str:
        attempt = (row.actual or {}).get("attempt", 1)
        ref = self._asked(row.id, lambda: self.orchestrator.find(f"{row.id}-{attempt}"))
        with TemporaryDirectory(prefix="photoflux-") as scratch:
            run, folder = self._asked(row.id, lambda: self.orchestrator.collect(ref, Path(scratch) / "run"))
            check_key(row, run)
            self.require()
            run = self._registered(row, run, folder, Path(scratch))
            self._keep_reports(row, run, folder)
            made = self._published(row, run, folder)
            assert made is not None
            with self.records.writing_for(row.user_id) as session:
                session.get(Subject, row.subject_id, with_for_update=True)
                found = session.get(Run, row.id, with_for_update=True)
                if found is None or found.sign_off != "given":  # deleted, or its consent withdrawn
                    number = int(made.registry_version)
                    self.unregister(row.subject_id, lambda _: {number})
                    return State.cancelled
                if found.state == "succeeded":
                    return found.state
                self._enter(session, found, made, champion=_is_champion(run, folder))
                self._end(session, found, "succeeded")
        self.recorded()
        return State.succeeded

    def reopen(self, run_id: str) -> str:
        """After a reason of ours stood against it, the question is open again."""
        with self.records.writing() as session:
            row = session.get(Run, run_id, with_for_update=True)
            if row is not None and row.sign_off == "given" and row.state != "succeeded":
                row.sign_off = "open"
        return row.state if row else State.cancelled

    def _registered(self, row: Run, run: PipelineRun, folder: Path, scratch: Path) -> PipelineRun:
        """The run with what its last step would have written, had the check let it."""
        from photoflux.steps import register

        assert row.sign_off_reason is not None
        label = Label(row.user_id, "sign-off", row.id)
        said = json.loads(unseal_bytes(row.sign_off_reason, label=label, keyring=self.objects.keyring))
        decision = read_document(run, folder, "gate", "decision") or {"reasons": []}
        findings = said.get("findings") or open_findings(decision)  # one that was given before they were named
        signed = SignOff(said["by"], said["reason"], tuple(findings))
        params = RegisterParams(name=row.params["register_name"])
        made = {"card": scratch / "card.md", "receipt": scratch / "receipt.json"}
        inputs = [folder / run.artifacts[step][name] for step, name in SIGNED]
        register.run(*inputs, **made, params=params, key=run.params["key"], sign_off=signed)
        written = {name: os.path.relpath(file, folder) for name, file in made.items()}
        return replace(run, artifacts={**run.artifacts, "register": written})

    def _why(self, row: Run, attempt: int, ended: str) -> tuple[str, str]:
        """A code and a sentence for why there is no model."""
        if ended == State.cancelled:
            return "cancelled", CANCELLED
        if ended == LOST:
            return "killed", "the run was killed again and again and was given up; start it anew"
        if row.error:
            return row.error_code or "failed", row.error
        name = f"{row.id}-{attempt}"
        run = self._asked(row.id, lambda: self.orchestrator.status(self.orchestrator.find(name)))
        return "failed", run.error.message if run.error else "the run failed"

    def _published(self, row: Run, run: PipelineRun, folder: Path) -> Model | None:
        """The registered adapter, sealed for the engines; None when the gate let none through."""
        receipt = read_document(run, folder, "register", "receipt")
        if receipt is None:
            return None
        model_id = uuid.uuid5(uuid.NAMESPACE_OID, row.id).hex
        with opened(folder / run.artifacts["finetune"]["adapter"], key=run.params["key"]) as adapter:
            sha256, stored = digest(adapter), adapter.stat().st_size
            with suppress(BlobExists):
                self.objects.put(row.user_id, "adapter", model_id, adapter.read_bytes())
        return Model(
            id=model_id, user_id=row.user_id, subject_id=row.subject_id, run_id=row.id, registry_name=receipt["name"],
            registry_version=str(receipt["version"]), adapter_sha256=sha256, stored_bytes=stored, verdict=run.verdict,
            metrics=run.step("evaluate").metrics,
        )  # fmt: skip

    def _keep_reports(self, row: Run, run: PipelineRun, folder: Path) -> None:
        """The model's card and the full reports, sealed: those with the subject's pictures where there are two."""
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
    def _enter(session: Session, row: Run, made: Model, *, champion: bool) -> None:
        """Record the model; it draws from now on, unless the one that draws was found better."""
        subject = session.get_one(Subject, row.subject_id, with_for_update=True)
        last = session.scalar(select(func.max(Model.number)).where(Model.subject_id == subject.id)) or 0
        made.number = last + 1
        session.add(made)
        session.flush()
        if champion or subject.champion_id is None:
            subject.champion_id = made.id

    @retried
    def fail(self, run_id: str, code: str, why: str, *, cancelled: bool = False) -> str:
        """Record that there will be no model; returns the state the run is in then."""
        with self.records.writing() as session:
            hold_owner(session, Run, run_id)
            row = session.get(Run, run_id, with_for_update=True)
            if row is None or row.state not in ACTIVE:
                return row.state if row else State.cancelled
            return self._end(session, row, "cancelled" if cancelled else "failed", code, why)

    @retried
    def give_up(self, run_id: str, code: str, why: str) -> str:
        """As `fail`, for a run of which nobody knows how its pipeline stands: that is ended too."""
        with self.records.writing() as session:
            hold_owner(session, Run, run_id)
            row = session.get(Run, run_id, with_for_update=True)
            if row is None or row.state not in ACTIVE:
                return row.state if row else State.cancelled
            self.discard(session, row)
            return self._end(session, row, "failed", code, why)

    def _end(self, session: Session, row: Run, state: str, code: str | None = None, why: str | None = None) -> str:
        waiting = end_run(session, row, state, self.journal, code=code, why=why)
        for generation in waiting if state == "succeeded" else ():
            generation.model_id = session.get_one(Subject, row.subject_id).champion_id
            self.after(session, generation)
        return state

    def _row(self, run_id: str) -> Run | None:
        with self.records.reading() as session:
            return session.get(Run, run_id)

    def _note(self, run_id: str, **values: Any) -> None:
        with self.records.writing() as session:
            row = session.get(Run, run_id, with_for_update=True)
            if row is not None and row.state in ACTIVE:
                for name, value in values.items():
                    setattr(row, name, value)


def _is_champion(run: PipelineRun, folder: Path) -> bool:
    """Whether the registry's alias went to what a run registered."""
    receipt = read_document(run, folder, "register", "receipt")
    return receipt is not None and receipt["alias"] == "champion"


def sign_off(session: Session, row: Run, *, by: str, reason: str, findings: Sequence[str], keyring: Keyring) -> None:
    """Record that an operator, by their pseudonym, answers for what the check of a run left open, which they named."""
    said = json.dumps({"by": by, "reason": reason, "findings": list(findings)}).encode()
    row.sign_off = "given"
    row.sign_off_reason = seal_bytes(said, label=Label(row.user_id, "sign-off", row.id), keyring=keyring)
    session.flush()


def key_of(row: Run) -> str:
    """Under which everything of the run is sealed: nothing of another run opens in its place."""
    return str(VaultKey(row.user_id, row.id))


def check_key(row: Run, run: PipelineRun) -> None:
    """Raises SealBroken unless the pipeline was given the run's own key, or its owner's as runs were before they had one."""
    if run.params.get("key") not in (key_of(row), str(VaultKey(row.user_id))):
        raise SealBroken(f"run {row.id}: its pipeline's record names a key that it was not given; start it anew")


def pipeline_params(row: Run) -> dict[str, Any]:
    """What the pipeline is given: the run's own parameters, its photos, and its key."""
    return {**row.params, "key": key_of(row)}


def steps_of(run: PipelineRun, logs: Path) -> list[dict[str, Any]]:
    """The steps as the records keep them; the running one with what it last said of its progress."""
    return [
        {
            "name": step.name, "title": step.title, "state": str(step.state), "started": step.started,
            "ended": step.ended,
            "progress": progress(logs / f"{step.name}.log") if step.state is State.running else "",
        }
        for step in run.steps
    ]  # fmt: skip


def refusal(verdict: str, decision: Mapping[str, Any] | None) -> str:
    """Why the gate let no model through, in its own words."""
    if decision is None:
        return "the run ended without a verdict"
    against = [reason["message"] for reason in decision["reasons"] if reason["verdict"] != "PASS"]
    return f"the check said {verdict}: {'; '.join(against[:3])}"


def estimate(session: Session, params: Mapping[str, Any], *, price_per_hour: float) -> dict[str, Any]:
    """Seconds and cost to expect: the mean of the last ten runs of as many steps, and of those that wait before it."""
    query = select(Run).where(Run.state == "succeeded").order_by(Run.finished_ms.desc()).limit(50)
    alike = [r for r in session.scalars(query) if r.params.get("finetune_steps") == params.get("finetune_steps")]
    known = [float(run.actual["seconds"]) for run in alike[:10] if run.actual]
    seconds = sum(known) / len(known) if known else GUESS_S
    ahead = session.scalar(select(func.count()).select_from(Run).where(Run.state.in_(ACTIVE))) or 0
    return {
        "seconds": round(seconds), "waiting_seconds": round(ahead * seconds),
        "cost": round(seconds / 3600 * price_per_hour, 4), "measured_runs": len(known),
    }  # fmt: skip
