"""Vertex and Kubeflow: what is sent to them and how their answers read, on servers of the test's own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from photoflux.errors import InputError
from photoflux.report import sealed_beside
from photoflux.runs import State
from photoflux.vault import committed, opened
from photoflux.vault.blobs import BlobStore, open_store
from pipelines.graph import read_spec
from pipelines.orchestrators import KubeflowOrchestrator, RunNotFound, RunRef, VertexOrchestrator
from pipelines.parameters import fill, resolve
from tests.cloud import new_bucket, storage_client

IMAGE = "registry.example/photoflux@sha256:" + "1" * 64
JOB = "projects/p/locations/europe-west4/pipelineJobs/job-1"


class KubeflowServer(ThreadingHTTPServer):
    """Answers the four calls of the v2beta1 API that a run takes; keeps what was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), KubeflowHandler)
        self.sent: list[tuple[str, str, dict]] = []
        self.state, self.named = "RUNNING", ""
        self.parameters: dict = {}

    def answer(self, path: str, command: str = "GET") -> dict:
        if path.endswith("/experiments"):
            return {"experiments": [{"experiment_id": "e1", "display_name": "Default"}]}
        if path.endswith("/runs") and command == "GET":
            known = {"run_id": "r7", "display_name": self.named, "state": self.state}
            return {"runs": [known]} if self.named else {}
        if "/runs" in path:
            error = {"error": {"code": 2, "message": "boom"}} if self.state == "FAILED" else {}
            config = {"runtime_config": {"parameters": self.parameters}}
            return {"run_id": "r1", "display_name": "x", "state": self.state, **config, **error}
        return {}


class KubeflowHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = self.path.partition("?")[0]
        self.server.sent.append((self.command, path, json.loads(body or "{}")))
        reply = json.dumps(self.server.answer(path, self.command)).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def kubeflow() -> Iterator[KubeflowServer]:
    server = KubeflowServer()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.filterwarnings("ignore")
def test_kubeflow_gets_the_compiled_file_with_the_image_pinned(kubeflow: KubeflowServer):
    orchestrator = KubeflowOrchestrator(f"http://127.0.0.1:{kubeflow.server_port}", IMAGE)
    ref = orchestrator.submit({"augment_variants": "2"})
    assert ref == RunRef("r1", f"http://127.0.0.1:{kubeflow.server_port}/#/runs/details/r1")
    (sent,) = [body for command, path, body in kubeflow.sent if command == "POST" and path.endswith("/runs")]
    images = {e["container"]["image"] for e in sent["pipeline_spec"]["deploymentSpec"]["executors"].values()}
    assert images == {IMAGE}
    assert sent["pipeline_spec"]["root"] == read_spec()["root"]
    assert sent["runtime_config"]["parameters"] == fill(resolve({"augment_variants": 2}), read_spec())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [("RUNNING", State.running, None), ("SUCCEEDED", State.succeeded, None), ("FAILED", State.failed, "boom"),
     ("PENDING", State.queued, None), ("CANCELING", State.running, None),
     ("CANCELED", State.cancelled, None)],
)  # fmt: skip
def test_kubeflow_states_are_read(kubeflow: KubeflowServer, theirs: str, ours: State, message: str | None):
    kubeflow.state = theirs
    orchestrator = KubeflowOrchestrator(f"http://127.0.0.1:{kubeflow.server_port}", IMAGE)
    run = orchestrator.status(RunRef("r1", ""))
    assert run.state is ours
    assert (run.error.message if run.error else None) == message


@pytest.mark.filterwarnings("ignore")
def test_kubeflow_is_asked_for_a_named_run_before_one_is_made(kubeflow: KubeflowServer):
    """The server takes a name twice, so that what was submitted and not recorded has to be looked for."""
    orchestrator = KubeflowOrchestrator(f"http://127.0.0.1:{kubeflow.server_port}", IMAGE)
    with pytest.raises(RunNotFound):
        orchestrator.find("abc-1")
    assert orchestrator.submit({}, name="abc-1").id == "r1"
    kubeflow.named = "personalize-abc-1"
    assert orchestrator.submit({}, name="abc-1").id == orchestrator.find("abc-1").id == "r7"
    made = [path for command, path, _ in kubeflow.sent if command == "POST" and path.endswith("/runs")]
    assert len(made) == 1


