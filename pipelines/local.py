"""`python -m pipelines.local RUN_FOLDER [COMPILED [REUSED]]`: run the compiled pipeline on this machine, under kfp.local.

Started as a child process for a queued run; it reports progress only through the run's `run.json`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from photoflux.report import sealed_beside
from photoflux.runs import Failure, Run, State, load_run, read_document, read_failure, save_run
from photoflux.settings import get_settings
from pipelines.graph import COMPILED, exit_steps, read_spec
from pipelines.process import ROOT, SCRATCH, steps_lock

if TYPE_CHECKING:
    from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

SUFFIXES = {"HTML": ".html", "Markdown": ".md", "Dataset": ".tar", "Model": ".tar", "Artifact": ".json"}


def main(argv: list[str]) -> int:
    """Run the queued run in a folder to its end. Exit code 1 when it failed."""
    folder = Path(argv[0]).resolve()
    run = execute(folder, compiled=Path(argv[1]) if argv[1:] else COMPILED, reuse=Path(argv[2]) if argv[2:] else None)
    return 0 if run.state is State.succeeded else 1


def execute(folder: Path, *, compiled: Path = COMPILED, reuse: Path | None = None) -> Run:
    """Run the compiled file with the parameters in the folder's record; returns the ended run.

    Steps whose inputs equal those of an earlier run in `reuse`, a cache folder, are not run again.
    """
    recorder = Recorder(folder, always=exit_steps(read_spec(compiled)))
    with (
        steps_lock(folder) as lock,
        _run_scratch(folder / "work") as environment,
        _step_handler(recorder, environment, lock=lock),
        _observed_cache(recorder),
    ):
        cache = reuse / environment_digest(recorder.run.params) if reuse else None
        orchestrator_failure = _run_compiled(compiled, recorder.run.params, root=folder / "work", reuse=cache)
    return recorder.finish(recorder.failure or orchestrator_failure)


def environment_digest(params: Mapping[str, Any] = MappingProxyType({})) -> str:
    """A digest of what steps depend on besides their inputs: our code, installed packages, bases, prompts, and Great Expectations suites.

    Elsewhere these are in the image, whose digest is part of kfp's cache key; here they are in folders that people edit.
    """
    settings, total = get_settings(), hashlib.sha256()
    code = [file for part in ("photoflux", "components") for file in (ROOT / part).rglob("*.py")]
    for file in [
        *sorted(code),
        *sorted(settings.models_dir.rglob("*.yaml")),
        *sorted(file for file in settings.expectations_dir.glob("*") if file.is_file()),
        *_files_named(params),
    ]:
        total.update(f"{file.name}\0".encode() + file.read_bytes() + b"\0")
    total.update(repr(sorted((package.name, package.version) for package in distributions())).encode())
    return total.hexdigest()[:32]


def _files_named(params: Mapping[str, Any]) -> list[Path]:
    """Files that a run is given by their paths, alone or among its overrides, which its first step refuses where they are none."""
    values = list(params.values())
    with contextlib.suppress(ValueError, AttributeError):
        values += json.loads(params.get("overrides") or "{}").values()
    texts = [value for value in values if isinstance(value, str)]
    return [Path(text) for text in texts if os.path.isfile(text)]  # noqa: PTH113 (`Path` raises for a text that is too long)


def _run_compiled(compiled: Path, params: dict[str, Any], *, root: Path, reuse: Path | None) -> Failure | None:
    """Run the file under kfp.local; returns a failure of kfp itself, if any."""
    from kfp import components, local

    local.init(
        local.SubprocessRunner(use_venv=False),
        pipeline_root=str(reuse or root),
        workspace_root=str(root / "scratch"),
        enable_caching=reuse is not None,
    )
    pipeline = components.load_component_from_file(str(compiled))
    _drop_retries(pipeline.component_spec.implementation.graph)
    try:
        pipeline(**params)
    except Exception as error:
        return Failure("", f"the orchestrator stopped: {error}", "internal")
    return None


class Recorder:
    """Writes the run's record as its steps start and end; steps in `always` run even after a failure."""

    def __init__(self, folder: Path, *, always: Container[str]) -> None:
        self.folder = folder
        self.always = always
        self.failure: Failure | None = None
        self.run = load_run(folder)
        self._save(replace(self.run, state=State.running, pid=os.getpid()))

    def log(self, step: str) -> Path:
        return self.folder / "logs" / f"{step}.log"

    def may_start(self, step: str) -> bool:
        """Whether a step may start: after a failure of another one it would only delay the end of the run."""
        return self.failure is None or step in self.always

    def started(self, step: str) -> None:
        self._save(self.run.with_step(self.run.step(step).in_state(State.running)))

    def ended(self, step: str, *, exit_code: int, outputs: dict[str, Any]) -> None:
        if exit_code:
            self.failure = self.failure or self._failure_of(step, exit_code=exit_code, outputs=outputs)
            self._save(self.run.with_step(self.run.step(step).in_state(State.failed)))
            return
        done = replace(self.run.step(step).in_state(State.succeeded), metrics=_metrics(outputs))
        artifacts = self.run.artifacts | {step: _link_outputs(outputs, self.folder, step)}
        self._save(replace(self.run.with_step(done), artifacts=artifacts))

    def reused(self, step: str, outputs: dict[str, Any]) -> None:
        """Record a step that was not run, with the `outputs` of an earlier run, kfp's artifacts by name."""
        artifacts = {name: one for name, one in outputs.items() if hasattr(one, "uri")}
        places = {name: (type(one).schema_title, one.uri) for name, one in artifacts.items()}
        cached_metrics = artifacts["metrics"].metadata if "metrics" in artifacts else {}
        metrics = {name: float(value) for name, value in cached_metrics.items()}
        done = replace(self.run.step(step).in_state(State.running).in_state(State.reused), metrics=metrics)
        self._save(
            replace(
                self.run.with_step(done),
                artifacts=self.run.artifacts | {step: _link_artifacts(places, self.folder, step)},
            )
        )

    def finish(self, failure: Failure | None) -> Run:
        self._save(replace(self.run, verdict=_verdict(self.folder, self.run)))
        shutil.rmtree(self.folder / SCRATCH, ignore_errors=True)
        self._save(self.run.finished(State.failed if failure else State.succeeded, error=failure))
        return self.run

    def _failure_of(self, step: str, *, exit_code: int, outputs: dict[str, Any]) -> Failure:
        """The failure that the step reported; one made of its exit code where it reported none."""
        failure = read_failure(Path(outputs["outputFile"]).parent.parent)
        if failure and failure.step == step:
            shutil.copy(Path(outputs["outputFile"]).parent.parent / "failure.json", self.folder)
            return failure
        if killed := _signal_name(exit_code):
            hint = "; most often memory ran out" if killed == "SIGKILL" else ""
            return Failure(step, f"{step} was killed ({killed}){hint}: run again; nothing half-made was kept", killed)
        log = self.log(step).relative_to(self.folder)
        return Failure(step, f"{step} ended with code {exit_code}: see {log} in the run's folder", "internal")

    def _save(self, run: Run) -> None:
        self.run = run
        save_run(run, self.folder)


