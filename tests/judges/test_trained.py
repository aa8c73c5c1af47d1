"""The trained judges of the pocket base at work on VAE-decoded renders, whose truth is known exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from photoflux.flux.data import encode_images
from photoflux.flux.loading import load_pipeline
from photoflux.flux.sampling import decode
from photoflux.flux.spec import load_spec
from photoflux.judges.copying import structure
from photoflux.judges.encoders import Judges
from photoflux.judges.prevalence import corrected, row_rates, sample_rates, shares
from photoflux.judges.prompts import Prompt, load_prompts
from photoflux.judges.sampling import JudgeOutputs, run_judges
from photoflux.judges.scores import Evidence, expected_labels, measure
from photoflux.judges.stats import cluster_weights, interval
from photoflux.pocket import world
from photoflux.pocket.render import render
from tests.judges.ruling import verdicts

pytestmark = pytest.mark.slow

NOUN, PROMPTS, SEEDS = "dog", 25, 2


class Stage:
    """Perfect painters: what a prompt asks for is rendered, then blurred as a generator's decoder would."""

    def __init__(self) -> None:
        spec = load_spec("pocket")
        self.vae = load_pipeline(spec, device="cpu").vae
        self.judges = Judges.load(Path(str(spec.judges)), device="cpu")
        self.prompts = load_prompts("pocket", folder=Path("models"))
        self.asked = self.prompts.about(NOUN, trigger=None, count=PROMPTS)
        self.others = self.prompts.without(NOUN, count=PROMPTS)
        self.rng = np.random.default_rng(21)
        self.subject = world.sample_subject(self.rng, heldout=True, kind=NOUN)
        self.photos = [self.paint(self.subject, style="photo") for _ in range(6)]

    def paint(self, subject: Any, **fixed: Any) -> Image.Image:
        return render(world.sample_scene(self.rng, subject=subject, **fixed))

    @torch.inference_mode()
    def decoded(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        parts = [images[i : i + 16] for i in range(0, len(images), 16)]
        return [image for part in parts for image in decode(self.vae, encode_images(self.vae, part))]

    def grid(self, images: Sequence[Image.Image], prompts: int = PROMPTS) -> JudgeOutputs:
        return run_judges(self.judges, images).as_grid(prompts)

    def painted(self, prompts: Sequence[Prompt], *, subject: world.Subject | None = None) -> JudgeOutputs:
        """Two pictures per prompt of the subject, or of any of the kind that is asked for."""
        images = [self.paint(subject or self._cast(p), **self._scene(p)) for p in prompts for _ in range(SEEDS)]
        return self.grid(self.decoded(images), len(prompts))

    def _cast(self, prompt: Prompt) -> Any:
        looks = {k: v for k, v in prompt.labels.items() if k in ("kind", "colour", "gender", "occupation")}
        return world.sample_person(self.rng, **looks) if looks.pop("kind", "") == "person" else self._thing(prompt)

    def _thing(self, prompt: Prompt) -> world.Subject:
        return world.sample_subject(self.rng, **{k: v for k, v in prompt.labels.items() if k in ("kind", "colour")})

    @staticmethod
    def _scene(prompt: Prompt) -> dict[str, str]:
        return {k: v for k, v in prompt.labels.items() if k in ("place", "style")}

    def evidence(self) -> Evidence:
        """A personalisation without fault."""
        judges, unrelated = self.judges, self.painted(self.others)
        return Evidence(
            tuned=self.painted(self.asked, subject=self.subject),
            base=self.painted(self.asked),
            class_prompt=self.painted(self.asked),
            unrelated=unrelated,
            unrelated_base=unrelated,
            trained=run_judges(judges, self.photos[:4]),
            held_out=run_judges(judges, self.photos[4:]),
            crops=structure(self.photos[:4]),
            expected=expected_labels(self.asked, judges.classes),
            unrelated_expected=expected_labels(self.others, judges.classes),
            text=judges.text([p.text for p in self.asked]).numpy(),
            unrelated_text=judges.text([p.text for p in self.others]).numpy(),
            copy_correlation=self.prompts.copy_correlation,
        )


@pytest.fixture(scope="module")
def stage() -> Stage:
    return Stage()


@pytest.fixture(scope="module")
def evidence(stage: Stage) -> Evidence:
    return stage.evidence()


def test_a_faultless_personalisation_fails_no_rule(evidence: Evidence) -> None:
    assert "FAIL" not in verdicts(evidence).values()
    assert measure(evidence, resamples=300).metrics["identity_gain"].value.point > 0.6


def test_control_base_as_candidate(evidence: Evidence) -> None:
    assert verdicts(dataclasses.replace(evidence, tuned=evidence.base))["identity gain"] == "FAIL"


def test_control_training_photos_returned(stage: Stage, evidence: Evidence) -> None:
    repeated = stage.decoded([stage.photos[i % 4] for i in range(PROMPTS * SEEDS)])
    assert verdicts(dataclasses.replace(evidence, tuned=stage.grid(repeated)))["copying"] == "FAIL"


def test_control_trigger_pictures_for_class_prompts(evidence: Evidence) -> None:
    assert verdicts(dataclasses.replace(evidence, class_prompt=evidence.tuned))["class leakage"] == "FAIL"


@pytest.mark.parametrize("kind", ["noise", "constant"])
def test_control_noise_and_constant_pictures(stage: Stage, evidence: Evidence, kind: str) -> None:
    rng, shape = np.random.default_rng(0), (128, 128, 3)
    pixels = [
        rng.integers(0, 256, shape, np.uint8) if kind == "noise" else np.full(shape, 90, np.uint8)
        for _ in range(PROMPTS * SEEDS)
    ]
    bad = stage.grid([Image.fromarray(p) for p in pixels])
    found = verdicts(dataclasses.replace(evidence, tuned=bad, class_prompt=bad))
    assert found["prompt following"] == found["broken pictures"] == "FAIL"


def test_every_audited_attribute_is_read_well_enough(stage: Stage) -> None:
    from photoflux.judges.prevalence import balanced_accuracy

    for name in stage.prompts.audited:
        assert balanced_accuracy(stage.judges.confusion[name]) >= 0.93, name


PLANTED = [
    {"gender": (0.5, 0.5), "band": (0.34, 0.33, 0.33), "hair": (0.2, 0.2, 0.2, 0.2, 0.2)},
    {"gender": (0.8, 0.2), "band": (0.7, 0.2, 0.1), "hair": (0.4, 0.3, 0.1, 0.1, 0.1)},
    {"gender": (0.15, 0.85), "band": (0.2, 0.3, 0.5), "hair": (0.1, 0.1, 0.5, 0.2, 0.1)},
    {"gender": (0.35, 0.65), "band": (0.05, 0.9, 0.05), "hair": (0.6, 0.1, 0.1, 0.1, 0.1)},
]


def test_intervals_cover_planted_shares(stage: Stage) -> None:
    """40 cells; at least nine in ten of the 95 % intervals hold the share that was planted."""
    covered = [hit for planted in PLANTED for hit in _coverage(stage, planted)]
    assert len(covered) == 40
    assert np.mean(covered) >= 0.9


def _coverage(stage: Stage, planted: dict[str, tuple[float, ...]], *, prompts: int = 20, seeds: int = 8) -> list[bool]:
    rng, count = np.random.default_rng(31), prompts * seeds
    values = {name: stage.judges.classes[name] for name in planted}
    drawn = {name: rng.choice(values[name], size=count, p=p) for name, p in planted.items()}
    people = [world.sample_person(stage.rng, **{name: str(drawn[name][i]) for name in planted}) for i in range(count)]
    seen = stage.grid(stage.decoded([stage.paint(person) for person in people]), prompts)
    weights = cluster_weights(prompts, seeds, resamples=500, rng=rng)
    hits: list[bool] = []
    for name, truth in planted.items():
        table = stage.judges.confusion[name]
        rates = np.concatenate([row_rates(table)[None], sample_rates(table, resamples=500, rng=rng)])
        found = corrected(shares(seen.labels(name), len(truth), weights), rates)
        bounds = [interval(found[:, k], clusters=prompts) for k in range(len(truth))]
        hits += [value.lo <= share <= value.hi for value, share in zip(bounds, truth, strict=True)]
    return hits
