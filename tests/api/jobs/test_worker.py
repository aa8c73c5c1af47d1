"""A worker as its process puts it together: by the settings, on real records, with jobs done from the queue."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select

from api.jobs import workflows
from api.jobs.worker import WorkerProcess, open_orchestrator
from api.ops.serve import with_certificate
from api.records.audit_log import HEAD, OWNER, AuditHeads
from api.records.tables import AuditEntry, Tombstone, new_id, now_ms
from api.settings import ApiSettings
from photoflux.errors import PhotoFluxError
from pipelines.orchestrators import KubeflowOrchestrator, LocalOrchestrator, VertexOrchestrator
from tests.api.people import Site


def test_the_settings_say_who_runs_pipelines(own_state: Path):
    assert open_orchestrator(ApiSettings()) == LocalOrchestrator(own_state / "runs")
    facts = {
        "gcp_project": "p",
        "pipeline_root": "gs://b/runs",
        "pipeline_image": f"i@sha256:{'0' * 64}",
        "pipeline_account": "a",
    }
    vertex = open_orchestrator(ApiSettings(orchestrator="vertex", **facts))  # type: ignore[arg-type]
    assert isinstance(vertex, VertexOrchestrator)
    assert (vertex.project, vertex.location, vertex.pipeline_root) == ("p", "europe-west4", "gs://b/runs")
    kubeflow = open_orchestrator(ApiSettings(orchestrator="kubeflow", kubeflow_host="https://k", **facts))  # type: ignore[arg-type]
    assert isinstance(kubeflow, KubeflowOrchestrator)
    assert (kubeflow.host, kubeflow.pipeline_root, kubeflow.image) == (
        "https://k",
        "gs://b/runs",
        f"i@sha256:{'0' * 64}",
    )


def test_a_worker_does_what_is_in_line(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """An erasure, from the queue to its end, by the parts that a worker has."""
    monkeypatch.setenv("PHOTOFLUX_STATE_DIR", str(site.folder / "state"))
    monkeypatch.setenv("PHOTOFLUX_DATABASE_URL", site.service.settings.records_url)
    ada = site.person()
    receipt = ada.ask("DELETE", "/api/me").json()["receipt"]
    worker = WorkerProcess(with_certificate(ApiSettings()), LocalOrchestrator(tmp_path), on_lost=lambda: None)
    worker.start()
    try:
        until = time.monotonic() + 30
        while site.client.get(f"/api/erasures/{receipt}").json()["state"] != "done":
            assert time.monotonic() < until
            time.sleep(0.05)
        assert str(newest_entry(site)) in heads(site), "an erasure is in a head of the log before its receipt says done"
        assert workflows.services.retention.perform() == {}
        with site.service.records.writing() as session:
            session.add(Tombstone(receipt=new_id(), login="x", user_id="y", erased_ms=now_ms(), done_ms=1))
        assert workflows.services.retention.perform() == {"rows": 1}
        assert workflows.services.webhooks.private
        assert workflows.services.webhooks.verify is True, (
            "webhooks trust whom everybody trusts, not this machine's own authority"
        )
    finally:
        worker.stop()


def test_the_head_of_the_log_is_stored_again_and_again(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Every minute; here every tenth of a second, also after a time in which the store did not answer."""
    monkeypatch.setenv("PHOTOFLUX_STATE_DIR", str(site.folder / "state"))
    monkeypatch.setattr("api.jobs.worker.HEAD_S", 0.1)
    worker = WorkerProcess(ApiSettings(), LocalOrchestrator(tmp_path))
    worker.heads = site.service.heads
    store, tries = AuditHeads.store, iter([True, True, False])

    def failing_at_first(found: AuditHeads) -> int:
        if next(tries, False):
            raise PhotoFluxError("away")
        return store(found)

    monkeypatch.setattr(AuditHeads, "store", failing_at_first)
    storing = threading.Thread(target=worker._store_heads)
    storing.start()
    try:
        for _ in range(2):
            site.person()
            wanted, until = str(newest_entry(site)), time.monotonic() + 30
            while wanted not in heads(site):
                assert time.monotonic() < until
                time.sleep(0.05)
    finally:
        worker._ended.set()
        storing.join(30)
    assert not storing.is_alive()


def newest_entry(site: Site) -> int:
    with site.service.records.reading() as session:
        return session.scalar(select(func.max(AuditEntry.number))) or 0


def heads(site: Site) -> set[str]:
    """Numbers of the entries that are heads among the objects."""
    return {str(int(name)) for name in site.objects.ids(OWNER, HEAD)}
