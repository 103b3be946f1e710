"""Kernels, surrogates and the ladder of guided steps, in JAX.

A kernel k is the law of a child given its parent; a surrogate k~ is a kernel that can pull a
message back through itself, m(x) = ∫ g(y) k~(x, dy). The guided step draws the child from k, tilted
by g, and returns the numerator of the weight of its edge:

    w(x) = numerator / m(x)        m: the number that the backward pass stored, never a second k~g

| rung | needs | draws from | log numerator |
| --- | --- | --- | --- |
| 1 closed form | `@guided`, or a surrogate as kernel | k g / (k g)(x) | log (k g)(x) |
| 2 finite support | `support`, `log_prob` | k g / (k g)(x) | logsumexp(log k + log g) |
| 3 proposal | `proposal`, `log_prob` | q | log k + log g - log q |
| 4 surrogate | `log_prob`, or its noise | k~ g / (k~ g)(x) | log k + log g - log q |
| 5 forward | `forward` | k | log g(y) |

Every rung is exact: the product of the weights telescopes to prior × likelihood / proposal. A new
kernel needs `noise` and `forward`; each thing added lets it climb.

Reference: van der Meulen and Schauer (2020); van der Meulen and Sommer, Backward filtering forward
guiding, JMLR 26 (2025).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lmppl.errors import BadArgument
from lmppl.inference.bffg.messages import Array, Message
from lmppl.inference.bffg.segments import Segment

Guided = Callable[[Any, Any, Array, Array], tuple[Array, Array]]
"""(kernel, message, parent, noise) -> (child, log (k g)(parent))."""

RUNGS = {1: "closed form", 2: "finite support", 3: "proposal", 4: "surrogate", 5: "forward only"}

_surrogates: dict[type, Callable[[Any, Array], Any]] = {}
_guided: dict[tuple[type, type], Guided] = {}


class Kernel(ABC):
    """The law of a child given its parent: a frozen dataclass that is a JAX pytree.

    With several parents, `parent` holds their states stacked along a first axis.
    """

    after_draw = False
    """Whether even its closed form knows the weight only with the child."""
    affine = False
    """Whether the child, guided or not, is an affine function of the parent at given noise."""

    @property
    @abstractmethod
    def noise(self) -> tuple[int, ...]:
        """The shape of its noise: independent standard normals."""

    @abstractmethod
    def forward(self, parent: Array, noise: Array) -> Array:
        """The child; with standard normal noise it has the law of the kernel."""

    def log_prob(self, parent: Array, child: Array) -> Array:
        """log k(parent, child). Optional."""
        raise missing(self, "log_prob")

    def support(self) -> Array:
        """All values that a child may have [S, …]. Optional."""
        raise missing(self, "support")

    def proposal(self, message: Message, parent: Array) -> Kernel:
        """A kernel with `log_prob` to draw the child from instead. Optional."""
        raise missing(self, "proposal")


class Surrogate(Kernel):
    """A kernel with a pullback."""

    @abstractmethod
    def one(self) -> Message:
        """The message 1 on its children."""

    @abstractmethod
    def log_kg(self, message: Any, parent: Array) -> Array:
        """log (k g)(parent) = log ∫ g(y) k(parent, dy)."""

    @abstractmethod
    def pullback(self, message: Any, anchor: Array) -> Any:
        """The message k g to the parent, about the anchor of the parent."""

    @abstractmethod
    def draw(self, message: Any, parent: Array, noise: Array) -> Array:
        """A child from k g / (k g)(parent)."""

    def pullback_many(self, message: Any, anchor: Array) -> Any:
        """One message to each of several parents, stacked [p, …]: their product is not k g."""
        raise missing(self, "pullback_many")

    def given(self, parents: Array, index: int) -> Surrogate:
        """The kernel from the parent `index`, at the states of the others [p, …]. Optional."""
        raise missing(self, "given")

    def segment(self, message: Any) -> Segment | None:
        """A stretch of no edge, from which long chains are handled in blocks; None for never."""
        return None

    def inflated(self, amount: Array) -> Surrogate:
        """The same with more noise: a guide that is less sure of itself."""
        return self


def missing(kernel: object, method: str) -> NotImplementedError:
    """The error of an optional method."""
    return NotImplementedError(f"{type(kernel).__name__} has no {method}")


def has(kernel: Kernel, method: str) -> bool:
    """Whether a kernel has an optional method."""
    base = Surrogate if method == "pullback_many" else Kernel
    return getattr(type(kernel), method) is not getattr(base, method)


def surrogate(kind: type[Kernel]) -> Callable[[Callable[[Any, Array], Any]], Any]:
    """Register a surrogate: `@surrogate(MyKernel)` on `f(kernel, anchor) -> Surrogate`."""

    def register(make: Callable[[Any, Array], Any]) -> Callable[[Any, Array], Any]:
        _surrogates[kind] = make
        return make

    return register


def guided(kind: type[Kernel], family: type[Message]) -> Callable[[Guided], Guided]:
    """Register a closed form, rung 1: `@guided(MyKernel, Gaussian)` on a `Guided` function."""

    def register(step: Guided) -> Guided:
        _guided[kind, family] = step
        return step

    return register


def surrogate_of(kernel: Kernel, anchor: Array) -> Surrogate:
    """The surrogate of a kernel: the registered one, or the kernel itself."""
    for kind in type(kernel).__mro__:
        if kind in _surrogates:
            found: Surrogate = _surrogates[kind](kernel, anchor)
            return found
    if isinstance(kernel, Surrogate):
        return kernel
    name = type(kernel).__name__
    raise BadArgument(
        f"{name} has no surrogate, so no message can be pulled back through it",
        fix=f"write @bffg.surrogate({name}) on f(kernel, anchor), or give surrogate= to the model",
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Guessed:
    """A kernel with a surrogate of the user's choice, in place of the registered one.

    Args:
        kernel: the true kernel k.
        guess: the surrogate k~, or a kernel that has one.
    """

    kernel: Any
    guess: Any


def resolve(found: Any, anchor: Array) -> tuple[Kernel, Surrogate]:
    """The true kernel and its surrogate at an anchor of the parent."""
    if isinstance(found, Guessed):
        return found.kernel, surrogate_of(found.guess, anchor)
    return found, surrogate_of(found, anchor)


def is_anchored(found: Any) -> bool:
    """Whether the surrogate is made anew for each anchor, by a registered function."""
    made = found.guess if isinstance(found, Guessed) else found
    return any(kind in _surrogates for kind in type(made).__mro__)


def closed_form(kernel: Kernel, message: Message) -> Guided | None:
    """The closed form of a pair of types, if there is one."""
    made: Guided | None = message.closed_form(lambda base: closed_form(kernel, base))
    if made is not None:
        return made
    for kind in type(kernel).__mro__:
        if (kind, type(message)) in _guided:
            return _guided[kind, type(message)]
    if isinstance(kernel, Surrogate):
        return _of_surrogate
    return None


def _of_surrogate(k: Surrogate, g: Message, x: Array, z: Array) -> tuple[Array, Array]:
    return k.draw(g, x, z), k.log_kg(g, x)


def rung(kernel: Kernel, k_tilde: Surrogate, message: Message) -> int:
    """The highest rung of the ladder that a kernel reaches, decided by types alone."""
    if has(kernel, "proposal") and has(kernel, "log_prob"):
        return 3  # the user's own wish comes first
    if closed_form(kernel, message) is not None:
        return 1
    if has(kernel, "support") and has(kernel, "log_prob"):
        return 2
    if has(kernel, "log_prob") and has(k_tilde, "log_prob") and type(k_tilde) is not type(kernel):
        return 4
    if hasattr(k_tilde, "tilted_noise") and k_tilde.noise == kernel.noise:
        return 4
    return 5


def step(
    kernel: Kernel, k_tilde: Surrogate, g: Message, x: Array, z: Array, at: int | None = None
) -> tuple[Array, Array]:
    """One guided step from x with noise z: the child, and the log numerator of its weight."""
    h = _drawn(kernel, k_tilde, g, x)
    if h is not g:
        y, numerator = step(kernel, k_tilde, h, x, z, at)
        return y, numerator + g.log_value(y) - h.log_value(y)
    level = rung(kernel, k_tilde, g) if at is None else at
    if level == 1:
        form = closed_form(kernel, g)
        if form is None:
            raise missing(kernel, "closed form")
        return form(kernel, g, x, z)
    if level == 2:
        values = kernel.support()
        logs = _tilted(kernel, g, x, values)
        total = jax.nn.logsumexp(logs)
        return values[pick(jax.nn.softmax(logs), z)], total
    if level == 3:
        q = kernel.proposal(g, x)
        y = q.forward(x, z)
        return y, kernel.log_prob(x, y) + g.log_value(y) - q.log_prob(x, y)
    if level == 4 and not has(kernel, "log_prob"):
        # the child may be singular given its parent, its noise is not
        e, log_ratio = k_tilde.tilted_noise(g, x, z)  # type: ignore[attr-defined]
        y = kernel.forward(x, e)
        return y, g.log_value(y) + log_ratio
    if level == 4:
        y = k_tilde.draw(g, x, z)
        log_q = k_tilde.log_prob(x, y) - k_tilde.log_kg(g, x)
        return y, kernel.log_prob(x, y) - log_q
    y = kernel.forward(x, z)
    return y, g.log_value(y)


def score(
    kernel: Kernel, k_tilde: Surrogate, g: Message, x: Array, y: Array, at: int | None = None
) -> tuple[Array, Array]:
    """log q(x, y) of the guided step, and the log numerator of its weight, for a given child."""
    h = _drawn(kernel, k_tilde, g, x)
    if h is not g:
        log_q, numerator = score(kernel, k_tilde, h, x, y, at)
        return log_q, numerator + g.log_value(y) - h.log_value(y)
    level = rung(kernel, k_tilde, g) if at is None else at
    if level <= 2:
        if level == 1:
            log_kg = step(kernel, k_tilde, g, x, jnp.zeros(kernel.noise), 1)[1]
        else:
            log_kg = jax.nn.logsumexp(_tilted(kernel, g, x, kernel.support()))
        return kernel.log_prob(x, y) + g.log_value(y) - log_kg, log_kg
    if level == 3:
        log_q = kernel.proposal(g, x).log_prob(x, y)
    elif level == 4:
        log_q = k_tilde.log_prob(x, y) + g.log_value(y) - k_tilde.log_kg(g, x)
    else:
        return kernel.log_prob(x, y), g.log_value(y)
    return log_q, kernel.log_prob(x, y) + g.log_value(y) - log_q


def _drawn(kernel: Kernel, k_tilde: Surrogate, g: Message, x: Array) -> Message:
    return g.drawn(lambda h: step(kernel, k_tilde, h, x, jnp.zeros(kernel.noise))[0])


def before_draw(kernel: Kernel, level: int) -> bool:
    """Whether the weight is known before the child is drawn: then score, resample, draw."""
    return level <= 2 and not kernel.after_draw


def _tilted(kernel: Kernel, g: Message, x: Array, values: Array) -> Array:
    return jax.vmap(lambda y: kernel.log_prob(x, y) + g.log_value(y))(values)


def pick(probabilities: Array, z: Array) -> Array:
    """The index that a standard normal picks, monotone in it: the inverse of Σ p at Φ(z)."""
    edges = jnp.cumsum(probabilities)
    u = jax.scipy.special.ndtr(z) * edges[-1]
    found = jnp.sum(edges < u)
    # an index of probability zero is never picked, not even at the ends
    first = jnp.argmax(probabilities > 0)
    last = probabilities.shape[0] - 1 - jnp.argmax(probabilities[::-1] > 0)
    return jnp.clip(found, first, last)
