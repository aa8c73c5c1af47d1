"""Negative controls: adapters that are bad by how they were made, whatever any judge says, and must not pass the gate.

Of each of twelve subjects, which nothing else uses, there are five: our adapter of the next subject, of another kind; our adapter of
another subject of its kind; the starting adapter as it is, which has seen no photo; one that was taught the photos under the class's own
name, without preservation; and our own at three times its strength. Each is evaluated on the subject's photos, and held to the gate's
rules about that.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.pocket_base import machine
from benchmarks.recipes import (
    Bench,
    evaluated,
    finetuned,
    judged,
    looks_of,
    make_dataset,
    point,
    prompts_file,
    read,
    save_images,
    short_hash,
    subjects_of,
)
from benchmarks.subjects_pages import Group, grouped, opened
from photoflux import fingerprint
from photoflux.flux.data import class_prompt
from photoflux.judges.stats import clustered_rate
from photoflux.manifest import digest, read_manifest, unpack, write_json, write_tar
from photoflux.params import as_dict
from photoflux.pocket.world import KINDS, Subject

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

log = logging.getLogger("benchmarks.controls")

SCHEMA_VERSION = 1
SEED, OTHER = 83_000, 500
"""Seed of the first subject, and how far the seed of another one of its kind is from its own."""
OVERWRITING = {"preservation": 0.0, "lr": 0.01, "ema": 0.0, "select": "last"}
STRENGTH = 3.0
PICTURES = 2
MEASURED = ("identity_gain", "leakage", "prompt_change", "diversity", "drift_change", "sharpness")
WEIGHTS = "pytorch_lora_weights.safetensors"
LEVEL = 0.95


@dataclass(frozen=True)
class ControlSubject:
    """One subject of the controls, with its seed and folder."""

    bench: Bench
    number: int
    subject: Subject
    seed: int
    home: Path

    @classmethod
    def of(cls, bench: Bench, number: int, *, other: bool = False) -> ControlSubject:
        """Number `number`'s subject, or the other one of its kind."""
        ((subject, seed),) = subjects_of([number], seed=bench.seed + (OTHER if other else 0))
        return cls(bench, number, subject, seed, bench.folder / (subject.kind + ("-other" if other else "")))

    @property
    def dataset(self) -> Path:
        return make_dataset(self.home, self.subject, seed=self.seed, params=self.bench.params)

    def ours(self) -> Path:
        """Our adapter of it."""
        adapter = self.home / "ours" / "adapter.tar"
        if not adapter.is_file():
            finetuned(self.dataset, adapter, adapter.parent, self.bench.params["finetune"])
        return adapter


@dataclass(frozen=True)
class Control:
    """A way to make a bad adapter: its name, what is wrong with it, and how it is made."""

    name: str
    says: str
    make: Callable[[ControlSubject, Path], Path]


def another_kind(place: ControlSubject, _: Path) -> Path:
    return ControlSubject.of(place.bench, (place.number + 1) % len(KINDS)).ours()


def another_individual(place: ControlSubject, _: Path) -> Path:
    return ControlSubject.of(place.bench, place.number, other=True).ours()


def untrained(place: ControlSubject, folder: Path) -> Path:
    """The starting adapter."""
    from photoflux.flux.loading import load_pipeline
    from photoflux.flux.lora import attach, save_adapter

    spec, params = place.bench.spec, place.bench.params["finetune"]
    transformer = load_pipeline(spec).transformer
    attach(transformer, spec=spec, rank=params.rank, alpha=params.alpha, seed=params.seed)
    with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        weights = save_adapter(transformer, Path(scratch) / WEIGHTS)
        about = {
            "subject": read_manifest(place.dataset)["subject"],
            "base": {"name": spec.name, "hash": spec.hash, "spec": spec.name},
            "params": {},
            "weights": digest(weights),
            "step": 0,
        }
        write_tar(folder / "adapter.tar", files={WEIGHTS: weights}, manifest=about)
    return folder / "adapter.tar"


def overwritten(place: ControlSubject, folder: Path) -> Path:
    """Taught under captions of the class, fast, and with nothing that preserves it."""
    adapter, params = folder / "adapter.tar", place.bench.params["finetune"].replace(**OVERWRITING)
    if not adapter.is_file():
        finetuned(as_class(place.dataset, folder / "dataset.tar"), adapter, folder, params)
    return adapter


def too_strong(place: ControlSubject, folder: Path) -> Path:
    """At several times its strength: shapes come apart, and everything else with them."""
    return altered(place.ours(), folder / "adapter.tar", strengthened)


CONTROLS = (
    Control("another kind", "our adapter of a subject of another kind", another_kind),
    Control("another individual", "our adapter of another subject of its kind", another_individual),
    Control("untrained", "the starting adapter, which saw no photo", untrained),
    Control("class overwritten", "taught as the class itself, without preservation", overwritten),
    Control("too strong", "our adapter at three times its strength", too_strong),
)


def as_class(dataset: Path, out: Path) -> Path:
    """The dataset with the class in place of the subject in all captions."""
    with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        manifest = unpack(dataset, Path(scratch))
        about = {"trigger": manifest["subject"]["trigger"], "class_noun": manifest["subject"]["class_noun"]}
        items = [{**item, "caption": class_prompt(item["caption"], **about)} for item in manifest["items"]]
        write_tar(
            out,
            files={item["file"]: Path(scratch) / item["file"] for item in items},
            manifest={**manifest, "items": items},
        )
    return out


