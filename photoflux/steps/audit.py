"""audit: what tuning did to the people that a model shows when nobody asked for the subject.

Read from the top: `run` samples people with the base and the tuned model, reads their attributes, tests what changed, and writes.
The tests and the severity table stand in `judges/bias.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from photoflux import fingerprint
from photoflux.errors import InputError
from photoflux.judges.bias import Audit, Finding, Limits, People, audit_people
from photoflux.judges.prompts import PEOPLE, PromptSet
from photoflux.judges.sampling import ImageGrid, ImageSampler, JudgeOutputs, open_sampler
from photoflux.judges.stats import Interval
from photoflux.manifest import digest, read_manifest, write_json
from photoflux.params import AuditParams
from photoflux.report import publish
from photoflux.steps import StepResult
from photoflux.vault import committed, opened

SCHEMA_VERSION = 1
SUBJECT_PROMPTS, SUBJECT_SEEDS = 5, 4
CONTROL_SEEDS = 4


@dataclass(frozen=True)
class AuditImages:
    """Images of people by the base and the tuned model, of scenes without people, and of the subject."""

    base: ImageGrid
    tuned: ImageGrid
    no_people_base: ImageGrid
    no_people_tuned: ImageGrid
    subject: ImageGrid


@dataclass(frozen=True)
class JudgeCard:
    """How often the judges read each true class as which, and who measured it."""

    confusion: dict[str, np.ndarray]
    source: str
    digest: str = ""
    """SHA-256 of the file, where it is one of its own."""


def run(
    adapter: Path,
    *,
    audit: Path,
    report: Path,
    params: AuditParams,
    key: str = "plain://demo",
) -> StepResult:
    """Compare the people of the tuned model with the base's, and say how severe the change is."""
    from photoflux.pages.audit import audit_page

    with opened(adapter, key=key) as weights:
        sampler, prompts = open_sampler(
            params.base, prompts=params.prompts, batch_size=params.batch_size, adapter=weights
        )
        manifest, adapter_hash = read_manifest(weights), digest(weights)
    subject = manifest["subject"]
    card = _judge_card(params.judge_card, sampler)
    images = _sample(sampler, prompts, subject, params)
    people = _read_people(images, prompts, subject, sampler, card)
    found = audit_people(
        people, limits=limits_of(params), resamples=params.bootstrap, permutations=params.permutations, seed=params.seed
    )
    document = _document(found, images, people, prompts, subject, params, card)
    document |= {
        "base": {"name": sampler.spec.name, "hash": sampler.spec.hash},
        "hashes": {"adapter": adapter_hash, "judges": sampler.judges.hash, "prompts": prompts.hash},
    }
    if card.digest:
        document["hashes"]["judge_card"] = card.digest
    with committed(audit, key=key) as path:
        write_json(path, document)
    page = audit_page(
        document, found=found, classes=people.classes, base=images.base, tuned=images.tuned, prompts=prompts.people
    )
    publish(report, page, subject=subject, key=key)
    return StepResult(metrics=_flat_metrics(found, document), report=report)


def limits_of(params: AuditParams) -> Limits:
    """The severity table's numbers out of the step's parameters."""
    return Limits(**{field.name: getattr(params, field.name) for field in dataclasses.fields(Limits)})


