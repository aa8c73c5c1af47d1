"""The compiled file is the contract: fresh, installing nothing, one image, a flat typed form."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from components._image import IMAGE
from photoflux.params import STEP_PARAMS, load_params
from pipelines.compile import compile_pipeline
from pipelines.graph import COMPILED, parameters, pipeline_graph, read_spec, step_titles
from pipelines.orchestrators import pin_image
from pipelines.parameters import STEPS

TEXT = COMPILED.read_text()
SPEC = read_spec()
EXECUTORS = {
    name.removeprefix("exec-").replace("-", "_"): executor["container"]
    for name, executor in SPEC["deploymentSpec"]["executors"].items()
}
NEVER_CACHED = {"import_data", "fetch_champion", "gate", "register", "notify"}
ON_A_DEVICE = {"finetune", "evaluate", "audit"}


def tasks() -> dict[str, dict]:
    """Every executed task, in whatever group."""
    groups = [SPEC["root"], *SPEC["components"].values()]
    found = {name: task for group in groups for name, task in group.get("dag", {}).get("tasks", {}).items()}
    return {
        name.replace("-", "_"): task
        for name, task in found.items()
        if "executorLabel" in SPEC["components"][task["componentRef"]["name"]]
    }


def test_the_committed_file_is_fresh(tmp_path: Path):
    assert compile_pipeline(tmp_path / "personalize.yaml").read_text() == TEXT, "run `make compile`"


def test_every_step_of_the_pipeline_is_there():
    assert set(tasks()) == set(EXECUTORS) == {
        "import_data", "validate", "augment", "finetune", "fetch_champion", "evaluate", "audit", "gate", "register", "notify",
    }  # fmt: skip


def test_nothing_is_installed_at_run_time():
    assert not re.search(r"\b(pip|ensurepip|apt-get)\b", TEXT)


def test_one_image_runs_everything():
    assert {container["image"] for container in EXECUTORS.values()} == {IMAGE}


def test_accelerators_stand_only_where_pictures_are_drawn():
    assert {name for name, c in EXECUTORS.items() if "accelerator" in c.get("resources", {})} == ON_A_DEVICE
    assert {name for name, c in EXECUTORS.items() if "resources" in c} == ON_A_DEVICE


def test_steps_that_look_at_or_change_the_world_are_never_cached():
    cached = {name for name, task in tasks().items() if task["cachingOptions"].get("enableCache")}
    assert set(tasks()) - cached == NEVER_CACHED


def test_only_steps_that_may_lose_their_machine_or_remote_are_retried():
    assert {name for name, task in tasks().items() if "retryPolicy" in task} == ON_A_DEVICE | {
        "import_data",
        "fetch_champion",
    }


def test_titles_read_as_prose():
    titles = step_titles(SPEC)
    assert next(iter(titles)) == "import_data"
    assert list(titles)[-1] == "notify"
    assert all(re.fullmatch(r"[A-Z][a-z-]+( [a-z-]+)+", title) for title in titles.values()), titles


def test_parameters_are_the_dataclasses_flat_typed_and_described():
    described = SPEC["root"]["inputDefinitions"]["parameters"]
    expected = {f"{step}_{f.name}": f for step in STEPS for f in dataclasses.fields(STEP_PARAMS[step])}
    assert set(described) == {*expected, "key"}
    kinds = {"str": "STRING", "int": "NUMBER_INTEGER", "float": "NUMBER_DOUBLE", "bool": "BOOLEAN"}
    for name, field in expected.items():
        assert described[name]["parameterType"] == kinds[str(field.type)], name
        assert described[name]["description"] == field.metadata["help"], name


def test_defaults_are_those_of_the_params_file(root: Path):
    compiled = parameters(SPEC)
    for step in STEPS:
        for name, value in dataclasses.asdict(load_params(step, path=root / "params.yaml")).items():
            assert compiled[f"{step}_{name}"] == value
            assert type(compiled[f"{step}_{name}"]) is type(value)


def test_the_graph_is_the_designed_one():
    assert pipeline_graph() == {
        "import_data": frozenset(),
        "validate": {"import_data"},
        "augment": {"validate"},
        "finetune": {"augment"},
        "fetch_champion": {"augment"},
        "evaluate": {"augment", "finetune", "fetch_champion"},
        "audit": {"finetune"},
        "gate": {"evaluate", "audit"},
        "register": {"finetune", "gate", "evaluate", "audit"},
        "notify": frozenset(),
    }


def test_registering_waits_for_the_gates_yes():
    conditional = next(
        task
        for group in SPEC["components"].values()
        for task in group.get("dag", {}).get("tasks", {}).values()
        if "condition" in task.get("triggerPolicy", {})
    )
    assert re.search(r"gate-Output'\] == true$", conditional["triggerPolicy"]["condition"])
    inside = SPEC["components"][conditional["componentRef"]["name"]]["dag"]["tasks"]
    assert list(inside) == ["register"]


def test_a_digest_changes_image_lines_only():
    pinned = pin_image(TEXT, "registry.example/photoflux@sha256:" + "0" * 64)
    changed = [
        (before, after) for before, after in zip(TEXT.splitlines(), pinned.splitlines(), strict=True) if before != after
    ]
    assert len(changed) == len(EXECUTORS)
    for before, after in changed:
        assert before.strip() == f"image: {IMAGE}"
        assert after.strip() == "image: registry.example/photoflux@sha256:" + "0" * 64


@pytest.mark.parametrize("name", sorted(set(EXECUTORS) - {"fetch_champion", "notify"}))
def test_a_component_takes_exactly_its_blocks_fields(name: str):
    block = STEP_PARAMS["import_photos" if name == "import_data" else name]
    inputs = SPEC["components"][f"comp-{name.replace('_', '-')}"]["inputDefinitions"]["parameters"]
    assert set(inputs) == {f.name for f in dataclasses.fields(block)} | {"key"}
