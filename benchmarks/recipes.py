"""What a subject is put through: its photos, a recipe that fine-tunes, the evaluation, and the gate's rules about it.

Benchmarks of several kinds share this: which recipe wins (`subjects`), at which rate and for how many steps the rival does best
(`tuning`), what the gate must refuse (`controls`). What is finished lies in a folder that is named after all that it hangs on, and is
read from there.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from benchmarks.dreambooth import DreamBooth
from benchmarks.pocket_base import machine
from photoflux import fingerprint
from photoflux.judges.gate_rules import rules
from photoflux.manifest import digest, read_manifest, to_json, write_bytes, write_json
from photoflux.pages.palette import BLUE, DOUBTFUL, GOOD
from photoflux.params import as_dict
from photoflux.params.files import load_params
from photoflux.pocket.photosets import photo_set, unseen_subjects, write_photo_set
from photoflux.pocket.world import KINDS, Subject
from photoflux.settings import get_settings
from photoflux.steps.gate import SEVERITY_ORDER, Reason, judge

if TYPE_CHECKING:
    from PIL import Image

    from photoflux.flux.spec import BaseSpec
    from photoflux.judges.case import Case, EvaluationImages
    from photoflux.judges.encoders import Judges

log = logging.getLogger("benchmarks.recipes")

CALIBRATION_SEED, HEADLINE_SEED = 41_000, 77_000
"""Subject and photos of kind number `i` come from a seed and `i`: on the first ones limits and recipes are chosen, the second ones are
reported (docs/decisions/0023)."""
PHOTOS = 6
FRESH, FRESH_PX, FRESH_SEED = 12, 256, 90_000
"""Renders of the subject in scenes that neither training nor evaluation holds, for a second opinion on identity."""
STEPS = ("import_photos", "validate", "augment", "finetune", "evaluate", "audit", "gate")
SHOWN = (0, 2, 3, 4)
"""Prompts whose first picture is shown."""
REPORTED = ("identity_gain", "prompt_following", "prompt_change", "leakage", "copy_rate", "overall")
JUDGED_AT_LEAST, JUDGED_TIMES = 25, 16
"""A rival's adapter is judged on its way at most this often, and not before as many steps have passed as between our candidates."""


@dataclass(frozen=True)
class Recipe:
    """A way to fine-tune: what it is called, how many pictures of it are shown, and a rival's settings."""

    name: str
    title: str
    shown: int
    colour: str
    rival: DreamBooth | None = None

    @property
    def folder(self) -> str:
        """Where its results lie in a subject's folder; a rival's with other settings or other code lie elsewhere."""
        if self.rival is None:
            return self.name
        about = {"settings": asdict(self.rival), "code": fingerprint.code_digest("benchmarks.dreambooth")}
        return f"{self.name}-{short_hash(about)[:8]}"


OURS = Recipe("ours", "PhotoFlux", 4, BLUE)
DREAMBOOTH = Recipe("dreambooth", "DreamBooth", 2, DOUBTFUL)
STARTED = Recipe("dreambooth_started", "DreamBooth + start", 2, GOOD)
RIVALS = (DREAMBOOTH, STARTED)
RECIPES = (OURS, *RIVALS)


def among(row: Mapping[str, Any], recipes: Sequence[Recipe] = RECIPES) -> list[Recipe]:
    """Those of the recipes that a subject was put through: rivals have no part in a calibration."""
    return [recipe for recipe in recipes if recipe.name in row]


@dataclass(frozen=True)
class Bench:
    """One benchmark: parameters per step, the folder of what is finished, the first subject's seed, and what all subjects share."""

    params: Mapping[str, Any]
    spec: BaseSpec
    judges: Judges
    folder: Path
    seed: int


@dataclass
class Stopwatch:
    """Scores of each candidate with the seconds trained until then; drawing and judging candidates is not counted."""

    started: float = 0.0
    prepared_s: float = 0.0
    trained_s: float = 0.0
    judged_s: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)

    @contextmanager
    def timing(self) -> Iterator[None]:
        """While open, a fine-tuning is timed."""
        from photoflux.judges.checkpoint_selection import CheckpointSelector
        from photoflux.steps import finetune

        train, score = finetune.train, CheckpointSelector.score

        def timed_train(*args: Any, **more: Any) -> None:
            began = time.perf_counter()
            self.prepared_s, self.started = began - opened, began
            train(*args, **more)
            self.trained_s = time.perf_counter() - began - self.judged_s

        def timed_score(selector: CheckpointSelector, module: Any) -> dict[str, Any]:
            began = time.perf_counter()
            trained = began - self.started - self.judged_s
            scores = score(selector, module)
            self.judged_s += time.perf_counter() - began
            self.curve.append({"seconds": round(trained, 3), **scores})
            return scores

        opened = time.perf_counter()
        with patch.object(finetune, "train", timed_train), patch.object(CheckpointSelector, "score", timed_score):
            yield


