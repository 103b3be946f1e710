"""Costs by site: they add up to what the models were asked for, however strings are drawn."""

from __future__ import annotations

from typing import Any

import pytest

from lmppl import LM, Choice, factor, observe, plate, potentials, program, sample
from lmppl.inference import SMC, Engine, Importance, ParticleGibbs, infer, tokens
from lmppl.lm.table import TableLM
from lmppl.potentials import Factor

TINY = TableLM.random(["a", "b", "<eos>"], seed=3)


@program
def several() -> Any:
    """Strings, a plate of them, a scored text and options."""
    x = sample("x", LM("a", max_tokens=3))
    factor("w", 0.3 * len(x))
    y = plate("y", [1, 2], lambda n: sample("z", LM(x, max_tokens=n)))
    observe("seen", LM("b", max_tokens=2), "a")
    return x, y, sample("c", Choice("a", ["a", "b"]))


@pytest.mark.parametrize(
    "engine",
    [
        Importance(8),
        SMC(8, always=True),
        SMC(8, resample_at=tokens(1), always=True),
        ParticleGibbs(4, sweeps=2, resample_at=tokens(2)),
    ],
    ids=lambda e: type(e).__name__,
)
def test_sites_add_up_to_the_models(engine: Engine) -> None:
    book = infer(several, engine=engine, lm=TINY, seed=0).ledger
    sites = book.sites
    assert sites.keys() == {"x", "y[0]/z", "y[1]/z", "seen", "c"}
    for name in ("calls", "tokens_in", "tokens_out"):
        assert sum(getattr(cost, name) for cost in sites.values()) == getattr(book, name)
    assert sites["x"].tokens_out >= sites["x"].calls > 0
    assert sites["seen"].tokens_out == sites["c"].tokens_out == 0
    assert all(cost.seconds > 0.0 for cost in sites.values())


def test_rewards_take_time_at_their_step() -> None:
    rewarded = potentials.apply(several, Factor(lambda text: 0.5, at="x", link="probability"))
    book = infer(rewarded, engine=Importance(4), lm=TINY, seed=0).ledger
    (asked,) = [cost for at, cost in book.sites.items() if at.endswith(":score")]
    assert asked.seconds > 0.0 and asked.calls == 0
    assert book.reward_calls == 4
