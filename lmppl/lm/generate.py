"""The token loop: strings that advance together, one batched pass per token.

`StringLaw` says which strings are meant and how they are drawn; `StringState` is one string on its
way; `advance` moves many of them by up to `limit` tokens. User Python is not entered here.

A string ends by one of four events, kept in `StringState.finish`:

* "eos": an end-of-text token was drawn;
* "stop": the decoded text contains a stop string (the text before it is the value);
* "constraint": no longer string satisfies the constraint;
* "length": `max_tokens` were drawn. What that means for the target is `StringLaw.limit`:
  "prefix", the model truncated at L tokens (weight 0); "eos", the model conditioned on ending by
  then (weight log p(end | ·), the mass of all terminators); "kill", such strings are impossible.

Weight of a string: Σ_t (β log p_t - log q_t) + the weight of its end. It is -inf ("dead") when the
constraint leaves no token of positive probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from lmppl.constraints import Constraint, ConstraintState
from lmppl.errors import ContextOverflow
from lmppl.lm.base import LanguageModel, Rows, TokenLaw
from lmppl.lm.block import Block
from lmppl.random import Chance, fold_array
from lmppl.types import Bools, Ids
from lmppl.weights import NEG_INF

if TYPE_CHECKING:
    from lmppl.token_potentials.base import TokenState

Limit = Literal["prefix", "eos", "kill"]
Finish = Literal["eos", "stop", "constraint", "length", "dead"]


class StringLaw(NamedTuple):
    """The law of one string: where it stops, and how its tokens are drawn."""

    max_tokens: int
    stop: tuple[str, ...] = ()
    limit: Limit = "prefix"
    token: TokenLaw = TokenLaw()
    constraint: Constraint | None = None
    power: float = 1.0
    """β of a target ∝ p(string)^β."""
    target_is_proposal: bool = False
    """Whether what is drawn is also what is meant (then log p = log q)."""
    potential: Any = None
    """Of the string: in a law that is bound to a model, the `TokenState` that has read nothing."""
    sampler: Any = None
    """How tokens are drawn under it (`lmppl.token_potentials.Sampler`); exactly, when None."""

    @property
    def target_temperature(self) -> float:
        """Of the law that is meant."""
        token = self.token
        return token.temperature if self.target_is_proposal else token.target_temperature


class StringState:
    """One string on its way: everything that a particle copies when it forks."""

    __slots__ = (
        "automaton",
        "context",
        "end_logp",
        "finish",
        "ids",
        "key",
        "law",
        "logps",
        "logq",
        "logw",
        "logphi",
        "tracker",
    )

    law: StringLaw
    context: Ids
    key: int
    ids: list[int]
    logps: list[float]
    automaton: ConstraintState | None
    logw: float
    """log-weight so far."""
    logq: float
    """Σ log q so far."""
    end_logp: float
    """log p of the forced end, with limit="eos"."""
    finish: Finish | None
    tracker: TokenState | None
    """The potential's state."""
    logphi: float
    """log of the potential's weight so far, a part of `logw`."""

    def __init__(self, law: StringLaw, context: Ids, key: int) -> None:
        """The empty string after a context."""
        self.law = law
        self.context = context
        self.key = key
        self.ids = []
        self.logps = []
        self.automaton = None if law.constraint is None else law.constraint.start()
        self.logw = self.logq = self.end_logp = 0.0
        self.finish = None
        self.tracker = law.potential
        self.logphi = 0.0

    @property
    def prefix(self) -> Ids:
        """The tokens that it goes on from."""
        return self.context + tuple(self.ids) if self.ids else self.context

    def left(self, limit: int | None) -> int:
        """How many tokens it may draw, `limit` at most."""
        left = self.law.max_tokens - len(self.ids)
        return left if limit is None else min(left, limit)

    def fork(self, key: int) -> StringState:
        """A copy that continues with other noise."""
        new = StringState(self.law, self.context, key)
        new.ids = list(self.ids)
        new.logps = list(self.logps)
        new.automaton = self.automaton
        new.logw, new.logq, new.end_logp = self.logw, self.logq, self.end_logp
        new.finish = self.finish
        new.tracker, new.logphi = self.tracker, self.logphi
        return new

    def extend(self, lm: LanguageModel, token: int, logp: float, logq: float) -> None:
        """Append a token of positive probability and see whether the string ends."""
        law = self.law
        if law.target_is_proposal:
            logp = logq
        self.ids.append(token)
        self.logps.append(logp)
        self.logw += law.power * logp - logq
        self.logq += logq
        self.see(lm)
        if self.tracker is not None:
            self._weigh(lm, token, self.tracker)

    def _weigh(self, lm: LanguageModel, token: int, tracker: TokenState) -> None:
        """The potential's weight of the string with its newest token."""
        if self.finish == "dead":
            return
        if token not in lm.eos_ids:
            tracker = self.tracker = tracker.advance(token)
        self._weight_is(tracker.log_prefix if self.finish is None else tracker.log_complete)

    def _weight_is(self, weight: float) -> None:
        """Exchange the potential's weight so far for that of the string now."""
        if weight == NEG_INF:
            self.kill()
        else:
            self.logw += weight - self.logphi
            self.logphi = weight

    def see(self, lm: LanguageModel) -> None:
        """Whether the string ends with its newest token."""
        law, token, automaton = self.law, self.ids[-1], self.automaton
        if token in lm.eos_ids:
            self.finish = "eos"
            return
        if automaton is not None:
            automaton = self.automaton = automaton.advance(token)
            if automaton.accepting and (law.stop or automaton.finished):
                self.finish = "stop" if law.stop else "constraint"
            elif automaton.finished:
                self.kill()
        elif law.stop and completes_stop(lm, self.ids, law.stop):
            self.finish = "stop"
        if self.finish is None and len(self.ids) >= law.max_tokens:
            unmatched = automaton is not None and (law.stop or not automaton.accepting)
            if law.limit == "kill" or unmatched:
                self.kill()
            elif law.limit == "prefix":
                self.finish = "length"

    def kill(self) -> None:
        """The string is impossible."""
        self.finish, self.logw = "dead", NEG_INF

    @property
    def awaits_end(self) -> bool:
        """Whether only the mass of its forced end is missing (limit="eos" at L tokens)."""
        return self.finish is None and len(self.ids) >= self.law.max_tokens

    def finish_length(self, mass: float) -> None:
        """Multiply by the mass of all terminators after the last token."""
        self.end_logp = mass
        self.logw += self.law.power * mass
        self.finish = "dead" if mass == NEG_INF else "length"
        if self.tracker is not None and self.finish == "length":
            self._weight_is(self.tracker.log_complete)

    @property
    def logp(self) -> float:
        """Log p under the target (before the power), the forced end included."""
        return sum(self.logps) + self.end_logp


