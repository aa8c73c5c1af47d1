"""How well, how fast and how safely twelve subjects that no training saw are personalised.

    python -m benchmarks.subjects
    python -m benchmarks.subjects --subjects 1 --steps 20 --profile smoke --out build/subjects

One subject of each kind goes through import, validate, augment, finetune, evaluate and the gate's rules with the shipped
`params.yaml`; beside it, on the same photos and for as many steps at the same rate, goes the *plain loop* that DreamBooth
scripts run: no prior preservation, no training or starting adapter, logit-normal noise levels, and the last weights. Writes
`subjects.json`, `.md`, `.png` and `subjects_curves.png`. What is finished is kept in `.cache/bench`, so an interrupted
benchmark goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from textwrap import fill
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from benchmarks.pocket_base import machine
from photoflux import fingerprint
from photoflux.judges.evaluation_page import interval_of
from photoflux.judges.plots import BLUE, DOUBTFUL, INK, SOFT, blank
from photoflux.manifest import digest, read_manifest, to_json, write_bytes, write_json, write_text
from photoflux.params import PROFILES, as_dict, load_params
from photoflux.pocket.photosets import photo_set, unseen_subjects, write_photo_set
from photoflux.pocket.world import KINDS, Subject
from photoflux.report import contact_sheet
from photoflux.settings import get_settings
from photoflux.steps.gate import SEVERITY_ORDER, Reason, judge, rules

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from photoflux.flux.base import BaseSpec
    from photoflux.judges.encoders import Judges
    from photoflux.steps.evaluate import Case, Pictures

log = logging.getLogger("benchmarks.subjects")

SCHEMA_VERSION = 1
RESULTS = Path("benchmarks/results")
SEED, PHOTOS = 41_000, 6
"""Subject and photos of kind number `i` come from seed `SEED + i`."""
FRESH, FRESH_PX, FRESH_SEED = 12, 256, 90_000
"""Renders of the subject in scenes that neither training nor evaluation holds, for a second opinion on identity."""
GAIN_AIM, LEAKAGE_AIM = 0.60, 0.20
"""Identity gain whose time is taken on the curves, and the leakage up to which it is likeness and not overwriting."""
PASSES_OF_TWELVE = 9
STEPS = ("import_photos", "validate", "augment", "finetune", "evaluate", "audit", "gate")
PACKAGES = ("torch", "diffusers", "transformers", "peft", "pytorch-lightning", "numpy", "pillow")
SHOWN = (0, 2, 3, 4)
"""Prompts whose first picture is shown."""
TILE_PX = 144
REPORTED = ("identity_gain", "prompt_following", "prompt_change", "leakage", "copy_rate", "overall")


@dataclass(frozen=True)
class Recipe:
    """A way to fine-tune: what it is called, what it changes in `params.yaml`, how many pictures of it are shown."""

    name: str
    title: str
    changes: Mapping[str, Any]
    shown: int
    colour: str
    training_adapter: bool = True


OURS = Recipe("ours", "PhotoFlux", {}, 4, BLUE)
PLAIN = Recipe(
    "plain", "plain loop",
    {"preservation": 0.0, "serving_sigmas": 0.0, "high_sigmas": 1.0, "ema": 0.0, "select": "last"},
    2, DOUBTFUL, training_adapter=False,
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """One benchmark: parameters per step, the folder of what is finished, and what all subjects share."""

    params: Mapping[str, Any]
    spec: BaseSpec
    judges: Judges
    folder: Path
    audit: bool


@dataclass
class Stopwatch:
    """Scores of each candidate with the seconds trained until then; drawing and judging candidates is not counted."""

    started: float = 0.0
    prepared_s: float = 0.0
    trained_s: float = 0.0
    judged_s: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While open, a fine-tuning is timed."""
        from photoflux.flux import fit
        from photoflux.flux.candidates import Contest

        train, enter = fit.fit, Contest.enter

        def timed_fit(*args: Any, **more: Any) -> None:
            began = time.perf_counter()
            self.prepared_s, self.started = began - opened, began
            train(*args, **more)
            self.trained_s = time.perf_counter() - began - self.judged_s

        def timed_enter(contest: Contest, module: Any) -> dict[str, Any]:
            began = time.perf_counter()
            trained = began - self.started - self.judged_s
            scores = enter(contest, module)
            self.judged_s += time.perf_counter() - began
            self.curve.append({"seconds": round(trained, 3), **scores})
            return scores

        opened = time.perf_counter()
        with patch.object(fit, "fit", timed_fit), patch.object(Contest, "enter", timed_enter):
            yield


