"""Read the compiled file: its steps, which of them each one reads, and the parameters of its form."""

from __future__ import annotations

import graphlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

COMPILED = Path(__file__).resolve().parent / "compiled" / "personalize.yaml"
TYPES = {"STRING": str, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": float, "BOOLEAN": bool}
Spec = dict[str, Any]


def read_spec(path: Path = COMPILED) -> Spec:
    """The pipeline document of a compiled file, cached while the file does not change; callers must not modify it."""
    state = path.stat()
    return _parsed(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)
def _parsed(path: Path, *_: int) -> Spec:
    return parse_spec(path.read_text(encoding="utf-8"))


def parse_spec(text: str) -> Spec:
    """The first document of a compiled text (a second one, if any, is platform-specific)."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    spec: Spec = next(iter(yaml.load_all(text, Loader=loader)))
    return spec


def parameters(spec: Spec) -> dict[str, Any]:
    """Pipeline parameter → default, typed (a compiled file holds every number as a float)."""
    described = spec["root"]["inputDefinitions"]["parameters"]
    return {name: TYPES[entry["parameterType"]](entry["defaultValue"]) for name, entry in described.items()}


def step_graph(spec: Spec) -> dict[str, frozenset[str]]:
    """Step → the steps whose outputs it reads; exit handlers and conditions are flattened."""
    return {name: frozenset(reads) for name, _, reads in _steps(spec)}


def step_titles(spec: Spec) -> dict[str, str]:
    """Step → display name, in an order they may run in, the exit task last."""
    titles = {name: title for name, title, _ in _steps(spec)}
    graph = {name: sorted(reads) for name, reads in step_graph(spec).items()}  # sorted: the order is the same each time
    order = graphlib.TopologicalSorter(graph).static_order()
    return {name: titles[name] for name in sorted(order, key=exit_steps(spec).__contains__)}


def exit_steps(spec: Spec) -> set[str]:
    """The steps that run however the others ended."""
    return {_step_name(name) for name, task in spec["root"]["dag"]["tasks"].items() if "triggerPolicy" in task}


def _steps(spec: Spec) -> Iterator[tuple[str, str, set[str]]]:
    yield from _walk(spec["root"]["dag"]["tasks"], spec["components"], {})


def _walk(tasks: Spec, components: Spec, outer: Mapping[str, set[str]]) -> Iterator[tuple[str, str, set[str]]]:
    """Each executed task with its title and sources; `outer` says where the group's own inputs come from."""
    for name, task in tasks.items():
        sources = {key: _sources(entry, outer) for key, entry in _inputs(task)}
        component = components[task["componentRef"]["name"]]
        if "dag" in component:
            yield from _walk(component["dag"]["tasks"], components, sources)
        else:
            yield _step_name(name), task["taskInfo"]["name"], set().union(*sources.values())


def _inputs(task: Spec) -> Iterator[tuple[str, Spec]]:
    for kind in ("artifacts", "parameters"):
        yield from task.get("inputs", {}).get(kind, {}).items()


def _sources(entry: Spec, outer: Mapping[str, set[str]]) -> set[str]:
    for kind in ("taskOutputArtifact", "taskOutputParameter"):
        if kind in entry:
            return {_step_name(entry[kind]["producerTask"])}
    return outer.get(entry.get("componentInputArtifact") or entry.get("componentInputParameter", ""), set())


def _step_name(task: str) -> str:
    return task.replace("-", "_")
