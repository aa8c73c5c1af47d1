"""Parameters of drawing with a registered model."""

from __future__ import annotations

import re
from typing import ClassVar, Literal, get_args

from pydantic import Field, field_validator

from photoflux.params.model import Params

Format = Literal["png", "jpeg", "webp", "tiff"]
FORMATS: tuple[str, ...] = get_args(Format)
Style = Literal["none", "cartoon", "pixel", "watercolor", "pencil", "halftone", "film"]
STYLES: tuple[str, ...] = get_args(Style)


class GenerateParams(Params):
    """How pictures are drawn and written."""

    step: ClassVar[str] = "generate"

    n: int = Field(default=4, ge=1, le=64, description="Pictures drawn, with seeds seed, seed+1, …")
    seed: int = Field(default=0, ge=0, le=10**9, description="First seed; the same seed gives the same file")
    size: str = Field(
        default="512x512", description="Width x height of the files in pixels (each 16-4096), such as 512x512"
    )
    format: Format = Field(default="png", description="File format")
    style: Style = Field(default="none", description="Style preset")

    @field_validator("size")
    @classmethod
    def _check_sides(cls, size: str) -> str:
        sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
        if not sides or not all(16 <= int(side) <= 4096 for side in sides.groups()):
            raise ValueError("write WIDTHxHEIGHT, each from 16 to 4096, such as 512x512.")
        return size