@contextlib.contextmanager
def _run_scratch(work: Path) -> Iterator[dict[str, str]]:
    """A scratch folder for the run; yields an environment whose `python3` is this interpreter."""
    (work / "bin").mkdir(parents=True)
    python = work / "bin" / "python3"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    try:
        yield os.environ | {"PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _step_handler(recorder: Recorder, environment: Mapping[str, str], *, lock: int) -> Iterator[None]:
    """Run steps by a handler of ours: kfp's prints their output, records nothing and hides the exit code.

    kfp.local has no way to register a handler, so its subprocess handler is replaced.
    """
    from kfp.local import subprocess_task_handler
    from kfp.local.status import Status

    original = subprocess_task_handler.SubprocessTaskHandler

    class StepHandler(original):  # type: ignore[misc, valid-type]
        def run(self) -> Status:
            code = _run_step(self.full_command, recorder, environment, lock=lock)
            return Status.FAILURE if code else Status.SUCCESS

    subprocess_task_handler.SubprocessTaskHandler = StepHandler  # type: ignore[misc]
    try:
        yield
    finally:
        subprocess_task_handler.SubprocessTaskHandler = original  # type: ignore[misc]


@contextlib.contextmanager
def _observed_cache(recorder: Recorder) -> Iterator[None]:
    """Tell the recorder which steps kfp takes from its cache; kfp has no hook for it, so two methods are replaced."""
    from kfp.local.cache import LocalCache

    compute, get = LocalCache.compute_key, LocalCache.get
    steps: dict[str, str] = {}

    def compute_key(self: Any, component_name: str, *args: Any, **more: Any) -> str:
        key: str = compute(self, component_name, *args, **more)
        steps[key] = component_name.removeprefix("comp-").replace("-", "_")
        return key

    def get_outputs(self: Any, key: str) -> dict[str, Any] | None:
        outputs: dict[str, Any] | None = get(self, key) if recorder.failure is None else None
        if outputs is None or not _lie_below(Path(self.cache_root).parent, outputs):
            return None
        recorder.reused(steps[key], outputs)
        return outputs

    LocalCache.compute_key, LocalCache.get = compute_key, get_outputs
    try:
        yield
    finally:
        LocalCache.compute_key, LocalCache.get = compute, get


def _lie_below(folder: Path, outputs: Mapping[str, Any]) -> bool:
    """Whether artifacts are where their cache is: it names them by whole paths, and a copy of it would name the original's."""
    return all(Path(one.uri).is_relative_to(folder) for one in outputs.values() if hasattr(one, "uri"))


def _run_step(command: list[str], recorder: Recorder, environment: Mapping[str, str], *, lock: int) -> int:
    """Run a step's command; it inherits the `lock` and holds it until it ends, so that it is known to be alive if we die."""
    step = command[command.index("--function_to_execute") + 1]
    outputs = json.loads(command[command.index("--executor_input") + 1])["outputs"]
    if not recorder.may_start(step):
        return 1
    recorder.started(step)
    with recorder.log(step).open("w") as log:
        done = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, pass_fds=[lock], check=False
        )
    recorder.ended(step, exit_code=done.returncode, outputs=outputs)
    return done.returncode


