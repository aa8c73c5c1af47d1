"""What a run left in a bucket: fetched as the files that a run on this machine has, or deleted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from photoflux.errors import InputError
from photoflux.runs import Run, read_document
from photoflux.vault.blobs import BlobStore

TOLD = "executor_output.json"
"""What a step says of its outputs, its measurements among them."""
NUMBER = re.compile(r"_-?\d+$")


def fetched(run: Run, store: BlobStore, prefix: str, into: Path) -> tuple[Run, Path]:
    """A run with the files below `prefix`, `TASK/…/OUTPUT`, which are written to `into` as they are.

    Raises InputError when there are none: they were deleted, or another pipeline root was used.
    """
    artifacts: dict[str, dict[str, str]] = {}
    for blob in store.list(prefix):
        task, *_, output = blob.removeprefix(prefix).split("/")
        step = NUMBER.sub("", task).replace("-", "_")
        file = into / "artifacts" / step / output
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(store.get(blob))
        if output == TOLD:
            run = _measured(run, step, json.loads(file.read_text(encoding="utf-8")))
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


def _measured(run: Run, step: str, told: dict[str, Any]) -> Run:
    listed = told.get("artifacts", {}).get("metrics", {}).get("artifacts", [{}])
    metrics = {name: float(value) for name, value in listed[0].get("metadata", {}).items()}
    known = {one.name for one in run.steps}
    return run.with_step(replace(run.step(step), metrics=metrics)) if step in known else run
