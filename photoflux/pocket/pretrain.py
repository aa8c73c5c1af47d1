"""Pretrain the pocket base and its judges on the pocket world: `python -m photoflux.pocket.pretrain`.

Stages: `pictures` → `vae` → `latents` → `judges` → `flow` → `distil` → `adapter` → `export` → `start`. Each keeps
its state in the work folder, so a killed run is simply started again, stages can run as separate processes, and `--stages export`
ships the averaged weights of the moment while a training goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from photoflux.errors import InputError
from photoflux.manifest import write_json, write_text
from photoflux.pocket import models, train_adapter, train_flow, train_judges, train_start, train_vae
from photoflux.pocket.data import Cache, classes, exit_with_parent
from photoflux.pocket.training import Budget, load_average

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from diffusers import FluxPipeline

log = logging.getLogger(__name__)

SHARES = {"vae": 0.2, "judges": 0.2, "flow": 0.38, "distil": 0.08, "adapter": 0.06, "start": 0.08}
"""Shares of the time budget. Drawing and encoding images comes on top, since that is a number of images, not a time."""
CAPACITY = 240_000
"""Images that the cache has room for; its files are sparse, so that only filled parts take space."""
STAGES = ("pictures", "vae", "latents", "judges", "flow", "distil", "adapter", "export", "start")
ON_GPU: dict[str, Any] = {"vae_batch": 128, "batch": 512, "judge_batch": 256}
"""Batches that keep a data-centre GPU busy: with smaller ones these small networks are bound by kernel launches."""
PLAN_OPTIONS = ("budget_min", "minutes", "steps", "pictures", "decoded", "workers")
ADAPTER, START = "training_adapter", "start_adapter"
"""Folders of the training adapter and the starting adapter in that of the base."""


@dataclass(frozen=True)
class Plan:
    """The settings of a pretraining besides its folders."""

    config: models.PocketConfig = field(default_factory=models.PocketConfig)
    seed: int = 0
    budget_min: float = 110.0
    minutes: Mapping[str, float] = field(default_factory=dict)
    steps: int | None = None
    pictures: int = 64_000
    decoded: int = 24_000
    vae_batch: int = 4
    batch: int = 64
    judge_batch: int = 128
    workers: int = 1
    device: str = "cpu"
    compiled: bool = False
    rate: float = 1.0

    @classmethod
    def smoke(cls) -> Plan:
        """All stages in seconds: real shapes and files, useless weights."""
        return cls(
            config=models.PocketConfig.tiny(),
            steps=3,
            pictures=64,
            decoded=64,
            batch=32,
            judge_batch=32,
        )

    def budget(self, stage: str) -> Budget:
        """The budget of a stage: its own `minutes`, or its share of `budget_min`."""
        return Budget(seconds=60 * self.minutes.get(stage, self.budget_min * SHARES[stage]), steps=self.steps)


def pretrain(
    out: Path, *, work: Path, plan: Plan, stages: Sequence[str] | None = None, init_from: Path | None = None
) -> Path:
    """Run the stages in order and return `out`, the folder with the pipeline and, under `judges/`, its judges.

    `work` holds states and caches (some gigabytes). `init_from` continues from exported weights when `work` is new.
    """
    if plan.pictures > CAPACITY:
        raise InputError(f"--pictures {plan.pictures}: the cache has room for {CAPACITY}")
    work.mkdir(parents=True, exist_ok=True)
    pipe = start(work, plan=plan, init_from=init_from)
    steps = Stages(pipe, out, work, plan)
    for stage in stages or STAGES:
        log.info("stage %s", stage)
        getattr(steps, stage)()
    steps.wait_for_pictures()
    return out


def start(work: Path, *, plan: Plan, init_from: Path | None = None) -> FluxPipeline:
    """The pipeline with the weights that the work folder already has."""
    if init_from is not None:
        from diffusers import FluxPipeline

        pipe = FluxPipeline.from_pretrained(init_from, torch_dtype=torch.float32, local_files_only=True)
    else:
        pipe = models.build_base(plan.config, seed=plan.seed, vocabulary=_vocabulary(work))
    if load_average(work / "vae.pt", pipe.vae):
        _apply_scale(pipe, work)
    flow = train_flow.Flow(pipe)
    if not load_average(work / "distil.pt", flow):
        load_average(work / "flow.pt", flow)
    return pipe.to(plan.device)


def _vocabulary(work: Path) -> list[str]:
    """The world's vocabulary when this work folder was started: cached token ids depend on it."""
    from photoflux.pocket import world

    file = work / "vocabulary.json"
    if not file.exists():
        write_json(file, list(world.vocabulary()))
    return json.loads(file.read_text())