@pytest.mark.filterwarnings("ignore")
def test_kubeflow_runs_can_be_cancelled(kubeflow: KubeflowServer):
    KubeflowOrchestrator(f"http://127.0.0.1:{kubeflow.server_port}", IMAGE).cancel(RunRef("r1", ""))
    assert [path for command, path, _ in kubeflow.sent if command == "POST"] == ["/apis/v2beta1/runs/r1:terminate"]


class VertexServer:
    """The three calls of Vertex AI's pipeline service that a job takes, over gRPC; keeps what was sent."""

    def __init__(self) -> None:
        import grpc
        from google.cloud.aiplatform_v1 import types
        from google.longrunning import operations_pb2
        from google.protobuf import empty_pb2

        self.sent: list[Any] = []
        self.taken = self.missing = False
        self.job = types.PipelineJob(name=JOB, state="PIPELINE_STATE_PENDING")
        calls = {
            "CreatePipelineJob": (types.CreatePipelineJobRequest, self._create, types.PipelineJob.serialize),
            "GetPipelineJob": (types.GetPipelineJobRequest, self._get, types.PipelineJob.serialize),
            "ListPipelineJobs": (
                types.ListPipelineJobsRequest,
                self._list,
                types.ListPipelineJobsResponse.serialize,
            ),
            "DeletePipelineJob": (
                types.DeletePipelineJobRequest,
                self._delete,
                operations_pb2.Operation.SerializeToString,
            ),
            "CancelPipelineJob": (
                types.CancelPipelineJobRequest,
                self._cancel,
                empty_pb2.Empty.SerializeToString,
            ),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(call, request.deserialize, serialise)
            for name, (request, call, serialise) in calls.items()
        }
        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        service = grpc.method_handlers_generic_handler("google.cloud.aiplatform.v1.PipelineService", handlers)
        self.server.add_generic_rpc_handlers((service,))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def _create(self, request: object, context: Any) -> object:
        import grpc

        self.sent.append(request)
        if self.taken:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, "there is such a job")
        return self.job

    def _get(self, _: object, context: Any) -> object:
        import grpc

        if self.missing:
            context.abort(grpc.StatusCode.NOT_FOUND, "there is no such job")
        return self.job

    def _list(self, request: object, _: object) -> object:
        from google.cloud.aiplatform_v1 import types

        self.sent.append(request)
        return types.ListPipelineJobsResponse(pipeline_jobs=[self.job])

    def _delete(self, request: object, _: object) -> object:
        from google.longrunning import operations_pb2

        self.sent.append(request)
        return operations_pb2.Operation(name="projects/p/locations/europe-west4/operations/1", done=True)

    def _cancel(self, request: object, _: object) -> object:
        from google.protobuf import empty_pb2

        self.sent.append(request)
        return empty_pb2.Empty()


@pytest.fixture
def vertex() -> Iterator[VertexServer]:
    server = VertexServer()
    yield server
    server.server.stop(None)


@pytest.fixture
def orchestrator(vertex: VertexServer) -> Iterator[VertexOrchestrator]:
    import grpc
    from google.cloud.aiplatform_v1.services.pipeline_service.transports import PipelineServiceGrpcTransport

    with grpc.insecure_channel(f"127.0.0.1:{vertex.port}") as channel:
        yield VertexOrchestrator(
            "p",
            "europe-west4",
            "gs://bucket/runs",
            IMAGE,
            "runner@p.example",
            {"team": "photos"},
            transport=PipelineServiceGrpcTransport(channel=channel),
        )


