from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from photoflux.pocket.tokenizers import TRIGGERS, clip_tokenizer, learn_merges, lower_case_ids, t5_tokenizer, words_of

VOCABULARY = ["a", "photo of", "red", "robot", "boat", "teapot", "beach,", "Dog", "spotted"]
LENGTH = 24


def reloaded(tokenizer, folder: Path):
    tokenizer.save_pretrained(folder)
    return type(tokenizer).from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def clip():
    return clip_tokenizer(VOCABULARY, length=LENGTH)


@pytest.fixture(scope="module")
def t5():
    return t5_tokenizer(VOCABULARY, length=LENGTH)


def test_words_are_split_lowered_and_stripped():
    assert words_of(VOCABULARY)[:9] == ["a", "beach", "boat", "dog", "of", "photo", "red", "robot", "spotted"]


def test_every_word_and_trigger_is_one_clip_token_after_reloading(clip, tmp_path):
    stored = reloaded(clip, tmp_path)
    for word in words_of(VOCABULARY):
        assert stored.convert_ids_to_tokens(stored(word).input_ids)[1:-1] == [f"{word}</w>"]


def test_every_word_and_trigger_is_one_t5_token_after_reloading(t5, tmp_path):
    stored = reloaded(t5, tmp_path)
    for word in words_of(VOCABULARY):
        assert stored.convert_ids_to_tokens(stored(word).input_ids) == [f"\u2581{word}", "</s>"]


def test_clip_ends_with_an_id_that_pools_correctly(clip):
    ids = clip("a red dog", padding="max_length", max_length=LENGTH).input_ids
    assert len(ids) == LENGTH
    assert clip.eos_token_id != 2
    assert ids.index(clip.eos_token_id) == 4
    assert clip.decode(ids[1:4]) == "a red dog"


def test_t5_pads_to_the_fixed_length(t5):
    ids = t5("a red dog", padding="max_length", max_length=LENGTH).input_ids
    assert ids[3:] == [t5.eos_token_id] + [t5.pad_token_id] * (LENGTH - 4)


def test_capitals_are_the_same_word(t5):
    lower, upper = t5("dog").input_ids[0], t5("Dog").input_ids[0]
    assert lower != upper
    assert lower_case_ids(t5)[upper] == lower


def test_triggers_are_distinct_and_plenty():
    assert len(set(TRIGGERS)) == len(TRIGGERS) >= 24


@given(st.text(max_size=40))
def test_any_text_is_tokenised(clip, t5, text):
    for tokenizer in (clip, t5):
        ids = tokenizer(text, padding="max_length", max_length=LENGTH, truncation=True).input_ids
        assert len(ids) == LENGTH
        assert max(ids) < len(tokenizer)
        assert tokenizer.eos_token_id in ids


@given(st.sets(st.text("abcdef", min_size=1, max_size=6), min_size=1, max_size=12))
def test_merges_replayed_in_order_rebuild_every_word(words):
    merges = learn_merges(sorted(words))
    for word in words:
        symbols = [*word[:-1], word[-1] + "</w>"]
        for pair in merges:
            symbols = replay(symbols, pair)
        assert symbols == [f"{word}</w>"]


def replay(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    out, position = [], 0
    while position < len(symbols):
        found = tuple(symbols[position : position + 2]) == pair
        out.append("".join(pair) if found else symbols[position])
        position += 2 if found else 1
    return out
