"""Durable work as a worker does it: a workflow for each kind of it, and what becomes of one whose worker was killed.

Nothing waits in a worker's slot for better times: what did not work out puts a successor in line that is due later.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dbos import DBOS, DBOSConfig

from api.images.generator import FINAL_WORDS, Generations
from api.jobs.job_queue import (
    CHORES,
    DELIVERIES,
    DRAWINGS,
    ERASURES,
    EXPORTS,
    NAME,
    NOTICES,
    PENDING,
    REMOVALS,
    RUNS,
    SHARE,
    SIGN_OFFS,
    VERSION,
    JobQueue,
    Json,
    system_url,
)
from api.jobs.webhook_delivery import Messenger
from api.privacy.erasure import Erasure, Gone, UnderWay
from api.privacy.export import Exports
from api.privacy.retention import Retention
from api.records.database import Records, only_one, outlasting
from api.training.finetuning import FineTuning
from pipelines.orchestrators import LOST

log = logging.getLogger(__name__)

POLL_S = {
    RUNS: 0.5, DRAWINGS: 0.1, DELIVERIES: 0.5, EXPORTS: 1.0, ERASURES: 1.0, REMOVALS: 1.0, SIGN_OFFS: 1.0, CHORES: 5.0,
    NOTICES: 5.0,
}  # fmt: skip
AT_ONCE = {
    DRAWINGS: 4, DELIVERIES: 16, EXPORTS: 2, ERASURES: 4, REMOVALS: 4, SIGN_OFFS: 2, CHORES: 2, NOTICES: 8
}  # fmt: skip
"""In one worker. Runs are counted over all workers, since those of one machine share its device."""
SWEEP_AT = "30 3 * * *"
RUN_WORDS = "something went wrong here; start the run again"
EXPORT_WORDS = "something went wrong while packing; ask for a new export"
KILLED_WORDS = "its worker was killed again and again; it was given up"
ATTEMPTS, PAUSE_S = 5, 2.0
TAKEN_UP_RUN, TAKEN_UP = 50, 10
"""How often work is begun anew whose worker was killed: it may be what kills them."""
LAST_PAUSE_S, SOON_S = 300.0, 1.0
"""Longest pause between attempts at what must be done in the end, and the first one while something else is only awaited."""


@dataclass
class Hands:
    """What the workflows work with in this process."""

    records: Records
    queue: JobQueue
    runs: FineTuning
    generations: Generations
    erasure: Erasure
    exports: Exports
    messenger: Messenger
    retention: Retention


hands: Hands
"""Set by `launch`."""


@DBOS.workflow(name="fine_tune", max_recovery_attempts=TAKEN_UP_RUN)
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
@outlasting
def follow(run_id: str, attempt: int) -> str:
    """Start or find the pipeline and watch it."""
    return str(hands.runs.follow(run_id, attempt))


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=1.0)
@outlasting
def settle(run_id: str, attempt: int, ended: str) -> str:
    """Record how it ended."""
    return str(hands.runs.settle(run_id, attempt, ended))


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=1.0)
@outlasting
def abandon(run_id: str) -> str:
    """Record that it failed for a reason of ours, and have ended what may still run."""
    return str(hands.runs.give_up(run_id, "internal", RUN_WORDS))


@DBOS.workflow(name="sign", max_recovery_attempts=TAKEN_UP)
def sign(run_id: str) -> str:
    """A run that an operator signed for."""
    try:
        return register(run_id)
    except Exception:
        log.exception("run %s could not be registered", run_id)
        return reopen(run_id)


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=2.0)
@outlasting
def register(run_id: str) -> str:
    """Register its model."""
    return hands.runs.sign(run_id)


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=1.0)
@outlasting
def reopen(run_id: str) -> str:
    """Let an operator sign again."""
    return hands.runs.reopen(run_id)


@DBOS.workflow(name="draw", max_recovery_attempts=TAKEN_UP)
def draw(generation_id: str) -> str:
    """A generation."""
    try:
        return perform(generation_id)
    except Exception:
        log.exception("generation %s failed", generation_id)
        return give_up(generation_id)


@DBOS.step(retries_allowed=True, max_attempts=3, interval_seconds=0.5)
@outlasting
def perform(generation_id: str) -> str:
    """Draw and record."""
    return hands.generations.perform(generation_id)


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=1.0)
@outlasting
def give_up(generation_id: str) -> str:
    """Record that it failed."""
    return hands.generations.end(generation_id, "failed", "internal", FINAL_WORDS)


@DBOS.workflow(name="erase", max_recovery_attempts=None)
def erase(receipt: str, attempt: int = 1) -> str:
    """An account's erasure: tried until nothing is left."""
    return clear(receipt, attempt)


@DBOS.step(retries_allowed=True, max_attempts=3, interval_seconds=1.0)
@outlasting
def clear(receipt: str, attempt: int) -> str:
    """Delete what is left, or put the rest off."""
    return _or_later(lambda: hands.erasure.perform(receipt), ERASURES, "erase", receipt, attempt, (receipt,))


@DBOS.workflow(name="remove", max_recovery_attempts=None)
def remove(gone: dict[str, Any], attempt: int = 1, name: str = "") -> str:
    """What a deleted subject, or a withdrawn consent, leaves behind."""
    return take_away(gone, attempt, name or str(DBOS.workflow_id))


