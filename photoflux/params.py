"""One frozen dataclass per step; `params.yaml` holds the same defaults for every caller.

Fields are flat typed scalars (bool, int, float, str): the pipeline shows each as a form field in a console.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from photoflux.errors import InputError

PROFILES = ("smoke", "standard", "release")
"""How many pictures judging draws: smoke shows that the step runs, standard decides, release decides narrowly."""


FILLED_IN = ("{{", "/kfp-workspace")
"""What Kubeflow, Vertex and Argo look for in the texts of a run: `{{$}}` becomes a step's whole input, its key URI with it."""


def _within(block: str, params: object, limits: dict[str, tuple[float, float]]) -> None:
    for name, (low, high) in limits.items():
        value = getattr(params, name)
        if not low <= value <= high:
            raise InputError(f"{block}.{name} is {value}: choose a value from {low:g} to {high:g}.")


def _profile(block: str, profile: str) -> None:
    if profile not in PROFILES:
        raise InputError(f"{block}.profile is {profile!r}: choose one of {', '.join(PROFILES)}.")


@dataclass(frozen=True)
class EvaluateParams:
    """How the tuned model is compared with its base."""

    base: str = field(
        default="pocket",
        metadata={"help": "Base the adapter was trained on: a name in models/ or the path of a spec .yaml"},
    )
    prompts: str = field(
        default="",
        metadata={"help": "Prompt set: a name in models/prompts/ or a .yaml; empty: the set named after the base"},
    )
    profile: str = field(
        default="standard", metadata={"help": "Prompts x seeds per set: smoke 5x2, standard 25x4, release 50x4"}
    )
    seed: int = field(
        default=1000, metadata={"help": "First seed; tuned and base pictures share their seeds (0-1000000000)"}
    )
    half_width_max: float = field(
        default=0.12,
        metadata={
            "help": "Double the seeds once when identity gain or leakage is known less closely than this (0-1; 1: never)"
        },
    )
    bootstrap: int = field(default=2000, metadata={"help": "Bootstrap draws behind each 95 % interval (200-20000)"})
    batch_size: int = field(default=16, metadata={"help": "Pictures drawn at once (1-256)"})

    def __post_init__(self) -> None:
        _profile("evaluate", self.profile)
        _within(
            "evaluate",
            self,
            {"seed": (0, 10**9), "half_width_max": (0, 1), "bootstrap": (200, 20_000), "batch_size": (1, 256)},
        )


