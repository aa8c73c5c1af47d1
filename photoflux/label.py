"""`photoflux label`: people label generated images, and their labels become a judge card.

`label make` draws images with the base and makes a page to label them on, without the judges' readings.
`label card` compares the labels with the judges' readings and writes how often each true value is read as which.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from photoflux import fingerprint, screen
from photoflux.errors import InputError
from photoflux.manifest import digest, write_json, write_text

log = logging.getLogger(__name__)
UNSURE, NOBODY = "unsure", "no person"
MIN_PER_CLASS = 10
READINGS_FILE = "judged.json"


@dataclass(frozen=True)
class Comparison:
    """Counts [K, K] of people's labels (rows) and judges' readings (columns), and how many images were left out."""

    classes: tuple[str, ...]
    counts: np.ndarray
    unsure: int
    disagreed: int
    kappa: float | None


def main(words: Sequence[str]) -> int:
    """Run `label make` or `label card`."""
    args = _parser().parse_args(words)
    if args.verb == "make":
        with screen.progress_bar("drawing"):
            page = make_sheet(args.folder, base=args.base, prompts=args.prompts, count=args.count, seed=args.seed)
        print(f"label the pictures on {page}, save labels.csv into {args.folder}, then run: photoflux label card")
        return 0
    card = write_card(args.folder, labels=args.labels or [args.folder / "labels.csv"], card=args.card)
    for name, table in json.loads(card.read_text(encoding="utf-8"))["attributes"].items():
        print(f"{name}: balanced accuracy {table['balanced_accuracy']:.3f} over {table['labelled']} pictures")
    print(f"judge card: {card} (use it with `--set judge_card={card}` when auditing)")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="photoflux label", description="Make a judge card from people's labels.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    make = verbs.add_parser("make", help="draw pictures and lay out a page to label them on")
    make.add_argument("--folder", type=Path, required=True, help="where the page and its pictures go")
    make.add_argument("--base", default="pocket", help="base to draw with")
    make.add_argument("--prompts", default="", help="prompt set; empty: the one named after the base")
    make.add_argument("--count", type=int, default=400, help="pictures to label")
    make.add_argument("--seed", type=int, default=900_000, help="first seed")
    card = verbs.add_parser("card", help="turn labels into a judge card")
    card.add_argument("--folder", type=Path, required=True, help="the folder that `label make` filled")
    card.add_argument("--labels", type=Path, action="append", help="a labels file; give one per person")
    card.add_argument("--card", type=Path, required=True, help="the judge card to write")
    return parser


def make_sheet(folder: Path, *, base: str, prompts: str, count: int, seed: int) -> Path:
    """Draw `count` images of people with the base; write them, the page, and the judges' readings."""
    if not 1 <= count <= 5000:
        raise InputError(f"--count {count}: choose a value from 1 to 5000")
    from photoflux.judges.sampling import open_sampler
    from photoflux.pages.label import labelling_page

    sampler, prompt_set = open_sampler(base, prompts=prompts, batch_size=16)
    audited = [name for name in prompt_set.audited if name in sampler.judges.classes]
    if not audited:
        raise InputError(f"the judges of '{sampler.spec.name}' read none of {', '.join(prompt_set.audited)}; add them")
    seeds = math.ceil(count / len(prompt_set.people))
    grid = sampler.sample(prompt_set.people, seed=seed, seeds=seeds)
    order = np.random.default_rng(seed).permutation(len(grid.images))[:count]
    names = [f"pictures/{place:04}.png" for place in range(len(order))]
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for name, i in zip(names, order, strict=True):
        grid.images[i].save(folder / name)
    classes = {name: list(sampler.judges.classes[name]) for name in audited}
    flat = {name: grid.outputs.labels(name).ravel()[order] for name in classes}
    read_values = {
        picture: {name: classes[name][int(flat[name][k])] for name in classes} for k, picture in enumerate(names)
    }
    about = {"judges": sampler.judges.hash, "base": fingerprint.of_base(sampler.spec), "seed": seed}
    write_json(folder / READINGS_FILE, {**about, "classes": classes, "read": read_values})
    choices = {name: [*values, UNSURE, NOBODY] for name, values in classes.items()}
    _write_csv(folder / "labels-empty.csv", names, classes)
    return write_text(folder / "label.html", labelling_page(names, choices))