def rivals(file: Path, params: Any, *, steps: int | None = None) -> list[Recipe]:
    """The rivals with the settings that were chosen for them; rank, strength and batch are ours."""
    tuned = read(file)
    if tuned is None:
        raise SystemExit(
            f"{file} is missing: the rivals' rate and steps come from `python -m benchmarks.subjects --tune`"
        )
    return [
        replace(rival, rival=settings(rival, params, lr=chosen["lr"], steps=steps or chosen["steps"]))
        for rival in RIVALS
        for chosen in (tuned["chosen"][rival.name],)
    ]


def settings(rival: Recipe, params: Any, *, lr: float, steps: int) -> DreamBooth:
    shared = {name: getattr(params, name) for name in ("rank", "alpha", "batch_size", "seed")}
    return DreamBooth(lr=lr, steps=steps, started=rival.name == STARTED.name, **shared)


def load_bench_params(steps: int | None, profile: str | None) -> dict[str, Any]:
    """`params.yaml` for every step; another number of steps keeps the number of candidates."""
    params = {step: load_params(step) for step in STEPS}
    if steps:
        tuned = params["finetune"]
        every = max(1, round(tuned.checkpoint_every * steps / tuned.steps))
        params["finetune"] = tuned.replace(steps=steps, checkpoint_every=every, save_every=every)
    if profile:
        params |= {step: params[step].replace(profile=profile) for step in ("evaluate", "audit")}
    return params


def open_bench(params: Mapping[str, Any], *, seed: int) -> Bench:
    """The base and its judges, and the folder that belongs to them, these parameters, these subjects and this machine."""
    from photoflux.flux.spec import load_spec
    from photoflux.judges.encoders import Judges

    _import_first()
    spec = load_spec(params["finetune"].base)
    if spec.judges is None:
        raise SystemExit(f"base '{spec.name}' has no judges: nothing can be measured on it")
    judges = Judges.load(Path(spec.judges), device=get_settings().device or None)
    code = fingerprint.code_digest(*(f"photoflux.steps.{step}" for step in STEPS), "photoflux.pocket.photosets")
    subjects = {"photos": PHOTOS, "fresh": (FRESH, FRESH_PX, FRESH_SEED), "seed": seed}
    about = {
        "base": fingerprint.of_generation(spec),
        "code": code,
        "judges": judges.hash,
        "prompts": digest(prompts_file(params)),
        "machine": machine(),
        "subjects": subjects,
        "params": {step: as_dict(params[step]) for step in STEPS if step != "gate"},
    }
    return Bench(params, spec, judges, Path(".cache/bench") / short_hash(about), seed)


