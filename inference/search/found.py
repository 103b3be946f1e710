"""What a search returns: the finished traces that it has met, the best of them, and a bound.

A search draws no sample. Its traces are distinct, and their weights are γ, normalised over what was
found ("truncated posterior"). Σ γ over distinct traces of a discrete program is at most Z: the
log-evidence is a **lower bound**, never an estimate, and has no standard error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmppl.inference.machine.particles import Particle
from lmppl.inference.machine.population import Machine
from lmppl.inference.results.posterior import Posterior, population_posterior
from lmppl.inference.search.nodes import Node, same_value
from lmppl.trace import Trace
from lmppl.types import Floats
from lmppl.weights import NEG_INF, log_sum_exp

LAW = (
    "no sample: the finished traces that the search has met, each once, with weights γ normalised "
    "over them (a truncated posterior)\nlog evidence = log Σ γ(found) ≤ log Z for a discrete program"
)
"""The end of every `target()`."""


class Found(Posterior):
    """The finished traces of a search.

    Args:
        base: their posterior.
        scores: what the search maximised, per trace.
        expansions: nodes that were given children.
        nodes: nodes that were made.
        upper: no trace that was not found has a larger log γ; inf where nothing is known.
        allocator: who decided what was tried, where there was one.
        tried: entries where its partial traces ended, those that were given up too.
    """

    def __init__(
        self,
        base: Posterior,
        scores: Floats,
        *,
        expansions: int,
        nodes: int,
        upper: float = float("inf"),
        allocator: Any = None,
        tried: Sequence[Any] = (),
    ) -> None:
        """Take the parts of `base` over."""
        vars(self).update(vars(base))
        self.scores = scores
        self.expansions = expansions
        self.nodes = nodes
        self.upper = upper
        self.allocator = allocator
        self.tried = tried

    def map(self) -> Trace:
        """The best trace: of the largest score, and of the largest γ among those."""
        self._alive()
        return self.traces[
            max(range(len(self)), key=lambda i: (self.scores[i], self.log_weights[i], -i))
        ]

    @property
    def best(self) -> Any:
        """What the best trace returned."""
        return self.map().result


def found(
    machine: Machine,
    engine: Any,
    particles: Sequence[Particle],
    scores: Sequence[float] | None = None,
    *,
    expansions: int = 0,
    nodes: int = 0,
    upper: float = float("inf"),
    complete: bool = False,
    distinct: bool = False,
    log_evidence: float | None = None,
    allocator: Any = None,
) -> Found:
    """The result of a search.

    Args:
        machine: the run.
        engine: the algorithm.
        particles: finished ones; of equal traces the first is kept.
        scores: what was maximised; log γ when left out.
        expansions: nodes that were given children.
        nodes: nodes that were made.
        upper: a bound on log γ of what was not found.
        complete: whether every trace was visited, so that the posterior is exact.
        distinct: whether no traces are equal, as in a tree.
        log_evidence: where it is not log Σ γ.
        allocator: who decided what was tried.
    """
    values = [p.log_weight for p in particles] if scores is None else list(scores)
    seen: set[Any] = set()
    keep = []
    for i, p in enumerate(particles):
        if p.dead:
            continue
        identity = i if distinct else trace_identity(p.trace)
        if identity not in seen:
            seen.add(identity)
            keep.append(i)
    kept = [particles[i] for i in keep]
    if log_evidence is None:
        log_evidence = log_sum_exp([p.log_weight for p in kept]) if kept else NEG_INF
    base = population_posterior(
        machine, engine, kept, log_evidence, exact=complete, evidence_se=float("nan")
    )
    # a search has no effective sample size
    base.warnings = [w for w in base.warnings if not w.startswith(("ESS", "all particles descend"))]
    return Found(
        base,
        np.array([values[i] for i in keep], dtype=np.float64),
        expansions=expansions,
        nodes=nodes,
        upper=upper,
        allocator=allocator,
        tried=machine.tried,
    )


def of_nodes(machine: Machine, engine: Any, ends: Sequence[Node], /, **more: Any) -> Found:
    """`found` for nodes."""
    return found(machine, engine, [n.particle for n in ends], distinct=True, **more)


def trace_identity(trace: Trace) -> tuple[Any, ...]:
    """Equal for traces of the same choices."""
    return tuple((e.address, same_value(e.value)) for e in trace.sites if e.op == "sample")
