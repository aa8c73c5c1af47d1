"""Fingerprints: one digest of everything a result depends on, that is base and call settings, judges, prompts, protocol and our code.

They are the keys of caches (images of the base), of resumable work (a training) and of comparisons (evaluations), so that none of
these outlives a change of a setting, a file or a line of code. `dvc.yaml` lists the same files for the same reason.
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
GENERATION_MODULES = ("photoflux.flux.sampling", "photoflux.flux.loading", "photoflux.flux.lora")
MEASURING_MODULES = ("photoflux.steps.evaluate",)
TRAINING_MODULES = ("photoflux.steps.finetune",)
"""Root modules of the code that samples, measures and trains; all that they import belongs to it."""
MODULES_WITHOUT_EFFECT = (
    "photoflux", "photoflux.errors", "photoflux.params", "photoflux.settings", "photoflux.flux", "photoflux.judges", "photoflux.photos",
    "photoflux.pocket", "photoflux.steps",
)  # fmt: skip
"""Modules that change no result: empty packages, error classes, folders; and parameters, whose values are in the fingerprint."""
DISPLAY_MODULES = ("photoflux.pages", "photoflux.report")
"""Modules that only display results; what they import does not count either."""
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "pillow")
"""Distributions that an image depends on; then those that measuring it, and training, depend on besides."""
MEASURING_LIBRARIES = ("numpy", "scipy")
TRAINING_LIBRARIES = ("numpy", "scipy", "pytorch-lightning", "bitsandbytes")


class Base(Protocol):
    """The attributes of `flux.spec.BaseSpec` that fingerprints need."""

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
    """A base with its call settings: with other weights, resolution or steps it counts as another base."""
    return name({"base": spec.hash, "call": spec.call})


def of_generation(spec: Base) -> dict[str, Any]:
    """What an image depends on besides prompt and seed."""
    code, libraries = code_digest(*GENERATION_MODULES), _versions(LIBRARIES)
    return {"base": spec.hash, "call": spec.call, "code": code, "libraries": libraries}


def of_judging(spec: Base, *, judges: str, prompts: str, **protocol: Any) -> dict[str, Any]:
    """What measurements depend on. `judges` and `prompts` are digests; `protocol` is the profile, first seed and photos."""
    about = {"judges": judges, "prompts": prompts, "protocol": protocol, "libraries": _versions(MEASURING_LIBRARIES)}
    return {"generation": of_generation(spec), **about, "measuring": code_digest(*MEASURING_MODULES)}


def of_training(
    spec: Base, *, dataset: str, params: Mapping[str, Any], files: Mapping[str, str | None]
) -> dict[str, Any]:
    """What an adapter depends on. `dataset` and the values of `files` (training adapter, judges, …) are digests."""
    about = {"dataset": dataset, "params": dict(params), "files": dict(files)}
    trained = {"lora_targets": list(spec.lora_targets), "class_nouns": list(spec.class_nouns)}
    return {
        "generation": of_generation(spec),
        **trained,
        **about,
        "libraries": _versions(TRAINING_LIBRARIES),
        "code": code_digest(*TRAINING_MODULES),
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
    """SHA-256 over the source of these modules of ours and of all modules of ours that they import."""
    total = hashlib.sha256()
    for file in sources(*modules):
        total.update(f"{file}\0".encode() + (ROOT / file).read_bytes() + b"\0")
    return total.hexdigest()


def sources(*modules: str) -> list[str]:
    """The files below ROOT that running `modules` can load, in order; imports inside of functions count, those for types alone do not."""
    found, waiting = set[str](), list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found and not _only_displays(module):
            found.add(module)
            waiting.extend(_imports_of(module))
    files = (_file(module) for module in found if not _without_effect(module))
    return sorted({file for file in files if file})


def _only_displays(module: str) -> bool:
    return any(module == shown or module.startswith(f"{shown}.") for shown in DISPLAY_MODULES)


def _without_effect(module: str) -> bool:
    return module in MODULES_WITHOUT_EFFECT or module.startswith("photoflux.params.")


def _imports_of(module: str) -> Iterator[str]:
    file = _file(module)
    tree = ast.parse((ROOT / file).read_bytes()) if file else ast.Module([], [])
    for node in _runtime_nodes(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        yield from (one for one in names if one.split(".")[0] == "photoflux" and _file(one))


def _runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, except `if TYPE_CHECKING` blocks."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _runtime_nodes(child)


def _file(module: str) -> str | None:
    path = Path(*module.split("."))
    return next((p.as_posix() for p in (path.with_suffix(".py"), path / "__init__.py") if (ROOT / p).is_file()), None)
