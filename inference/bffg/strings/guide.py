"""The backward filter of strings as a guide of any engine: h of a string that is being drawn.

    h(prefix) = g_t(x_1…x_t)      = τ(s) once the string is whole

where g is that of `HMMAutomaton`: what the surrogate expects of the terminal weights. A particle
filter then weighs by g_t / g_{t-1} between tokens, and its target does not depend on the surrogate.
With the exact surrogate h is h*; tokens drawn from q ∝ p g leave no variance at all.

Reference: Whiteley and Lee, Twisted particle filters (2014); Zhao, Brekelmans, Makhzani and Grosse,
Probabilistic inference in language models via twisted sequential Monte Carlo (2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.bffg.strings.automaton import HMMAutomaton, Prefixes
from lmppl.inference.guide import Guide
from lmppl.trace import Trace

KEPT = 100_000
"""Prefixes whose filter is kept."""

At: TypeAlias = str | Callable[[Trace], tuple[Sequence[int], bool]]
"""The address of a string, or a function: its tokens so far, and whether it is whole."""


def string_guide(
    automaton: HMMAutomaton,
    at: At,
    *,
    until: str | None = None,
    exact: bool = False,
    floor: float = 1e-6,
) -> Guide:
    """The backward filter as a `Guide`, for `SMC(guide=..., resample_at=tokens(k))` and others.

    Args:
        automaton: the filter; its tokens are those of the model that draws the string, and its
            horizon is at least `max_tokens`.
        at: the address of the string; or a function of the trace that gives the tokens so far and
            whether the string is whole, where a program draws its tokens one by one.
        until: the site that multiplies the terminal weights in; once it is there, h = 1. Needed
            where the program goes on after it.
        exact: the surrogate is the model, and the program multiplies by τ: h = h*, and 0 is a proof.
        floor: otherwise h is at least this part of g of the empty string, since a surrogate that
            rules a prefix out may be wrong.

    >>> from lmppl.inference import bffg
    >>> dfa = bffg.automaton(lambda s, v: min(1, s + v), 0, 2)  # token 1 at least once
    >>> even = bffg.HMM(np.ones(1), np.ones((1, 1)), np.array([[0.5, 0.5]]))
    >>> filter_ = bffg.HMMAutomaton(even, dfa, 2, dfa.terminal(float))
    >>> guide = bffg.string_guide(filter_, "x")
    >>> round(math.exp(guide(Trace(None))), 4)
    0.75
    """
    if not (isinstance(floor, (int, float)) and 0.0 < floor <= 1.0):
        raise BadArgument(
            f"string_guide: floor must be in (0, 1], got {floor!r}", fix="write floor=1e-6"
        )
    least = float(automaton.log_g(automaton.start())[0]) + math.log(floor)
    known: dict[tuple[int, ...], Prefixes] = {(): automaton.start()}

    def look(trace: Trace) -> float:
        if until is not None and until in trace:
            return 0.0
        ids, whole = drawn(trace, at) if isinstance(at, str) else at(trace)
        state = filtered(automaton, tuple(ids), known)
        with np.errstate(divide="ignore"):
            value = np.log(automaton.terminal)[state.s[0]] if whole else automaton.log_g(state)[0]
        return float(value) if exact else max(float(value), least)

    where = at if isinstance(at, str) else getattr(at, "__name__", "string")
    return Guide(look, exact=exact, name=f"backward filter of {where}")


def drawn(trace: Trace, at: str) -> tuple[tuple[int, ...], bool]:
    """The tokens of a string site, and whether it is whole; none before it begins."""
    if at not in trace.partial and at not in trace:
        return (), False
    text = trace.so_far(at)
    if text.token_ids is None:
        raise BadArgument(
            f"the string {at!r} was not drawn as tokens, and a backward filter reads tokens",
            fix="guide a site of LM(...), or give a function of the trace as `at`",
        )
    return text.token_ids, text.finished


def filtered(
    automaton: HMMAutomaton, ids: tuple[int, ...], known: dict[tuple[int, ...], Prefixes]
) -> Prefixes:
    """What the filter knows of a prefix: a step from the one before, if that was seen."""
    found = known.get(ids)
    if found is not None:
        return found
    if len(ids) > automaton.horizon:
        raise BadArgument(
            f"a string of {len(ids)} tokens is past the horizon {automaton.horizon} of its guide",
            fix="give HMMAutomaton a horizon of at least max_tokens",
        )
    before = known.get(ids[:-1])
    if before is None:
        found = automaton.of(ids)
    else:
        found = automaton.advance(before, np.array(ids[-1:]))
    if len(known) >= KEPT:
        known.clear()
    known[ids] = found
    return found
