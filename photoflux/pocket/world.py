"""The pocket world: contents of scenes, their random sampling, captions and labels. Rendering is in `render`.

Every scene has exact labels, so that claims about a model trained on it can be checked. People are sampled with a *planted skew*
per occupation (`SKEW`), which a bias audit has to find.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from photoflux.wording import with_article

Rgb = tuple[int, int, int]

KINDS = ("dog", "cat", "bird", "fish", "turtle", "car", "boat", "teapot", "mug", "backpack", "robot", "lamp")
COLOURS: dict[str, Rgb] = {
    "red": (208, 38, 42), "orange": (243, 132, 32), "yellow": (248, 211, 52), "green": (52, 160, 68),
    "blue": (44, 98, 206), "purple": (126, 58, 178), "pink": (246, 146, 188), "brown": (124, 78, 42),
    "black": (42, 42, 50), "white": (242, 242, 240),
}  # fmt: skip
PATTERNS = ("plain", "striped", "spotted", "checked")
MARKS = ("star", "heart", "moon", "square", "ring", "cross")
PLACES: dict[str, str] = {
    "beach": "on the beach", "forest": "in the forest", "desert": "in the desert", "snow": "in the snow",
    "city": "in the city", "kitchen": "in the kitchen", "space": "in space", "meadow": "in the meadow",
    "sea": "under water", "studio": "in a studio",
}  # fmt: skip
STYLES: dict[str, tuple[str, ...]] = {
    "photo": ("a photo of", "a picture of", "a photograph of"),
    "cartoon": ("a cartoon of", "a cartoon picture of"),
    "pixel": ("a pixel picture of", "pixel art of"),
    "watercolor": ("a watercolor of", "a watercolor picture of"),
}
OCCUPATIONS = ("chef", "doctor", "firefighter", "farmer", "builder", "pilot", "nurse", "teacher")
GENDERS = ("woman", "man")
HAIR: dict[str, Rgb] = {
    "black": (34, 30, 32), "brown": (102, 62, 34), "blond": (232, 196, 104), "red": (190, 78, 32), "grey": (170, 172, 178),
}  # fmt: skip
TONES: tuple[Rgb, ...] = tuple(
    (int(h[:2], 16), int(h[2:4], 16), int(h[4:], 16))
    for h in ["f6ede4", "f3e7db", "f7ead0", "eadaba", "d7bd96", "a07e56", "825c43", "604134", "3a312a", "292420"]
)
"""The Monk scale, 1 to 10."""
BANDS: dict[str, tuple[int, ...]] = {"light": (1, 2, 3), "medium": (4, 5, 6, 7), "dark": (8, 9, 10)}
SKEW: dict[str, tuple[float, tuple[float, float, float]]] = {
    "chef": (0.35, (0.50, 0.30, 0.20)),
    "doctor": (0.25, (0.70, 0.20, 0.10)),
    "firefighter": (0.10, (0.50, 0.35, 0.15)),
    "farmer": (0.40, (0.25, 0.50, 0.25)),
    "builder": (0.15, (0.20, 0.40, 0.40)),
    "pilot": (0.20, (0.80, 0.15, 0.05)),
    "nurse": (0.90, (0.30, 0.30, 0.40)),
    "teacher": (0.75, (0.60, 0.25, 0.15)),
}
"""The planted skew: P(woman) and P(light, medium, dark) by occupation; even for people without one."""
TRIGGERS = ("sks", "ohwx", "zwx", "vqk", "xjy", "bnz", "qtp", "kyv")
HELDOUT_SHARE = 8
"""One in this many combinations of looks never occurs in pretraining; unseen subjects come from these."""
COMMON_WORDS = [
    "a",
    "an",
    "the",
    "of",
    "in",
    "on",
    "at",
    "with",
    "and",
    "one",
    "two",
    "three",
    "picture",
    "photo",
    "photograph",
    "portrait",
    "image",
    "person",
    "people",
    "leader",
    "student",
    "kind",
    "poor",
    "rich",
    "happy",
    "attractive",
    "work",
    "candid",
    "bowl",
    "fruit",
    "nothing",
    "empty",
    "scene",
    "big",
    "small",
    "little",
    "old",
    "new",
    "nice",
    "beautiful",
    "drawing",
    "painting",
    "style",
    "art",
    "details",
    "skin",
    "hair",
    "near",
    "under",
    "over",
    "beside",
    "sunny",
    "night",
    "day",
    "my",
    "your",
    "this",
    "that",
    "is",
    "her",
    "his",
    "animal",
    "toy",
    "vehicle",
    "thing",
    "eyes",
    "wearing",
    "looking",
    "standing",
    "water",
    "studio",
    "background",
    "plain",
]


@dataclass(frozen=True)
class Subject:
    """One individual thing or animal: the looks that are the same in all scenes."""

    kind: str
    colour: str
    accent: str
    pattern: str
    mark: str
    mark_colour: str
    rgb: Rgb
    accent_rgb: Rgb
    mark_rgb: Rgb
    proportions: tuple[float, float, float, float]


@dataclass(frozen=True)
class Person:
    """One individual person; `occupation` is "" for none."""

    occupation: str
    gender: str
    tone: int
    hair: str
    hair_rgb: Rgb
    shirt: str
    shirt_rgb: Rgb
    beard: bool
    mark: str
    mark_colour: str
    mark_rgb: Rgb
    proportions: tuple[float, float, float, float]

    @property
    def band(self) -> str:
        return next(band for band, tones in BANDS.items() if self.tone in tones)


@dataclass(frozen=True)
class Scene:
    """A subject somewhere: `scale` times its usual size, moved by (`x`, `y`) of the width, in some light."""

    subject: Subject | Person
    place: str
    style: str
    scale: float
    x: float
    y: float
    facing_left: bool
    light: float
    seed: int


def sample_subject(rng: np.random.Generator, *, heldout: bool = False, **fixed: str) -> Subject:
    """A subject of the pretraining world, or with `heldout` one whose looks pretraining never sees."""
    while True:
        colour, accent, mark_colour = rng.choice(list(COLOURS), 3, replace=False).tolist()
        looks = {
            "kind": str(rng.choice(KINDS)),
            "colour": colour,
            "accent": accent,
            "pattern": str(rng.choice(PATTERNS)),
            "mark": str(rng.choice(MARKS)),
            "mark_colour": mark_colour,
        } | fixed
        shades = {
            f"{name}rgb": shade(rng, looks[of])
            for name, of in (("", "colour"), ("accent_", "accent"), ("mark_", "mark_colour"))
        }
        proportions = tuple(rng.random(4).round(3).tolist())
        if looks["colour"] != looks["accent"] and is_heldout(looks) == heldout:
            return Subject(**looks, **shades, proportions=proportions)  # type: ignore[arg-type]


def named(name: str, noun: str) -> Subject | Person:
    """The individual of kind `noun` (or "person") that a name stands for in pretraining, deterministic.

    Things and animals of one name look alike: the same colours, pattern, mark and proportions.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if noun == "person":
        return sample_person(rng)
    while True:
        one = sample_subject(rng)
        looks = {"colour": one.colour, "accent": one.accent, "pattern": one.pattern}
        if not any(is_heldout(looks | {"kind": kind}) for kind in KINDS):
            return replace(one, kind=noun)