def main(argv: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    bench = open_bench(load_bench_params(options.steps, options.profile), audit=options.audit)
    rows = [run_subject(bench, *each) for each in unseen(options.subjects)]
    result = document(bench, sorted(rows, key=badness, reverse=True))
    write_results(options.out, result, bench)
    print(tables(result))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.subjects", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--subjects", type=int, default=len(KINDS), choices=range(1, len(KINDS) + 1), metavar="N",
                        help="the first N of the twelve")  # fmt: skip
    parser.add_argument("--steps", type=int, help="optimiser steps of both recipes instead of finetune.steps")
    parser.add_argument("--profile", choices=PROFILES[:2], help="pictures per judgement instead of evaluate.profile")
    parser.add_argument("--audit", action="store_true", help="also audit our adapters and hold them to the whole gate")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the four files go")
    return parser


def load_bench_params(steps: int | None, profile: str | None) -> dict[str, Any]:
    """`params.yaml` for every step; another number of steps keeps the number of candidates."""
    params = {step: load_params(step) for step in STEPS}
    if steps:
        tuned = params["finetune"]
        every = max(1, round(tuned.checkpoint_every * steps / tuned.steps))
        params["finetune"] = replace(tuned, steps=steps, checkpoint_every=every, save_every=every)
    if profile:
        params |= {step: replace(params[step], profile=profile) for step in ("evaluate", "audit")}
    return params


def open_bench(params: Mapping[str, Any], *, audit: bool) -> Bench:
    """The base and its judges, and the folder that belongs to them, these parameters and this machine."""
    from photoflux.flux.base import load_spec
    from photoflux.judges.encoders import Judges

    _import_first()
    spec = load_spec(params["finetune"].base)
    if spec.judges is None:
        raise SystemExit(f"base '{spec.name}' has no judges: nothing can be measured on it")
    judges = Judges.load(Path(spec.judges), device=get_settings().device or None)
    code = fingerprint.code_digest(*(f"photoflux.steps.{step}" for step in STEPS))
    about = {"base": fingerprint.of_drawing(spec), "code": code, "judges": judges.hash,
             "prompts": digest(_prompts(params)), "machine": machine(), "seed": SEED,
             "params": {step: as_dict(params[step]) for step in STEPS if step != "gate"}}  # fmt: skip
    return Bench(params, spec, judges, Path(".cache/bench") / short_hash(about), audit)


