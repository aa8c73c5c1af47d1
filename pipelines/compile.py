"""`python -m pipelines.compile`: write the compiled pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from photoflux.manifest import write_text
from photoflux.params.form import NAMES
from pipelines.graph import COMPILED, parse_spec

WIDTH = 140


def compile_pipeline(into: Path = COMPILED) -> Path:
    """Compile `personalize` to one YAML file."""
    from kfp.compiler import Compiler

    from pipelines.personalize import personalize

    into.parent.mkdir(parents=True, exist_ok=True)
    Compiler().compile(personalize, str(into))
    return write_text(into, readable(into.read_text(encoding="utf-8")))


def readable(text: str) -> str:
    """A compiled text, the same document, for people: the form in its own order, and source text as it was written."""
    spec = parse_spec(text)
    form = spec["root"]["inputDefinitions"]["parameters"]
    spec["root"]["inputDefinitions"]["parameters"] = {name: form[name] for name in NAMES}
    head = [line for line in text.splitlines() if line.startswith(("# PIPELINE", "# Name", "# Description"))]
    return "\n".join([*head, yaml.dump(spec, Dumper=_ReadableDumper, sort_keys=False, width=WIDTH, allow_unicode=True)])


class _ReadableDumper(yaml.SafeDumper):
    """Writes text of several lines as a block, and on one line what fits there."""

    def represent_str(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        return super().represent_sequence(
            tag, sequence, flow_style=_fits_on_a_line(sequence) if flow_style is None else flow_style
        )

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        return super().represent_mapping(
            tag, mapping, flow_style=_fits_on_a_line([*mapping.values()]) if flow_style is None else flow_style
        )


def _fits_on_a_line(values: list[Any]) -> bool:
    return (
        not any(isinstance(value, (dict, list)) for value in values)
        and len(str(values)) < WIDTH / 2
        and "\\n" not in str(values)
    )


_ReadableDumper.add_representer(str, _ReadableDumper.represent_str)

if __name__ == "__main__":
    print(compile_pipeline())
