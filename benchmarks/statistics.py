"""Whether the numbers that judging rests on are honest: points, levels and coverage by simulation, where the truth is known.

    python -m benchmarks.statistics
    python -m benchmarks.statistics --out build/statistics

Pictures are made up as arrays: prompts differ, the seeds of a prompt are alike, base and tuned share both. What judging
computes from them is compared with the truth that they were made from: a point must not depend on how many pictures there
are, a test at 5 % must reject a true null in 5 %, a 95 % interval must hold the truth in 94 % at least, and a verdict
must not change with more pictures of the same model. Needs no base, no judges and no network. Writes `statistics.json` and `.md`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from benchmarks.pocket_base import machine
from photoflux.judges import prevalence, scores, stats
from photoflux.judges.bias import VERDICTS, Audit, Limits, People, audit_people
from photoflux.judges.champion import Cells, difference
from photoflux.judges.copying import likeness, structure
from photoflux.judges.gate_rules import Rule, rules
from photoflux.judges.sampling import JudgeOutputs
from photoflux.manifest import write_json, write_text
from photoflux.params import GateParams
from photoflux.pocket.photosets import photo_set, unseen_subjects
from photoflux.pocket.world import KINDS
from photoflux.steps.gate import judge

Array = np.ndarray

SCHEMA_VERSION = 1
RESULTS = Path("benchmarks/results")
SEED = 61_000
SHAPES = ((25, 4), (25, 8), (50, 4), (50, 8))
"""Prompts and seeds of a set of pictures: standard, standard with its seeds doubled, release, and that doubled."""
AUDIT_SHAPES = ((38, 6), (38, 11), (38, 27), (76, 11))
"""The same of people: 38 x 11 is the standard profile, 38 x 27 release."""
SMOKE, STANDARD, AUDIT = (5, 2), SHAPES[0], AUDIT_SHAPES[1]
COVERED, LEVEL = 0.94, (0.04, 0.06)
UNLUCKY = 1e-3
"""How unlikely the count behind a claim must be, were the claim true, before it is called broken."""
WIDTH = 32
BOOTSTRAP, FLIPS = 500, 500


@dataclass(frozen=True)
class Claim:
    """A share that was counted, `hits` of `tries`, and the range that it should lie in."""

    about: str
    case: str
    hits: int
    tries: int
    low: float = 0.0
    high: float = 1.0

    @property
    def rate(self) -> float:
        return self.hits / self.tries

    @property
    def holds(self) -> bool:
        """Whether the count is no surprise for some true share within the range."""
        from scipy.stats import binom

        enough = binom.cdf(self.hits, self.tries, self.low) > UNLUCKY
        few_enough = binom.sf(self.hits - 1, self.tries, self.high) > UNLUCKY
        return bool(enough and few_enough)

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "rate": self.rate, "holds": self.holds}


@dataclass(frozen=True)
class Points:
    """Mean of a metric over many evaluations of the same model, by how much was looked at."""

    metric: str
    truth: float
    means: dict[str, float]
    errors: dict[str, float]
    slack: float = 0.0
    unbiased: bool = False

    @property
    def holds(self) -> bool:
        """Whether all means are one, and the truth where that is claimed, within their errors (Bonferroni-wide) or as near as `slack`."""
        aim = self.truth if self.unbiased else fmean(self.means.values())
        return all(abs(self.means[name] - aim) <= max(4 * self.errors[name], self.slack) for name in self.means)

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "holds": self.holds}


@dataclass
class Tally:
    """Counts hits by case."""

    hits: dict[str, int] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)

    def add(self, case: str, hit: bool) -> None:
        self.hits[case] = self.hits.get(case, 0) + bool(hit)
        self.tries[case] = self.tries.get(case, 0) + 1

    def claims(self, about: str, *, low: float = 0.0, high: float = 1.0) -> list[Claim]:
        return [Claim(about, case, hits, self.tries[case], low, high) for case, hits in self.hits.items()]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0: every claim holds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.statistics", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="where statistics.json and statistics.md go")
    options = parser.parse_args(argv)
    result = document()
    write_json(options.out / "statistics.json", result)
    write_text(options.out / "statistics.md", page(result))
    print(tables(result))
    return 0 if result["holds"] else 1


def document(*, effort: float = 1.0) -> dict[str, Any]:
    """Everything measured; `effort` scales how often each case is tried."""

    def times(tries: int) -> int:
        return max(20, round(tries * effort))

    sections: dict[str, Callable[[], list[Any]]] = {
        "points": lambda: [*kid_points(times(100)), *excess_points(times(300)), *evaluation_points(times(150))],
        "kid_verdicts": lambda: kid_verdicts(times(200)),
        "kid_coverage": lambda: kid_coverage(times(1000)),
        "levels": lambda: [*flip_levels(times(20_000)), *audit_levels(times(150)), *cell_levels(times(600))],
        "power": lambda: [*flip_power(times(300)), *audit_power(times(100))],
        "evaluation_coverage": lambda: [
            *evaluation_coverage(times(8000)),
            *following_coverage(times(4000)),
            *champion_coverage(times(4000)),
            *few_prompts_coverage(times(4000)),
        ],
        "rate_coverage": lambda: rate_coverage(times(4000)),
        "audit_coverage": lambda: audit_coverage(times(600)),
        "false_copies": lambda: false_copies(max(2, round(len(KINDS) / 2 * effort))),
        "missing_people": lambda: missing_people(times(40)),
    }
    found, seconds = {}, {}
    for name, measured in sections.items():
        began = time.perf_counter()
        found[name] = measured()
        seconds[name] = round(time.perf_counter() - began, 1)
    return {
        "kind": "benchmark-statistics",
        "schema_version": SCHEMA_VERSION,
        "seed": SEED,
        "machine": machine(),
        "drift_kid_max": GateParams().drift_kid_max,
        "seconds": seconds,
        "holds": all(row.holds for rows in found.values() for row in rows),
        **{name: [row.as_dict() for row in rows] for name, rows in found.items()},
    }


# Unrelated pictures: kernel distance


def scattered(rng: np.random.Generator, shape: tuple[int, int], scale: float, *, per_prompt: bool) -> Array:
    """Random directions [P, S, D] or, the same for all seeds of a prompt, [P, 1, D]; their length is about `scale`."""
    prompts, seeds = shape
    return scale * rng.normal(size=(prompts, 1 if per_prompt else seeds, WIDTH)) / np.sqrt(WIDTH)


def unit(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def unrelated_features(rng: np.random.Generator, shape: tuple[int, int], shift: float) -> tuple[Array, Array]:
    """Tuned and base features [P, S, D], of length sqrt(D) as judging has them: same prompts and noise, then moved.

    The move has a direction of its own and parts that differ by prompt and by picture, and some prompts move further.
    """
    common = np.eye(WIDTH)[0] + scattered(rng, shape, 0.8, per_prompt=True)
    common = common + scattered(rng, shape, 0.5, per_prompt=False)
    move = np.eye(WIDTH)[1] + scattered(rng, shape, 0.5, per_prompt=True) + scattered(rng, shape, 0.5, per_prompt=False)
    far = shift * np.exp(0.5 * rng.normal(size=(shape[0], 1, 1)))
    return unit(common + far * move) * np.sqrt(WIDTH), unit(common) * np.sqrt(WIDTH)


def distance(
    rng: np.random.Generator, shape: tuple[int, int], shift: float, *, resamples: int = BOOTSTRAP
) -> stats.Interval:
    return stats.kid(*unrelated_features(rng, shape, shift), resamples=resamples, rng=rng)


@cache
def true_kid(shift: float) -> float:
    """Kernel distance of two models that differ by `shift`, over 20,000 prompts.

    (1 + x.y)^3 = 1 + 3 x.y + 3 (x.y)^2 + (x.y)^3, so that it compares means, second and third moments.
    """
    rng, chunks = np.random.default_rng(SEED), 20
    differences = [0.0, 0.0, 0.0]
    for _ in range(chunks):
        tuned, base = (side[:, 0] / np.sqrt(WIDTH) for side in unrelated_features(rng, (1000, 1), shift))
        moments = zip(_moments(tuned), _moments(base), strict=True)
        differences = [sum_ + (t - b) / chunks for sum_, (t, b) in zip(differences, moments, strict=True)]
    return float(sum(weight * (moment**2).sum() for weight, moment in zip((3, 3, 1), differences, strict=True)))


def _moments(x: Array) -> tuple[Array, Array, Array]:
    """Mean [D], second [D, D] and third moments [D * D, D] of vectors [N, D]."""
    pairs = (x[:, :, None] * x[:, None]).reshape(len(x), -1)
    return x.mean(0), x.T @ x / len(x), pairs.T @ x / len(x)


@cache
def shift_with(distance: float) -> float:
    """The shift whose kernel distance is `distance`: near enough its square for a few steps."""
    shift = 0.1
    for _ in range(3):
        shift *= (distance / true_kid(round(shift, 6))) ** 0.5
    return round(shift, 6)


def kid_rule() -> Rule:
    return next(rule for rule in rules({"exact_attributes": True}, GateParams()) if rule.metric == "drift_kid")


def kid_points(tries: int) -> list[Points]:
    """The same shift at every number of pictures, beside the shipped limit and far from it."""
    limit, rng = kid_rule().bound, np.random.default_rng(SEED + 1)
    found = []
    for share in (0.25, 1.0, 4.0):
        shift = shift_with(share * limit)
        values = {
            _name(shape): [distance(rng, shape, shift, resamples=2).point for _ in range(tries)] for shape in SHAPES
        }
        truth = true_kid(shift)
        found.append(_points(f"drift KID, {share:g} of its limit", truth, values, slack=0.02 * truth, unbiased=True))
    return found


def kid_verdicts(tries: int) -> list[Claim]:
    """What the gate says of a model that stayed, one that moved by a quarter of the limit, one that moved by four."""
    rule, rng, tally = kid_rule(), np.random.default_rng(SEED + 2), Tally()
    for name, share, verdict in (
        ("no shift", 0.0, "PASS"),
        ("small shift", 0.25, "PASS"),
        ("large shift", 4.0, "FAIL"),
    ):
        shift = shift_with(share * rule.bound) if share else 0.0
        for shape in SHAPES:
            for _ in range(tries):
                reason = judge(rule, {"drift_kid": distance(rng, shape, shift).as_dict()})
                tally.add(f"{name}, {_name(shape)}: {verdict}", reason.verdict == verdict)
    return [*tally.claims("verdict of the KID rule", low=0.99), *_wrong_verdicts(rule, rng, tries)]


def _wrong_verdicts(rule: Rule, rng: np.random.Generator, tries: int) -> list[Claim]:
    """Near the limit more pictures may settle what few leave open, but never the wrong way."""
    tally = Tally()
    for share, wrong in ((0.7, "FAIL"), (1.4, "PASS")):
        shift = shift_with(share * rule.bound)
        for shape in SHAPES:
            for _ in range(tries):
                reason = judge(rule, {"drift_kid": distance(rng, shape, shift).as_dict()})
                tally.add(f"{share:g} of the limit, {_name(shape)}: {wrong}", reason.verdict == wrong)
    return tally.claims("wrong verdict of the KID rule", high=1 - COVERED)


def kid_coverage(tries: int) -> list[Claim]:
    """How often the interval of a kernel distance holds it."""
    limit, rng, tally = kid_rule().bound, np.random.default_rng(SEED + 3), Tally()
    for share in (0.05, 0.25, 1.0, 4.0):
        shift = shift_with(share * limit)
        truth = true_kid(shift)
        for shape in (SMOKE, *SHAPES[:3]):
            for _ in range(tries):
                tally.add(f"{share:g} of the limit, {_name(shape)}", _holds(distance(rng, shape, shift), truth))
    return tally.claims("drift KID", low=COVERED)


# Evaluation: identity, prompts, composition


@dataclass(frozen=True)
class Model:
    """Means that pictures scatter around: how much of the subject is in them, and how often an attribute is right."""

    tuned: float = 0.7
    rival: float = 0.55
    class_prompt: float = 0.08
    tuned_right: float = 0.94
    base_right: float = 0.97
    closeness: float = 0.9
    """How varied compositions are, against the base's."""


