"""What a result hangs on, as one digest: the base as it is called, the judges, the prompts, the protocol, and our own code.

It names what is kept (pictures of the base), what is resumed (a training) and what may be compared (evaluations), so that none of these
outlives the setting, the file or the line of code it came from. `dvc.yaml` lists the same files for the same reason.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from photoflux.manifest import to_json

ROOT = Path(__file__).resolve().parent.parent
DRAWS = ("photoflux.flux.sampling", "photoflux.flux.loading", "photoflux.flux.lora")
MEASURES = ("photoflux.steps.evaluate",)
TRAINS = ("photoflux.steps.finetune",)
"""Modules at which the code of each begins; what they import belongs to it."""
WITHOUT_EFFECT = (
    "photoflux", "photoflux.errors", "photoflux.params", "photoflux.settings", "photoflux.flux", "photoflux.judges", "photoflux.photos",
    "photoflux.pocket", "photoflux.steps",
)  # fmt: skip
"""Packages' names, words, folders, and parameters, which count by their values: with all the modules of `photoflux.params`."""
WITHOUT_A_SAY = ("photoflux.pages", "photoflux.report")
"""What only shows results: neither it nor what it imports changes any."""
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "pillow")
"""Distributions that a picture hangs on; then those that measuring it, and training, hang on besides."""
MEASURING_LIBRARIES = ("numpy", "scipy")
TRAINING_LIBRARIES = ("numpy", "scipy", "pytorch-lightning", "bitsandbytes")


class Base(Protocol):
    """What is to be known of a base: `flux.spec.BaseSpec`."""

    @property
    def hash(self) -> str: ...
    @property
    def call(self) -> dict[str, Any]: ...
    @property
    def lora_targets(self) -> tuple[str, ...]: ...
    @property
    def class_nouns(self) -> tuple[str, ...]: ...


def name(parts: Mapping[str, Any]) -> str:
    """The digest of some parts, 32 hex digits."""
    return hashlib.sha256(to_json(parts).encode()).hexdigest()[:32]


def of_base(spec: Base) -> str:
    """The base as it is called: other weights, another resolution or other steps are another base to whoever judges its pictures."""
    return name({"base": spec.hash, "call": spec.call})


def of_drawing(spec: Base) -> dict[str, Any]:
    """What a picture of a base hangs on, but for its prompt and seed."""
    code, libraries = code_digest(*DRAWS), _versions(LIBRARIES)
    return {"base": spec.hash, "call": spec.call, "code": code, "libraries": libraries}


def of_judging(spec: Base, *, judges: str, prompts: str, **protocol: Any) -> dict[str, Any]:
    """What measurements hang on. `judges` and `prompts` are digests; `protocol` is what was drawn: profile, first seed, photos."""
    about = {"judges": judges, "prompts": prompts, "protocol": protocol, "libraries": _versions(MEASURING_LIBRARIES)}
    return {"drawing": of_drawing(spec), **about, "measuring": code_digest(*MEASURES)}


def of_training(
    spec: Base, *, dataset: str, params: Mapping[str, Any], files: Mapping[str, str | None]
) -> dict[str, Any]:
    """What an adapter hangs on. `dataset` and the values of `files` (training adapter, judges, …) are digests."""
    about = {"dataset": dataset, "params": dict(params), "files": dict(files)}
    trained = {"lora_targets": list(spec.lora_targets), "class_nouns": list(spec.class_nouns)}
    return {
        "drawing": of_drawing(spec),
        **trained,
        **about,
        "libraries": _versions(TRAINING_LIBRARIES),
        "code": code_digest(*TRAINS),
    }


def _versions(libraries: Sequence[str]) -> dict[str, str | None]:
    """Version by distribution; None of one that is not installed."""
    versions: dict[str, str | None] = dict.fromkeys(libraries)
    for library in libraries:
        with suppress(PackageNotFoundError):
            versions[library] = version(library)
    return versions


@cache
def code_digest(*modules: str) -> str:
    """SHA-256 over the source of modules of ours and of all of ours that they import."""
    total = hashlib.sha256()
    for file in sources(*modules):
        total.update(f"{file}\0".encode() + (ROOT / file).read_bytes() + b"\0")
    return total.hexdigest()


def sources(*modules: str) -> list[str]:
    """The files below ROOT that running `modules` can load, in order; imports inside of functions count, those for types alone do not."""
    found, waiting = set[str](), list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found and not _only_shows(module):
            found.add(module)
            waiting.extend(_imported(module))
    files = (_file(module) for module in found if not _without_effect(module))
    return sorted({file for file in files if file})


def _only_shows(module: str) -> bool:
    return any(module == shown or module.startswith(f"{shown}.") for shown in WITHOUT_A_SAY)


def _without_effect(module: str) -> bool:
    return module in WITHOUT_EFFECT or module.startswith("photoflux.params.")


def _imported(module: str) -> Iterator[str]:
    file = _file(module)
    tree = ast.parse((ROOT / file).read_bytes()) if file else ast.Module([], [])
    for node in _running(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (one for one in names if one.split(".")[0] == "photoflux" and _file(one))


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, but for blocks that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _running(child)


def _file(module: str) -> str | None:
    path = Path(*module.split("."))
    return next((p.as_posix() for p in (path.with_suffix(".py"), path / "__init__.py") if (ROOT / p).is_file()), None)
