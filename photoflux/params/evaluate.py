"""Parameters of the comparison of the tuned model with its base."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from pydantic import Field

from photoflux.params.model import Params

Profile = Literal["smoke", "standard", "release"]
PROFILES: tuple[str, ...] = get_args(Profile)
"""How many pictures judging draws: smoke shows that the step runs, standard decides, release decides narrowly."""


class EvaluateParams(Params):
    """How the tuned model is compared with its base."""

    step: ClassVar[str] = "evaluate"

    base: str = Field(
        default="pocket", description="Base the adapter was trained on: a name in models/ or the path of a spec .yaml"
    )
    prompts: str = Field(
        default="", description="Prompt set: a name in models/prompts/ or a .yaml; empty: the set named after the base"
    )
    profile: Profile = Field(
        default="standard", description="Prompts x seeds per set: smoke 5x2, standard 25x4, release 50x4"
    )
    seed: int = Field(default=1000, ge=0, le=10**9, description="First seed; tuned and base pictures share their seeds")
    half_width_max: float = Field(
        default=0.12,
        ge=0,
        le=1,
        description="Double the seeds once when identity gain or leakage is known less closely than this; 1: never",
    )
    bootstrap: int = Field(default=2000, ge=200, le=20_000, description="Bootstrap draws behind each 95 % interval")
    batch_size: int = Field(default=16, ge=1, le=256, description="Pictures drawn at once")
