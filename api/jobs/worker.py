"""`python -m api.jobs.worker`: does the durable work, in a process of its own that may be killed at any time."""

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
from api.images.generator import Generations
from api.images.moderation import open_guard
from api.images.rendering import Delivery
from api.jobs import workflows
from api.jobs.job_queue import Line
from api.jobs.leases import Heartbeat, Lease, LeasedObjects, LeasedRecords, exit_at_once
from api.jobs.webhook_delivery import Messenger, Subscriptions
from api.ops.telemetry import quiet_libraries, set_up_logs
from api.privacy.erasure import Erasure, Gone
from api.privacy.export import Exports
from api.privacy.retention import Retention
from api.records.audit_log import AuditHeads, Journal
from api.records.database import Records, migrate, open_engine
from api.records.service_secrets import pepper
from api.settings import ApiSettings, log_warnings, settings_or_exit
from api.training.finetuning import FineTuning
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
            settings.gcp_project, settings.gcp_location, settings.pipeline_root, settings.pipeline_image,
            settings.pipeline_account,
        )  # fmt: skip
    if settings.orchestrator == "kubeflow":
        return KubeflowOrchestrator(
            settings.kubeflow_host, settings.pipeline_image, pipeline_root=settings.pipeline_root
        )
    return LocalOrchestrator(settings.runs_dir)


@dataclass
class WorkerProcess:
    """What this process is made of, from the lease that it works under on."""

    settings: ApiSettings
    orchestrator: Orchestrator
    on_lost: Callable[[], object] = exit_at_once
    _working: bool = False
    _ended: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Open everything that work needs, take up what dead workers left, and begin."""
        url = self.settings.records_url
        migrate(url)
        records = Records(open_engine(url))
        self.lease = Lease(records, self.settings.state_dir / "workers", on_lost=self.on_lost)
        self.lease.acquire()
        self.heartbeat = Heartbeat(self.lease, self.after_beat)
        self.heartbeat.start()  # at once: opening all the rest may take longer than a lease
        keyring = open_keyring()
        self.heads = AuditHeads(records, open_objects(keyring), Journal(pepper(keyring)))
        hands = make_hands(self.settings, self.orchestrator, self.lease, keyring, self.heads)
        workflows.launch(url, hands, worker_id=self.lease.id, runs_at_once=self.settings.runs_at_once)
        quiet_libraries()
        self._working = True
        self.lease.beat()
        self.after_beat()
        # In a thread of its own: a store that takes a minute for an object must not hold beats up.
        threading.Thread(target=self._store_heads, name="heads", daemon=True).start()

    def after_beat(self) -> None:
        """Take up the work of the dead, and end what was begun too often."""
        if not self._working:
            return
        workflows.take_up(self.lease.live)
        self.lease.forget_dead()
        workflows.end_exhausted()

    def _store_heads(self) -> None:
        """Store the log's head every minute."""
        while True:
            try:
                self.heads.store()
            except Exception:
                log.exception("the head of the audit log could not be stored; it is tried again")
            if self._ended.wait(HEAD_S):
                return

    def stop(self) -> None:
        """Finish what can be finished in a few seconds; the rest is another worker's at once.

        Pipelines on this machine end with its last worker, and go on from their last saved state; those elsewhere run on.
        """
        self._ended.set()
        workflows.hands.runs.stopping.set()
        self._working = False
        workflows.stop(STOP_S)
        if isinstance(self.orchestrator, LocalOrchestrator) and not self.lease.live() - {self.lease.id}:
            self.orchestrator.shutdown()
        self.heartbeat.stop()
        self.lease.release()


def make_hands(
    settings: ApiSettings, orchestrator: Orchestrator, lease: Lease, keyring: Keyring, heads: AuditHeads
) -> workflows.Hands:
    """What workflows work with. Nothing that they record, store or start counts without the lease."""
    url = settings.records_url
    records = LeasedRecords(lease.records, lease)
    objects = LeasedObjects(open_objects(keyring).store, keyring, lease)
    tokens = Tokens(records, keyring, issuer=settings.issuer, access_s=settings.access_token_s)
    engine = EngineClient(settings.engine_url, tokens, predict_route=settings.predict_route)
    line = Line(url)
    journal = Journal(pepper(keyring), heard=Subscriptions(line).heard)
    return workflows.Hands(
        records=records, line=line,
        runs=FineTuning(
            records, objects, orchestrator, journal, after=line.put_generation, price_per_hour=settings.price_per_hour,
            limit_s=3600 * settings.run_hours, require=lease.require,
            discard=lambda session, run: line.put_removal(session, Gone(run.user_id, runs=[run.id])),
            unregister=unregister, recorded=heads.store,
        ),
        generations=Generations(
            records, objects, engine, journal, Delivery(open_credentials(keyring)), open_guard(settings)
        ),
        erasure=Erasure(
            records, objects, keyring, journal, engine.forget, unregister, orchestrator.discard, settings.cache_dir,
            require=lease.require, is_idle=line.is_idle, recorded=heads.store,
        ),
        exports=Exports(records, objects, journal),
        messenger=Messenger(
            records, keyring, private=settings.one_machine, again=line.put_notice_again, require=lease.require
        ),
        retention=Retention(
            records, objects, journal, tokens, settings.keep, orchestrator.discard, line.put_removal, line.forget,
            heads=heads,
        ),
    )  # fmt: skip


def unregister(name: str, doomed: ChooseVersions) -> int:
    """Delete versions of a model from the registry for good."""
    from photoflux.tracking import Registry

    return Registry().erase(name, doomed)


def main() -> int:
    """Work until SIGTERM; what is unfinished then is taken up by another worker, or the next."""
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
    os._exit(0)  # a workflow that still waits for its pipeline must not keep the process


if __name__ == "__main__":
    raise SystemExit(main())
