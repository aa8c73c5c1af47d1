"""`python -m pipelines.compile`: write the compiled pipeline, with the defaults of params.yaml."""

from __future__ import annotations

from pathlib import Path

from pipelines.graph import COMPILED
from pipelines.parameters import ROOT, defaults


def compile_pipeline(into: Path = COMPILED, *, params: Path = ROOT / "params.yaml") -> Path:
    """Compile `personalize` to one YAML file."""
    from kfp.compiler import Compiler

    from pipelines.personalize import build

    into.parent.mkdir(parents=True, exist_ok=True)
    Compiler().compile(build(defaults(params)), str(into))
    return into


if __name__ == "__main__":
    print(compile_pipeline())