def _import_first() -> None:
    """Load what takes seconds to import, so that the first subject is timed like the others; hush its advice."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    from diffusers import FluxPipeline  # noqa: F401

    from photoflux.flux import base, candidates, data, fit, lora, memory, module, report, sampling  # noqa: F401


def _prompts(params: Mapping[str, Any]) -> Path:
    name = params["evaluate"].prompts or params["evaluate"].base
    return Path(name) if name.endswith((".yaml", ".yml")) else get_settings().models_dir / "prompts" / f"{name}.yaml"


def short_hash(value: Any) -> str:
    return hashlib.sha256(to_json(value).encode()).hexdigest()[:16]


def unseen(count: int) -> list[tuple[Subject, int]]:
    """The first `count` of the twelve subjects, one per kind, each with its seed."""
    seeds = [SEED + number for number in range(count)]
    return [(unseen_subjects(1, seed=seed, kind=kind)[0], seed) for kind, seed in zip(KINDS, seeds, strict=False)]


def run_subject(bench: Bench, subject: Subject, seed: int) -> dict[str, Any]:
    """Everything about one subject: photos to verdict with both recipes. What is finished is read, not run again."""
    folder = bench.folder / subject.kind
    dataset = make_dataset(folder, subject, seed=seed, params=bench.params)
    recipes = {recipe.name: run_recipe(bench, folder, dataset, recipe, subject, seed) for recipe in (OURS, PLAIN)}
    return {
        "subject": subject.kind,
        "looks": {name: getattr(subject, name) for name in ("colour", "accent", "pattern", "mark", "mark_colour")},
        "seed": seed,
        "photos": {"given": PHOTOS, **read_manifest_counts(dataset)},
        **recipes,
        "gate": audited(bench, folder, dataset) if bench.audit else None,
    }


def make_dataset(folder: Path, subject: Subject, *, seed: int, params: Mapping[str, Any]) -> Path:
    """import, validate, augment."""
    from photoflux.steps import augment, import_photos, validate

    dataset = folder / "dataset.tar"
    if dataset.is_file():
        return dataset
    write_photo_set(folder / "photos", subject, n=PHOTOS, seed=seed)
    about = replace(params["import_photos"], class_noun=subject.kind, subject_id=f"bench-{subject.kind}")
    photos, validated = folder / "photos.tar", folder / "validated.tar"
    import_photos.run(str(folder / "photos"), photos=photos, params=about)
    validate.run(
        photos, validated=validated, report=folder / "validate.html", expectations=folder / "expectations.json",
        data_docs=folder / "data_docs.html", params=params["validate"],
    )  # fmt: skip
    augment.run(validated, dataset=dataset, report=folder / "augment.html", params=params["augment"])
    return dataset


def read_manifest_counts(dataset: Path) -> dict[str, int]:
    """How many photos were trained on and held out."""
    items = read_manifest(dataset)["items"]
    sources = {split: {i["source"] for i in items if i["split"] == split} for split in ("train", "heldout")}
    return {"trained": len(sources["train"]), "held_out": len(sources["heldout"])}


def run_recipe(bench: Bench, home: Path, dataset: Path, recipe: Recipe, subject: Subject, seed: int) -> dict[str, Any]:
    """finetune, evaluate, judge; one row of the results. Measurements are read where they were finished before."""
    folder = home / recipe.name
    done = folder / "row.json"
    if not done.is_file():
        write_json(done, measured_row(bench, folder, dataset, recipe, subject, seed))
    row = json.loads(done.read_text(encoding="utf-8"))
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    reasons = evaluation_reasons(evaluation, bench.params["gate"])
    row |= {"verdict": worst(reasons), "rules": {reason.rule: _stored(reason) for reason in reasons}}
    log.info("%s, %s: %s, identity gain %.2f, %.0f s", subject.kind, recipe.title, row["verdict"],
             point(row, "identity_gain"), row["seconds"])  # fmt: skip
    return row


def measured_row(
    bench: Bench, folder: Path, dataset: Path, recipe: Recipe, subject: Subject, seed: int
) -> dict[str, Any]:
    """finetune, evaluate. Pictures for the contact sheet are kept in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    watch, adapter = Stopwatch(), folder / "adapter.tar"
    params = replace(bench.params["finetune"], **recipe.changes)
    if not recipe.training_adapter:
        params = replace(params, base=str(base_without_adapter(bench)))
    trained = finetuned(dataset, adapter, folder, params, watch)
    measured, case, pictures = evaluated(dataset, adapter, folder, bench.params["evaluate"])
    keep_pictures(folder / "pictures", pictures, recipe.shown)
    return {
        "metrics": {name: measured["metrics"][name] for name in REPORTED},
        "identity_gain_fresh": fresh_gain(bench.judges, pictures, fresh_renders(subject, seed)),
        "captions": captions(case),
        "seconds": trained["seconds"],
        "prepared_s": watch.prepared_s,
        "trained_s": watch.trained_s,
        "kept_step": trained["step"],
        "curve": watch.curve,
        "pictures_per_set": measured["seeds"]["prompts"] * measured["seeds"]["per_prompt"],
        "hashes": {"adapter": measured["hashes"]["adapter"], "dataset": measured["hashes"]["dataset"]},
    }


def base_without_adapter(bench: Bench) -> Path:
    """A spec of the same base that names no adapters for training."""
    folders = tuple(f"{file.parent.name}/" for file in bench.spec.training_files)
    kept = ("name", "resolution_px", "steps", "guidance_scale", "text_length", "dtype")
    content = {
        **{name: getattr(bench.spec, name) for name in kept},
        "folder": str(bench.spec.folder), "judges": str(bench.spec.judges),
        "lora_targets": list(bench.spec.lora_targets), "class_nouns": list(bench.spec.class_nouns),
        "manifest": {file: sha for file, sha in bench.spec.manifest.items()
                     if not file.startswith(folders)},
    }  # fmt: skip
    return write_json(bench.folder / "without-adapter.yaml", content)  # JSON is YAML


def finetuned(dataset: Path, adapter: Path, folder: Path, params: Any, watch: Stopwatch) -> dict[str, float]:
    from photoflux.steps import finetune

    with watch.watching():
        report, workdir = folder / "finetune.html", folder / "training"
        return finetune.run(dataset, adapter=adapter, report=report, params=params, workdir=workdir).metrics