def _judge_card(path: str, sampler: ImageSampler) -> JudgeCard:
    """The card named in the parameters, else the one that came with the judges; empty where there is none."""
    if not path:
        return JudgeCard(sampler.judges.confusion, "shipped with the judges" if sampler.judges.confusion else "none")
    try:
        file = Path(path).read_bytes()
        content = json.loads(file)
        tables = {name: np.asarray(table["counts"], float) for name, table in content["attributes"].items()}
        known = {name: tuple(table["classes"]) for name, table in content["attributes"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a readable judge card ({error}); make one with `photoflux label`") from error
    if content.get("judges") != sampler.judges.hash:
        raise InputError(f"{path}: this judge card is about other judges; label pictures again with the current ones")
    if content.get("base") != fingerprint.of_base(sampler.spec):
        raise InputError(
            f"{path}: this judge card is about pictures of another base; label '{sampler.spec.name}' pictures"
        )
    for name, classes in known.items():
        if classes != sampler.judges.classes.get(name):
            raise InputError(f"{path}: attribute '{name}' has other classes than the judges; make the card again")
    return JudgeCard(tables, f"people's labels, {Path(path).name}", hashlib.sha256(file).hexdigest())


def _sample(sampler: ImageSampler, prompts: PromptSet, subject: Mapping[str, Any], params: AuditParams) -> AuditImages:
    seeds = math.ceil(PEOPLE[params.profile] / len(prompts.people))
    how = {"seed": params.seed, "seeds": seeds}  # the same for base and tuned: images differ by the model alone
    control = {"seed": params.seed, "seeds": min(seeds, CONTROL_SEEDS)}
    about = prompts.about(subject["class_noun"], trigger=subject["trigger"], count=SUBJECT_PROMPTS)
    return AuditImages(
        base=sampler.sample_base(prompts.people, **how),
        tuned=sampler.sample(prompts.people, **how),
        no_people_base=sampler.sample_base(prompts.no_people, **control),
        no_people_tuned=sampler.sample(prompts.no_people, **control),
        subject=sampler.sample(about, seed=params.seed, seeds=SUBJECT_SEEDS),
    )


def _read_people(
    images: AuditImages, prompts: PromptSet, subject: Mapping[str, Any], sampler: ImageSampler, card: JudgeCard
) -> People:
    """What the judges read in the images, as paired labels [P, S]; an image without a readable person is -1."""
    classes = sampler.judges.classes
    audited = [name for name in prompts.audited if name in classes]
    if not audited:
        raise InputError(f"the judges of '{sampler.spec.name}' read none of {', '.join(prompts.audited)}; add them")
    base, tuned, own = images.base.outputs, images.tuned.outputs, images.subject.outputs
    shown_base, shown_tuned = (shows_person(outputs, prompts, classes) for outputs in (base, tuned))
    # The subject's own value is what most of its images show; it is used for the leak alone and stored nowhere.
    usual = {name: int(np.bincount(own.labels(name).ravel()).argmax()) for name in audited}
    return People(
        base={name: np.where(shown_base, base.labels(name), -1) for name in audited},
        tuned={name: np.where(shown_tuned, tuned.labels(name), -1) for name in audited},
        classes={name: classes[name] for name in audited},
        confusion={name: table for name, table in card.confusion.items() if name in audited},
        groups=[prompt.group for prompt in prompts.people],
        base_identity=base.identity,
        tuned_identity=tuned.identity,
        subject=own.identity.reshape(-1, own.identity.shape[-1]),
        subject_labels=usual if subject["class_noun"] == prompts.person_noun else {},
    )


def shows_person(outputs: JudgeOutputs, prompts: PromptSet, classes: Mapping[str, tuple[str, ...]]) -> np.ndarray:
    """Where a person is read at all: every attribute value that the prompt set names for it."""
    shown = np.ones(outputs.shape, bool)
    for name, value in prompts.person.items():
        if name in classes:
            shown &= outputs.labels(name) == classes[name].index(value)
    return shown


def _document(
    found: Audit,
    images: AuditImages,
    people: People,
    prompts: PromptSet,
    subject: Mapping[str, Any],
    params: AuditParams,
    card: JudgeCard,
) -> dict[str, Any]:
    count, seeds = people.base_identity.shape[:2]
    return {
        "kind": "audit",
        "schema_version": SCHEMA_VERSION,
        "subject": dict(subject),
        "verdict": found.verdict,
        "severity": found.severity,
        "profile": params.profile,
        "seeds": {"first": params.seed, "per_prompt": seeds, "prompts": count},
        "judge_card": card.source,
        "limits": dataclasses.asdict(limits_of(params)),
        "findings": [_finding(finding, people) for finding in found.findings],
        "cells": [dataclasses.asdict(cell) for cell in found.cells],
        "control": _control(images),
        "tones": _tones(images, prompts),
    }


def _finding(finding: Finding, people: People) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": finding.name,
        "severity": finding.severity,
        "reason": finding.reason,
        "p": finding.pvalue,
        "p_adjusted": finding.adjusted,
        "subject_leak": _optional(finding.leak),
    }
    unknown = {"base": finding.unknown[0], "tuned": finding.unknown[1]}
    if finding.missing is not None:
        return {**row, "missing": finding.missing.as_dict(), "unknown": unknown}
    if finding.drift is None:
        return {**row, "auc": _optional(finding.auc)}
    change = finding.drift
    return {
        **row,
        "classes": list(people.classes[finding.name]),
        "base": [value.as_dict() for value in change.base],
        "tuned": [value.as_dict() for value in change.tuned],
        "ratio": [value.as_dict() for value in change.ratio],
        "excess": change.excess.as_dict(),
        "distance": change.distance,
        "null_mean": change.null_mean,
        "flips": change.flips.tolist(),
        "judge_balanced_accuracy": finding.accuracy,
        "unknown": unknown,
        "distance_from_uniform": {"base": finding.uniform_distance[0], "tuned": finding.uniform_distance[1]},
    }


def _optional(value: Interval | None) -> dict[str, float] | None:
    return value.as_dict() if value else None


def _control(images: AuditImages) -> dict[str, float]:
    """Scenes without people as the negative control: mean identity distance of same-seed pairs, there and of people."""
    pairs = {"people": (images.base, images.tuned), "without_people": (images.no_people_base, images.no_people_tuned)}
    return {
        name: round(float((1 - (before.outputs.identity * after.outputs.identity).sum(-1)).mean()), 4)
        for name, (before, after) in pairs.items()
    }


def _tones(images: AuditImages, prompts: PromptSet) -> dict[str, list[float]]:
    """Mean probability of each skin tone, descriptive only: single tones are too close to be told apart for sure."""
    return {
        side: grid.outputs.probabilities[prompts.tone].mean((0, 1)).round(4).tolist()
        for side, grid in (("base", images.base), ("tuned", images.tuned))
        if prompts.tone in grid.outputs.probabilities
    }


def _flat_metrics(found: Audit, document: Mapping[str, Any]) -> dict[str, float]:
    ranks = {"none": 0, "low": 1, "moderate": 2, "high": 3, "critical": 4, "inconclusive": -1}
    drifts = {f"{f.name}_drift": f.drift.excess.point for f in found.findings if f.drift}
    missing = {f"{f.name}_missing": f.missing.point for f in found.findings if f.missing}
    return {**drifts, **missing, "severity": float(ranks[document["severity"]])}
