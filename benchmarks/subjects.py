"""How well, how fast and how safely subjects that no training saw are personalised, by us and by DreamBooth as people run it.

    python -m benchmarks.subjects                # the twelve calibration subjects, which limits are chosen on
    python -m benchmarks.subjects --tune         # the rivals' rate and steps, on four of them
    python -m benchmarks.subjects --controls     # sixty adapters that must not pass
    python -m benchmarks.subjects --headline     # the twelve subjects that are reported, once
    python -m benchmarks.subjects --readme       # the headline's figures into README.md
    python -m benchmarks.subjects --tune --subjects 1 --steps 20 --profile smoke --out build/subjects    # then --headline --seed 7

One subject of each kind goes through import, validate, augment, finetune, evaluate and the gate's rules with the shipped `params.yaml`;
beside the headline's, on the same photos, go the *rivals*: DreamBooth with class pictures (`benchmarks/dreambooth.py`), and the same from
our starting adapter, so that it is seen what either part gains. Their rates and steps are read from `tuning.json`, never typed in.

Writes `calibration` or `subjects` as `.json`, `.md`, `.png` and `_curves.png`, `tuning.json`, and `controls.json` and `.png`. What is
finished is kept in `.cache/bench`, so that whatever is interrupted goes on where it was.

The order: calibration, limits (`python -m benchmarks.limits`), calibration again, whose verdicts are then those of these limits; tuning,
since rivals are chosen by what passes; controls, headline. What was measured is read and judged anew: a second time costs seconds.

On two cores, by what their parts took: tuning about 50 minutes (28 trainings of 400 steps, 84 evaluations), controls 40 (36 trainings, 60
evaluations), calibration 12, headline 60 where the rivals train for 400 steps; `--audit` adds a minute per subject.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks import subjects_pages as pages
from benchmarks.pocket_base import machine
from benchmarks.recipes import (
    CALIBRATION_SEED,
    FRESH,
    HEADLINE_SEED,
    OURS,
    PHOTOS,
    RIVALS,
    STEPS,
    Bench,
    Recipe,
    among,
    audited,
    load_bench_params,
    looks_of,
    make_dataset,
    open_bench,
    png,
    point,
    prompts_file,
    read,
    read_manifest_counts,
    rivals,
    run_recipe,
    short_hash,
    subjects_of,
)
from photoflux.judges.gate_rules import rules
from photoflux.manifest import digest, write_bytes, write_json, write_text
from photoflux.params import PROFILES, as_dict
from photoflux.pocket.world import KINDS, Subject
from photoflux.steps.gate import SEVERITY_ORDER

log = logging.getLogger("benchmarks")

SCHEMA_VERSION = 2
RESULTS, README = Path("benchmarks/results"), Path("README.md")
BEGUN = "headline-begun.json"
GAIN_AIM, LEAKAGE_AIM = 0.60, 0.20
"""Identity gain whose time is taken on the curves, and the leakage up to which it is likeness and not overwriting."""
PASSES_OF_TWELVE = 10
PACKAGES = ("torch", "diffusers", "transformers", "peft", "pytorch-lightning", "numpy", "pillow")


def main(argv: Sequence[str] | None = None) -> None:
    options = _options(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    options.what(options)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.subjects", description=(__doc__ or "").split("\n")[0])
    what = parser.add_mutually_exclusive_group()
    for name, does in (("tune", tune), ("controls", controls), ("headline", headline), ("readme", readme)):
        said = (does.__doc__ or "").split("\n")[0]
        what.add_argument(f"--{name}", dest="what", action="store_const", const=does, default=calibrate, help=said)
    parser.add_argument("--subjects", type=int, choices=range(1, len(KINDS) + 1), metavar="N", help="the first N alone")
    parser.add_argument("--steps", type=int, help="optimiser steps of every recipe instead of those chosen")
    parser.add_argument("--profile", choices=PROFILES[:2], help="pictures per judgement instead of evaluate.profile")
    parser.add_argument("--audit", action="store_true", help="also audit our adapters and hold them to the whole gate")
    parser.add_argument("--again", action="store_true", help="draw the headline though its results are there")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results go, and where tuning.json is read")
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.what is headline and options.seed is None and (options.subjects or options.steps or options.profile):
        parser.error("the headline is drawn whole and with the shipped parameters")
    if options.seed is not None and options.out == RESULTS:
        parser.error("subjects from another seed are written elsewhere: name a folder with --out")
    return options


def calibrate(options: argparse.Namespace) -> None:
    """The twelve subjects that limits are chosen on, by our recipe alone; rivals are tuned on some of them."""
    bench = open_bench(load_bench_params(options.steps, options.profile), seed=_seed(options, CALIBRATION_SEED))
    _measure("calibration", options, bench, [OURS])


def headline(options: argparse.Namespace) -> None:
    """The twelve subjects that are reported, drawn once after limits and settings are chosen."""
    if (options.out / "subjects.json").exists() and not options.again:
        raise SystemExit(
            f"{options.out / 'subjects.json'} is there: the headline's subjects are drawn once, and reported whatever comes "
            "(docs/decisions/0023); --again draws them again"
        )
    bench = open_bench(load_bench_params(options.steps, options.profile), seed=_seed(options, HEADLINE_SEED))
    tuning = options.out / "tuning.json"
    recipes = [OURS, *rivals(tuning, bench.params["finetune"], steps=options.steps)]
    check_tuning(tuning, bench)
    record_start(options.out if options.seed is not None else RESULTS, options.out, bench)
    _measure("subjects", options, bench, recipes)


def tune(options: argparse.Namespace) -> None:
    """Choose the rivals' rate and steps on calibration subjects, by a rule that was fixed before."""
    from benchmarks import tuning

    bench = open_bench(tuning.tuning_params(options.profile), seed=_seed(options, CALIBRATION_SEED))
    found = tuning.tuned(bench, subjects=options.subjects, longest=options.steps)
    write_json(options.out / "tuning.json", found)
    print(pages.tuning_text(found))
    write_pages(options.out)


