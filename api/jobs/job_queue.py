"""The queue of durable jobs, on the records' own database: an accepted job is finished even where processes are killed.

A job is enqueued inside the transaction that records it; any worker dequeues it. The workflow's id begins with the row's, so that no
job runs twice. Arguments and results are ids and states, stored as JSON (docs/decisions/0013).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from dbos import DBOS, DBOSClient, Serializer
from sqlalchemy import func, make_url, select
from sqlalchemy.orm import Session

from api.privacy.erasure import DeletionPlan
from api.records.database import process_lock
from api.records.tables import Export, Generation, Run, WebhookDelivery, new_id
from api.schemas import iso

RUNS, GENERATIONS, DELIVERIES, EXPORTS = "runs", "generations", "deliveries", "exports"
ERASURES, DELETIONS, SIGN_OFFS = "erasures", "deletions", "sign-offs"
NAME, VERSION = "photoflux", "1"
"""The version is the workflows', not the program's: jobs that an older program left are recovered by a newer one."""
OWNER_CONCURRENCY = {DELIVERIES: 2, EXPORTS: 1, DELETIONS: 1}
"""How many jobs of a queue one owner may have running in a worker. Such a queue's partition key is the owner."""
DELETE_BATCH = 500
EXHAUSTED, PENDING, WAITING = "MAX_RECOVERY_ATTEMPTS_EXCEEDED", "PENDING", ["ENQUEUED", "DELAYED"]


class Json(Serializer):
    """Stores arguments and results as JSON instead of pickles: readable, and reading executes nothing."""

    def serialize(self, data: Any) -> str:
        return json.dumps(data, default=_error_text)

    def deserialize(self, serialized_data: str) -> Any:
        read = json.loads(serialized_data)
        return RuntimeError(read["error"]) if isinstance(read, dict) and read.keys() == {"error"} else read

    def name(self) -> str:
        return "json"


def _error_text(value: Any) -> dict[str, str]:
    """An exception by its class alone: its message may quote personal data."""
    return {"error": type(value).__name__}


def system_url(records_url: str) -> str:
    """The records' database in the form of URL that DBOS takes."""
    url = make_url(records_url)
    if url.get_backend_name() == "sqlite":
        return str(url)
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def prepare(records_url: str) -> None:
    """Create or migrate DBOS' own tables."""
    with process_lock(records_url, "durable"):
        DBOS.migrate(system_url(records_url))


class JobQueue:
    """Enqueues the service's jobs, each in the transaction that records it."""

    def __init__(self, records_url: str) -> None:
        self._client = DBOSClient(
            system_database_url=system_url(records_url), serializer=Json(), application_name=NAME, lazy=True
        )

    def enqueue_run(self, session: Session, run: Run) -> None:
        """Fine-tune. A person's first waiting run has priority over everybody's second."""
        before = select(func.count()).select_from(Run).where(Run.user_id == run.user_id, Run.state == "queued")
        self.enqueue(session, RUNS, "run_finetuning", run.id, owner=run.user_id, priority=session.scalar(before) or 1)

    def enqueue_generation(self, session: Session, row: Generation) -> None:
        """Generate images, with the same fair priority as runs."""
        before = select(func.count()).select_from(Generation)
        mine = before.where(Generation.user_id == row.user_id, Generation.state == "queued")
        self.enqueue(
            session, GENERATIONS, "generate_images", row.id, owner=row.user_id, priority=session.scalar(mine) or 1
        )

    def enqueue_erasure(self, session: Session, receipt: str) -> None:
        """Delete what is left of an account. Erasures are not partitioned by owner: they wait for each other alone."""
        self.enqueue(session, ERASURES, "erase_account", receipt)

    def enqueue_export(self, session: Session, export: Export) -> None:
        """Pack all data stored about a person."""
        self.enqueue(session, EXPORTS, "export_data", export.id, owner=export.user_id)

    def enqueue_sign_off(self, session: Session, run: Run) -> None:
        """Register the model of a run that an operator signed off."""
        self.enqueue(
            session, SIGN_OFFS, "register_signed_model", f"{run.id}:{new_id()}", owner=run.user_id, args=(run.id,)
        )

    def enqueue_deletion(self, session: Session, plan: DeletionPlan) -> None:
        """Delete the objects, pipeline files and registry entries that deleted rows named."""
        self.enqueue(session, DELETIONS, "delete_subject", new_id(), owner=plan.owner, args=(asdict(plan),))

    def enqueue_delivery(self, session: Session, delivery: WebhookDelivery) -> None:
        """Post a message to a person's webhook."""
        self.enqueue(session, DELIVERIES, "deliver_webhook", delivery.id, owner=delivery.user_id)

    def enqueue_redelivery(self, session: Session, delivery: WebhookDelivery, attempt: int, delay_s: float) -> None:
        """Post it again after `delay_s` seconds, as attempt number `attempt`."""
        again = f"{delivery.id}:{attempt}"
        self.enqueue(
            session,
            DELIVERIES,
            "deliver_webhook",
            again,
            owner=delivery.user_id,
            args=(delivery.id, attempt),
            delay_s=delay_s,
        )

    def drain(self, owner: str) -> bool:
        """Cancel an owner's waiting jobs; returns whether there were none, neither waiting nor running."""
        mine = self._client.list_workflows(user=owner, status=[PENDING, *WAITING], load_input=False, load_output=False)
        left = [one for one in mine if one.name != "erase_account"]
        for one in left:
            if one.status in WAITING and one.name != "delete_subject":  # it names objects that no row does any more
                self._client.cancel_workflow(one.workflow_id)
        return not left

    def exhausted(self) -> list[tuple[str, str]]:
        """Workflow name and id of the jobs that were recovered as often as they may be."""
        found = self._client.list_workflows(status=EXHAUSTED, load_input=False, load_output=False)
        return [(one.name, one.workflow_id) for one in found]

    def delete(self, workflow_id: str) -> None:
        """Delete a job from DBOS' tables."""
        self._client.delete_workflows([workflow_id])

    def delete_ended(self, before_ms: int) -> int:
        """Delete the jobs that had ended by then from DBOS' tables; returns how many they were."""
        before, count = str(iso(before_ms)), 0
        while True:
            ended = self._client.list_workflows(
                completed_before=before, limit=DELETE_BATCH, load_input=False, load_output=False
            )
            if not ended:
                return count
            self._client.delete_workflows([one.workflow_id for one in ended])
            count += len(ended)

    def close(self) -> None:
        """Close the database connections."""
        self._client.destroy()

    def enqueue(
        self,
        session: Session,
        queue: str,
        workflow: str,
        workflow_id: str,
        *,
        owner: str = "",
        priority: int = 1,
        args: tuple[Any, ...] = (),
        delay_s: float = 0.0,
    ) -> None:
        """Enqueue a workflow by name, under an id of its own, when the transaction of `session` commits."""
        session.flush()
        options: Any = {"queue_name": queue, "workflow_name": workflow, "workflow_id": workflow_id}
        options |= {"priority": min(1000, priority)}
        options |= {"authenticated_user": owner} if owner else {}
        if queue in OWNER_CONCURRENCY:
            options["queue_partition_key"] = owner  # DBOS never dequeues without it
        options |= {"delay_seconds": delay_s} if delay_s else {}
        self._client.enqueue_in_transaction(session, options, *(args or (workflow_id,)))
