"""Canonical tokens of SmolLM2: which part of a text is cut for good, and the potential made of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from lmppl.lm.smollm2 import locate
from lmppl.lm.tokenizer import HFTokenizer
from lmppl.token_potentials import Canonical
from lmppl.types import Ids
from lmppl.weights import NEG_INF

PIECES = ["'", "l", "r", "e", "v", " ", "s", "1", "2", "!", "\n", "é", "a", "b", "  ", "the ", " cat",
          "ing", "A", "\t", "<", "|", "im"]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> HFTokenizer:
    from transformers import AutoTokenizer

    fast: Any = AutoTokenizer.from_pretrained(locate().path)
    return HFTokenizer(fast, len(fast))


def violations(
    tokenizer: HFTokenizer, settled: Callable[[str], int], texts: int
) -> tuple[int, int]:
    """How often a continuation changed a settled token, or a restart read otherwise; and tries."""
    rng = random.Random(0)

    def some(most: int) -> str:
        return "".join(rng.choice(PIECES) for _ in range(rng.randint(1, most)))

    def first(ids: Ids, border: int) -> tuple[Ids, int]:
        n = end = 0
        while n < len(ids) and end < border:
            end += len(tokenizer.token_bytes(ids[n]))
            n += 1
        return ids[:n], end

    wrong = tried = 0
    for _ in range(texts):
        text, more = some(12), some(6)
        border = settled(text)
        tried += border > 0
        before, end = first(tokenizer.encode(text), border)
        whole = tokenizer.encode(text + more)
        rest = (text + more).encode()[end:].decode()
        wrong += first(whole, border)[0] != before
        wrong += tokenizer.encode(rest) != whole[len(before) :]
    return wrong, tried


def test_settled_tokens_stay(tokenizer: HFTokenizer) -> None:
    wrong, tried = violations(tokenizer, tokenizer.settled, 500)
    assert wrong == 0
    assert tried > 250


def test_one_word_less_would_not_do(tokenizer: HFTokenizer) -> None:
    """The test sees the difference: "'" and "l" become "'ll"."""

    def but_the_last(text: str) -> int:
        words = tokenizer._text.pre_tokenizer.pre_tokenize_str(text)
        return sum(len(word) for word, _ in words[:-1])

    assert violations(tokenizer, but_the_last, 500)[0] > 0


class Words:
    """As much of a language model as the potential needs."""

    def __init__(self, tokenizer: HFTokenizer) -> None:
        self.vocab_size = tokenizer.width
        self.eos_ids = tokenizer.eos_ids
        self.token_bytes = tokenizer.token_bytes
        self.encode = tokenizer.encode
        self.settled = tokenizer.settled


def test_canonical_strings_keep_their_weight(tokenizer: HFTokenizer) -> None:
    lm: Any = Words(tokenizer)
    rng = random.Random(1)
    for _ in range(60):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 20)))
        state: Any = Canonical().start(lm)
        for token in tokenizer.encode(text):
            assert state.log_prefix == 0.0
            state = state.advance(token)
        assert state.log_complete == 0.0


def test_others_lose_it_while_they_are_written(tokenizer: HFTokenizer) -> None:
    """Bytes of "hello world again": zero two words after the first piece that is not canonical."""
    lm: Any = Words(tokenizer)
    alone = {tokenizer.token_bytes(i): i for i in range(tokenizer.width)}
    state: Any = Canonical().start(lm)
    lost = None
    text = b"hello world again"
    for n, byte in enumerate(text):
        state = state.advance(alone[bytes((byte,))])
        assert state.log_complete == NEG_INF or n == 0
        if state.log_prefix == NEG_INF and lost is None:
            lost = n
    assert lost == text.index(b" again")