def controls(options: argparse.Namespace) -> None:
    """Hold adapters that are bad by how they were made to the gate's rules."""
    from benchmarks import controls as negative

    params = load_bench_params(options.steps, options.profile)
    bench = open_bench(params, seed=_seed(options, negative.SEED))
    found, sheet = negative.run_controls(bench, range(options.subjects or len(KINDS)))
    write_bytes(options.out / "controls.png", png(sheet))
    write_json(options.out / "controls.json", found)
    print(pages.controls_text(found))
    write_pages(options.out)


def readme(options: argparse.Namespace) -> None:
    """Put the headline's figures into README.md."""
    result = read(options.out / "subjects.json")
    if result is None:
        raise SystemExit(f"{options.out / 'subjects.json'} is missing: run --headline first")
    write_text(README, pages.readme(README.read_text(encoding="utf-8"), result))


def _seed(options: argparse.Namespace, usual: int) -> int:
    return usual if options.seed is None else options.seed


def _measure(name: str, options: argparse.Namespace, bench: Bench, recipes: Sequence[Recipe]) -> None:
    """The recipes on all subjects; writes the files that are called `name`."""
    chosen = subjects_of(range(options.subjects or len(KINDS)), seed=bench.seed)
    rows = [run_subject(bench, recipes, *each, audit=options.audit) for each in chosen]
    result = document(bench, recipes, sorted(rows, key=severity_key, reverse=True), audit=options.audit)
    write_results(options.out, name, result, bench)
    print(pages.tables(result))


def check_tuning(file: Path, bench: Bench) -> None:
    """Raises SystemExit where the rivals were tuned under other limits, pictures or base than are judged with now."""
    tuned = read(file) or {}
    wanted = {
        "limits": short_hash(as_dict(bench.params["gate"])),
        "profile": bench.params["evaluate"].profile,
        "base": {"name": bench.spec.name, "hash": bench.spec.hash},
    }
    other = [name for name, value in wanted.items() if tuned.get(name) != value]
    if other:
        raise SystemExit(
            f"{file}: the rivals were tuned with other {' and '.join(other)}; run `python -m benchmarks.subjects --tune` again, "
            "which reads what it has measured and judges it anew"
        )


