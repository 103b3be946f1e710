"""The tree that every search engine grows: a node is a particle that stands before a choice.

A node's particle has passed everything up to its next random site, which is not answered yet: all
observations and factors that follow from the choices so far are in

    log g(node) = Σ log p(choices) + Σ log p(observations) + Σ factors     log γ of a finished one

A child is a fork with that site answered. Where the values can be listed they all become children
(at most `MOST` strings of a model with small rows; `Choice` and finite distributions always);
elsewhere `k` children are drawn. A child's key is folded from its parent's key and its number, so
neither batch nor order matters. All children of a wave move in one `machine.advance`, so their
model calls share batches. Equal children of one parent are one: the tree holds distinct traces.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar

from lmppl.distributions import Distribution, after, score_or_zero
from lmppl.errors import NotFinite
from lmppl.inference.guide import AnyGuide, Guide, run_steps
from lmppl.inference.machine.particles import Particle
from lmppl.inference.machine.population import Machine
from lmppl.inference.search.nodes import WAITING, Node, Request, distinct, waiting
from lmppl.jobs import Draw, Env, Job
from lmppl.lm.load import as_models
from lmppl.messages import Message
from lmppl.random import fold
from lmppl.strands import Strand
from lmppl.strings import StringDistribution
from lmppl.weights import NEG_INF

T = TypeVar("T")
Wave: TypeAlias = Generator[Sequence[Job], Sequence[Job], T]
REMEMBERED = 20_000
"""Nodes whose partial traces a result remembers, for reports."""
MOST = 256
"""Strings that a site may have at most to be listed unless `children="all"`."""


class Action(NamedTuple):
    """A way to draw a site: with another model, or under another proposal."""

    env: Env | None
    proposal: Any


@dataclass
class Tree:
    """Grows nodes over one machine.

    Args:
        machine: the run.
        guide: a `Guide`, or a function that gives log h of a partial trace.
        children: "auto" lists where that is cheap, "all" must list, "sample" always draws.
        actions: ways to draw, by name: a language model (or its name), or proposal settings such
            as `{"temperature": 1.3}`. The target law is the program's own whatever they are.
        everywhere: whether finished nodes are guided too.
    """

    machine: Machine
    guide: AnyGuide | None = None
    children: str = "auto"
    actions: Mapping[str, Any] | None = None
    everywhere: bool = False

    def __post_init__(self) -> None:
        """Take the draws of the machine over."""
        machine = self.machine
        self._h = Guide.of(self.guide)
        machine.draws = lambda p, m, key: WAITING
        self.listed_all = True
        """Whether no wave has left a value out."""
        self.expansions = 0
        """How many nodes were given children."""
        self.grown = 0
        """How many nodes were made."""
        self.finished: list[Node] = []
        """Every finished node, in the order of its wave."""
        self._top: Node | None = None
        self._ways = {name: _way(machine, a) for name, a in (self.actions or {}).items()}

    def root(self) -> Wave[Node]:
        """The node of the empty trace."""
        self._top = Node(self.machine.particle(0), None, None)
        yield from self._settle([self._top])
        return self._top

    def grow(self, requests: Sequence[Request]) -> Wave[list[list[Node]]]:
        """Make children, all in one wave; the new ones of each request."""
        listed = yield from self._supports(requests)
        self.listed_all = self.listed_all and None not in listed
        made: list[list[Node]] = []
        drawing: list[tuple[Node, Strand, Any]] = []
        for r, pairs in zip(requests, listed, strict=True):
            self.expansions += 1
            if pairs is None:
                made.append(self._drawn(r, drawing))
            else:
                made.append(self._listed(r.node, pairs))
        yield from self._deliver(drawing)
        for at, (r, children) in enumerate(zip(requests, made, strict=True)):
            if listed[at] is None:
                made[at] = distinct(r.node, children)
            r.node.children += made[at]
        yield from self._settle([n for children in made for n in children])
        return [[n for n in children if not n.particle.dead] for children in made]

    def rollout(self, nodes: Sequence[Node], numbers: Sequence[int]) -> Wave[list[Node]]:
        """Draw everything that is left of each node: finished nodes that are nobody's children."""
        ends: list[Node] = []
        drawing: list[tuple[Node, Strand, Any]] = []
        for node, number in zip(nodes, numbers, strict=True):
            key = fold(node.key, "rollout", number)
            p = self.machine.fork(node.particle, key, node.particle.index, frames=False)
            ends.append(Node(p, node, None))
            for leaf in waiting(p):
                if leaf.pending is not None:
                    drawing.append((ends[-1], leaf, self._step(ends[-1], leaf.pending, leaf)))
        yield from self._deliver(drawing)
        pause = self.machine.draws
        self.machine.draws = lambda p, m, key: after(self.machine.draw_site(p, m, key), _under_p)
        try:
            yield from self._settle(ends)
        finally:
            self.machine.draws = pause
        return ends

    def drop(self, nodes: Sequence[Node]) -> None:
        """Give the frames of nodes up that will hardly be grown; replay would make them again."""
        for n in nodes:
            n.particle.strand.kill()

    def close(self) -> None:
        """Unwind every frame; the tree is not grown any more."""
        stack = [] if self._top is None else [self._top]
        while stack:
            node = stack.pop()
            if len(self.machine.tried) < REMEMBERED:
                self.machine.tried.append(node.particle.strand.head)
            node.particle.strand.kill()
            stack += node.children

    # -- parts of a wave ---------------------------------------------------------------------

    def _settle(self, nodes: Sequence[Node]) -> Wave[None]:
        """Run new nodes to their next choice, and weigh them."""
        particles = [n.particle for n in nodes]
        yield from self.machine.advance(particles, "end")
        self.grown += len(nodes)
        if self._h is not None:
            logh = yield from self._h.log_h(self.machine, particles, finished=self.everywhere)
            for n, h in zip(nodes, logh.tolist(), strict=True):
                n.log_h = h
                if h == NEG_INF:
                    self.machine.kill(n.particle, "guide", "a bound of zero")
        for n in nodes:
            n.log_g = n.particle.log_weight
            if n.finished and not n.particle.dead:
                self.finished.append(n)

    def _deliver(self, drawing: Sequence[tuple[Node, Strand, Any]]) -> Wave[None]:
        """Run the steps that draw, in shared batches, and answer the sites."""
        draws = yield from run_steps(self.machine, [step for *_, step in drawing])
        for (node, leaf, _), draw in zip(drawing, draws, strict=True):
            if not node.particle.dead:
                leaf.outcomes = None
                node.log_p += draw.logp
                self.machine.deliver(node.particle, leaf, draw)

    def _supports(self, requests: Sequence[Request]) -> Wave[list[list[Any] | None]]:
        """All joint values of what each node waits for, or None where they are drawn."""
        steps: list[Any] = []
        sizes: list[int] = []
        for r in requests:
            found = self._listable(r)
            sizes.append(-1 if found is None else len(found))
            steps += found or []
        results = yield from run_steps(self.machine, steps)
        out: list[list[Any] | None] = []
        at = 0
        for size in sizes:
            if size < 0:
                out.append(None)
                continue
            joint: list[Any] = [()]
            for support in results[at : at + size]:
                joint = [(*before, pair) for before in joint for pair in support]
            out.append(joint)
            at += size
        return out

    def _listable(self, r: Request) -> list[Any] | None:
        """The steps that list each leaf's values; None when one has too many."""
        if r.action is not None or self.children == "sample":
            return None
        steps = []
        for leaf in waiting(r.node.particle):
            dist: Distribution = leaf.pending.dist  # type: ignore[union-attr]
            if self.children != "all" and not all(
                _few(part, self.machine.env) for part in dist.parts()
            ):
                return None
            try:
                steps.append(dist.support(self.machine.env))
            except NotFinite:
                if self.children == "all":
                    raise
                return None
        return steps

    def _listed(self, parent: Node, joint: list[Any]) -> list[Node]:
        children = []
        if parent.born:
            return []  # all have been made
        for k, values in enumerate(joint):
            child = self._child(parent, k, None, last=k == len(joint) - 1)
            for leaf, (value, logp) in zip(waiting(child.particle), values, strict=True):
                if child.particle.dead:
                    break
                leaf.outcomes = None
                child.log_p += logp
                self.machine.deliver(child.particle, leaf, Draw(value, logp, 0.0))
            children.append(child)
        parent.born = len(joint)
        if not joint:
            self.machine.kill(parent.particle, "?", "no value has positive probability")
        return children

    def _drawn(self, r: Request, drawing: list[tuple[Node, Strand, Any]]) -> list[Node]:
        children = []
        for j in range(r.k):
            child = self._child(r.node, r.node.born + j, r.action, last=j == r.k - 1)
            for leaf in waiting(child.particle):
                m = leaf.pending
                if m is None or child.particle.dead:
                    break
                drawing.append((child, leaf, self._step(child, m, leaf)))
            children.append(child)
        r.node.born += r.k
        return children

    def _step(self, node: Node, m: Message, leaf: Strand) -> Any:
        """The step that draws a site."""
        machine, p = self.machine, node.particle
        way = self._ways.get(node.action) if node.action is not None else None
        try:
            return after(_draw(machine, p, m, way), _under_p)
        except Exception as error:
            machine._failed_site(p, leaf, error)
            return Draw(None, NEG_INF, 0.0)

    def _child(self, parent: Node, number: int, action: str | None, last: bool) -> Node:
        key = fold(parent.key, "child", number)
        particle = self.machine.fork(parent.particle, key, parent.particle.index, frames=last)
        return Node(particle, parent, action)


