"""Checkpoints: sampled as serving samples, scored by hand-made judges, the averaged weights stored."""

# ruff: noqa: F811 (the fixtures of what is trained are those of tests/flux)

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from photoflux.flux.data import Photos
from photoflux.flux.loading import load_pipeline
from photoflux.flux.lora import load_adapter, save_adapter
from photoflux.flux.sampling import noise_for
from photoflux.flux.spec import BaseSpec
from photoflux.judges import checkpoint_selection
from photoflux.judges.checkpoint_selection import (
    FIRST_SEED,
    PLACES,
    PREVIEWS,
    SPAN_MIN,
    VALIDATION_IMAGES,
    CheckpointSelector,
    Scorer,
    ValidationPrompts,
    load_judges,
    select,
)
from tests.flux.conftest import base, dataset, on_the_cpu, pipe, spec  # noqa: F401
from tests.flux.training import Training, pictures, prepare, randomise, small, stock, train_photos

if TYPE_CHECKING:
    from diffusers import FluxPipeline

VECTORS = {"photo": (1.0, 0.0, 0.0), "other photo": (0.8, 0.6, 0.0), "class": (0.0, 0.0, 1.0), "half": (0.6, 0.0, 0.8)}


class HandMade:
    """Judges that know four pictures: their identities are `VECTORS`; text sees what was asked in photos only."""

    def identity(self, images: Sequence[Image.Image]) -> torch.Tensor:
        return torch.tensor([VECTORS[image.info["name"]] for image in images])

    def text(self, prompts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([(1.0, 0.0)] * len(prompts))

    def image_text(self, images: Sequence[Image.Image]) -> torch.Tensor:
        return torch.tensor([(0.5, 0.0) if image.info["name"] == "class" else (0.4, 0.3) for image in images])


def images(*names: str, seeds: Sequence[int] = range(2 * PLACES)) -> list[Image.Image]:
    """Pictures that judges take for `names` in turn; those of different seeds have nothing in common."""
    made = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (80, 80, 3), dtype=np.uint8)) for seed in seeds
    ]
    for number, image in enumerate(made):
        image.info["name"] = names[number % len(names)]
    return made


def scorer(photos: Sequence[str] = ("photo", "other photo"), base: str = "class") -> Scorer:
    made: Any = HandMade()
    named = images(*photos, seeds=range(len(photos)))
    return Scorer(made, named, ["a"] * 2 * PLACES, images(base))


def test_a_candidate_is_scored_between_base_and_photos() -> None:
    """By hand: photos are alike by .8, the base by 0, subject pictures by (1 + .8) / 2, plain ones by (.6 + .48) / 2."""
    found = scorer()(images("photo"), images("half", "class"))
    assert found["identity"] == pytest.approx(0.9 / 0.8)
    assert found["leakage"] == pytest.approx(0.54 / 2 / 0.8)
    assert found["prompt"] == pytest.approx(0.4 / 0.5)
    assert found["score"] == pytest.approx(0.9 / 0.8 * 0.8 - (0.27 / 0.8 - 0.10))


def test_the_base_itself_scores_nothing() -> None:
    """Pictures of the class gain no identity, follow as the base does, and leak nothing."""
    alike, nothing = images("class"), {"identity": 0, "prompt": 1, "leakage": 0, "diversity": 1, "score": 0}
    assert scorer()(alike, alike) == pytest.approx(nothing, abs=1e-6)


def test_following_better_than_the_base_and_leaking_a_little_are_free() -> None:
    """Prompt counts up to 1, and leakage up to .1 costs nothing: the score is the identity alone."""
    judged = scorer(base="half")
    judged.base_follows = 0.3
    found = judged(images("photo", "other photo"), images("half"))
    assert found["prompt"] > 1
    assert found["leakage"] == pytest.approx(0)
    assert found["score"] == pytest.approx(found["identity"])


def test_pictures_composed_alike_cost_what_is_missing() -> None:
    """By hand: of four pictures per place three are one, so half of six pairs differ; 2 x (.9 - .5) is taken off."""
    judged, alone = scorer(), 0.9 / 0.8 * 0.8
    assert judged.base_spread == pytest.approx(1, abs=0.1)
    repeated = [place + PLACES * (10 if turn else 20) for turn in (0, 1, 1, 1) for place in range(PLACES)]
    judged.text = judged.text.repeat(2, 1)
    found = judged(images("photo", seeds=repeated), images("class", seeds=repeated))
    assert found["diversity"] == pytest.approx(0.5, abs=0.05)
    assert found["score"] == pytest.approx(alone - 2 * (0.9 - found["diversity"]), rel=1e-5)


