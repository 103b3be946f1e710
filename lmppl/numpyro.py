"""Any NumPyro distribution at a site.

The value is a Python number, or a read-only NumPy array; `log_prob` is summed over batch and event
dimensions. A discrete distribution with finite support is drawn through the engine's chance, so
that it can be enumerated; any other is drawn by JAX from a key made of the site's 64-bit key.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lmppl.distributions import Distribution, fingerprint_of
from lmppl.errors import NotFinite, UnsupportedValue, excerpt
from lmppl.jobs import Draw, Env
from lmppl.random import GumbelMax, draw, fold, hash_text
from lmppl.types import Key
from lmppl.weights import NEG_INF


class NumPyro(Distribution):
    """A NumPyro distribution as a distribution of this package.

    Args:
        dist: the distribution; `LM` and the others need no wrapping, and neither does this one:
            `sample("x", numpyro.distributions.Normal(0, 1))` wraps by itself.
    """

    kind = "NumPyro"
    __slots__ = ("dist",)

    def __init__(self, dist: Any) -> None:
        """Keep the distribution."""
        self.dist = dist

    def draw(self, key: Key, env: Env) -> Draw:
        """Draw by enumeration where there is one, else by JAX."""
        if self.finite:
            pairs = self.support(env)
            k = draw(env.chance, key, np.array([lp for _, lp in pairs]))
            return Draw(pairs[k][0], pairs[k][1], pairs[k][1])
        if not isinstance(env.chance, GumbelMax) and type(env.chance).__name__ == "Enumerator":
            raise NotFinite(f"{type(self.dist).__name__} is continuous and cannot be enumerated")
        import jax

        data = np.array([key >> 32, key & 0xFFFFFFFF], dtype=np.uint32)
        value = plain(self.dist.sample(jax.random.wrap_key_data(jax.numpy.asarray(data))))
        logp = self.score(value, env)
        return Draw(value, logp, logp)

    def score(self, value: Any, env: Env) -> float:
        """log p, summed over all dimensions; `-inf` outside the support."""
        try:
            if np.asarray(value).dtype.kind not in "biufc":
                raise TypeError("it is no number or array of numbers")
            if not np.all(np.asarray(self.dist.support(value))):
                return NEG_INF
            return float(np.asarray(self.dist.log_prob(value), dtype=np.float64).sum())
        except (TypeError, ValueError) as error:
            raise UnsupportedValue(
                f"{type(self.dist).__name__} cannot score this value: {error}",
                value=excerpt(value),
                fix="give a number, or an array of the distribution's shape",
            ) from None

    @property
    def finite(self) -> bool:
        """Whether `support` lists its values."""
        return bool(getattr(self.dist, "has_enumerate_support", False)) and self.dist.shape() == ()

    def support(self, env: Env) -> list[tuple[Any, float]]:
        """The finite support of a scalar discrete distribution."""
        if not self.finite:
            raise NotFinite(
                f"{type(self.dist).__name__} has no finite support",
                fix="use SMC or Importance, or a discrete distribution",
            )
        values = np.asarray(self.dist.enumerate_support(expand=False)).reshape(-1)
        logps = np.asarray(self.dist.log_prob(values), dtype=np.float64)
        return [(plain(v), float(lp)) for v, lp in zip(values, logps, strict=True) if lp > NEG_INF]

    @property
    def fingerprint(self) -> int:
        """Of the class and its parameters."""
        names = sorted(getattr(self.dist, "arg_constraints", {}))
        params = [
            fingerprint_of(np.asarray(getattr(self.dist, n)))
            for n in names
            if hasattr(self.dist, n)
        ]
        return fold(hash_text(type(self.dist).__name__), *params)

    def __repr__(self) -> str:
        return f"NumPyro({type(self.dist).__name__})"


def plain(value: Any) -> Any:
    """A Python number for a scalar, else a read-only array."""
    array = np.asarray(value)
    if array.shape == ():
        return array.item()
    array = array.copy()
    array.setflags(write=False)
    return array
