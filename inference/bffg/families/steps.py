"""Edges of many steps, whose last state alone is a node: branching diffusions, in JAX.

On a tree, an edge of K Euler steps as K nodes would make K times as many levels. `Steps` pulls the
message through all of them and multiplies their weights. Two rules say how a step is taken:

| `weight=` | the child of v | log w of the step |
| --- | --- | --- |
| "discrete" | from k g / (k g)(v) | log (k g)(v) - log m(v) |
| "continuous" | Euler for dX = (b + a r) dt + σ dW | [(b - b~)'r - ½ tr((a - a~)(H - rr'))] Δ |

with r = F - Hv of the message m. The first is exact: E[W] is the likelihood of the Euler chain at
every step size. The second is the rule of most papers and packages, offered for comparison. It is
*biased*, of order Δ: its W is neither the likelihood of the chain nor that of the diffusion, and
with a linear drift W is constant while the paths still have the wrong law.

Reference: Schauer, van der Meulen and van Zanten (2017); Mider, Schauer and van der Meulen,
Continuous-discrete smoothing of diffusions (2021).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lmppl.errors import BadArgument
from lmppl.inference.bffg.families.diffusions import linear_sde, time_grid
from lmppl.inference.bffg.kernels import Kernel, Surrogate, guided, resolve, step, surrogate
from lmppl.inference.bffg.messages import Array, Gaussian, pairwise_sum


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Steps(Kernel):
    """One edge of K steps; only the last state is a node.

    Args:
        pieces: kernels of one type, `Guessed` ones too, stacked along a first axis [K, …].
        count: K, as an array of that length: any.

    The message is pulled through all steps, linearised along the path without noise from the
    parent's anchor; a forward pass multiplies the weights of all steps, so that its weight is known
    after the draw.
    """

    pieces: Any
    count: Array
    after_draw = True

    @property
    def true(self) -> Any:
        """The kernels without their guesses [K, …]."""
        return getattr(self.pieces, "kernel", self.pieces)

    @property
    def noise(self) -> tuple[int, ...]:
        """That of each step."""
        first = jax.tree.map(lambda a: a[0], self.true)
        shape: tuple[int, ...] = first.noise
        return (self.count.shape[0], *shape)

    def forward(self, parent: Array, noise: Array) -> Array:
        """Step by step."""
        return self.run(parent, noise)[0]

    def run(self, parent: Array, noise: Array) -> tuple[Array, Array]:
        """The last state, and the state before each step."""

        def move(x: Array, xs: Any) -> tuple[Array, Array]:
            piece, z = xs
            return piece.forward(x, z).astype(x.dtype), x

        return jax.lax.scan(move, parent, (self.true, noise))

    def guess(self, piece: Any, anchor: Array) -> Surrogate:
        """What pulls the message through a step."""
        return resolve(piece, anchor)[1]

    def advance(
        self, piece: Any, anchor: Array, g: Any, m: Any, v: Array, z: Array
    ) -> tuple[Array, Array]:
        """The guided child of v, and log w of a step with message g that sent m."""
        kernel, k_tilde = resolve(piece, anchor)
        y, numerator = step(kernel, k_tilde, g, v, z)
        return y, numerator - m.log_value(v)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BiasedSteps(Steps):
    """`Steps` of `euler` by the continuous rule: biased, see the module's first lines."""

    def guess(self, piece: Any, anchor: Array) -> Surrogate:
        """The auxiliary diffusion itself, in place of its Euler step."""
        k: Any = resolve(piece, anchor)[1]
        # k is x + (Bx + β)Δ + σ√Δ ε: with time in units of the step, Δ is in the coefficients
        return linear_sde(k.B - jnp.eye(k.B.shape[0], dtype=k.B.dtype), k.beta, k.L, jnp.ones(()))

    def advance(
        self, piece: Any, anchor: Array, g: Any, m: Any, v: Array, z: Array
    ) -> tuple[Array, Array]:
        """An Euler step of the guided diffusion; the left end of the integral of log w."""
        found: Any = resolve(piece, anchor)
        kernel, k_tilde = found
        mean, L = kernel.mean(v, kernel.theta), kernel.factor(v, kernel.theta)
        r = m.F - m.H @ (v - m.anchor)
        gap = L @ L.T - k_tilde.L @ k_tilde.L.T
        log_w = (mean - k_tilde.mean(v)) @ r - 0.5 * jnp.sum(gap * (m.H - jnp.outer(r, r)))
        return mean + L @ (L.T @ r + z), log_w


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepsGuide(Surrogate):
    """The surrogate of `Steps`: the surrogates of its steps, each at its own anchor.

    Args:
        steps: the kernel.
        anchors: before each step [K, …].
        last: the anchor of the child.
    """

    steps: Steps
    anchors: Array
    last: Array

    @property
    def noise(self) -> tuple[int, ...]:
        """That of the kernel."""
        return self.steps.noise

    def forward(self, parent: Array, noise: Array) -> Array:
        """That of the kernel: only its messages are used."""
        return self.steps.forward(parent, noise)

    def one(self) -> Any:
        """Of the last step."""
        piece = jax.tree.map(lambda a: a[-1], self.steps.pieces)
        return self.steps.guess(piece, self.anchors[-1]).one()

    def messages(self, g: Any) -> tuple[Any, Any, Any]:
        """To the parent; then, for each step, its g and the message that it sends [K, …]."""

        def back(g: Any, xs: Any) -> Any:
            piece, a = xs
            m = self.steps.guess(piece, a).pullback(g, a)
            return m, (g, m)

        m, (gs, ms) = jax.lax.scan(
            back, g.at(self.last), (self.steps.pieces, self.anchors), reverse=True
        )
        return m, gs, ms

    def pullback(self, message: Any, anchor: Array) -> Any:
        """Through all steps."""
        return self.messages(message)[0].at(anchor)

    def log_kg(self, message: Any, parent: Array) -> Array:
        """Of the surrogate."""
        return self.messages(message)[0].log_value(parent)

    def draw(self, message: Any, parent: Array, noise: Array) -> Array:
        """The guided child."""
        return guided_steps(self, message, parent, noise)[0]


