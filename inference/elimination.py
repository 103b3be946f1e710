"""Exact inference for finite programs by message passing, at the cost of their treewidth.

The program becomes tables (`lmppl.graphs.factors.program_tables`), one per site over the values that it depends on;
summing variables out one after the other gives

    Z = Σ_x Π_sites table_site(x_scope)

and every marginal, with work of the order of the largest table on the way, where enumeration needs
one trace per assignment: 40 binary sites in a row are 40 small tables and 10¹² traces. Traces are
drawn exactly, backwards along the order. Each prompt is scored once, all of them in one batch.

A draw's weight is γ(trace) / q(trace), with q the law of the tables and γ as the program itself
computes it. It is Z for all of them if the tables are right; if a dependence was missed, which
`Tables.proven` rules out, the weights differ, say so, and correct the draws.

Where the tables get too wide, draws are guided by loopy propagation and weighted, as any proposal.

Reference: Zhang and Poole, A simple approach to Bayesian network computations (1994).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.arguments import check_integers
from lmppl.eager import EagerContext
from lmppl.graphs.factors.elimination import MOST_ENTRIES, CliqueTree, TooWide
from lmppl.graphs.factors.loopy import Loopy, guided_draw, propagate
from lmppl.graphs.factors.program_tables import ABSENT, Tables, tables_from
from lmppl.graphs.structure.rescoring import run_effect
from lmppl.graphs.structure.scopes import RESULT, Program, identity
from lmppl.inference.base import Engine
from lmppl.inference.checks import check_particles
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.results.estimates import Estimate, Marginal
from lmppl.inference.results.posterior import Of, Posterior, numeric
from lmppl.messages import Message
from lmppl.random import fold
from lmppl.trace import Trace
from lmppl.weights import NEG_INF, log_mean_exp


@dataclass(frozen=True)
class Elimination(Engine):
    """Variable elimination over the sites of a finite program.

    Args:
        draws: how many traces are drawn from the exact posterior.
        most: the most entries of a table on the way (4 million); beyond it, loopy propagation
            guides the draws.
        probes: replays at random, in a row, that must show no new dependence between sites.
        exhaustive: visit every assignment where there are at most so many.

    `posterior.marginal("site")` and `posterior.marginal()` are exact, not estimates from draws.

    >>> from lmppl import Bernoulli, observe, program, sample
    >>> from lmppl.inference import infer
    >>> @program
    ... def chain():
    ...     x = True
    ...     for t in range(40):
    ...         x = sample("x", Bernoulli(0.9 if x else 0.3))
    ...     observe("y", Bernoulli(0.8 if x else 0.1), False)
    ...     return x
    >>> post = infer(chain, engine=Elimination(draws=8))
    >>> round(post.marginal()[True], 4), round(post.log_evidence, 4)
    (0.4, -0.9808)
    """

    draws: int = 256
    most: int = MOST_ENTRIES
    probes: int = 200
    exhaustive: int = 256

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_particles("Elimination", draws=self.draws)
        check_integers("Elimination", 2, most=self.most)
        check_integers("Elimination", probes=self.probes)
        check_integers("Elimination", 0, exhaustive=self.exhaustive)

    def target(self, program: Any = None) -> str:
        """The law of the weighted traces."""
        return "γ(trace), Z = Σ γ summed variable by variable; traces drawn from γ / Z"

    def run(self, machine: Machine) -> Jobs:
        """Tables, a tree of cliques, draws."""
        yield from ()
        source = Program(
            machine.program,
            machine.launch.args,
            machine.launch.kwargs,
            None,
            machine.conditions,
            machine.params,
            machine.env,
        )
        source.ledger = source.memory.ledger = machine.ledger
        tables = tables_from(
            source, probes=self.probes, exhaustive=self.exhaustive, seed=machine.key % (1 << 32)
        )
        machine.used |= {a for a in machine.conditions if a in tables.scopes}
        tree: CliqueTree | None = None
        guide: Loopy | None = None
        try:
            tree = CliqueTree(tables.graph, most=self.most)
        except TooWide:
            guide = propagate(tables.graph, damping=0.3)
        traces: list[Trace] = []
        weights: list[float] = []
        known: dict[tuple[int, ...], tuple[Trace, float]] = {}
        for i in range(self.draws if tree is None or tree.log_z > NEG_INF else 1):
            key = fold(machine.key, "draw", i)
            log_q = 0.0
            if tree is None and guide is not None:
                drawn, weight = guided_draw(tables.graph, guide, key, machine.env.chance)
                log_q = tables.graph.log_value(drawn) - weight if drawn else 0.0
            elif tree is not None and tree.log_z > NEG_INF:
                drawn = tree.draw(key, machine.env.chance)
                log_q = tables.graph.log_value(drawn) - tree.log_z
            else:
                drawn = {}
            if not drawn:
                traces.append(Trace.of(None))
                weights.append(NEG_INF)
                continue
            name = tuple(identity(v) for v in drawn.values() if v is not ABSENT)
            if name not in known:
                trace = trace_of(source, drawn)
                known[name] = trace, trace.log_joint
            trace, log_joint = known[name]
            traces.append(trace)
            weights.append(log_joint - log_q)
        exact = tree is not None
        return Eliminated(
            traces,
            np.array(weights),
            tree.log_z if tree is not None else log_mean_exp(weights),
            tables=tables,
            tree=tree,
            engine=repr(self),
            target=self.target(machine.program),
            ledger=machine.ledger,
            evidence_se=0.0 if exact else None,
            warnings=_warnings(tables, tree, guide, weights),
        )


def _warnings(
    tables: Tables, tree: CliqueTree | None, guide: Loopy | None, weights: list[float]
) -> list[str]:
    found = []
    if tree is None:
        state = "converged" if guide is not None and guide.converged else "did not converge"
        found.append(
            f"the tables are too wide to be summed exactly: draws are guided by loopy propagation ({state})"
        )
    elif tree.log_z > NEG_INF and max(weights) - min(weights) > 1e-6:
        found.append(
            "the weights of exact draws differ: a dependence between sites was missed; marginals "
            "are estimates, use a larger probes="
        )
    return found


class Eliminated(Posterior):
    """A posterior whose marginals of sites are exact; everything else comes from its draws."""

    def __init__(self, *args: Any, tables: Tables, tree: CliqueTree | None, **more: Any) -> None:
        """Keep the tables and their sums."""
        super().__init__(*args, **more)
        self.tables = tables
        self.tree = tree if not self.warnings else None

    def marginal(self, of: Of = None) -> Marginal:
        """P(value): exact for a site and for what the program returns."""
        exact = self._exact(of)
        return super().marginal(of) if exact is None else exact

    def expectation(self, f: str | Callable[[Trace], float] | None = None) -> Estimate:
        """E[f]: exact for a site and for what the program returns."""
        exact = self._exact(f)
        if exact is None:
            return super().expectation(f)
        x = numeric(exact, f)
        return Estimate(math.fsum(p * v for v, p in zip(x, exact.values(), strict=True)), 0.0)

    def _exact(self, of: Of) -> Marginal | None:
        """The marginal of a site or of the result; None where the draws must say it."""
        tree, tables = self.tree, self.tables
        if tree is None or self.dead or not (of is None or isinstance(of, str)):
            return None
        if of is not None:
            if of not in tables.graph.domains:
                return None
            pairs = list(zip(tables.graph.domains[of], tree.marginal(of), strict=True))
        else:
            if not tables.results:
                return None
            scope = list(tables.scopes[RESULT])
            try:
                p = tree.joint(scope)
            except TooWide:
                return None
            pairs = [(result, p[key]) for key, result in tables.results.items()]
        found: dict[Any, float] = {}
        for value, mass in pairs:
            if mass > 0:
                shown = None if value is ABSENT else value
                try:
                    found[shown] = found.get(shown, 0.0) + float(mass)
                except TypeError:
                    return None
        return Marginal(found, dict.fromkeys(found, 0.0))


class _Given(EagerContext):
    """A run at given values, scored from what the tables have scored already."""

    def __init__(self, source: Program, values: Mapping[str, Any]) -> None:
        super().__init__(0, None, dict(source.env.models))
        self.source = source
        self.values = values

    def answer(self, message: Message) -> None:
        source, op = self.source, message.op
        if op == "sample" and not message.done:
            message.value = value = self.values[message.address]
            key = "support", message.dist.fingerprint
            pairs = source.memory.all({key: lambda: message.dist.support(source.env)})[key]
            here = identity(value)
            logp = float(np.logaddexp.reduce([lp for v, lp in pairs if identity(v) == here]))
            message.logp = logp if message.masked else logp * message.scale
            self._record(message, message.logp)
            message.done = True
        elif op in ("effect", "cached"):
            message.value = run_effect(message, source.effects)
            self._record(message, 0.0)
            message.done = True
        elif op == "param":
            message.value = source.params.get(message.address, message.value)
            self._record(message, 0.0)
            message.done = True
        else:
            super().answer(message)

    def _score(self, message: Message) -> float:
        dist, value = message.dist, message.value
        key = "score", dist.fingerprint, identity(value)
        return float(self.source.memory.all({key: lambda: dist.score(value, self.source.env)})[key])

    def _warn_unmet(self, fn: Any) -> None:
        """Conditions are checked by `infer`."""


def trace_of(source: Program, values: Mapping[str, Any]) -> Trace:
    """The trace of a finite program at given values; weights as the program computes them."""
    run = _Given(source, {v: x for v, x in values.items() if x is not ABSENT})
    run.enter(source.program, source.args, source.kwargs)
    return run.trace
