"""After a change only the sites are scored whose prompt or value is new; the sum stays right."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmppl import LM, Bernoulli, Choice, effect, factor, handlers, observe, program, sample
from lmppl.errors import BadArgument, UnusedCondition
from lmppl.graphs.structure.rescoring import LogJoint
from lmppl.handlers import log_density
from lmppl.lm.table import TableLM

LM_AB = TableLM(
    ["a", "b", "<eos>"], {(): [0.5, 0.3, 0.2], (0,): [0.2, 0.5, 0.3], (1,): [0.6, 0.1, 0.3]}
)


@program
def diamond() -> Any:
    top = sample("top", LM("", max_tokens=2))
    left = sample("left", LM(f"{top}a", max_tokens=2))
    right = sample("right", LM(f"{top}b", max_tokens=2))
    size = effect("size", len, left)
    factor("long", 0.1 * size)
    observe("end", Choice(f"{left}{right}", ["a", "b"]), "a")
    return size


START = {"top": "a", "left": "b", "right": "ab"}


def test_only_what_changed_is_scored() -> None:
    joint = LogJoint(diamond, lm=LM_AB)
    assert joint.set(START).rescored == ("top", "left", "right", "end")
    calls = joint.ledger.calls
    assert joint.set({}).rescored == () and joint.ledger.calls == calls
    assert joint.set({"right": "b"}).rescored == ("right", "end")
    assert joint.set({"left": "bb"}).rescored == ("left", "end")
    assert joint.set({"top": "b"}).rescored == ("top", "left", "right")
    assert joint.ledger.calls > calls
    calls = joint.ledger.calls
    back = joint.set(START)  # all of it has been scored before
    assert back.rescored == () and joint.ledger.calls == calls
    assert back.result == 1 and back.values["size"] == 1 and back.terms["long"] == 0.1


@settings(max_examples=30)
@given(st.integers(0, 10**9))
def test_the_sum_is_that_of_a_whole_run(seed: int) -> None:
    """Any sequence of changes ends where scoring from scratch does; counts are those of new pairs."""
    rng = random.Random(seed)
    joint = LogJoint(diamond, lm=LM_AB)
    now = dict(START)
    joint.set(now)
    seen = {(s, now["top"] if s in ("left", "right") else "", now[s]) for s in START}
    ends = {now["left"] + now["right"]}
    for _ in range(6):
        site = rng.choice(list(START))
        now[site] = rng.choice(["", "a", "b", "ab", "ba"])
        found = joint.set({site: now[site]})
        want = set()
        for s in START:
            pair = (s, now["top"] if s in ("left", "right") else "", now[s])
            if pair not in seen:
                want.add(s)
                seen.add(pair)
        if now["left"] + now["right"] not in ends:
            want.add("end")
            ends.add(now["left"] + now["right"])
        assert set(found.rescored) == want
        exact = log_density(diamond, now, lm=LM_AB)
        assert found.log_joint == pytest.approx(exact, abs=1e-12) or found.log_joint == exact


def test_branches_conditions_scales_and_errors() -> None:
    @program
    def branch() -> Any:
        go = sample("go", Bernoulli(0.25))
        if go:
            sample("more", Bernoulli(0.4))
        with handlers.scale(scale=2.0):
            sample("twice", Bernoulli(0.5))
        with handlers.mask():
            observe("masked", Bernoulli(0.1), True)
        return sample("seen", Bernoulli(0.9 if go else 0.1))

    joint = LogJoint(branch, observations={"seen": True})
    off = joint.set({"go": False, "twice": True})
    assert off.log_joint == pytest.approx(math.log(0.75) + 2 * math.log(0.5) + math.log(0.1))
    with pytest.raises(BadArgument, match="'more' has no value"):
        joint.set({"go": True})
    on = joint.set({"go": True, "more": True})
    assert set(on.rescored) == {"go", "more", "seen"}
    assert on.log_joint == pytest.approx(
        math.log(0.25) + math.log(0.4) + 2 * math.log(0.5) + math.log(0.9)
    )
    with pytest.raises(UnusedCondition):
        joint.set({"mroe": True})