@DBOS.step(retries_allowed=True, max_attempts=3, interval_seconds=1.0)
@outlasting
def take_away(gone: dict[str, Any], attempt: int, name: str) -> str:
    """Delete it, or put the rest off."""
    left = Gone(**gone)
    return _or_later(lambda: hands.erasure.remove(left), REMOVALS, "remove", name, attempt, (gone,), owner=left.owner)


def _or_later(
    do: Callable[[], Any], queue: str, workflow: str, name: str, attempt: int, args: tuple[Any, ...], *, owner: str = ""
) -> str:
    """Do it; what does not work out is put in line again for later, so that the place is free for others."""
    try:
        do()
        return "done"
    except UnderWay:
        delay_s = min(LAST_PAUSE_S, SOON_S * 1.2 ** min(attempt, 40))
    except Exception:
        log.exception("%s %s did not work out and is tried again", workflow, name)
        delay_s = min(LAST_PAUSE_S, PAUSE_S * 1.5 ** min(attempt, 20))
    more = (attempt + 1,) if workflow == "erase" else (attempt + 1, name)
    with hands.records.writing() as session:
        hands.queue.enqueue(
            session, queue, workflow, f"{name}:{attempt + 1}", owner=owner, args=(*args, *more), delay_s=delay_s
        )
    return "later"


@DBOS.workflow(name="tell", max_recovery_attempts=TAKEN_UP)
def tell(notice_id: str, attempt: int = 1) -> str:
    """A notice to a person's address: tried for most of an hour."""
    try:
        return send(notice_id, attempt)
    except Exception:
        log.exception("notice %s failed", notice_id)
        return give_up_telling(notice_id)


@DBOS.step()
@outlasting
def send(notice_id: str, attempt: int) -> str:
    """Send and record, or put it off."""
    return hands.messenger.perform(notice_id, attempt)


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=1.0)
@outlasting
def give_up_telling(notice_id: str) -> str:
    """Record that nobody took it."""
    return hands.messenger.fail(notice_id)


@DBOS.workflow(name="sweep")
def sweep(scheduled: datetime, context: Any) -> None:  # noqa: ARG001
    """What is kept no longer; once a day."""
    clean()


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=10.0)
@outlasting
def clean() -> str:
    """Delete it and say how much it was."""
    swept = hands.retention.perform()
    log.info("swept %s", json.dumps(swept))
    return json.dumps(swept)


@DBOS.workflow(name="export", max_recovery_attempts=TAKEN_UP)
def export(export_id: str) -> str:
    """An export."""
    try:
        return pack(export_id)
    except Exception:
        log.exception("export %s failed", export_id)
        return unpacked(export_id)


@DBOS.step(retries_allowed=True, max_attempts=3, interval_seconds=1.0)
@outlasting
def pack(export_id: str) -> str:
    """Pack and record."""
    return hands.exports.perform(export_id)


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=1.0)
@outlasting
def unpacked(export_id: str) -> str:
    """Record that it failed."""
    return hands.exports.fail(export_id, "internal", EXPORT_WORDS)


def end_exhausted() -> None:
    """End the rows of work that was begun anew as often as it may be; it is forgotten then."""
    ends: dict[str, Callable[[str], object]] = {
        "fine_tune": lambda row: hands.runs.give_up(row, "killed", KILLED_WORDS),
        "draw": lambda row: hands.generations.end(row, "failed", "killed", KILLED_WORDS),
        "export": lambda row: hands.exports.fail(row, "killed", KILLED_WORDS),
        "tell": lambda name: hands.messenger.fail(name.partition(":")[0]),
        "sign": lambda name: hands.runs.reopen(name.partition(":")[0]),
    }
    for name, workflow_id in hands.queue.exhausted():
        log.warning("%s %s was begun anew too often and is given up", name, workflow_id)
        ends.get(name, lambda _: None)(workflow_id)
        hands.queue.drop(workflow_id)


def take_up(live: Callable[[], set[str]]) -> None:
    """Put what workers had under way that do not live any more back in line, each piece once, whoever else does so too."""
    pending = DBOS.list_workflows(status=PENDING, load_input=False, load_output=False)
    left = {str(one.executor_id) for one in pending} - live()  # asked after, so that a worker begun meanwhile is in it
    if left:
        DBOS._recover_pending_workflows(sorted(left))


def launch(records_url: str, with_these: Hands, *, worker_id: str, runs_at_once: int) -> None:
    """Work from now on, in threads of this process, under the id of its lease."""
    global hands
    hands = with_these
    config: DBOSConfig = {
        "name": NAME, "system_database_url": system_url(records_url), "application_version": VERSION,
        "executor_id": worker_id, "serializer": Json(), "log_level": "WARNING", "run_migrations": True,
    }  # fmt: skip
    with only_one(records_url, "durable"):
        DBOS(config=config)
        DBOS.launch()
    DBOS.register_queue(RUNS, global_concurrency=runs_at_once, polling_interval_sec=POLL_S[RUNS])
    for queue, at_once in AT_ONCE.items():
        DBOS.register_queue(
            queue, worker_concurrency=at_once, polling_interval_sec=POLL_S[queue],
            partition_worker_concurrency=SHARE.get(queue),
        )  # fmt: skip
    DBOS.apply_schedules([{"schedule_name": "sweep", "workflow_fn": sweep, "schedule": SWEEP_AT, "context": None}])


def stop(timeout_s: int) -> None:
    """Finish what runs, as far as the time allows; the rest is taken up by another worker."""
    DBOS.destroy(workflow_completion_timeout_sec=timeout_s)
