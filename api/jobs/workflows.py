"""Durable jobs as a worker does them: a DBOS workflow for each kind, and what becomes of a job whose worker was killed.

No job sleeps in a worker's slot until it may be tried again: it enqueues a successor with a delay instead.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dbos import DBOS, DBOSConfig

from api.images.generator import GENERATION_FAILED, ImageGenerator
from api.jobs.job_queue import (
    DELETIONS,
    DELIVERIES,
    ERASURES,
    EXPORTS,
    GENERATIONS,
    NAME,
    OWNER_CONCURRENCY,
    PENDING,
    RUNS,
    SIGN_OFFS,
    VERSION,
    JobQueue,
    Json,
    system_url,
)
from api.jobs.webhook_delivery import WebhookSender
from api.privacy.erasure import DeletionPlan, Erasure, WorkInProgress
from api.privacy.export import Exports
from api.privacy.retention import Retention
from api.records.database import Records, process_lock, retry_on_outage
from api.training.finetuning import FinetuningRuns
from pipelines.orchestrators import LOST

log = logging.getLogger(__name__)

POLL_S = {
    RUNS: 0.5, GENERATIONS: 0.1, DELIVERIES: 0.5, EXPORTS: 1.0, ERASURES: 1.0, DELETIONS: 1.0, SIGN_OFFS: 1.0
}  # fmt: skip
"""Seconds between two looks into a queue."""
WORKER_CONCURRENCY = {GENERATIONS: 4, DELIVERIES: 16, EXPORTS: 2, ERASURES: 4, DELETIONS: 4, SIGN_OFFS: 2}
"""Jobs at once in one worker. Runs are counted over all workers, since those of one machine share its device."""
RETENTION_CRON = "30 3 * * *"
RUN_FAILED = "something went wrong here; start the run again"
EXPORT_FAILED = "something went wrong while packing; ask for a new export"
KILLED_TOO_OFTEN = "its worker was killed again and again; it was given up"
RUN_ATTEMPTS, FIRST_PAUSE_S = 5, 2.0
RUN_RECOVERIES_MAX, RECOVERIES_MAX = 50, 10
"""How often a job is recovered after its worker was killed: the job itself may be what kills them."""
PAUSE_MAX_S, AWAIT_PAUSE_S = 300.0, 1.0
"""Longest pause between attempts at what must be done in the end, and the first one while other jobs are only awaited."""


@dataclass
class WorkerServices:
    """What the workflows of this process call."""

    records: Records
    queue: JobQueue
    runs: FinetuningRuns
    generator: ImageGenerator
    erasure: Erasure
    exports: Exports
    webhooks: WebhookSender
    retention: Retention


services: WorkerServices
"""Set by `launch`: DBOS calls workflows by name, with ids alone."""


@DBOS.workflow(name="run_finetuning", max_recovery_attempts=RUN_RECOVERIES_MAX)
def run_finetuning(run_id: str) -> str:
    """Runs the pipeline, again where its processes were killed, and records the outcome once."""
    try:
        ended, attempt = LOST, 0
        while ended == LOST and attempt < RUN_ATTEMPTS:
            attempt += 1
            if attempt > 1:
                DBOS.sleep(FIRST_PAUSE_S * 2 ** (attempt - 2))
            ended = poll_pipeline(run_id, attempt)
        return record_outcome(run_id, attempt, ended)
    except Exception:
        log.exception("run %s failed", run_id)
        return mark_run_failed(run_id)


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=1.0)
@retry_on_outage
def poll_pipeline(run_id: str, attempt: int) -> str:
    """Start the pipeline, or find it started, and poll it until it ends."""
    return str(services.runs.poll_pipeline(run_id, attempt))


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=1.0)
@retry_on_outage
def record_outcome(run_id: str, attempt: int, ended: str) -> str:
    """Record how the run ended, and publish its model."""
    return str(services.runs.record_outcome(run_id, attempt, ended))


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=1.0)
@retry_on_outage
def mark_run_failed(run_id: str) -> str:
    """Record that the run failed for a reason of the service's, and end what its pipeline may still do."""
    return str(services.runs.mark_failed(run_id, "internal", RUN_FAILED))


