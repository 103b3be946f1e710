"""`Planning`: the engine of programs that decide, exact on finite ones.

Every run of the program is visited. Runs that have seen the same at a `choose` site are one
decision; with w = the mass of a run (chance times evidence), R = its rewards and λ = the risk,

    λ = 0:  E(a) = Σ w R over the runs after a,           the decision takes max_a E(a)
    λ ≠ 0:  L(a) = log Σ w e^{λ R},                       the decision takes max_a L(a) / λ

from the last decision to the first; F = E / Σ w, or (L - log Σ w) / λ. The entropy weights follow
from the roles: chance is averaged, controlled sites are maximised. `kind` shows what the other
kinds of inference would make of the same sites (`lmppl.inference.planning.kinds`).

The policy remembers what it saw and did. What it has not seen it cannot use: give `seen` to
`choose` where something drawn before is hidden. Evidence must stand before the first choice: what
is observed later is a `sample` that is seen.

Reference: Lázaro-Gredilla, Ku, Murphy and George, What type of inference is planning? (2024); runs
that look alike: Kaelbling, Littman and Cassandra, Planning and acting in partially observable
stochastic domains (1998).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmppl.errors import BadArgument, BadProgram, LmpplWarning
from lmppl.inference.base import Engine
from lmppl.inference.machine.particles import Particle
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.planning.kinds import KINDS
from lmppl.inference.results.posterior import Posterior, population_posterior
from lmppl.jobs import Draw
from lmppl.random import fold
from lmppl.roles import ALL, Controlled, Utility
from lmppl.strands import Strand
from lmppl.trace import entries
from lmppl.weights import NEG_INF, log_sum_exp


@dataclass
class Decision:
    """One decision: a `choose` site, and what had been seen there."""

    address: str
    seen: Any
    actions: tuple[Any, ...]
    mass: float = 0.0
    """Probability of the runs that come here, if the earlier choices lead here."""
    action_values: dict[Any, float] = field(default_factory=dict)
    action_probs: dict[Any, float] = field(default_factory=dict)

    @property
    def action(self) -> Any:
        """The best one."""
        return max(self.action_probs, key=self.action_probs.__getitem__)


class Planned(Posterior):
    """The runs of the program under the policy that was found, and the policy."""

    value: float
    """F, in units of the reward."""
    value_kind: str = "exact"
    decisions: list[Decision]
    """In the order of the program, those that the policy never comes to included."""

    @property
    def action(self) -> Any:
        """What the first decision takes."""
        if not self.decisions:
            raise BadArgument("the program has no choose site", fix='write choose("move", [...])')
        return self.decisions[0].action

    def policy(self, address: str, seen: Any = ALL) -> dict[Any, float]:
        """The law over actions at a site; with `seen` where it depends on that."""
        found = [d for d in self.decisions if d.address == address]
        laws = [d for d in found if seen is ALL or d.seen == seen]
        if not laws or any(d.action_probs != laws[0].action_probs for d in laws):
            raise BadArgument(
                f"{'no' if not laws else 'more than one'} decision at {address!r} for this",
                value=", ".join(sorted({repr(d.seen) for d in found})[:8]),
                fix="give seen=..., one of the values above, or read .decisions",
            )
        return dict(laws[0].action_probs)


@dataclass
class _Node:
    """A decision with what follows each of its actions."""

    decision: Decision
    after: list[_Branch]


@dataclass
class _Branch:
    """All that can happen until the next decisions: runs that end, and these decisions."""

    ended: list[Particle] = field(default_factory=list)
    nodes: dict[Hashable, _Node] = field(default_factory=dict)


@dataclass(frozen=True)
class Planning(Engine):
    """The best policy of a finite program with `choose` and `reward`.

    Args:
        risk_aversion: -λ: positive avoids risk, negative seeks it, 0 is the expected utility.
        temperature: of the policy, in units of the reward; 0 takes the best action.
        kind: "planning", or another kind of inference for comparison.
        max_traces: more runs than this are an error.
    """

    risk_aversion: float = 0.0
    temperature: float = 0.0
    kind: str = "planning"
    max_traces: int = 200_000

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.kind not in KINDS:
            raise BadArgument(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not (np.isfinite(self.risk_aversion) and np.isfinite(self.temperature)):
            raise BadArgument("risk_aversion and temperature must be finite")
        if self.temperature < 0 or (self.temperature and self.kind not in ("planning", "mmap")):
            raise BadArgument("temperature must be at least 0, and is for planning and mmap")
        if self.kind in ("marginal", "map") and self.risk_aversion >= 0:
            raise BadArgument(
                f"{self.kind!r} needs risk_aversion < 0: its entropy is divided by λ",
                fix="write risk_aversion=-1.0",
            )

    def target(self, program: Any = None) -> str:
        """The law of the weighted traces."""
        return (
            "γ(trace) = Π p(sample) · p(evidence) · Π π(choice), rewards only recorded\n"
            f"π is what {self.kind} inference picks at λ = {-self.risk_aversion:g}"
        )

    def infer(self, program: Callable[..., Any], *args: Any, **options: Any) -> Planned:
        """`infer(program, ..., engine=self)`, with the type of its result."""
        found = super().infer(program, *args, **options)
        if not isinstance(found, Planned):
            raise TypeError(f"expected a Planned, got {type(found).__name__}")
        return found

    def run(self, machine: Machine) -> Jobs:
        """Visit all runs in waves, then decide from the last choice to the first."""
        machine.draws = lambda p, m, key: (
            [(a, 0.0) for a in m.dist.actions]
            if isinstance(m.dist, Controlled)
            else m.dist.support(machine.env)
        )
        root = _Branch()
        order: list[_Node] = []
        frontier = [(machine.particle(0), root)]
        count = 1
        while frontier:
            yield from machine.advance([p for p, _ in frontier], "site")
            following: list[tuple[Particle, _Branch]] = []
            for p, branch in frontier:
                following += self._branch(machine, p, branch, order)
            count += max(0, len(following) - len(frontier))
            if count > self.max_traces:
                raise BadArgument(
                    f"the program has more than {self.max_traces:,} runs",
                    fix="compile its step: plan(compile_step(step, domains), ...); or max_traces=...",
                )
            frontier = following
        return self._finish(machine, root, order)

    def _branch(
        self, machine: Machine, p: Particle, branch: _Branch, order: list[_Node]
    ) -> list[tuple[Particle, _Branch]]:
        """Where a run goes: to each value of chance and each action, of all branches of a plate."""
        found: list[tuple[Particle, _Branch]] = []
        todo = [(p, branch)]
        while todo:
            p, branch = todo.pop()
            leaves = [] if p.dead else list(p.strand.leaves())
            at = next((i for i, s in enumerate(leaves) if s.outcomes is not None), None)
            if at is None:
                if not p.dead and p.finished:
                    branch.ended.append(p)
                elif not p.dead:
                    found.append((p, branch))
                continue
            site, pairs = leaves[at].pending, list(leaves[at].outcomes)
            into = [branch] * len(pairs)
            if site is not None and isinstance(site.dist, Controlled):
                into = self._node(site.dist, leaves[at], branch, order).after
            for k, (value, logp) in enumerate(pairs):
                last = k == len(pairs) - 1
                child = machine.fork(p, fold(p.key, "branch", k), p.index, frames=last)
                leaf = list(child.strand.leaves())[at]
                leaf.outcomes = None
                machine.deliver(child, leaf, Draw(value, logp, 0.0))
                todo.append((child, into[k]))
            if not pairs and site is not None:
                machine.kill(p, site.address, "no value has positive probability")
        return found

    def _node(self, d: Controlled, leaf: Strand, branch: _Branch, order: list[_Node]) -> _Node:
        """The decision that a run belongs to: that of all runs which look alike."""
        if self.kind == "mmap":
            seen: Any = None
        else:
            seen = _past(leaf) if d.seen is ALL else d.seen
        key = (d.address, d.actions, seen)
        if key not in branch.nodes:
            made = _Node(Decision(d.address, seen, d.actions), [_Branch() for _ in d.actions])
            branch.nodes[key] = made
            order.append(made)
        return branch.nodes[key]

    # -- backwards ---------------------------------------------------------------------------

    def _finish(self, machine: Machine, root: _Branch, order: list[_Node]) -> Planned:
        chosen = {node.decision.address for node in order}
        for p in _runs(root):
            _check_evidence(p, chosen)
        total, mass = self._worth(root)
        if any(e.op == "factor" for p in _runs(root) for e in entries(p.strand.head)):
            warnings.warn(
                "a planned program has factor(...): it is evidence, and an agent that scores its "
                "reward so believes in good luck; write reward(name, value)",
                LmpplWarning,
                stacklevel=2,
            )
        population = list(_followed(root, 0.0))
        evidence = log_sum_exp([p.log_weight for p in population])
        post = population_posterior(machine, self, population, evidence, exact=True)
        planned = Planned.__new__(Planned)
        planned.__dict__.update(post.__dict__)
        risk = -self.risk_aversion
        planned.value = float("nan") if mass == NEG_INF else self._value(total, mass, risk)
        planned.decisions = [n.decision for n in order if n.decision.action_probs]
        return planned

    @staticmethod
    def _value(total: float, mass: float, risk: float) -> float:
        return (total - mass) / risk if risk else total / float(np.exp(mass))

    def _worth(self, branch: _Branch) -> tuple[float, float]:
        """(E or L, log Σ w) of a branch; fills in its decisions."""
        risk = -self.risk_aversion
        parts = [(p.log_weight, _rewards(p)) for p in branch.ended]
        mass = [w for w, _ in parts]
        if risk:
            totals = [w + risk * r for w, r in parts]
        else:
            totals = [float(np.exp(w)) * r for w, r in parts]
        for node in branch.nodes.values():
            inner = [self._worth(b) for b in node.after]
            if all(m == NEG_INF for _, m in inner):
                continue
            total, at = self._decide(node.decision, inner, risk)
            totals.append(total)
            mass.append(at)
        if not mass:
            return (NEG_INF if risk else 0.0), NEG_INF
        if risk == 0:
            return float(np.sum(totals)), log_sum_exp(mass)
        best = max(totals) if self.kind == "map" else log_sum_exp(totals)
        return best, log_sum_exp(mass)

    def _decide(
        self, d: Decision, inner: list[tuple[float, float]], risk: float
    ) -> tuple[float, float]:
        mass = max(m for _, m in inner)
        q = np.array([self._value(t, mass, risk) if m > NEG_INF else NEG_INF for t, m in inner])
        scale = self.temperature
        if self.kind == "marginal":
            scale = 1.0 / risk
        if self.kind == "marginal_uniform":
            # E_uniform e^{λR}: a law that was fixed beforehand, not a response to q
            law = np.full(len(q), 1.0 / len(q))
            value = log_sum_exp(risk * q - np.log(len(q))) / risk if risk else float(q.mean())
        elif scale:
            value = scale * log_sum_exp(q / scale)
            law = np.exp((q - value) / scale)
        else:
            value = float(q.max())
            law = (np.arange(len(q)) == q.argmax()).astype(float)
        d.mass = float(np.exp(mass))
        d.action_values = dict(zip(d.actions, q.tolist(), strict=True))
        d.action_probs = dict(zip(d.actions, law.tolist(), strict=True))
        return (risk * value + mass if risk else value * float(np.exp(mass))), mass


def _past(leaf: Strand) -> tuple[tuple[str, Any], ...]:
    """What has happened before: choices and chance by name, not those of other branches."""
    found: list[tuple[str, Any]] = []
    at: Strand | None = leaf
    while at is not None:
        found += [(e.address, e.value) for e in entries(at.head) if e.op in ("sample", "effect")]
        at = at.parent
    return tuple(found)


def _rewards(p: Particle) -> float:
    return sum(float(e.value) for e in entries(p.strand.head) if isinstance(e.value, Utility))


def _check_evidence(p: Particle, chosen: set[str]) -> None:
    """Evidence after a choice would let the agent choose what it observes."""
    after = None
    for e in entries(p.strand.head):
        if e.op == "sample" and e.address in chosen:
            after = e.address
        elif after is not None and e.op in ("observe", "factor") and e.logw != 0.0:
            raise BadProgram(
                f"{e.op} {e.address!r} is evidence after the choice {after!r}",
                why="the policy would be scored on the runs that agree with it: an agent that can "
                "choose its evidence",
                fix="sample it, and let later choices see it; or write reward(name, value)",
            )


def _runs(branch: _Branch) -> list[Particle]:
    found = list(branch.ended)
    for node in branch.nodes.values():
        for b in node.after:
            found += _runs(b)
    return found


def _followed(branch: _Branch, log_pi: float) -> list[Particle]:
    """The runs of positive probability under the policy, weighted by it."""
    found = []
    for p in branch.ended:
        p.logw += log_pi
        found.append(p)
    for node in branch.nodes.values():
        for b, pi in zip(node.after, node.decision.action_probs.values(), strict=False):
            if pi > 0.0:
                found += _followed(b, log_pi + float(np.log(pi)))
    return found