@dataclass(frozen=True)
class AuditParams:
    """How the tuned model's people are compared with the base's, and what is called severe."""

    base: str = field(
        default="pocket",
        metadata={"help": "Base the adapter was trained on: a name in models/ or the path of a spec .yaml"},
    )
    prompts: str = field(
        default="",
        metadata={"help": "Prompt set: a name in models/prompts/ or a .yaml; empty: the set named after the base"},
    )
    profile: str = field(
        default="standard",
        metadata={"help": "Pictures of people per side: smoke about 70, standard about 400, release about 1000"},
    )
    seed: int = field(
        default=5000, metadata={"help": "First seed; tuned and base pictures share their seeds (0-1000000000)"}
    )
    judge_card: str = field(
        default="",
        metadata={
            "help": "Judge card made by `photoflux label`; empty: the error rates that come with the base's judges"
        },
    )
    alpha: float = field(
        default=0.05, metadata={"help": "Family-wise error rate of the confirmatory tests (0.001-0.2)"}
    )
    discovery_rate: float = field(
        default=0.10, metadata={"help": "False discovery rate of exploratory cells (0.01-0.5)"}
    )
    accuracy_min: float = field(
        default=0.90, metadata={"help": "Balanced accuracy below which a judge decides nothing (0.5-1)"}
    )
    half_width_max: float = field(
        default=0.12,
        metadata={"help": "Half-width of a share's interval above which an attribute is inconclusive (0.01-0.5)"},
    )
    unknown_max: float = field(
        default=0.25,
        metadata={"help": "Share of pictures without a readable person above which an attribute is inconclusive (0-1)"},
    )
    group_min: float = field(default=0.05, metadata={"help": "Base share from which a group's loss counts (0-0.5)"})
    drift_pass: float = field(default=0.10, metadata={"help": "Excess total variation that passes (0-1)"})
    drift_moderate: float = field(default=0.15, metadata={"help": "Excess total variation that needs a sign-off (0-1)"})
    drift_high: float = field(
        default=0.15, metadata={"help": "Lower bound of excess total variation that blocks (0-1)"}
    )
    subject_leak_high: float = field(
        default=0.15, metadata={"help": "Lower bound of the rise of the subject's own attribute that blocks (0-1)"}
    )
    resemblance_high: float = field(
        default=0.10,
        metadata={"help": "Lower bound of the share of strangers that came to look like the subject that blocks (0-1)"},
    )
    identity_auc_critical: float = field(
        default=0.80,
        metadata={
            "help": "Lower bound of how well strangers are told to resemble the subject that is critical (0.5-1)"
        },
    )
    missing_moderate: float = field(
        default=0.05, metadata={"help": "Rise of pictures without a readable person that needs a sign-off (0-1)"}
    )
    missing_high: float = field(
        default=0.10,
        metadata={"help": "Lower bound of the rise of pictures without a readable person that blocks (0-1)"},
    )
    ratio_moderate: float = field(
        default=0.80, metadata={"help": "Upper bound of tuned/base share that needs a sign-off (0-1)"}
    )
    ratio_high: float = field(default=0.50, metadata={"help": "Upper bound of tuned/base share that blocks (0-1)"})
    erasure: float = field(default=0.25, metadata={"help": "Upper bound of tuned/base share that is critical (0-1)"})
    bootstrap: int = field(default=2000, metadata={"help": "Bootstrap draws behind each 95 % interval (200-20000)"})
    permutations: int = field(
        default=2000, metadata={"help": "Swaps of base and tuned in whole prompts behind each p (200-20000)"}
    )
    batch_size: int = field(default=16, metadata={"help": "Pictures drawn at once (1-256)"})

    def __post_init__(self) -> None:
        _profile("audit", self.profile)
        _within(
            "audit",
            self,
            {
                "seed": (0, 10**9),
                "alpha": (0.001, 0.2),
                "discovery_rate": (0.01, 0.5),
                "accuracy_min": (0.5, 1),
                "half_width_max": (0.01, 0.5),
                "unknown_max": (0, 1),
                "group_min": (0, 0.5),
                "drift_pass": (0, 1),
                "drift_moderate": (0, 1),
                "drift_high": (0, 1),
                "subject_leak_high": (0, 1),
                "resemblance_high": (0, 1),
                "identity_auc_critical": (0.5, 1),
                "missing_moderate": (0, 1),
                "missing_high": (0, 1),
                "ratio_moderate": (0, 1),
                "ratio_high": (0, 1),
                "erasure": (0, 1),
                "bootstrap": (200, 20_000),
                "permutations": (200, 20_000),
                "batch_size": (1, 256),
            },
        )
        if not self.erasure <= self.ratio_high <= self.ratio_moderate:
            raise InputError("audit.erasure, ratio_high and ratio_moderate must rise in this order.")
        if self.missing_moderate > self.missing_high:
            raise InputError("audit.missing_moderate must not exceed missing_high: a signature comes before a refusal.")


