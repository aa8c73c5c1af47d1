"""Draw pictures with a registered model: `photoflux generate --model rex@champion --prompt "a photo of sks dog"`."""

from __future__ import annotations

import argparse
import difflib
import hashlib
import logging
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from photoflux import screen
from photoflux.errors import InputError
from photoflux.images import SUFFIXES, encode_image, fit_to_size, parse_size
from photoflux.manifest import write_bytes
from photoflux.params import GenerateParams, help_of
from photoflux.params.files import load_params
from photoflux.styles import FILTERS, REDRAWS, redraw_image
from photoflux.wording import slug

if TYPE_CHECKING:
    from diffusers import FluxPipeline
    from PIL import Image

    from photoflux.flux.spec import BaseSpec

log = logging.getLogger(__name__)

SHEET_COLUMNS = 4
NAMES_TOLD = 10


@dataclass(frozen=True)
class AdapterPipeline:
    """A base with one adapter on it. `name` says which model it is, `digest` which adapter."""

    pipe: FluxPipeline
    spec: BaseSpec
    subject: dict[str, Any]
    name: str
    digest: str

    def sample(self, prompt: str, *, seed: int, style: str = "none") -> Image.Image:
        """One image at the base's resolution. Images are sampled one by one: a batch would change their last bits."""
        from photoflux.flux.sampling import generate as sample_images

        image = sample_images(self.pipe, [prompt], [seed], spec=self.spec, batch_size=1)[0]
        if style not in REDRAWS:
            return image
        return redraw_image(image, prompt, style=REDRAWS[style], pipe=self.pipe, spec=self.spec, seed=seed)

    def png(self, prompt: str, *, seed: int) -> bytes:
        """One image as a PNG file at the base's resolution."""
        return encode_image(self.sample(prompt, seed=seed), "png", provenance=self.provenance(seed=seed, style="none"))

    def provenance(self, *, seed: int, style: str) -> dict[str, str]:
        """What every file says of its making; never the prompt, which may be personal."""
        from photoflux import __version__

        return {
            "model": self.name,
            "adapter": self.digest,
            "base": f"{self.spec.name} {self.spec.hash}",
            "seed": str(seed),
            "style": style,
            "software": f"PhotoFlux {__version__}",
        }


def generate(
    model: str,
    prompt: str,
    *,
    n: int = 4,
    seed: int = 0,
    size: str = "512x512",
    fmt: str = "png",
    style: str = "none",
    out_dir: Path,
    base: str = "",
) -> list[Path]:
    """Draw `n` pictures with seeds `seed`, `seed + 1`, … into `out_dir`, with a contact sheet beside them.

    `model` is NAME, NAME@alias, NAME@version or the path of an adapter .tar. The same model, prompt, seed, size, format
    and style give the same bytes whatever `n` is. Returns the pictures' files; raises InputError.
    """
    asked: dict[str, Any] = {"n": n, "seed": seed, "size": size, "format": fmt, "style": style}
    GenerateParams(**asked)
    check_prompt(prompt)
    pipeline = open_model(model, base=base)
    warn_of_missing_trigger(prompt, pipeline.subject)
    stem = f"{slug(pipeline.name)}-{_fingerprint(prompt, size, style)}"
    tiles, files = [], []
    for number in range(seed, seed + n):
        log.info("picture %d of %d", number - seed + 1, n)
        image = fit_to_size(pipeline.sample(prompt, seed=number, style=style), parse_size(size))
        image = FILTERS.get(style, lambda same: same)(image)
        content = encode_image(image, fmt, provenance=pipeline.provenance(seed=number, style=style))
        files.append(write_bytes(out_dir / f"{stem}-{number}{SUFFIXES[fmt]}", content))
        tiles.append(image)
    if n > 1:
        _write_sheet(out_dir / f"{stem}-sheet.png", tiles, pipeline, seed=seed, style=style)
    return files


def open_model(model: str, *, base: str = "") -> AdapterPipeline:
    """A pipeline for a registered model or an adapter file. Raises InputError naming what is not there."""
    if model.endswith(".tar") or "/" in model:
        return open_adapter(Path(model), base=base)
    from photoflux.tracking import Registry, parse_model

    name, reference = parse_model(model)
    registry = Registry()
    version = registry.get_version(name, reference)
    if version is None:
        raise InputError(_missing_model(name, reference, registry.names(), registry.aliases(name)))
    adapter, key = registry.download_adapter(version)
    return open_adapter(adapter, key=key, base=base, name=f"{name} version {version.number}")


