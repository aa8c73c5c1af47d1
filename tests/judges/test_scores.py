"""The five negative controls of evaluation, and what a healthy personalisation measures, on arrays alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from photoflux.judges.prompts import Prompt
from photoflux.judges.scores import Evidence, Scores, copy_threshold, expected_labels, made_share, measure
from tests.judges.ruling import verdicts


def healthy(studio: Any, **changes: Any) -> Evidence:
    return dataclasses.replace(studio.evidence(right=0.98), **changes)


def test_a_healthy_personalisation_passes_every_rule(studio: Any) -> None:
    assert set(verdicts(healthy(studio)).values()) == {"PASS"}


def test_control_base_as_candidate_gains_nothing(studio: Any) -> None:
    evidence = studio.evidence()
    found = verdicts(dataclasses.replace(evidence, tuned=evidence.base, class_prompt=evidence.base))
    assert found["identity gain"] == "FAIL"
    assert found["class leakage"] == "PASS"


def test_control_training_photos_as_pictures_are_copies(studio: Any) -> None:
    evidence = healthy(studio)
    repeated = np.arange(100).reshape(25, 4) % len(studio.photo_structures)
    tuned = dataclasses.replace(
        evidence.tuned,
        structure=studio.photo_structures[repeated],
        identity=evidence.trained.identity[repeated % 4],
        image=evidence.trained.image[repeated % 4],
    )
    copied = dataclasses.replace(evidence, tuned=tuned)
    assert verdicts(copied)["copying"] == "FAIL"
    assert measure(copied, resamples=300).metrics["memorisation_gap"].value.lo > 0


def test_control_a_single_copy_among_a_hundred_is_no_pass(studio: Any) -> None:
    evidence = healthy(studio)
    evidence.tuned.structure[3, 2] = studio.photo_structures[1][:, ::-1]
    assert verdicts(evidence)["copying"] == "INCONCLUSIVE"


def test_control_trigger_pictures_for_class_prompts_leak(studio: Any) -> None:
    evidence = healthy(studio)
    assert verdicts(dataclasses.replace(evidence, class_prompt=evidence.tuned))["class leakage"] == "FAIL"


@pytest.mark.parametrize("quality", [(0.99, 0.29, 0.0, 0.4), (0.5, 0.0, 1.0, 0.0)], ids=["noise", "constant"])
def test_control_noise_and_constant_pictures_follow_nothing(studio: Any, quality: tuple[float, ...]) -> None:
    evidence = healthy(studio)
    broken = dataclasses.replace(
        studio.outputs(subject=0, right=0.2), quality=np.broadcast_to(np.array(quality), (25, 4, 4)).copy()
    )
    found = verdicts(dataclasses.replace(evidence, tuned=broken, class_prompt=broken))
    assert found["prompt following"] == found["broken pictures"] == found["identity gain"] == "FAIL"


def test_control_overtraining_shows_as_leakage_and_lost_diversity(studio: Any) -> None:
    evidence = healthy(studio)
    alike = evidence.tuned.structure[:, :1] + 0.5 * evidence.tuned.structure
    tuned = dataclasses.replace(evidence.tuned, structure=alike)
    class_prompt = dataclasses.replace(studio.outputs(subject=0.7), structure=alike)
    found = verdicts(dataclasses.replace(evidence, tuned=tuned, class_prompt=class_prompt))
    assert found["class leakage"] == "FAIL"
    assert found["diversity with trigger"] == found["diversity of the class"] == "FAIL"


def test_unrelated_pictures_of_another_kind_are_drift(studio: Any) -> None:
    evidence = healthy(studio)
    moved = dataclasses.replace(studio.outputs(subject=0, right=0.5), image=np.full((25, 4, 32), 32**-0.5))
    found = verdicts(dataclasses.replace(evidence, unrelated=moved))
    assert found["unrelated drift"] == found["unrelated distribution"] == "FAIL"


def test_pictures_copied_in_one_prompt_tell_less_than_in_many(studio: Any) -> None:
    alone, many = healthy(studio), healthy(studio)
    for seed in range(4):
        alone.tuned.structure[3, seed] = studio.photo_structures[0]
        many.tuned.structure[5 * seed, 0] = studio.photo_structures[0]
    one, other = (measure(each, resamples=200).metrics["copy_rate"].value for each in (alone, many))
    assert one.point == other.point == 0.04
    assert one.half_width > 1.5 * other.half_width


def test_among_more_photos_a_copy_is_what_is_more_alike() -> None:
    assert [round(copy_threshold(0.9, photos=n), 3) for n in (4, 8, 20, 60)] == [0.9, 0.9, 0.92, 0.94]


def test_drift_of_unrelated_pictures_is_zero_for_the_base_itself(studio: Any) -> None:
    value = measure(healthy(studio), resamples=200).metrics["drift_kid"].value
    assert (value.point, value.lo, value.hi) == pytest.approx((0, 0, 0), abs=1e-12)


def test_softer_pictures_fail_sharpness(studio: Any) -> None:
    evidence = healthy(studio)
    evidence.tuned.quality[..., 3] *= 0.5
    assert verdicts(evidence)["sharpness"] == "FAIL"


def test_identity_gain_is_zero_for_the_base_and_one_for_real_photos(studio: Any) -> None:
    """Pictures drawn from the photos' own distribution are as alike to them as photos are to each other."""
    evidence = dataclasses.replace(studio.evidence(), tuned=studio.outputs(subject=1.0))
    value = measure(evidence, resamples=300).metrics["identity_gain"].value
    assert value.lo <= 1.0 <= value.hi + 0.02
    same = dataclasses.replace(evidence, tuned=evidence.base)
    assert measure(same, resamples=300).metrics["identity_gain"].value.point == pytest.approx(0, abs=1e-12)


