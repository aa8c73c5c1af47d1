"""Starting a generation: consents, prompt and quotas are checked, and it is enqueued, or waits for the run that makes its model."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from api.images.prompt_rules import UnsafePrompt, check_prompt
from api.jobs.job_queue import JobQueue
from api.jobs.run_starter import RunStarter
from api.privacy import consents
from api.records.audit_log import AuditLog
from api.records.tables import ACTIVE, Generation, Run, Subject, new_id, prompt_label
from api.schemas import GenerationCreate
from api.settings import ApiSettings
from api.training.photo_sets import Comparisons
from api.transport.problems import Problem
from api.transport.quotas import check_storage
from photoflux.vault.keyring import Keyring
from photoflux.vault.sealed import seal_bytes


@dataclass(frozen=True)
class GenerationStarter:
    """Starts generations."""

    settings: ApiSettings
    keyring: Keyring
    run_starter: RunStarter
    queue: JobQueue
    audit_log: AuditLog

    def begin(self, session: Session, subject: Subject, asked: GenerationCreate, known: Comparisons) -> Generation:
        """Record and enqueue a generation. A problem where a consent, the prompt or a quota forbids it.

        Raises ComparisonsMissing where a run must be started first.
        """
        person = subject.depicts != consents.NO_PERSON
        consents.require_consents(session, subject.user_id, person=person)
        _check(asked.prompt, person=person)
        self._check_quota(session, subject.user_id)
        check_storage(session, subject.user_id, limit=self.settings.stored_bytes_max)
        row = Generation(
            id=new_id(),
            user_id=subject.user_id,
            subject_id=subject.id,
            model_id=subject.champion_id,
            n=asked.n,
            seed=asked.seed,
            size=asked.size,
            format=asked.format,
            style=asked.style,
        )
        row.prompt = seal_bytes(asked.prompt.encode(), label=prompt_label(row), keyring=self.keyring)
        if row.model_id is None:
            # locked: a run that ends now has looked for waiting generations already
            active = session.scalar(
                select(Run).where(Run.subject_id == subject.id, Run.state.in_(ACTIVE)).with_for_update()
            )
            row.run_id = (active or self.run_starter.begin(session, subject, {}, known)).id
        session.add(row)
        session.flush()
        if row.run_id is None:
            self.queue.enqueue_generation(session, row)
        self.audit_log.record(session, subject.user_id, "generation.created", row.id)
        return row

    def _check_quota(self, session: Session, user_id: str) -> None:
        waiting = select(func.count()).select_from(Generation)
        waiting = waiting.where(Generation.user_id == user_id, Generation.state.in_(ACTIVE))
        if (session.scalar(waiting) or 0) >= self.settings.generations_waiting:
            raise Problem(
                429,
                "quota",
                "So many of your pictures are waiting already; ask again when some are drawn.",
                headers={"Retry-After": "5"},
            )


def _check(prompt: str, *, person: bool) -> None:
    """A problem of 422 for a prompt that is refused. It does not quote the prompt, since answers are logged."""
    try:
        check_prompt(prompt, person=person)
    except UnsafePrompt as error:
        raise Problem(422, "unsafe-prompt", str(error)) from error