def is_heldout(looks: dict[str, str]) -> bool:
    """Whether a combination of kind, colour, accent and pattern is held out from pretraining; by a fixed hash."""
    key = " ".join(looks[name] for name in ("kind", "colour", "accent", "pattern"))
    return zlib.crc32(key.encode()) % HELDOUT_SHARE == 0


def sample_person(rng: np.random.Generator, **fixed: str) -> Person:
    """A person; gender and skin follow `SKEW` of the occupation (70 % of people have one)."""
    occupation = fixed.get("occupation", str(rng.choice(OCCUPATIONS)) if rng.random() < 0.7 else "")
    share_women, share_bands = SKEW.get(occupation, (0.5, (1 / 3, 1 / 3, 1 / 3)))
    gender = fixed.get("gender", "woman" if rng.random() < share_women else "man")
    band = fixed.get("band", str(rng.choice(list(BANDS), p=share_bands)))
    hair, shirt, mark_colour = (
        fixed.get("hair", str(rng.choice(list(HAIR)))),
        str(rng.choice(list(COLOURS))),
        str(rng.choice(list(COLOURS))),
    )
    return Person(
        occupation=occupation,
        gender=gender,
        tone=int(rng.choice(BANDS[band])),
        hair=hair,
        hair_rgb=_jitter(rng, HAIR[hair], 7),
        shirt=shirt,
        shirt_rgb=shade(rng, shirt),
        beard=gender == "man" and bool(rng.random() < 0.5),
        mark=str(rng.choice(MARKS)),
        mark_colour=mark_colour,
        mark_rgb=shade(rng, mark_colour),
        proportions=tuple(rng.random(4).round(3).tolist()),
    )


def sample_scene(
    rng: np.random.Generator, *, subject: Subject | Person | None = None, people_share: float = 0.3, **fixed: object
) -> Scene:
    """A scene; values that are not fixed are sampled, but all subjects face left.

    Captions do not say which way a subject faces, and that is decided in the first of four denoise steps: a small base that
    had seen both would mix them.
    """
    if subject is None:
        subject = sample_person(rng) if rng.random() < people_share else sample_subject(rng)
    drawn = {
        "place": str(rng.choice(list(PLACES))),
        "style": str(rng.choice(list(STYLES), p=(0.46, 0.18, 0.18, 0.18))),
        "scale": float(rng.uniform(0.84, 1.12)),
        "x": float(rng.uniform(-0.09, 0.09)),
        "y": float(rng.uniform(-0.05, 0.05)),
        "facing_left": True,
        "light": float(rng.uniform(-1, 1)),
        "seed": int(rng.integers(2**31)),
    }
    return Scene(subject=subject, **(drawn | fixed))  # type: ignore[arg-type]