def _apply_scale(pipe: FluxPipeline, work: Path) -> None:
    file = work / "vae.json"
    if file.exists():
        scale = json.loads(file.read_text())
        pipe.vae.register_to_config(scaling_factor=scale["scaling_factor"], shift_factor=scale["shift_factor"])


def cache_of(work: Path, plan: Plan) -> Cache:
    """The cache of latents, captions, labels and pictures of this work folder."""
    side = plan.config.resolution_px // 8
    return Cache(
        work / "cache",
        capacity=CAPACITY,
        latent_shape=(16, side, side),
        text_length=plan.config.text_length,
        size_px=plan.config.resolution_px,
    )


@dataclass
class Stages:
    """The stages over one pipeline and one work folder; each can be repeated and continues where it was."""

    pipe: FluxPipeline
    out: Path
    work: Path
    plan: Plan
    drawing: SpawnProcess | None = None

    def pictures(self) -> None:
        """Draw the pictures, their captions and labels; with workers in the background, while the autoencoder trains."""
        plan, cache = self.plan, self.cache
        how = {"count": plan.pictures, "seed": plan.seed, "workers": plan.workers}
        tokenizers = self.pipe.tokenizer, self.pipe.tokenizer_2
        if not plan.workers:
            train_vae.render_images(cache, tokenizers, **how)
            return
        cache.create()  # else two processes would create the same files
        spawn = multiprocessing.get_context("spawn")
        self.drawing = spawn.Process(target=_render_images, args=(self.cache, tokenizers), kwargs=how)
        self.drawing.start()

    def wait_for_pictures(self) -> None:
        """Return when all pictures are drawn; raises `RuntimeError` when that failed."""
        if self.drawing is not None:
            self.drawing.join()
            if self.drawing.exitcode:
                raise RuntimeError(f"drawing the pictures ended with exit code {self.drawing.exitcode}")

    def vae(self) -> None:
        """Train the autoencoder, then measure the scale of its latents."""
        plan, work = self.plan, self.work
        pictures = train_vae.CachedImages(self.cache, next(self.pipe.vae.parameters()).device, count=plan.pictures)
        while pictures.refresh() < train_vae.IMAGES_TO_START and self.drawing is not None and self.drawing.is_alive():
            time.sleep(0.2)
        if not pictures.refresh():
            raise InputError("the VAE learns from pictures, and there are none: begin with --stages pictures,vae")
        train_vae.train_vae(
            self.pipe.vae,
            pictures,
            file=work / "vae.pt",
            budget=plan.budget("vae"),
            seed=plan.seed,
            batch=plan.vae_batch,
            recipe=train_vae.RECIPE.scaled(plan.rate),
            compiled=plan.compiled,
        )
        facts = train_vae.fit_scale(self.pipe.vae.eval(), seed=plan.seed + 3, batches=2 if plan.steps else 16)
        write_json(work / "vae.json", facts)
        log.info("vae: PSNR %(psnr_db).2f dB, scaling %(scaling_factor).4f, shift %(shift_factor).4f", facts)

    def latents(self) -> None:
        """Encode all pictures."""
        self.wait_for_pictures()
        train_vae.fill_latents(self.cache, self.pipe.vae)

    def judges(self) -> None:
        """Train and measure both judges."""
        plan = self.plan
        train_judges.train_judges(
            self.pipe,
            self.cache,
            config=plan.config,
            work=self.work,
            budget=plan.budget("judges"),
            seed=plan.seed,
            decoded=plan.decoded,
            batch=plan.judge_batch,
            workers=plan.workers,
            quick=plan.steps is not None,
        )

    def flow(self) -> None:
        """Train transformer and text encoders, and delete later stages' states, which came from earlier weights."""
        plan, file = self.plan, self.work / "flow.pt"
        run = train_flow.train_flow(
            self.pipe,
            self.cache,
            file=file,
            budget=plan.budget("flow"),
            seed=plan.seed,
            batch=plan.batch,
            recipe=train_flow.FLOW.scaled(plan.rate),
            compiled=plan.compiled,
        )
        if run.step > run.began_at:
            for later in ("distil.pt", "adapter.pt"):
                (self.work / later).unlink(missing_ok=True)

    def distil(self) -> None:
        """Fold guidance and several steps into one pass."""
        plan, file = self.plan, self.work / "distil.pt"
        load_average(self.work / "flow.pt", train_flow.Flow(self.pipe))
        run = train_flow.distil(
            self.pipe,
            self.cache,
            file=file,
            budget=plan.budget("distil"),
            seed=plan.seed,
            steps=plan.config.steps,
            batch=plan.batch,
            compiled=plan.compiled,
        )
        if run.step > run.began_at:
            (self.work / "adapter.pt").unlink(missing_ok=True)

    def adapter(self) -> None:
        """Train the adapter that undoes the distillation while a subject is learnt."""
        plan, file = self.plan, self.work / "adapter.pt"
        train_adapter.train_adapter(
            self.pipe,
            self.cache,
            file=file,
            config=plan.config,
            budget=plan.budget("adapter"),
            seed=plan.seed,
            batch=plan.batch,
            compiled=plan.compiled,
        )

    def export(self) -> None:
        """Export the present averaged weights: base, training adapter, judges, spec."""
        plan = self.plan
        export_base(self.pipe, self.out)
        state = self.work / "adapter.pt"
        train_adapter.export_adapter(self.pipe, self.out / ADAPTER, state=state, config=plan.config)
        train_judges.export_judges(
            self.out / "judges",
            work=self.work,
            config=plan.config,
            tokenizer=self.pipe.tokenizer,
            vae=self.pipe.vae,
            seed=plan.seed,
        )
        write_spec(self.out, config=plan.config)

    def start(self) -> None:
        """Train the starting adapter on the exported base, and add it to that."""
        from photoflux.flux.spec import load_spec

        plan = self.plan
        spec = load_spec(write_spec(self.out, config=plan.config))
        begun = train_start.train_start(
            spec, state=self.work / f"start-{spec.hash[:12]}.pt", budget=plan.budget("start"), seed=plan.seed
        )
        train_start.export_start(begun, self.out / START)
        write_spec(self.out, config=plan.config)

    @property
    def cache(self) -> Cache:
        """The cache of latents, captions, labels and pictures of this work folder."""
        return cache_of(self.work, self.plan)