@DBOS.workflow(name="register_signed_model", max_recovery_attempts=RECOVERIES_MAX)
def register_signed_model(run_id: str) -> str:
    """Registers the model of a run that an operator signed off."""
    try:
        return register_model(run_id)
    except Exception:
        log.exception("run %s could not be registered", run_id)
        return reopen_sign_off(run_id)


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=2.0)
@retry_on_outage
def register_model(run_id: str) -> str:
    """Register the run's model."""
    return services.runs.register_signed(run_id)


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=1.0)
@retry_on_outage
def reopen_sign_off(run_id: str) -> str:
    """Let an operator sign again."""
    return services.runs.reopen_sign_off(run_id)


@DBOS.workflow(name="generate_images", max_recovery_attempts=RECOVERIES_MAX)
def generate_images(generation_id: str) -> str:
    """Generates the images of one request."""
    try:
        return store_images(generation_id)
    except Exception:
        log.exception("generation %s failed", generation_id)
        return mark_generation_failed(generation_id)


@DBOS.step(retries_allowed=True, max_attempts=3, interval_seconds=0.5)
@retry_on_outage
def store_images(generation_id: str) -> str:
    """Have the engine generate the images, finish, store and record them."""
    return services.generator.generate(generation_id)


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=1.0)
@retry_on_outage
def mark_generation_failed(generation_id: str) -> str:
    """Record that the generation failed for a reason of the service's."""
    return services.generator.end(generation_id, "failed", "internal", GENERATION_FAILED)


@DBOS.workflow(name="erase_account", max_recovery_attempts=None)
def erase_account(receipt: str, attempt: int = 1) -> str:
    """Erases an account; tried until nothing is left of it."""
    return delete_account_data(receipt, attempt)


@DBOS.step(retries_allowed=True, max_attempts=3, interval_seconds=1.0)
@retry_on_outage
def delete_account_data(receipt: str, attempt: int) -> str:
    """Delete what is left of the account, or enqueue another attempt."""
    return _done_or_again(
        lambda: services.erasure.perform(receipt), ERASURES, "erase_account", receipt, attempt, (receipt,)
    )


@DBOS.workflow(name="delete_subject", max_recovery_attempts=None)
def delete_subject(plan: dict[str, Any], attempt: int = 1, name: str = "") -> str:
    """Deletes the files of a deleted subject, or of models whose consent was withdrawn; their rows are gone already."""
    return delete_subject_data(plan, attempt, name or str(DBOS.workflow_id))


@DBOS.step(retries_allowed=True, max_attempts=3, interval_seconds=1.0)
@retry_on_outage
def delete_subject_data(plan: dict[str, Any], attempt: int, name: str) -> str:
    """Delete what is left of it, or enqueue another attempt."""
    left = DeletionPlan(**plan)
    return _done_or_again(
        lambda: services.erasure.remove(left), DELETIONS, "delete_subject", name, attempt, (plan,), owner=left.owner
    )


def _done_or_again(
    do: Callable[[], Any], queue: str, workflow: str, name: str, attempt: int, args: tuple[Any, ...], *, owner: str = ""
) -> str:
    """Do it; where it fails or must wait, enqueue it again with a delay, so that the slot is free for other jobs."""
    try:
        do()
        return "done"
    except WorkInProgress:
        delay_s = min(PAUSE_MAX_S, AWAIT_PAUSE_S * 1.2 ** min(attempt, 40))
    except Exception:
        log.exception("%s %s did not work out and is tried again", workflow, name)
        delay_s = min(PAUSE_MAX_S, FIRST_PAUSE_S * 1.5 ** min(attempt, 20))
    more = (attempt + 1,) if workflow == "erase_account" else (attempt + 1, name)
    with services.records.writing() as session:
        services.queue.enqueue(
            session, queue, workflow, f"{name}:{attempt + 1}", owner=owner, args=(*args, *more), delay_s=delay_s
        )
    return "later"


@DBOS.workflow(name="deliver_webhook", max_recovery_attempts=RECOVERIES_MAX)
def deliver_webhook(delivery_id: str, attempt: int = 1) -> str:
    """Delivers one message to a person's webhook; attempts go on for most of an hour."""
    try:
        return post_message(delivery_id, attempt)
    except Exception:
        log.exception("webhook delivery %s failed", delivery_id)
        return mark_delivery_failed(delivery_id)