def completes_stop(lm: LanguageModel, ids: Sequence[int], stops: Sequence[str]) -> bool:
    """Whether the newest token completes one of the stop strings."""
    ends = [stop.encode() for stop in stops]
    longest = max(map(len, ends))
    seen = lm.token_bytes(ids[-1])
    needed = len(seen) + longest - 1
    at = len(ids) - 2
    while len(seen) < needed and at >= 0:
        seen = lm.token_bytes(ids[at]) + seen
        at -= 1
    seen = seen[-needed:]
    return any(end in seen for end in ends)


@lru_cache(maxsize=256)
def end_ids(lm: LanguageModel, stop: tuple[str, ...]) -> tuple[int, ...]:
    """The ids that end a string: end-of-text, and every token that begins with a stop string."""
    heads = [s.encode() for s in stop]
    found = {
        i for i in range(lm.vocab_size) if heads and lm.token_bytes(i).startswith(tuple(heads))
    }
    return tuple(sorted(found | lm.eos_ids))


def text_of(
    lm: LanguageModel, ids: Sequence[int], stop: tuple[str, ...], constrained: bool = False
) -> str:
    """The value of a string: decoded, without terminators.

    A constrained string ends with its stop text, and may hold another one before.
    """
    if ids and ids[-1] in lm.eos_ids:
        ids = ids[:-1]
    text = lm.decode(ids)
    if constrained:
        ends = [s for s in stop if text.endswith(s)]
        return text[: -len(max(ends, key=len))] if ends else text
    for s in stop:
        at = text.find(s)
        if at >= 0:
            text = text[:at]
    return text