def _render_images(cache: Cache, tokenizers: tuple[Any, Any], **how: Any) -> None:
    exit_with_parent()
    train_vae.render_images(cache, tokenizers, **how)


def export_base(pipe: FluxPipeline, folder: Path) -> Path:
    """Save the pipeline as fp16 safetensors that stock `FluxPipeline.from_pretrained(folder)` loads as fp32."""
    shared = copy.deepcopy(pipe).to("cpu")
    models.tie_case(shared)
    shared.to(torch.float16)
    with _replacing_folder(folder) as new_folder:
        shared.save_pretrained(new_folder, safe_serialization=True)
        for part in ("text_encoder", "text_encoder_2"):
            models.declare_fp32(new_folder / part / "config.json")
        models.drop_local_paths(new_folder)
        if (folder / "judges").exists():
            shutil.copytree(folder / "judges", new_folder / "judges")
    return folder


@contextmanager
def _replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill; it replaces `folder` when the block ends, and is deleted when it raises."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".photoflux-", dir=folder.parent) as scratch:
        new_folder, old_folder = Path(scratch) / folder.name, Path(scratch) / "before"
        new_folder.mkdir()
        yield new_folder
        if folder.exists():
            folder.replace(old_folder)  # a rename cannot replace a folder that is not empty
        try:
            new_folder.replace(folder)
        except OSError:
            old_folder.replace(folder)
            raise