def _draw(machine: Machine, p: Particle, m: Message, way: Action | None) -> Any:
    key = fold(p.key, m.address)
    if way is None:
        return machine.draw_site(p, m, key)
    if way.env is None:
        adapt = getattr(m.dist, "proposed", None)  # settings are for strings
        before, m.proposal = m.proposal, adapt(**way.proposal) if adapt else m.proposal
        try:
            return machine.draw_site(p, m, key)
        finally:
            m.proposal = before

    def weigh(d: Draw) -> Any:
        scored = score_or_zero(m.dist, d.value, machine.env)
        return after(scored, lambda logp: Draw(d.value, logp, d.logq, d.restricted))

    return after(m.dist.draw(key, way.env), weigh)


def _way(machine: Machine, action: Any) -> Action:
    if isinstance(action, Mapping):
        return Action(None, dict(action))
    env = machine.env
    return Action(Env({**env.models, **as_models(action)}, env.chance, env.resolve), None)


def _few(dist: Distribution, env: Env) -> bool:
    """Whether the values of a distribution are cheap to list."""
    if not isinstance(dist, StringDistribution):
        return True
    lm = env.model(dist._lm)
    size = 1
    for _ in range(int(dist._options.law.max_tokens)):
        size *= lm.vocab_size
        if size > MOST:
            return False
    return bool(lm.capabilities.full_rows)


def _under_p(d: Draw) -> Draw:
    """The draw whose weight is log p alone, as everywhere in the tree."""
    return d._replace(logq=0.0)