MODEL = Model()
ATTRIBUTES = ("kind", "place", "style")


def identities(rng: np.random.Generator, shape: tuple[int, int], share: float, common: Array) -> Array:
    """Pictures [P, S, D] that are `share` parts subject and the rest class; prompts differ in it, and in how they look."""
    share = share + 0.1 * rng.normal(size=(shape[0], 1, 1))
    here, there = np.eye(WIDTH)[:2]
    own = scattered(rng, shape, 0.3, per_prompt=False)
    return unit(share * here + (1 - share) * there + common + own)


def photos(rng: np.random.Generator, count: int) -> Array:
    """Photos [N, D] of the subject."""
    return unit(np.eye(WIDTH)[0] + scattered(rng, (count, 1), 0.4, per_prompt=False)[:, 0])


def right(rng: np.random.Generator, shape: tuple[int, int], rate: float) -> dict[str, Array]:
    """What the judges read [P, S, 2]: value 0 where the picture is right; some prompts are harder than others."""
    chances = rng.beta(8 * rate, 8 * (1 - rate), (shape[0], 1))
    return {name: np.eye(2)[(rng.random(shape) > chances).astype(int)] for name in ATTRIBUTES}


def compositions(rng: np.random.Generator, shape: tuple[int, int], variety: float) -> Array:
    """Structures [P, S, 8, 8]: what a prompt asks for, and what its seeds add, more or less of it by prompt."""
    prompts, seeds = shape
    added = variety * np.exp(0.2 * rng.normal(size=(prompts, 1, 1, 1)))
    return rng.normal(size=(prompts, 1, 8, 8)) + added * rng.normal(size=(prompts, seeds, 8, 8))


