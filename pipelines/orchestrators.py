"""Orchestrators of the compiled pipeline behind one interface: a child process, Vertex AI, a Kubeflow Pipelines server."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from photoflux.errors import InputError, PhotoFluxError
from photoflux.params import check_text
from photoflux.runs import RECORD, Failure, Run, State, StepRun, load_run, new_run, save_run
from photoflux.vault import key_for_run
from photoflux.vault.blobs import BlobStore, open_store
from pipelines import outputs, process
from pipelines.graph import COMPILED, Spec, parse_spec, read_spec, step_titles
from pipelines.parameters import fill, resolve

log = logging.getLogger(__name__)

REUSE_FOLDER = ".reused"
"""Folder beside the runs with kfp's cache of step outputs."""
LOST = "lost"
"""Kind of the failure of a run whose runner was killed: no step of it failed, so that it may be started again."""


class RunNotFound(PhotoFluxError):
    """No run of that name exists, or it was deleted."""


@dataclass(frozen=True)
class RunRef:
    """A submitted run: its id, and where a person can look at it (a folder or a console page)."""

    id: str
    where: str


class Orchestrator(Protocol):
    """Starts, observes and ends runs of the compiled pipeline."""

    poll_interval_s: float
    """Seconds between two calls of `status`: services limit how often they are called."""

    def submit(self, params: Mapping[str, Any], *, name: str = "") -> RunRef:
        """Start a run with `params` over those of params.yaml. Raises InputError for a wrong one.

        With a `name` it is started once: submitted again, it is the existing run of that name, in whatever state.
        """

    def find(self, name: str) -> RunRef:
        """The run that was submitted under a name. Raises RunNotFound."""

    def status(self, ref: RunRef) -> Run:
        """The present state of the run."""

    def cancel(self, ref: RunRef) -> None:
        """End the run. Does nothing to one that has ended."""

    def collect(self, ref: RunRef, into: Path) -> tuple[Run, Path]:
        """The ended run with its artifacts, verdict and measurements, and the folder that they lie in.

        Whatever ran elsewhere is fetched to `into`, sealed as it is.
        """

    def discard(self, name: str) -> None:
        """End the runs submitted as `name-1`, `name-2`, … and delete all their files and records; may be repeated."""


