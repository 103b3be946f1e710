"""Markov chains over the driving noise: pCN in blocks, and pseudo-marginal MH, in JAX.

A path is X = Γ(Z), Z standard normal, weight W(Z). The preconditioned Crank-Nicolson step

    Z' = ρ Z + √(1 - ρ²) ξ         accept with probability 1 ∧ W(Z') / W(Z)

leaves the posterior invariant with no prior ratio, whatever the dimension. With an exact guide W is
constant and every proposal is accepted. `pmmh` moves parameters with log W averaged over n paths
in place of the evidence; its posterior is exact for every n.

Reference: Cotter, Roberts, Stuart and White, MCMC methods for functions (2013); Andrieu and
Roberts, The pseudo-marginal approach (2009).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from lmppl.errors import BadArgument
from lmppl.inference.bffg.backward import BackwardFilter, backward
from lmppl.inference.bffg.forward import draw_noise, guided_path, key_of
from lmppl.inference.bffg.messages import Array
from lmppl.inference.bffg.model import Model
from lmppl.inference.bffg.particle_filter import log_mean


@dataclass(frozen=True)
class PCN:
    """How noise is moved.

    Args:
        rho: between 0 (independent proposals) and 1 (none).
        blocks: nodes are moved in so many groups of neighbours, one after the other.
    """

    rho: float = 0.9
    blocks: int = 1

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not 0.0 <= self.rho < 1.0:
            raise BadArgument(f"rho must be in [0, 1), got {self.rho!r}", fix="write PCN(0.9)")
        if isinstance(self.blocks, bool) or not isinstance(self.blocks, int) or self.blocks < 1:
            raise BadArgument(f"blocks must be a positive integer, got {self.blocks!r}")


@dataclass(frozen=True)
class NoiseChain:
    """What a chain over noise visited.

    Args:
        values: paths after each sweep [steps, nodes, …].
        noise: their noise, by kind [steps, count, …].
        log_weights: their log W [steps].
        acceptance: share of accepted proposals.
    """

    values: Array
    noise: Any
    log_weights: Array
    acceptance: float


def pcn(
    bf: BackwardFilter, key: Any, steps: int = 1000, move: PCN | None = None, start: Any = None
) -> NoiseChain:
    """A chain of `steps` sweeps, each of one proposal per block."""
    move = PCN() if move is None else move
    key = key_of(key)
    noise = draw_noise(bf.model, jax.random.fold_in(key, 0), bf.params) if start is None else start
    keys = jax.random.split(jax.random.fold_in(key, 1), steps)
    values, noise, logs, accepted = _pcn(bf, noise, keys, jnp.asarray(move.rho), move.blocks)
    return NoiseChain(values, noise, logs, float(jnp.mean(accepted)))


@partial(jax.jit, static_argnums=4)
def _pcn(bf: BackwardFilter, noise: Any, keys: Array, rho: Array, blocks: int) -> Any:
    model = bf.model
    n = model.n
    groups = {
        kind: np.array([s * blocks // n for s, k in enumerate(model.kinds) if k == kind])
        for kind in noise
    }

    def propose(carry: Any, xs: Any) -> Any:
        z, x, lw = carry
        block, key = xs
        fresh = {}
        for i, (kind, v) in enumerate(sorted(z.items())):
            xi = jax.random.normal(jax.random.fold_in(key, i), v.shape, v.dtype)
            inside = (groups[kind] == block).reshape(-1, *[1] * (v.ndim - 1))
            fresh[kind] = jnp.where(inside, rho * v + jnp.sqrt(1 - rho**2) * xi, v)
        values, new = guided_path(bf, fresh)
        u = jax.random.uniform(jax.random.fold_in(key, len(z)))
        accept = jnp.log(u) < new - lw
        carry = jax.tree.map(lambda a, b: jnp.where(accept, a, b), (fresh, values, new), carry)
        return carry, accept

    def sweep(carry: Any, key: Array) -> Any:
        carry, accepted = jax.lax.scan(
            propose, carry, (jnp.arange(blocks), jax.random.split(key, blocks))
        )
        return carry, (*carry, jnp.mean(accepted))

    x, lw = guided_path(bf, noise)
    _, (z, values, logs, accepted) = jax.lax.scan(sweep, (dict(noise), x, lw), keys)
    return values, z, logs, accepted


@dataclass(frozen=True)
class PMMH:
    """Pseudo-marginal Metropolis-Hastings over parameters.

    Args:
        n: guided paths per likelihood estimate.
        scale: standard deviation of the random walk, one number or one per parameter.
    """

    n: int = 16
    scale: Any = 0.3

    def run(
        self,
        model: Model,
        data: Any,
        log_prior: Callable[[Any], Array],
        start: Any,
        key: Any,
        steps: int = 1000,
        *,
        anchors: Any = None,
        inflate: float = 0.0,
    ) -> tuple[Any, float]:
        """Parameters visited (a pytree, [steps, …]), and the acceptance rate."""
        flat, unravel = ravel_pytree(start)
        scale = jnp.asarray(self.scale)

        def estimate(theta: Array, key: Array) -> Array:
            params = unravel(theta)
            bf = backward(model, data, params, anchors=anchors, inflate=inflate)
            noise = draw_noise(model, key, params, self.n)
            lw = jax.vmap(lambda z: guided_path(bf, z)[1])(noise)
            return log_mean(lw) + log_prior(params)

        def step(carry: Any, key: Array) -> Any:
            theta, level = carry
            keys = jax.random.split(key, 3)
            new = theta + scale * jax.random.normal(keys[0], theta.shape, theta.dtype)
            proposed = estimate(new, keys[1])
            accept = jnp.log(jax.random.uniform(keys[2])) < proposed - level
            carry = (jnp.where(accept, new, theta), jnp.where(accept, proposed, level))
            return carry, (carry[0], accept)

        @jax.jit
        def walk(flat: Array, key: Array) -> Any:
            first, rest = jax.random.split(key)
            keys = jax.random.split(rest, steps)
            _, out = jax.lax.scan(step, (flat, estimate(flat, first)), keys)
            return out

        visited, accepted = walk(flat, key_of(key))
        return jax.vmap(unravel)(visited), float(jnp.mean(accepted))