def write_spec(folder: Path, *, config: models.PocketConfig) -> Path:
    """Write `<folder>.yaml` beside the folder: how to call this base, and the SHA-256 of each of its files."""
    import yaml

    from photoflux.flux.provision import files_of

    spec = {
        "name": "pocket",
        "folder": folder.name,
        "resolution_px": config.resolution_px,
        "steps": config.steps,
        "guidance_scale": 0.0,
        "text_length": config.text_length,
        "dtype": "float32",
        "lora_targets": models.lora_targets(config),
        "training_adapter": f"{folder.name}/{ADAPTER}/{train_adapter.FILE}" if (folder / ADAPTER).exists() else None,
        "start_adapter": f"{folder.name}/{START}/{train_start.FILE}" if (folder / START).exists() else None,
        "judges": f"{folder.name}/judges",
        "class_nouns": list(classes()["kind"]),
        "manifest": files_of(folder),
    }
    head = "# Written by `python -m photoflux.pocket.pretrain`; the manifest pins every file of the base.\n"
    path = folder.with_name(f"{folder.name}.yaml")
    return write_text(path, head + yaml.safe_dump(spec, sort_keys=False, width=100))


def main(arguments: list[str] | None = None) -> None:
    """Command line; progress goes to standard output, one line every twenty seconds."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for library in ("httpx", "diffusers", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    if options.threads:
        torch.set_num_threads(options.threads)
    plan = _plan(options)
    stages = options.stages.split(",") if options.stages else STAGES
    if unknown := set(stages) - set(STAGES):
        raise InputError(f"--stages: no stage {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    pretrain(options.out, work=options.work, plan=plan, stages=stages, init_from=options.init_from)


def _plan(options: argparse.Namespace) -> Plan:
    plan, device = Plan.smoke() if options.smoke else Plan(), _device(options.device)
    if device == "cuda" and not options.smoke:
        workers = max(1, (os.cpu_count() or 2) - 2)
        plan = replace(plan, budget_min=8.0, pictures=200_000, decoded=100_000, workers=workers, **ON_GPU)
    given = {name: value for name in PLAN_OPTIONS if (value := getattr(options, name)) is not None}
    return replace(plan, device=device, seed=options.seed, rate=options.rate, compiled=options.compile, **given)


def stage_minutes(text: str) -> dict[str, float]:
    """`"vae=2.5,flow=4"` -> minutes by stage."""
    minutes = {}
    for part in filter(None, text.split(",")):
        stage, _, value = part.partition("=")
        if stage not in SHARES or not value.replace(".", "", 1).isdigit():
            raise argparse.ArgumentTypeError(f"'{part}': write STAGE=MINUTES, with a stage of {', '.join(SHARES)}")
        minutes[stage] = float(value)
    return minutes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="photoflux.pocket.pretrain", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("models/pocket"), help="folder of the base")
    parser.add_argument("--work", type=Path, default=Path(".cache/pretrain"), help="folder of states and caches")
    parser.add_argument(
        "--budget-min", type=float, help="minutes of training over all stages; default: 110, on a GPU 8"
    )
    parser.add_argument(
        "--minutes", type=stage_minutes, help="what single stages take instead of their share: vae=2,flow=5"
    )
    parser.add_argument("--steps", type=int, help="end each training after so many steps")
    parser.add_argument("--stages", default="", help=f"comma-separated, of {', '.join(STAGES)}; default: all")
    parser.add_argument("--pictures", type=int, help="pictures to draw; more can be added to a cache later")
    parser.add_argument("--decoded", type=int, help="cached pictures that the judges also see after the VAE")
    parser.add_argument("--init-from", type=Path, help="continue from exported weights when --work is new")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu or cuda; default: cuda where there is one")
    parser.add_argument("--workers", type=int, help="processes that draw; default: 1, on a GPU all cores but two")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; default: all cores")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on learning rates, for use with --init-from")
    parser.add_argument("--compile", action="store_true", help="compile the flow (needs a C++ compiler; 1.5x faster)")
    parser.add_argument("--smoke", action="store_true", help="all stages in under a minute, to see that they run")
    return parser


def _device(name: str | None) -> str:
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