def advance(
    lm: LanguageModel, states: Sequence[StringState], chance: Chance, limit: int | None = None
) -> int:
    """Advance unfinished strings in place by up to `limit` tokens each (None: to their ends).

    Returns the number of batched passes. The draws of a string depend on its key and its own
    tokens alone, so the result is the same for any batch.
    """
    live = [s for s in states if s.finish is None]
    if not live:
        return 0
    for s in live:
        needed = len(s.context) + s.law.max_tokens
        if needed > lm.max_context:
            raise ContextOverflow(needed, lm.max_context, longest=lm.decode(s.context[-200:]))
    if any([s.tracker is not None for s in live]):
        from lmppl.lm.weighted import advance_weighted

        rest = [s for s in live if s.tracker is None]
        passes = advance_weighted(lm, [s for s in live if s.tracker is not None], chance, limit)
        return passes + advance(lm, rest, chance, limit)
    if lm.draws_strings or (lm.bounded and not _fit(lm, live, limit)):
        return lm.advance(live, chance, limit)
    return advance_rows(lm, live, chance, limit)


def _fit(lm: LanguageModel, live: Sequence[StringState], limit: int | None) -> bool:
    """Whether all these strings fit in the memory of the model at once."""
    return lm.fits([s.prefix for s in live], [s.left(limit) for s in live]) == len(live)


def advance_rows(
    lm: LanguageModel, live: list[StringState], chance: Chance, limit: int | None = None
) -> int:
    """`advance` token by token, for strings that are all unfinished."""
    rows = lm.open([s.prefix for s in live])
    block = Block(lm, live, limit)
    passes = 0
    while True:
        mask, hopeless = masks_of(lm, block.states) if block.constrained else (None, ())
        drawn = rows.draw(fold_array(block.keys, block.steps), block.laws, mask, chance)
        passes += 1
        for i in hopeless:
            drawn.tokens[i] = -1
        keep, ending = block.take(drawn)
        if keep is not None:
            if not len(keep):
                break
            rows.select(keep)
            block.select(keep)
        rows.push(block.last)
        if ending:
            force_ends(lm, rows, block.states)
            left = np.array([i for i, s in enumerate(block.states) if s.finish is None], np.int64)
            if not len(left):
                break
            rows.select(left)
            block.select(left)
        block.steps += np.uint64(1)
        if passes == limit:
            break
    block.write()
    rows.close()
    return passes


def masks_of(lm: LanguageModel, live: Sequence[StringState]) -> tuple[Bools, Sequence[int]]:
    """Allowed ids [B, V], and the rows that allow none (their mask is opened, they die)."""
    mask = np.ones((len(live), lm.vocab_size), dtype=bool)
    hopeless = []
    for i, s in enumerate(live):
        if s.automaton is not None:
            allowed = s.automaton.mask
            if allowed.any():
                mask[i] = allowed
            else:
                hopeless.append(i)
    return mask, hopeless


def force_ends(lm: LanguageModel, rows: Rows, live: Sequence[StringState]) -> None:
    """limit="eos": give the strings that are full the mass of their ends."""
    sets = [end_ids(lm, s.law.stop) if s.awaits_end else (0,) for s in live]
    masses = rows.log_mass(sets, [s.law.target_temperature for s in live])
    for s, mass in zip(live, masses.tolist(), strict=True):
        if s.awaits_end:
            s.finish_length(mass)