def _import_first() -> None:
    """Load what takes seconds to import, so that the first subject is timed like the others; hush its advice."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    from diffusers import FluxPipeline  # noqa: F401

    from photoflux.flux import callbacks, data, loading, lora, memory, module, sampling  # noqa: F401
    from photoflux.judges import checkpoint_selection  # noqa: F401
    from photoflux.pages import finetune  # noqa: F401


def prompts_file(params: Mapping[str, Any]) -> Path:
    """The prompt set that is evaluated with."""
    name = params["evaluate"].prompts or params["evaluate"].base
    return Path(name) if name.endswith((".yaml", ".yml")) else get_settings().models_dir / "prompts" / f"{name}.yaml"


def short_hash(value: Any) -> str:
    return hashlib.sha256(to_json(value).encode()).hexdigest()[:16]


def subjects_of(numbers: Iterable[int], *, seed: int) -> list[tuple[Subject, int]]:
    """Subjects by the numbers of their kinds, each with its seed; no training saw their looks."""
    return [(unseen_subjects(1, seed=seed + number, kind=KINDS[number])[0], seed + number) for number in numbers]


def looks_of(subject: Subject) -> dict[str, str]:
    return {name: getattr(subject, name) for name in ("colour", "accent", "pattern", "mark", "mark_colour")}


def make_dataset(folder: Path, subject: Subject, *, seed: int, params: Mapping[str, Any]) -> Path:
    """import, validate, augment."""
    from photoflux.steps import augment, import_photos, validate

    dataset = folder / "dataset.tar"
    if dataset.is_file():
        return dataset
    write_photo_set(folder / "photos", subject, n=PHOTOS, seed=seed)
    about = params["import_photos"].replace(class_noun=subject.kind, subject_id=f"bench-{subject.kind}")
    photos, validated = folder / "photos.tar", folder / "validated.tar"
    import_photos.run(str(folder / "photos"), photos=photos, params=about)
    validate.run(
        photos,
        validated=validated,
        report=folder / "validate.html",
        expectations=folder / "expectations.json",
        data_docs=folder / "data_docs.html",
        params=params["validate"],
    )
    augment.run(validated, dataset=dataset, report=folder / "augment.html", params=params["augment"])
    return dataset


def read_manifest_counts(dataset: Path) -> dict[str, int]:
    """How many photos were trained on and held out."""
    items = read_manifest(dataset)["items"]
    sources = {split: {i["source"] for i in items if i["split"] == split} for split in ("train", "heldout")}
    return {"trained": len(sources["train"]), "held_out": len(sources["heldout"])}


def run_recipe(bench: Bench, home: Path, dataset: Path, recipe: Recipe, subject: Subject, seed: int) -> dict[str, Any]:
    """finetune, evaluate, judge; one row of the results. Measurements are read where they were finished before."""
    folder = home / recipe.folder
    done = folder / "row.json"
    if not done.is_file():
        write_json(done, measured_row(bench, folder, dataset, recipe, subject, seed))
    row = json.loads(done.read_text(encoding="utf-8"))
    row |= {"folder": recipe.folder, **judged(folder, bench.params["gate"])}
    log.info(
        "%s, %s: %s, identity gain %.2f, %.0f s",
        subject.kind,
        recipe.title,
        row["verdict"],
        point(row, "identity_gain"),
        row["seconds"],
    )
    return row


def measured_row(
    bench: Bench, folder: Path, dataset: Path, recipe: Recipe, subject: Subject, seed: int
) -> dict[str, Any]:
    """finetune, evaluate. Pictures for the contact sheet are kept in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    adapter = folder / "adapter.tar"
    if recipe.rival is None:
        took = finetuned(dataset, adapter, folder, bench.params["finetune"])
    else:
        took = rival_trained(bench, dataset, adapter, folder, recipe.rival)
    measured, case, pictures = evaluated(dataset, adapter, folder, bench.params["evaluate"])
    save_images(folder / "pictures", pictures, recipe.shown)
    return {
        "metrics": {name: measured["metrics"][name] for name in REPORTED},
        "identity_gain_fresh": fresh_gain(bench.judges, pictures, fresh_renders(subject, seed)),
        "captions": captions(case),
        **took,
        "pictures_per_set": measured["seeds"]["prompts"] * measured["seeds"]["per_prompt"],
        "hashes": {"adapter": measured["hashes"]["adapter"], "dataset": measured["hashes"]["dataset"]},
    }


def finetuned(dataset: Path, adapter: Path, folder: Path, params: Any) -> dict[str, Any]:
    """Our fine-tuning: seconds of the whole step and of its parts, the step that was kept, and the candidates' scores."""
    from photoflux.steps import finetune

    watch = Stopwatch()
    with watch.timing():
        report, workdir = folder / "finetune.html", folder / "training"
        metrics = finetune.run(dataset, adapter=adapter, report=report, params=params, workdir=workdir).metrics
    return {
        "seconds": metrics["seconds"],
        "prepared_s": watch.prepared_s,
        "trained_s": watch.trained_s,
        "kept_step": metrics["step"],
        "curve": watch.curve,
    }


