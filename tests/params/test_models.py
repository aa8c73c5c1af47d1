"""The parameter models: what they take, and the sentence for what they do not."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from photoflux.errors import InputError
from photoflux.params import STEP_PARAMS, AuditParams, FinetuneParams, GateParams, ImportParams, Params, as_dict
from photoflux.params.files import load_params, read_layer
from photoflux.params.model import allowed, kind_of, limits
from photoflux.params.page import PAGE, page

FIELDS = [(step, name) for step, model in STEP_PARAMS.items() for name in model.model_fields]
NUMBERS = [(step, name) for step, name in FIELDS if kind_of(STEP_PARAMS[step].model_fields[name]) in (int, float)]


@pytest.mark.parametrize(("step", "name"), FIELDS)
def test_a_field_is_a_described_scalar_with_a_default_in_its_range(step: str, name: str):
    field = STEP_PARAMS[step].model_fields[name]
    assert kind_of(field) in (str, int, float, bool)
    assert type(field.default) is kind_of(field)
    assert re.fullmatch(r"\S.*[^. ]", field.description or "")
    assert STEP_PARAMS[step](**{name: field.default}) == STEP_PARAMS[step]()
    if (step, name) in NUMBERS:
        assert limits(field)
        assert allowed(field) not in str(field.description)


@pytest.mark.parametrize(("step", "name"), NUMBERS)
def test_a_number_outside_of_its_range_is_told_with_the_range(step: str, name: str):
    field = STEP_PARAMS[step].model_fields[name]
    low, high = limits(field) or ("", "")
    for value in (float(low) - 1, float(high) + 1):
        with pytest.raises(InputError) as error:
            STEP_PARAMS[step](**{name: kind_of(field)(value)})
        assert str(error.value).startswith(f"{step}.{name} is ")
        assert f"choose a value from {low} to {high}." in str(error.value)


@pytest.mark.parametrize(
    ("step", "values", "sentence"),
    [
        ("finetune", {"rank": "many"}, "finetune.rank: 'many' is not a valid int"),
        ("finetune", {"rank": 1.5}, "finetune.rank: '1.5' is not a valid int"),
        ("finetune", {"rank": True}, "finetune.rank: 'True' is not a valid int"),
        ("finetune", {"lr": "nan"}, "finetune.lr: 'nan' is not a valid float"),
        ("finetune", {"lr": float("inf")}, "finetune.lr: 'inf' is not a valid float"),
        ("finetune", {"base": True}, "finetune.base: 'True' is not a valid str"),
        ("finetune", {"base": None}, "finetune.base: 'None' is not a valid str"),
        ("finetune", {"steps": 10**30}, f"finetune.steps is {10**30}: choose a value from 1 to 10000."),
        ("finetune", {"select": "worst"}, "finetune.select is 'worst': choose one of best, last."),
        ("evaluate", {"profile": "big"}, "evaluate.profile is 'big': choose one of smoke, standard, release."),
        ("augment", {"heldout": 0}, "augment.heldout is 0: evaluation needs a photo that was not trained on; choose -1 or 1-10."),
        ("augment", {"resolution_px": 100}, "augment.resolution_px is 100: choose 0 or a multiple of 16 from 64 to 2048."),
        ("import_photos", {"source": " "}, "import_photos.source is ' ': give a folder of photos, dvc:REPO@REV:PATH or blob:SET_ID."),
        ("import_photos", {"class_noun": "d0g"}, "import_photos.class_noun is 'd0g': give one plain noun such as dog, mug or person."),
        ("import_photos", {"trigger": "two words"},
         "import_photos.trigger is 'two words': use 1-20 lower-case letters or digits, such as sks."),
        ("register", {"name": "Rex"}, "register.name is 'Rex': use 1-63 of a-z, 0-9, - and _, such as rex-2."),
        ("gate", {"calibration": "x"}, "gate.calibration is 'x': give 16 hex digits, or leave it empty."),
        ("generate", {"size": "9x9"}, "generate.size is '9x9': write WIDTHxHEIGHT, each from 16 to 4096, such as 512x512."),
        ("register", {"nmae": "x"}, "register: unknown parameter 'nmae'; known are experiment, name"),
        ("register", {"name": "{{$}}"}, "register.name: holds '{{', which a pipeline replaces by what it knows; write it without"),
        ("validate", {"min_photos": 9}, "validate: min_photos, advised_min, advised_max and max_photos must rise in this order."),
        ("validate", {"aspect_min": 0.6}, "validate.aspect_min must not exceed validate.aspect_advised: a warning comes first."),
        ("finetune", {"preservation_batch": 0},
         "finetune.preservation_batch is 0: preserve at least one prompt a step, or set preservation to 0."),
        ("audit", {"erasure": 0.6}, "audit.erasure, ratio_high and ratio_moderate must rise in this order."),
        ("audit", {"missing_moderate": 0.2}, "audit.missing_moderate must not exceed missing_high: a signature comes before a refusal."),
        ("gate", {"leakage_warn": 0.9},
         "gate: a warning must come before its limit (identity_gain_warn >= identity_gain_min, leakage_warn <= leakage_max)."),
        ("finetune", {"rank": 0, "steps": 0},
         "finetune.rank is 0: choose a value from 1 to 256. finetune.steps is 0: choose a value from 1 to 10000."),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_that_says_what_is_allowed(step: str, values: dict[str, Any], sentence: str):
    with pytest.raises(InputError) as error:
        STEP_PARAMS[step](**values)
    assert str(error.value) == sentence


@pytest.mark.parametrize("text", ["{{$}}", "{{workflow.name}}", "/kfp-workspace/x"])
@pytest.mark.parametrize(("step", "name"), [one for one in FIELDS if one not in NUMBERS])
def test_no_text_holds_what_an_orchestrator_replaces(step: str, name: str, text: str):
    with pytest.raises(InputError, match=rf"^{step}\.{name}: holds "):
        STEP_PARAMS[step](**{name: text})


def test_text_is_read_as_what_the_field_is():
    assert FinetuneParams(rank="8", lr="0.01", select="last") == FinetuneParams(rank=8, lr=0.01, select="last")
    assert ImportParams(subject_id=7).subject_id == "7"
    assert type(FinetuneParams(alpha=8).alpha) is float


def test_parameters_are_frozen_and_compared_by_value():
    params = FinetuneParams(rank=8)
    with pytest.raises(ValidationError):
        params.rank = 9  # type: ignore[misc]
    assert {params: 1}[FinetuneParams(rank=8)] == 1
    assert params.replace(steps=9) == FinetuneParams(rank=8, steps=9)
    with pytest.raises(InputError, match=r"finetune.steps is 0"):
        params.replace(steps=0)
    assert pickle.loads(pickle.dumps(params)) == params


@pytest.mark.parametrize("model", STEP_PARAMS.values(), ids=str)
def test_a_block_is_read_as_it_was_written(model: type[Params]):
    assert model.from_block(model().block()) == model()
    assert list(json.loads(model().block())) == list(model.model_fields)


@given(st.text())
def test_a_block_holds_nothing_that_a_pipeline_replaces(text: str):
    """Whatever a text is: two braces in a row are only ever written with an escape."""

    class Loose(Params):
        step = "loose"
        text: str = ""

    block = Loose.model_construct(text=f"{{{{$}}}}{text}{{{{{{{{").block()
    assert "{{" not in block
    assert json.loads(block)["text"] == f"{{{{$}}}}{text}{{{{{{{{"


def test_the_file_names_only_what_differs_from_the_defaults(root: Path):
    """But for the base and the source of the photos, which dvc.yaml reads there."""
    said = dict(read_layer(root / "params.yaml"))
    assert "${base}" in (root / "dvc.yaml").read_text()
    assert said.pop("base")
    same = [
        f"{step}.{name}"
        for step, block in said.items()
        for name, value in block.items()
        if as_dict(STEP_PARAMS[step]())[name] == value
    ]
    assert same == ["import_photos.source"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read (No such file or directory); run from the checkout or pass --params"),
        ("a: [", "not valid YAML"),
        ("- a", "must hold one mapping per step"),
        ("finetune: 3", "must hold one mapping per step"),
        ("fintune: {}", "no step is called 'fintune'; steps are import_photos, validate"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: str | None, sentence: str):
    file = tmp_path / "params.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError) as error:
        load_params("finetune", path=file)
    assert str(error.value).startswith(f"{file}: ")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_the_file_and_then_the_command_line_come_over_the_defaults(tmp_path: Path):
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump({"audit": {"alpha": 0.01, "bootstrap": 300}, "gate": {"leakage_max": 0.2}}))
    assert load_params("audit", path=file, overrides={"bootstrap": "400"}) == AuditParams(alpha=0.01, bootstrap=400)
    assert load_params("gate", path=file) == GateParams(leakage_max=0.2)
    file.write_text("")
    assert load_params("gate", path=file) == GateParams()


def test_the_page_of_parameters_is_fresh():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m photoflux.params.page`"
