"""The compiled file is the contract: fresh, installing nothing, one image, a short typed form."""

from __future__ import annotations

import re
from pathlib import Path

from components._image import IMAGE
from photoflux.params.form import form
from pipelines.compile import compile_pipeline
from pipelines.graph import COMPILED, parameters, read_spec, step_graph, step_titles
from pipelines.orchestrators import pin_image

TEXT = COMPILED.read_text()
SPEC = read_spec()
EXECUTORS = {
    name.removeprefix("exec-").replace("-", "_"): executor["container"]
    for name, executor in SPEC["deploymentSpec"]["executors"].items()
}
NEVER_CACHED = {"configure", "fetch_champion", "gate", "register", "notify"}
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
    assert (
        set(tasks())
        == set(EXECUTORS)
        == {
            "configure",
            "import_data",
            "validate",
            "augment",
            "finetune",
            "fetch_champion",
            "evaluate",
            "audit",
            "gate",
            "register",
            "notify",
        }
    )


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
    assert list(titles)[:2] == ["configure", "import_data"]
    assert list(titles)[-1] == "notify"
    assert all(re.fullmatch(r"[A-Z][a-z-]+( [a-z-]+)+", title) for title in titles.values()), titles


def test_it_reads():
    """By a person, and by servers that take no file of any size."""
    assert len(TEXT.splitlines()) < 1_500
    assert len(TEXT.encode()) < 70_000


def test_the_form_is_short_typed_described_and_the_models_own():
    described = SPEC["root"]["inputDefinitions"]["parameters"]
    kinds = {str: "STRING", int: "NUMBER_INTEGER", float: "NUMBER_DOUBLE", bool: "BOOLEAN"}
    assert len(described) <= 25
    assert set(described) == set(form())
    for name, field in form().items():
        assert described[name]["parameterType"] == kinds[field.kind], name
        assert described[name]["description"] == field.help, name
    compiled = parameters(SPEC)
    assert compiled == {name: field.default for name, field in form().items()}
    assert all(type(compiled[name]) is field.kind for name, field in form().items())


def test_a_step_is_told_its_own_block_by_configure_and_nothing_else():
    """A parameter that changes runs the steps whose block it changes, and those that read from them."""
    said_to = {"import_data": "import_photos", "fetch_champion": "register"}
    for name, task in tasks().items():
        if name in ("configure", "notify"):
            continue
        told = task["inputs"]["parameters"]
        assert set(told) - {"source_state"} == {"key", "params"}, name
        source = told["params"].get("taskOutputParameter", {"producerTask": "configure"}) | {"name": name}
        assert source["producerTask"] == "configure"
        named = source.get("outputParameterKey") or told["params"]["componentInputParameter"]
        assert named.removeprefix("pipelinechannel--configure-") == said_to.get(name, name)


def test_the_graph_is_the_designed_one():
    assert step_graph(read_spec()) == {
        "configure": frozenset(),
        "import_data": {"configure"},
        "validate": {"configure", "import_data"},
        "augment": {"configure", "validate"},
        "finetune": {"configure", "augment"},
        "fetch_champion": {"configure", "augment"},
        "evaluate": {"configure", "augment", "finetune", "fetch_champion"},
        "audit": {"configure", "finetune"},
        "gate": {"configure", "evaluate", "audit"},
        "register": {"configure", "finetune", "gate", "evaluate", "audit"},
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
