"""`python -m api.jobs.worker`: carries out durable jobs, in a process of its own that may be killed at any time."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from api.accounts.tokens import Tokens
from api.images.credentials import open_credentials
from api.images.engine_client import EngineClient
from api.images.generator import ImageGenerator
from api.images.moderation import open_moderator
from api.images.rendering import ImageRenderer
from api.jobs import workflows
from api.jobs.job_queue import JobQueue
from api.jobs.leases import Heartbeat, Lease, LeasedObjects, LeasedRecords, exit_at_once
from api.jobs.webhook_delivery import WebhookSender, WebhookSubscriptions
from api.ops.telemetry import quiet_libraries, set_up_logs
from api.privacy.erasure import DeletionPlan, Erasure
from api.privacy.export import Exports
from api.privacy.retention import Retention
from api.records.audit_log import AuditHeads, AuditLog
from api.records.database import Records, migrate, open_engine
from api.records.service_secrets import pepper
from api.settings import ApiSettings, log_warnings, settings_or_exit
from api.training.finetuning import FinetuningRuns
from photoflux.vault import open_keyring
from photoflux.vault.keyring import Keyring
from photoflux.vault.objects import open_objects
from pipelines.orchestrators import KubeflowOrchestrator, LocalOrchestrator, Orchestrator, VertexOrchestrator

if TYPE_CHECKING:
    from photoflux.tracking import ChooseVersions

log = logging.getLogger(__name__)

STOP_S, HEAD_S = 5, 60.0


def open_orchestrator(settings: ApiSettings) -> Orchestrator:
    """What runs the pipeline, by the settings."""
    if settings.orchestrator == "vertex":
        return VertexOrchestrator(
            settings.gcp_project,
            settings.gcp_location,
            settings.pipeline_root,
            settings.pipeline_image,
            settings.pipeline_account,
        )
    if settings.orchestrator == "kubeflow":
        return KubeflowOrchestrator(
            settings.kubeflow_host, settings.pipeline_image, pipeline_root=settings.pipeline_root
        )
    return LocalOrchestrator(settings.runs_dir)


@dataclass
class WorkerProcess:
    """A worker: its lease, heartbeat and services."""

    settings: ApiSettings
    orchestrator: Orchestrator
    on_lost: Callable[[], object] = exit_at_once
    _is_ready: bool = False
    _ended: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Take a lease, open everything that jobs need, recover the jobs of dead workers, and start."""
        url = self.settings.records_url
        migrate(url)
        records = Records(open_engine(url))
        self.lease = Lease(records, self.settings.state_dir / "workers", on_lost=self.on_lost)
        self.lease.acquire()
        self.heartbeat = Heartbeat(self.lease, self.after_beat)
        self.heartbeat.start()  # at once: opening all the rest may take longer than a lease
        keyring = open_keyring()
        self.heads = AuditHeads(records, open_objects(keyring), AuditLog(pepper(keyring)))
        services = make_services(self.settings, self.orchestrator, self.lease, keyring, self.heads)
        workflows.launch(url, services, worker_id=self.lease.id, runs_at_once=self.settings.runs_at_once)
        quiet_libraries()
        self._is_ready = True
        self.lease.beat()
        self.after_beat()
        # In a thread of its own: a store that takes a minute for an object must not hold beats up.
        threading.Thread(target=self._store_heads, name="heads", daemon=True).start()

    def after_beat(self) -> None:
        """Recover the jobs of dead workers, and fail those that were recovered too often."""
        if not self._is_ready:
            return
        workflows.recover_dead(self.lease.live)
        self.lease.forget_dead()
        workflows.fail_exhausted()

    def _store_heads(self) -> None:
        """Store the audit log's head every HEAD_S seconds."""
        while True:
            try:
                self.heads.store()
            except Exception:
                log.exception("the head of the audit log could not be stored; it is tried again")
            if self._ended.wait(HEAD_S):
                return

    def stop(self) -> None:
        """Finish the jobs that end within STOP_S; another worker recovers the rest at once.

        Pipelines on this machine are ended with its last worker, and go on later from their saved state; those elsewhere run on.
        """
        self._ended.set()
        workflows.services.runs.stopping.set()
        self._is_ready = False
        workflows.stop(STOP_S)
        if isinstance(self.orchestrator, LocalOrchestrator) and not self.lease.live() - {self.lease.id}:
            self.orchestrator.shutdown()
        self.heartbeat.stop()
        self.lease.release()


def make_services(
    settings: ApiSettings, orchestrator: Orchestrator, lease: Lease, keyring: Keyring, heads: AuditHeads
) -> workflows.WorkerServices:
    """The services of the workflows. Without the lease they record, store and start nothing."""
    url = settings.records_url
    records = LeasedRecords(lease.records, lease)
    objects = LeasedObjects(open_objects(keyring).store, keyring, lease)
    tokens = Tokens(records, keyring, issuer=settings.issuer, access_s=settings.access_token_s)
    engine = EngineClient(settings.engine_url, tokens, predict_route=settings.predict_route)
    queue = JobQueue(url)
    audit_log = AuditLog(pepper(keyring), on_entry=WebhookSubscriptions(queue).on_entry)
    return workflows.WorkerServices(
        records=records,
        queue=queue,
        runs=FinetuningRuns(
            records,
            objects,
            orchestrator,
            audit_log,
            enqueue_generation=queue.enqueue_generation,
            price_per_hour=settings.price_per_hour,
            limit_s=3600 * settings.run_hours,
            require=lease.require,
            discard=lambda session, run: queue.enqueue_deletion(session, DeletionPlan(run.user_id, runs=[run.id])),
            unregister=unregister,
            recorded=heads.store,
        ),
        generator=ImageGenerator(
            records, objects, engine, audit_log, ImageRenderer(open_credentials(keyring)), open_moderator(settings)
        ),
        erasure=Erasure(
            records,
            objects,
            keyring,
            audit_log,
            engine.forget,
            unregister,
            orchestrator.discard,
            settings.cache_dir,
            require=lease.require,
            is_idle=queue.drain,
            recorded=heads.store,
        ),
        exports=Exports(records, objects, audit_log),
        webhooks=WebhookSender(
            records, keyring, private=settings.one_machine, redeliver=queue.enqueue_redelivery, require=lease.require
        ),
        retention=Retention(
            records,
            objects,
            audit_log,
            tokens,
            settings.retention,
            orchestrator.discard,
            queue.enqueue_deletion,
            queue.delete_ended,
            heads=heads,
        ),
    )


def unregister(name: str, doomed: ChooseVersions) -> int:
    """Delete versions of a model from the registry for good."""
    from photoflux.tracking import Registry

    return Registry().erase(name, doomed)


def main() -> int:
    """Work until SIGTERM; another worker, or the next one, recovers what is unfinished then."""
    settings = settings_or_exit()
    set_up_logs("worker")
    log_warnings(settings)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    process = WorkerProcess(settings, open_orchestrator(settings))
    process.start()
    log.info("working")
    ended.wait()
    process.stop()
    os._exit(0)  # a workflow that still polls its pipeline must not keep the process alive


if __name__ == "__main__":
    raise SystemExit(main())
