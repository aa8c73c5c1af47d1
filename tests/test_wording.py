"""Words as they stand in prompts and in names of files."""

from __future__ import annotations

import pytest

from photoflux.wording import slug, with_article


def test_the_article_follows_the_noun() -> None:
    """ "an" before a vowel."""
    assert [with_article(noun) for noun in ("dog", "owl", "Elephant")] == ["a dog", "an owl", "an Elephant"]


@pytest.mark.parametrize(
    ("text", "made"), [("Rex version 3", "rex-version-3"), ("--a__b  c!", "a-b-c"), ("Müller", "m-ller"), ("…", "")]
)
def test_a_slug_can_be_part_of_any_name(text: str, made: str) -> None:
    assert slug(text) == made