def test_vertex_gets_the_compiled_file_with_the_image_pinned(vertex: VertexServer, orchestrator: VertexOrchestrator):
    ref = orchestrator.submit({"augment_variants": "2"})
    assert ref.id == JOB
    assert ref.where.endswith("?project=p")
    (request,) = vertex.sent
    assert request.parent == "projects/p/locations/europe-west4"
    job = type(request.pipeline_job).to_dict(request.pipeline_job)
    assert job["pipeline_spec"]["root"] == json.loads(json.dumps(read_spec()["root"]))
    assert {e["container"]["image"] for e in job["pipeline_spec"]["deploymentSpec"]["executors"].values()} == {IMAGE}
    assert job["runtime_config"]["gcs_output_directory"] == "gs://bucket/runs"
    assert job["runtime_config"]["parameter_values"] == fill(resolve({"augment_variants": 2}), read_spec())
    assert job["service_account"] == "runner@p.example"
    assert job["labels"] == {"team": "photos"}


def test_a_run_is_given_a_key_of_its_own(vertex: VertexServer, orchestrator: VertexOrchestrator):
    """An owner's key is bound to the run by who submits it; a key that is bound already stays, and sample data open."""
    for key in ("vault://ada", "vault://ada/mine", "plain://demo"):
        orchestrator.submit({"key": key}, name="abc-1")
    given = [dict(request.pipeline_job.runtime_config.parameter_values)["key"] for request in vertex.sent]
    assert given == ["vault://ada/personalize-abc-1", "vault://ada/mine", "plain://demo"]


def test_vertex_has_a_named_job_once(vertex: VertexServer, orchestrator: VertexOrchestrator):
    """The name is the job's id; where the service says that it exists, it is that one."""
    first = orchestrator.submit({}, name="abc-1")
    assert vertex.sent[0].pipeline_job_id == "personalize-abc-1"
    vertex.taken = True
    again = orchestrator.submit({}, name="abc-1")
    assert again.id == "projects/p/locations/europe-west4/pipelineJobs/personalize-abc-1"
    assert again.where == first.where
    assert orchestrator.find("abc-1") == RunRef(JOB, first.where)
    vertex.missing = True
    with pytest.raises(RunNotFound):
        orchestrator.find("abc-1")


def test_vertex_tasks_are_steps(vertex: VertexServer, orchestrator: VertexOrchestrator):
    vertex.job.state = "PIPELINE_STATE_RUNNING"
    states = {"import-data": "SUCCEEDED", "validate": "RUNNING", "exit-handler-1": "RUNNING"}
    states |= {"register": "NOT_TRIGGERED", "configure": "SUCCEEDED", "augment": "SKIPPED"}
    vertex.job.job_detail = {"task_details": [{"task_name": n, "state": s} for n, s in states.items()]}
    run = orchestrator.status(RunRef(JOB, ""))
    assert run.state is State.running
    assert {s.name: s.state for s in run.steps if s.state is not State.queued} == {
        "configure": State.succeeded,
        "import_data": State.succeeded,
        "validate": State.running,
        "augment": State.reused,
        "register": State.skipped,
    }
    assert len(run.steps) == 11


def test_vertex_errors_are_passed_on(vertex: VertexServer, orchestrator: VertexOrchestrator):
    vertex.job.state = "PIPELINE_STATE_FAILED"
    vertex.job.error = {"code": 9, "message": "quota"}
    run = orchestrator.status(RunRef(JOB, ""))
    assert (run.state, run.error.message) == (State.failed, "quota")


def test_vertex_jobs_can_be_cancelled(vertex: VertexServer, orchestrator: VertexOrchestrator):
    orchestrator.cancel(RunRef(JOB, ""))
    assert vertex.sent[0].name == JOB


KEY = "vault://ada"


