"""What evaluation measures, as pure functions over the judges' outputs.

T: tuned with trigger; B: base, class noun instead of the trigger; C: tuned, class noun only; D and D0: tuned and base
on prompts that show nothing of the class. Every set uses the same seeds, and T, B, C the same prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from photoflux.judges.champion import Cells
from photoflux.judges.colour import appearance_distance
from photoflux.judges.copying import likeness, structure_spread
from photoflux.judges.prompts import Prompt
from photoflux.judges.quality import Quality
from photoflux.judges.sampling import JudgeOutputs
from photoflux.judges.stats import (
    Array,
    Interval,
    cluster_weights,
    clustered_rate,
    interval,
    item_weights,
    kid,
    weighted_mean,
)

MIN_SPAN = 0.05
"""Least distance between 'like the class' and 'like the subject' at which identity gain means anything."""

MIN_PHOTOS_RESAMPLED = 5

COPY_PHOTOS = 8
"""Photos trained on up to which a prompt set's `copy_correlation` holds; among more, one is more alike by chance."""


@dataclass(frozen=True)
class Evidence:
    """All that the judges made of an evaluation's images and photos.

    `crops` are the structures of everything trained on. Per prompt, `expected` gives the class index that each attribute should
    have, and `text` the prompt's embedding [P, E], which counts where not every prompt expects an attribute.
    """

    tuned: JudgeOutputs
    base: JudgeOutputs
    class_prompt: JudgeOutputs
    unrelated: JudgeOutputs
    unrelated_base: JudgeOutputs
    trained: JudgeOutputs
    held_out: JudgeOutputs
    crops: Array
    expected: Sequence[Mapping[str, int]]
    unrelated_expected: Sequence[Mapping[str, int]]
    text: Array
    unrelated_text: Array
    copy_correlation: float
    tone_lightness: Mapping[str, Array] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether every prompt names an attribute that the judges read."""
        return all(self.expected) and all(self.unrelated_expected)


@dataclass(frozen=True)
class Measure:
    """One metric with its 95 % interval and what it was computed from."""

    value: Interval
    n_prompts: int
    n_images: int

    def as_dict(self) -> dict[str, float | int]:
        return {**self.value.as_dict(), "n_prompts": self.n_prompts, "n_images": self.n_images}


@dataclass(frozen=True)
class Scores:
    """Metrics by name, why they may not decide anything, and per-image values for the report."""

    metrics: dict[str, Measure]
    attributes: dict[str, dict[str, Measure]]
    invalid: list[str]
    exact: bool
    likeness: Array
    fidelity: Array
    followed: Array


@dataclass(frozen=True)
class Weights:
    """Bootstrap weights of the subject prompts, the unrelated prompts and the photos."""

    grid: Array
    unrelated: Array
    trained: Array
    held_out: Array


def measure(evidence: Evidence, *, resamples: int = 2000, seed: int = 0) -> Scores:
    """Every metric of an evaluation, from arrays alone."""
    rng = np.random.default_rng(seed)
    weights = _weights(evidence, resamples=resamples, rng=rng)
    identity = _identity(evidence, weights)
    following = _following(evidence, weights)
    # Identity times following: neither can be bought with the other. Less identity than the base's is none.
    overall = np.maximum(identity["identity_gain"], 0) * following["prompt_ratio"]
    parts = {**identity, **following, "overall": overall, **_diversity(evidence, weights)}
    parts |= _sharpness(evidence, weights) | _lightness(evidence, weights)
    values = {name: interval(x, clusters=evidence.tuned.shape[0]) for name, x in parts.items()}
    values |= _drift(evidence, weights, rng) | _rates(evidence)
    return Scores(
        metrics={name: _sized(evidence, name, value) for name, value in values.items()},
        attributes=_by_attribute(evidence),
        invalid=_invalid(values),
        exact=evidence.exact,
        likeness=_likeness(evidence),
        fidelity=(evidence.tuned.identity @ evidence.held_out.identity.T).mean(-1),
        followed=_followed(evidence.tuned, evidence.expected, evidence.text, exact=evidence.exact),
    )


def _weights(evidence: Evidence, *, resamples: int, rng: np.random.Generator) -> Weights:
    photos = {name: len(getattr(evidence, name).identity) for name in ("trained", "held_out")}
    return Weights(
        grid=cluster_weights(*evidence.tuned.shape, resamples=resamples, rng=rng),
        unrelated=cluster_weights(*evidence.unrelated.shape, resamples=resamples, rng=rng),
        **{
            name: item_weights(n, resamples=resamples, rng=rng, fixed=n < MIN_PHOTOS_RESAMPLED)
            for name, n in photos.items()
        },
    )


def _identity(evidence: Evidence, weights: Weights) -> dict[str, Array]:
    """Fidelity against trained and held-out photos, and what follows from it: gain, leakage, memorisation.

    The memorisation gap is the gain against trained photos less the gain against held-out ones: 0 for the base and for
    real photos alike, whatever angles the few held-out photos happen to show.
    """
    trained, held_out = (evidence.trained.identity, weights.trained), (evidence.held_out.identity, weights.held_out)
    sf = {
        (name, photos): _fidelity(outputs.identity, weights.grid, *against)
        for name, outputs in (("T", evidence.tuned), ("B", evidence.base), ("C", evidence.class_prompt))
        for photos, against in (("trained", trained), ("held out", held_out))
    }
    real, real_trained = _ceilings(trained, held_out)
    span, span_trained = _span(real - sf["B", "held out"]), _span(real_trained - sf["B", "trained"])
    gain = (sf["T", "held out"] - sf["B", "held out"]) / span
    gain_trained = (sf["T", "trained"] - sf["B", "trained"]) / span_trained
    return {
        "identity_gain": gain,
        "identity_gain_trained": gain_trained,
        "memorisation_gap": gain_trained - gain,
        "leakage": (sf["C", "trained"] - sf["B", "trained"]) / span_trained,
        "subject_fidelity": sf["T", "held out"],
        "subject_fidelity_trained": sf["T", "trained"],
        "class_fidelity": sf["C", "trained"],
        "base_fidelity": sf["B", "held out"],
        "real_fidelity": real,
        "identity_span": real - sf["B", "held out"],
    }


def _fidelity(images: Array, grid: Array, photos: Array, photo_weights: Array) -> Array:
    """SF: mean cosine of images [P, S, D] and photos [N, D] under both sides' weights: [resamples]."""
    similarity = np.einsum("psd,nd->psn", images, photos)
    return np.einsum("dps,psn,dn->d", grid, similarity, photo_weights, optimize=True)


