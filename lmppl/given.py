"""Given tokens: a string is scored by the loop that would have drawn it.

A draw is a function of its key, so some draws can be given and all others left to chance:

    the draw of a key that has a token:  that token, where log q of it is above -inf

Masks, truncation, stops and forced ends then weigh a given string exactly as they weigh a drawn one,
in the batch of all others. Where its law cannot have a token the likeliest is taken, and so after
the last one that is given: whoever gave them sees it by comparing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lmppl.errors import LmpplError
from lmppl.jobs import Generate
from lmppl.random import Chance, fold
from lmppl.types import Floats, Ints, Key, Keys
from lmppl.weights import NEG_INF

ANY = -1
"""In the place of a token: the likeliest one, so that nothing is left to chance."""


class GivenTokens:
    """A `Chance` that answers some keys with given tokens.

    >>> from lmppl.random import GumbelMax
    >>> chance = GivenTokens({7: 0}, GumbelMax())
    >>> chance.categorical(np.array([7], dtype=np.uint64), np.log([[0.001, 0.999]])).tolist()
    [0]
    """

    def __init__(self, tokens: Mapping[Key, int], chance: Chance) -> None:
        """All other keys are answered by `chance`."""
        self.tokens = tokens
        self.chance = chance

    def categorical(self, keys: Keys, log_weights: Floats) -> Ints:
        """The given token of each row; a draw where there is none."""
        found = np.empty(len(keys), dtype=np.int64)
        free = []
        for row, key in enumerate(keys.tolist()):
            token = self.tokens.get(key)
            if token is None:
                free.append(row)
            elif token != ANY and log_weights[row, token] > NEG_INF:
                found[row] = token
            else:
                found[row] = log_weights[row].argmax()
        if free:
            found[free] = self.chance.categorical(keys[free], log_weights[free])
        return found

    def offsets(self, keys: Keys, breakpoints: Sequence[Floats] | None = None) -> Floats:
        """Never given."""
        return self.chance.offsets(keys, breakpoints)


def giving(jobs: Sequence[Generate], chance: Chance, limit: int) -> Chance:
    """The chance of a run of `limit` tokens, in which strings may have tokens that are given.

    Raises:
        LmpplError: a sampler draws a string, whose weight is an estimate: none can be given.
    """
    tokens: dict[Key, int] = {}
    for job in jobs:
        ids = job.given
        if ids is None:
            continue
        state = job.state
        if state.law.sampler is not None:
            raise LmpplError(
                "a string that a sampler draws cannot be given",
                value=repr(state.law.sampler),
                why="its weight is an estimate, which a given string does not have",
                fix="leave sampler= out, or take barriers at sites",
            )
        for n in range(len(state.ids), len(state.ids) + limit):
            tokens[fold(state.key, n)] = ids[n] if n < len(ids) else ANY
    return GivenTokens(tokens, chance) if tokens else chance
