"""What goes over the wire: times as they always were, and codes of failures that are really set."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from api import schemas
from api.images.generator import CODES
from api.routes import me
from api.schemas import ExportFailure, GenerationFailure, RunFailure, StepPublic, Time, failure, iso, utc

API = Path(schemas.__file__).parent
SETTERS = {
    "end_run": ("runs",), "end_generation": ("generations",), "end_export": ("exports",), "mark_failed": ("runs",),
    "end": ("generations",), "fail": ("exports",), "end_without_model": ("runs",), "_end": ("runs", "exports"), "_update": ("runs",),
}  # fmt: skip
"""Functions that are given a code, and of what."""
STATES = {"succeeded", "failed", "cancelled"}
KINDS = {"runs": RunFailure, "generations": GenerationFailure, "exports": ExportFailure}


class Clock(BaseModel):
    at: Time


@given(st.integers(min_value=0, max_value=4_102_444_800_000))
def test_a_time_is_written_as_it_always_was(at_ms: int) -> None:
    shown = Clock(at=utc(at_ms))
    written = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
    assert shown.model_dump(mode="json")["at"] == shown.model_dump()["at"] == iso(at_ms) == written
    assert Clock.model_validate_json(shown.model_dump_json()) == shown, "a stored answer is read again"


@pytest.mark.parametrize(
    ("said", "written"),
    [("2026-11-27T05:59:24.916+00:00", "2026-11-27T05:59:24.916+00:00"),
     ("2026-11-27T07:59:24.916+02:00", "2026-11-27T05:59:24.916+00:00"), ("2026-11-27T05:59:24Z", "2026-11-27T05:59:24.000+00:00")],
)  # fmt: skip
def test_a_time_is_written_in_utc_with_milliseconds(said: str, written: str) -> None:
    assert Clock.model_validate({"at": said}).model_dump_json() == f'{{"at":"{written}"}}'


def test_a_step_that_has_not_begun_has_no_times() -> None:
    step = StepPublic.model_validate(
        {"name": "gate", "title": "Gate", "state": "queued", "started": "", "ended": "", "progress": ""}
    )
    assert (step.started, step.ended) == (None, None)


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_code_that_this_program_does_not_know_is_internal(kind: type[schemas.Failure]) -> None:
    assert failure(kind, "cancelled", "the run was cancelled") == kind(
        code="cancelled", message="the run was cancelled"
    )
    for code in (None, "of-a-newer-program"):
        found = failure(kind, code, "why")
        assert found is not None
        assert (found.code, found.message) == ("internal", "why")
    assert failure(kind, None, None) is None


def known(kind: str) -> set[str]:
    """Codes that the schema tells of."""
    return set(get_args(KINDS[kind].model_fields["code"].annotation))


def set_in(tree: ast.AST) -> Iterator[tuple[tuple[str, ...], str]]:
    """Of what and which code, for each call that is given one."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if name not in SETTERS:
            continue
        words = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        words = words[1:] if words and words[0] in STATES and name in ("end", "_end") else words
        words += [
            str(more.value.value)
            for more in node.keywords
            if more.arg in ("code", "error_code") and isinstance(more.value, ast.Constant)
        ]
        for word in words[:1]:
            yield SETTERS[name], word


def returned_by(tree: ast.AST, name: str) -> set[str]:
    """First words of the pairs that a function returns."""
    (function,) = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name]
    pairs = [n.value for n in ast.walk(function) if isinstance(n, ast.Return) and isinstance(n.value, ast.Tuple)]
    return {c.value for pair in pairs for c in ast.walk(pair.elts[0]) if isinstance(c, ast.Constant)}


def test_every_code_that_is_set_is_told_of_and_every_other_one_is_not() -> None:
    found: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for file in sorted(API.rglob("*.py")):
        of_whom = {"export.py": "exports", "finetuning.py": "runs", "generator.py": "generations"}.get(file.name)
        for kinds, code in set_in(ast.parse(file.read_text())):
            if code in STATES - {"cancelled", "failed"}:
                continue
            assert len(kinds) == 1 or of_whom in kinds or file.name == "workflows.py", (file.name, code)
            # in workflows.py only exports `fail`
            found[kinds[0] if len(kinds) == 1 else of_whom or "exports"].add(code)
    found["runs"] |= returned_by(ast.parse((API / "training" / "finetuning.py").read_text()), "_failure")
    found["generations"] |= set(CODES.values())
    assert found == {kind: known(kind) for kind in KINDS}


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        (schemas.RunPublic,
         '{"id":"1","subject":"2","state":"queued","steps":[],"error":null,"estimate":{"seconds":240.0},"actual":null,"model":null,'
         '"created":"2026-11-27T05:59:24.916+00:00","finished":null}'),
        (me.ExportPublic,
         '{"id":"1","state":"queued","sha256":null,"bytes":null,"error":null,"error_code":null,"url":null,'
         '"created":"2026-11-27T05:59:24.916+00:00","expires":null}'),
    ],
)  # fmt: skip
def test_an_answer_that_an_older_program_stored_is_given_again(kind: type[BaseModel], stored: str) -> None:
    read = kind.model_validate_json(stored)
    assert '"created":"2026-11-27T05:59:24.916+00:00"' in read.model_dump_json()
