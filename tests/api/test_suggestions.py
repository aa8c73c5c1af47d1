from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.suggestions import suggest, templates
from tests.api.people import Person, is_problem
from tests.api.test_generations import ask

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


def test_over_http_with_history(ada: Person, bob: Person):
    subject = ada.subject_with_model()
    ask(ada, subject, prompt="a photo of sks dog juggling")
    answer = ada.get("/api/prompts/suggest", params={"subject": subject, "q": "a photo of sks dog j"})
    assert answer.json() == {"prompts": ["a photo of sks dog juggling"]}
    is_problem(bob.get("/api/prompts/suggest", params={"subject": subject}), 404, "not-found")
    is_problem(ada.get("/api/prompts/suggest", params={"subject": subject, "limit": 21}), 422, "invalid")
