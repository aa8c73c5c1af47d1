"""finetune: train the subject into a LoRA adapter of the frozen base and keep the best candidate."""

from __future__ import annotations

import errno
import fcntl
import io
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from photoflux import fingerprint
from photoflux.errors import InputError, PhotoFluxError
from photoflux.flux.spec import WEIGHTS, BaseSpec
from photoflux.manifest import digest, read_manifest, to_json, unpack, write_tar
from photoflux.params import FinetuneParams, as_dict
from photoflux.report import publish
from photoflux.settings import get_settings
from photoflux.steps import StepResult
from photoflux.vault import VAULT, VaultKey, committed, opened
from photoflux.vault.sealed_store import SealedStore

if TYPE_CHECKING:
    from PIL import Image

    from photoflux.flux.data import Photos, Preserved
    from photoflux.flux.memory import Plan
    from photoflux.flux.module import FineTuning
    from photoflux.flux.text import PromptEmbeds
    from photoflux.judges.candidates import Contest

log = logging.getLogger(__name__)

LOCK, LOCK_WAIT_S = "lock", 10.0
"""File in the work folder that the training there holds, and how long another one waits for it to end."""


@dataclass(frozen=True)
class Trained:
    """A finished training: the module, its candidates, and which of them was kept."""

    module: FineTuning
    contest: Contest
    kept: Mapping[str, Any]
    photos: list[Image.Image]
    plan: Plan
    other_plans: list[Plan]
    seconds: float


def run(
    dataset: Path,
    *,
    adapter: Path,
    report: Path,
    params: FinetuneParams,
    key: str = "plain://demo",
    workdir: Path | None = None,
) -> StepResult:
    """Train the subject into an adapter; a killed run, started again, goes on from its last saved state.

    `workdir` holds that state, sealed under `key` and named by default after owner, run, dataset, base and parameters; it is
    removed at the end. Raises InputError for a dataset that this base cannot be trained on, PhotoFluxError when training diverges, the
    disk is full or another training is at work in that folder.
    """
    from photoflux.flux.spec import load_spec
    from photoflux.pages.finetune import finetune_page

    spec = load_spec(params.base)
    works = get_settings().cache_dir / "finetune"
    with opened(dataset, key=key) as plain, _unpacked(plain) as (pictures, manifest):
        folder = workdir or works / _owned_by(key) / _identity(plain, spec, params)
        with _space_on(folder), _only_one_in(folder), ExitStack() as stack:
            trained = _train(pictures, manifest, spec=spec, params=params, kept=SealedStore(folder, key))
            weights = stack.enter_context(_weights(trained))
            lineage = _lineage(manifest, plain, weights, trained, spec=spec, params=params)
            with committed(adapter, key=key) as out:
                write_tar(out, files=_files(weights, trained), manifest=lineage)
            page = finetune_page(
                lineage,
                curves=_curves(trained),
                previews={c["step"]: _previews(trained, c["step"]) for c in trained.module.candidates},
                base=trained.contest.base,
                photos=trained.photos,
                plans=[trained.plan, *trained.other_plans],
                seconds=trained.seconds,
                skipped=trained.module.skipped,
            )
            publish(report, page, subject=lineage["subject"], key=key)
            shutil.rmtree(folder, ignore_errors=True)  # while it is ours: another training may wait for it
    if workdir is None:
        with suppress(OSError):  # others of the same owner may be under way
            for above in folder.relative_to(works).parents[:-1]:
                (works / above).rmdir()
    return StepResult(_metrics(trained), report)


