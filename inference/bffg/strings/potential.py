"""The backward filter of strings as a token-level potential: it directs every token that is drawn.

    prefix(x_1…x_t) = g_t(x_1…x_t)        complete(x) = τ of the state in which x ends

`LM(prompt, potential=string_potential(filter))` has the target p(x) τ(x): the rule is a part of it.
`string_potential(filter, rule=False)` has the target p(x), as a `Lookahead`: complete(x) is 1, the
filter is a guide, and the rule stands elsewhere, as `regex=` or as a factor of the program.

Tokens are drawn from q ∝ p g, and the weight of a string grows by Z_t / g_t, which its prefix
decides. So with `SMC(resample_at=tokens(1))` a string that the rule has doomed is gone before the
model reads it again. Every other engine draws the same strings with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.bffg.strings.automaton import HMMAutomaton, Prefixes
from lmppl.lm.base import LanguageModel
from lmppl.token_potentials import TokenPotential, TokenState
from lmppl.types import Floats
from lmppl.weights import NEG_INF


def string_potential(
    automaton: HMMAutomaton, *, rule: bool = True, floor: float = 1e-6
) -> FilterPotential:
    """The filter as `LM(potential=...)`.

    Args:
        automaton: the filter; its tokens are those of the model, its horizon is `max_tokens`. The
            end-of-text token is one of them, and its column says how a text counts that ends.
        rule: whether τ is a part of the target; else the filter is a guide that changes no target.
            An end-of-text token then counts 1 and is drawn too often: for strings that end by a
            stop or their length.
        floor: a prefix counts at least this part of g of the empty string, since a surrogate may
            call impossible what is rare; with `rule`, only while the rule can still be met.

    >>> from lmppl import LM, sample
    >>> from lmppl.inference import Enumerate, bffg, infer
    >>> from lmppl.lm.table import TableLM
    >>> lm = TableLM(["a", "b", "<eos>"], {(): [0.5, 0.25, 0.25]})
    >>> dfa = bffg.containing("b").over(lm)
    >>> even = bffg.HMM(np.ones(1), np.ones((1, 1)), np.full((1, 3), 1 / 3))
    >>> guide = bffg.HMMAutomaton(even, dfa, 2, dfa.terminal(lambda s: s.accepts))
    >>> law = LM("", potential=bffg.string_potential(guide), max_tokens=2)
    >>> post = infer(lambda: sample("x", law), engine=Enumerate(), lm=lm)
    >>> round(math.exp(post.log_evidence), 4)
    0.375
    """
    if not (isinstance(floor, (int, float)) and 0.0 < floor <= 1.0):
        raise BadArgument(
            f"string_potential: floor must be in (0, 1], got {floor!r}", fix="write floor=1e-6"
        )
    return FilterPotential(automaton, rule, floor)


class FilterPotential(TokenPotential):
    """What `string_potential` makes."""

    def __init__(self, automaton: HMMAutomaton, rule: bool, floor: float) -> None:
        """Keep the filter; `least` is the smallest prefix weight of a text that may still count."""
        self.automaton, self.rule = automaton, rule
        self.lost = NEG_INF  # the prefix weight where the rule can no longer be met
        self.least = float(automaton.log_g(automaton.start())[0]) + math.log(floor)
        if not rule:
            self.lost = self.least
        with np.errstate(divide="ignore"):
            self.log_terminal = np.log(automaton.terminal)

    def start(self, lm: LanguageModel, stop: tuple[str, ...] = ()) -> TokenState:
        """No token is read."""
        if lm.vocab_size != self.automaton.hmm.tokens:
            raise BadArgument(
                f"a filter over {self.automaton.hmm.tokens} tokens, and {lm.name!r} has {lm.vocab_size}",
                fix="make the surrogate and the automaton of the model that draws the string",
            )
        return FilterState(self, lm, self.automaton.start())

    def __repr__(self) -> str:
        Q, T = len(self.automaton.dfa.states), self.automaton.horizon
        return f"string_potential({Q} states, horizon {T}{'' if self.rule else ', rule=False'})"


class FilterState(TokenState):
    """What the filter knows of a string."""

    __slots__ = ("at", "lm", "potential")

    def __init__(self, potential: FilterPotential, lm: LanguageModel, at: Prefixes) -> None:
        """Keep it."""
        self.potential, self.lm, self.at = potential, lm, at

    @property
    def log_prefix(self) -> float:
        """log g, if the rule can still be met."""
        p, at = self.potential, self.at
        if not p.automaton.reachable[self.left, at.s[0]]:
            return p.lost
        return max(float(p.automaton.log_g(at)[0]), p.least)

    @property
    def log_complete(self) -> float:
        """log τ after the end token; at the horizon there is no room for one."""
        if not self.potential.rule:
            return 0.0
        s, ends = int(self.at.s[0]), self.lm.eos_ids
        if self.left and ends:
            s = int(self.potential.automaton.dfa.after(s, min(ends)))
        return float(self.potential.log_terminal[s])

    @property
    def left(self) -> int:
        """How many tokens may follow."""
        left = self.potential.automaton.horizon - self.at.t
        if left < 0:
            raise BadArgument(
                f"a string of {self.at.t} tokens is past the horizon of its guide",
                fix="give HMMAutomaton a horizon of at least max_tokens",
            )
        return left

    def advance(self, token: int) -> FilterState:
        """One step of the filter."""
        after = self.potential.automaton.advance(self.at, np.array([token]))
        return FilterState(self.potential, self.lm, after)

    def log_next(self, tokens: Sequence[int] | None = None) -> Floats:
        """By one look at the table, or at the columns of some tokens."""
        if tokens is None:
            row: Floats = self.log_rows([self])[0]
            return row
        p, ids = self.potential, np.array(tokens, dtype=np.int64)
        if (base := self.log_prefix) == NEG_INF:
            return np.full(len(ids), NEG_INF)
        following = np.maximum(p.automaton.log_some(self.at, np.zeros_like(ids), ids), p.least)
        possible = p.automaton.reachable[self.left - 1][p.automaton.dfa.after(self.at.s[0], ids)]
        out: Floats = np.where(possible, following, p.lost) - base
        out[np.isin(ids, list(self.lm.eos_ids))] = self.log_complete - base
        return out

    @classmethod
    def log_rows(cls, states: Sequence[FilterState]) -> Floats:
        """One look for all strings of one length."""
        lm = states[0].lm
        out = np.full((len(states), lm.vocab_size), NEG_INF)
        groups: dict[tuple[FilterPotential, int], list[int]] = {}
        for i, state in enumerate(states):
            if state.log_prefix > NEG_INF:
                groups.setdefault((state.potential, state.left), []).append(i)
        for (p, left), own in groups.items():
            here = [states[i] for i in own]
            a, at = p.automaton, Prefixes.together([state.at for state in here])
            rows = np.maximum(a.log_kinds(at), p.least)
            possible = a.reachable[left - 1][a.dfa.table[at.s][:, a.kinds.classes]]
            base = np.array([state.log_prefix for state in here])
            rows = np.where(possible, rows, p.lost) - base[:, None]
            for i, state, row, b in zip(own, here, rows, base.tolist(), strict=True):
                row.take(a.kinds.of, out=out[i], mode="clip")  # "raise" would copy
                out[i, list(lm.eos_ids)] = state.log_complete - b
        return out
