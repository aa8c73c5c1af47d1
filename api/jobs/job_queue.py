"""The line of durable work, on the records' own database: what was accepted is done, whatever is killed meanwhile.

Work is put in line inside the transaction that records it; any of the workers takes it out. Both know it by a row's id, which
is also the workflow's, so that nothing is done twice. Arguments and results are ids and states, stored as JSON.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from dbos import DBOS, DBOSClient, Serializer
from sqlalchemy import func, make_url, select
from sqlalchemy.orm import Session

from api.privacy.erasure import Gone
from api.records.database import only_one
from api.records.tables import Export, Generation, Notice, Run, new_id
from api.schemas import iso

RUNS, DRAWINGS, DELIVERIES, EXPORTS = "runs", "drawings", "deliveries", "exports"
ERASURES, REMOVALS, SIGN_OFFS = "erasures", "removals", "sign-offs"
CHORES, NOTICES = "chores", "notices"
"""Where programs before this one put exports, erasures, removals, sign-offs and notices; emptied, and not filled any more."""
NAME, VERSION = "photoflux", "1"
"""The version is the workflows', not the program's: what an older program left is taken up by a newer one."""
SHARE = {DELIVERIES: 2, EXPORTS: 1, REMOVALS: 1}
"""How much of a queue's work one owner may have under way in a worker. Such a queue's partition key is the owner."""
FORGOTTEN_AT_ONCE = 500
EXHAUSTED, PENDING, WAITING = "MAX_RECOVERY_ATTEMPTS_EXCEEDED", "PENDING", ["ENQUEUED", "DELAYED"]


class Json(Serializer):
    """Stores arguments and results as JSON instead of pickles: readable, and nothing is run when it is read."""

    def serialize(self, data: Any) -> str:
        return json.dumps(data, default=_error_text)

    def deserialize(self, serialized_data: str) -> Any:
        read = json.loads(serialized_data)
        return RuntimeError(read["error"]) if isinstance(read, dict) and read.keys() == {"error"} else read

    def name(self) -> str:
        return "json"


def _error_text(value: Any) -> dict[str, str]:
    """An exception by its class: its message may quote what it was about."""
    return {"error": type(value).__name__}


def system_url(records_url: str) -> str:
    """The records' database as the library of durable work wants it named."""
    url = make_url(records_url)
    if url.get_backend_name() == "sqlite":
        return str(url)
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def prepare(records_url: str) -> None:
    """Make or update the library's own tables."""
    with only_one(records_url, "durable"):
        DBOS.migrate(system_url(records_url))


class JobQueue:
    """Where the service puts work."""

    def __init__(self, records_url: str) -> None:
        self._client = DBOSClient(
            system_database_url=system_url(records_url), serializer=Json(), application_name=NAME, lazy=True
        )

    def enqueue_run(self, session: Session, run: Run) -> None:
        """Fine-tune, after others of the same urgency; a person's first run comes before another's second."""
        before = select(func.count()).select_from(Run).where(Run.user_id == run.user_id, Run.state == "queued")
        self.enqueue(session, RUNS, "fine_tune", run.id, owner=run.user_id, priority=session.scalar(before) or 1)

    def enqueue_generation(self, session: Session, row: Generation) -> None:
        """Draw."""
        before = select(func.count()).select_from(Generation)
        mine = before.where(Generation.user_id == row.user_id, Generation.state == "queued")
        self.enqueue(session, DRAWINGS, "draw", row.id, owner=row.user_id, priority=session.scalar(mine) or 1)

    def enqueue_erasure(self, session: Session, receipt: str) -> None:
        """Delete what is left of an account. It has nobody's share: erasures wait for nothing but each other."""
        self.enqueue(session, ERASURES, "erase", receipt)

    def enqueue_export(self, session: Session, export: Export) -> None:
        """Pack everything that is kept of a person."""
        self.enqueue(session, EXPORTS, "export", export.id, owner=export.user_id)

    def enqueue_sign_off(self, session: Session, run: Run) -> None:
        """Register what an operator signed for."""
        self.enqueue(session, SIGN_OFFS, "sign", f"{run.id}:{new_id()}", owner=run.user_id, args=(run.id,))

    def enqueue_deletion(self, session: Session, gone: Gone) -> None:
        """Delete what deleted rows named."""
        self.enqueue(session, REMOVALS, "remove", new_id(), owner=gone.owner, args=(asdict(gone),))

    def enqueue_delivery(self, session: Session, notice: Notice) -> None:
        """Tell a person's address."""
        self.enqueue(session, DELIVERIES, "tell", notice.id, owner=notice.user_id)

    def enqueue_redelivery(self, session: Session, notice: Notice, attempt: int, delay_s: float) -> None:
        """Tell it later."""
        again = f"{notice.id}:{attempt}"
        self.enqueue(
            session, DELIVERIES, "tell", again, owner=notice.user_id, args=(notice.id, attempt), delay_s=delay_s
        )

    def is_idle(self, owner: str) -> bool:
        """Take what waits to be done for an owner out of the line; whether nothing is being done for them now."""
        mine = self._client.list_workflows(user=owner, status=[PENDING, *WAITING], load_input=False, load_output=False)
        left = [one for one in mine if one.name != "erase"]
        for one in left:
            if one.status in WAITING and one.name != "remove":  # that deletes what no row names any more
                self._client.cancel_workflow(one.workflow_id)
        return not left

    def exhausted(self) -> list[tuple[str, str]]:
        """Name and id of work that was begun anew as often as it may be."""
        found = self._client.list_workflows(status=EXHAUSTED, load_input=False, load_output=False)
        return [(one.name, one.workflow_id) for one in found]

    def drop(self, workflow_id: str) -> None:
        """Delete what is kept of a piece of work."""
        self._client.delete_workflows([workflow_id])

    def forget(self, before_ms: int) -> int:
        """Delete what the library keeps of work that had ended by then; returns how much it was."""
        before, count = str(iso(before_ms)), 0
        while True:
            ended = self._client.list_workflows(
                completed_before=before, limit=FORGOTTEN_AT_ONCE, load_input=False, load_output=False
            )
            if not ended:
                return count
            self._client.delete_workflows([one.workflow_id for one in ended])
            count += len(ended)

    def close(self) -> None:
        """Let go of the database."""
        self._client.destroy()

    def enqueue(
        self, session: Session, queue: str, workflow: str, workflow_id: str, *, owner: str = "", priority: int = 1,
        args: tuple[Any, ...] = (), delay_s: float = 0.0,
    ) -> None:  # fmt: skip
        session.flush()
        options: Any = {"queue_name": queue, "workflow_name": workflow, "workflow_id": workflow_id}
        options |= {"priority": min(1000, priority)}
        options |= {"authenticated_user": owner} if owner else {}
        options |= {"queue_partition_key": owner} if queue in SHARE else {}  # without one it would never be taken out
        options |= {"delay_seconds": delay_s} if delay_s else {}
        self._client.enqueue_in_transaction(session, options, *(args or (workflow_id,)))