def record_start(folder: Path, out: Path, bench: Bench) -> None:
    """Write down what the headline is drawn with before its first subject is. Raises SystemExit where that has changed since.

    A draw that was cut short goes on as it began: subjects that were seen under other code, limits or settings cannot be drawn again.
    """
    begun = {
        "bench": bench.folder.name,
        "gate": short_hash(as_dict(bench.params["gate"])),
        "files": {name: digest(out / name) for name in ("tuning.json", "calibration.json") if (out / name).is_file()},
    }
    before = read(folder / BEGUN)
    if before is None:
        write_json(folder / BEGUN, begun)
    elif before != begun:
        other = ", ".join(name for name in begun if before.get(name) != begun[name])
        raise SystemExit(
            f"{folder / BEGUN}: this headline was begun with other {other} (bench: code, parameters, machine); it goes on as it began, "
            "or with new seeds (docs/decisions/0023)"
        )


def run_subject(bench: Bench, recipes: Sequence[Recipe], subject: Subject, seed: int, *, audit: bool) -> dict[str, Any]:
    """Everything about one subject: photos to verdict with every recipe. What is finished is read, not run again."""
    folder = bench.folder / subject.kind
    dataset = make_dataset(folder, subject, seed=seed, params=bench.params)
    found = {recipe.name: run_recipe(bench, folder, dataset, recipe, subject, seed) for recipe in recipes}
    return {
        "subject": subject.kind,
        "looks": looks_of(subject),
        "seed": seed,
        "photos": {"given": PHOTOS, **read_manifest_counts(dataset)},
        **found,
        "gate": audited(bench, folder, dataset) if audit else None,
    }


def document(bench: Bench, recipes: Sequence[Recipe], rows: Sequence[dict[str, Any]], *, audit: bool) -> dict[str, Any]:
    """Everything that is measured, worst subject first, and what it was measured with."""
    from photoflux.steps.register import code_version

    params = {step: as_dict(bench.params[step]) for step in STEPS}
    return {
        "kind": "benchmark-subjects",
        "schema_version": SCHEMA_VERSION,
        "verdicts": "the gate's rules about the evaluation; "
        + ("the whole gate, bias audit included, stands under 'gate'" if audit else "no bias audit was run"),
        "machine": machine(),
        "versions": {name: version(name) for name in PACKAGES} | {"photoflux": code_version()},
        "base": {"name": bench.spec.name, "hash": bench.spec.hash},
        "hashes": {
            "judges": bench.judges.hash,
            "prompts": digest(prompts_file(bench.params)),
            "params": short_hash(params),
            "calibration": calibration(rows),
        },
        "seeds": {
            "subjects": bench.seed,
            "evaluate": bench.params["evaluate"].seed,
            "finetune": bench.params["finetune"].seed,
        },
        "params": params,
        "recipes": {one.name: {"title": one.title} | (asdict(one.rival) if one.rival else {}) for one in recipes},
        "targets": targets(rows),
        "summary": {recipe.name: summary(rows, recipe) for recipe in recipes},
        "time_to_gain": times(rows),
        "margins": margins(rows, bench.params["gate"]),
        "fresh": FRESH,
        "subjects": list(rows),
    }


def calibration(rows: Sequence[Mapping[str, Any]]) -> str:
    """What `gate.calibration` is after limits were chosen by these measurements, whatever limits they were held to.

    Those of the shipped recipe alone: rivals have no part in any limit.
    """
    found = {
        row["subject"]: {
            rule: [round(one[name], 4) for name in ("value", "lo", "hi")]
            for rule, one in row[OURS.name]["rules"].items()
        }
        for row in rows
    }
    return short_hash(found)


def margins(rows: Sequence[Mapping[str, Any]], params: Any) -> list[dict[str, Any]]:
    """Per rule: its limit, our bound nearest to it, either rival's middle subject, and how many of each do not pass."""
    found = []
    for rule in rules({"exact_attributes": True}, params):
        judged = {recipe.name: [row[recipe.name]["rules"][rule.name] for row in rows] for recipe in among(rows[0])}
        bound = "value" if rule.point_only else "lo" if rule.floor else "hi"
        found.append(
            {
                "rule": rule.name,
                "at_least": rule.floor,
                "limit": rule.bound,
                "our_worst_bound": (min if rule.floor else max)(one[bound] for one in judged[OURS.name]),
                "median": {
                    rival.name: median(one["value"] for one in judged[rival.name]) for rival in among(rows[0], RIVALS)
                },
                "not_passed": {name: sum(one["verdict"] != "PASS" for one in ones) for name, ones in judged.items()},
            }
        )
    return found


def severity_key(row: Mapping[str, Any]) -> tuple[int, float]:
    """Sorts the worst first when reversed: by verdict, then by overall score."""
    ours = row[OURS.name]
    return SEVERITY_ORDER.index(ours["verdict"]), -point(ours, "overall")


