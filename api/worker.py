"""`python -m api.worker`: does the durable work, in a process of its own that may be killed at any time."""

from __future__ import annotations

import logging
import os
import signal
import threading

from api import work
from api.credentials import open_credentials
from api.db import Records, migrate, open_engine
from api.delivery import Delivery
from api.drawing import EngineClient
from api.erasing import Erasure
from api.exporting import Exports
from api.fine_tuning import FineTuning
from api.generations import Generations
from api.journal import Journal
from api.observing import set_up_logs
from api.retention import Retention
from api.safety import open_guard
from api.secrets import pepper
from api.settings import ApiSettings, get_api_settings
from api.tokens import Tokens
from api.webhooks import Messenger, Subscriptions
from photoflux.vault import open_keyring
from photoflux.vault.objects import open_objects
from pipelines.orchestrators import KubeflowOrchestrator, LocalOrchestrator, Orchestrator, VertexOrchestrator

log = logging.getLogger(__name__)

STOP_S = 5


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


def start(settings: ApiSettings, orchestrator: Orchestrator) -> None:
    """Open everything that work needs, and begin."""
    url = settings.records_url
    migrate(url)
    records, keyring = Records(open_engine(url)), open_keyring()
    objects = open_objects(keyring)
    tokens = Tokens(records, keyring, issuer=settings.issuer, access_s=settings.access_token_s)
    engine = EngineClient(settings.engine_url, tokens, predict_route=settings.predict_route)
    line = work.Line(url)
    journal = Journal(pepper(keyring), heard=Subscriptions(line).heard)
    erasure = Erasure(
        records, objects, keyring, journal, engine.forget, unregister, orchestrator.discard, settings.cache_dir
    )  # fmt: skip
    hands = work.Hands(
        runs=FineTuning(
            records, objects, orchestrator, journal, after=line.put_generation, price_per_hour=settings.price_per_hour,
            limit_s=3600 * settings.run_hours,
        ),
        generations=Generations(
            records, objects, engine, journal, Delivery(open_credentials(keyring)), open_guard(settings)
        ),
        erasure=erasure, exports=Exports(records, objects, journal),
        messenger=Messenger(records, keyring, private=settings.environment == "development"),
        retention=Retention(
            records, objects, journal, tokens, settings.keep, orchestrator.discard, line.put_removal, line.forget
        ),
    )  # fmt: skip
    work.launch(url, hands, runs_at_once=settings.runs_at_once)


def unregister(name: str) -> int:
    """Delete a model from the registry for good."""
    from photoflux.tracking import Registry

    return Registry().erase(name)


def main() -> int:
    """Work until SIGTERM; what is unfinished then is taken up by the next worker.

    Pipelines on this machine end with it, and go on from their last saved state; those elsewhere run on.
    """
    set_up_logs("worker")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    settings = get_api_settings()
    orchestrator = open_orchestrator(settings)
    start(settings, orchestrator)
    log.info("working")
    ended.wait()
    work.hands.runs.stopping.set()
    work.stop(STOP_S)
    if isinstance(orchestrator, LocalOrchestrator):
        orchestrator.let_go()
    os._exit(0)  # a workflow that still waits for its pipeline must not keep the process


if __name__ == "__main__":
    raise SystemExit(main())
