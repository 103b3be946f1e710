"""Potentials made of potentials: products, powers, normalised ones, look-ahead guides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lmppl.errors import BadArgument, excerpt
from lmppl.grammars import Grammar
from lmppl.lm.base import LanguageModel
from lmppl.token_potentials.base import TokenPotential, TokenState, check_power, log_rows
from lmppl.types import Floats
from lmppl.weights import NEG_INF, log_sum_exp


def as_potential(given: Any) -> TokenPotential:
    """A token-level potential of what a user gives.

    Args:
        given: a `TokenPotential`; a `Grammar`; or a function of the finished text, which gives a
            log-weight or a truth value.
    """
    from lmppl.token_potentials.texts import Matches, OnText

    if isinstance(given, TokenPotential):
        return given
    if isinstance(given, Grammar):
        return Matches(given)
    if callable(given) and not isinstance(given, type):
        return OnText(given)
    raise BadArgument(
        f"{type(given).__name__} is no potential",
        value=excerpt(given),
        fix="give a TokenPotential, or a function of the text that returns a log-weight",
    )


class Product(TokenPotential):
    """Φ = Φ_1 Φ_2 … : the product of both weights."""

    def __init__(self, *factors: TokenPotential) -> None:
        """Flatten products of products."""
        self.factors: tuple[TokenPotential, ...] = tuple(
            part for f in factors for part in (f.factors if isinstance(f, Product) else (f,))
        )

    def start(self, lm: LanguageModel, stop: tuple[str, ...] = ()) -> TokenState:
        """The states of all factors."""
        return ProductState(lm, tuple(f.start(lm, stop) for f in self.factors))

    def __repr__(self) -> str:
        return " * ".join(map(repr, self.factors))


class ProductState(TokenState):
    """The states of the factors."""

    __slots__ = ("lm", "states")

    def __init__(self, lm: LanguageModel, states: tuple[TokenState, ...]) -> None:
        """Keep them."""
        self.lm = lm
        self.states = states

    @property
    def log_prefix(self) -> float:
        """Their sum; the first zero ends it."""
        return _sum(s.log_prefix for s in self.states)

    @property
    def log_complete(self) -> float:
        """Their sum; the first zero ends it."""
        return _sum(s.log_complete for s in self.states)

    def advance(self, token: int) -> TokenState:
        """All of them."""
        return ProductState(self.lm, tuple(s.advance(token) for s in self.states))

    def log_next(self, tokens: Sequence[int] | None = None) -> Floats:
        """Their sum; later factors are asked only for what the earlier ones leave."""
        total = self.states[0].log_next(tokens)
        for s in self.states[1:]:
            left = np.flatnonzero(total > NEG_INF)
            if 2 * len(left) < len(total):
                ids = left.tolist() if tokens is None else [tokens[i] for i in left.tolist()]
                more = np.full(len(total), NEG_INF)
                more[left] = s.log_next(ids)
                total = total + more
            else:
                total = total + s.log_next(tokens)
        return total

    @classmethod
    def log_rows(cls, states: Sequence[ProductState]) -> Floats:
        """The same, factor by factor."""
        total = log_rows([state.states[0] for state in states])
        for factor in list(zip(*(state.states for state in states), strict=True))[1:]:
            many = 2 * (total > NEG_INF).sum(axis=1) >= total.shape[1]
            if many.any():
                total[many] += log_rows([s for s, all_ in zip(factor, many, strict=True) if all_])
            for i in np.flatnonzero(~many).tolist():
                left = np.flatnonzero(total[i] > NEG_INF)
                total[i, left] += factor[i].log_next(left.tolist())
        return total


def _sum(values: Any) -> float:
    total = 0.0
    for value in values:
        if value == NEG_INF:
            return NEG_INF
        total += value
    return total


class _Mapped(TokenState):
    """A state whose two weights are functions of those of another one."""

    __slots__ = ("complete", "inner", "lm", "prefix")

    def __init__(
        self,
        inner: TokenState,
        prefix: Callable[[float], float],
        complete: Callable[[float], float],
    ) -> None:
        self.lm, self.inner, self.prefix, self.complete = inner.lm, inner, prefix, complete

    @property
    def log_prefix(self) -> float:
        return self.prefix(self.inner.log_prefix)

    @property
    def log_complete(self) -> float:
        return self.complete(self.inner.log_complete)

    def advance(self, token: int) -> TokenState:
        return type(self)(self.inner.advance(token), self.prefix, self.complete)


class _TemperedState(_Mapped):
    __slots__ = ()

    def log_next(self, tokens: Sequence[int] | None = None) -> Floats:
        return self.prefix(1.0) * self.inner.log_next(tokens)


class Tempered(TokenPotential):
    """Φ^β, β > 0."""

    def __init__(self, potential: Any, beta: float) -> None:
        """Check β."""
        self.potential = as_potential(potential)
        self.beta = check_power(beta)

    def start(self, lm: LanguageModel, stop: tuple[str, ...] = ()) -> TokenState:
        """The state of Φ, seen through the power."""
        beta = self.beta

        def power(value: float) -> float:
            return beta * value

        return _TemperedState(self.potential.start(lm, stop), power, power)

    def __repr__(self) -> str:
        return f"({self.potential!r}) ** {self.beta:g}"


class Lookahead(TokenPotential):
    """A guide: the prefix weight of a potential, and 1 at the end. The target stays as it was.

    A look-ahead says how promising a beginning is. Its weights telescope and cancel when the string
    ends: they move only the intermediate targets, and so when particles are resampled.

    Args:
        potential: what is promised; a function is one of the text so far, and gives log h > -inf.
        floor: what a smaller log h is raised to, so that no living string is cut off.
    """

    def __init__(self, potential: Any, floor: float = -20.0) -> None:
        """Keep it."""
        from lmppl.token_potentials.texts import OnText

        function = callable(potential) and not isinstance(potential, TokenPotential)
        self.potential = (
            OnText(potential, prefix=potential) if function else as_potential(potential)
        )
        self.floor = float(floor)

    def start(self, lm: LanguageModel, stop: tuple[str, ...] = ()) -> TokenState:
        """The state of the potential, its end forgotten."""
        floor = self.floor
        return _Mapped(self.potential.start(lm, stop), lambda h: max(h, floor), lambda _: 0.0)

    def __repr__(self) -> str:
        return f"Lookahead({self.potential!r})"


class Normalized(TokenPotential):
    """A law over strings: Φ's next-token weights, divided by their sum at every step.

    prefix(x) = Π_t next(x_t | x_<t) / Σ_v next(v | x_<t); the sum is over all ids, and the end.
    Where Φ knows how likely a beginning is, this is its law; a hard constraint becomes the uniform
    walk over allowed tokens.
    """

    def __init__(self, potential: Any) -> None:
        """Keep it."""
        self.potential = as_potential(potential)

    def start(self, lm: LanguageModel, stop: tuple[str, ...] = ()) -> TokenState:
        """The empty string has weight 1."""
        inner = self.potential.start(lm, stop)
        return _NormalizedState(inner, 0.0 if inner.log_prefix > NEG_INF else NEG_INF)

    def __repr__(self) -> str:
        return f"Normalized({self.potential!r})"


class _NormalizedState(TokenState):
    __slots__ = ("_own", "_row", "inner", "lm")

    def __init__(self, inner: TokenState, own: float) -> None:
        self.lm, self.inner = inner.lm, inner
        self._own = own
        self._row: tuple[Floats, float] | None = None

    @property
    def log_prefix(self) -> float:
        return self._own

    @property
    def log_complete(self) -> float:
        row, end = self._normal()
        return self._own + end if self._own > NEG_INF else NEG_INF

    def _normal(self) -> tuple[Floats, float]:
        """The normalised row [V], and the end's share."""
        if self._row is None:
            inner = self.inner
            row = inner.log_next().copy()
            end = inner.log_complete
            end = end - inner.log_prefix if end > NEG_INF else NEG_INF
            row[list(self.lm.eos_ids)] = NEG_INF
            total = log_sum_exp(np.append(row, end))
            if total > NEG_INF:
                row, end = row - total, end - total
            row[list(self.lm.eos_ids)] = end
            self._row = row, end
        return self._row

    def advance(self, token: int) -> TokenState:
        row, _ = self._normal()
        own = self._own + float(row[token]) if self._own > NEG_INF else NEG_INF
        return _NormalizedState(self.inner.advance(token), own)

    def log_next(self, tokens: Sequence[int] | None = None) -> Floats:
        row, _ = self._normal()
        if self._own == NEG_INF:
            row = np.full(len(row), NEG_INF)
        return row if tokens is None else row[list(tokens)]