def _drop_retries(spec: PipelineSpec) -> None:
    """Remove the retry policies, which are for lost machines: on this one a failed step would fail again."""
    groups = [spec.root, *spec.components.values()]
    for task in (task for group in groups for task in group.dag.tasks.values()):
        task.ClearField("retry_policy")


def _link_outputs(outputs: dict[str, Any], folder: Path, step: str) -> dict[str, str]:
    """Link a step's output files below `artifacts/<step>/`; returns artifact name → path below the run's folder."""
    listed = {name: entry["artifacts"][0] for name, entry in outputs.get("artifacts", {}).items()}
    return _link_artifacts(
        {name: (one["type"]["schemaTitle"], one["uri"]) for name, one in listed.items()}, folder, step
    )


def _link_artifacts(artifacts: Mapping[str, tuple[str, str]], folder: Path, step: str) -> dict[str, str]:
    """As `_link_outputs`, for artifacts given by kfp type and path."""
    linked = {}
    for name, (kind, uri) in artifacts.items():
        suffix = SUFFIXES.get(kind.removeprefix("system."))
        source = Path(uri)
        if suffix and source.is_file():
            target = folder / "artifacts" / step / f"{name}{suffix}"
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
            if (twin := sealed_beside(source)).is_file():
                os.link(twin, sealed_beside(target))
            linked[name] = str(target.relative_to(folder))
    return linked


def _metrics(outputs: dict[str, Any]) -> dict[str, float]:
    file = Path(outputs["outputFile"])
    if not file.is_file():
        return {}
    listed = json.loads(file.read_text()).get("artifacts", {}).get("metrics", {}).get("artifacts", [{}])
    return {name: float(value) for name, value in listed[0].get("metadata", {}).items()}


def _verdict(folder: Path, run: Run) -> str:
    decision = read_document(run, folder, "gate", "decision")
    return str(decision["verdict"]) if decision else ""


def _signal_name(exit_code: int) -> str:
    """The name of the signal that ended a process, also when a shell passed it on as 128 + n."""
    number = -exit_code if exit_code < 0 else exit_code - 128
    return signal.Signals(number).name if number in set(signal.Signals) else ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