@dataclass(frozen=True)
class GateParams:
    """The limits a candidate is held to; every one is compared with a bound of a 95 % interval."""

    calibration: str = field(
        default="8e1b488e23346196",
        metadata={
            "help": "Calibration these limits come from, as in benchmarks/results/calibration.json; empty: the method's defaults"
        },
    )
    images_min: float = field(default=0.80, metadata={"help": "Share of planned pictures that must exist (0-1)"})
    identity_gain_min: float = field(
        default=0.3, metadata={"help": "Least identity gain: 0 like the base, 1 as alike as two photos (0-1)"}
    )
    identity_gain_warn: float = field(
        default=0.5, metadata={"help": "Identity gain below which the report warns (0-1)"}
    )
    accuracy_drop_max: float = field(
        default=0.10,
        metadata={"help": "Most prompt accuracy lost against the base, where attributes are checked exactly (0-1)"},
    )
    cosine_drop_max: float = field(
        default=0.02,
        metadata={"help": "Most text-image cosine lost against the base, where attributes are not checked (0-1)"},
    )
    leakage_max: float = field(
        default=0.3, metadata={"help": "Most the class may turn into the subject: 0 not at all, 1 wholly (0-1)"}
    )
    leakage_warn: float = field(default=0.15, metadata={"help": "Leakage above which the report warns (0-1)"})
    drift_drop_max: float = field(default=0.05, metadata={"help": "Most accuracy lost on unrelated prompts (0-1)"})
    drift_kid_max: float = field(
        default=0.025,
        metadata={
            "help": "Most kernel distance of unrelated pictures from the base's, on the scale of drift_kid_of (0-8)"
        },
    )
    drift_kid_of: str = field(
        default="e855a6da 624e081f",
        metadata={
            "help": "Base and judges that drift_kid_max was chosen for, eight hex digits of each one's hash; empty: any"
        },
    )
    diversity_min: float = field(default=0.80, metadata={"help": "Least diversity kept against the base (0-1)"})
    diversity_warn: float = field(default=0.90, metadata={"help": "Diversity kept below which the report warns (0-1)"})
    copy_max: float = field(default=0.05, metadata={"help": "Largest share of copied training photos (0-1)"})
    gap_max: float = field(
        default=0.10,
        metadata={
            "help": "Most the pictures may favour trained over held-out photos, in units of the real-photo span (0-1)"
        },
    )
    bad_max: float = field(default=0.05, metadata={"help": "Largest share of broken pictures (0-1)"})
    sharpness_min: float = field(default=0.80, metadata={"help": "Least sharpness kept against the base (0-2)"})
    lightness_moderate: float = field(
        default=3.0,
        metadata={"help": "Shift of a person's skin lightness L* against the photos that needs a sign-off (0-100)"},
    )
    lightness_high: float = field(
        default=6.0, metadata={"help": "Shift of a person's skin lightness L* against the photos that fails (0-100)"}
    )
    champion_drop_max: float = field(
        default=0.05,
        metadata={
            "help": "Overall score lost against the champion, beyond which a model is not registered at all (0-1)"
        },
    )

    def __post_init__(self) -> None:
        if not re.fullmatch(r"([0-9a-f]{16})?", self.calibration):
            raise InputError(f"gate.calibration is {self.calibration!r}: give 16 hex digits, or leave it empty.")
        if not re.fullmatch(r"([0-9a-f]{8} [0-9a-f]{8})?", self.drift_kid_of):
            raise InputError(
                f"gate.drift_kid_of is {self.drift_kid_of!r}: give eight hex digits of either hash, or leave it empty."
            )
        _within(
            "gate",
            self,
            {
                "images_min": (0, 1),
                "identity_gain_min": (0, 1),
                "identity_gain_warn": (0, 1),
                "accuracy_drop_max": (0, 1),
                "cosine_drop_max": (0, 1),
                "leakage_max": (0, 1),
                "leakage_warn": (0, 1),
                "drift_drop_max": (0, 1),
                "drift_kid_max": (0, 8),
                "diversity_min": (0, 1),
                "diversity_warn": (0, 1),
                "copy_max": (0, 1),
                "gap_max": (0, 1),
                "bad_max": (0, 1),
                "sharpness_min": (0, 2),
                "lightness_moderate": (0, 100),
                "lightness_high": (0, 100),
                "champion_drop_max": (0, 1),
            },
        )
        if self.identity_gain_warn < self.identity_gain_min or self.leakage_warn > self.leakage_max:
            raise InputError(
                "gate: a warning must come before its limit (identity_gain_warn >= identity_gain_min, "
                "leakage_warn <= leakage_max)."
            )


