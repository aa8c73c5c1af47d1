"""Starting a run: photos and quotas are checked, the pipeline's parameters resolved, and the run is enqueued."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api.jobs.job_queue import JobQueue
from api.privacy import consents
from api.records.audit_log import AuditLog
from api.records.tables import ACTIVE, Run, Subject, new_id
from api.settings import ApiSettings
from api.training.finetuning import estimate
from api.training.photo_sets import Comparisons, PhotoCollection
from api.transport.problems import Problem
from api.transport.quotas import check_storage, count_start
from photoflux.photos.sets import write_set
from photoflux.vault.objects import Objects
from pipelines.parameters import resolve

TUNABLE = (
    "finetune_steps", "finetune_rank", "finetune_alpha", "finetune_lr", "finetune_preservation", "augment_variants",
    "evaluate_profile", "audit_profile",
)  # fmt: skip
"""Pipeline parameters that a person may change: none that reads a path or loosens the gate."""


@dataclass(frozen=True)
class RunStarter:
    """Starts runs: asked for as such, or needed for images of a subject that has no model yet."""

    settings: ApiSettings
    objects: Objects
    collection: PhotoCollection
    queue: JobQueue
    audit_log: AuditLog

    def begin(self, session: Session, subject: Subject, changes: dict[str, Any], known: Comparisons) -> Run:
        """Record and enqueue a run. A problem where the photos, the parameters, a quota or another run forbid it.

        Raises ComparisonsMissing.
        """
        consents.require_consents(session, subject.user_id, person=subject.depicts != consents.NO_PERSON)
        self._check_quota(session, subject)
        run = Run(id=new_id(), user_id=subject.user_id, subject_id=subject.id, orchestrator=self.settings.orchestrator)
        photos = self.collection.usable_photos(session, subject, known)
        run.params = self._params(subject, run.id, changes)
        run.estimate = estimate(session, run.params, price_per_hour=self.settings.price_per_hour)
        write_set(self.objects, subject.user_id, run.id, photos)
        session.add(run)
        try:
            session.flush()
        except IntegrityError as error:
            raise Problem(
                409, "run-active", "This subject is being fine-tuned already; wait for it, or cancel it."
            ) from error
        self.queue.enqueue_run(session, run)
        self.audit_log.record(session, subject.user_id, "run.created", run.id)
        return run

    def _check_quota(self, session: Session, subject: Subject) -> None:
        active = select(Run.id).where(Run.subject_id == subject.id, Run.state.in_(ACTIVE))
        if session.scalar(active):
            raise Problem(409, "run-active", "This subject is being fine-tuned already; wait for it, or cancel it.")
        check_storage(session, subject.user_id, limit=self.settings.stored_bytes_max)
        count_start(session, subject.user_id, "run", limit=self.settings.runs_a_day, what="runs")

    def _params(self, subject: Subject, run_id: str, changes: dict[str, Any]) -> dict[str, Any]:
        """Every parameter of the pipeline, checked as its steps will check them. Raises InputError."""
        if unknown := sorted(changes.keys() - set(TUNABLE)):
            raise Problem(422, "invalid", f"{unknown[0]}: cannot be changed here; what can are {', '.join(TUNABLE)}.")
        given = {
            "base": self.settings.base,
            **self.settings.run_defaults,
            **changes,
            "import_photos_source": f"blob:{run_id}",
            "import_photos_class_noun": subject.class_noun,
            "import_photos_trigger": subject.trigger,
            "import_photos_subject_id": subject.id,
            "import_photos_consent": "granted" if subject.depicts == "consenting_adult" else "own",
            "register_name": subject.id,
        }
        resolved = resolve(given)
        del resolved["key"]  # follows from owner and run, and is never stored with the parameters
        return resolved
