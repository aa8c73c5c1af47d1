"""evaluate: compare the tuned model with its base: identity gained, prompts followed, and what broke on the way.

Read from the top: `run` samples, judges, measures, compares with the champion and writes. What the numbers mean stands in
`judges/scores.py`.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from photoflux import fingerprint
from photoflux.errors import InputError
from photoflux.flux.spec import WEIGHTS
from photoflux.judges.case import Case, EvaluationImages, Photos
from photoflux.judges.champion import Cells, comparable, difference
from photoflux.judges.colour import monk_lab
from photoflux.judges.copying import structure
from photoflux.judges.prompts import SHAPES, PromptSet
from photoflux.judges.sampling import ImageSampler, JudgeOutputs, open_sampler, run_judges
from photoflux.judges.scores import Evidence, Scores, cells, expected_labels, made_share, measure
from photoflux.manifest import digest, unpack, write_json
from photoflux.params import EvaluateParams
from photoflux.report import publish
from photoflux.steps import StepResult
from photoflux.vault import committed, opened

if TYPE_CHECKING:
    from photoflux.judges.encoders import Judges

log = logging.getLogger(__name__)
SCHEMA_VERSION = 2
ADAPTER, EVALUATION = "adapter.tar", "evaluation.json"


def run(
    dataset: Path,
    adapter: Path,
    *,
    evaluation: Path,
    report: Path,
    params: EvaluateParams,
    champion: Path | None = None,
    key: str = "plain://demo",
) -> StepResult:
    """Measure identity, prompt following, leakage, drift, diversity, copying and quality against the base.

    `champion`, as `fetch_champion` writes it, is compared image by image; the same prompts and seeds are sampled with it where its
    own evaluation is about other photos, or was made otherwise.
    """
    from photoflux.pages.evaluate import evaluation_page

    with opened(dataset, key=key) as data, opened(adapter, key=key) as weights:
        sampler, prompts = open_sampler(
            params.base, prompts=params.prompts, batch_size=params.batch_size, adapter=weights
        )
        case = _case(data, weights, sampler=sampler, prompts=prompts, params=params)
    _, seeds = SHAPES[params.profile]
    images = _sample(case, sampler, params, seeds=seeds)
    evidence = _judge(case, images, sampler, prompts)
    scores = measure(evidence, resamples=params.bootstrap, seed=params.seed)
    half_widths = [scores.metrics[name].value.half_width for name in ("identity_gain", "leakage")]
    if not scores.invalid and any(half_width > params.half_width_max for half_width in half_widths):
        log.info("intervals are wide: sampling %d more seeds per prompt", seeds)
        images = images.concat(_sample(case, sampler, params, seeds=seeds, skip=seeds))
        evidence = _judge(case, images, sampler, prompts)
        scores = measure(evidence, resamples=params.bootstrap, seed=params.seed)
    document = _document(case, evidence, scores, params)
    if champion:
        with opened(champion, key=key) as rival:
            document["champion"] = _compare(rival, document, case, evidence, sampler, params)
    with committed(evaluation, key=key) as path:
        write_json(path, document)
    page = evaluation_page(document, case=case, images=images, scores=scores)
    publish(report, page, subject=document["subject"], key=key)
    return StepResult(metrics=_flat_metrics(document), report=report)


def _case(data: Path, weights: Path, *, sampler: ImageSampler, prompts: PromptSet, params: EvaluateParams) -> Case:
    from photoflux.manifest import read_manifest

    with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        manifest = unpack(data, Path(scratch))
        photos = _read_photos(Path(scratch), manifest["items"])
    subject = manifest["subject"]
    noun, trigger = subject["class_noun"], subject["trigger"]
    count, _ = SHAPES[params.profile]
    hashes = {
        "dataset": digest(data),
        "adapter": digest(weights),
        "judges": sampler.judges.hash,
        "prompts": prompts.hash,
    }
    judged_by = fingerprint.of_judging(
        sampler.spec,
        judges=hashes["judges"],
        prompts=hashes["prompts"],
        photos=hashes["dataset"],
        profile=params.profile,
        seed=params.seed,
    )
    facts = {
        "base": {"name": sampler.spec.name, "hash": sampler.spec.hash},
        "hashes": hashes,
        "judged_by": judged_by,
        "fingerprint": fingerprint.name(judged_by),
        "training": read_manifest(weights).get("params", {}),
    }
    return Case(
        subject=subject,
        subject_prompts=prompts.about(noun, trigger=trigger, count=count),
        class_prompts=prompts.about(noun, trigger=None, count=count),
        unrelated_prompts=prompts.without(noun, count=count),
        photos=photos,
        facts=facts,
    )


def _read_photos(folder: Path, items: list[dict[str, Any]]) -> Photos:
    trained = [item for item in items if item["split"] == "train"]
    held_out = [item for item in items if item["split"] != "train"]
    if not trained or not held_out:
        raise InputError("the dataset has no trained or no held-out photos; run augment again with more photos")
    # the first crop of each photo, which augment leaves as it is
    first = {item["source"]: item for item in reversed(trained)}

    def read(some: Iterable[dict[str, Any]]) -> list[Image.Image]:
        return [Image.open(BytesIO((folder / item["file"]).read_bytes())).convert("RGB") for item in some]

    return Photos(crops=read(trained), trained=read(first.values()), held_out=read(held_out))


def _sample(
    case: Case, sampler: ImageSampler, params: EvaluateParams, *, seeds: int, skip: int = 0
) -> EvaluationImages:
    # the same seeds for all, so that images differ by the model
    how = {"seed": params.seed, "seeds": seeds, "skip": skip}
    return EvaluationImages(
        tuned=sampler.sample(case.subject_prompts, **how),
        base=sampler.sample_base(case.class_prompts, **how),
        class_prompt=sampler.sample(case.class_prompts, **how),
        unrelated=sampler.sample(case.unrelated_prompts, **how),
        unrelated_base=sampler.sample_base(case.unrelated_prompts, **how),
    )


def _judge(case: Case, images: EvaluationImages, sampler: ImageSampler, prompts: PromptSet) -> Evidence:
    judges = sampler.judges
    trained, held_out = run_judges(judges, case.photos.trained), run_judges(judges, case.photos.held_out)
    return Evidence(
        **{name: grid.outputs for name, grid in vars(images).items()},
        trained=trained,
        held_out=held_out,
        crops=structure(case.photos.crops),
        expected=expected_labels(case.subject_prompts, judges.classes),
        unrelated_expected=expected_labels(case.unrelated_prompts, judges.classes),
        text=judges.text([prompt.text for prompt in case.class_prompts]).numpy(),
        unrelated_text=judges.text([prompt.text for prompt in case.unrelated_prompts]).numpy(),
        copy_correlation=prompts.copy_correlation,
        tone_lightness=_lightness(case, images.tuned.outputs, (trained, held_out), judges, prompts),
    )


def _compare(
    champion: Path,
    mine: Mapping[str, Any],
    case: Case,
    evidence: Evidence,
    sampler: ImageSampler,
    params: EvaluateParams,
) -> dict[str, Any] | None:
    """Which version the champion is, and by how much the candidate is better, image by image; None without a champion."""
    with tempfile.TemporaryDirectory(prefix="photoflux-") as scratch:
        about = unpack(champion, Path(scratch))
        if not about["version"]:
            return None
        theirs, how = _their_cells(Path(scratch), about, mine, case, evidence, sampler, params)
    shown = None
    if theirs:
        shown = difference(Cells.of(mine), theirs, resamples=params.bootstrap, seed=params.seed).as_dict()
    return {**about, "how": how, "difference": shown}


def _their_cells(
    folder: Path,
    about: Mapping[str, Any],
    mine: Mapping[str, Any],
    case: Case,
    evidence: Evidence,
    sampler: ImageSampler,
    params: EvaluateParams,
) -> tuple[Cells | None, str]:
    """The champion's cells on this subject's photos, and where they are from; None for an adapter of another base."""
    from photoflux.flux.lora import load_adapter

    judged = folder / EVALUATION
    theirs = json.loads(judged.read_text(encoding="utf-8")) if judged.is_file() else {}
    if comparable(mine, theirs):
        return Cells.of(theirs), "its own evaluation"
    base = unpack(folder / ADAPTER, folder / "adapter")["base"]
    if base["hash"] != sampler.spec.hash:
        return None, f"cannot be drawn: it belongs to another base, '{base['name']}'"
    log.info("sampling version %d, the champion, on the same prompts and seeds", about["version"])
    load_adapter(sampler.pipe, folder / "adapter" / WEIGHTS)  # in place of the candidate, whose images are all sampled
    redrawn = sampler.sample(case.subject_prompts, seed=params.seed, seeds=evidence.tuned.shape[1])
    # Rounded as in an evaluation, so that an adapter differs from itself by nothing.
    return Cells.of({"cells": cells(replace(evidence, tuned=redrawn.outputs)).as_dict()}), "drawn again on these photos"


def _lightness(
    case: Case, tuned: JudgeOutputs, photos: tuple[JudgeOutputs, JudgeOutputs], judges: Judges, prompts: PromptSet
) -> dict[str, np.ndarray]:
    """Skin lightness L* by judged Monk tone, of T and of the photos, when the subject is a person."""
    if case.subject["class_noun"] != prompts.person_noun or prompts.tone not in judges.classes:
        return {}
    scale = monk_lab()[:, 0][[int(tone) - 1 for tone in judges.classes[prompts.tone]]]
    both = np.concatenate([side.probabilities[prompts.tone] for side in photos])
    return {"tuned": tuned.probabilities[prompts.tone] @ scale, "photos": both @ scale}


def _document(case: Case, evidence: Evidence, scores: Scores, params: EvaluateParams) -> dict[str, Any]:
    prompts, seeds = evidence.tuned.shape
    return {
        "kind": "evaluation",
        "schema_version": SCHEMA_VERSION,
        "subject": case.subject,
        **case.facts,
        "profile": params.profile,
        "seeds": {"first": params.seed, "per_prompt": seeds, "prompts": prompts},
        "bootstrap": params.bootstrap,
        "photos": {"trained": len(case.photos.trained), "held_out": len(case.photos.held_out)},
        "made_share": made_share(evidence),
        "exact_attributes": scores.exact,
        "copy_correlation": evidence.copy_correlation,
        "metrics": {name: value.as_dict() for name, value in scores.metrics.items()},
        "attributes": {
            name: {side: value.as_dict() for side, value in sides.items()} for name, sides in scores.attributes.items()
        },
        "invalid": scores.invalid,
        "cells": cells(evidence).as_dict(),
        "champion": None,
    }


def _flat_metrics(document: dict[str, Any]) -> dict[str, float]:
    points = {name: float(value["point"]) for name, value in document["metrics"].items()}
    bounds = {
        f"{name}_{side}": float(document["metrics"][name][side])
        for name in ("identity_gain", "prompt_change", "leakage", "overall")
        for side in ("lo", "hi")
    }
    return {**points, **bounds}