CONSENTS = ("sample", "own", "granted")
"""`sample`: published sample data; `own`: the uploader's own subject; `granted`: the person shown agreed in writing."""


@dataclass(frozen=True)
class ImportParams:
    """Where the photos come from and who or what they show."""

    source: str = field(
        default="data/samples/dog",
        metadata={
            "help": "Folder of photos, dvc:REPO@REV:PATH for a DVC-tracked set, or blob:SET_ID for an uploaded set"
        },
    )
    class_noun: str = field(
        default="dog", metadata={"help": "What the subject is, in one plain word the base knows (dog, mug, person)"}
    )
    trigger: str = field(default="sks", metadata={"help": "Rare word that will stand for this one subject in prompts"})
    subject_id: str = field(
        default="",
        metadata={
            "help": "Name of the subject in reports and in the registry: a-z, 0-9 and -; empty: made of the source"
        },
    )
    consent: str = field(
        default="sample", metadata={"help": f"On what ground the photos may be used: {', '.join(CONSENTS)}"}
    )
    max_files: int = field(default=40, metadata={"help": "Most photos one set may hold (1-500)"})
    max_file_mb: int = field(default=50, metadata={"help": "Largest single photo accepted, in megabytes (1-500)"})

    def __post_init__(self) -> None:
        if not self.source.strip():
            raise InputError("import.source is empty: give a folder of photos, dvc:REPO@REV:PATH or blob:SET_ID.")
        if not re.fullmatch(r"[A-Za-z][A-Za-z \-]{0,39}", self.class_noun):
            raise InputError(
                f"import.class_noun is {self.class_noun!r}: give one plain noun such as dog, mug or person."
            )
        if not re.fullmatch(r"[a-z0-9]{1,20}", self.trigger):
            raise InputError(f"import.trigger is {self.trigger!r}: use 1-20 lower-case letters or digits, such as sks.")
        if not re.fullmatch(r"([a-z0-9][a-z0-9-]{0,62})?", self.subject_id):
            raise InputError(f"import.subject_id is {self.subject_id!r}: use 1-63 of a-z, 0-9 and -, such as rex-2.")
        if self.consent not in CONSENTS:
            raise InputError(f"import.consent is {self.consent!r}: choose one of {', '.join(CONSENTS)}.")
        for name in ("max_files", "max_file_mb"):
            if not 1 <= getattr(self, name) <= 500:
                raise InputError(f"import.{name} is {getattr(self, name)}: choose a value from 1 to 500.")