def _ceilings(trained: tuple[Array, Array], held_out: tuple[Array, Array]) -> tuple[Array, Array]:
    """How alike a held-out, and a trained, photo is to the subject's other photos: [resamples] each.

    An image is compared with the held-out photos, so the ceiling is what real photos reach against the same ones; an
    odd angle among few of them then lowers both.
    """
    cross = np.einsum("dh,hn,dn->d", held_out[1], held_out[0] @ trained[0].T, trained[1], optimize=True)
    within_held, within_trained = (_among(*side) for side in (held_out, trained))
    n, h = len(trained[0]), len(held_out[0])
    return _mix(cross, n, within_held, h - 1), _mix(cross, h, within_trained, n - 1)


def _among(photos: Array, weights: Array) -> Array:
    """Mean cosine of different photos of one set under weights [resamples, N]; 0 for a single photo."""
    similarity = photos @ photos.T
    np.fill_diagonal(similarity, 0)
    pairs = 1 - (weights**2).sum(-1)
    total = np.einsum("dn,nm,dm->d", weights, similarity, weights, optimize=True)
    return np.divide(total, pairs, out=np.zeros_like(total), where=pairs > 1e-9)


def _mix(first: Array, n_first: int, second: Array, n_second: int) -> Array:
    return (first * n_first + second * n_second) / (n_first + n_second)


def _span(values: Array) -> Array:
    """Denominators at a distance from zero; whether the point is large enough is judged separately."""
    return np.maximum(values, MIN_SPAN / 10)


