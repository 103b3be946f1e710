"""The partial traces that a run went through, and what a learned guide sees of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from lmppl.lm.base import LanguageModel
from lmppl.lm.generate import StringLaw, StringState
from lmppl.text import Text
from lmppl.trace import RANDOM, Entry, Trace
from lmppl.types import Floats

Features: TypeAlias = Callable[[Trace], Sequence[float] | Floats]
"""What a twist sees of a partial trace: numbers of about the size of one."""


def token_features(
    at: str, tokens: int, horizon: int, *, last: int = 1, dfa: Any = None
) -> Features:
    """Features of a string that is being drawn: its last tokens, its length, its automaton state.

    Args:
        at: the address of the string.
        tokens: V, of a small vocabulary.
        horizon: the most tokens it has.
        last: how many tokens are seen.
        dfa: an automaton over tokens (`bffg.DFA`) whose state is seen.
    """

    def features(trace: Trace) -> Floats:
        begun = at in trace.partial or at in trace
        text = trace.so_far(at) if begun else None
        ids = () if text is None or text.token_ids is None else text.token_ids
        x = np.zeros((last, tokens))
        for i, v in enumerate(ids[: -last - 1 : -1]):
            x[i, v] = 1.0
        t = np.zeros(horizon + 1)
        t[min(len(ids), horizon)] = 1.0
        whole = [float(text is not None and not is_half_drawn(trace, at))]
        if dfa is None:
            return np.concatenate([x.ravel(), t, whole])
        s = 0
        for v in ids:
            s = int(dfa.after(s, v))
        return np.concatenate([x.ravel(), t, whole, np.arange(len(dfa.states)) == s])

    return features


def is_half_drawn(trace: Trace, at: str) -> bool:
    """Whether a string is still being drawn; it stays in `partial` until its program goes on."""
    state = trace.partial.get(at)
    return state is not None and state.finish is None


def length(trace: Trace) -> int:
    """Sites and tokens of a partial trace."""
    sites = [e for e in trace.sites if e.op in RANDOM]
    texts = [e.value.token_ids for e in sites if isinstance(e.value, Text)]
    tokens = sum(len(ids) for ids in texts if ids is not None)
    return len(sites) + tokens + sum(len(s.ids) for s in trace.partial.values())


class Prefix(NamedTuple):
    """A partial trace that a run went through."""

    trace: Trace
    log_weight: float
    """log γ / q of its sites."""


def half_drawn(
    trace: Trace, at: str, ids: Sequence[int], lm: LanguageModel, logps: Sequence[float] = ()
) -> Trace:
    """A partial trace whose string at a site has come to these tokens."""
    state = trace.partial[at] = StringState(StringLaw(len(ids) + 1), (), 0)
    state.ids, state.logps, state.logq = list(ids), list(logps), math.fsum(logps)
    trace.writers[at] = lm
    return trace


def prefixes(trace: Trace, lm: LanguageModel | None = None, *, died: bool = False) -> list[Prefix]:
    """The partial traces of a run: after each site but the last, and inside its strings.

    Args:
        trace: of a posterior.
        lm: the model that drew its strings; without one they are whole or not there.
        died: whether the run ended early, so that something was still to come after its last site.
    """
    out: list[Prefix] = []
    head: Entry | None = None
    log_weight = 0.0
    sites = trace.sites
    last = max((i for i, e in enumerate(sites) if e.op in RANDOM), default=-1)
    for i, e in enumerate(sites):
        ids = e.value.token_ids if isinstance(e.value, Text) and e.op == "sample" else None
        if lm is not None and ids is not None:
            logps = e.value.token_logprobs.tolist()
            for t in range(1, len(ids)):
                half = half_drawn(Trace(head), e.address, ids[:t].tolist(), lm, logps[:t])
                out.append(Prefix(half, log_weight))
        head = Entry(head, e.op, e.address, e.value, e.logp, e.logq, e.logw)
        log_weight += e.logw
        if e.op in RANDOM and (died or i < last):
            out.append(Prefix(Trace(head), log_weight))
    return out