def evaluated(dataset: Path, adapter: Path, folder: Path, params: Any) -> tuple[dict[str, Any], Case, Pictures]:
    """The evaluation's document, and the prompts and pictures that its report shows."""
    from photoflux.judges import evaluation_page
    from photoflux.steps import evaluate

    document, report = folder / "evaluation.json", folder / "evaluation.html"
    with patch.object(evaluation_page, "write_report", wraps=evaluation_page.write_report) as page:
        evaluate.run(dataset, adapter, evaluation=document, report=report, params=params)
    told = page.call_args.kwargs
    return told["document"], told["case"], told["pictures"]


def keep_pictures(folder: Path, pictures: Pictures, count: int) -> None:
    for place, prompt in enumerate(SHOWN[:count]):
        write_bytes(folder / f"{place}.png", _png(pictures.tuned.row(prompt)[0]))


def captions(case: Case) -> list[str]:
    """What the shown pictures were asked for, in a word or two."""
    asked = [case.asked[prompt].labels for prompt in SHOWN]
    return [" ".join(filter(None, (labels.get("style"), labels.get("place")))) for labels in asked]


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


def fresh_renders(subject: Subject, seed: int) -> list[Image.Image]:
    """The subject in new scenes."""
    return [image for image, _ in photo_set(subject, n=FRESH, seed=seed + FRESH_SEED, size_px=FRESH_PX)]


def fresh_gain(judges: Judges, pictures: Pictures, renders: Sequence[Image.Image]) -> float:
    """Identity gain against fresh renders: 0 like the base, 1 as alike as two renders of the subject."""
    seen = judges.identity(renders).numpy()
    tuned, base = (float((grid.seen.identity @ seen.T).mean()) for grid in (pictures.tuned, pictures.base))
    among = (seen @ seen.T)[~np.eye(len(seen), dtype=bool)]
    return (tuned - base) / max(1e-3, float(among.mean()) - base)


def audited(bench: Bench, home: Path, dataset: Path) -> dict[str, Any]:
    """The whole gate on our adapter: evaluation and bias audit."""
    from photoflux.steps import audit, gate

    folder = home / OURS.name
    done = folder / "decision.json"
    if not done.is_file():
        log.info("%s: bias audit", dataset.parent.name)
        found = folder / "audit.json"
        audit.run(folder / "adapter.tar", audit=found, report=folder / "audit.html", params=bench.params["audit"])
        gate.run(folder / "evaluation.json", found, decision=done, report=folder / "gate.html",
                 params=bench.params["gate"])  # fmt: skip
    decision = json.loads(done.read_text(encoding="utf-8"))
    rows = {reason["rule"]: reason for reason in decision["reasons"]}
    return {"verdict": decision["verdict"], "summary": decision["summary"], "bias_audit": rows["bias audit"]}