def _following(evidence: Evidence, weights: Weights) -> dict[str, Array]:
    tuned, base = (
        weighted_mean(_followed(outputs, evidence.expected, evidence.text, exact=evidence.exact), weights.grid)
        for outputs in (evidence.tuned, evidence.base)
    )
    return {
        "prompt_following": tuned,
        "prompt_following_base": base,
        "prompt_change": tuned - base,
        "prompt_ratio": tuned / np.maximum(base, 1e-6),
    }


def _followed(outputs: JudgeOutputs, expected: Sequence[Mapping[str, int]], text: Array, *, exact: bool) -> Array:
    """Per image [P, S]: share of the asked attributes that are right, or the cosine with the prompt's words."""
    if not exact:
        return np.einsum("pse,pe->ps", outputs.image, text)
    rows = [
        np.mean([outputs.labels(name)[p] == index for name, index in labels.items()], axis=0)
        for p, labels in enumerate(expected)
    ]
    return np.stack(rows)


def _by_attribute(evidence: Evidence) -> dict[str, dict[str, Measure]]:
    """Accuracy per attribute for T and B, over the prompts that ask for it."""
    names = sorted({name for labels in evidence.expected for name in labels}) if evidence.exact else []
    return {
        name: {
            side: _accuracy(outputs, evidence.expected, name)
            for side, outputs in (("tuned", evidence.tuned), ("base", evidence.base))
        }
        for name in names
    }


def _accuracy(outputs: JudgeOutputs, expected: Sequence[Mapping[str, int]], name: str) -> Measure:
    asking = [p for p, labels in enumerate(expected) if name in labels]
    wanted = np.array([expected[p][name] for p in asking])
    right = outputs.labels(name)[asking] == wanted[:, None]
    return Measure(clustered_rate(right), len(asking), right.size)


def _diversity(evidence: Evidence, weights: Weights) -> dict[str, Array]:
    """How differently images of one prompt are composed, tuned over base, with trigger and without."""
    prompts = weights.grid.sum(-1)
    tuned, base, class_prompt = (
        prompts @ structure_spread(outputs.structure)
        for outputs in (evidence.tuned, evidence.base, evidence.class_prompt)
    )
    base = np.maximum(base, 1e-6)
    return {"diversity": tuned / base, "class_diversity": class_prompt / base}


def _sharpness(evidence: Evidence, weights: Weights) -> dict[str, Array]:
    tuned, base = (
        weighted_mean(outputs.measures.sharpness, weights.grid) for outputs in (evidence.tuned, evidence.base)
    )
    return {"sharpness": tuned / np.maximum(base, 1e-9)}


def _lightness(evidence: Evidence, weights: Weights) -> dict[str, Array]:
    """Shift of a person's skin lightness from the photos to T, in L*; only where the judges read tones."""
    light = evidence.tone_lightness
    if not light:
        return {}
    photos = len(light["photos"])
    rng = np.random.default_rng(photos)
    resampled = item_weights(photos, resamples=len(weights.grid) - 1, rng=rng, fixed=photos < MIN_PHOTOS_RESAMPLED)
    return {"lightness_shift": weighted_mean(light["tuned"], weights.grid) - resampled @ light["photos"]}


def _drift(evidence: Evidence, weights: Weights, rng: np.random.Generator) -> dict[str, Interval]:
    """Damage on unrelated prompts: accuracy lost, pairs moved, distance of distributions, colours."""
    unrelated, before = evidence.unrelated, evidence.unrelated_base
    clusters, width = unrelated.shape[0], unrelated.image.shape[-1]
    followed = [
        _followed(outputs, evidence.unrelated_expected, evidence.unrelated_text, exact=evidence.exact)
        for outputs in (unrelated, before)
    ]
    pairs = (unrelated.identity * before.identity).sum(-1)
    # Unit vectors times sqrt(width): the kernel's x.y / width is then their cosine.
    features = unrelated.image * np.sqrt(width), before.image * np.sqrt(width)
    colours = appearance_distance(unrelated.colours, before.colours)
    return {
        "drift_change": interval(weighted_mean(followed[0] - followed[1], weights.unrelated), clusters=clusters),
        "drift_paired": interval(1 - weighted_mean(pairs, weights.unrelated), clusters=clusters),
        "drift_kid": kid(*features, resamples=len(weights.unrelated) - 1, rng=rng),
        "drift_colour": Interval(colours, colours, colours),
    }