def rival_trained(bench: Bench, dataset: Path, adapter: Path, folder: Path, how: DreamBooth) -> dict[str, Any]:
    """The same of a rival, which keeps its last step; what judging it on its way takes is no part of it."""
    from benchmarks import dreambooth

    every = max(min(JUDGED_AT_LEAST, how.steps), how.steps // JUDGED_TIMES)
    judged_at = {*range(every, how.steps, every), how.steps}
    told = dreambooth.run(
        dataset,
        adapters={how.steps: adapter},
        spec=bench.spec,
        how=how,
        cache=folder / "latents",
        judges=bench.judges,
        judged=judged_at,
    )
    return {
        "seconds": told.seconds,
        "prepared_s": told.prepared_s,
        "trained_s": told.trained_s,
        "kept_step": how.steps,
        "curve": told.curve,
    }


def evaluated(dataset: Path, adapter: Path, folder: Path, params: Any) -> tuple[dict[str, Any], Case, EvaluationImages]:
    """The evaluation's document, and the prompts and pictures that its report shows."""
    from photoflux.pages import evaluate as pages
    from photoflux.steps import evaluate

    document, report = folder / "evaluation.json", folder / "evaluation.html"
    with patch.object(pages, "evaluation_page", wraps=pages.evaluation_page) as page:
        evaluate.run(dataset, adapter, evaluation=document, report=report, params=params)
    (measured,), told = page.call_args
    return measured, told["case"], told["images"]


def save_images(folder: Path, images: EvaluationImages, count: int) -> None:
    for place, prompt in enumerate(SHOWN[:count]):
        write_bytes(folder / f"{place}.png", png(images.tuned.row(prompt)[0]))


def captions(case: Case) -> list[str]:
    """What the shown pictures were asked for, in a word or two."""
    asked = [case.subject_prompts[prompt].labels for prompt in SHOWN]
    return [" ".join(filter(None, (labels.get("style"), labels.get("place")))) for labels in asked]


def judged(folder: Path, params: Any) -> dict[str, Any]:
    """The verdict on the evaluation in `folder` by the gate's rules about it, and each rule's."""
    measured = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    reasons = evaluation_reasons(measured, params)
    return {"verdict": worst(reasons), "rules": {reason.rule: _stored(reason) for reason in reasons}}


def evaluation_reasons(measured: Mapping[str, Any], params: Any) -> list[Reason]:
    """The gate's verdict on every rule about the evaluation; what needs an audit or a champion is left out."""
    invalid = [Reason("validity", "INVALID", text) for text in measured["invalid"]]
    if measured["made_share"] < params.images_min:
        invalid.append(Reason("pictures made", "INVALID", "too few pictures", measured["made_share"]))
    return [*invalid, *(judge(rule, measured["metrics"]) for rule in rules(measured, params))]


def _stored(reason: Reason) -> dict[str, Any]:
    """A reason without its name, and with its sentence only where it stands against a pass."""
    left_out = {"rule"} | ({"message"} if reason.verdict == "PASS" else set())
    return {name: value for name, value in asdict(reason).items() if name not in left_out}


def worst(reasons: Iterable[Reason]) -> str:
    return max((reason.verdict for reason in reasons), key=SEVERITY_ORDER.index)


def point(row: Mapping[str, Any], metric: str) -> float:
    return float(row["metrics"][metric]["point"])


def fresh_renders(subject: Subject, seed: int) -> list[Image.Image]:
    """The subject in new scenes."""
    return [image for image, _ in photo_set(subject, n=FRESH, seed=seed + FRESH_SEED, size_px=FRESH_PX)]


def fresh_gain(judges: Judges, images: EvaluationImages, renders: Sequence[Image.Image]) -> float:
    """Identity gain against fresh renders: 0 like the base, 1 as alike as two renders of the subject."""
    seen = judges.identity(renders).numpy()
    tuned, base = (float((grid.outputs.identity @ seen.T).mean()) for grid in (images.tuned, images.base))
    among = (seen @ seen.T)[~np.eye(len(seen), dtype=bool)]
    return (tuned - base) / max(1e-3, float(among.mean()) - base)


def audited(bench: Bench, home: Path, dataset: Path) -> dict[str, Any]:
    """The whole gate on our adapter: evaluation and bias audit."""
    from photoflux.steps import audit, gate

    folder = home / OURS.folder
    found, decided = folder / "audit.json", folder / "decision.json"
    if not found.is_file():
        log.info("%s: bias audit", dataset.parent.name)
        audit.run(folder / "adapter.tar", audit=found, report=folder / "audit.html", params=bench.params["audit"])
    gate.run(
        folder / "evaluation.json", found, decision=decided, report=folder / "gate.html", params=bench.params["gate"]
    )
    decision = json.loads(decided.read_text(encoding="utf-8"))
    rows = {reason["rule"]: reason for reason in decision["reasons"]}
    return {"verdict": decision["verdict"], "summary": decision["summary"], "bias_audit": rows["bias audit"]}


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def read(file: Path) -> dict[str, Any] | None:
    """A result, if it is there."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