@dataclass
class LocalOrchestrator:
    """Runs the pipeline in a child process; a run is a folder below `runs_dir`.

    With `reuse`, outputs of steps are cached beside the runs, and a step with equal inputs is not run again.
    """

    runs_dir: Path
    compiled: Path = COMPILED
    reuse: bool = False
    poll_interval_s: float = 0.3
    _children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, repr=False)

    def submit(self, params: Mapping[str, Any], *, name: str = "") -> RunRef:
        return self.start(fill(resolve(params), read_spec(self.compiled)), name=name)

    def start(self, params: Mapping[str, Any], *, name: str = "") -> RunRef:
        """Start a run of whatever pipeline `compiled` holds, with these parameters and no checks of them."""
        run = _queued_run(read_spec(self.compiled), params, name)
        folder = (self.runs_dir / run.id).resolve()
        # a step's files are named to it like its parameters
        check_text(f"the runs folder {self.runs_dir}", str(folder))
        folder.mkdir(parents=True, exist_ok=bool(name))
        with process.run_lock(folder, has_started=lambda: _has_started(folder)) as lock:
            if lock is not None and not _has_started(folder):
                save_run(run, folder)
                reuse_folder = self.runs_dir.resolve() / REUSE_FOLDER if self.reuse else None
                self._children[run.id] = process.start(folder, self.compiled, lock=lock, reuse=reuse_folder)
        return RunRef(run.id, str(folder))

    def find(self, name: str) -> RunRef:
        folder = (self.runs_dir / _run_id(read_spec(self.compiled), name)).resolve()
        if not (folder / RECORD).exists():
            raise RunNotFound(f"{folder.name}: is not here, or was deleted")
        return RunRef(load_run(folder).id, str(folder))

    def status(self, ref: RunRef) -> Run:
        """The run's state. It is LOST once its runner has died and the steps that outlived it are ended, too."""
        folder = Path(ref.where)
        # asked first: a runner that ends after this has recorded its end before `load_run`
        alive = process.runner_is_alive(folder)
        run = load_run(folder)
        if not alive:
            self._reap_child(ref.id)
        if alive or run.state.ended:
            return run
        try:
            self._end(ref.id, folder)
        except TimeoutError as error:
            log.warning("%s", error)
            return run
        tail = process.stderr_tail(folder)
        why = f"the run's own process ended before the run did ({tail}): run again"
        return self._record_end(folder, State.failed, Failure("", why, LOST))

    def cancel(self, ref: RunRef) -> None:
        """End the run and every process of it. Raises TimeoutError where one cannot be ended."""
        folder = Path(ref.where)
        self._end(ref.id, folder)
        self._record_end(folder, State.cancelled, None)

    def collect(self, ref: RunRef, into: Path) -> tuple[Run, Path]:  # noqa: ARG002
        return self.status(ref), Path(ref.where)

    def discard(self, name: str) -> None:
        for folder in self.runs_dir.glob(f"*-{name}-*"):
            self._end(folder.name, folder)
            shutil.rmtree(folder)

    def shutdown(self) -> None:
        """End the processes of the runs that this object started; each is then LOST, and can be started again."""
        for run_id in list(self._children):
            self._end(run_id, (self.runs_dir / run_id).resolve())

    def _end(self, run_id: str, folder: Path) -> None:
        """End every process of a run, whoever started it. Raises TimeoutError where one cannot be ended."""
        if group := self._process_group(run_id, folder):
            process.terminate(folder, group)
        self._reap_child(run_id)

    def _reap_child(self, run_id: str) -> None:
        """Wait for a runner that has released its lock, so that no zombie is left."""
        if child := self._children.pop(run_id, None):
            child.kill()  # does nothing to one that has ended
            child.wait()

    def _process_group(self, run_id: str, folder: Path) -> int:
        """Process group of the run, waited for while the run is starting; 0 when no process is alive."""
        deadline = time.monotonic() + process.START_TIMEOUT_S
        while process.is_alive(folder):
            child = self._children.get(run_id)
            if group := _pid(folder) or (child.pid if child and child.poll() is None else 0):
                return group
            if time.monotonic() > deadline:
                raise TimeoutError(f"{folder.name}: is starting and does not get on; cancel it again in a moment")
            time.sleep(process.POLL_S)
        return 0

    def _record_end(self, folder: Path, state: State, why: Failure | None) -> Run:
        """Record the end of a run whose runner could not, unless it is recorded or another process is starting the run."""
        with process.run_lock(folder, has_started=lambda: process.runner_is_alive(folder)) as lock:
            run = load_run(folder)
            if lock is None or run.state.ended:
                return run
            for left in ("work", process.SCRATCH):
                shutil.rmtree(folder / left, ignore_errors=True)
            run = run.finished(state, error=why)
            save_run(run, folder)
            return run


