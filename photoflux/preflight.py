"""Problems that would stop a run later, found before it starts, all in one list.

Files must exist, and are not hashed; those elsewhere (`hub:`, `gs://…`) are checked by the step that fetches them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from photoflux.errors import InputError
from photoflux.judges.prompts import load_prompts
from photoflux.params import Params
from photoflux.params.files import read_spec, spec_path
from photoflux.params.resolve import BASE
from photoflux.settings import get_settings

REMOTE = re.compile(r"hub:|[a-z][a-z0-9+]*://")


def preflight(blocks: Mapping[str, Params]) -> list[str]:
    """A sentence for each problem of a run with these parameters."""
    bases = sorted({str(getattr(params, BASE)) for params in blocks.values() if hasattr(params, BASE)})
    if len(bases) > 1:
        return [f"the steps name different bases ({', '.join(bases)}): a run has one; set `base` alone"]
    (base,) = bases
    try:
        spec = read_spec(base)
    except InputError as error:
        return [str(error)]
    values = {name: value for params in blocks.values() for name, value in _flat_values(params)}
    return [*_base_problems(base, spec), *_class_problems(spec, values), *_judge_problems(base, spec, values)]


def _flat_values(params: Params) -> Iterator[tuple[str, Any]]:
    yield from ((f"{params.step}.{name}", value) for name, value in params.model_dump().items())


def _base_problems(base: str, spec: Mapping[str, Any]) -> Iterator[str]:
    name = spec.get("name", base)
    if not spec.get("manifest"):
        yield (
            f"base '{name}' lists no files in its manifest; fetch it, look at it, and pin it with "
            f"`python -m photoflux.flux.provision {spec_path(base)}`"
        )
    if missing := _missing_folder(spec.get("folder"), base):
        yield f"base '{name}': folder {missing} is missing; copy it there or correct `folder` in the spec"


def _class_problems(spec: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    noun, known = values["import_photos.class_noun"], spec.get("class_nouns") or ()
    if known and noun not in known:
        yield f"class noun '{noun}' is unknown to base '{spec.get('name')}'; choose one of {', '.join(known)}"


def _judge_problems(base: str, spec: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    name = str(spec.get("name", base))
    if not spec.get("judges"):
        yield f"base '{name}' has no judges; set `judges` in its spec to a folder of CLIP and DINO weights"
    if missing := _missing_folder(spec.get("judges"), base):
        yield f"base '{name}': its judges, {missing}, are missing; copy them there or correct `judges` in the spec"
    for prompts in sorted({values["evaluate.prompts"] or name, values["audit.prompts"] or name}):
        try:
            load_prompts(prompts, folder=get_settings().models_dir)
        except InputError as error:
            yield str(error)
    card = values["audit.judge_card"]
    if card and not Path(card).is_file():
        yield f"{card}: not a readable judge card (there is no such file); make one with `photoflux label`"


def _missing_folder(place: str | None, base: str) -> Path | None:
    """A local folder that a spec names and that does not exist; paths are relative to the spec's folder."""
    if not place or REMOTE.match(place):
        return None
    folder = (spec_path(base).parent / place).resolve()
    return None if folder.is_dir() else folder
