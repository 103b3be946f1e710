"""Token-level potentials: non-negative functions of a string that is being written.

A potential Φ gives every token sequence x two weights,

    prefix(x) ≥ 0      while it is being written: the intermediate target is p(x) prefix(x)
    complete(x) ≥ 0    if it ends there: the target of the string is p(x) complete(x)

and one law ties them: where prefix(x) = 0, complete(y) = 0 for every y that begins with x. The rest
follows. The weight of the next token is derived,

    next(v | x) = prefix(x v) / prefix(x)            next(end | x) = complete(x) / prefix(x)

so prefix(empty), times the product along a string, is complete(x), whatever the prefix weights are:
they only direct. All weights are logarithms.

`TokenPotential.start` gives a `TokenState`, what a potential has read. States are immutable: a
particle that forks copies a reference. Write `log_prefix(ids)` and `log_complete(ids)` for the
plainest potential, a `start` of your own for one that reads step by step, and `log_next` for one
that weighs the whole vocabulary at once.

`p * q` multiplies, `p ** β` tempers; both are potentials again.

Reference: Loula et al., Syntactic and semantic control of large language models via sequential
Monte Carlo (2025); Lew et al., Sequential Monte Carlo steering of large language models (2023).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmppl.errors import BadArgument
from lmppl.lm.base import LanguageModel
from lmppl.types import Floats, Ids
from lmppl.weights import NEG_INF, check_log_weight


class TokenState(ABC):
    """A string as far as a potential has read it; immutable."""

    lm: LanguageModel

    @property
    @abstractmethod
    def log_prefix(self) -> float:
        """log prefix(x)."""

    @property
    @abstractmethod
    def log_complete(self) -> float:
        """log complete(x)."""

    @abstractmethod
    def advance(self, token: int) -> TokenState:
        """The state after a token that is no end-of-text."""

    def log_next(self, tokens: Sequence[int] | None = None) -> Floats:
        """log next(v | x) of these ids, of all when left out: `-inf` where prefix(x) = 0."""
        ids = range(self.lm.vocab_size) if tokens is None else tokens
        base = self.log_prefix
        if base == NEG_INF:
            return np.full(len(ids), NEG_INF)
        ends = self.lm.eos_ids
        return np.array(
            [self.log_complete if v in ends else self.advance(v).log_prefix for v in ids],
            dtype=np.float64,
        ) - base  # fmt: skip

    @classmethod
    def log_rows(cls, states: Sequence[Any]) -> Floats:
        """log next of several states of this class [U, V]; override where one look does for all."""
        return np.stack([s.log_next() for s in states])


def log_rows(states: Sequence[TokenState]) -> Floats:
    """log next of several states [U, V], together where they are of one class."""
    kinds = {type(s) for s in states}
    kind = kinds.pop() if len(kinds) == 1 else TokenState
    return kind.log_rows(states)


class TokenPotential:
    """A function of token ids; see the module's first lines.

    >>> from lmppl.lm.table import TableLM
    >>> class Short(TokenPotential):
    ...     def log_complete(self, ids):
    ...         return -1.0 * len(ids)
    ...     log_prefix = log_complete
    >>> lm = TableLM(["a", "b", "<eos>"], {(): [0.4, 0.4, 0.2]})
    >>> Short().start(lm).advance(0).log_next().tolist()
    [-1.0, -1.0, 0.0]
    """

    def log_prefix(self, ids: Ids) -> float:
        """log prefix(ids), without end-of-text; 0 when it is not written."""
        return 0.0

    def log_complete(self, ids: Ids) -> float:
        """log complete(ids), without end-of-text."""
        raise NotImplementedError(
            f"{type(self).__name__} needs log_complete(ids), or its own start"
        )

    def start(self, lm: LanguageModel, stop: tuple[str, ...] = ()) -> TokenState:
        """The state before any token.

        Args:
            lm: the model whose tokens are meant.
            stop: the terminators of the string, for potentials of its text.
        """
        return _Read(self, lm, ())

    def __mul__(self, other: object) -> TokenPotential:
        from lmppl.token_potentials.operators import Product, as_potential

        return Product(self, as_potential(other))

    def __rmul__(self, other: object) -> TokenPotential:
        from lmppl.token_potentials.operators import Product, as_potential

        return Product(as_potential(other), self)

    def __pow__(self, beta: float) -> TokenPotential:
        from lmppl.token_potentials.operators import Tempered

        return Tempered(self, beta)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def _weight(self, value: object, term: str) -> float:
        return check_log_weight(value, site=f"potential {self!r}", term=term)


class _Read(TokenState):
    """The state of a potential that is written as two functions of all ids."""

    __slots__ = ("_complete", "_prefix", "ids", "lm", "potential")

    def __init__(self, potential: TokenPotential, lm: LanguageModel, ids: Ids) -> None:
        self.potential = potential
        self.lm = lm
        self.ids = ids
        self._prefix: float | None = None
        self._complete: float | None = None

    @property
    def log_prefix(self) -> float:
        if self._prefix is None:
            p = self.potential
            self._prefix = p._weight(p.log_prefix(self.ids), "log prefix")
        return self._prefix

    @property
    def log_complete(self) -> float:
        if self._complete is None:
            p = self.potential
            self._complete = p._weight(p.log_complete(self.ids), "log complete")
        return self._complete

    def advance(self, token: int) -> _Read:
        return _Read(self.potential, self.lm, (*self.ids, token))


def check_power(beta: float) -> float:
    """β of a tempered potential.

    Raises:
        BadArgument: it is not positive: then 0 to its power would have no meaning.
    """
    if not (isinstance(beta, (int, float)) and 0.0 < beta < math.inf):
        raise BadArgument(
            f"the power of a potential must be a positive number, got {beta!r}",
            fix="write potential ** 0.5",
        )
    return float(beta)