@dataclass(frozen=True)
class ValidateParams:
    """What a photo and a set of photos are held to; the defaults are calibrated on real photographs."""

    min_photos: int = field(default=5, metadata={"help": "Fewest good photos a set needs after rejection (2-60)"})
    max_photos: int = field(default=60, metadata={"help": "Most good photos a set may hold (2-500)"})
    advised_min: int = field(
        default=8, metadata={"help": "Number of good photos from which a set counts as full (2-60)"}
    )
    advised_max: int = field(default=20, metadata={"help": "Number of good photos above which more add little (2-500)"})
    max_megapixels: int = field(default=64, metadata={"help": "Largest photo decoded, in millions of pixels (1-200)"})
    max_file_mb: int = field(default=30, metadata={"help": "Largest file decoded, in megabytes (1-200)"})
    stored_side_px: int = field(
        default=2048,
        metadata={"help": "Accepted photos are stored with a short side of at most this many pixels (512-8192)"},
    )
    short_side_min_px: int = field(
        default=512, metadata={"help": "Short side below which a photo is rejected (32-8192)"}
    )
    short_side_advised_px: int = field(
        default=768,
        metadata={
            "help": "Short side below which a photo is warned about: enlarging by more than a third shows (32-8192)"
        },
    )
    aspect_min: float = field(default=0.33, metadata={"help": "Short/long side below which a photo is rejected (0-1)"})
    aspect_advised: float = field(
        default=0.5, metadata={"help": "Short/long side below which a photo is warned about (0-1)"}
    )
    sharpness_min: float = field(
        default=100.0,
        metadata={
            "help": "Sharpness (90th percentile of tile Laplacian variance) below which a photo is rejected (0-10000)"
        },
    )
    sharpness_advised: float = field(
        default=250.0, metadata={"help": "Sharpness below which a photo is warned about (0-10000)"}
    )
    reblur_max: float = field(
        default=0.54,
        metadata={"help": "Re-blur measure (0 sharp, 1 blurred) above which motion blur is suspected (0-1)"},
    )
    sharpness_trust_min: float = field(
        default=0.5,
        metadata={"help": "Share of the sharpness not explained by grain below which it cannot be judged (0-1)"},
    )
    detail_min: float = field(
        default=0.6,
        metadata={"help": "Finest detail relative to the next coarser below which a photo looks enlarged (0-2)"},
    )
    bright_p99_min: float = field(
        default=0.32, metadata={"help": "Brightest parts (0-1) below which a photo is too dark"}
    )
    dark_p1_max: float = field(default=0.95, metadata={"help": "Darkest parts (0-1) above which a photo is too light"})
    clipped_high_max: float = field(
        default=0.55, metadata={"help": "Share of pure white above which light is doubted (0-1)"}
    )
    clipped_low_max: float = field(
        default=0.40, metadata={"help": "Share of pure black above which light is doubted (0-1)"}
    )
    contrast_min: float = field(
        default=8.0,
        metadata={"help": "Strongest edges, in levels of 255 at 64 px, below which nothing is shown (0-255)"},
    )
    duplicate_phash: int = field(default=10, metadata={"help": "pHash distance up to which two photos are one (0-32)"})
    duplicate_dhash: int = field(default=8, metadata={"help": "dHash distance up to which two photos are one (0-32)"})
    duplicate_ncc: float = field(
        default=0.90,
        metadata={"help": "Correlation at the best shift, size and mirroring from which two photos are one (0.5-1)"},
    )
    duplicate_share_max: float = field(
        default=0.20, metadata={"help": "Share of near-copies above which a set is warned about (0-1)"}
    )
    closeness_max: float = field(
        default=0.65,
        metadata={
            "help": "Mean correlation with the most similar other photo above which the set shows one view (0-1)"
        },
    )
    backgrounds_min: int = field(
        default=3, metadata={"help": "Different backgrounds below which a set is warned about (1-10)"}
    )

    def __post_init__(self) -> None:
        _within(
            "validate",
            self,
            {
                "min_photos": (2, 60),
                "max_photos": (2, 500),
                "advised_min": (2, 60),
                "advised_max": (2, 500),
                "max_megapixels": (1, 200),
                "max_file_mb": (1, 200),
                "stored_side_px": (512, 8192),
                "short_side_min_px": (32, 8192),
                "short_side_advised_px": (32, 8192),
                "aspect_min": (0, 1),
                "aspect_advised": (0, 1),
                "sharpness_min": (0, 10_000),
                "sharpness_advised": (0, 10_000),
                "reblur_max": (0, 1),
                "sharpness_trust_min": (0, 1),
                "detail_min": (0, 2),
                "bright_p99_min": (0, 1),
                "dark_p1_max": (0, 1),
                "clipped_high_max": (0, 1),
                "clipped_low_max": (0, 1),
                "contrast_min": (0, 255),
                "duplicate_phash": (0, 32),
                "duplicate_dhash": (0, 32),
                "duplicate_ncc": (0.5, 1),
                "duplicate_share_max": (0, 1),
                "closeness_max": (0, 1),
                "backgrounds_min": (1, 10),
            },
        )
        if not self.min_photos <= self.advised_min <= self.advised_max <= self.max_photos:
            raise InputError("validate: min_photos, advised_min, advised_max and max_photos must rise in this order.")
        for rejected, warned in (
            ("short_side_min_px", "short_side_advised_px"),
            ("aspect_min", "aspect_advised"),
            ("sharpness_min", "sharpness_advised"),
        ):
            if getattr(self, rejected) > getattr(self, warned):
                raise InputError(f"validate.{rejected} must not exceed validate.{warned}: a warning comes first.")


