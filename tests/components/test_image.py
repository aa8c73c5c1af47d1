"""From a wrapper to what kfp ships: a flat signature, a described form, a body that reports failures."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kfp.dsl import Dataset, Metrics, Output

from components._fields import scalar_fields
from components._image import IMAGE, source, step
from photoflux.params import ImportParams


def shout(text: Output[Dataset], metrics: Output[Metrics], key: str, params: ImportParams) -> None:
    """Say the class noun aloud."""
    from pathlib import Path

    Path(text.path).write_text(params.class_noun.upper() + key)
    metrics.log_metric("letters", len(params.class_noun))


def test_the_shipped_source_reads_as_if_written_by_hand():
    text = source(shout)
    assert text.startswith(
        "def shout(text: Output[Dataset], metrics: Output[Metrics], key: str, source: str, class_noun: str, "
        "trigger: str, subject_id: str, consent: str, max_files: int, max_file_mb: int) -> None:\n"
    )
    assert "with reported('shout', beside=text.path):" in text
    assert "params = ImportParams(source=source, class_noun=class_noun, " in text
    assert "max_files: Most photos one set may hold" in text


def test_a_component_knows_types_descriptions_and_its_image():
    component = step(shout).component_spec
    assert component.inputs["max_files"].type == "Integer"
    assert (
        component.inputs["class_noun"].description == ImportParams.__dataclass_fields__["class_noun"].metadata["help"]
    )
    assert "params" not in component.inputs
    assert component.implementation.container.image == IMAGE
    assert "pip" not in " ".join(component.implementation.container.command[:2])


def execute(tmp_path: Path, **values: object) -> Path:
    """Run the component's function as kfp's executor does; returns its task folder."""
    from kfp.dsl.executor import Executor

    task = tmp_path / "shout"
    task.mkdir()
    artifact = lambda name, kind: {  # noqa: E731
        "artifacts": [{"name": name, "uri": str(task / name), "metadata": {},
                       "type": {"schemaTitle": f"system.{kind}", "schemaVersion": "0.0.1"}}]}  # fmt: skip
    given = {
        "key": "!",
        "source": "x",
        "class_noun": "mug",
        "trigger": "sks",
        "subject_id": "m",
        "consent": "own",
    }
    given |= {"max_files": 3, "max_file_mb": 3} | values
    executor_input = {
        "inputs": {"parameterValues": given},
        "outputs": {
            "artifacts": {"text": artifact("text", "Dataset"), "metrics": artifact("metrics", "Metrics")},
            "outputFile": str(task / "out.json"),
        },
    }
    Executor(executor_input=executor_input, function_to_execute=step(shout).python_func).execute()
    return task


def test_the_component_runs_with_its_parameters_built_again(tmp_path: Path):
    task = execute(tmp_path)
    assert (task / "text").read_text() == "MUG!"
    logged = json.loads((task / "out.json").read_text())["artifacts"]["metrics"]["artifacts"][0]["metadata"]
    assert logged == {"letters": 3}


def test_a_parameter_out_of_range_is_reported_in_its_own_words(tmp_path: Path):
    with pytest.raises(Exception, match="max_files"):
        execute(tmp_path, max_files=0)
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert failure["step"] == "shout"
    assert failure["kind"] == "InputError"
    assert "max_files is 0: choose a value from 1 to 500" in failure["message"]


def test_a_block_with_anything_but_scalars_is_refused():
    @dataclass
    class Nested:
        sizes: list[int] = field(default_factory=list)

    with pytest.raises(
        TypeError, match=r"Nested.sizes is list\[int\]: a pipeline parameter is str, int, float or bool"
    ):
        scalar_fields(Nested)
