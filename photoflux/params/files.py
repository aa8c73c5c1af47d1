"""Read parameters from files: `params.yaml`, with the values that differ from the defaults, and a base's spec, with its recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from photoflux.errors import InputError
from photoflux.params import STEP_PARAMS
from photoflux.params.resolve import BASE, STEPS, Blocks, Layer, bases_of, check_recipe, resolve
from photoflux.settings import get_settings

PARAMS = Path("params.yaml")


def load_params(step: str, *, path: Path = PARAMS, overrides: Mapping[str, Any] | None = None) -> Any:
    """The parameters of `step`: its defaults, the base's recipe, the block of that name in `path`, then `overrides`.

    Raises InputError for a missing file, an unknown key, a value of another type or out of range.
    """
    return resolve_with_recipes(read_layer(path), {step: overrides or {}}, steps=[step])[step]


def resolve_with_recipes(*layers: Layer, steps: Iterable[str] = STEPS) -> Blocks:
    """`resolve`, with the recipes read from the specs of the bases that the layers name."""
    recipes = {base: read_recipe(base) for base in bases_of(*layers, steps=steps)}
    return resolve(*layers, recipes=recipes, steps=steps)


def read_layer(path: Path) -> Layer:
    """A params file: one mapping per step, and `base`. Raises InputError for a block that no step has."""
    try:
        layer = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); run from the checkout or pass --params"
        ) from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({error})".replace("\n", " ")) from error
    if not isinstance(layer, dict) or not all(isinstance(layer[name], dict) for name in layer if name != BASE):
        raise InputError(f"{path}: must hold one mapping per step")
    unknown = sorted(set(layer) - {*STEP_PARAMS, BASE})
    if unknown:
        raise InputError(f"{path}: no step is called '{unknown[0]}'; steps are {', '.join(STEP_PARAMS)}")
    return layer


def spec_path(base: str) -> Path:
    """The file of a base's spec: by its name in the models folder, or the path itself."""
    return Path(base) if base.endswith((".yaml", ".yml")) else get_settings().models_dir / f"{base}.yaml"


def read_spec(base: str) -> dict[str, Any]:
    """A base's spec as it is written, without the checks of `photoflux.flux.spec`, which takes seconds to import."""
    path = spec_path(base)
    try:
        spec = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"base '{base}': {path} cannot be read ({error.strerror}); {_choices()}") from error
    except (yaml.YAMLError, ValueError) as error:
        message = f"{path}: not a base spec ({error}); compare it with the specs in models/"
        raise InputError(message.replace("\n", " ")) from error
    if not isinstance(spec, dict):
        raise InputError(f"{path}: not a base spec; compare it with the specs in models/")
    return spec


def read_recipe(base: str) -> Layer:
    """The recipe in a base's spec. Raises InputError naming the file."""
    try:
        return check_recipe(read_spec(base).get("recipe") or {})
    except InputError as error:
        message = str(error)
        raise InputError(message if str(spec_path(base)) in message else f"{spec_path(base)}: {message}") from None


def _choices() -> str:
    folder = get_settings().models_dir
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    return f"choose one of {', '.join(names)} or give the path of a spec" if names else f"put a spec into {folder}"
