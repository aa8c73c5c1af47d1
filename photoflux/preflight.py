"""What would stop a run later, said before it starts: everything that is wrong, in one list.

Files are looked for, not hashed; whatever lies elsewhere (`hub:`, `gs://…`) is looked at by the step that fetches it.
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
    """A sentence for each thing that stands against a run with these parameters; none where nothing does."""
    bases = sorted({str(getattr(params, BASE)) for params in blocks.values() if hasattr(params, BASE)})
    if len(bases) > 1:
        return [f"the steps name different bases ({', '.join(bases)}): a run has one; set `base` alone"]
    (base,) = bases
    try:
        spec = read_spec(base)
    except InputError as error:
        return [str(error)]
    values = {name: value for params in blocks.values() for name, value in _named(params)}
    return [*_wrong_base(base, spec), *_wrong_class(spec, values), *_wrong_judges(base, spec, values)]


def _named(params: Params) -> Iterator[tuple[str, Any]]:
    yield from ((f"{params.step}.{name}", value) for name, value in params.model_dump().items())


def _wrong_base(base: str, spec: Mapping[str, Any]) -> Iterator[str]:
    name = spec.get("name", base)
    if not spec.get("manifest"):
        yield (
            f"base '{name}' lists no files in its manifest; fetch it, look at it, and pin it with "
            f"`python -m photoflux.flux.provision {spec_path(base)}`"
        )
    if missing := _missing(spec.get("folder"), base):
        yield f"base '{name}': folder {missing} is missing; copy it there or correct `folder` in the spec"


def _wrong_class(spec: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    noun, known = values["import_photos.class_noun"], spec.get("class_nouns") or ()
    if known and noun not in known:
        yield f"class noun '{noun}' is unknown to base '{spec.get('name')}'; choose one of {', '.join(known)}"


def _wrong_judges(base: str, spec: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    name = str(spec.get("name", base))
    if not spec.get("judges"):
        yield f"base '{name}' has no judges; set `judges` in its spec to a folder of CLIP and DINO weights"
    if missing := _missing(spec.get("judges"), base):
        yield f"base '{name}': its judges, {missing}, are missing; copy them there or correct `judges` in the spec"
    for prompts in sorted({values["evaluate.prompts"] or name, values["audit.prompts"] or name}):
        try:
            load_prompts(prompts, folder=get_settings().models_dir)
        except InputError as error:
            yield str(error)
    card = values["audit.judge_card"]
    if card and not Path(card).is_file():
        yield f"{card}: not a readable judge card (there is no such file); make one with `photoflux label`"


def _missing(place: str | None, base: str) -> Path | None:
    """A folder of this machine that a spec names and that is not there; paths count from the spec's own."""
    if not place or REMOTE.match(place):
        return None
    folder = (spec_path(base).parent / place).resolve()
    return None if folder.is_dir() else folder