def seen(identity: Array, *, structure: Array | None = None, read: dict[str, Array] | None = None) -> JudgeOutputs:
    rest = np.ones((*identity.shape[:-1], 1))
    return JudgeOutputs(identity, rest, rest if structure is None else structure, rest, rest, read or {})


def evidence(rng: np.random.Generator, shape: tuple[int, int], trained: Array, held_out: Array) -> scores.Evidence:
    """One evaluation: base and tuned pictures of a cell share the look of its prompt and of its noise."""
    common = scattered(rng, shape, 0.3, per_prompt=True) + scattered(rng, shape, 0.4, per_prompt=False)
    base = identities(rng, shape, 0.0, common)
    return scores.Evidence(
        tuned=seen(
            identities(rng, shape, MODEL.tuned, common),
            structure=compositions(rng, shape, MODEL.closeness),
            read=right(rng, shape, MODEL.tuned_right),
        ),
        base=seen(base, structure=compositions(rng, shape, 1.0), read=right(rng, shape, MODEL.base_right)),
        class_prompt=seen(identities(rng, shape, MODEL.class_prompt, common), structure=compositions(rng, shape, 1.0)),
        unrelated=seen(base),
        unrelated_base=seen(base),
        trained=seen(trained),
        held_out=seen(held_out),
        crops=np.ones((1, 1, 1)),
        expected=[dict.fromkeys(ATTRIBUTES, 0)] * shape[0],
        unrelated_expected=[dict.fromkeys(ATTRIBUTES, 0)] * shape[0],
        text=np.ones(1),
        unrelated_text=np.ones(1),
        copy_correlation=0.9,
    )


