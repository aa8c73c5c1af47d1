"""finetune: train the subject into a LoRA adapter of the frozen base and keep the best candidate.

Read from the top: `run` prepares, trains, selects and saves; `prepare` and `train` are the first two. What a train step computes
stands in `flux/module.py`.
"""

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
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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
    from diffusers import FluxPipeline

    from photoflux.flux.callbacks import Selector
    from photoflux.flux.memory import Plan
    from photoflux.flux.module import FinetuneModule, TrainingBatches
    from photoflux.flux.text import PromptEmbeds
    from photoflux.judges.checkpoint_selection import CheckpointSelector

log = logging.getLogger(__name__)

LOCK, LOCK_WAIT_S = "lock", 10.0
"""File in the work folder that the training there holds, and how long another one waits for it to end."""
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}


@dataclass(frozen=True)
class Training:
    """A prepared training: what is trained, on what, who scores it, and how it fits this device and others."""

    module: FinetuneModule
    batches: TrainingBatches
    selector: CheckpointSelector
    plan: Plan
    other_plans: list[Plan]


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
    from photoflux.judges.checkpoint_selection import select

    spec = load_spec(params.base)
    works = get_settings().cache_dir / "finetune"
    with opened(dataset, key=key) as unsealed, tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        manifest = read_manifest(unsealed)
        _check_dataset(manifest, spec, name=unsealed.name)
        unpack(unsealed, Path(scratch))
        folder = workdir or works / _owner_folder(key) / _identity(unsealed, spec, params)
        with _disk_space_on(folder), _only_one_in(folder):
            started, store = time.monotonic(), SealedStore(folder, key)
            training = prepare(Path(scratch), manifest, spec=spec, params=params, store=store)
            train(training.module, training.batches, selector=training.selector, plan=training.plan, store=store)
            selected = select(training.module.candidates, how=params.select)
            seconds = time.monotonic() - started
            lineage = _lineage(manifest, unsealed, selected, spec=spec, params=params)
            _save(training, lineage, adapter=adapter, report=report, key=key, seconds=seconds)
            shutil.rmtree(folder, ignore_errors=True)  # while it is ours: another training may wait for it
    if workdir is None:
        with suppress(OSError):  # others of the same owner may be under way
            for above in folder.relative_to(works).parents[:-1]:
                (works / above).rmdir()
    scores = {name: float(value) for name, value in selected.items() if value is not None}
    loss, skipped = training.module.curve.subject[-1], training.module.skipped
    return StepResult(scores | {"loss": loss, "skipped": skipped, "seconds": seconds}, report)


def _check_dataset(manifest: Mapping[str, Any], spec: BaseSpec, *, name: str) -> None:
    splits = {item["split"] for item in manifest.get("items", [])}
    if not {"train", "heldout"} <= splits:
        raise InputError(f"{name}: holds no training or no held-out pictures; run augment on validated photos")
    made_for, noun = manifest["base"]["name"], manifest["subject"]["class_noun"]
    if made_for != spec.name:
        raise InputError(
            f"the data set was made for base '{made_for}', not for '{spec.name}'; run augment with finetune's base, or "
            "finetune with augment's"
        )
    if spec.class_nouns and noun not in spec.class_nouns:
        raise InputError(
            f"class noun '{noun}' is unknown to base '{spec.name}'; choose one of {', '.join(spec.class_nouns)}"
        )


def prepare(
    folder: Path, manifest: Mapping[str, Any], *, spec: BaseSpec, params: FinetuneParams, store: SealedStore
) -> Training:
    """Load the base and encode what training reads of the unpacked dataset in `folder`, photos and prompts, once."""
    from photoflux.flux import data, loading, lora, memory
    from photoflux.flux.module import FinetuneModule, TrainingBatches
    from photoflux.judges.checkpoint_selection import CheckpointSelector, ValidationPrompts

    subject, items, cache = manifest["subject"], manifest["items"], store.subfolder("latents")
    plan, other_plans = _plan_memory(folder / items[0]["file"], spec=spec, params=params)

    pipe = loading.load_encoders(spec)
    photos, heldout = (
        data.read_photos(folder, [i for i in items if i["split"] == split], pipe, spec=spec, cache=cache)
        for split in ("train", "heldout")
    )
    validation = ValidationPrompts.encode(pipe, spec=spec, trigger=subject["trigger"], class_noun=subject["class_noun"])
    preservation = _preservation_prompts(pipe, items, subject, spec=spec, params=params)

    # The text encoders go when the transformer comes: both at once do not fit a device that training fits.
    loading.add_transformer(pipe, spec, quantisation=memory.quantisation(plan), keep_text=False)
    lora.attach(pipe.transformer, spec=spec, rank=params.rank, alpha=params.alpha, seed=params.seed)
    if plan.checkpointing:
        pipe.transformer.enable_gradient_checkpointing()
    targets = None
    if preservation:
        how: dict[str, Any] = {"spec": spec, "seed": params.seed}
        prompts, captions = preservation
        side_px, share = photos.images[0].width, params.serving_sigmas
        along = data.preservation_targets_along_sampling(pipe.transformer, prompts, side_px=side_px, **how)
        targets = along.concat(
            data.preservation_targets_on_photos(
                pipe.transformer, photos, captions, count=len(along), serving_share=share, **how
            )
        )

    module = FinetuneModule(pipe.transformer, spec=spec, params=params, photos=photos)
    batches = TrainingBatches(photos, targets, spec=spec, params=params, micro_batches=plan.micro_batches)
    selector = CheckpointSelector(pipe, validation, spec=spec, photos=photos, heldout=heldout, store=store)
    return Training(module, batches, selector, plan, other_plans)