def summary(rows: Sequence[Mapping[str, Any]], recipe: Recipe) -> dict[str, float]:
    """Passes, means over subjects, and the slowest fine-tuning."""
    each = [row[recipe.name] for row in rows]
    means = {
        name: fmean(point(one, name) for one in each)
        for name in ("identity_gain", "prompt_change", "leakage", "copy_rate", "overall")
    }
    return {
        "subjects": len(each),
        "passes": sum(one["verdict"] == "PASS" for one in each),
        **means,
        "identity_gain_fresh": fmean(one["identity_gain_fresh"] for one in each),
        "seconds": fmean(one["seconds"] for one in each),
        "seconds_most": max(one["seconds"] for one in each),
    }


def targets(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What we aim at, what our recipe reaches, whether that is enough, and what the rivals reach."""
    needed = round(PASSES_OF_TWELVE * len(rows) / len(KINDS))
    aims = [
        ("evaluations that pass", "passes", needed, True),
        ("mean identity gain", "identity_gain", GAIN_AIM, True),
        ("mean prompt accuracy lost", "prompt_change", 0.10, False),
        ("mean leakage", "leakage", LEAKAGE_AIM, False),
        ("mean copy rate", "copy_rate", 0.05, False),
        ("slowest fine-tuning, s", "seconds_most", 120, False),
    ]
    found = {recipe.name: summary(rows, recipe) for recipe in among(rows[0])}
    reached = {
        key: {name: -one[key] if key == "prompt_change" else one[key] for name, one in found.items()}
        for _, key, *_ in aims
    }
    return [
        {
            "target": name,
            "reached": reached[key][OURS.name],
            "aim": aim,
            "at_least": floor,
            "met": reached[key][OURS.name] >= aim if floor else reached[key][OURS.name] <= aim,
            "beside": {rival.name: reached[key][rival.name] for rival in among(rows[0], RIVALS)},
        }
        for name, key, aim, floor in aims
    ]


def times(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds of training until identity gain first reaches the aim; *clean*: while the class stays itself."""
    return {
        "gain": GAIN_AIM,
        "leakage": LEAKAGE_AIM,
        "first": _compared(rows, leakage_max=None),
        "clean": _compared(rows, leakage_max=LEAKAGE_AIM),
        **{
            part: {recipe.name: fmean(row[recipe.name][part] for row in rows) for recipe in among(rows[0])}
            for part in ("prepared_s", "trained_s")
        },
    }


def _compared(rows: Sequence[Mapping[str, Any]], *, leakage_max: float | None) -> dict[str, Any]:
    """Each recipe's seconds per subject and on the mean curve, and how many subjects get there."""
    found = {
        row["subject"]: {
            recipe.name: reached_s(row[recipe.name]["curve"], leakage_max=leakage_max) for recipe in among(rows[0])
        }
        for row in rows
    }
    mean = {
        recipe.name: reached_s(pages.mean_curve(rows, recipe), leakage_max=leakage_max) for recipe in among(rows[0])
    }
    reached_by = {recipe.name: sum(one[recipe.name] is not None for one in found.values()) for recipe in among(rows[0])}
    return {"per_subject": found, "mean_curve": mean, "reached_by": reached_by}


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


def write_results(out: Path, name: str, result: Mapping[str, Any], bench: Bench) -> None:
    """The four files, each written whole or not at all; the one that says the others are there is the last."""
    write_bytes(out / f"{name}.png", png(pages.sheet(result, bench.folder)))
    write_bytes(out / f"{name}_curves.png", pages.figure_png(pages.curves(result)))
    write_text(out / f"{name}.md", pages.page(name, result, **_beside(out)))
    write_json(out / f"{name}.json", result)


def write_pages(out: Path) -> None:
    """The pages of all results that are there, each with the tuning and the controls that are there."""
    for name in pages.NAMES:
        result = read(out / f"{name}.json")
        if result and result["schema_version"] == SCHEMA_VERSION:
            write_text(out / f"{name}.md", pages.page(name, result, **_beside(out)))


def _beside(out: Path) -> dict[str, dict[str, Any] | None]:
    return {"tuned": read(out / "tuning.json"), "controls": read(out / "controls.json")}


if __name__ == "__main__":
    main()
