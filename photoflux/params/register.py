"""Parameters of the registration."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from photoflux.params.model import Params, matching

MODEL_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"
"""What a registered model may be called."""
NAME_HINT = "use 1-63 of a-z, 0-9, - and _, such as rex-2"


class RegisterParams(Params):
    """Under which name an adapter enters the registry."""

    step: ClassVar[str] = "register"

    name: Annotated[str, matching(f"({MODEL_NAME})?", NAME_HINT)] = Field(
        default="", description="Name of the registered model: a-z, 0-9, - and _; empty: the subject's id"
    )
    experiment: Annotated[str, matching(MODEL_NAME, NAME_HINT)] = Field(
        default="photoflux", description="MLflow experiment that holds the run: a-z, 0-9, - and _"
    )
