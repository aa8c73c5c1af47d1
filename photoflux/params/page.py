"""`python -m photoflux.params.page`: docs/parameters.md out of the models."""

from __future__ import annotations

from pathlib import Path

from photoflux.manifest import write_text
from photoflux.params import STEP_PARAMS, Params
from photoflux.params.model import allowed, kind_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parameters.md"
HEAD = """# Parameters

Written by `python -m photoflux.params.page` from the models in [photoflux/params](../photoflux/params); a test holds it fresh.
[params.yaml](../params.yaml) names the values that differ from these defaults, by step; the command line and the pipeline's form write
`<step>_<name>`, such as `finetune_steps`.
"""


def page() -> str:
    """The page: a section for each step, a row for each of its parameters."""
    return "\n".join([HEAD, *(_section(step, model) for step, model in STEP_PARAMS.items())])


def _section(step: str, model: type[Params]) -> str:
    rows = [
        f"| `{name}` | {_cell(field.default)} | {kind_of(field).__name__} | {allowed(field)} | {field.description} |"
        for name, field in model.model_fields.items()
    ]
    table = ["| name | default | type | allowed | what it is |", "|---|---|---|---|---|", *rows]
    return "\n".join([f"## {step}", str(model.__doc__), "", *table, ""])


def _cell(default: object) -> str:
    return f"`{default}`" if default != "" else "(empty)"


if __name__ == "__main__":
    print(write_text(PAGE, page()))
