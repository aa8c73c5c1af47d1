"""Parameters of the training set: split, crop and variants."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from photoflux.params.model import Params

Switch = Literal["auto", "on", "off"]


class AugmentParams(Params):
    """How photos become a training set: split, crop, variants and captions."""

    step: ClassVar[str] = "augment"

    base: str = Field(
        default="pocket",
        description="Base to be trained: a name in models/ or the path of a spec .yaml; its resolution is used",
    )
    resolution_px: int = Field(
        default=0,
        ge=0,
        le=2048,
        description="Side of the training pictures, a multiple of 16 from 64; 0: the base's own",
    )
    heldout: int = Field(
        default=-1,
        ge=-1,
        le=10,
        description="Photos kept out of training for evaluation, never 0; -1: one of up to 7, two of 8 and more",
    )
    crop: Literal["subject", "centre"] = Field(default="subject", description="What the square crop is laid around")
    variants: int = Field(
        default=2, ge=0, le=2, description="Varied copies per photo; originals stay at least half of all samples"
    )
    scale_min: float = Field(
        default=0.7, ge=0.5, le=1, description="Smallest part of the crop a variant shows; 1: whole"
    )
    rotation_deg: float = Field(
        default=3.0, ge=0, le=15, description="Largest rotation of a variant, cropped in; 0: none"
    )
    flip: Switch = Field(
        default="auto",
        description="Mirror variants; auto: small sets of symmetric things, no people or lettering",
    )
    colour_jitter: Switch = Field(
        default="auto", description="Vary brightness and gamma; auto: not for people or lettering"
    )
    colour_strength: float = Field(default=0.05, ge=0, le=0.3, description="Largest change of brightness and gamma")
    seed: int = Field(
        default=0, ge=0, le=10**9, description="Decides the split and the variants, with each photo's own content"
    )

    @field_validator("heldout")
    @classmethod
    def _check_not_zero(cls, count: int) -> int:
        if count == 0:
            raise ValueError("evaluation needs a photo that was not trained on; choose -1 or 1-10.")
        return count

    @field_validator("resolution_px")
    @classmethod
    def _check_multiple_of_16(cls, side: int) -> int:
        if side and (side < 64 or side % 16):
            raise ValueError("choose 0 or a multiple of 16 from 64 to 2048.")
        return side