def write_card(folder: Path, *, labels: Sequence[Path], card: Path) -> Path:
    """Write the card from labels and readings. Raises InputError where a value has too few labels."""
    readings = _load_readings(folder)
    people = [read_labels(path, readings["classes"]) for path in labels]
    tables = {name: compare(name, classes, people, readings["read"]) for name, classes in readings["classes"].items()}
    _check_counts(tables)
    return write_json(
        card,
        {
            "kind": "judge-card",
            "schema_version": 1,
            "judges": readings["judges"],
            "base": readings["base"],
            "people": len(people),
            "labels": {path.name: digest(path) for path in labels},
            "attributes": {name: _as_json(table) for name, table in tables.items()},
        },
    )


def compare(
    name: str, classes: Sequence[str], people: Sequence[Mapping[str, Mapping[str, str]]], read_values: Mapping[str, Any]
) -> Comparison:
    """Counts over images on which all decided labels agree; unsure and disagreeing ones are only counted."""
    counts = np.zeros((len(classes), len(classes)), int)
    unsure = disagreed = 0
    for picture, judged in read_values.items():
        labels_of_picture = [labels.get(picture, {}).get(name, UNSURE) for labels in people]
        decided = {value for value in labels_of_picture if value not in (UNSURE, NOBODY)}
        if len(decided) == 1:
            counts[classes.index(decided.pop()), classes.index(judged[name])] += 1
        elif decided:
            disagreed += 1
        else:
            unsure += 1
    return Comparison(tuple(classes), counts, unsure, disagreed, _kappa(name, people))


def _kappa(name: str, people: Sequence[Mapping[str, Mapping[str, str]]]) -> float | None:
    """Cohen's kappa of the first two people, over images that both labelled."""
    if len(people) < 2:
        return None
    both = [(people[0][p][name], people[1][p][name]) for p in people[0] if p in people[1]]
    if not both:
        return None
    first, second = (Counter(pair[i] for pair in both) for i in (0, 1))
    agreed = sum(a == b for a, b in both) / len(both)
    chance = sum(first[value] * second[value] for value in first) / len(both) ** 2
    return (agreed - chance) / (1 - chance) if chance < 1 else 1.0


def read_labels(path: Path, classes: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """Labels by picture from a CSV; empty cells are unsure. Raises InputError naming the line of an unknown value."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV ({error}); save it from the labelling page") from error
    if not rows or "picture" not in rows[0]:
        raise InputError(f"{path}: holds no labels with a 'picture' column; save it from the labelling page")
    return {
        row["picture"]: _checked_row(row, classes, f"{path}: line {line}") for line, row in enumerate(rows, start=2)
    }


def _checked_row(row: Mapping[str, str], classes: Mapping[str, Sequence[str]], where: str) -> dict[str, str]:
    values = {name: (row.get(name) or "").strip() or UNSURE for name in classes}
    for name, value in values.items():
        if value not in (*classes[name], UNSURE, NOBODY):
            raise InputError(f"{where}: {name} is '{value}'; use one of {', '.join([*classes[name], UNSURE, NOBODY])}")
    return values


def _check_counts(tables: Mapping[str, Comparison]) -> None:
    for name, table in tables.items():
        for value, total in zip(table.classes, table.counts.sum(1), strict=True):
            if total < MIN_PER_CLASS:
                raise InputError(
                    f"only {total} pictures are labelled {name}={value} (needs {MIN_PER_CLASS}): "
                    "make a larger sheet with --count and label more"
                )


def _as_json(table: Comparison) -> dict[str, Any]:
    from photoflux.judges.prevalence import balanced_accuracy

    return {
        "classes": list(table.classes),
        "counts": table.counts.tolist(),
        "labelled": int(table.counts.sum()),
        "unsure": table.unsure,
        "disagreed": table.disagreed,
        "kappa": table.kappa,
        "balanced_accuracy": balanced_accuracy(table.counts),
    }


def _load_readings(folder: Path) -> dict[str, Any]:
    path = folder / READINGS_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); run `photoflux label make` first") from error


def _write_csv(path: Path, pictures: Sequence[str], attributes: Iterable[str]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, ["picture", *attributes], lineterminator="\n")
    table.writeheader()
    table.writerows({"picture": picture} for picture in pictures)
    write_text(path, text.getvalue())
