"""Durable work on the records' own database: what was accepted is done, whatever is killed meanwhile.

The service puts work in line inside the transaction that records it; a worker takes it out. Both know it by a row's id,
which is also the workflow's, so that nothing is done twice. Arguments and results are ids and states, stored as JSON.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from dbos import DBOS, DBOSClient, DBOSConfig, Serializer
from sqlalchemy import func, make_url, select
from sqlalchemy.orm import Session

from api.db import Export, Generation, Notice, Run, new_id
from api.erasing import Erasure, Gone
from api.exporting import Exports
from api.fine_tuning import FineTuning
from api.generations import FINAL_WORDS, Generations
from api.retention import Retention
from api.schemas import iso
from api.webhooks import Messenger
from pipelines.orchestrators import LOST

log = logging.getLogger(__name__)

RUNS, DRAWINGS, CHORES, NOTICES = "runs", "drawings", "chores", "notices"
NAME, VERSION, WORKER = "photoflux", "1", "worker"
"""The version is the workflows', not the program's: what an older program left is taken up by a newer one."""
POLL_S = {RUNS: 0.5, DRAWINGS: 0.1, CHORES: 0.5, NOTICES: 0.5}
DRAWINGS_AT_ONCE, NOTICES_AT_ONCE = 4, 8
SWEEP_AT = "30 3 * * *"
FORGOTTEN_AT_ONCE = 500
ATTEMPTS, PAUSE_S = 5, 2.0


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
    DBOS.migrate(system_url(records_url))


class Line:
    """Where the service puts work."""

    def __init__(self, records_url: str) -> None:
        self._client = DBOSClient(
            system_database_url=system_url(records_url), serializer=Json(), application_name=NAME, lazy=True
        )

    def put_run(self, session: Session, run: Run) -> None:
        """Fine-tune, after others of the same urgency; a person's first run comes before another's second."""
        before = select(func.count()).select_from(Run).where(Run.user_id == run.user_id, Run.state == "queued")
        self._put(session, RUNS, "fine_tune", run.id, priority=session.scalar(before) or 1)

    def put_generation(self, session: Session, row: Generation) -> None:
        """Draw."""
        before = select(func.count()).select_from(Generation)
        mine = before.where(Generation.user_id == row.user_id, Generation.state == "queued")
        self._put(session, DRAWINGS, "draw", row.id, priority=session.scalar(mine) or 1)

    def put_erasure(self, session: Session, receipt: str) -> None:
        """Delete what is left of an account."""
        self._put(session, CHORES, "erase", receipt, priority=1)

    def put_export(self, session: Session, export: Export) -> None:
        """Pack everything that is kept of a person."""
        self._put(session, CHORES, "export", export.id, priority=2)

    def put_sign_off(self, session: Session, run: Run) -> None:
        """Register what an operator signed for."""
        self._put(session, CHORES, "sign", new_id(), priority=1, args=(run.id,))

    def put_removal(self, session: Session, gone: Gone) -> None:
        """Delete what deleted rows named."""
        self._put(session, CHORES, "remove", new_id(), priority=1, args=(asdict(gone),))

    def put_notice(self, session: Session, notice: Notice) -> None:
        """Tell a person's address."""
        self._put(session, NOTICES, "tell", notice.id, priority=1)

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

    def _put(
        self, session: Session, queue: str, workflow: str, row_id: str, *, priority: int, args: tuple[Any, ...] = ()
    ) -> None:
        session.flush()
        options: Any = {
            "queue_name": queue, "workflow_name": workflow, "workflow_id": row_id, "priority": min(1000, priority)
        }  # fmt: skip
        self._client.enqueue_in_transaction(session, options, *(args or (row_id,)))


@dataclass
class Hands:
    """What the workflows work with in this process."""

    runs: FineTuning
    generations: Generations
    erasure: Erasure
    exports: Exports
    messenger: Messenger
    retention: Retention


hands: Hands
"""Set by `launch`."""


@DBOS.workflow(name="fine_tune", max_recovery_attempts=None)
def fine_tune(run_id: str) -> str:
    """A run: tried again when its processes were killed, ended once."""
    try:
        ended, attempt = LOST, 0
        while ended == LOST and attempt < ATTEMPTS:
            attempt += 1
            if attempt > 1:
                DBOS.sleep(PAUSE_S * 2 ** (attempt - 2))
            ended = follow(run_id, attempt)
        return settle(run_id, attempt, ended)
    except Exception:
        log.exception("run %s failed", run_id)
        return abandon(run_id)


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=1.0)
def follow(run_id: str, attempt: int) -> str:
    """Start or find the pipeline and watch it."""
    return str(hands.runs.follow(run_id, attempt))


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=1.0)
def settle(run_id: str, attempt: int, ended: str) -> str:
    """Record how it ended."""
    return str(hands.runs.settle(run_id, attempt, ended))


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=1.0)
def abandon(run_id: str) -> str:
    """Record that it failed for a reason of ours."""
    return str(hands.runs.fail(run_id, "something went wrong here; start the run again"))