@dataclass
class VertexOrchestrator:
    """Submits the same compiled file to Vertex AI Pipelines, with `image`, a name and digest, in it.

    Caching and retries are those of each task. `transport` and `storage`, a client, replace the public services'.
    """

    project: str
    location: str
    pipeline_root: str
    image: str
    service_account: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    transport: Any = None
    storage: Any = None
    compiled: Path = COMPILED
    poll_interval_s: float = 10.0

    def submit(self, params: Mapping[str, Any], *, name: str = "") -> RunRef:
        from google.api_core.exceptions import AlreadyExists

        spec = read_spec(self.compiled)
        run = _queued_run(spec, fill(resolve(params), spec), name)
        job_name = f"{self._parent}/pipelineJobs/{run.id}"
        with suppress(AlreadyExists):
            job = self._client().create_pipeline_job(
                parent=self._parent, pipeline_job=self.job(run), pipeline_job_id=run.id
            )
            job_name = job.name
        return self._ref(job_name, run.id)

    def find(self, name: str) -> RunRef:
        from google.api_core.exceptions import NotFound

        run_id = _run_id(read_spec(self.compiled), name)
        try:
            job = self._client().get_pipeline_job(name=f"{self._parent}/pipelineJobs/{run_id}")
        except NotFound as error:
            raise RunNotFound(f"{run_id}: is not there, or was deleted") from error
        return self._ref(job.name, run_id)

    @property
    def _parent(self) -> str:
        return f"projects/{self.project}/locations/{self.location}"

    def _ref(self, job_name: str, run_id: str) -> RunRef:
        console = "https://console.cloud.google.com/vertex-ai/locations"
        return RunRef(job_name, f"{console}/{self.location}/pipelines/runs/{run_id}?project={self.project}")

    def job(self, run: Run) -> Any:
        """The pipeline job of a run, as Vertex's API takes it."""
        from google.cloud.aiplatform_v1 import PipelineJob

        fail_fast = "PIPELINE_FAILURE_POLICY_FAIL_FAST"
        return PipelineJob(
            display_name=run.id,
            pipeline_spec=parse_spec(pin_image(self.compiled.read_text(encoding="utf-8"), self.image)),
            runtime_config={
                "gcs_output_directory": self.pipeline_root,
                "parameter_values": run.params,
                "failure_policy": fail_fast,
            },
            service_account=self.service_account,
            labels=dict(self.labels),
        )

    def status(self, ref: RunRef) -> Run:
        job = self._client().get_pipeline_job(name=ref.id)
        started = {task.task_name.replace("-", "_"): task for task in job.job_detail.task_details}
        steps = tuple(
            StepRun(name, title, _task_state(started[name].state.name) if name in started else State.queued)
            for name, title in step_titles(read_spec(self.compiled)).items()
        )
        return _as_run(job.name, job.state.name, job.error.message, steps)

    def cancel(self, ref: RunRef) -> None:
        self._client().cancel_pipeline_job(name=ref.id)

    def collect(self, ref: RunRef, into: Path) -> tuple[Run, Path]:
        job = self._client().get_pipeline_job(name=ref.id)
        run = replace(self.status(ref), params=dict(job.runtime_config.parameter_values))
        return outputs.fetch(run, self._store(), f"{_outputs_of(job.name)}/", into)

    def discard(self, name: str) -> None:
        from google.api_core.exceptions import FailedPrecondition

        client, query = self._client(), f'display_name:"*-{name}-*"'
        for job in client.list_pipeline_jobs(request={"parent": self._parent, "filter": query}):
            with suppress(FailedPrecondition):  # it has ended
                client.cancel_pipeline_job(name=job.name)
            outputs.delete_all(self._store(), f"{_outputs_of(job.name)}/")
            client.delete_pipeline_job(name=job.name)

    def _store(self) -> BlobStore:
        return open_store(self.pipeline_root, client=self.storage)

    def _client(self) -> Any:
        from google.cloud.aiplatform_v1 import PipelineServiceClient

        if self.transport:
            return PipelineServiceClient(transport=self.transport)
        return PipelineServiceClient(client_options={"api_endpoint": f"{self.location}-aiplatform.googleapis.com"})