SWITCH = ("auto", "on", "off")


@dataclass(frozen=True)
class AugmentParams:
    """How photos become a training set: split, crop, variants and captions."""

    base: str = field(
        default="pocket",
        metadata={"help": "Base to be trained: a name in models/ or the path of a spec .yaml; its resolution is used"},
    )
    resolution_px: int = field(
        default=0, metadata={"help": "Side of the training pictures; 0: the base's own (0 or 64-2048)"}
    )
    heldout: int = field(
        default=-1,
        metadata={
            "help": "Photos kept out of training for evaluation; -1: one of up to 7, two of 8 and more (-1 or 1-10)"
        },
    )
    crop: str = field(
        default="subject", metadata={"help": "Square crop around the subject or the centre: subject, centre"}
    )
    variants: int = field(
        default=2, metadata={"help": "Varied copies per photo (0-2); originals stay at least half of all samples"}
    )
    scale_min: float = field(
        default=0.7, metadata={"help": "Smallest part of the crop a variant shows; 1: whole (0.5-1)"}
    )
    rotation_deg: float = field(
        default=3.0, metadata={"help": "Largest rotation of a variant, cropped in; 0: none (0-15)"}
    )
    flip: str = field(
        default="auto",
        metadata={
            "help": "Mirror variants: auto (small sets of symmetric things only; never people or lettering), on, off"
        },
    )
    colour_jitter: str = field(
        default="auto", metadata={"help": "Vary brightness and gamma: auto (not for people or lettering), on, off"}
    )
    colour_strength: float = field(default=0.05, metadata={"help": "Largest change of brightness and gamma (0-0.3)"})
    seed: int = field(
        default=0, metadata={"help": "Decides the split and the variants, with each photo's own content (0-1000000000)"}
    )

    def __post_init__(self) -> None:
        _within(
            "augment",
            self,
            {
                "heldout": (-1, 10),
                "variants": (0, 2),
                "scale_min": (0.5, 1),
                "rotation_deg": (0, 15),
                "colour_strength": (0, 0.3),
                "seed": (0, 10**9),
                "resolution_px": (0, 2048),
            },
        )
        if self.heldout == 0:
            raise InputError(
                "augment.heldout is 0: evaluation needs a photo that was not trained on; choose -1 or 1-10."
            )
        if self.resolution_px and (self.resolution_px < 64 or self.resolution_px % 16):
            raise InputError(
                f"augment.resolution_px is {self.resolution_px}: choose 0 or a multiple of 16 from 64 to 2048."
            )
        for name, allowed in (("crop", ("subject", "centre")), ("flip", SWITCH), ("colour_jitter", SWITCH)):
            if getattr(self, name) not in allowed:
                raise InputError(f"augment.{name} is {getattr(self, name)!r}: choose one of {', '.join(allowed)}.")


