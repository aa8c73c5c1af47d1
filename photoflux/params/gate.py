"""Parameters of the decision: the limits."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from photoflux.params.model import Params, matching

Calibration = Annotated[str, matching(r"([0-9a-f]{16})?", "give 16 hex digits, or leave it empty")]
BaseAndJudges = Annotated[
    str, matching(r"([0-9a-f]{8} [0-9a-f]{8})?", "give eight hex digits of either hash, or leave it empty")
]


class GateParams(Params):
    """The limits a candidate is held to; every one is compared with a bound of a 95 % interval."""

    step: ClassVar[str] = "gate"

    calibration: Calibration = Field(
        default="8e1b488e23346196",
        description="Calibration these limits come from, as in benchmarks/results/calibration.json; empty: the method's defaults",
    )
    images_min: float = Field(default=0.8, ge=0, le=1, description="Share of planned pictures that must exist")
    identity_gain_min: float = Field(
        default=0.3, ge=0, le=1, description="Least identity gain: 0 like the base, 1 as alike as two photos"
    )
    identity_gain_warn: float = Field(default=0.5, ge=0, le=1, description="Identity gain below which the report warns")
    accuracy_drop_max: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Most prompt accuracy lost against the base, where attributes are checked exactly",
    )
    cosine_drop_max: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="Most text-image cosine lost against the base, where attributes are not checked",
    )
    leakage_max: float = Field(
        default=0.3, ge=0, le=1, description="Most the class may turn into the subject: 0 not at all, 1 wholly"
    )
    leakage_warn: float = Field(default=0.15, ge=0, le=1, description="Leakage above which the report warns")
    drift_drop_max: float = Field(default=0.05, ge=0, le=1, description="Most accuracy lost on unrelated prompts")
    drift_kid_max: float = Field(
        default=0.025,
        ge=0,
        le=8,
        description="Most kernel distance of unrelated pictures from the base's, on the scale of drift_kid_of",
    )
    drift_kid_of: BaseAndJudges = Field(
        default="e855a6da 624e081f",
        description="Base and judges that drift_kid_max was chosen for, eight hex digits of each one's hash; empty: any",
    )
    diversity_min: float = Field(default=0.8, ge=0, le=1, description="Least diversity kept against the base")
    diversity_warn: float = Field(default=0.9, ge=0, le=1, description="Diversity kept below which the report warns")
    copy_max: float = Field(default=0.05, ge=0, le=1, description="Largest share of copied training photos")
    gap_max: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Most the pictures may favour trained over held-out photos, in units of the real-photo span",
    )
    bad_max: float = Field(default=0.05, ge=0, le=1, description="Largest share of broken pictures")
    sharpness_min: float = Field(default=0.8, ge=0, le=2, description="Least sharpness kept against the base")
    lightness_moderate: float = Field(
        default=3.0,
        ge=0,
        le=100,
        description="Shift of a person's skin lightness L* against the photos that needs a sign-off",
    )
    lightness_high: float = Field(
        default=6.0, ge=0, le=100, description="Shift of a person's skin lightness L* against the photos that fails"
    )
    champion_drop_max: float = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Overall score lost against the champion, beyond which a model is not registered at all",
    )

    @model_validator(mode="after")
    def _check_warnings_first(self) -> Self:
        if self.identity_gain_warn < self.identity_gain_min or self.leakage_warn > self.leakage_max:
            raise ValueError(
                "gate: a warning must come before its limit (identity_gain_warn >= identity_gain_min, "
                "leakage_warn <= leakage_max)."
            )
        return self