def test_a_subject_like_its_class_does_not_blow_up() -> None:
    """Where photos are no more alike than the base is to them, the span has a floor; one photo is no error."""
    assert scorer(photos=["photo", "other photo"], base="photo").span == SPAN_MIN
    assert scorer(photos=["photo"]).span == SPAN_MIN


@pytest.mark.parametrize(
    ("how", "scores", "losses", "step"),
    [
        ("best", [0.2, 0.5, 0.4], [3, 2, 1], 2),
        ("best", [0.5, 0.5, 0.4], [3, 2, 1], 1),
        ("last", [0.2, 0.5, 0.4], [3, 2, 1], 3),
        ("best", None, [3.0, 1.0, 2.0], 3),
        ("best", None, [None, None, None], 3),
    ],
    ids=["score", "first of equals", "last", "last without judges", "nothing held out"],
)
def test_which_candidate_is_kept(how: str, scores: list[float] | None, losses: list[Any], step: int) -> None:
    """By score; without judges, or as asked, the last. The loss on held-out photos chooses nothing."""
    made = [{"step": i + 1, "validation": loss} for i, loss in enumerate(losses)]
    scored = [{**c, "score": score} for c, score in zip(made, scores, strict=True)] if scores else made
    assert select(scored, how=how)["step"] == step


