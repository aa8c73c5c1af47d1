from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.images.prompt_rules import UnsafePrompt, check_prompt


@pytest.mark.parametrize(
    ("prompt", "person"),
    [
        ("a nude person", False), ("NAKED", True), ("n\u200baked woman", False), ("ｎｕｄｅ man", False),
        ("a s3xy actress", False), ("nüde model", False), ("a child, sexual", False), ("a beheaded dog", False),
        ("nud\u0435 woman", False), ("a photo of \u0455ks dog", False), ("p\u03bfrn", False),
    ],
)  # fmt: skip
def test_refused(prompt: str, person: bool):
    with pytest.raises(UnsafePrompt):
        check_prompt(prompt, person=person)


@pytest.mark.parametrize(
    "prompt",
    [
        "a photo of sks dog on the beach",
        "sks mug with essex and sussex flowers",
        "a child with sks dog",
        "砂浜の犬",
        "🐕",
        "a photo of sks dog, собака на пляже, σκύλος",
        "",
    ],
)
def test_drawn(prompt: str):
    check_prompt(prompt, person=False)


@given(st.text(max_size=200), st.booleans())
def test_any_text_is_drawn_or_refused_and_never_repeated(prompt: str, person: bool):
    try:
        check_prompt(prompt, person=person)
    except UnsafePrompt as error:
        assert not prompt.strip() or str(error) != prompt