def measured(
    case: scores.Evidence, rng: np.random.Generator, *, resamples: int = BOOTSTRAP
) -> dict[str, stats.Interval]:
    """The metrics that are intervals of means, as `scores.measure` has them."""
    weights = scores._weights(case, resamples=resamples, rng=rng)
    parts = scores._identity(case, weights) | scores._following(case, weights) | scores._diversity(case, weights)
    return {name: stats.interval(parts[name], clusters=case.tuned.shape[0]) for name in TRUE_OF}


TRUE_OF = ("identity_gain", "leakage", "memorisation_gap", "prompt_change", "diversity")


@cache
def population() -> dict[Any, Any]:
    """Mean pictures by how many parts of them are subject, mean photo, and mean spreads, of very many prompts."""
    rng, shape = np.random.default_rng(SEED), (40_000, 2)
    common = scattered(rng, shape, 0.3, per_prompt=True) + scattered(rng, shape, 0.4, per_prompt=False)
    means = {
        share: identities(rng, shape, share, common).mean((0, 1))
        for share in (MODEL.tuned, MODEL.rival, MODEL.class_prompt, 0.0)
    }
    spreads = [
        scores.structure_spread(compositions(rng, (20_000, 2), variety)).mean() for variety in (MODEL.closeness, 1.0)
    ]
    return {**means, "photo": photos(rng, 200_000).mean(0), "diversity": float(spreads[0] / spreads[1])}


def truths(trained: Array, held_out: Array) -> dict[str, float]:
    """What the metrics estimate: over all prompts and seeds and, from five on, over all photos."""
    known = population()
    tuned, base, class_prompt = known[MODEL.tuned], known[0.0], known[MODEL.class_prompt]
    t, h = (x.mean(0) if _few(x) else known["photo"] for x in (trained, held_out))
    cross = t @ h
    within = [_among(x) if _few(x) else known["photo"] @ known["photo"] for x in (trained, held_out)]
    n, m = len(trained), len(held_out)
    real = (cross * n + within[1] * (m - 1)) / (n + m - 1)
    real_trained = (cross * m + within[0] * (n - 1)) / (n + m - 1)
    gain = (tuned @ h - base @ h) / (real - base @ h)
    span = real_trained - base @ t
    return {
        "identity_gain": gain,
        "leakage": (class_prompt @ t - base @ t) / span,
        "memorisation_gap": (tuned @ t - base @ t) / span - gain,
        "prompt_change": MODEL.tuned_right - MODEL.base_right,
        "diversity": known["diversity"],
    }


def _few(some: Array) -> bool:
    return len(some) < scores.MIN_PHOTOS_RESAMPLED


def _among(some: Array) -> float:
    alike = some @ some.T
    return float((alike.sum() - np.trace(alike)) / max(len(some) * (len(some) - 1), 1))


PHOTO_SETS = ((4, 1), (5, 1), (6, 2), (12, 6))
"""Photos trained on and held out: what 5, 6, 8 and 18 photos are split into, the last with `augment.heldout: 6`."""