def altered(adapter: Path, out: Path, change: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]) -> Path:
    """An adapter with other matrices of the same names and shapes."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        manifest, file = unpack(adapter, Path(scratch)), Path(scratch) / WEIGHTS
        with safe_open(file, "pt") as opened_file:
            said = opened_file.metadata()
        save_file(change(load_file(file)), file, metadata=said)
        write_tar(out, files={WEIGHTS: file}, manifest={**manifest, "weights": digest(file)})
    return out


def strengthened(layers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All updates several times as strong."""
    return {name: STRENGTH * value if ".lora_B." in name else value for name, value in layers.items()}


def run_controls(bench: Bench, numbers: Iterable[int]) -> tuple[dict[str, Any], Image.Image]:
    """All controls of subjects by number: the results, and their pictures beside photos of the subject."""
    places = [ControlSubject.of(bench, number) for number in numbers]
    rows = [_row(place, control) for place in places for control in CONTROLS]
    result = {
        "kind": "benchmark-controls",
        "schema_version": SCHEMA_VERSION,
        "subjects": [
            {"subject": place.subject.kind, "looks": looks_of(place.subject), "other": _other_looks(place)}
            for place in places
        ],
        "seeds": {"subjects": bench.seed, "other": OTHER},
        "profile": bench.params["evaluate"].profile,
        "limits": as_dict(bench.params["gate"]),
        "base": {"name": bench.spec.name, "hash": bench.spec.hash},
        "hashes": {
            "judges": bench.judges.hash,
            "prompts": digest(prompts_file(bench.params)),
            "gate": short_hash(as_dict(bench.params["gate"])),
        },
        "machine": machine(),
        "all": {**counted(rows), **subject_interval(rows)},
        "by_control": {control.name: {"says": control.says, **counted(rows, control.name)} for control in CONTROLS},
        "controls": rows,
    }
    return result, _sheet(places, rows)


def _other_looks(place: ControlSubject) -> dict[str, str]:
    return looks_of(ControlSubject.of(place.bench, place.number, other=True).subject)


def _row(place: ControlSubject, control: Control) -> dict[str, Any]:
    """One control, made, evaluated and judged. What is finished is read."""
    code = fingerprint.code_digest("benchmarks.controls")
    folder = place.home / f"{control.name.replace(' ', '-')}-{code[:8]}"
    done = folder / "row.json"
    if not done.is_file():
        adapter = control.make(place, folder)
        measured, _, pictures = evaluated(place.dataset, adapter, folder, place.bench.params["evaluate"])
        save_images(folder / "pictures", pictures, PICTURES)
        write_json(done, {"metrics": {name: measured["metrics"][name] for name in MEASURED}})
    row = {"subject": place.subject.kind, "control": control.name, "folder": folder.name, **(read(done) or {})}
    row |= judged(folder, place.bench.params["gate"])
    log.info(
        "%s, %s: %s, identity gain %.2f, leakage %.2f",
        row["subject"],
        control.name,
        row["verdict"],
        point(row, "identity_gain"),
        point(row, "leakage"),
    )
    return row


def counted(rows: Sequence[Mapping[str, Any]], control: str | None = None) -> dict[str, Any]:
    """How many of them, or of one control's, pass, with the exact interval of that rate; and how often each rule stood in the way."""
    own = [row for row in rows if control in (None, row["control"])]
    passed = sum(row["verdict"] == "PASS" for row in own)
    stopped = Counter(
        name for row in own for name, rule in row["rules"].items() if rule["verdict"] in ("FAIL", "INVALID")
    )
    lo, hi = clopper_pearson(passed, len(own))
    return {
        "count": len(own),
        "passed": passed,
        "lo": lo,
        "hi": hi,
        "verdicts": dict(Counter(row["verdict"] for row in own)),
        "stopped_by": dict(stopped.most_common()),
    }


def subject_interval(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The interval of the rate of all. Its units are subjects: the controls of one share its photos, and some of them an adapter."""
    kinds, names = sorted({row["subject"] for row in rows}), [control.name for control in CONTROLS]
    passed = {(row["subject"], row["control"]): row["verdict"] == "PASS" for row in rows}
    found = clustered_rate(np.array([[passed[kind, name] for name in names] for kind in kinds], dtype=float))
    return {"lo": found.lo, "hi": found.hi}


def clopper_pearson(hits: int, total: int) -> tuple[float, float]:
    """Exact interval of a rate at `LEVEL`."""
    from scipy.special import betaincinv

    tail = (1 - LEVEL) / 2
    lo = float(betaincinv(hits, total - hits + 1, tail)) if hits else 0.0
    hi = float(betaincinv(hits + 1, total - hits, 1 - tail)) if hits < total else 1.0
    return lo, hi


def _sheet(places: Sequence[ControlSubject], rows: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Per subject two photos, and two pictures of each control."""
    heads = [("photos", ("", "")), *((control.name, ("", "")) for control in CONTROLS)]
    lines = []
    for place in places:
        groups = [Group(place.subject.kind, opened(place.home / "photos", "*.jpg", PICTURES))]
        for row in (one for one in rows if one["subject"] == place.subject.kind):
            said = f"{row['verdict']}, gain {point(row, 'identity_gain'):.2f}, leakage {point(row, 'leakage'):.2f}"
            groups.append(Group(said, opened(place.home / row["folder"] / "pictures", "*.png", PICTURES)))
        lines.append(groups)
    return grouped(lines, heads=heads)
