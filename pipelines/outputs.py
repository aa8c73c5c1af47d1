"""Outputs of a run in a bucket: fetch them into the layout of a local run, or delete them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from photoflux.errors import InputError
from photoflux.runs import Run, read_document
from photoflux.vault.blobs import BlobStore

EXECUTOR_OUTPUT = "executor_output.json"
"""kfp's file about a step's outputs, with their metadata: metrics are there."""
TASK_NUMBER = re.compile(r"_-?\d+$")


def fetch(run: Run, store: BlobStore, prefix: str, into: Path) -> tuple[Run, Path]:
    """Write the files below `prefix`, `TASK/…/OUTPUT`, to `into` as they are; returns the run with them, and `into`.

    Raises InputError when there are none: they were deleted, or another pipeline root was used.
    """
    artifacts: dict[str, dict[str, str]] = {}
    for blob in store.list(prefix):
        task, *_, output = blob.removeprefix(prefix).split("/")
        step = TASK_NUMBER.sub("", task).replace("-", "_")
        file = into / "artifacts" / step / output
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(store.get(blob))
        if output == EXECUTOR_OUTPUT:
            run = _with_metrics(run, step, json.loads(file.read_text(encoding="utf-8")))
        else:
            artifacts.setdefault(step, {})[output] = str(file.relative_to(into))
    if not artifacts:
        raise InputError(f"{run.id}: left nothing below {prefix} of its pipeline root; run it again")
    run = replace(run, artifacts=artifacts)
    decision = read_document(run, into, "gate", "decision")
    return replace(run, verdict=str(decision["verdict"]) if decision else ""), into


def delete_all(store: BlobStore, prefix: str) -> None:
    """Delete every object below a prefix."""
    for blob in list(store.list(prefix)):
        store.delete(blob)


def _with_metrics(run: Run, step: str, executor_output: dict[str, Any]) -> Run:
    listed = executor_output.get("artifacts", {}).get("metrics", {}).get("artifacts", [{}])
    metrics = {name: float(value) for name, value in listed[0].get("metadata", {}).items()}
    known = {one.name for one in run.steps}
    return run.with_step(replace(run.step(step), metrics=metrics)) if step in known else run