@pytest.fixture
def bucket(emulator: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of a pipeline root."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator)
    return f"gs://{new_bucket(emulator)}/runs"


def leave(root: str, emulator: str, folder: str, scratch: Path, *, told: bool = True) -> BlobStore:
    """What steps write below a pipeline root, sealed as they seal it."""
    store = open_store(root, client=storage_client(emulator))
    files = {
        "evaluate_-503/report-sealed": "<img>",
        "gate_12/decision": json.dumps({"verdict": "PASS", "reasons": []}),
        "finetune_7/adapter": "an adapter",
    }
    for name, content in files.items():
        with committed(scratch / Path(name).name, key=KEY) as plain:
            plain.write_text(content)
        store.put_new(f"{folder}/{name}", (scratch / Path(name).name).read_bytes())
    store.put_new(f"{folder}/evaluate_-503/report", b"numbers alone")
    if told:
        metrics = {"artifacts": {"metrics": {"artifacts": [{"metadata": {"identity_gain": 0.8}}]}}}
        store.put_new(f"{folder}/evaluate_-503/executor_output.json", json.dumps(metrics).encode())
    return store


def test_vertex_outputs_are_fetched_sealed_and_deleted(
    vertex: VertexServer, orchestrator: VertexOrchestrator, bucket: str, emulator: str, tmp_path: Path
):
    theirs = replace(orchestrator, pipeline_root=bucket, storage=storage_client(emulator))
    vertex.job.name = JOB.replace("projects/p/", "projects/123/")
    vertex.job.state = "PIPELINE_STATE_SUCCEEDED"
    vertex.job.runtime_config = {"parameter_values": {"key": KEY}}
    store = leave(bucket, emulator, "123/job-1", tmp_path / "made")
    leave(bucket, emulator, "123/job-2", tmp_path / "other")
    run, folder = theirs.collect(RunRef(JOB, ""), tmp_path / "fetched")
    assert (run.verdict, run.step("evaluate").metrics) == ("PASS", {"identity_gain": 0.8})
    report = folder / run.artifacts["evaluate"]["report"]
    assert report.read_text() == "numbers alone"
    with opened(sealed_beside(report), key=KEY) as plain:
        assert plain.read_text() == "<img>"
    adapter = folder / run.artifacts["finetune"]["adapter"]
    assert b"an adapter" not in adapter.read_bytes()
    with opened(adapter, key=KEY) as plain:
        assert plain.read_text() == "an adapter"
    theirs.discard("abc")
    assert [type(request).__name__ for request in vertex.sent] == [
        "ListPipelineJobsRequest",
        "CancelPipelineJobRequest",
        "DeletePipelineJobRequest",
    ]
    assert vertex.sent[0].filter == 'display_name:"*-abc-*"'
    assert {name.split("/")[1] for name in store.list()} == {"job-2"}


def test_a_run_that_left_nothing_is_told(
    vertex: VertexServer, orchestrator: VertexOrchestrator, bucket: str, emulator: str, tmp_path: Path
):
    theirs = replace(orchestrator, pipeline_root=bucket, storage=storage_client(emulator))
    with pytest.raises(InputError, match="left nothing"):
        theirs.collect(RunRef(JOB, ""), tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_kubeflow_outputs_are_fetched_and_deleted(kubeflow: KubeflowServer, bucket: str, emulator: str, tmp_path: Path):
    theirs = KubeflowOrchestrator(
        f"http://127.0.0.1:{kubeflow.server_port}", IMAGE, pipeline_root=bucket, storage=storage_client(emulator)
    )
    kubeflow.state, kubeflow.named, kubeflow.parameters = "SUCCEEDED", "personalize-abc-1", {"key": KEY}
    store = leave(bucket, emulator, "personalize/r7", tmp_path / "made")
    run, folder = theirs.collect(RunRef("r7", ""), tmp_path / "fetched")
    assert (run.verdict, run.step("evaluate").metrics) == ("PASS", {"identity_gain": 0.8})
    with opened(folder / run.artifacts["finetune"]["adapter"], key=KEY) as plain:
        assert plain.read_text() == "an adapter"
    ends, deletes = ("POST", "/apis/v2beta1/runs/r7:terminate"), ("DELETE", "/apis/v2beta1/runs/r7")
    theirs.discard("abc")
    assert list(store.list()) == []
    asked = [(command, path) for command, path, _ in kubeflow.sent]
    assert (ends in asked, deletes in asked) == (False, True), "it had ended"
    kubeflow.state = "RUNNING"
    theirs.discard("abc")
    assert ends in [(command, path) for command, path, _ in kubeflow.sent]


def test_a_wrong_parameter_never_leaves_this_machine(vertex: VertexServer, orchestrator: VertexOrchestrator):
    with pytest.raises(InputError, match="no such parameter"):
        orchestrator.submit({"finetune_rnk": 8})
    assert vertex.sent == []
