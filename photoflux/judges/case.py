"""What an evaluation is about: the subject and its photos, what was asked, and what was drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from photoflux.judges.prompts import Prompt
    from photoflux.judges.sampling import Grid


@dataclass(frozen=True)
class Photos:
    """The subject's photos as augment split them: everything trained on, one crop per photo, and the held-out ones."""

    shown: list[Image.Image]
    trained: list[Image.Image]
    held_out: list[Image.Image]


@dataclass(frozen=True)
class Pictures:
    """The five sets of pictures."""

    tuned: Grid
    base: Grid
    plain: Grid
    unrelated: Grid
    unrelated_base: Grid

    def beside(self, more: Pictures) -> Pictures:
        return Pictures(**{name: grid.beside(getattr(more, name)) for name, grid in vars(self).items()})


@dataclass(frozen=True)
class Case:
    """One subject under evaluation: who it is, what was asked, what was drawn."""

    subject: dict[str, Any]
    asked: list[Prompt]
    asked_class: list[Prompt]
    asked_unrelated: list[Prompt]
    photos: Photos
    facts: dict[str, Any]
