"""Whatever a posterior and the decisions are asked with: it works, or the error says what to write."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmppl import Bernoulli, Categorical, program, sample
from lmppl.errors import BadArgument, LmpplError
from lmppl.inference import Elimination, Enumerate, Importance, Posterior, decide, infer
from lmppl.inference.results.decisions import argmax, majority, minimum_risk, top, vote
from lmppl.inference.results.export import to_netcdf
from lmppl.inference.results.pooling import pool
from lmppl.inference.results.tally import tally

STRANGE: tuple[Any, ...] = (
    None, "x", "", -1, 0, 1.5, math.nan, math.inf, True, [], [1.5], (1, 2), ["a"], {"a": 1},
    object(), b"x", {1, 2}, np.int64(3),
)  # fmt: skip


@program
def pair() -> Any:
    """A number and a text."""
    sample("n", Bernoulli(0.5))
    return sample("w", Categorical(["a", "b"], [0.5, 0.5]))


DRAWN = infer(pair, engine=Importance(8), seed=0)
POSTERIORS = {
    "drawn": DRAWN,
    "listed": infer(pair, engine=Enumerate()),
    "summed": infer(pair, engine=Elimination(draws=4), seed=0),
}
Call = Callable[[Any], Any]


def given(fn: Callable[..., Any], name: str, *args: Any) -> Call:
    """A call with the value as the argument of this name."""
    return lambda value: fn(*args, **{name: value})


def weighing(fn: Call) -> Call:
    """A call with the value as a weight."""
    return lambda value: fn({"a": value})


CALLS: dict[str, Call] = {
    "traces": lambda v: Posterior(v, DRAWN.log_weights, 0.0),
    "log_weights": lambda v: Posterior(DRAWN.traces, v, 0.0),
    "pool": pool,
    "pool of two": lambda v: pool([DRAWN, v]),
    "decide by": lambda v: decide(DRAWN, v),
    **{f"{fn.__name__}(answers)": fn for fn in (tally, vote, majority, top, decide)},
    **{f"{fn.__name__} of weights": weighing(fn) for fn in (tally, majority)},
    **{f"tally({k})": given(tally, k, DRAWN) for k in ("of", "key", "same", "keep")},
    **{
        f"{by}(seed)": given(decide, "seed", ["a", "b"], by)
        for by in ("vote", "majority", "sample")
    },
    "top(k)": lambda v: top(DRAWN, v),
    "argmax(score)": lambda v: argmax(DRAWN, score=v),
    "argmax of values": lambda v: argmax(DRAWN, score=lambda t: v),
    "minimum_risk(loss)": lambda v: minimum_risk(DRAWN, loss=v),
    "minimum_risk(similarity)": lambda v: minimum_risk(DRAWN, similarity=v),
    "minimum_risk of values": lambda v: minimum_risk(DRAWN, loss=lambda a, b: v),
    "minimum_risk(most)": lambda v: minimum_risk(DRAWN, loss=lambda a, b: a != b, most=v),
    "total_variation": DRAWN.marginal().total_variation,
    "total_variation of values": lambda v: DRAWN.marginal().total_variation({"a": v}),
}


def refused_or_works(name: str, call: Call) -> None:
    for value in STRANGE:
        try:
            call(value)
        except LmpplError as error:
            assert error.fields.get("fix"), f"{name} of {value!r}: {error}"


@pytest.mark.parametrize("name", CALLS)
def test_a_strange_value_works_or_is_refused(name: str) -> None:
    refused_or_works(name, CALLS[name])


@pytest.mark.parametrize("name", POSTERIORS)
def test_a_posterior_is_asked_with_a_strange_value(name: str) -> None:
    found = POSTERIORS[name]
    asked: list[Call] = [
        found.values, found.marginal, found.expectation, found.sample, found.log_evidence_interval,
        lambda v: found.sample(2, seed=v),
    ]  # fmt: skip
    for call in asked:
        refused_or_works(name, call)


def test_a_strange_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    calls: list[Call] = [DRAWN.save, DRAWN.report, Posterior.load, lambda v: to_netcdf(DRAWN, v)]
    for value in STRANGE:
        if value == "x":
            continue
        for call in calls:
            with pytest.raises(LmpplError) as caught:
                call(value)
            assert caught.value.fields.get("fix"), value
    assert not list(tmp_path.iterdir())


def test_a_loss_may_be_a_truth_value() -> None:
    """As may be any number of numpy, and nan is none."""
    assert minimum_risk(["a", "a", "b"], loss=lambda a, b: a != b).answer == "a"
    assert minimum_risk(["a", "a", "b"], loss=lambda a, b: np.float64(a != b)).answer == "a"
    with pytest.raises(BadArgument, match="loss must be a number, got nan"):
        minimum_risk(["a", "b"], loss=lambda a, b: math.nan)


def test_seeds_of_numpy_are_seeds() -> None:
    assert DRAWN.sample(5, seed=np.int64(3)) == DRAWN.sample(5, seed=3)  # type: ignore[arg-type]
    assert vote(["a", "b"], seed=np.int64(3)) == vote(["a", "b"], seed=3)  # type: ignore[arg-type]
