"""configure: resolve the parameters of every step, once, and check that nothing speaks against the run."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from photoflux.errors import InputError
from photoflux.manifest import write_text
from photoflux.params import STEP_PARAMS, Params
from photoflux.params.files import PARAMS, read_layer, resolve_with_recipes
from photoflux.params.resolve import Blocks, Layer, assignment, unflatten
from photoflux.preflight import preflight


def run(*layers: Layer, summary: Path) -> Blocks:
    """The parameters of every step, later layers overriding; `summary` (Markdown) lists them, and those that are not default.

    Raises InputError with everything that `preflight` finds.
    """
    blocks = resolve_with_recipes(*layers)
    if problems := preflight(blocks):
        raise InputError("; ".join(problems))
    write_text(summary, _summary(blocks))
    return blocks


def write_blocks(blocks: Mapping[str, Params], folder: Path) -> None:
    """`<step>.yaml` for each step, in the form of params.yaml with every value."""
    for step, params in blocks.items():
        write_text(folder / f"{step}.yaml", yaml.safe_dump({step: params.model_dump()}, sort_keys=False))


def main(argv: Sequence[str]) -> int:
    """`photoflux configure`: write each step's parameters to a folder."""
    args = _parser().parse_args(argv)
    given = dict(assignment(text) for text in args.set)
    blocks = run(read_layer(args.params), unflatten(given), summary=args.blocks / "summary.md")
    write_blocks(blocks, args.blocks)
    print(args.blocks)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="photoflux configure", description=__doc__)
    parser.add_argument(
        "--blocks", type=Path, required=True, help="folder for <step>.yaml of each step, and summary.md"
    )
    parser.add_argument("--params", type=Path, default=PARAMS, help="what differs from the defaults")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="any parameter, as <step>_<name>"
    )
    return parser


def _summary(blocks: Mapping[str, Params]) -> str:
    changed = [row for step, params in blocks.items() for row in _rows(step, params, changed=True)]
    lines = ["# Parameters of this run", "", "## What differs from the defaults", ""]
    lines += ["| parameter | value | default |", "|---|---|---|", *changed] if changed else ["Nothing."]
    for step, params in blocks.items():
        lines += ["", f"## {step}", "", "| parameter | value |", "|---|---|", *_rows(step, params)]
    return "\n".join(lines) + "\n"


def _rows(step: str, params: Params, *, changed: bool = False) -> list[str]:
    default = STEP_PARAMS[step]().model_dump()
    values = params.model_dump().items()
    if changed:
        return [f"| {step}_{n} | {_cell(v)} | {_cell(default[n])} |" for n, v in values if v != default[n]]
    return [f"| {name} | {_cell(value)} |" for name, value in values]


def _cell(value: object) -> str:
    text = str(value).replace("|", "\\|").replace("\n", " ")
    return f"`{text}`" if text else "(empty)"