@DBOS.workflow(name="sign", max_recovery_attempts=None)
def sign(run_id: str) -> str:
    """A run that an operator signed for."""
    try:
        return register(run_id)
    except Exception:
        log.exception("run %s could not be registered", run_id)
        return reopen(run_id)


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=2.0)
def register(run_id: str) -> str:
    """Register its model."""
    return hands.runs.sign(run_id)


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=1.0)
def reopen(run_id: str) -> str:
    """Let an operator sign again."""
    return hands.runs.reopen(run_id)


@DBOS.workflow(name="draw", max_recovery_attempts=None)
def draw(generation_id: str) -> str:
    """A generation."""
    try:
        return perform(generation_id)
    except Exception:
        log.exception("generation %s failed", generation_id)
        return give_up(generation_id)


@DBOS.step(retries_allowed=True, max_attempts=3, interval_seconds=0.5)
def perform(generation_id: str) -> str:
    """Draw and record."""
    return hands.generations.perform(generation_id)


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=1.0)
def give_up(generation_id: str) -> str:
    """Record that it failed."""
    return hands.generations.end(generation_id, "failed", FINAL_WORDS)


@DBOS.workflow(name="erase", max_recovery_attempts=None)
def erase(receipt: str) -> str:
    """An account's erasure: tried for days, since nothing may be left."""
    return clear(receipt)


@DBOS.step(retries_allowed=True, max_attempts=60, interval_seconds=1.0, backoff_rate=1.5)
def clear(receipt: str) -> str:
    """Delete what is left."""
    return hands.erasure.perform(receipt)


@DBOS.workflow(name="remove", max_recovery_attempts=None)
def remove(gone: dict[str, Any]) -> str:
    """What a deleted subject, or a withdrawn consent, leaves behind."""
    return take_away(gone)


@DBOS.step(retries_allowed=True, max_attempts=60, interval_seconds=1.0, backoff_rate=1.5)
def take_away(gone: dict[str, Any]) -> str:
    """Delete it."""
    hands.erasure.remove(Gone(**gone))
    return "done"


@DBOS.workflow(name="tell", max_recovery_attempts=None)
def tell(notice_id: str) -> str:
    """A notice to a person's address: tried for most of an hour."""
    try:
        return send(notice_id)
    except Exception as error:
        log.info("notice %s was not taken: %s", notice_id, type(error).__name__)
        return give_up_telling(notice_id)


@DBOS.step(retries_allowed=True, max_attempts=8, interval_seconds=2.0, backoff_rate=3.0)
def send(notice_id: str) -> str:
    """Send and record."""
    return hands.messenger.perform(notice_id)


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=1.0)
def give_up_telling(notice_id: str) -> str:
    """Record that nobody took it."""
    return hands.messenger.fail(notice_id)


@DBOS.workflow(name="sweep")
def sweep(scheduled: datetime, context: Any) -> None:  # noqa: ARG001
    """What is kept no longer; once a day."""
    clean()


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=10.0)
def clean() -> str:
    """Delete it and say how much it was."""
    swept = hands.retention.perform()
    log.info("swept %s", json.dumps(swept))
    return json.dumps(swept)


@DBOS.workflow(name="export", max_recovery_attempts=None)
def export(export_id: str) -> str:
    """An export."""
    try:
        return pack(export_id)
    except Exception:
        log.exception("export %s failed", export_id)
        return unpacked(export_id)


@DBOS.step(retries_allowed=True, max_attempts=3, interval_seconds=1.0)
def pack(export_id: str) -> str:
    """Pack and record."""
    return hands.exports.perform(export_id)


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=1.0)
def unpacked(export_id: str) -> str:
    """Record that it failed."""
    return hands.exports.fail(export_id)


def launch(records_url: str, with_these: Hands, *, runs_at_once: int) -> None:
    """Take up what was left unfinished, and work from now on, in threads of this process."""
    global hands
    hands = with_these
    config: DBOSConfig = {
        "name": NAME, "system_database_url": system_url(records_url), "application_version": VERSION,
        "executor_id": WORKER, "serializer": Json(), "log_level": "WARNING", "run_migrations": True,
    }  # fmt: skip
    DBOS(config=config)
    DBOS.launch()
    DBOS.register_queue(RUNS, worker_concurrency=runs_at_once, polling_interval_sec=POLL_S[RUNS])
    DBOS.register_queue(DRAWINGS, worker_concurrency=DRAWINGS_AT_ONCE, polling_interval_sec=POLL_S[DRAWINGS])
    DBOS.register_queue(NOTICES, worker_concurrency=NOTICES_AT_ONCE, polling_interval_sec=POLL_S[NOTICES])
    DBOS.register_queue(CHORES, worker_concurrency=2, polling_interval_sec=POLL_S[CHORES])
    DBOS.apply_schedules([{"schedule_name": "sweep", "workflow_fn": sweep, "schedule": SWEEP_AT, "context": None}])


def stop(timeout_s: int) -> None:
    """Finish what runs, as far as the time allows; the rest is taken up by the next worker."""
    DBOS.destroy(workflow_completion_timeout_sec=timeout_s)