@dataclass
class KubeflowOrchestrator:
    """Submits the same compiled file to a Kubeflow Pipelines server."""

    host: str
    image: str
    namespace: str = "kubeflow"
    token: str | None = None
    pipeline_root: str = ""
    storage: Any = None
    compiled: Path = COMPILED
    poll_interval_s: float = 10.0

    def submit(self, params: Mapping[str, Any], *, name: str = "") -> RunRef:
        spec = read_spec(self.compiled)
        run = _queued_run(spec, fill(resolve(params), spec), name)
        if name and (known := self._find_by_name(run.id)):
            return self._ref(known)
        with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
            pinned = Path(scratch) / self.compiled.name
            pinned.write_text(pin_image(self.compiled.read_text(encoding="utf-8"), self.image), encoding="utf-8")
            created = self._client().create_run_from_pipeline_package(
                str(pinned),
                arguments=run.params,
                run_name=run.id,
                namespace=self.namespace,
                pipeline_root=self.pipeline_root or None,
            )
        return self._ref(created.run_id)

    def find(self, name: str) -> RunRef:
        run_id = _run_id(read_spec(self.compiled), name)
        if known := self._find_by_name(run_id):
            return self._ref(known)
        raise RunNotFound(f"{run_id}: is not there, or was deleted")

    def _find_by_name(self, name: str) -> str | None:
        """Id of the server's run of that name, if any: the server makes ids of its own, and allows a name twice."""
        found = self._list_runs("EQUALS", name)
        return str(found[0].run_id) if found else None

    def _list_runs(self, operation: str, name: str) -> list[Any]:
        query = {"predicates": [{"operation": operation, "key": "display_name", "stringValue": name}]}
        return list(self._client().list_runs(namespace=self.namespace, filter=json.dumps(query)).runs or [])

    def _ref(self, run_id: str) -> RunRef:
        return RunRef(run_id, f"{self.host}/#/runs/details/{run_id}")

    def status(self, ref: RunRef) -> Run:
        """The server's run; it names tasks by ids of its own, so `steps` is empty."""
        run = self._client().get_run(ref.id)
        return _as_run(run.run_id, str(run.state), run.error.message if run.error else "", ())

    def cancel(self, ref: RunRef) -> None:
        self._client().terminate_run(ref.id)

    def collect(self, ref: RunRef, into: Path) -> tuple[Run, Path]:
        run, spec = self._client().get_run(ref.id), read_spec(self.compiled)
        steps = tuple(StepRun(name, title, State.succeeded) for name, title in step_titles(spec).items())
        known = replace(self.status(ref), steps=steps, params=dict(run.runtime_config.parameters))
        return outputs.fetch(known, self._store(), self._folder(ref.id), into)

    def discard(self, name: str) -> None:
        for run in self._list_runs("IS_SUBSTRING", f"-{name}-"):
            if not _state(str(run.state)).ended:
                self._client().terminate_run(run.run_id)
            outputs.delete_all(self._store(), self._folder(run.run_id))
            self._client().delete_run(run.run_id)

    def _store(self) -> BlobStore:
        return open_store(self.pipeline_root, client=self.storage)

    def _folder(self, run_id: str) -> str:
        return f"{read_spec(self.compiled)['pipelineInfo']['name']}/{run_id}/"

    def _client(self) -> Any:
        from kfp import Client

        return Client(host=self.host, namespace=self.namespace, existing_token=self.token)


def pin_image(text: str, image: str) -> str:
    """The compiled text with its one image replaced by `image`; nothing else differs."""
    return re.sub(r"^(\s*image: ).*$", lambda found: found.group(1) + image, text, flags=re.MULTILINE)


def _outputs_of(job: str) -> str:
    """Where below the pipeline root a job's outputs lie, from its name, which has the project's number."""
    _, project, *_, job_id = job.split("/")
    return f"{project}/{job_id}"


def _queued_run(spec: Spec, params: Mapping[str, Any], name: str = "") -> Run:
    """A queued run; an owner's key URI is bound to it, unless whoever submits it has bound it to another already."""
    run = new_run(spec["pipelineInfo"]["name"], steps=step_titles(spec), params=params, name=name)
    if "key" not in run.params:
        return run
    return replace(run, params={**run.params, "key": key_for_run(str(run.params["key"]), run.id)})


def _run_id(spec: Spec, name: str) -> str:
    """The id of the run that is submitted under a name."""
    return _queued_run(spec, {}, name).id


def _pid(folder: Path) -> int:
    """Process id of the runner, which it records before anything else; 0 before that."""
    with suppress(InputError):
        return load_run(folder).pid
    return 0


def _has_started(folder: Path) -> bool:
    """Whether the runner has recorded its process id, so that a step may have started, or the run has ended."""
    with suppress(InputError):
        run = load_run(folder)
        return bool(run.pid) or run.state.ended
    return False


def _as_run(name: str, state: str, message: str, steps: tuple[StepRun, ...]) -> Run:
    error = Failure("", message, "remote") if message else None
    return Run(id=name, pipeline="personalize", steps=steps, params={}, state=_state(state), error=error)


def _task_state(name: str) -> State:
    """The state of a task on Vertex, where SKIPPED means found in the cache; a task that was left out is NOT_TRIGGERED."""
    return State.reused if name == "SKIPPED" else _state(name)


def _state(name: str) -> State:
    """`PIPELINE_STATE_RUNNING`, `SUCCEEDED`, `CANCELLING`, … as one of ours."""
    word = name.removeprefix("PIPELINE_STATE_").lower()
    stems = {
        "succe": State.succeeded,
        "fail": State.failed,
        "cancelled": State.cancelled,
        "canceled": State.cancelled,
    }
    stems |= {"skip": State.skipped, "not_tri": State.skipped, "run": State.running, "cancel": State.running}
    stems |= {"paus": State.running}
    return next((state for stem, state in stems.items() if word.startswith(stem)), State.queued)