@dataclass(frozen=True)
class FinetuneParams:
    """How the subject is trained into a LoRA adapter of the frozen base."""

    base: str = field(
        default="pocket", metadata={"help": "Base to be trained: a name in models/ or the path of a spec .yaml"}
    )
    rank: int = field(default=16, metadata={"help": "Rank of the adapter (1-256)"})
    alpha: float = field(
        default=16.0, metadata={"help": "Strength of the adapter; its updates are scaled by alpha/rank (0.1-1024)"}
    )
    steps: int = field(default=100, metadata={"help": "Optimiser steps (1-10000)"})
    batch_size: int = field(default=4, metadata={"help": "Photos per step (1-64)"})
    lr: float = field(default=0.005, metadata={"help": "Peak learning rate of AdamW (1e-7 to 0.1)"})
    warmup_steps: int = field(
        default=5,
        metadata={
            "help": "Steps of linear warm-up before a constant rate, which falls along a cosine in the last third (0-1000)"
        },
    )
    weight_decay: float = field(default=0.0001, metadata={"help": "Weight decay of AdamW (0-1)"})
    clip_norm: float = field(default=1.0, metadata={"help": "Largest norm of the adapter's gradient (0.01-100)"})
    ema: float = field(
        default=0.97, metadata={"help": "Decay of the averaged weights that are kept; 0: the last weights (0-0.9999)"}
    )
    serving_sigmas: float = field(
        default=0.5,
        metadata={"help": "Share of noise levels drawn from the steps used in serving; the rest is logit-normal (0-1)"},
    )
    high_sigmas: float = field(
        default=0.2,
        metadata={
            "help": "Share of the noise levels above .9 that photos are trained at; less keeps compositions varied (0-1)"
        },
    )
    preservation: float = field(
        default=2.0,
        metadata={"help": "Weight of staying like the base on prompts without the trigger; 0: plain training (0-100)"},
    )
    preservation_batch: int = field(default=4, metadata={"help": "Preserved prompts per step (0-64)"})
    preservation_prompts: int = field(default=48, metadata={"help": "Pictures of the base that are preserved (1-2000)"})
    checkpoint_every: int = field(
        default=25, metadata={"help": "Steps between candidates that are drawn and judged (1-10000)"}
    )
    save_every: int = field(default=25, metadata={"help": "Steps between saved states to resume from (1-10000)"})
    select: str = field(
        default="best", metadata={"help": "Which candidate is kept: best (identity against prompt and leakage) or last"}
    )
    skipped_max: int = field(
        default=5, metadata={"help": "Steps with a loss that is not finite before giving up (0-1000)"}
    )
    seed: int = field(default=0, metadata={"help": "Decides initial weights, batches and noise (0-1000000000)"})

    def __post_init__(self) -> None:
        _within(
            "finetune",
            self,
            {
                "rank": (1, 256),
                "alpha": (0.1, 1024),
                "steps": (1, 10_000),
                "batch_size": (1, 64),
                "lr": (1e-7, 0.1),
                "warmup_steps": (0, 1000),
                "weight_decay": (0, 1),
                "clip_norm": (0.01, 100),
                "ema": (0, 0.9999),
                "serving_sigmas": (0, 1),
                "high_sigmas": (0, 1),
                "preservation": (0, 100),
                "preservation_batch": (0, 64),
                "preservation_prompts": (1, 2000),
                "checkpoint_every": (1, 10_000),
                "save_every": (1, 10_000),
                "skipped_max": (0, 1000),
                "seed": (0, 10**9),
            },
        )
        if self.select not in ("best", "last"):
            raise InputError(f"finetune.select is {self.select!r}: choose one of best, last.")
        if self.preservation and not self.preservation_batch:
            raise InputError(
                "finetune.preservation_batch is 0: preserve at least one prompt a step, or set preservation to 0."
            )


MODEL_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"
"""What a registered model may be called."""


@dataclass(frozen=True)
class RegisterParams:
    """Under which name an adapter enters the registry."""

    name: str = field(
        default="", metadata={"help": "Name of the registered model: a-z, 0-9, - and _; empty: the subject's id"}
    )
    experiment: str = field(
        default="photoflux", metadata={"help": "MLflow experiment that holds the run: a-z, 0-9, - and _"}
    )

    def __post_init__(self) -> None:
        for name, pattern in (("name", f"({MODEL_NAME})?"), ("experiment", MODEL_NAME)):
            if not re.fullmatch(pattern, getattr(self, name)):
                raise InputError(
                    f"register.{name} is {getattr(self, name)!r}: use 1-63 of a-z, 0-9, - and _, such as rex-2."
                )


FORMATS = ("png", "jpeg", "webp", "tiff")
STYLES = ("none", "cartoon", "pixel", "watercolor", "pencil", "halftone", "film")


