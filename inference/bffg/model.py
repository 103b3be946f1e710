"""Models: a static graph, and functions that make its kernels from parameters, in JAX.

Node s has a kernel from its parents, made by `kernels[kind](params, covariate)`; a root has a
kernel that ignores its parent (`LinearGaussian.prior`, `Finite` of one axis, `Point` for a fixed
value). An observation is a leaf at a node, made by `leaf(params, covariate)`: an object with
`message(y, anchor)`, the guide's likelihood, `log_prob(x, y)`, the true one, and `exact`, whether
they are the same. Topology is static; parameters, covariates and data are traced, so that one
compilation serves all of them. All nodes of a model have states of one shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmppl.errors import BadArgument
from lmppl.inference.bffg.kernels import Surrogate, resolve
from lmppl.inference.bffg.messages import Array, Message
from lmppl.inference.bffg.schedule import Run, schedule
from lmppl.types import Ints

KernelFn = Callable[[Any, Any], Any]
"""(params, covariate of the node) -> kernel; the covariate is None when the model has none."""


@dataclass(frozen=True, eq=False)
class Model:
    """A Markov process on a DAG, with observations.

    Args:
        parents: of each node, in any order; () for a root.
        kinds: of each node: a key of `kernels`.
        kernels: kind -> (params, covariate) -> kernel.
        observed: the node of each observation [m].
        leaf: (params, covariate) -> leaf; None without observations.
        covariates: arrays with one row per node [n, …], such as branch lengths; or None.
        leaf_covariates: arrays with one row per observation [m, …]; or None.
        adaptive: whether the parent of a collider that is drawn last is guided by the pullback at
            the states of the others, in place of a factor of its own.
    """

    parents: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]
    kernels: Mapping[str, KernelFn]
    observed: Ints
    leaf: KernelFn | None
    covariates: Any = None
    leaf_covariates: Any = None
    adaptive: bool = False
    is_chain: bool = field(init=False)

    def __post_init__(self) -> None:
        """Check the graph."""
        n = len(self.parents)
        for s, pa in enumerate(self.parents):
            if any(not 0 <= u < n or u == s for u in pa):
                raise BadArgument(f"node {s} of {n} has parents {pa}", fix=f"use 0 to {n - 1}")
        chain = n > 2 and all(pa == ((s - 1,) if s else ()) for s, pa in enumerate(self.parents))
        object.__setattr__(self, "is_chain", chain and len(set(self.kinds[1:])) == 1)
        if not self.is_chain:
            _ = self.runs  # a cycle is an error now, not at first use

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The order in which nodes are handled, from the roots down."""
        return schedule(self.parents, self.kinds, self.adaptive)

    @property
    def n(self) -> int:
        """The number of nodes."""
        return len(self.parents)

    @property
    def colliders(self) -> list[int]:
        """Nodes with several parents."""
        return [s for s, pa in enumerate(self.parents) if len(pa) > 1]

    def count(self, kind: str) -> int:
        """How many nodes of a kind there are."""
        return self.kinds.count(kind)

    def covariate(self, nodes: Any) -> Any:
        """The rows of some nodes."""
        return rows(self.covariates, nodes)

    def example(self, kind: str, params: Any) -> Any:
        """The kernel of the first node of a kind."""
        return self.kernels[kind](params, self.covariate(self.kinds.index(kind)))


def rows(tree: Any, index: Any) -> Any:
    """Rows of every array of a pytree."""
    return jax.tree.map(lambda a: jnp.asarray(a)[index], tree)


def edge(model: Model, kind: str, params: Any, cov: Any, anchor: Any, inflate: Any) -> Any:
    """The kernel of an edge and its surrogate."""
    kernel, k_tilde = resolve(model.kernels[kind](params, cov), anchor)
    return kernel, k_tilde if inflate is None else k_tilde.inflated(inflate)


def true_kernel(model: Model, kind: str, params: Any, cov: Any) -> Any:
    """The kernel of a kind, without its guess."""
    found = model.kernels[kind](params, cov)
    return getattr(found, "kernel", found)


