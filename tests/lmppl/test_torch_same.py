"""`deterministic=True`: a row has the same bits in every batch and after every history."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from lmppl.errors import CapabilityError  # noqa: E402
from lmppl.lm.base import TokenLaw  # noqa: E402
from lmppl.lm.torch import TorchLM  # noqa: E402
from lmppl.lm.torch.prefill import Limits  # noqa: E402
from lmppl.random import GumbelMax, fold_array  # noqa: E402
from lmppl.types import Floats, Ids  # noqa: E402


def scores(rows: Any) -> Any:
    with rows.lm.computing():
        return rows._scores().scores.clone()


def histories(lm: Any, contexts: list[Ids], seed: int) -> list[Any]:
    """The scores of the same contexts, reached alone, together, by steps, forks, joins, again."""
    rng = np.random.default_rng(seed)
    out = []

    def add(rows: Any, order: Any = None) -> None:
        found = scores(rows)
        out.append(found if order is None else found[torch.from_numpy(np.argsort(order))])
        rows.close()

    out.append(torch.cat([scores(lm.open([c])) for c in contexts]))
    add(lm.open(contexts))
    order = rng.permutation(len(contexts))
    add(lm.open([contexts[i] for i in order]), order)  # retained rows
    lm.clear_cache()
    lm.limits = Limits(7, 64, 0)  # chunked prefill
    add(lm.open(contexts))
    lm.clear_cache()
    lm.limits = Limits(1024, 64, 48)
    rows = lm.open([c[:-2] for c in contexts])  # the last two tokens by steps
    for back in (2, 1):
        rows.push(np.array([c[-back] for c in contexts]))
    add(rows)
    lm.clear_cache()
    rows = lm.open([c[:-1] for c in contexts] * 2)
    rows.push(np.array([c[-1] for c in contexts] * 2))
    rows.select(np.arange(len(contexts), 2 * len(contexts)))  # forks
    add(rows)
    lm.clear_cache()
    rows = lm.open(contexts[:2])
    rows.join(contexts[2:])
    add(rows)
    return out


@pytest.mark.parametrize(
    "kind", ["llama", *(pytest.param(k, marks=pytest.mark.slow) for k in ("gpt2", "mistral"))]
)
def test_the_same_bits_after_every_history(small: ModuleType, kind: str) -> None:
    pair = small.Pair(kind, deterministic=True)
    rng = np.random.default_rng(1)
    shared = small.some_ids(rng, 33)
    contexts = [small.some_ids(rng, int(n)) for n in (5, 17, 64, 70, 3, 9)]
    contexts += [shared + small.some_ids(rng, int(n)) for n in (1, 2, 2, 30, 31, 40)]
    found = histories(pair.lm, contexts, 2)
    for one in found[1:]:
        assert torch.equal(one, found[0])
    pair.check(pair.lm.open(contexts), contexts)
    assert pair.lm.batch_gap == 0.0 and pair.lm.capabilities.batch_invariant


def test_without_it_bits_differ(small: ModuleType) -> None:
    """What the mode is for: the test above fails for a model that is not deterministic."""
    pair = small.Pair("llama")
    rng = np.random.default_rng(1)
    contexts = [small.some_ids(rng, int(n)) for n in (5, 17, 64, 70, 3, 9)]
    found = histories(pair.lm, contexts, 2)
    assert not all(torch.equal(one, found[0]) for one in found[1:])


def tokens(lm: TorchLM, contexts: list[Ids], size: int, length: int) -> tuple[Any, Floats]:
    """Drawn tokens and their log q [B, length], in batches of `size`."""
    keys = fold_array(np.arange(len(contexts), dtype=np.uint64), 9)
    parts, logq = [], []
    lm.clear_cache()
    for lo in range(0, len(contexts), size):
        part = slice(lo, lo + size)
        rows = lm.open(contexts[part])
        laws = [TokenLaw(temperature=1.5)] * len(contexts[part])
        drawn = []
        for step in range(length):
            drawn.append(rows.draw(fold_array(keys[part], step), laws, None, GumbelMax()))
            rows.push(drawn[-1].tokens)
        rows.close()
        parts.append(np.array([d.tokens for d in drawn]).T)
        logq.append(np.array([d.logq for d in drawn]).T)
    return np.concatenate(parts), np.concatenate(logq)


def test_the_same_draws_for_every_batch_size(small: ModuleType) -> None:
    pair = small.Pair("llama", deterministic=True)
    rng = np.random.default_rng(3)
    contexts = [small.some_ids(rng, int(n)) for n in rng.integers(1, 30, 16)]
    alone, logq = tokens(pair.lm, contexts, 1, 6)
    for size in (3, 16):
        ids, other = tokens(pair.lm, contexts, size, 6)
        assert (ids == alone).all() and np.abs(other - logq).max() < 1e-12


@pytest.mark.slow
@pytest.mark.model
def test_smollm2_draws_the_same_for_every_batch_size() -> None:
    from lmppl.lm import smollm2

    found = smollm2.locate()
    lm = TorchLM.load(found.path, device="cpu", dtype="float32", deterministic=True)
    prompt = lm.encode("The old lighthouse keeper climbed the stairs one last time. At the top he")
    contexts = [prompt[: 3 + 2 * n] for n in range(6)]
    alone, logq = tokens(lm, contexts, 1, 4)
    ids, other = tokens(lm, contexts, 6, 4)
    assert (ids == alone).all() and np.abs(other - logq).max() < 1e-12
    assert lm.batch_gap == 0.0


def test_only_where_it_can_be_promised(small: ModuleType) -> None:
    model = small.make_model("llama").to(torch.bfloat16)
    with pytest.raises(CapabilityError, match="bfloat16"):
        TorchLM(model, small.make_tokenizer(), deterministic=True)
    with pytest.raises(CapabilityError, match="slots"):
        small.Pair("mamba", deterministic=True)
