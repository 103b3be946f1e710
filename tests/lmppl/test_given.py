"""Given tokens: a string that is given has the numbers of the one that was drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lmppl import LM
from lmppl.batches import run_lm_jobs
from lmppl.errors import LmpplError
from lmppl.given import GivenTokens
from lmppl.jobs import Env, Generate
from lmppl.lm.table import TableLM
from lmppl.random import GumbelMax
from lmppl.token_potentials import AWRS

TINY = TableLM.random(["a", "b", "ab", "<eos>"], seed=5, order=2)
LAWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stop": {"stop": "ba"},
    "tempered": {"temperature": 1.7},
    "truncated": {"top_p": 0.7, "mixture": 0.2, "temperature": 0.6},
    "masked": {"regex": "(a|b)*"},
    "ended": {"limit": "eos"},
    "weighed": {"potential": lambda text: -0.5 * text.count("b")},
}


def job(key: int, **settings: Any) -> Generate:
    step = LM("a", max_tokens=5, **settings).draw(key, Env({"default": TINY}))
    assert type(step) is Generate
    return step


def numbers(jobs: list[Generate]) -> list[Any]:
    return [(j.state.ids, j.state.logw, j.state.logq, j.state.finish) for j in jobs]


def run(jobs: list[Generate], limit: int) -> None:
    for _ in range(5):
        for j in jobs:
            j.limit = limit
        run_lm_jobs([j for j in jobs if not j.finished], GumbelMax())


@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("name", LAWS)
def test_given_strings_weigh_what_drawn_ones_do(name: str, limit: int) -> None:
    """Other keys, the same tokens: equal weights; beside strings that are drawn, which stay."""
    drawn = [job(k, **LAWS[name]) for k in range(1, 9)]
    run(drawn, limit)
    given = [job(k, **LAWS[name]) for k in range(101, 109)]
    for one, other in zip(given, drawn, strict=True):
        one.given = tuple(other.state.ids)
    beside = [job(k, **LAWS[name]) for k in range(1, 9)]
    run([*given, *beside], limit)
    assert numbers(given) == numbers(drawn) == numbers(beside)
    assert len({tuple(ids) for ids, *_ in numbers(drawn)}) > 3


def test_what_cannot_be_is_seen() -> None:
    """A token that the mask forbids, and a string that does not end where it should."""
    masked, longer = job(1, regex="a*"), job(2)
    masked.given, longer.given = (1,), (0,)
    run([masked, longer], 2)
    assert masked.state.ids[0] != 1
    assert longer.state.ids[0] == 0 and len(longer.state.ids) > 1


def test_a_sampled_string_cannot_be_given() -> None:
    one = job(1, regex="a*", sampler=AWRS())
    one.given = (0,)
    with pytest.raises(LmpplError, match="sampler draws cannot be given"):
        run([one], 1)


def test_other_keys_are_left_to_chance() -> None:
    chance, keys = GivenTokens({7: 2}, GumbelMax()), np.arange(6, 9, dtype=np.uint64)
    rows = np.log(np.full((3, 4), 0.25))
    free = GumbelMax().categorical(keys, rows)
    found = chance.categorical(keys, rows)
    assert found.tolist() == [free[0], 2, free[2]]
    assert np.array_equal(chance.offsets(keys), GumbelMax().offsets(keys))
