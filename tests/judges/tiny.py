"""A tiny base with random weights, a subject's data set and an adapter: real files for fast tests of the steps."""

from __future__ import annotations

import atexit
import io
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from photoflux.flux.loading import load_pipeline
from photoflux.flux.lora import attach, save_adapter
from photoflux.flux.provision import pin
from photoflux.flux.spec import load_spec
from photoflux.manifest import write_tar
from photoflux.pocket import world
from photoflux.pocket.models import PocketConfig
from photoflux.pocket.render import render
from tests.pocket.untrained import init_base

WEIGHTS = "pytorch_lora_weights.safetensors"


def make_base(folder: Path) -> Path:
    """An untrained base answers zero to everything, so noise is added to its weights. Returns the spec."""
    shutil.copytree(_untrained(), folder, dirs_exist_ok=True)
    return folder / "tiny.yaml"


@cache
def _untrained() -> Path:
    """Made once in a process: its judges are measured, which takes seconds."""
    folder = Path(tempfile.mkdtemp(prefix="photoflux-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    base = init_base(folder / "tiny", config=PocketConfig.tiny())
    file = base / "transformer" / "diffusion_pytorch_model.safetensors"
    rng = torch.Generator().manual_seed(0)
    noisy = {name: x + torch.randn(x.shape, generator=rng).to(x) / 8 for name, x in load_file(file).items()}
    save_file(noisy, file, metadata={"format": "pt"})
    pin(base.with_name("tiny.yaml"))
    return folder


def subject_of(class_noun: str, *, consent: str = "own") -> dict[str, str]:
    return {"id": f"{class_noun}-test", "class_noun": class_noun, "trigger": "sks", "consent": consent}


def make_dataset(path: Path, *, class_noun: str, consent: str = "own", held_out: int = 2, photos: int = 6) -> Path:
    """Photos of one subject drawn by the pocket world, the last ones held out."""
    rng = np.random.default_rng(5)
    person = class_noun == "person"
    subject = world.sample_person(rng) if person else world.sample_subject(rng, heldout=True, kind=class_noun)
    files, items = {}, []
    for i in range(photos):
        split = "heldout" if i >= photos - held_out else "train"
        picture = io.BytesIO()
        render(world.sample_scene(rng, subject=subject, style="photo"), size_px=128).save(picture, "png")
        file = f"{split}/{i:02}.png"
        files[file] = picture.getvalue()
        items.append({"file": file, "split": split, "source": f"{i:02}.png", "caption": "", "transforms": []})
    manifest = {
        "subject": subject_of(class_noun, consent=consent),
        "base": {"name": "pocket", "resolution_px": 128},
        "items": items,
    }
    write_tar(path, files=files, manifest=manifest)
    return path


def make_adapter(path: Path, base: Path, *, class_noun: str, consent: str = "own", strength: float = 0.2) -> Path:
    """An adapter with random weights; `strength` 0 leaves the base as it is."""
    spec = load_spec(str(base))
    transformer = load_pipeline(spec).transformer
    attach(transformer, spec=spec, rank=4, alpha=4, seed=1)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "lora_B" in name:
                rng = torch.Generator().manual_seed(parameter.numel())
                parameter.copy_(torch.randn(parameter.shape, generator=rng) * strength)
    weights = save_adapter(transformer, path.with_name(WEIGHTS))
    facts = {"name": spec.name, "hash": spec.hash}
    subject = subject_of(class_noun, consent=consent)
    write_tar(path, files={WEIGHTS: weights}, manifest={"subject": subject, "base": facts, "params": {"rank": 4}})
    return path