def test_every_candidate_draws_the_same(pipe: FluxPipeline, spec: BaseSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs that differ in the trigger alone, each place in turn, with fixed noise."""
    asked = list[list[str]]()
    encode = checkpoint_selection.encode_prompts

    def listening(pipe: FluxPipeline, prompts: Sequence[str], **how: Any) -> Any:
        asked.append(list(prompts))
        return encode(pipe, prompts, **how)

    monkeypatch.setattr(checkpoint_selection, "encode_prompts", listening)
    prompts = ValidationPrompts.encode(pipe, spec=spec, trigger="sks", class_noun="owl")
    subject, class_prompts = asked
    assert [prompt.replace("sks owl", "an owl") for prompt in subject] == class_prompts == list(prompts.texts)
    assert len(class_prompts) == len(prompts.subject) == len(prompts.class_prompt) == VALIDATION_IMAGES
    assert class_prompts == class_prompts[:PLACES] * (VALIDATION_IMAGES // PLACES)
    assert len(set(class_prompts)) == PLACES
    assert torch.equal(prompts.noise, noise_for(range(FIRST_SEED, FIRST_SEED + VALIDATION_IMAGES), spec=spec))


@pytest.fixture
def training(pipe: FluxPipeline, spec: BaseSpec, base: Path, dataset: Path, tmp_path: Path) -> Training:
    """A training whose selector is the real one, and whose average differs from its weights."""
    prompts = ValidationPrompts.encode(pipe, spec=spec, trigger="sks", class_noun="dog")
    heldout = train_photos(dataset, pipe, spec, split="heldout")
    made = prepare(pipe, spec, dataset, small(base), tmp_path / "work")
    made.selector = CheckpointSelector(
        pipe, prompts, spec=spec, photos=made.batches.photos, heldout=heldout, store=made.store
    )
    randomise(pipe.transformer, seed=1)
    made.tuning.average = {name: p.detach().clone() for name, p in made.tuning.trained.items()}
    randomise(pipe.transformer, seed=2)
    made.tuning.train_step = 40
    return made


def selector_on(training: Training, photos: Photos, heldout: Photos) -> CheckpointSelector:
    """The selector of that training with other photos."""
    found = training.selector
    return CheckpointSelector(
        found.pipe, found.prompts, spec=found.spec, photos=photos, heldout=heldout, store=found.store
    )


def test_a_photo_counts_once_however_many_pictures_are_of_it(training: Training) -> None:
    """Crops and copies of one photo, objects of their own, change no score; nor does their order."""
    photos, heldout = training.batches.photos, training.selector.heldout
    mirrored = ImageOps.mirror(photos.images[1])
    several = replace(
        photos,
        images=(*photos.images, photos.images[0].copy(), photos.images[0].copy(), mirrored),
        sources=(*photos.sources, photos.sources[0], photos.sources[0], photos.sources[1]),
    )
    first = training.selector.score(training.tuning)
    found = selector_on(training, several, heldout)
    assert found.score(training.tuning) == first
    assert found.scorer is not None
    assert len(found.scorer.photos) == len(set(photos.sources)) == 4


def test_held_out_photos_are_told_of_and_choose_nothing(training: Training) -> None:
    """With others in their place only the reported loss is another."""
    photos, heldout = training.batches.photos, training.selector.heldout
    others = replace(heldout, tokens=heldout.tokens.flip(0) * 2, images=tuple(pictures(len(heldout))))
    first, second = (selector_on(training, photos, held).score(training.tuning) for held in (heldout, others))
    assert first.pop("validation") != second.pop("validation")
    assert first == second


def close(a: Image.Image, b: Image.Image) -> bool:
    """Equal to a grey level."""
    return bool(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max() <= 1)


def test_a_candidate_is_drawn_and_kept_as_serving_will(training: Training, spec: BaseSpec, tmp_path: Path) -> None:
    """The kept pictures are those that the stock pipeline draws with the averaged weights, loaded from their file."""
    scores = training.selector.score(training.tuning)
    weights = training.selector.weights(40)
    assert all(torch.equal(weights[name], value) for name, value in training.tuning.average.items())
    file = save_adapter(training.pipe.transformer, tmp_path / "average.safetensors", weights=weights)
    served = load_pipeline(spec)
    load_adapter(served, file)
    texts = list(training.selector.prompts.texts)
    prompts = [*(p.replace("a dog", "sks dog") for p in texts[: PREVIEWS[0]]), *texts[: PREVIEWS[1]]]
    seeds = [FIRST_SEED + i for count in PREVIEWS for i in range(count)]
    pictures = stock(served, spec, prompts, seeds, output_type="pil")
    previews = [Image.open(io.BytesIO(file)) for file in training.selector.previews(40)]
    assert len(previews) == len(pictures) == sum(PREVIEWS)
    assert all(close(a, b) for a, b in zip(previews, pictures, strict=True))
    assert set(scores) == {"step", "validation", "identity", "prompt", "leakage", "diversity", "score"}
    assert scores["step"] == 40


def test_the_selector_measures_against_the_plain_base(training: Training, spec: BaseSpec) -> None:
    """Its base pictures are those of the stock pipeline without any adapter, for the class prompts."""
    seeds = [FIRST_SEED + i for i in range(VALIDATION_IMAGES)]
    pictures = stock(load_pipeline(spec), spec, training.selector.prompts.texts, seeds, output_type="pil")
    assert all(close(a, b) for a, b in zip(training.selector.base, pictures, strict=True))


def test_scoring_leaves_the_training_as_it_was(training: Training) -> None:
    """Weights, average, trainability and mode are the same afterwards; a second look gives the same numbers."""
    tuning = training.tuning
    tuning.transformer.train()
    before = {name: p.detach().clone() for name, p in tuning.trained.items()}
    average = {name: value.clone() for name, value in tuning.average.items()}
    first = training.selector.score(tuning)
    assert tuning.transformer.training
    assert {name for name, p in tuning.transformer.named_parameters() if p.requires_grad} == set(before)
    assert all(torch.equal(p, before[name]) for name, p in tuning.trained.items())
    assert all(torch.equal(value, average[name]) for name, value in tuning.average.items())
    assert training.selector.score(tuning) == first


def test_validation_is_the_averages(training: Training) -> None:
    """The candidate's validation loss is that of the averaged weights, not of the weights of the moment."""
    found = training.selector.score(training.tuning)["validation"]
    of_weights = training.tuning.validation_loss(training.selector.heldout)
    with torch.no_grad():
        for name, parameter in training.tuning.trained.items():
            parameter.copy_(training.tuning.average[name])
    assert found == pytest.approx(training.tuning.validation_loss(training.selector.heldout), rel=1e-6)
    assert found != pytest.approx(of_weights, rel=1e-6)


def test_a_base_without_judges_says_what_that_means(spec: BaseSpec, caplog: pytest.LogCaptureFixture) -> None:
    """No judges, a warning, and no scorer; with judges they load."""
    assert load_judges(replace(spec, judges=None), device="cpu") is None
    assert "the last candidate is kept" in caplog.text
    assert load_judges(spec, device="cpu") is not None


@pytest.mark.parametrize(("resolution_px", "at_once"), [(128, 16), (256, 4), (512, 1), (1024, 1)])
def test_large_pictures_are_drawn_one_by_one(resolution_px: int, at_once: int) -> None:
    """As many at once as make one picture of 512 x 512, sixteen at most."""
    selector: Any = CheckpointSelector.__new__(CheckpointSelector)
    selector.spec = SimpleNamespace(resolution_px=resolution_px)
    assert selector._batch_size == at_once