def document(bench: Bench, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Everything that is measured, worst subject first, and what it was measured with."""
    from photoflux.steps.register import code_version

    params = {step: as_dict(bench.params[step]) for step in STEPS}
    return {
        "kind": "benchmark-subjects",
        "schema_version": SCHEMA_VERSION,
        "verdicts": "the gate's rules about the evaluation; "
        + ("the whole gate, bias audit included, stands under 'gate'" if bench.audit else "no bias audit was run"),
        "machine": machine(),
        "versions": {name: version(name) for name in PACKAGES} | {"photoflux": code_version()},
        "base": {"name": bench.spec.name, "hash": bench.spec.hash},
        "hashes": {
            "judges": bench.judges.hash, "prompts": digest(_prompts(bench.params)), "params": short_hash(params),
            "calibration": calibration(rows),
        },
        "seeds": {"subjects": SEED, "evaluate": bench.params["evaluate"].seed, "finetune": bench.params["finetune"].seed},
        "params": params,
        "recipes": {recipe.name: {"title": recipe.title, "changes": dict(recipe.changes)} for recipe in (OURS, PLAIN)},
        "targets": targets(rows),
        "summary": {recipe.name: summary(rows, recipe) for recipe in (OURS, PLAIN)},
        "time_to_gain": times(rows),
        "margins": margins(rows, bench.params["gate"]),
        "subjects": list(rows),
    }  # fmt: skip


def calibration(rows: Sequence[Mapping[str, Any]]) -> str:
    """What `gate.calibration` is after limits were chosen by these measurements, whatever limits they were held to."""
    names = ("value", "lo", "hi")
    found = {
        f"{row['subject']} {recipe.name}": {
            rule: [round(one[name], 4) for name in names] for rule, one in row[recipe.name]["rules"].items()
        }
        for row in rows for recipe in (OURS, PLAIN)
    }  # fmt: skip
    return short_hash(found)


def margins(rows: Sequence[Mapping[str, Any]], params: Any) -> list[dict[str, Any]]:
    """Per rule: its limit, our bound nearest to it, the plain loop's middle subject, and how many of either do not pass."""
    found = []
    for rule in rules({"exact_attributes": True}, params):
        ours, plain = ([row[recipe.name]["rules"][rule.name] for row in rows] for recipe in (OURS, PLAIN))
        bound = "value" if rule.point_only else "lo" if rule.floor else "hi"
        nearest = (min if rule.floor else max)(one[bound] for one in ours)
        failing = {r.name: sum(one["verdict"] != "PASS" for one in judged) for r, judged in ((OURS, ours), (PLAIN, plain))}
        found.append({"rule": rule.name, "at_least": rule.floor, "limit": rule.bound, "our_worst_bound": nearest,
                      "plain_median": median(one["value"] for one in plain), "not_passed": failing})  # fmt: skip
    return found


def badness(row: Mapping[str, Any]) -> tuple[int, float]:
    """Sorts the worst first when reversed: by verdict, then by overall score."""
    ours = row[OURS.name]
    return SEVERITY_ORDER.index(ours["verdict"]), -point(ours, "overall")


def point(recipe: Mapping[str, Any], metric: str) -> float:
    return float(recipe["metrics"][metric]["point"])


def summary(rows: Sequence[Mapping[str, Any]], recipe: Recipe) -> dict[str, float]:
    """Passes, means over subjects, and the slowest fine-tuning."""
    each = [row[recipe.name] for row in rows]
    means = {name: fmean(point(one, name) for one in each) for name in
             ("identity_gain", "prompt_change", "leakage", "copy_rate", "overall")}  # fmt: skip
    return {
        "subjects": len(each),
        "passes": sum(one["verdict"] == "PASS" for one in each),
        **means,
        "identity_gain_fresh": fmean(one["identity_gain_fresh"] for one in each),
        "seconds": fmean(one["seconds"] for one in each),
        "seconds_most": max(one["seconds"] for one in each),
    }


def targets(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What we aim at, what our recipe reaches, and whether that is enough."""
    ours = summary(rows, OURS)
    needed = round(PASSES_OF_TWELVE * len(rows) / len(KINDS))
    aims = [
        ("evaluations that pass", ours["passes"], needed, True),
        ("mean identity gain", ours["identity_gain"], GAIN_AIM, True),
        ("mean prompt accuracy lost", -ours["prompt_change"], 0.10, False),
        ("mean leakage", ours["leakage"], LEAKAGE_AIM, False),
        ("mean copy rate", ours["copy_rate"], 0.05, False),
        ("slowest fine-tuning, s", ours["seconds_most"], 120, False),
    ]
    return [
        {
            "target": name,
            "reached": value,
            "aim": aim,
            "at_least": floor,
            "met": value >= aim if floor else value <= aim,
        }
        for name, value, aim, floor in aims
    ]


def times(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds of training until identity gain first reaches the aim; *clean*: while the class stays itself."""
    return {
        "gain": GAIN_AIM,
        "leakage": LEAKAGE_AIM,
        "first": _compared(rows, leakage_max=None),
        "clean": _compared(rows, leakage_max=LEAKAGE_AIM),
        "prepared_s": {recipe.name: fmean(row[recipe.name]["prepared_s"] for row in rows) for recipe in (OURS, PLAIN)},
        "trained_s": {recipe.name: fmean(row[recipe.name]["trained_s"] for row in rows) for recipe in (OURS, PLAIN)},
    }


def _compared(rows: Sequence[Mapping[str, Any]], *, leakage_max: float | None) -> dict[str, Any]:
    """Both recipes' seconds per subject and on the mean curve, their ratio, and how many subjects get there."""
    named = {row["subject"]: [row[recipe.name]["curve"] for recipe in (OURS, PLAIN)] for row in rows}
    found = {kind: [reached_s(curve, leakage_max=leakage_max) for curve in pair] for kind, pair in named.items()}
    mean = [reached_s(mean_curve(rows, recipe), leakage_max=leakage_max) for recipe in (OURS, PLAIN)]
    return {
        "per_subject": {kind: _ratio(*pair) for kind, pair in found.items()},
        "mean_curve": _ratio(*mean),
        "reached_by": {
            recipe.name: sum(pair[i] is not None for pair in found.values()) for i, recipe in enumerate((OURS, PLAIN))
        },
    }


def _ratio(ours: float | None, plain: float | None) -> dict[str, float | None]:
    return {OURS.name: ours, PLAIN.name: plain, "ratio": ours / plain if ours and plain else None}


def reached_s(curve: Sequence[Mapping[str, float]], *, leakage_max: float | None = None) -> float | None:
    """When a curve that starts at the base, (0 s, 0), first reaches the aim, read off between its points.

    With `leakage_max`, the time of the first candidate that reaches it without leaking more than that.
    """
    before = {"seconds": 0.0, "identity": 0.0}
    for now in curve:
        if now["identity"] >= GAIN_AIM and leakage_max is None:
            share = (GAIN_AIM - before["identity"]) / (now["identity"] - before["identity"])
            return before["seconds"] + share * (now["seconds"] - before["seconds"])
        if now["identity"] >= GAIN_AIM and leakage_max is not None and now["leakage"] <= leakage_max:
            return now["seconds"]
        before = {name: now[name] for name in before}
    return None


def mean_curve(rows: Sequence[Mapping[str, Any]], recipe: Recipe) -> list[dict[str, float]]:
    """The mean over subjects at each candidate: every subject has them after the same steps."""
    together = zip(*(row[recipe.name]["curve"] for row in rows), strict=True)
    return [
        {name: fmean(one[name] for one in ones) for name in ("seconds", "identity", "leakage")} for ones in together
    ]


def write_results(out: Path, result: Mapping[str, Any], bench: Bench) -> None:
    """The four files, each written whole or not at all."""
    write_bytes(out / "subjects.png", _png(sheet(result, bench.folder)))
    write_bytes(out / "subjects_curves.png", _figure_png(curves(result)))
    write_text(out / "subjects.md", page(result))
    write_json(out / "subjects.json", result)


def sheet(result: Mapping[str, Any], folder: Path) -> Image.Image:
    """Per subject, worst first: two photos, four pictures by our recipe, two by the plain loop."""
    rows, labels = [], []
    for row in result["subjects"]:
        home = folder / row["subject"]
        photos = sorted((home / "photos").glob("*.jpg"))[:2]
        ours, plain = (sorted((home / recipe.name / "pictures").glob("*.png")) for recipe in (OURS, PLAIN))
        rows.append([Image.open(file).convert("RGB") for file in (*photos, *ours, *plain)])
        labels.append(f"{_title(row)}  |  {_told(row, OURS)}  |  {_told(row, PLAIN)}")
    asked = result["subjects"][0][OURS.name]["captions"]
    drawn = [f"{recipe.name}: {text}" for recipe in (OURS, PLAIN) for text in asked[: recipe.shown]]
    columns = ["photo", "photo", *drawn]
    return contact_sheet(rows, row_labels=labels, column_labels=columns, tile_px=TILE_PX)


def _title(row: Mapping[str, Any]) -> str:
    looks = row["looks"]
    return f"{row['subject']} ({looks['colour']} and {looks['accent']}, {looks['pattern']}, {looks['mark']})"


def _told(row: Mapping[str, Any], recipe: Recipe) -> str:
    one = row[recipe.name]
    return (
        f"{recipe.name}: {one['verdict']}, identity gain {point(one, 'identity_gain'):.2f}, "
        f"leakage {point(one, 'leakage'):.2f}"
    )


def curves(result: Mapping[str, Any]) -> Figure:
    """Identity gain and leakage against seconds of training: thin per subject, thick the mean."""
    figure, axes = blank(10.4, 4.2, columns=2)
    for axis, name, title in zip(
        axes, ("identity", "leakage"), ("identity gain", "leakage into the class"), strict=True
    ):
        for recipe in (OURS, PLAIN):
            _lines(axis, result["subjects"], recipe, name)
        axis.set_xlabel("seconds of training", color=SOFT)
        axis.set_title(f"{title}, as candidates are judged during training", loc="left", fontsize=10, color=SOFT)
        axis.set_xlim(left=0)
        axis.set_ylim(-0.1, 1.1)
    for axis, aim, side in zip(axes, (GAIN_AIM, LEAKAGE_AIM), ("at least", "at most"), strict=True):
        axis.axhline(aim, color=INK, lw=1, ls="--", zorder=0)
        axis.annotate(f"{side} {aim:g}", (1, aim), xycoords=("axes fraction", "data"), xytext=(-4, 3),
                      textcoords="offset points", ha="right", color=INK, fontsize=9)  # fmt: skip
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside upper right", ncols=2)
    return figure


def _lines(axis: Axes, rows: Sequence[Mapping[str, Any]], recipe: Recipe, name: str) -> None:
    for row in rows:
        axis.plot(*_with_start(row[recipe.name]["curve"], name), color=recipe.colour, lw=0.8, alpha=0.35)
    mean = mean_curve(rows, recipe)
    axis.plot(
        *_with_start(mean, name),
        color=recipe.colour,
        lw=2.4,
        marker="o",
        ms=4,
        label=f"{recipe.title}: mean, and each subject",
    )


def _with_start(curve: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    return [0.0, *(one["seconds"] for one in curve)], [0.0, *(one[name] for one in curve)]


def page(result: Mapping[str, Any]) -> str:
    """`subjects.md`."""
    count, plain = len(result["subjects"]), ", ".join(f"`finetune.{k}: {v}`" for k, v in PLAIN.changes.items())
    first = f"""{count} subjects of the pocket world, one per kind, with looks kept from pretraining, {PHOTOS} photos each.
    Verdicts are those of {result["verdicts"]}. The *plain loop* is the same fine-tuning for as many steps at the
    same rate, without the base's training and starting adapters and with {plain}.
    Written by `python -m benchmarks.subjects`; pictures in `subjects.png`, everything else in `subjects.json`."""
    return f"""# Subjects that no training saw
{fill(" ".join(first.split()), 120, break_on_hyphens=False)}

{tables(result)}

![Photos, and pictures by both recipes](subjects.png)

## How it was measured
- Identity gain, prompt accuracy, leakage and copies are the evaluation's, with their 95 % intervals. *Fresh* is identity
  gain against {FRESH} new renders of the subject instead of the held-out photo.
- Seconds are those of the whole fine-tuning step: loading the base, preparation, training, and judging candidates; modules
  are imported before.
- The curves show candidates as fine-tuning judges them, with few pictures; their seconds are of training alone.
{_measured_with(result)}
"""


def tables(result: Mapping[str, Any]) -> str:
    """Subjects, means beside their targets, and the time to the aim."""
    parts = [_subjects_table(result["subjects"]), _targets_table(result), _times_text(result)]
    return "\n\n".join([*parts, _margins_table(result), *_gate_table(result["subjects"])])


def _margins_table(result: Mapping[str, Any]) -> str:
    """What the gate's limits rest on."""
    body = [
        [one["rule"], f"{'≥' if one['at_least'] else '≤'} {one['limit']:g}", _short(one["our_worst_bound"]),
         str(one["not_passed"][OURS.name]), _short(one["plain_median"]), str(one["not_passed"][PLAIN.name])]
        for one in result["margins"]
    ]  # fmt: skip
    heads = ("rule", "limit", f"{OURS.title}: worst bound", "not passed", f"{PLAIN.title}: median", "not passed")
    return f"## The gate's limits (calibration `{result['hashes']['calibration']}`)\n{_table(heads, body)}"


def _gate_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The whole gate on our adapters, where the audit was run."""
    body = [
        [row["subject"], row["gate"]["verdict"], row["gate"]["bias_audit"]["message"]] for row in rows if row["gate"]
    ]
    return [f"## With the bias audit\n{_table(('subject', 'gate', 'bias audit'), body)}"] if body else []


def _subjects_table(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = ("subject", "verdict", "identity gain", "fresh", "prompt accuracy", "leakage", "copies", "s", "not passed")
    body = [_cells(row, recipe) for row in rows for recipe in (OURS, PLAIN)]
    return f"## Worst first\n{_table(heads, body)}"


def _cells(row: Mapping[str, Any], recipe: Recipe) -> list[str]:
    one = row[recipe.name]
    return [
        row["subject"] if recipe is OURS else recipe.title,
        one["verdict"],
        _span(one, "identity_gain"),
        f"{one['identity_gain_fresh']:.2f}",
        _span(one, "prompt_change", sign="+"),
        _span(one, "leakage"),
        f"{point(one, 'copy_rate'):.2f}",
        f"{one['seconds']:.0f}",
        _not_passed(one["rules"]),
    ]


def _not_passed(judged: Mapping[str, Mapping[str, Any]]) -> str:
    """The rules in the way of a pass, by verdict, most serious first."""
    names = {
        word: sorted(name for name, rule in judged.items() if rule["verdict"] == word) for word in SEVERITY_ORDER[:0:-1]
    }
    return "; ".join(f"{word}: {', '.join(found)}" for word, found in names.items() if found)


def _span(one: Mapping[str, Any], metric: str, *, sign: str = "") -> str:
    value = interval_of(one["metrics"][metric])
    return f"{value.point:{sign}.2f} [{value.lo:.2f}, {value.hi:.2f}]"


def _targets_table(result: Mapping[str, Any]) -> str:
    plain, count = result["summary"][PLAIN.name], len(result["subjects"])
    beside = [plain["passes"], plain["identity_gain"], -plain["prompt_change"], plain["leakage"], plain["copy_rate"],
              plain["seconds_most"]]  # fmt: skip
    body = [
        [aim["target"], f"{'≥' if aim['at_least'] else '≤'} {aim['aim']:g}", _short(aim["reached"]),
         "yes" if aim["met"] else "**no**", _short(other)]
        for aim, other in zip(result["targets"], beside, strict=True)
    ]  # fmt: skip
    heads = (f"over {count} subjects", "target", OURS.title, "met", PLAIN.title)
    return f"## Means and targets\n{_table(heads, body)}"


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.0f}" if value >= 10 else f"{round(value, 2) + 0.0:.2f}"


def _times_text(result: Mapping[str, Any]) -> str:
    found = result["time_to_gain"]
    heads = ("seconds of training", f"{OURS.title}: first", f"{PLAIN.title}: first", "ratio", f"{OURS.title}: clean",
             f"{PLAIN.title}: clean", "ratio")  # fmt: skip
    names = ["mean curve", *found["first"]["per_subject"]]
    rows = [[{"mean curve": found[way]["mean_curve"], **found[way]["per_subject"]}[name] for way in ("first", "clean")]
            for name in names]  # fmt: skip
    body = [
        [name, *(_or_never(row[part]) for row in pair for part in (OURS.name, PLAIN.name, "ratio"))]
        for name, pair in zip(names, rows, strict=True)
    ]
    return f"## Time to likeness\n{_table(heads, body)}\n\n{_times_said(result)}"


def _times_said(result: Mapping[str, Any]) -> str:
    found, count = result["time_to_gain"], len(result["subjects"])
    first, clean, prepared = found["first"]["reached_by"], found["clean"]["reached_by"], found["prepared_s"]
    whole, ours_s = found["trained_s"][PLAIN.name], found["first"]["mean_curve"][OURS.name]
    share = f"; {ours_s / whole:.2f} of that is what {OURS.title} needs to the first" if ours_s else ""
    return (
        f"*First*: when identity gain {found['gain']:g} is first reached, whatever becomes of the class. *Clean*: the first\n"
        f"candidate that has it with leakage of at most {found['leakage']:g}. Of {count} subjects {OURS.title} reaches the\n"
        f"first with {first['ours']} and the second with {clean['ours']}, the {PLAIN.title} with {first['plain']} and "
        f"{clean['plain']}.\nBefore training starts, {OURS.title} prepares for {prepared['ours']:.1f} s and the "
        f"{PLAIN.title} for {prepared['plain']:.1f} s.\nThe {PLAIN.title} judges no candidates: it is done after all of its "
        f"{whole:.1f} s of training{share}.\n\n"
        "![Identity gain and leakage against seconds of training](subjects_curves.png)"
    )


def _or_never(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _measured_with(result: Mapping[str, Any]) -> str:
    place, base, tuned = result["machine"], result["base"], result["params"]["finetune"]
    packages = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    judged = result["params"]["evaluate"]
    return (
        f"- Base {base['name']} `{base['hash'][:12]}`, parameters `{result['hashes']['params']}` ({tuned['steps']} steps "
        f"of {tuned['batch_size']}, {judged['profile']} profile), subjects from seed {result['seeds']['subjects']}.\n"
        f"- {place['processor']}, {place['cores']} cores, {place['threads']} threads, {place['memory_gib']} GiB, device "
        f"{place['device']}, {place['system']}.\n- {packages}."
    )


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _figure_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
