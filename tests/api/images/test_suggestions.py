from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.images.suggestions import suggest, templates
from tests.api.people import Person, is_problem
from tests.api.routes.test_generations import ask

KNOWN = templates("sks", "dog")


@pytest.mark.parametrize(
    ("typed", "first"),
    [
        ("", "a photo of sks dog"), ("a carto", "a cartoon of sks dog"), ("beach", "a photo of sks dog on the beach"),
        ("sno photo", "a photo of sks dog in the snow"), ("forrest", "a photo of sks dog in the forest"),
        ("  A   PHOTO ", "a photo of sks dog"),
    ],
)  # fmt: skip
def test_what_begins_so_comes_first_then_words_then_what_is_alike(typed: str, first: str):
    assert suggest(typed, known=KNOWN, own=[], limit=5)[0] == first


def test_nothing_is_alike_to_nonsense():
    assert suggest("xqzzy", known=KNOWN, own=[], limit=5) == []


def test_ones_own_come_before_templates_and_once():
    own = ["a photo of sks dog on a skateboard", "a photo of sks dog"]
    assert suggest("a photo", known=KNOWN, own=own, limit=3) == [*own, "a photo of sks dog on the beach"]


@given(st.text(max_size=60), st.integers(1, 20))
def test_any_text_gives_at_most_so_many_of_what_is_known(typed: str, limit: int):
    found = suggest(typed, known=KNOWN, own=[], limit=limit)
    assert len(found) <= limit
    assert set(found) <= set(KNOWN)


def calls_of(work: Callable[[], Any]) -> int:
    """How many functions are called, those written in C among them: the same number on any machine."""
    count = 0

    def counted(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


WORST = {
    "many short words": (" ".join(["q"] * 100), [" ".join(["b"] * 249) + f" {n}" for n in range(50)]),
    "many different words": (
        " ".join(f"{n}z" for n in range(66)),
        [" ".join(f"{n}{k}" for k in range(150)) for n in range(50)],
    ),
    "long words": (" ".join(["q" * 24] * 8), [f"{'b' * 15} {n:015} " * 16 for n in range(50)]),
    "one long word": ("ab" * 100, ["ba" * 249 + f"{n:02}" for n in range(50)]),
    "letters that grow": ("\u0390" * 200, ["\u03b0" * 499 + chr(0x4E00 + n) for n in range(50)]),
}


@pytest.mark.parametrize("kind", WORST)
def test_the_work_is_bounded_whatever_was_typed_and_asked_for_before(kind: str):
    """105 texts of at most 32 words are held against at most 8."""
    typed, own = WORST[kind]
    typed, own = typed[:200], [text[:500] for text in own]
    assert len(set(own)) == 50
    assert calls_of(lambda: suggest(typed, known=KNOWN, own=own, limit=20)) < 105 * 32 * 8 * 3


def test_only_the_first_words_and_letters_are_looked_at():
    own = [" ".join(["word"] * 32) + " later", "x" * 200 + " forest", "  ", ""]
    assert suggest("latr", known=[], own=own, limit=5) == []
    assert suggest("x forest", known=[], own=own, limit=5) == []
    assert suggest(" ".join(["word"] * 8) + " zzzz", known=[], own=own, limit=5) == [own[0]]


@pytest.mark.parametrize(
    ("typed", "first"),
    [("a photo of sks dog on the baech", "on the beach"), ("kichen", "in the kitchen"), ("watercolour", "a watercolor of"),
     ("pixl desert", "a pixel picture of sks dog in the desert")],
)  # fmt: skip
def test_a_slip_of_the_finger_is_understood(typed: str, first: str):
    assert first in suggest(typed, known=KNOWN, own=[], limit=5)[0]


def test_over_http_with_history(ada: Person, bob: Person):
    subject = ada.subject_with_model()
    ask(ada, subject, prompt="a photo of sks dog juggling")
    answer = ada.get("/api/prompts/suggest", params={"subject": subject, "q": "a photo of sks dog j"})
    assert answer.json() == {"prompts": ["a photo of sks dog juggling"]}
    is_problem(bob.get("/api/prompts/suggest", params={"subject": subject}), 404, "not-found")
    is_problem(ada.get("/api/prompts/suggest", params={"subject": subject, "limit": 21}), 422, "invalid")