def _train(
    pictures: Path, manifest: Mapping[str, Any], *, spec: BaseSpec, params: FinetuneParams, kept: SealedStore
) -> Trained:
    from photoflux.flux import data, fit, loading, lora, memory, module
    from photoflux.judges import candidates

    started, subject, items = time.monotonic(), manifest["subject"], manifest["items"]
    _check_base(manifest, spec)
    _check_class(subject["class_noun"], spec)
    shape, plan = _planned(spec, params, side_px=_side_px(pictures / items[0]["file"]))
    pipe = loading.load_encoders(spec)
    splits = {
        split: data.read_photos(
            pictures, [i for i in items if i["split"] == split], pipe, spec=spec, cache=kept.subfolder("latents")
        )
        for split in ("train", "heldout")
    }
    photos, heldout = splits["train"], splits["heldout"]
    drawn = candidates.Drawing.make(pipe, spec=spec, trigger=subject["trigger"], class_noun=subject["class_noun"])
    kept_prompts = _preserved_prompts(pipe, items, subject, spec=spec, params=params)
    loading.add_transformer(pipe, spec, quantisation=memory.quantisation(plan), keep_text=False)
    lora.attach(pipe.transformer, spec=spec, rank=params.rank, alpha=params.alpha, seed=params.seed)
    if plan.checkpointing:
        pipe.transformer.enable_gradient_checkpointing()
    preserved = kept_prompts and _preserved(pipe.transformer, photos, *kept_prompts, spec=spec, params=params)
    tuning = module.FineTuning(pipe.transformer, spec=spec, params=params, photos=photos)
    draws = module.Draws(photos, preserved, spec=spec, params=params, micro_batches=plan.micro_batches)
    contest = candidates.Contest(pipe, drawn, spec=spec, photos=photos, heldout=heldout, kept=kept)
    fit.fit(tuning, draws, contest=contest, plan=plan, kept=kept)
    best = candidates.chosen(tuning.candidates, select=params.select)
    others = memory.plans(shape, rank=params.rank, rows=_rows(params))
    return Trained(tuning, contest, best, list(photos.images), plan, others, time.monotonic() - started)


def _check_base(manifest: Mapping[str, Any], spec: BaseSpec) -> None:
    made_for = manifest["base"]["name"]
    if made_for != spec.name:
        raise InputError(
            f"the data set was made for base '{made_for}', not for '{spec.name}'; run augment with finetune's base, or "
            "finetune with augment's"
        )


def _check_class(noun: str, spec: BaseSpec) -> None:
    if spec.class_nouns and noun not in spec.class_nouns:
        raise InputError(
            f"class noun '{noun}' is unknown to base '{spec.name}'; choose one of {', '.join(spec.class_nouns)}"
        )


def _planned(spec: BaseSpec, params: FinetuneParams, *, side_px: int) -> tuple[Any, Plan]:
    """The memory plan of this device, said before anything is loaded."""
    from photoflux.flux import loading, memory
    from photoflux.flux.provision import verify

    configs = memory.read_configs(verify(spec))
    shape = memory.Shape.of(
        configs, targets=spec.lora_targets, side_px=side_px, text_length=spec.text_length, dtype=spec.dtype
    )
    plan = memory.plan(shape, memory.device_of(loading.default_device()), rank=params.rank, rows=_rows(params))
    log.info("%s", plan)
    return shape, plan


def _rows(params: FinetuneParams) -> int:
    return params.batch_size + (params.preservation_batch if params.preservation else 0)


def _side_px(file: Path) -> int:
    from PIL import Image

    with Image.open(file) as image:
        return image.width


def _preserved_prompts(
    pipe: Any, items: list[dict[str, Any]], subject: Mapping[str, Any], *, spec: BaseSpec, params: FinetuneParams
) -> Any:
    """What the base is held on, embedded: prompts, and per photo its caption without the trigger; None for nothing."""
    from photoflux.flux import data
    from photoflux.flux.text import encode_prompts

    if not params.preservation or not params.preservation_batch:
        return None
    trigger, noun = subject["trigger"], subject["class_noun"]
    captions = [
        data.class_prompt(i["caption"], trigger=trigger, class_noun=noun) for i in items if i["split"] == "train"
    ]
    prompts = data.preserved_prompts(noun, spec.class_nouns, count=params.preservation_prompts, captions=captions)
    return tuple(encode_prompts(pipe, texts, spec=spec) for texts in (prompts, captions))


def _preserved(
    transformer: Any,
    photos: Photos,
    prompts: PromptEmbeds,
    captions: PromptEmbeds,
    *,
    spec: BaseSpec,
    params: FinetuneParams,
) -> Preserved:
    """Points of the base to hold: on its own way from noise to picture, and as many on noised photos."""
    from photoflux.flux import data

    along = data.preserve_class(transformer, prompts, spec=spec, seed=params.seed, side_px=photos.images[0].width)
    return along.beside(
        data.preserve_photos(
            transformer,
            photos,
            captions,
            spec=spec,
            seed=params.seed,
            count=len(along),
            serving_share=params.serving_sigmas,
        )
    )


@contextmanager
def _weights(trained: Trained) -> Iterator[Path]:
    """The chosen weights as a file, gone when the block ends."""
    from photoflux.flux.lora import save_adapter

    chosen = trained.contest.weights(trained.kept["step"])
    with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        yield save_adapter(trained.module.transformer, Path(scratch) / WEIGHTS, weights=chosen)