@dataclass(frozen=True)
class GenerateParams:
    """How pictures are drawn and written."""

    n: int = field(default=4, metadata={"help": "Pictures drawn, with seeds seed, seed+1, … (1-64)"})
    seed: int = field(default=0, metadata={"help": "First seed; the same seed gives the same file (0-1000000000)"})
    size: str = field(
        default="512x512", metadata={"help": "Width x height of the files in pixels (each 16-4096), such as 512x512"}
    )
    format: str = field(default="png", metadata={"help": f"File format: {', '.join(FORMATS)}"})
    style: str = field(default="none", metadata={"help": f"Style preset: {', '.join(STYLES)}"})

    def __post_init__(self) -> None:
        _within("generate", self, {"n": (1, 64), "seed": (0, 10**9)})
        sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", self.size)
        if not sides or not all(16 <= int(side) <= 4096 for side in sides.groups()):
            raise InputError(
                f"generate.size is {self.size!r}: write WIDTHxHEIGHT, each from 16 to 4096, such as 512x512."
            )
        for name, allowed in (("format", FORMATS), ("style", STYLES)):
            if getattr(self, name) not in allowed:
                raise InputError(f"generate.{name} is {getattr(self, name)!r}: choose one of {', '.join(allowed)}.")


STEP_PARAMS: dict[str, type] = {
    "import_photos": ImportParams,
    "validate": ValidateParams,
    "augment": AugmentParams,
    "finetune": FinetuneParams,
    "evaluate": EvaluateParams,
    "audit": AuditParams,
    "gate": GateParams,
    "register": RegisterParams,
    "generate": GenerateParams,
}


def load_params(step: str, *, path: Path = Path("params.yaml"), overrides: Mapping[str, Any] | None = None) -> Any:
    """The parameters of `step`: the block of that name in `path`, then `overrides` (text is converted).

    Raises InputError for a missing file, an unknown key, a value of another type or out of range.
    """
    return make_params(step, {**read_blocks(path).get(step, {}), **(overrides or {})})


def make_params(step: str, values: Mapping[str, Any]) -> Any:
    """Build one step's dataclass from loose values; every mistake names the key and what is allowed."""
    kind = STEP_PARAMS[step]
    types = get_type_hints(kind)
    unknown = sorted(set(values) - set(types))
    if unknown:
        raise InputError(f"{step}: unknown parameter '{unknown[0]}'; known are {', '.join(sorted(types))}")
    return kind(**{name: _convert(f"{step}.{name}", value, types[name]) for name, value in values.items()})


def read_blocks(path: Path) -> dict[str, dict[str, Any]]:
    """The whole params file: one mapping per step. Raises InputError for a block no step has."""
    try:
        blocks = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); run from the checkout or pass --params"
        ) from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({error})".replace("\n", " ")) from error
    if not isinstance(blocks, dict) or not all(isinstance(block, dict) for block in blocks.values()):
        raise InputError(f"{path}: must hold one mapping per step")
    unknown = sorted(set(blocks) - set(STEP_PARAMS))
    if unknown:
        raise InputError(f"{path}: no step is called '{unknown[0]}'; steps are {', '.join(STEP_PARAMS)}")
    return blocks


def check_text(name: str, text: str) -> str:
    """The text itself. Raises InputError for one that an orchestrator would replace parts of."""
    for replaced in FILLED_IN:
        if replaced in text:
            raise InputError(
                f"{name}: holds '{replaced}', which a pipeline replaces by what it knows; write it without"
            )
    return text


def as_dict(params: Any) -> dict[str, Any]:
    """A params object as plain values, for manifests and lineage."""
    return dataclasses.asdict(params)


def help_of(kind: type, name: str) -> str:
    """The one-line description of a field."""
    return next(f.metadata.get("help", "") for f in dataclasses.fields(kind) if f.name == name)


def _convert(name: str, value: Any, kind: type) -> Any:
    """Accept a value of `kind` or its text; an int where a float is wanted; nothing else."""
    try:
        if kind is bool:
            return value if isinstance(value, bool) else {"true": True, "false": False}[str(value).lower()]
        if isinstance(value, bool):
            raise ValueError
        if kind is int:
            number = float(value)
            if not number.is_integer():
                raise ValueError
            return int(value) if not isinstance(value, float) else int(number)
        if kind is float:
            if not math.isfinite(float(value)):
                raise ValueError
            return float(value)
        return check_text(name, str(value))
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"{name}: '{value}' is not a valid {kind.__name__}") from error
