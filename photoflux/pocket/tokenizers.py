"""Word-level tokenizers of the pocket base in the two formats that a stock `FluxPipeline` loads.

Every word of the pocket world and every trigger is one token in both. Anything else falls back to letters, so that no
prompt is an error. Both tokenizers are rebuilt by transformers from vocabulary and merges alone, hence no hidden
settings: what the constructors below are given is all there is.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, T5Tokenizer

TRIGGERS = (
    "sks", "ohwx", "zwx", "tok", "xjy", "qvz", "vrb", "kzt", "wqx", "jkp", "zpd", "xcv",
    "bnm", "qpl", "zmr", "vxk", "wjz", "qkd", "hjx", "fzq", "pvn", "gxw", "mzk", "rqj",
    "tvx", "dzh", "lqb", "nwz", "cjx", "yqr", "ukz", "ixo", "vqk", "bnz", "qtp", "kyv",
)  # fmt: skip
"""Rare words that name one subject, each one token. The base knows an individual of every kind by each (`world.named`)."""

END_OF_WORD = "</w>"
SPACE = "\u2581"
WORD_SCORE, LETTER_SCORE = -1.0, -20.0


def words_of(vocabulary: Iterable[str]) -> list[str]:
    """The distinct lower-case words of a vocabulary in a stable order, triggers last."""
    split = (word for entry in vocabulary for word in entry.lower().split())
    known = sorted({word.strip(string.punctuation) for word in split} - {""} - set(TRIGGERS))
    return [*known, *TRIGGERS]


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until each word is one symbol.

    Encoding replays the merges in the order learnt, so every word given here comes out as one token.
    """
    pieces = [[*word[:-1], word[-1] + END_OF_WORD] for word in words]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for piece in pieces for pair in pairwise(piece)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = [_merged(piece, best) for piece in pieces]
    return merges


def _merged(piece: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for symbol in piece:
        joins = out and (out[-1], symbol) == pair
        out[-1:] = [out[-1] + symbol] if joins else [*out[-1:], symbol]
    return out


def clip_tokenizer(vocabulary: Iterable[str], *, length: int) -> CLIPTokenizer:
    """Byte-pair tokenizer: `<start> words <end>`, padded with `<end>` to `length` tokens.

    The end token never has id 2: CLIP text models with `eos_token_id == 2` pool at the largest id instead.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    merges = learn_merges(words_of(vocabulary))
    letters = sorted(ByteLevel.alphabet())
    symbols = ["<|startoftext|>", *letters, *(letter + END_OF_WORD for letter in letters)]
    symbols += dict.fromkeys("".join(pair) for pair in merges)
    symbols.append("<|endoftext|>")
    ids = {symbol: index for index, symbol in enumerate(dict.fromkeys(symbols))}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=length)


def t5_tokenizer(vocabulary: Iterable[str], *, length: int) -> T5Tokenizer:
    """Unigram tokenizer: `words </s>`, padded with `<pad>` to `length` tokens.

    T5 keeps case, so every word also exists with a capital; `lower_case_ids` says which two are one word.
    """
    from transformers import T5Tokenizer

    words = words_of(vocabulary)
    cased = dict.fromkeys([*words, *(word.capitalize() for word in words)])
    pieces = [(SPACE + word, WORD_SCORE) for word in cased]
    taken = {piece for piece, _ in pieces}
    letters = [SPACE, *string.ascii_letters, *string.digits, *string.punctuation]
    pieces += [(letter, LETTER_SCORE) for letter in letters if letter not in taken]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(vocab=special + pieces, extra_ids=0, model_max_length=length)


def lower_case_ids(tokenizer: T5Tokenizer) -> dict[int, int]:
    """Token ids of capitalised words and letters -> ids of the same in lower case."""
    ids = tokenizer.get_vocab()
    cased = {token: token.lower() for token in ids if token != token.lower()}
    return {ids[token]: ids[lower] for token, lower in cased.items() if lower in ids}