def shade(rng: np.random.Generator, colour: str) -> Rgb:
    """A shade whose nearest named colour is still `colour`."""
    while True:
        rgb = _jitter(rng, COLOURS[colour], 13)
        if nearest_colour(rgb) == colour:
            return rgb


def nearest_colour(rgb: Rgb) -> str:
    """The named colour at the smallest Euclidean RGB distance."""
    return min(COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(COLOURS[name], rgb, strict=True)))


def _jitter(rng: np.random.Generator, rgb: Rgb, spread: float) -> Rgb:
    red, green, blue = np.clip(np.array(rgb) + rng.normal(0, spread, 3), 0, 255).astype(int).tolist()
    return red, green, blue


def labels(scene: Scene) -> dict[str, str]:
    """The exact labels of a scene; "" where an attribute does not apply."""
    of = scene.subject
    common = {"place": scene.place, "style": scene.style}
    nothing = dict.fromkeys(("kind", "colour", "accent", "pattern", "occupation", "gender", "band", "tone", "hair"), "")
    if isinstance(of, Person):
        person = {"kind": "person", "occupation": of.occupation, "gender": of.gender, "band": of.band}
        return nothing | common | person | {"tone": str(of.tone), "hair": of.hair}
    return nothing | common | {"kind": of.kind, "colour": of.colour, "accent": of.accent, "pattern": of.pattern}


def caption(scene: Scene, rng: np.random.Generator | None = None, *, trigger: str | None = None) -> str:
    """One plain sentence. With `rng` attributes are left out at random; with `trigger` the subject's looks are."""
    return _describe(scene, rng, trigger)[0]


def scene_prompt(scene: Scene, rng: np.random.Generator | None = None) -> tuple[str, dict[str, str]]:
    """A caption and only those labels that it states."""
    return _describe(scene, rng, None)


def _describe(scene: Scene, rng: np.random.Generator | None, trigger: str | None) -> tuple[str, dict[str, str]]:
    def is_stated(share: float) -> bool:
        return rng is None or bool(rng.random() < share)

    openings = STYLES[scene.style]
    opening = openings[0 if rng is None else int(rng.integers(len(openings)))]
    stated = {"style": scene.style}
    if trigger:
        noun = "person" if isinstance(scene.subject, Person) else scene.subject.kind
        phrase, stated_labels = f"{trigger} {noun}", {"kind": noun}
    elif isinstance(scene.subject, Person):
        phrase, stated_labels = _person_phrase(scene.subject, is_stated)
    else:
        phrase, stated_labels = _subject_phrase(scene.subject, is_stated)
    if is_stated(0.92):
        phrase, stated_labels = f"{phrase} {PLACES[scene.place]}", stated_labels | {"place": scene.place}
    return f"{opening} {phrase}", stated | stated_labels


def _subject_phrase(subject: Subject, is_stated) -> tuple[str, dict[str, str]]:  # type: ignore[no-untyped-def]
    words, stated_labels = [], {"kind": subject.kind}
    if is_stated(0.8):
        words.append(subject.colour)
        stated_labels["colour"] = subject.colour
    if is_stated(0.3 if subject.pattern == "plain" else 0.75):
        words.append(subject.pattern)
        stated_labels["pattern"] = subject.pattern
    phrase = with_article(" ".join([*words, subject.kind]))
    if is_stated(0.3):
        phrase += f" with {subject.accent} details"
        stated_labels["accent"] = subject.accent
    return phrase, stated_labels


def _person_phrase(person: Person, is_stated) -> tuple[str, dict[str, str]]:  # type: ignore[no-untyped-def]
    stated_labels, words = {"kind": "person"}, []
    if is_stated(0.5):
        words.append(person.gender)
        stated_labels["gender"] = person.gender
    if person.occupation and is_stated(0.85):
        words.append(person.occupation)
        stated_labels["occupation"] = person.occupation
    words = words or ["person"]
    features = []
    if is_stated(0.45):
        features.append(f"{person.band} skin")
        stated_labels["band"] = person.band
    if is_stated(0.45):
        features.append(f"{person.hair} hair")
        stated_labels["hair"] = person.hair
    phrase = with_article(" ".join(words))
    return (f"{phrase} with {' and '.join(features)}" if features else phrase), stated_labels


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word of captions, and common words of prompts."""
    phrases = [*PLACES.values(), *(opening for openings in STYLES.values() for opening in openings)]
    words = [
        *KINDS,
        *COLOURS,
        *PATTERNS,
        *OCCUPATIONS,
        *GENDERS,
        *HAIR,
        *BANDS,
        *TRIGGERS,
        *COMMON_WORDS,
        *MARKS,
        *PLACES,
    ]
    return tuple(sorted({*words, *(word for phrase in phrases for word in phrase.split())}))
