"""The configure component: its form is the models' own, and what it gives each step is lineage, whole and unaltered."""

import json
from pathlib import Path
from typing import Any

import pytest
from kfp.dsl import Markdown

from components.configure import configure
from photoflux.errors import InputError
from photoflux.params import STEP_PARAMS, FinetuneParams, as_dict
from photoflux.params.form import fill_form, form
from photoflux.params.resolve import STEPS

TYPES = {"String": str, "Integer": int, "Float": float, "Boolean": bool}


def configured(tmp_path: Path, **values: Any) -> dict[str, str]:
    (tmp_path / "configure").mkdir()
    summary = Markdown(name="summary", uri=str(tmp_path / "configure" / "summary"))
    given = {**fill_form({}, key="plain://demo"), **values}
    said = configure.python_func(summary=summary, **given)
    return dict(zip([*STEPS, "source_state"], said, strict=True))


def test_names_types_and_help_are_those_of_the_models():
    inputs = configure.component_spec.inputs
    assert [*inputs] == [*form()]
    for name, field in form().items():
        assert TYPES[inputs[name].type] is field.kind, name
        assert inputs[name].description == field.help, name


def test_it_gives_each_step_its_block():
    assert {*configure.component_spec.outputs} == {*STEPS, "source_state", "summary"}


def test_a_form_as_it_is_means_the_defaults(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(root)
    said = configured(tmp_path)
    assert {step: json.loads(said[step]) for step in STEPS} == {step: as_dict(STEP_PARAMS[step]()) for step in STEPS}
    assert "Nothing." in (tmp_path / "configure" / "summary").read_text()


def test_what_is_filled_in_reaches_its_step_and_no_other(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch):
    """Whole numbers arrive as floats where a server passes them on as JSON."""
    monkeypatch.chdir(root)
    said = configured(tmp_path, finetune_steps=12.0, overrides='{"finetune_high_sigmas": 0.5, "finetune_rank": 8}')
    assert FinetuneParams.from_block(said["finetune"]) == FinetuneParams(steps=12, high_sigmas=0.5, rank=8)
    assert type(json.loads(said["finetune"])["steps"]) is int
    assert json.loads(said["augment"]) == as_dict(STEP_PARAMS["augment"]())
    page = (tmp_path / "configure" / "summary").read_text()
    assert "| finetune_steps | `12` | `100` |" in page
    assert "audit_alpha" not in page.partition("## import_photos")[0]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"finetune_steps": 20_000}, "finetune.steps is 20000: choose a value from 1 to 10000."),
        ({"overrides": '{"finetune_rnk": 8}'}, "finetune_rnk: no such parameter; did you mean finetune_rank"),
        ({"overrides": "rank: 8"}, "overrides: not JSON"),
        ({"overrides": "[8]"}, "overrides: write one JSON object"),
        ({"overrides": '{"x": "' + "y" * 4000 + '"}'}, "overrides: 4009 characters; 4000 are allowed"),
        ({"import_photos_source": "{{$}}"}, "import_photos_source: holds '{{'"),
        ({"import_photos_class_noun": "zeppelin"}, "class noun 'zeppelin' is unknown to base 'pocket'"),
        ({"base": "none"}, "base 'none': models/none.yaml cannot be read"),
    ],
)
def test_what_stands_against_a_run_ends_it_here_in_its_own_words(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], sentence: str
):
    monkeypatch.chdir(root)
    with pytest.raises(InputError) as error:
        configured(tmp_path, **values)
    assert sentence in str(error.value)
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert (failure["step"], failure["kind"]) == ("configure", "InputError")
    assert sentence in failure["message"]