@surrogate(Steps)
def _steps_guide(kernel: Steps, anchor: Array) -> StepsGuide:
    last, anchors = kernel.run(anchor, jnp.zeros(kernel.noise))
    return StepsGuide(kernel, anchors, last)


def guided_steps(guide: StepsGuide, g: Any, x: Array, noise: Array) -> tuple[Array, Array]:
    """The guided child, and log m(x) + Σ log w of the steps: an unbiased numerator."""
    m, gs, ms = guide.messages(g)

    def move(v: Array, xs: Any) -> tuple[Array, Array]:
        piece, a, g, m, z = xs
        y, log_w = guide.steps.advance(piece, a, g, m, v, z)
        return y.astype(v.dtype), log_w

    xs = (guide.steps.pieces, guide.anchors, gs, ms, noise)
    y, logs = jax.lax.scan(move, x, xs)
    return y, m.log_value(x) + pairwise_sum(logs)


@guided(Steps, Gaussian)
def _steps(kernel: Steps, g: Gaussian, parent: Array, noise: Array) -> tuple[Array, Array]:
    return guided_steps(_steps_guide(kernel, parent), g, parent, noise)


WEIGHTS: dict[str, type[Steps]] = {"discrete": Steps, "continuous": BiasedSteps}


def euler_steps(
    kernel: Callable[[Any, Any], Any],
    steps: int,
    change: bool = True,
    weight: str = "discrete",
) -> Callable[[Any, Any], Steps]:
    """An edge of Euler steps, for `tree`: the covariate has "length", and "start" if b needs time.

    Args:
        kernel: of `euler`.
        steps: per edge.
        change: whether steps shrink towards the child.
        weight: "discrete", exact for the Euler chain; or "continuous", which is biased.
    """
    if weight not in WEIGHTS:
        raise BadArgument(f'weight must be "discrete" or "continuous", got {weight!r}')
    t, dt = time_grid(1.0, steps, change)

    def edge(params: Any, c: Any) -> Steps:
        start = c.get("start", 0.0)
        pieces = jax.vmap(
            lambda t, dt: kernel(params, {"t": start + t * c["length"], "dt": dt * c["length"]})
        )(jnp.asarray(t, jnp.result_type(float)), jnp.asarray(dt, jnp.result_type(float)))
        return WEIGHTS[weight](pieces, jnp.zeros(steps))

    return edge