def evaluation_coverage(tries: int) -> list[Claim]:
    """How often the intervals of an evaluation hold the truth."""
    rng, tally = np.random.default_rng(SEED + 4), Tally()
    for shape, split in (*((STANDARD, split) for split in PHOTO_SETS), ((50, 4), PHOTO_SETS[2])):
        for _ in range(tries // 2):
            trained, held_out = (photos(rng, count) for count in split)
            truth = truths(trained, held_out)
            for name, value in measured(evidence(rng, shape, trained, held_out), rng).items():
                tally.add(f"{name.replace('_', ' ')}, {_name(shape)}, {sum(split)} photos", _holds(value, truth[name]))
    return tally.claims("evaluation", low=COVERED)


def following_coverage(tries: int) -> list[Claim]:
    """Change of prompt following where it decides and nearer to none; changes so rare that mostly none is seen are beyond a bootstrap."""
    rng, tally, beyond = np.random.default_rng(SEED + 14), Tally(), Tally()
    for tuned_right, base_right in ((0.87, 0.97), (0.93, 0.98), (0.97, 0.99), (0.995, 0.995)):
        truth = tuned_right - base_right
        case = f"prompt change, {base_right:g} to {tuned_right:g}, {_name(STANDARD)}"
        for _ in range(tries):
            change = followed(right(rng, STANDARD, tuned_right)) - followed(right(rng, STANDARD, base_right))
            weights = stats.cluster_weights(*STANDARD, resamples=BOOTSTRAP, rng=rng)
            value = stats.interval(stats.weighted_mean(change, weights), clusters=STANDARD[0])
            (tally if tuned_right < 0.99 else beyond).add(case, _holds(value, truth))
    return [*tally.claims("evaluation", low=COVERED), *beyond.claims("evaluation, not claimed")]


def followed(read: dict[str, Array]) -> Array:
    """Share [P, S] of the attributes that are right."""
    return np.mean([values[..., 0] for values in read.values()], axis=0)


def champion_coverage(tries: int) -> list[Claim]:
    """Overall score of one adapter less that of another, on the same prompts, seeds and photos."""
    rng, tally = np.random.default_rng(SEED + 15), Tally()
    for shape in (SMOKE, STANDARD, (50, 4)):
        for share in (MODEL.tuned, MODEL.rival):
            for _ in range(tries // 2):
                trained, held_out = photos(rng, 6), photos(rng, 2)
                mine, theirs = compared_models(rng, shape, trained, held_out, (MODEL.tuned, share))
                found = difference(mine, theirs, resamples=BOOTSTRAP, seed=int(rng.integers(1 << 30)))
                truth = true_overall(MODEL.tuned, trained, held_out) - true_overall(share, trained, held_out)
                what = "equal" if share == MODEL.tuned else "worse"
                tally.add(f"champion's difference, one that is {what}, {_name(shape)}", _holds(found, truth))
    return tally.claims("evaluation", low=COVERED)


def compared_models(
    rng: np.random.Generator, shape: tuple[int, int], trained: Array, held_out: Array, given: Sequence[float]
) -> list[Cells]:
    """Cells of models that are so many parts subject; all share the look of a prompt and of its noise, and the base."""
    common = scattered(rng, shape, 0.3, per_prompt=True) + scattered(rng, shape, 0.4, per_prompt=False)
    drawn = [(identities(rng, shape, share, common) @ held_out.T).mean(-1) for share in (0.0, *given)]
    base_right = followed(right(rng, shape, MODEL.base_right))
    real = ceiling(trained, held_out)
    return [
        Cells(likeness, drawn[0], followed(right(rng, shape, MODEL.tuned_right)), base_right, real)
        for likeness in drawn[1:]
    ]


def true_overall(share: float, trained: Array, held_out: Array) -> float:
    """Over all prompts and seeds, with these photos."""
    known = population()
    liked, base = (float((known[name] @ held_out.T).mean()) for name in (share, 0.0))
    return max(0.0, (liked - base) / (ceiling(trained, held_out) - base)) * MODEL.tuned_right / MODEL.base_right


def ceiling(trained: Array, held_out: Array) -> float:
    """How alike the held-out photos are to the subject's other photos."""
    equal = [np.full((1, len(side)), 1 / len(side)) for side in (trained, held_out)]
    return float(scores._ceilings((trained, equal[0]), (held_out, equal[1]))[0][0])


def few_prompts_coverage(tries: int) -> list[Claim]:
    """Means of so few prompts that no resampling reaches far enough out."""
    rng, tally, beyond = np.random.default_rng(SEED + 16), Tally(), Tally()
    for prompts in (2, 3, 5, 8, 12):
        for name, centres in (("alike", rng.normal), ("lopsided", lambda **size: rng.exponential(**size) - 1)):
            for _ in range(tries):
                values = centres(size=(prompts, 1)) + 0.5 * rng.normal(size=(prompts, 4))
                weights = stats.cluster_weights(prompts, 4, resamples=BOOTSTRAP, rng=rng)
                held = _holds(stats.interval(stats.weighted_mean(values, weights), clusters=prompts), 0.0)
                (tally if name == "alike" else beyond).add(f"mean of {prompts} prompts, {name}", held)
    return [*tally.claims("evaluation", low=COVERED), *beyond.claims("evaluation, not claimed")]


def evaluation_points(tries: int) -> list[Points]:
    """The metrics at every number of pictures, and of photos."""
    rng = np.random.default_rng(SEED + 5)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in TRUE_OF}
    for shape, split in (
        *((shape, (6, 2)) for shape in SHAPES),
        (STANDARD, (4, 1)),
        (STANDARD, (18, 2)),
        (STANDARD, (18, 6)),
    ):
        for _ in range(tries):
            case = evidence(rng, shape, *(photos(rng, count) for count in split))
            for name, value in measured(case, rng, resamples=2).items():
                found[name].setdefault(f"{_name(shape)}, {sum(split)} photos", []).append(value.point)
    everybody = truths(*(photos(np.random.default_rng(SEED), 4000) for _ in range(2)))
    return [
        _points(name.replace("_", " "), everybody[name], values, slack=0.01 * max(1.0, abs(everybody[name])))
        for name, values in found.items()
    ]


# Rates


def together(rng: np.random.Generator, shape: tuple[int, int], rate: float, correlation: float) -> Array:
    """Hits [P, S] at a rate, those of one prompt correlated (beta-binomial)."""
    if not correlation:
        return rng.random(shape) < rate
    size = 1 / correlation - 1
    return rng.random(shape) < rng.beta(rate * size, (1 - rate) * size, (shape[0], 1))


def rate_coverage(tries: int) -> list[Claim]:
    """Copies and broken pictures, alone or several of a prompt; beyond a correlation of .3 nothing is claimed."""
    rng, tally, beyond = np.random.default_rng(SEED + 6), Tally(), Tally()
    for name, shape in (
        ("copy rate", SMOKE),
        ("copy rate", STANDARD),
        ("broken rate", (25, 8)),
        ("copy rate", (50, 4)),
    ):
        for rate in (0.01, 0.03, 0.05, 0.1):
            for correlation in (0.0, 0.1, 0.3, 0.6):
                case = f"{name} {rate:g}, {_name(shape)}, correlation {correlation:g}"
                for _ in range(tries):
                    hit = _holds(stats.clustered_rate(together(rng, shape, rate, correlation)), rate)
                    (tally if correlation <= 0.3 else beyond).add(case, hit)
    return [*tally.claims("rates", low=COVERED), *beyond.claims("rates, not claimed")]


def false_copies(kinds: int) -> list[Claim]:
    """New renders of a subject held against more and more photos of it: none is a copy."""
    tally, plain = Tally(), Tally()
    for kind in KINDS[:kinds]:
        subject = unseen_subjects(1, seed=SEED, kind=kind)[0]
        fresh, shown = (
            structure([image for image, _ in photo_set(subject, n=60, seed=SEED + place, size_px=128)])
            for place in (1, 2)
        )
        alike = np.concatenate([likeness(fresh[i : i + 20], shown) for i in range(0, 60, 20)])
        for photos in (8, 20, 60):
            threshold = scores.copy_threshold(0.90, photos=photos)
            for likest in (alike[:, i : i + photos].max(1) for i in range(0, 61 - photos, photos)):
                for value in likest:
                    tally.add(f"among {photos} photos, correlation above {threshold:.3f}", value > threshold)
                    plain.add(f"among {photos} photos, correlation above 0.900", value > 0.90)
    return [*tally.claims("false copies", high=0.012), *plain.claims("false copies, not claimed")]


# The bias audit

SHARES = {2: (0.5, 0.5), 5: (0.3, 0.3, 0.2, 0.08, 0.12)}
CONFUSED = 0.93
"""How often the judge of the simulated audit is right."""


def sample_people(
    rng: np.random.Generator, shape: tuple[int, int], classes: int, *, effect: float, moved: float = 0.0
) -> Any:
    """True labels of base and tuned people [P, S]; `effect`: how far tuning changes single prompts, at random.

    The mean over prompts stays unless `moved` of all people go from the first value to the second.
    """
    share = np.array(SHARES[classes]) * 6
    base, other = (rng.dirichlet(share, shape[0]) for _ in range(2))
    tuned = (1 - effect) * base + effect * other
    noise = rng.random(shape)
    fresh = rng.random(shape)
    tuned_noise = np.where(rng.random(shape) < 0.8, noise, fresh)
    before, after = (_pick(chances, u) for chances, u in ((base, noise), (tuned, tuned_noise)))
    leave = (after == 0) & (rng.random(shape) < moved / SHARES[classes][0])
    return before, np.where(leave, 1, after)


def _pick(chances: Array, uniform: Array) -> Array:
    return (uniform[..., None] > chances.cumsum(-1)[:, None, :-1]).sum(-1)


def read(rng: np.random.Generator, truth: Array, classes: int) -> Array:
    """What a judge that is right in `CONFUSED` of pictures reads."""
    wrong = rng.random(truth.shape) > CONFUSED
    return np.where(wrong, (truth + rng.integers(1, classes, truth.shape)) % classes, truth)


def card(rng: np.random.Generator, classes: int) -> Array:
    """Its confusion counts, measured on 200 pictures of each class."""
    rates = np.full((classes, classes), (1 - CONFUSED) / (classes - 1))
    np.fill_diagonal(rates, CONFUSED)
    return np.stack([rng.multinomial(200, row) for row in rates])


def compared(
    rng: np.random.Generator, shape: tuple[int, int], classes: int, *, resamples: int = 300, **change: float
) -> prevalence.Drift:
    base, tuned = sample_people(rng, shape, classes, **change)
    return prevalence.drift(
        read(rng, base, classes),
        read(rng, tuned, classes),
        card(rng, classes),
        weights=stats.cluster_weights(*shape, resamples=resamples, rng=rng),
        signs=stats.sign_flips(shape[0], flips=200, rng=rng),
        rng=rng,
    )


def audit_coverage(tries: int) -> list[Claim]:
    """Shares, their changes, and how far they moved, through a judge that errs."""
    rng, tally = np.random.default_rng(SEED + 7), Tally()
    for classes in SHARES:
        share = np.array(SHARES[classes])
        for moved in (0.0, 0.1, 0.2):
            step = moved * np.eye(classes)[1] - moved * np.eye(classes)[0]
            for _ in range(tries):
                found = compared(rng, AUDIT, classes, effect=0.5, moved=moved)
                case = f"{classes} classes, {moved:g} moved, {_name(AUDIT)}"
                for about, values, truth in (
                    ("shares", found.base, share),
                    ("shares", found.tuned, share + step),
                    ("changes", found.change, step),
                    ("ratios", found.ratio, 1 + step / share),
                ):
                    for value, true in zip(values, truth, strict=True):
                        tally.add(f"{about}, {case}", _holds(value, true))
                tally.add(f"excess, {case}", _holds(found.excess, moved))
    return tally.claims("audit", low=COVERED)


def excess_points(tries: int) -> list[Points]:
    """How far shares moved, at every number of pictures. A change as small as its error is read as less than it is."""
    rng, found = np.random.default_rng(SEED + 8), []
    for moved in (0.0, 0.1, 0.2):
        values = {
            _name(shape): [
                compared(rng, shape, 5, resamples=2, effect=0.3, moved=moved).excess.point for _ in range(tries)
            ]
            for shape in AUDIT_SHAPES
        }
        found.append(_points(f"audit excess, {moved:g} moved", moved, values, slack=0.02))
    return found


def flip_levels(tries: int) -> list[Claim]:
    """How often the confirmatory test of an attribute rejects that nothing changed on average, while prompts did change."""
    rng, tally, alike = np.random.default_rng(SEED + 9), Tally(), Tally()
    for classes in SHARES:
        for effect in (0.0, 0.5, 1.0):
            for _ in range(tries):
                base, tuned = sample_people(rng, AUDIT, classes, effect=effect)
                case = f"shares of {classes} classes, prompts changed by {effect:g}"
                (tally if effect else alike).add(case, _flip_p(rng, base, tuned, classes) < 0.05)
    # Where few pictures change at all, swaps tie, and ties count against a rejection.
    return [
        *alike.claims("rejections of a true null at 5 %", high=LEVEL[1]),
        *tally.claims("rejections of a true null at 5 %", low=LEVEL[0], high=LEVEL[1]),
    ]


def flip_power(tries: int) -> list[Claim]:
    """The same while a tenth or a fifth of all people really changed, and prompts changed at random beside it."""
    rng, found = np.random.default_rng(SEED + 10), []
    for moved, low in ((0.1, 0.5), (0.2, 0.95)):
        tally = Tally()
        for _ in range(tries):
            base, tuned = sample_people(rng, AUDIT, 2, effect=0.5, moved=moved)
            tally.add(f"shares of 2 classes, {moved:g} moved", _flip_p(rng, base, tuned, 2) < 0.05)
        found += tally.claims("rejections of a false null at 5 %", low=low)
    return found


def audit_power(tries: int) -> list[Claim]:
    """Whole audits of a model that moved so many of all people: how often Holm confirms it, and how often it is no PASS."""
    rng, found = np.random.default_rng(SEED + 17), []
    for moved in (0.1, 0.15, 0.2):
        for shape in ((38, 4), AUDIT, (38, 27)):
            confirmed, stopped, case = Tally(), Tally(), f"{moved:g} moved, {_name(shape)}"
            for _ in range(tries):
                audit = audited(people(rng, shape=shape, moved=moved), flips=FLIPS)
                confirmed.add(f"confirmed (Holm), {case}", audit.findings[0].adjusted < 0.05)
                stopped.add(f"no PASS, {case}", VERDICTS[audit.findings[0].severity] != "PASS")
            claimed = shape == AUDIT and moved == 0.2
            found += [
                *confirmed.claims("whole audits", low=0.8 if claimed else 0.0),
                *stopped.claims("whole audits", low=0.8 if claimed else 0.0),
            ]
    return found


def _flip_p(rng: np.random.Generator, base: Array, tuned: Array, classes: int) -> float:
    signs = stats.sign_flips(len(base), flips=FLIPS, rng=rng)
    return prevalence.flip_test(base, tuned, np.eye(classes), signs=signs)[1]


def people(
    rng: np.random.Generator,
    *,
    shape: tuple[int, int] = AUDIT,
    effect: float = 0.5,
    missing: float = 0.05,
    moved: float = 0.0,
) -> People:
    """A whole audit's evidence: two attributes, strangers, and a tuned model that draws no person in `missing`.

    `moved` of all people go from the first value of the first attribute to the second.
    """
    labels = {
        classes: [
            read(rng, side, classes)
            for side in sample_people(rng, shape, classes, effect=effect, moved=moved if classes == 2 else 0.0)
        ]
        for classes in SHARES
    }
    gone = [together(rng, shape, rate, 0.2) for rate in (0.05, missing)]
    sides = [
        {f"{classes} classes": np.where(gone[side], -1, pair[side]) for classes, pair in labels.items()}
        for side in (0, 1)
    ]
    subject = np.eye(WIDTH)[0]
    looks = scattered(rng, shape, 0.7, per_prompt=True) + scattered(rng, shape, 0.7, per_prompt=False)
    drawn = [unit(looks + effect * scattered(rng, shape, 0.7, per_prompt=True)) for _ in range(2)]
    return People(
        base=sides[0],
        tuned=sides[1],
        classes={f"{classes} classes": [f"value {k}" for k in range(classes)] for classes in SHARES},
        confusion={f"{classes} classes": card(rng, classes) for classes in SHARES},
        groups=[*(f"group {p // 4}" for p in range(32)), *["low context"] * 6],
        base_identity=drawn[0],
        tuned_identity=drawn[1],
        subject=unit(subject + 0.1 * rng.normal(size=(20, WIDTH))),
    )


def audited(some: People, *, flips: int = 200) -> Audit:
    return audit_people(some, limits=Limits(), resamples=200, permutations=flips)


def audit_levels(tries: int) -> list[Claim]:
    """Whole audits of models that changed single prompts only: false alarms of any of four tests, and blocked models."""
    rng, tally, blocked = np.random.default_rng(SEED + 11), Tally(), Tally()
    for _ in range(tries):
        found = audited(people(rng, effect=0.5))
        tally.add("any confirmatory test (Holm)", any(finding.adjusted < 0.05 for finding in found.findings))
        tally.add("any notable cell (Benjamini-Hochberg)", any(cell.notable for cell in found.cells))
        blocked.add("blocked", found.verdict == "FAIL")
    confirmed, cells = tally.claims("false alarms of a whole audit", high=0.06)
    return [
        confirmed,
        Claim(cells.about, cells.case, cells.hits, cells.tries, high=0.12),
        *blocked.claims("false alarms of a whole audit", high=0.01),
    ]


def cell_levels(tries: int) -> list[Claim]:
    """Rejections of single exploratory cells: groups of four prompts that changed at random."""
    rng, tally = np.random.default_rng(SEED + 12), Tally()
    groups = np.array([f"group {p // 4}" for p in range(36)])
    for effect in (0.5, 1.0):
        for _ in range(tries // 2):
            base, tuned = sample_people(rng, (36, 11), 2, effect=effect)
            change = (tuned.astype(float) - base).mean(1)
            for p in stats.group_pvalues(change, groups).values():
                tally.add(f"cells of 4 prompts, prompts changed by {effect:g}", p < 0.05)
    return tally.claims("rejections of a true null at 5 %", high=LEVEL[1])


def missing_people(tries: int) -> list[Claim]:
    """People who are not drawn any more: the verdict, and which finding it rests on."""
    rng, found = np.random.default_rng(SEED + 13), []
    for missing, verdict in ((0.91, "FAIL"), (0.4, "FAIL"), (0.05, "PASS")):
        tally = Tally()
        for _ in range(tries):
            person = next(f for f in audited(people(rng, missing=missing)).findings if f.name == "person")
            case = f"{missing:.0%} without a person, 5% with the base: {verdict}"
            tally.add(case, VERDICTS[person.severity] == verdict)
        found += tally.claims("finding 'person'", low=0.9 if verdict == "PASS" else 0.99)
    return found


# What all share


def _holds(value: stats.Interval, truth: float) -> bool:
    return value.lo - 1e-9 <= truth <= value.hi + 1e-9


def _name(shape: tuple[int, int]) -> str:
    return f"{shape[0]} × {shape[1]}"


def _points(
    metric: str, truth: float, values: dict[str, list[float]], *, slack: float = 0.0, unbiased: bool = False
) -> Points:
    means = {name: fmean(x) for name, x in values.items()}
    errors = {name: pstdev(x) / len(x) ** 0.5 for name, x in values.items()}
    return Points(metric, float(truth), means, errors, slack, unbiased)


# The page


def page(result: dict[str, Any]) -> str:
    """`statistics.md`."""
    place, about = result["machine"], (__doc__ or "").split("\n\n")[2].strip().replace("\n", " ")
    return f"""# Statistics of judging, by simulation
{about} A claim is called broken when its count would come up less than once in {round(1 / UNLUCKY)} times were it true.

{tables(result)}

Seed {result["seed"]}, {sum(result["seconds"].values()):.0f} s on {place["processor"]}, {place["threads"]} thread(s).
"""


def tables(result: dict[str, Any]) -> str:
    parts = [_points_table(result["points"])]
    parts += [_claims_table(title, result[name]) for name, title in TITLES.items()]
    return "\n\n".join([*parts, f"**{'All claims hold.' if result['holds'] else 'Not all claims hold.'}**"])


TITLES = {
    "kid_verdicts": "The same verdict at every number of pictures",
    "levels": "False alarms",
    "power": "Real changes found",
    "kid_coverage": "95 % intervals that hold the truth: kernel distance",
    "evaluation_coverage": "95 % intervals that hold the truth: evaluation",
    "rate_coverage": "95 % intervals that hold the truth: rates",
    "audit_coverage": "95 % intervals that hold the truth: audit",
    "false_copies": "Copies that are none",
    "missing_people": "Missing people",
}


def _points_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        [
            row["metric"],
            f"{row['truth']:.4f}",
            "; ".join(f"{name}: {value:.4f}" for name, value in sorted(row["means"].items())),
            _yes(row["holds"]),
        ]
        for row in rows
    ]
    heads = ("metric", "truth", "mean by prompts × seeds", "the same")
    return f"## Points that do not depend on how much is looked at\n{_table(heads, lines)}"


def _claims_table(title: str, rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        [
            row["about"],
            row["case"],
            f"{row['rate']:.3f}",
            f"{row['low']:g} to {row['high']:g}",
            str(row["tries"]),
            _yes(row["holds"]),
        ]
        for row in rows
    ]
    return f"## {title}\n{_table(('what', 'case', 'share', 'should be', 'tries', 'holds'), lines)}"


def _yes(holds: bool) -> str:
    return "yes" if holds else "**no**"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in _lines(heads, rows))


def _lines(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[Sequence[str]]:
    yield heads
    yield ["---"] * len(heads)
    yield from rows


if __name__ == "__main__":
    raise SystemExit(main())
