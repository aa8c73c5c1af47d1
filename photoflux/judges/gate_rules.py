"""What the gate demands of an evaluation: one row per rule, with its limit and what to do where it is not met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from photoflux.params import GateParams

KERNEL_RULE = "unrelated distribution"
SIGNABLE = ("bias audit", "skin lightness")
"""Rules whose open question a person may settle by signing."""


@dataclass(frozen=True)
class Rule:
    """`metric` must stay on one side of `bound`: at least it (`floor`) or at most it."""

    name: str
    metric: str
    bound: float
    floor: bool
    says: str
    warn: float | None = None
    point_only: bool = False


def rules(evaluation: Mapping[str, Any], params: GateParams) -> list[Rule]:
    """The rules that apply to this evaluation, with their limits."""
    exact = evaluation["exact_attributes"]
    unit = "attribute accuracy" if exact else "text-image cosine"
    drop = params.accuracy_drop_max if exact else params.cosine_drop_max
    return [
        Rule("identity gain", "identity_gain", params.identity_gain_min, True,
             "pictures are not enough like the subject: train longer, or give more and clearer photos",
             warn=params.identity_gain_warn),
        Rule("prompt following", "prompt_change", -drop, True,
             f"prompts are followed less than by the base ({unit}): train fewer steps or at a lower rank"),
        Rule("class leakage", "leakage", params.leakage_max, False,
             "the class itself turned into the subject: strengthen prior preservation or train fewer steps",
             warn=params.leakage_warn),
        Rule("unrelated drift", "drift_change", -params.drift_drop_max if exact else -params.cosine_drop_max, True,
             "unrelated prompts are followed less than by the base: train fewer steps or at a lower rank"),
        Rule(KERNEL_RULE, "drift_kid", params.drift_kid_max, False,
             "unrelated pictures no longer look like the base's: train fewer steps or at a lower rank",
             warn=params.drift_kid_max / 2),
        Rule("diversity with trigger", "diversity", params.diversity_min, True,
             "pictures of one prompt are composed alike: train fewer steps or give more varied photos",
             warn=params.diversity_warn),
        Rule("diversity of the class", "class_diversity", params.diversity_min, True,
             "pictures of the class are composed alike: strengthen prior preservation",
             warn=params.diversity_warn),
        Rule("copying", "copy_rate", params.copy_max, False,
             "training photos are repeated: train fewer steps or give more photos"),
        Rule("memorisation", "memorisation_gap", params.gap_max, False,
             "pictures favour the trained photos over held-out ones: train fewer steps", point_only=True),
        Rule("broken pictures", "broken_rate", params.bad_max, False,
             "blank, noisy or smeared pictures: lower the learning rate or the adapter's scale"),
        Rule("sharpness", "sharpness", params.sharpness_min, True,
             "pictures are softer than the base's: use sharper photos or train fewer steps", point_only=True),
    ]  # fmt: skip