def _rates(evidence: Evidence) -> dict[str, Interval]:
    """Shares of copies among T and of broken images among T and C."""
    copied = _likeness(evidence) > copy_threshold(evidence.copy_correlation, photos=len(evidence.trained.identity))
    usual = float(np.median(evidence.base.measures.sharpness))
    broken = [
        _flat(outputs.measures).broken(usual_sharpness=usual) for outputs in (evidence.tuned, evidence.class_prompt)
    ]
    bad = np.concatenate([side.reshape(copied.shape) for side in broken], axis=1)
    return {"copy_rate": clustered_rate(copied), "broken_rate": clustered_rate(bad)}


def copy_threshold(correlation: float, *, photos: int) -> float:
    """The structural correlation above which an image is a copy of one of so many photos.

    The most alike of N photos lies above a threshold N times as often as a single one does. In renders of the pocket world that chance
    falls with the fourth power of the distance to 1; so a distance shrunk by the fourth root of N keeps the share of false copies
    where it is at eight photos.
    """
    return 1 - (1 - correlation) * min(1.0, COPY_PHOTOS / photos) ** 0.25


def _flat(quality: Quality) -> Quality:
    return Quality(*(values.reshape(-1) for values in vars(quality).values()))


def _likeness(evidence: Evidence) -> Array:
    """Per image of T [P, S]: largest structural correlation with a crop trained on."""
    flat = evidence.tuned.structure.reshape(-1, *evidence.tuned.structure.shape[2:])
    return likeness(flat, evidence.crops).max(-1).reshape(evidence.tuned.shape)


def _sized(evidence: Evidence, name: str, value: Interval) -> Measure:
    prompts, seeds = (evidence.unrelated if name.startswith("drift") else evidence.tuned).shape
    return Measure(value, prompts, prompts * seeds * (2 if name == "broken_rate" else 1))


def _invalid(values: Mapping[str, Interval]) -> list[str]:
    reasons = []
    span = values["identity_span"].point
    if span < MIN_SPAN:
        reasons.append(
            f"the judges tell the subject from its class by only {span:.3f} (needs {MIN_SPAN}); "
            "identity cannot be measured with these photos or judges"
        )
    return reasons


def made_share(evidence: Evidence) -> float:
    """Share of the planned tuned images that are not blank."""
    blank = [_flat(outputs.measures).blank() for outputs in (evidence.tuned, evidence.class_prompt, evidence.unrelated)]
    return float(1 - np.concatenate(blank).mean())


def expected_labels(prompts: Sequence[Prompt], classes: Mapping[str, Sequence[str]]) -> list[dict[str, int]]:
    """Per prompt, the class index of every labelled attribute that the judges read."""
    return [
        {name: classes[name].index(v) for name, v in p.labels.items() if name in classes and v in classes[name]}
        for p in prompts
    ]


def cells(evidence: Evidence) -> Cells:
    """What each image of T and B is worth, for pairing with another adapter of the same subject."""
    held_out = evidence.held_out.identity
    equal = [np.full((1, len(photos)), 1 / len(photos)) for photos in (evidence.trained.identity, held_out)]
    real, _ = _ceilings((evidence.trained.identity, equal[0]), (held_out, equal[1]))
    likeness, base = ((outputs.identity @ held_out.T).mean(-1) for outputs in (evidence.tuned, evidence.base))
    followed, followed_base = (
        _followed(outputs, evidence.expected, evidence.text, exact=evidence.exact)
        for outputs in (evidence.tuned, evidence.base)
    )
    return Cells(likeness, base, followed, followed_base, float(real[0]))