def _files(weights: Path, trained: Trained) -> dict[str, bytes | Path]:
    previews = trained.contest.previews(trained.kept["step"])
    return {
        WEIGHTS: weights,
        "curves.json": to_json(_curves(trained)).encode(),
        **{f"previews/{number}.png": file for number, file in enumerate(previews)},
    }


def _previews(trained: Trained, step: int) -> list[Image.Image]:
    from PIL import Image

    return [Image.open(io.BytesIO(file)).convert("RGB") for file in trained.contest.previews(step)]


def _curves(trained: Trained) -> dict[str, Any]:
    """Losses by step, and the scores of each candidate."""
    return {**vars(trained.module.curve), "candidates": trained.module.candidates}


def _lineage(
    manifest: Mapping[str, Any],
    dataset: Path,
    weights: Path,
    trained: Trained,
    *,
    spec: BaseSpec,
    params: FinetuneParams,
) -> dict[str, Any]:
    """What the adapter came from; nothing of when, where or how fast, since the artifact is named by its digest."""
    return {
        "subject": manifest["subject"],
        "base": {"name": spec.name, "hash": spec.hash},
        "training_adapter": _digest_of(spec.training_adapter),
        "start_adapter": _digest_of(spec.start_adapter),
        "params": _told(params, spec),
        "dataset": digest(dataset),
        "weights": digest(weights),
        "step": trained.kept["step"],
        "scores": dict(trained.kept),
    }


def _metrics(trained: Trained) -> dict[str, float]:
    kept = {name: float(value) for name, value in trained.kept.items() if value is not None}
    return kept | {
        "loss": trained.module.curve.subject[-1],
        "skipped": trained.module.skipped,
        "seconds": trained.seconds,
    }


def _identity(dataset: Path, spec: BaseSpec, params: FinetuneParams) -> str:
    """Name of what is trained: the same inputs go on where they stopped, others start afresh."""
    from photoflux.judges.encoders import folder_digest

    files = {"training": _digest_of(spec.training_adapter), "start": _digest_of(spec.start_adapter)}
    files["judges"] = folder_digest(spec.judges) if spec.judges else None
    parts = fingerprint.of_training(spec, dataset=digest(dataset), params=_told(params, spec), files=files)
    return fingerprint.name(parts)[:16]


def _told(params: FinetuneParams, spec: BaseSpec) -> dict[str, Any]:
    """The parameters as plain values, the base by its name: where its spec lies is this machine's."""
    return as_dict(params) | {"base": spec.name}


def _owned_by(key: str) -> Path:
    """The folder of whoever a key belongs to, so that all of theirs can be found, and in it the folder of the run.

    A run's work is sealed under its own key, so that another run of the same inputs could not go on with it.
    """
    if key.startswith(VAULT):
        named = VaultKey.parse(key)
        return Path(named.owner, named.run)
    return Path(re.sub(r"[^A-Za-z0-9._-]+", "-", key.partition("://")[2]) or "anybody")


def _digest_of(file: Path | None) -> str | None:
    return digest(file) if file and file.is_file() else None


@contextmanager
def _unpacked(dataset: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    manifest = read_manifest(dataset)
    splits = {item["split"] for item in manifest.get("items", [])}
    if not {"train", "heldout"} <= splits:
        raise InputError(f"{dataset.name}: holds no training or no held-out pictures; run augment on validated photos")
    with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        unpack(dataset, Path(scratch))
        yield Path(scratch), manifest


@contextmanager
def _only_one_in(folder: Path) -> Iterator[None]:
    """A folder that no other training uses until the block, or this process, ends. Raises PhotoFluxError."""
    until = time.monotonic() + LOCK_WAIT_S
    while (lock := _try_lock(folder)) is None:
        if time.monotonic() > until:
            raise PhotoFluxError(
                f"{folder}: another training is using it; wait until that one has ended, or end it, and run this one again"
            )
        time.sleep(0.1)
    try:
        yield
    finally:
        os.close(lock)


def _try_lock(folder: Path) -> int | None:
    """The folder's lock as a file descriptor; None while someone else has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):  # whoever had it has just removed the folder
        lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink:  # else its file went with a removed folder, and is nobody's lock any more
                return lock
        os.close(lock)
    return None


@contextmanager
def _space_on(folder: Path) -> Iterator[None]:
    """A full disk ends in a sentence; what was saved before stays, so that the run can go on."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise PhotoFluxError(
            f"{folder}: the disk is full; free some space and run the same command again, it goes on where it stopped"
        ) from error
