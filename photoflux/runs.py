"""The record of a run, whatever runs it: its steps, their states, its error and its files.

A run is one folder: `run.json` (this record), `logs/<step>.log`, `artifacts/<step>/…` and, after a failure,
`failure.json`.
"""

from __future__ import annotations

import errno
import json
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from photoflux.errors import InputError, PhotoFluxError
from photoflux.manifest import write_json

RECORD, FAILURE = "run.json", "failure.json"
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class State(StrEnum):
    """The state of a run or of one step."""

    queued = "queued"
    running = "running"
    succeeded = "succeeded"
    reused = "reused"
    failed = "failed"
    skipped = "skipped"
    cancelled = "cancelled"

    @property
    def ended(self) -> bool:
        return self not in (State.queued, State.running)


@dataclass(frozen=True)
class StepRun:
    """One step of one run. Times are ISO 8601 in UTC, empty until they are known."""

    name: str
    title: str
    state: State = State.queued
    started: str = ""
    ended: str = ""
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Seconds since the step started, until now or its end; 0 before it starts."""
        if not self.started:
            return 0.0
        end = datetime.fromisoformat(self.ended) if self.ended else datetime.now(UTC)
        return (end - datetime.fromisoformat(self.started)).total_seconds()

    def in_state(self, state: State) -> StepRun:
        """The step in its next state, with the time of the change."""
        if state is State.running:
            return replace(self, state=state, started=now(), ended="")
        return replace(self, state=state, ended=now() if self.started else "")


@dataclass(frozen=True)
class Failure:
    """Why a run failed: the failing step's error message. `kind` is the error's class name."""

    step: str
    message: str
    kind: str


@dataclass(frozen=True)
class Run:
    """The record of one run."""

    id: str
    pipeline: str
    steps: tuple[StepRun, ...]
    params: dict[str, Any]
    state: State = State.queued
    created: str = ""
    ended: str = ""
    pid: int = 0
    error: Failure | None = None
    verdict: str = ""
    artifacts: dict[str, dict[str, str]] = field(default_factory=dict)
    """step → artifact name → path below the run's folder"""

    def step(self, name: str) -> StepRun:
        return next(step for step in self.steps if step.name == name)

    def with_step(self, changed: StepRun) -> Run:
        return replace(self, steps=tuple(changed if step.name == changed.name else step for step in self.steps))

    def finished(self, state: State, *, error: Failure | None = None) -> Run:
        """The ended run: running steps end like the run, queued ones are skipped."""
        end_states = {
            State.queued: State.skipped,
            State.running: State.failed if state is State.succeeded else state,
        }
        steps = tuple(
            step.in_state(end_states[step.state]) if step.state in end_states else step for step in self.steps
        )
        return replace(self, state=state, steps=steps, error=error, ended=now())


def now() -> str:
    """The present time, as records write it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def new_run(pipeline: str, *, steps: Mapping[str, str], params: Mapping[str, Any], name: str = "") -> Run:
    """A queued run, its id made of `name` or fresh; `steps` maps names to titles in the order they run."""
    run_id = f"{pipeline}-{name or f'{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}'}"
    titled = tuple(StepRun(name, title) for name, title in steps.items())
    return Run(id=run_id, pipeline=pipeline, steps=titled, params=dict(params), created=now())


def save_run(run: Run, folder: Path) -> Path:
    """Write the record atomically."""
    record = asdict(run) | {"steps": [asdict(step) | {"seconds": round(step.seconds, 3)} for step in run.steps]}
    return write_json(folder / RECORD, record)


def load_run(folder: Path) -> Run:
    """The record in a run's folder. Raises InputError when there is none."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no readable run there ({error}); see the runs folder for their ids") from error
    steps = tuple(_step(step) for step in record.pop("steps"))
    failure = record.pop("error")
    state = State(record.pop("state"))
    return Run(**record, steps=steps, state=state, error=Failure(**failure) if failure else None)


def _step(record: dict[str, Any]) -> StepRun:
    fields = {key: value for key, value in record.items() if key != "seconds"}
    return StepRun(**fields | {"state": State(record["state"])})


@contextmanager
def report_failure(step: str, *, output: str | Path) -> Iterator[None]:
    """Run a step's body; if it raises, write its error sentence to the run's `failure.json`.

    The orchestrator tells its exit task only that something failed. Outputs lie at `<run>/<task>/<output>`, so the folder two
    levels above `output` is one that the failing step and the exit task share.
    """
    folder = Path(output).parent.parent
    try:
        yield
    except Exception as error:
        with suppress(OSError):  # a full disk must not hide the first error
            write_json(folder / FAILURE, asdict(Failure(step, sentence(error), type(error).__name__)))
        raise


def read_document(run: Run, folder: Path, step: str, name: str) -> dict[str, Any] | None:
    """A JSON artifact of a step, opened with the run's key; None where there is none."""
    from photoflux.vault import opened

    if not (path := run.artifacts.get(step, {}).get(name)):
        return None
    with opened(folder / path, key=str(run.params.get("key", "plain://demo"))) as unsealed:
        return dict(json.loads(unsealed.read_text(encoding="utf-8")))


def read_failure(folder: Path) -> Failure | None:
    """The failure that `report_failure` wrote into a run's folder; None where there is none."""
    try:
        return Failure(**json.loads((folder / FAILURE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def sentence(error: BaseException) -> str:
    """The error as one line that says what to do."""
    if isinstance(error, PhotoFluxError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return f"no space left to write {error.filename or 'the output'}: free some disk space and run again"
    if isinstance(error, MemoryError):
        return "out of memory: close other programs or use a smaller base, batch or picture size, and run again"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {(error.strerror or 'cannot be used').lower()}; check it and run again"
    detail = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {detail}" if detail else f"unexpected {type(error).__name__}"