def exact_leaves(model: Model, params: Any) -> bool:
    """Whether the guide's likelihood of every observation is the true one."""
    if model.leaf is None or not len(model.observed):
        return True
    make, found = model.leaf, []

    def look(params: Any) -> Any:
        found.append(bool(make(params, rows(model.leaf_covariates, 0)).exact))
        return 0

    jax.eval_shape(look, params)
    return found[0]


def source() -> Array:
    """The state of the parent that roots do not have."""
    return jnp.zeros((0,))


def dag(
    parents: Sequence[Sequence[int]],
    kernels: Mapping[str, KernelFn],
    kinds: Sequence[str],
    observed: Sequence[int] = (),
    leaf: KernelFn | None = None,
    *,
    covariates: Any = None,
    leaf_covariates: Any = None,
    adaptive: bool = False,
) -> Model:
    """A model on any acyclic graph; see `Model` for the arguments.

    Nodes with several parents are colliders: their kernels see the states of all parents, stacked.
    """
    sets = tuple(tuple(int(u) for u in pa) for pa in parents)
    if len(kinds) != len(sets) or any(kind not in kernels for kind in kinds):
        raise BadArgument(
            f"{len(sets)} nodes need {len(sets)} kinds out of {sorted(kernels)}, got {list(kinds)[:10]}"
        )
    at = np.asarray(observed, dtype=np.int64).reshape(-1)
    if at.size and (at.min() < 0 or at.max() >= len(sets)):
        raise BadArgument(f"observed nodes must be 0 to {len(sets) - 1}, got {at.tolist()[:10]}")
    if at.size and leaf is None:
        raise BadArgument("observed nodes need a leaf", fix="write leaf=lambda params, c: ...")
    return Model(sets, tuple(kinds), dict(kernels), at, leaf, covariates, leaf_covariates, adaptive)


def tree(
    parents: Sequence[int],
    kernel: KernelFn,
    root: KernelFn,
    observed: Sequence[int] = (),
    leaf: KernelFn | None = None,
    **more: Any,
) -> Model:
    """A model on a tree.

    Args:
        parents: the parent of each node, -1 for the root.
        kernel: (params, covariate) -> kernel of an edge.
        root: (params, covariate) -> kernel of the root: a prior, or `Point(value)`.
        observed: as in `dag`.
        leaf: as in `dag`.
        **more: as in `dag`.
    """
    sets = [() if u < 0 else (u,) for u in parents]
    kinds = ["edge" if pa else "root" for pa in sets]
    return dag(sets, {"edge": kernel, "root": root}, kinds, observed, leaf, **more)


def chain(
    n: int,
    kernel: KernelFn,
    root: KernelFn,
    leaf: KernelFn | None = None,
    observed: Sequence[int] | None = None,
    **more: Any,
) -> Model:
    """A model on a chain of n nodes; every node is observed unless `observed` names some."""
    if n < 1:
        raise BadArgument(f"a chain has at least one node, got {n!r}")
    at = range(n if leaf is not None else 0) if observed is None else observed
    return tree(list(range(-1, n - 1)), kernel, root, list(at), leaf, **more)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Point(Surrogate):
    """A root of known value.

    Args:
        value: the state.
    """

    value: Array

    @property
    def noise(self) -> tuple[int, ...]:
        """None."""
        return (0,)

    def forward(self, parent: Array, noise: Array) -> Array:
        """The value."""
        return self.value

    def log_prob(self, parent: Array, child: Array) -> Array:
        """0 at the value, else -inf."""
        return jnp.where(jnp.all(child == self.value), 0.0, -jnp.inf)

    def one(self) -> Message:
        """Unknown: a value says nothing of its family."""
        raise BadArgument("a model of fixed values alone has no messages")

    def log_kg(self, message: Message, parent: Array) -> Array:
        """log g(value)."""
        return message.log_value(self.value)

    def draw(self, message: Message, parent: Array, noise: Array) -> Array:
        """The value."""
        return self.value

    def pullback(self, message: Message, anchor: Array) -> Message:
        """It has no parent."""
        raise BadArgument("a fixed value has no parent")
