"""Parameters of the checks: what a photo and a set of photos are held to."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from photoflux.params.model import Params


class ValidateParams(Params):
    """What a photo and a set of photos are held to; the defaults are calibrated on real photographs."""

    step: ClassVar[str] = "validate"

    min_photos: int = Field(default=5, ge=2, le=60, description="Fewest good photos a set needs after rejection")
    max_photos: int = Field(default=60, ge=2, le=500, description="Most good photos a set may hold")
    advised_min: int = Field(
        default=8, ge=2, le=60, description="Number of good photos from which a set counts as full"
    )
    advised_max: int = Field(default=20, ge=2, le=500, description="Number of good photos above which more add little")
    max_megapixels: int = Field(default=64, ge=1, le=200, description="Largest photo decoded, in millions of pixels")
    max_file_mb: int = Field(default=30, ge=1, le=200, description="Largest file decoded, in megabytes")
    stored_side_px: int = Field(
        default=2048,
        ge=512,
        le=8192,
        description="Accepted photos are stored with a short side of at most this many pixels",
    )
    short_side_min_px: int = Field(
        default=512, ge=32, le=8192, description="Short side below which a photo is rejected"
    )
    short_side_advised_px: int = Field(
        default=768,
        ge=32,
        le=8192,
        description="Short side below which a photo is warned about: enlarging by more than a third shows",
    )
    aspect_min: float = Field(default=0.33, ge=0, le=1, description="Short/long side below which a photo is rejected")
    aspect_advised: float = Field(
        default=0.5, ge=0, le=1, description="Short/long side below which a photo is warned about"
    )
    sharpness_min: float = Field(
        default=100.0,
        ge=0,
        le=10_000,
        description="Sharpness (90th percentile of tile Laplacian variance) below which a photo is rejected",
    )
    sharpness_advised: float = Field(
        default=250.0, ge=0, le=10_000, description="Sharpness below which a photo is warned about"
    )
    reblur_max: float = Field(
        default=0.54,
        ge=0,
        le=1,
        description="Re-blur measure (0 sharp, 1 blurred) above which motion blur is suspected",
    )
    sharpness_trust_min: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the sharpness not explained by grain below which it cannot be judged",
    )
    detail_min: float = Field(
        default=0.6,
        ge=0,
        le=2,
        description="Finest detail relative to the next coarser below which a photo looks enlarged",
    )
    bright_p99_min: float = Field(
        default=0.32, ge=0, le=1, description="Brightest parts below which a photo is too dark"
    )
    dark_p1_max: float = Field(default=0.95, ge=0, le=1, description="Darkest parts above which a photo is too light")
    clipped_high_max: float = Field(
        default=0.55, ge=0, le=1, description="Share of pure white above which light is doubted"
    )
    clipped_low_max: float = Field(
        default=0.4, ge=0, le=1, description="Share of pure black above which light is doubted"
    )
    contrast_min: float = Field(
        default=8.0,
        ge=0,
        le=255,
        description="Strongest edges, in levels of 255 at 64 px, below which nothing is shown",
    )
    duplicate_phash: int = Field(default=10, ge=0, le=32, description="pHash distance up to which two photos are one")
    duplicate_dhash: int = Field(default=8, ge=0, le=32, description="dHash distance up to which two photos are one")
    duplicate_ncc: float = Field(
        default=0.9,
        ge=0.5,
        le=1,
        description="Correlation at the best shift, size and mirroring from which two photos are one",
    )
    duplicate_share_max: float = Field(
        default=0.2, ge=0, le=1, description="Share of near-copies above which a set is warned about"
    )
    closeness_max: float = Field(
        default=0.65,
        ge=0,
        le=1,
        description="Mean correlation with the most similar other photo above which the set shows one view",
    )
    backgrounds_min: int = Field(
        default=3, ge=1, le=10, description="Different backgrounds below which a set is warned about"
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not self.min_photos <= self.advised_min <= self.advised_max <= self.max_photos:
            raise ValueError("validate: min_photos, advised_min, advised_max and max_photos must rise in this order.")
        for rejected, warned in (
            ("short_side_min_px", "short_side_advised_px"),
            ("aspect_min", "aspect_advised"),
            ("sharpness_min", "sharpness_advised"),
        ):
            if getattr(self, rejected) > getattr(self, warned):
                raise ValueError(f"validate.{rejected} must not exceed validate.{warned}: a warning comes first.")
        return self
