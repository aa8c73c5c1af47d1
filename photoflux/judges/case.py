"""What an evaluation is about: the subject and its photos, the prompts, and the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

    from photoflux.judges.prompts import Prompt
    from photoflux.judges.sampling import ImageGrid


@dataclass(frozen=True)
class Photos:
    """The subject's photos as augment split them: everything trained on, one crop per photo of it, and the held-out ones."""

    crops: list[Image.Image]
    trained: list[Image.Image]
    held_out: list[Image.Image]


@dataclass(frozen=True)
class EvaluationImages:
    """The five sets of images; `class_prompt` is the tuned model on prompts without the trigger."""

    tuned: ImageGrid
    base: ImageGrid
    class_prompt: ImageGrid
    unrelated: ImageGrid
    unrelated_base: ImageGrid

    def concat(self, more: EvaluationImages) -> EvaluationImages:
        return EvaluationImages(**{name: grid.concat(getattr(more, name)) for name, grid in vars(self).items()})


@dataclass(frozen=True)
class Case:
    """One subject under evaluation: who it is, its photos, and the prompts; `facts` go into the document as they are."""

    subject: dict[str, Any]
    subject_prompts: list[Prompt]
    class_prompts: list[Prompt]
    unrelated_prompts: list[Prompt]
    photos: Photos
    facts: dict[str, Any]