def open_adapter(adapter: Path, *, key: str = "plain://demo", base: str = "", name: str = "") -> AdapterPipeline:
    """The adapter on the base it was trained on; `base` names the spec of that base when it is kept elsewhere."""
    from photoflux.flux.loading import load_pipeline
    from photoflux.flux.lora import load_adapter
    from photoflux.flux.spec import WEIGHTS, find_spec, load_spec
    from photoflux.manifest import digest, unpack
    from photoflux.settings import get_settings
    from photoflux.vault import opened

    with opened(adapter, key=key) as unsealed, tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        manifest, sha = unpack(unsealed, Path(scratch)), digest(unsealed)
        spec = load_spec(base) if base else find_spec(manifest["base"])
        if spec.hash != manifest["base"]["hash"]:
            raise InputError(
                f"{name or adapter.name} was trained on base '{manifest['base']['name']}' "
                f"({manifest['base']['hash'][:12]}), not on '{spec.name}' ({spec.hash[:12]}); name that base's spec (--base)"
            )
        pipe = load_pipeline(spec, device=get_settings().device or None)
        load_adapter(pipe, Path(scratch) / WEIGHTS)
    return AdapterPipeline(pipe, spec, manifest["subject"], name or adapter.stem, sha)


def check_prompt(prompt: str) -> None:
    """Raises InputError for an empty prompt."""
    if not prompt.strip():
        raise InputError("the prompt is empty: say what to draw, such as 'a photo of sks dog on the beach'")


def warn_of_missing_trigger(prompt: str, subject: dict[str, Any]) -> bool:
    """Warn when a prompt names the class but not the subject: it will draw any of its kind. Says whether it did."""
    words = re.findall(r"\w+", prompt.lower())
    noun, trigger = subject["class_noun"].lower(), subject["trigger"].lower()
    missing = trigger not in words and f" {noun} " in f" {' '.join(words)} "
    if missing:
        log.warning("the prompt says '%s' but not '%s': write '%s %s' for this one", noun, trigger, trigger, noun)
    return missing


def main(argv: Sequence[str]) -> int:
    """`photoflux generate`: defaults come from the generate block of params.yaml."""
    args = _parser().parse_args(argv)
    asked = {name: getattr(args, name) for name in GenerateParams.model_fields}
    given = {name: value for name, value in asked.items() if value is not None}
    params = load_params("generate", path=args.params, overrides=given)
    out = args.out or _default_folder()
    how = {"n": params.n, "seed": params.seed, "size": params.size, "fmt": params.format, "style": params.style}
    with screen.progress_bar("drawing"):
        files = generate(args.model, args.prompt, **how, out_dir=out, base=args.base)
    print("\n".join(str(file) for file in files))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="photoflux generate", description=__doc__)
    parser.add_argument("--model", required=True, help="NAME, NAME@champion, NAME@3 or the path of an adapter .tar")
    parser.add_argument("--prompt", required=True, help="what to draw, in the words of the base")
    for name in GenerateParams.model_fields:
        parser.add_argument(f"--{name}", help=help_of(GenerateParams, name).replace("%", "%%"))
    parser.add_argument("--out", type=Path, help="folder of the files; default: pictures in the state folder")
    parser.add_argument("--base", default="", help="base spec to load instead of the one the adapter names")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="the file of defaults")
    return parser


def _default_folder() -> Path:
    from photoflux.settings import get_settings

    return get_settings().state_dir / "pictures"


def _missing_model(name: str, reference: str, names: list[str], aliases: dict[str, int]) -> str:
    if name not in names:
        return f"no model is called '{name}'; {_known(name, names)}"
    known = ", ".join(f"@{alias} (version {number})" for alias, number in sorted(aliases.items()))
    return f"model '{name}' has no '@{reference}'; it has {known or 'versions but no alias: name a version, as in @1'}"


def _known(name: str, names: list[str]) -> str:
    """What is registered; of many models those whose names are alike."""
    if not names:
        return "run the pipeline first, which registers one"
    if len(names) <= NAMES_TOLD:
        return f"registered are {', '.join(sorted(names))}"
    alike = difflib.get_close_matches(name, names, n=NAMES_TOLD)
    return (
        f"{len(names)} others are registered{', such as ' if alike else ''}{', '.join(alike)}; `make mlflow` lists them"
    )


def _write_sheet(path: Path, tiles: list[Image.Image], pipeline: AdapterPipeline, *, seed: int, style: str) -> Path:
    from photoflux.pages.contact_sheet import contact_sheet

    rows = [tiles[start : start + SHEET_COLUMNS] for start in range(0, len(tiles), SHEET_COLUMNS)]
    firsts = range(seed, seed + len(tiles), SHEET_COLUMNS)
    labels = [f"seeds {first} to {first + len(row) - 1}" for first, row in zip(firsts, rows, strict=True)]
    sheet = contact_sheet(rows, row_labels=labels, tile_px=256)
    return write_bytes(path, encode_image(sheet, "png", provenance=pipeline.provenance(seed=seed, style=style)))


def _fingerprint(*parts: str) -> str:
    """Tells images of different prompts, sizes and styles apart without giving the prompt away."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
