"""Makers of guides: rewards and values as h, and h* of a finite program by enumeration."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.calls import infer
from lmppl.inference.enumeration import Enumerate
from lmppl.inference.guide import Guide
from lmppl.inference.results.posterior import Posterior
from lmppl.jobs import Env
from lmppl.potentials import Value
from lmppl.steps import steps_of
from lmppl.text import Text
from lmppl.trace import Entry, Trace
from lmppl.types import Floats
from lmppl.weights import NEG_INF, log_add, log_sum_exp

RUNS, SCORES = 32, 100_000
"""Runs whose scores are kept, and scores of each."""


def reward_guide(reward: Any, at: Any = None, *, floor: float = 1e-3, **options: Any) -> Guide:
    """h = the reward of the steps so far, a number in [0, 1]."""
    return value_guide(Value(reward, at=at, link="probability", **options), floor=floor)


def value_guide(value: Value, *, floor: float = 1e-3, **declared: Any) -> Guide:
    """h = link(aggregate of the scores so far); 1 before the first step.

    A prefix is scored once in a run: later barriers, and other particles that share it, find its
    score.

    Args:
        value: the value function.
        floor: what a smaller h is raised to, so that no living particle is cut off.
        **declared: of `Guide`: semiring, admissible, exact.
    """
    if not isinstance(value, Value):
        raise BadArgument(
            f"Guide.value needs a potentials.Value, got {type(value).__name__}",
            why="other potentials change the target: potentials.apply(program, ...) is for them",
            fix="write Guide.value(Value(score, at=...))",
        )

    runs: dict[int, tuple[Env, dict[Any, float]]] = {}

    def ask(trace: Trace, env: Env) -> Any:
        # the key is an address in memory, which the entry keeps from being used again
        if id(env) not in runs and len(runs) >= RUNS:
            runs.clear()
        known = runs.setdefault(id(env), (env, {}))[1]
        if len(known) >= SCORES:
            known.clear()
        return value.step(steps_of(trace, value.at), env, known)

    return Guide(ask, steps=True, floor=floor, name=value.formula("t"), **declared)


def optimal_guide(
    program: Callable[..., Any],
    *args: Any,
    lm: Any = None,
    semiring: str = "sum",
    observations: Mapping[str, Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Guide:
    """h*(prefix) of the module `lmppl.inference.guide`, by enumerating the program once.

    Args:
        program: a finite program.
        *args: its arguments.
        lm: the language model.
        semiring: "sum" or "max".
        observations: as in `infer`.
        kwargs: keyword arguments of the program.
    """
    table = _Table(_enumerated(program, args, lm, observations, kwargs))
    best = log_sum_exp if semiring == "sum" else _largest
    known: dict[Any, float] = {}

    def optimal(trace: Trace) -> float:
        key = _key(trace)
        if key not in known:
            known[key] = best(table.below(trace))
        if known[key] == NEG_INF:
            return NEG_INF
        half = [s.logw + s.logq for s in trace.partial.values()]
        return known[key] - trace.log_joint - math.fsum(half)

    return Guide(
        optimal,
        semiring=semiring,
        exact=True,
        admissible=semiring == "max",
        name=f"h* ({semiring})",
    )


def relaxed_guide(
    program: Callable[..., Any],
    *args: Any,
    key: Callable[[Trace], Hashable],
    lm: Any = None,
    semiring: str = "sum",
    observations: Mapping[str, Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Guide:
    """h that sees only `key(trace)`: over all prefixes of that key, the mean or the largest h*.

    The largest is admissible; the mean is taken with weights γ(prefix). A key that no prefix of
    positive weight has gets h = 0 in the max semiring, and 1e-3 in the sum.
    """
    better = log_add if semiring == "sum" else max
    prefixes: dict[Hashable, Trace] = {}
    below: dict[Hashable, float] = {}
    found = _enumerated(program, args, lm, observations, kwargs)
    for trace, log_weight in zip(found.traces, found.log_weights.tolist(), strict=True):
        head: Entry | None = None
        drawn: tuple[Hashable, ...] = ()
        for n, e in enumerate([None, *trace.sites]):
            if e is not None:
                head = Entry(head, e.op, e.address, e.value, e.logp, e.logq, e.logw)
                if e.op == "sample":
                    drawn = (*drawn, e.address, _value(e.value))
            cut: Hashable = (n, drawn)
            prefixes.setdefault(cut, Trace(head))
            below[cut] = better(below.get(cut, NEG_INF), log_weight)
    classes: dict[Hashable, list[tuple[float, float]]] = {}
    for cut, prefix in prefixes.items():
        classes.setdefault(key(prefix), []).append((below[cut], prefix.log_joint))
    table = {k: _pooled(pairs, semiring) for k, pairs in classes.items()}

    def relaxed(trace: Trace) -> float:
        return table.get(key(trace), NEG_INF)

    bound = semiring == "max"
    return Guide(
        relaxed, semiring=semiring, admissible=bound, floor=0.0 if bound else 1e-3,
        name=f"relaxed h* ({semiring})",
    )  # fmt: skip


def _pooled(pairs: list[tuple[float, float]], semiring: str) -> float:
    """From (log Σ or max γ below, log γ(prefix)) of each prefix of a class."""
    if semiring == "max":
        return max(b - g for b, g in pairs)
    return log_sum_exp([b for b, _ in pairs]) - log_sum_exp([g for _, g in pairs])


def _enumerated(
    program: Callable[..., Any], args: Any, lm: Any, observations: Any, kwargs: Any
) -> Posterior:
    found = infer(
        program, *args, engine=Enumerate(), lm=lm, observations=observations, kwargs=kwargs
    )
    if found.missing > 0.0:
        raise BadArgument(
            "h* needs every trace of the program, and it has too many",
            fix="use a smaller program, or Guide(function)",
        )
    return found


def _largest(lw: Floats) -> float:
    return float(lw.max()) if lw.size else NEG_INF


def _key(trace: Trace) -> Hashable:
    whole = frozenset((e.address, _value(e.value)) for e in trace.sites if e.op == "sample")
    half = frozenset((a, tuple(s.ids)) for a, s in trace.partial.items())
    return whole, half


def _value(value: Any) -> Hashable:
    """What tells values apart: a text by its tokens, where it has them."""
    if isinstance(value, Text) and value.token_ids is not None:
        return tuple(value.token_ids.tolist())
    return value if isinstance(value, Hashable) else repr(value)


class _Table:
    """The finished traces: for each site, a column with the number of its value in each trace."""

    def __init__(self, found: Posterior) -> None:
        self.log_weights = found.log_weights
        self.columns: dict[str, Any] = {}
        self.numbers: dict[str, dict[Hashable, int]] = {}
        for i, trace in enumerate(found.traces):
            for e in trace.sites:
                if e.op == "sample":
                    if e.address not in self.columns:
                        self.columns[e.address] = np.full(len(found.traces), -1)
                    numbers = self.numbers.setdefault(e.address, {})
                    self.columns[e.address][i] = numbers.setdefault(_value(e.value), len(numbers))

    def below(self, trace: Trace) -> Floats:
        """log γ of the traces that a partial one can become."""
        keep = np.ones(len(self.log_weights), dtype=bool)
        for e in trace.sites:
            if e.op == "sample":
                number = self.numbers.get(e.address, {}).get(_value(e.value))
                keep &= False if number is None else self.columns[e.address] == number
        for address, state in trace.partial.items():
            ids = tuple(state.ids)
            begun = [
                number
                for value, number in self.numbers.get(address, {}).items()
                if isinstance(value, tuple) and value[: len(ids)] == ids
            ]
            keep &= np.isin(self.columns[address], begun) if begun else False
        return np.asarray(self.log_weights[keep])
