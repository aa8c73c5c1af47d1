"""DVC and Kubeflow run the same graph: the pure steps read from the same steps in both."""

from __future__ import annotations

from pathlib import Path

import yaml

from pipelines.graph import read_spec, step_graph

PURE = ("validate", "augment", "finetune", "evaluate", "audit")


def dvc_graph(path: Path) -> dict[str, set[str]]:
    """Stage → the stages whose outputs it depends on."""
    stages = yaml.safe_load(path.read_text())["stages"]
    makers = {_path(out): name for name, stage in stages.items() for out in _listed(stage)}
    return {name: {makers[dep] for dep in stage.get("deps", []) if dep in makers} for name, stage in stages.items()}


def _listed(stage: dict) -> list:
    return [out for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]


def _path(out: str | dict) -> str:
    return out if isinstance(out, str) else next(iter(out))


def test_pure_steps_have_the_same_sources_in_both(root: Path):
    dvc, kfp = dvc_graph(root / "dvc.yaml"), step_graph(read_spec())
    for step in PURE:
        assert dvc[step] & set(PURE) == kfp[step] & set(PURE), step