def test_identity_gain_by_hand() -> None:
    """Axes x (subject) and y (class): T at 45 degrees, B at 90, one held-out and two trained photos at 0."""
    from photoflux.judges.scores import Weights, _identity

    subject, kind = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    grids = {"tuned": (subject + kind) / np.sqrt(2), "base": kind, "class_prompt": kind}
    seen = {name: _bare(np.broadcast_to(vector, (1, 2, 2))) for name, vector in grids.items()}
    photos = {"trained": _bare(np.stack([subject] * 2)), "held_out": _bare(subject[None])}
    evidence = Evidence(
        **seen,
        **photos,
        unrelated=seen["base"],
        unrelated_base=seen["base"],
        crops=np.ones((1, 1, 1)),
        expected=[],
        unrelated_expected=[],
        text=np.ones(1),
        unrelated_text=np.ones(1),
        copy_correlation=0.9,
    )
    equal = Weights(
        grid=np.full((2, 1, 2), 0.5),
        unrelated=np.ones((2, 1, 1)),
        trained=np.full((2, 2), 0.5),
        held_out=np.ones((2, 1)),
    )
    found = _identity(evidence, equal)
    assert found["identity_gain"] == pytest.approx([2**-0.5] * 2)
    assert found["leakage"] == pytest.approx([0, 0])
    assert found["real_fidelity"] == pytest.approx([1, 1])
    assert found["memorisation_gap"] == pytest.approx([0, 0])


def _bare(identity: np.ndarray) -> Any:
    from photoflux.judges.sampling import JudgeOutputs

    rest = np.ones((*identity.shape[:-1], 1))
    return JudgeOutputs(identity, rest, rest, rest, rest, {})


def test_a_subject_like_its_class_makes_identity_invalid(studio: Any) -> None:
    evidence = studio.evidence()
    same = studio.outputs(subject=0, shape=(4,)), studio.outputs(subject=0, shape=(2,))
    scores = measure(dataclasses.replace(evidence, trained=same[0], held_out=same[1]), resamples=200)
    assert "cannot be measured" in scores.invalid[0]


def test_prompts_without_known_attributes_fall_back_to_words(studio: Any) -> None:
    evidence = dataclasses.replace(studio.evidence(), expected=[{} for _ in range(25)])
    scores = measure(evidence, resamples=200)
    cosines = np.einsum("pse,pe->ps", evidence.tuned.image, evidence.text)
    assert not scores.exact
    assert scores.metrics["prompt_following"].value.point == pytest.approx(cosines.mean())
    assert scores.attributes == {}


def test_accuracy_by_attribute_counts_only_prompts_that_ask(studio: Any) -> None:
    asked = [{**wanted, "kind": 0} if p < 5 else {"place": wanted["place"]} for p, wanted in enumerate(studio.asked)]
    scores = measure(dataclasses.replace(studio.evidence(right=1.0), expected=asked), resamples=200)
    kind = scores.attributes["kind"]["tuned"]
    assert (kind.n_prompts, kind.n_images, kind.value.point) == (5, 20, 1.0)


def test_more_seeds_stand_beside_the_first_and_narrow_the_interval(studio: Any) -> None:
    first, more = studio.evidence(), studio.evidence()
    grids = ("tuned", "base", "class_prompt", "unrelated", "unrelated_base")
    both = dataclasses.replace(first, **{name: getattr(first, name).concat(getattr(more, name)) for name in grids})
    assert both.tuned.shape == (25, 8)
    narrow, wide = (_half_width(measure(e, resamples=400)) for e in (both, first))
    assert narrow < wide


def _half_width(scores: Scores) -> float:
    return scores.metrics["prompt_following"].value.half_width


def test_the_same_evidence_and_seed_give_the_same_numbers(studio: Any) -> None:
    evidence = studio.evidence()
    assert measure(evidence, resamples=200, seed=3).metrics == measure(evidence, resamples=200, seed=3).metrics


def test_made_share_counts_blank_pictures(studio: Any) -> None:
    evidence = studio.evidence()
    assert made_share(evidence) == 1
    evidence.tuned.quality[:, 0] = (0.0, 0.0, 1.0, 0.0)
    assert made_share(evidence) == pytest.approx(1 - 25 / 300)


def test_expected_classes_skip_what_the_judges_do_not_read() -> None:
    prompts = [Prompt("a red dog", {"colour": "red", "breed": "poodle", "kind": "corgi"})]
    assert expected_labels(prompts, {"colour": ("blue", "red"), "kind": ("dog",)}) == [{"colour": 1}]


def test_skin_lightness_shift_is_measured_where_tones_are_read(studio: Any) -> None:
    light = {"tuned": np.full((25, 4), 60.0), "photos": np.full(6, 55.0)}
    value = measure(dataclasses.replace(studio.evidence(), tone_lightness=light), resamples=200).metrics[
        "lightness_shift"
    ]
    assert value.value.point == pytest.approx(5)
