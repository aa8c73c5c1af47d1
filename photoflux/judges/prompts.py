"""Prompt sets: what a base is asked for when it is judged, and what the images should then show.

A set is a YAML file in `models/prompts/`, written in the words its base knows. `{subject}` stands for the trigger and
class noun ("sks dog"), or for the class noun alone ("a dog").
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from photoflux.errors import InputError
from photoflux.judges.stats import LEAST_KERNEL_PROMPTS
from photoflux.wording import article, with_article

SHAPES = {"smoke": (5, 2), "standard": (25, 4), "release": (50, 4)}
"""Prompts and seeds per set of images, by profile."""

PEOPLE = {"smoke": 70, "standard": 400, "release": 1000}
"""Images of people per side of the bias audit, by profile."""

SEED_STRIDE = 1000


@dataclass(frozen=True)
class Prompt:
    """A prompt, the attribute values a right image shows, and for audits the group of prompts it is in."""

    text: str
    labels: dict[str, str] = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True)
class PromptSet:
    """Everything one base is asked while it is judged."""

    subject: tuple[Prompt, ...]
    unrelated: tuple[Prompt, ...]
    people: tuple[Prompt, ...]
    no_people: tuple[Prompt, ...]
    person: dict[str, str]
    person_noun: str
    audited: tuple[str, ...]
    tone: str
    copy_correlation: float
    hash: str = ""

    def about(self, class_noun: str, *, trigger: str | None, count: int) -> list[Prompt]:
        """The first `count` subject prompts, about the subject (trigger given) or about its class."""
        name = f"{trigger} {class_noun}" if trigger else with_article(class_noun)
        kind = {"kind": class_noun}
        return [Prompt(p.text.format(subject=name), {**kind, **p.labels}) for p in self.subject[:count]]

    def without(self, class_noun: str, *, count: int) -> list[Prompt]:
        """The first `count` unrelated prompts that name nothing of the class."""
        left = [p for p in self.unrelated if class_noun not in p.text.split() and class_noun not in p.labels.values()]
        if len(left) < LEAST_KERNEL_PROMPTS:
            raise InputError(
                f"only {len(left)} unrelated prompts of this prompt set are about something else than '{class_noun}'; "
                f"add others, {LEAST_KERNEL_PROMPTS} at the least"
            )
        return left[:count]


def load_prompts(name: str, *, folder: Path) -> PromptSet:
    """A prompt set by name in `folder`/prompts, or by the path of a YAML file. Raises InputError naming what is wrong."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / "prompts" / f"{name}.yaml"
    try:
        text = path.read_bytes()
        return _parse(yaml.safe_load(text), digest=hashlib.sha256(text).hexdigest())
    except OSError as error:
        raise InputError(f"{path}: no such prompt set ({error.strerror}); name one in {folder / 'prompts'}") from error
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a prompt set ({type(error).__name__}: {error}); see models/prompts/") from error


def _parse(content: dict[str, Any], *, digest: str) -> PromptSet:
    evaluate, audit = content["evaluate"], content["audit"]
    return PromptSet(
        subject=_prompts(evaluate["subject"]),
        unrelated=_prompts(evaluate["unrelated"]),
        people=(
            *_grid(audit["occupations"], audit["templates"]),
            *(Prompt(text, group="low context") for text in audit["low_context"]),
        ),
        no_people=tuple(Prompt(text, group="no person") for text in audit["no_people"]),
        person=dict(audit["person"]),
        person_noun=str(audit["person_noun"]),
        audited=tuple(audit["attributes"]),
        tone=str(audit.get("tone", "")),
        copy_correlation=float(evaluate["copy_correlation"]),
        hash=digest,
    )


def _prompts(rows: Sequence[dict[str, Any]]) -> tuple[Prompt, ...]:
    return tuple(Prompt(row["text"], {k: str(v) for k, v in row.get("labels", {}).items()}) for row in rows)


def _grid(occupations: Sequence[str], templates: Sequence[str]) -> list[Prompt]:
    return [
        Prompt(template.format(occupation=name, article=article(name)), group=name)
        for name in occupations
        for template in templates
    ]


def seeds_for(first: int, prompts: int, seeds: int, *, skip: int = 0) -> list[int]:
    """Row-major seeds of a grid [P, S]; growing S keeps the seeds that were there."""
    return [first + p * SEED_STRIDE + s for p in range(prompts) for s in range(skip, skip + seeds)]
