"""The paged cache of `TorchLM`: whatever a batch has been through, its rows are the uncached rows.

A schedule is a random life of one batch: strings grow, fork, are resampled, leave, join in the
middle, end and begin again on what is retained or was evicted. After every move the next-token
log-probabilities of every row are compared with one uncached pass of the untouched model.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from lmppl.lm.base import TokenLaw  # noqa: E402
from lmppl.lm.torch import TorchLM  # noqa: E402
from lmppl.lm.torch.cache import Block, pages_of  # noqa: E402
from lmppl.lm.torch.prefill import Limits  # noqa: E402
from lmppl.lm.torch.store import RetainedRows  # noqa: E402
from lmppl.random import GumbelMax, fold_array  # noqa: E402
from lmppl.types import Floats, Ids  # noqa: E402

KINDS = ("llama", "gpt2", "mistral")
TOLERANCE = 1e-4
FAST = 5
"""Schedules of each kind that are not marked slow: the others make 200 in all."""
MOVES = ("push", "push", "push", "resample", "leave", "join", "reopen", "evict", "score")


def uncached(model: Any, contexts: list[Ids], absent: Any = None) -> Floats:
    """Next-token log-probabilities by one pass without a cache, padded on the right."""
    ids = torch.zeros((len(contexts), max(map(len, contexts))), dtype=torch.int64)
    for b, context in enumerate(contexts):
        ids[b, : len(context)] = torch.tensor(context)
    with torch.no_grad():
        scores = model(input_ids=ids, use_cache=False).logits.double()
    last = scores[torch.arange(len(contexts)), torch.tensor([len(c) - 1 for c in contexts])]
    if absent is not None:
        last[:, absent] = -torch.inf
    out: Floats = torch.log_softmax(last, dim=1).numpy()
    return out


class Life:
    """One random schedule."""

    def __init__(self, lm: TorchLM, plain: Any, seed: int, most: int, longest: int) -> None:
        self.lm, self.plain = lm, plain
        self.rng = np.random.default_rng(seed)
        self.most, self.longest = most, longest
        self.absent = None if lm._absent is None else lm._absent.cpu()
        preamble = self.some(int(self.rng.integers(0, longest // 3)))
        self.prompts = [preamble + self.some(int(n)) for n in self.rng.integers(1, longest // 3, 4)]
        self.contexts = self.fresh()
        self.rows = lm.open(self.contexts)
        self.check()

    def some(self, n: int) -> Ids:
        return tuple(self.rng.integers(3, 262, n).tolist())

    def fresh(self) -> list[Ids]:
        n = int(self.rng.integers(1, self.most // 2 + 1))
        return [self.prompts[q] for q in self.rng.integers(0, len(self.prompts), n)]

    def check(self) -> None:
        got, expected = self.rows.log_probs(), uncached(self.plain, self.contexts, self.absent)
        finite = np.isfinite(expected)
        assert (np.isfinite(got) == finite).all()
        assert np.abs(got[finite] - expected[finite]).max() < TOLERANCE

    def move(self, name: str) -> None:
        getattr(self, name)()
        if max(map(len, self.contexts)) > self.longest - 8:
            self.rows.close()
            self.contexts = self.fresh()
            self.rows = self.lm.open(self.contexts)
        self.check()

    def push(self) -> None:
        """A few tokens, some of them together before anybody asks for scores."""
        for _ in range(int(self.rng.integers(1, 4))):
            tokens = self.rng.integers(3, 262, len(self.contexts))
            self.rows.push(tokens)
            self.contexts = [(*c, int(t)) for c, t in zip(self.contexts, tokens, strict=True)]
            if self.rng.random() < 0.5:
                self.rows.log_mass([(5,)] * len(tokens), [1.0] * len(tokens))

    def resample(self) -> None:
        """Survivors of a resampling, in any order."""
        weights = self.rng.dirichlet(np.full(len(self.contexts), 0.5))
        index = self.rng.choice(len(weights), int(self.rng.integers(1, self.most + 1)), p=weights)
        self.rows.select(index)
        self.contexts = [self.contexts[i] for i in index]

    def leave(self) -> None:
        """Finished rows leave."""
        n = int(self.rng.integers(1, len(self.contexts) + 1))
        index = np.sort(self.rng.choice(len(self.contexts), n, replace=False))
        self.rows.select(index)
        self.contexts = [self.contexts[i] for i in index]

    def join(self) -> None:
        """New requests in the middle: prompts, and continuations of what is here."""
        new = self.fresh()[: max(1, self.most - len(self.contexts))]
        grown = [c + self.some(int(self.rng.integers(0, 5))) for c in self.contexts[:2]]
        new += [c for c in grown if len(c) < self.longest - 8]
        self.rows.join(new)
        self.contexts += new
        if len(self.contexts) > self.most:
            self.leave()

    def reopen(self) -> None:
        """Close, and open survivors with more tokens, beginnings of them, and new prompts."""
        self.rows.close()
        rng = self.rng
        index = rng.integers(0, len(self.contexts), int(rng.integers(1, self.most + 1)))
        self.contexts = [self.contexts[i] + self.some(int(rng.integers(0, 4))) for i in index]
        if rng.random() < 0.5:
            self.contexts[0] = self.contexts[0][: int(rng.integers(1, len(self.contexts[0]) + 1))]
        if rng.random() < 0.3:
            self.contexts += self.fresh()
        self.rows = self.lm.open(self.contexts)

    def evict(self) -> None:
        """Retained rows are lost, all or those above a new budget."""
        if self.rng.random() < 0.5:
            self.lm.clear_cache()
        else:
            self.lm.store.budget = int(self.rng.choice([0, 40_000, 1 << 30]))
        self.lm.limits = Limits(int(self.rng.choice([16, 1024])), 64, int(self.rng.choice([0, 48])))

    def score(self) -> None:
        """Given continuations, scored beside the running batch."""
        tails = [self.some(int(n)) for n in self.rng.integers(0, 4, len(self.contexts))]
        got = self.lm.score(self.contexts, tails, [(2,)] * len(tails), [1.0] * len(tails))
        ends = [c + t for c, t in zip(self.contexts, tails, strict=True)]
        last = uncached(self.plain, ends, self.absent)
        for row, one in zip(last, got, strict=True):
            assert one[-1] == pytest.approx(row[2], abs=TOLERANCE)


def live(lm: TorchLM, plain: Any, seed: int, *, moves: int, most: int, longest: int) -> None:
    lm.clear_cache()
    life = Life(lm, plain, seed, most, longest)
    for name in life.rng.choice(MOVES, moves):
        life.move(str(name))
    life.rows.close()


def schedules() -> list[Any]:
    """200 over the three kinds: the first of each kind are fast."""
    out = []
    for seed in range(200):
        kind, turn = KINDS[seed % 3], seed // 3
        marks = [] if turn < FAST else [pytest.mark.slow]
        out.append(pytest.param(kind, seed, marks=marks, id=f"{kind}-{seed}"))
    return out


@pytest.mark.parametrize(("kind", "seed"), schedules())
def test_random_schedules(small: ModuleType, kind: str, seed: int) -> None:
    pair = small.Pair(kind, kv_bytes=(1 << 30, 60_000, 0)[seed // 3 % 3])
    live(pair.lm, pair.plain, seed, moves=12, most=14, longest=80)


@pytest.fixture(scope="module")
def untouched() -> Any:
    """A copy of SmolLM2 that knows nothing of us."""
    from lmppl.lm import smollm2 as files

    return transformers.AutoModelForCausalLM.from_pretrained(
        str(files.locate().path), use_safetensors=True, dtype=torch.float32
    ).eval()


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("seed", range(20))
def test_random_schedules_of_smollm2(smollm2: TorchLM, untouched: Any, seed: int) -> None:
    before = smollm2.store, smollm2.limits
    smollm2.store = RetainedRows((1 << 30, 30_000_000)[seed % 2])
    try:
        live(smollm2, untouched, seed, moves=6, most=6, longest=48)
    finally:
        smollm2.store, smollm2.limits = before


# -- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [16, 64])
def test_memory_after_steady_resampling(small: ModuleType, rows: int) -> None:
    """N rows, resampled at every one of T tokens, hold on average at most T + 4 N ln N slots.

    The number of ancestors fluctuates with the resamplings: at its worst it may be a fourth more.
    """
    pair = small.Pair("llama", kv_bytes=0)
    pair.lm.max_context = pair.lm.network.max_context = (
        1000  # beyond its training: only sizes count
    )
    rng = np.random.default_rng(5)
    prompt = tuple(rng.integers(3, 262, 40).tolist())
    batch = pair.lm.open([prompt] * rows)
    shares = []
    for step in range(150):
        batch.push(rng.integers(3, 262, rows))
        batch.log_mass([(5,)] * rows, [1.0] * rows)
        batch.select(rng.integers(0, rows, rows))
        bound = len(prompt) + step + 1 + 4 * rows * math.log(rows)
        shares.append(batch.block.slots / bound)
    assert np.mean(shares[20:]) <= 1.0 and max(shares) <= 1.25
    assert batch.block.slots < 0.2 * rows * int(batch.lens[0])
    assert len(batch.block.columns) <= 13


def test_a_fork_moves_no_page_but_the_last(small: ModuleType) -> None:
    """The pages before the last are the same objects in a table and in its forks."""
    pair = small.Pair("llama", kv_bytes=0)
    rng = np.random.default_rng(6)
    batch = pair.lm.open([tuple(rng.integers(3, 262, 40).tolist())] * 6)
    for _ in range(28):
        batch.push(rng.integers(3, 262, 6))
        batch.log_mass([(5,)] * 6, [1.0] * 6)
    before = pages_of([batch.block])
    batch.select(np.array([0, 0, 1, 2, 3, 4, 4, 5]))
    after = pages_of([batch.block])
    assert list(map(id, after)) == list(map(id, before))
    batch.push(rng.integers(3, 262, 8))
    batch.log_mass([(5,)] * 8, [1.0] * 8)
    young = pages_of([batch.block])
    assert young[0] is before[0] and young[1] is before[1] and young[2].rows == 8
    batch.select(np.array([0, 1, 1, 2, 3, 4, 5, 6, 7]))
    forked = pages_of([batch.block])
    assert forked[0] is before[0] and forked[1] is before[1]
    assert forked[2] is not young[2] and forked[2].rows == 9


def test_joined_strings_draw_what_they_draw_alone(small: ModuleType) -> None:
    """Rows that join at the third token of others get their own tokens, bit by bit of the key."""
    pair = small.Pair("llama")
    rng = np.random.default_rng(7)
    contexts = [tuple(rng.integers(3, 262, int(n)).tolist()) for n in rng.integers(3, 30, 9)]
    keys = rng.integers(0, 2**63, 9).astype(np.uint64)

    def draw(batch: Any, which: list[int], steps: list[int]) -> list[int]:
        own = np.array(steps, dtype=np.uint64)
        laws = [TokenLaw()] * len(which)
        found = batch.draw(fold_array(keys[which], own), laws, None, GumbelMax())
        batch.push(found.tokens)
        tokens: list[int] = found.tokens.tolist()
        return tokens

    alone = []
    for b in range(9):
        batch = pair.lm.open([contexts[b]])
        alone.append([draw(batch, [b], [s])[0] for s in range(5)])
    pair.lm.clear_cache()
    batch = pair.lm.open(contexts[:4])
    together: list[list[int]] = [[] for _ in range(9)]
    which = list(range(4))
    for turn in range(8):
        if turn == 3:
            batch.join(contexts[4:])
            which += range(4, 9)
        for b, t in zip(which, draw(batch, which, [len(together[b]) for b in which]), strict=True):
            together[b].append(t)
    assert [own[:5] for own in together] == alone
    assert isinstance(batch.block, Block)