def _plan_memory(photo: Path, *, spec: BaseSpec, params: FinetuneParams) -> tuple[Plan, list[Plan]]:
    """How training on photos of that size fits this device, logged before anything is loaded; and other classes of devices."""
    from PIL import Image

    from photoflux.flux import loading, memory
    from photoflux.flux.provision import verify

    with Image.open(photo) as image:
        side_px = image.width
    configs = memory.read_configs(verify(spec))
    shape = memory.Shape.of(
        configs, targets=spec.lora_targets, side_px=side_px, text_length=spec.text_length, dtype=spec.dtype
    )
    rows = params.batch_size + (params.preservation_batch if params.preservation else 0)
    plan = memory.plan(shape, memory.device_of(loading.default_device()), rank=params.rank, rows=rows)
    log.info("%s", plan)
    return plan, memory.plans(shape, rank=params.rank, rows=rows)


def _preservation_prompts(
    pipe: FluxPipeline,
    items: list[dict[str, Any]],
    subject: Mapping[str, Any],
    *,
    spec: BaseSpec,
    params: FinetuneParams,
) -> tuple[PromptEmbeds, PromptEmbeds] | None:
    """Prompts without the trigger that the base is held on, and each photo's caption without it; None for no preservation."""
    from photoflux.flux import data
    from photoflux.flux.text import encode_prompts

    if not params.preservation or not params.preservation_batch:
        return None
    trigger, noun = subject["trigger"], subject["class_noun"]
    captions = [
        data.class_prompt(i["caption"], trigger=trigger, class_noun=noun) for i in items if i["split"] == "train"
    ]
    prompts = data.preservation_prompts(noun, spec.class_nouns, count=params.preservation_prompts, captions=captions)
    return encode_prompts(pipe, prompts, spec=spec), encode_prompts(pipe, captions, spec=spec)


def train(
    module: FinetuneModule, batches: TrainingBatches, *, selector: Selector, plan: Plan, store: SealedStore
) -> None:
    """Train to the last step, from the state in `store` when there is one, scoring candidates on the way."""
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader

    from photoflux.flux.callbacks import LogProgress, SaveState, ScoreCheckpoints

    saving = SaveState(store)
    saving.restore(module)
    batches.first = module.train_step
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.ERROR)
    trainer = pl.Trainer(
        accelerator="gpu" if plan.device.startswith("cuda") else "cpu",
        devices=1,
        precision=PRECISIONS[plan.compute],  # type: ignore[arg-type]
        max_epochs=1,
        accumulate_grad_batches=batches.micro_batches,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ScoreCheckpoints(selector), LogProgress(), saving],  # saved last: a state holds its step's scores
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about workers and loggers that a loop over cached tensors has no use for
        trainer.fit(module, DataLoader(batches, batch_size=None))
    module.transformer.eval()


def _lineage(
    manifest: Mapping[str, Any], dataset: Path, selected: Mapping[str, Any], *, spec: BaseSpec, params: FinetuneParams
) -> dict[str, Any]:
    """What the adapter came from; nothing of when, where or how fast, since the artifact is named by its digest (0025)."""
    return {
        "subject": manifest["subject"],
        "base": {"name": spec.name, "hash": spec.hash},
        "training_adapter": _digest_of(spec.training_adapter),
        "start_adapter": _digest_of(spec.start_adapter),
        "params": _params_of(params, spec),
        "dataset": digest(dataset),
        "step": selected["step"],
        "scores": dict(selected),
    }


def _save(
    training: Training, lineage: dict[str, Any], *, adapter: Path, report: Path, key: str, seconds: float
) -> None:
    """Write the selected candidate with its lineage, curves and previews as the adapter, and the report."""
    from PIL import Image

    from photoflux.flux.lora import save_adapter
    from photoflux.pages.finetune import finetune_page

    module, selector, step = training.module, training.selector, lineage["step"]
    curves = {**vars(module.curve), "candidates": module.candidates}
    previews = {candidate["step"]: selector.previews(candidate["step"]) for candidate in module.candidates}
    with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        weights = save_adapter(module.transformer, Path(scratch) / WEIGHTS, weights=selector.weights(step))
        lineage["weights"] = digest(weights)
        files: dict[str, bytes | Path] = {WEIGHTS: weights, "curves.json": to_json(curves).encode()}
        files |= {f"previews/{number}.png": png for number, png in enumerate(previews[step])}
        with committed(adapter, key=key) as out:
            write_tar(out, files=files, manifest=lineage)
    page = finetune_page(
        lineage,
        curves=curves,
        previews={
            number: [Image.open(io.BytesIO(png)).convert("RGB") for png in pngs] for number, pngs in previews.items()
        },
        base=selector.base,
        photos=list(training.batches.photos.images),
        plans=[training.plan, *training.other_plans],
        seconds=seconds,
        skipped=module.skipped,
    )
    publish(report, page, subject=lineage["subject"], key=key)


def _identity(dataset: Path, spec: BaseSpec, params: FinetuneParams) -> str:
    """Name of what is trained: the same inputs go on where they stopped, others start afresh."""
    from photoflux.judges.encoders import folder_digest

    files = {"training": _digest_of(spec.training_adapter), "start": _digest_of(spec.start_adapter)}
    files["judges"] = folder_digest(spec.judges) if spec.judges else None
    parts = fingerprint.of_training(spec, dataset=digest(dataset), params=_params_of(params, spec), files=files)
    return fingerprint.name(parts)[:16]


def _params_of(params: FinetuneParams, spec: BaseSpec) -> dict[str, Any]:
    """The parameters as plain values, the base by its name: where its spec lies is this machine's."""
    return as_dict(params) | {"base": spec.name}


def _owner_folder(key: str) -> Path:
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
def _disk_space_on(folder: Path) -> Iterator[None]:
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