@DBOS.step()
@retry_on_outage
def post_message(delivery_id: str, attempt: int) -> str:
    """Post and record, or enqueue the next attempt. Never repeated by itself: a second post is a second message."""
    return services.webhooks.deliver(delivery_id, attempt)


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=1.0)
@retry_on_outage
def mark_delivery_failed(delivery_id: str) -> str:
    """Record that the message was not taken."""
    return services.webhooks.mark_failed(delivery_id)


@DBOS.workflow(name="apply_retention")
def apply_retention(scheduled: datetime, context: Any) -> None:  # noqa: ARG001
    """Deletes what is past its retention period; once a day."""
    delete_expired()


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=10.0)
@retry_on_outage
def delete_expired() -> str:
    """Delete it and log how much it was."""
    deleted = services.retention.perform()
    log.info("retention deleted %s", json.dumps(deleted))
    return json.dumps(deleted)


@DBOS.workflow(name="export_data", max_recovery_attempts=RECOVERIES_MAX)
def export_data(export_id: str) -> str:
    """Packs a person's data for download."""
    try:
        return pack_export(export_id)
    except Exception:
        log.exception("export %s failed", export_id)
        return mark_export_failed(export_id)


@DBOS.step(retries_allowed=True, max_attempts=3, interval_seconds=1.0)
@retry_on_outage
def pack_export(export_id: str) -> str:
    """Pack, store and record the export."""
    return services.exports.perform(export_id)


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=1.0)
@retry_on_outage
def mark_export_failed(export_id: str) -> str:
    """Record that the export failed for a reason of the service's."""
    return services.exports.fail(export_id, "internal", EXPORT_FAILED)


def fail_exhausted() -> None:
    """Mark the rows of jobs failed that were recovered as often as they may be, and delete the jobs."""
    failures: dict[str, Callable[[str], object]] = {
        "run_finetuning": lambda row: services.runs.mark_failed(row, "killed", KILLED_TOO_OFTEN),
        "generate_images": lambda row: services.generator.end(row, "failed", "killed", KILLED_TOO_OFTEN),
        "export_data": lambda row: services.exports.fail(row, "killed", KILLED_TOO_OFTEN),
        "deliver_webhook": lambda name: services.webhooks.mark_failed(name.partition(":")[0]),
        "register_signed_model": lambda name: services.runs.reopen_sign_off(name.partition(":")[0]),
    }
    for name, workflow_id in services.queue.exhausted():
        log.warning("%s %s was begun anew too often and is given up", name, workflow_id)
        failures.get(name, lambda _: None)(workflow_id)
        services.queue.delete(workflow_id)


def recover_dead(live: Callable[[], set[str]]) -> None:
    """Enqueue the jobs again that dead workers had running: each once, even where several workers do this at a time."""
    pending = DBOS.list_workflows(status=PENDING, load_input=False, load_output=False)
    dead = {str(one.executor_id) for one in pending} - live()  # asked after, so that a worker begun meanwhile is in it
    if dead:
        DBOS._recover_pending_workflows(sorted(dead))


def launch(records_url: str, with_these: WorkerServices, *, worker_id: str, runs_at_once: int) -> None:
    """Work from now on, in threads of this process, under the id of its lease."""
    global services
    services = with_these
    config: DBOSConfig = {
        "name": NAME,
        "system_database_url": system_url(records_url),
        "application_version": VERSION,
        "executor_id": worker_id,
        "serializer": Json(),
        "log_level": "WARNING",
        "run_migrations": True,
    }
    with process_lock(records_url, "durable"):
        DBOS(config=config)
        DBOS.launch()
    DBOS.register_queue(RUNS, global_concurrency=runs_at_once, polling_interval_sec=POLL_S[RUNS])
    for queue, concurrency in WORKER_CONCURRENCY.items():
        DBOS.register_queue(
            queue,
            worker_concurrency=concurrency,
            polling_interval_sec=POLL_S[queue],
            partition_worker_concurrency=OWNER_CONCURRENCY.get(queue),
        )
    DBOS.apply_schedules(
        [{"schedule_name": "retention", "workflow_fn": apply_retention, "schedule": RETENTION_CRON, "context": None}]
    )


def stop(timeout_s: int) -> None:
    """Finish what runs, as far as the time allows; the rest is recovered by another worker."""
    DBOS.destroy(workflow_completion_timeout_sec=timeout_s)
