"""Every wrapper hands its step all that the step asks for, and stays a wrapper."""

import ast
import importlib
import inspect
import typing
from pathlib import Path

import pytest

from photoflux.steps import StepResult

WRAPPED = ("validate", "augment", "finetune", "evaluate", "audit", "gate", "register")
COMPONENTS = Path(__file__).resolve().parents[2] / "components"
NOT_WIRED = {"finetune": {"workdir"}, "register": {"sign_off"}}
"""What only other callers give: a folder to resume from, and a person's answer, which comes after the run."""


def component(name: str) -> typing.Any:
    return getattr(importlib.import_module(f"components.{name}"), name)


def run_of(name: str) -> inspect.Signature:
    return inspect.signature(importlib.import_module(f"photoflux.steps.{name}").run)


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapper_has_every_file_its_step_reads_and_writes(name: str):
    spec = component(name).component_spec
    files = {*(spec.inputs or {}), *(spec.outputs or {})} - {"metrics", "Output", "key", "params"}
    assert files == set(run_of(name).parameters) - {"params", "key"} - NOT_WIRED.get(name, set())


@pytest.mark.parametrize("name", WRAPPED)
def test_inputs_are_inputs_and_outputs_are_outputs(name: str):
    spec, signature = component(name).component_spec, run_of(name)
    read = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert set(read) <= set(spec.inputs)
    assert typing.get_type_hints(importlib.import_module(f"photoflux.steps.{name}").run)["return"] is StepResult


@pytest.mark.parametrize("name", [*WRAPPED, "import_data", "fetch_champion", "notify"])
def test_a_wrapper_only_wraps(name: str):
    """Nothing but kfp and the decorator at the top; one screen, a short body, no branch in it."""
    tree = ast.parse((COMPONENTS / f"{name}.py").read_text())
    imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert imported <= {"kfp.dsl", "components._image"}
    assert len((COMPONENTS / f"{name}.py").read_text().splitlines()) <= 40
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert function.end_lineno - function.body[0].lineno < 25
    assert not [node for node in ast.walk(function) if isinstance(node, ast.If | ast.Try | ast.While)]


@pytest.mark.parametrize("name", [*WRAPPED, "import_data", "fetch_champion", "configure"])
def test_a_failure_is_reported_under_the_steps_own_name_beside_an_output(name: str):
    """The exit task looks for it two levels above an output."""
    (function,) = [
        node for node in ast.parse((COMPONENTS / f"{name}.py").read_text()).body if isinstance(node, ast.FunctionDef)
    ]
    (frame,) = [node for node in function.body if isinstance(node, ast.With)]
    call = frame.items[0].context_expr
    assert ast.unparse(call).startswith(f"report_failure('{name}', output=")
    output = ast.unparse(call.keywords[0].value).removesuffix(".path")
    assert output in component(name).component_spec.outputs
    assert frame is function.body[-1]
