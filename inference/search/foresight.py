"""Foresight sampling: candidates are chosen by how well one drawn completion goes (φ-decoding).

    beam = {root}, F(root) = 0
    until all are finished:
        grow the beam; keep candidates whose l = mean log p of the step is above mean - σ · spread,
            topped up to the size of the beam by softmax(l / T) without replacement
        complete each kept candidate once; F = mean log p of its completion
        A = F - F(parent);  C = softmax of the share of all completions that look like this one
        beam = drawn without replacement by (softmax(A / T) + C) / 2, or softmax(A / T) alone
        stop when one cluster has `agree` of the completions, or all completions are equal
    the answer: the completion drawn by softmax(A / T) in the larger of two clusters

Every softmax is shifted by its maximum. Clusters are those of `lmppl.inference.search.cluster`.
`clusters=0` is foresight alone, which tests find to be no worse.

Reference: Xu et al., φ-Decoding, 2503.13288 (2025), with its defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.arguments import check_integers, check_numbers
from lmppl.inference.base import Engine
from lmppl.inference.machine.particles import Particle
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.inference.search.cluster import shares
from lmppl.inference.search.found import LAW, found
from lmppl.inference.search.nodes import Node, Request
from lmppl.inference.search.tree import Tree
from lmppl.random import draw, fold
from lmppl.text import Text
from lmppl.types import Floats
from lmppl.weights import normalize


@dataclass(frozen=True)
class Foresight(Engine):
    """Foresight sampling.

    Args:
        width: nodes of the beam.
        expand: candidates of each, where they are drawn.
        clusters: of the completions; 0 leaves agreement out.
        temperature: T.
        spread: σ of the pruning by the step's own probability.
        agree: share of a cluster at which it stops; 1.0 stops when all completions are equal.
        least: steps before it may stop.
        foresight: False ranks by the step's own log p (local sampling), a baseline.
        children: "auto", "all" or "sample"; see `lmppl.inference.search.tree`.
    """

    width: int = 4
    expand: int = 4
    clusters: int = 3
    temperature: float = 0.1
    spread: float = 1.0
    agree: float = 0.69
    least: int = 4
    foresight: bool = True
    children: str = "sample"

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_integers("Foresight", width=self.width, expand=self.expand)
        check_integers("Foresight", 0, clusters=self.clusters, least=self.least)
        check_numbers("Foresight", above=0.0, temperature=self.temperature, spread=self.spread)
        check_numbers("Foresight", 0.0, 1.0, above=0.0, agree=self.agree)

    def target(self, program: Any = None) -> str:
        """What is returned."""
        return f"foresight sampling: the pick has score 1, all else 0; {LAW}"

    def run(self, machine: Machine) -> Jobs:
        """The loop of the module's first lines."""
        tree = Tree(machine, children=self.children)
        beam = [(yield from tree.root())]
        value: dict[int, float] = {id(beam[0]): 0.0}
        ends, gains, step = [beam[0]], np.zeros(1), 0
        while any(not n.finished for n in beam):
            open_ones = [n for n in beam if not n.finished]
            grown = yield from tree.grow([Request(n, self.expand) for n in open_ones])
            pool = [c for children in grown for c in children]
            pool += [n for n in beam if n.finished]
            if not pool:
                break
            pool = self._prune(machine, pool, step)
            ends = yield from self._complete(tree, pool)
            futures = [_future(n, end) for n, end in zip(pool, ends, strict=True)]
            before = [value[id(n if id(n) in value else n.parent)] for n in pool]
            if not self.foresight:
                futures, before = [_local(n) for n in pool], [0.0] * len(pool)
            gains = np.array(futures) - np.array(before)
            texts = [_shown(end.particle) for end in ends]
            share = None
            if self.clusters:
                _, share = shares(texts, self.clusters)
            value.update({id(n): f for n, f in zip(pool, futures, strict=True)})
            step += 1
            agreed = len(set(texts)) == 1 or (share is not None and share.max() >= self.agree)
            if step >= self.least and len(pool) > 1 and agreed:
                break
            kept = self._choose(machine, gains, share, step)
            chosen = [pool[i] for i in kept]
            tree.drop([n for n in pool if n not in chosen])
            beam = chosen
            ends, gains = [ends[i] for i in kept], gains[kept]
        tree.close()
        pick = self._answer(machine, ends, gains)
        particles = [n.particle for n in tree.finished]
        return found(
            machine,
            self,
            particles,
            [float(p is pick) for p in particles],
            expansions=tree.expansions,
            nodes=tree.grown,
        )

    def _prune(self, machine: Machine, pool: list[Node], step: int) -> list[Node]:
        own = np.array([_local(n) for n in pool])
        keep = [
            i for i in range(len(pool)) if own[i] > own.mean() - self.spread * own.std() - 1e-12
        ]
        missing = min(self.width, len(pool)) - len(keep)
        if missing > 0:
            logits = own / self.temperature
            logits[keep] = -np.inf
            keep += self._without(machine, logits, missing, "prune", step)
        return [pool[i] for i in sorted(keep)]

    def _complete(self, tree: Tree, pool: list[Node]) -> Any:
        todo = [n for n in pool if not n.finished]
        drawn = iter((yield from tree.rollout(todo, [0] * len(todo))))
        return [n if n.finished else next(drawn) for n in pool]

    def _choose(
        self, machine: Machine, gains: Floats, share: Floats | None, step: int
    ) -> list[int]:
        p = normalize(gains / self.temperature)
        if share is not None:
            p = 0.5 * (p + normalize(share))
        with np.errstate(divide="ignore"):
            logits = np.log(p)
        positive = int((p > 0).sum())
        return self._without(machine, logits, min(self.width, positive), "choose", step)

    def _answer(self, machine: Machine, ends: list[Node], gains: Floats) -> Particle:
        logits = gains / self.temperature
        if self.clusters and len(ends) > 1:
            labels, share = shares([_shown(e.particle) for e in ends], 2)
            logits = np.where(share == share.max(), logits, -np.inf)
            logits = np.where(labels == labels[np.argmax(share)], logits, -np.inf)
        logits = np.array(
            [-np.inf if e.particle.dead else x for e, x in zip(ends, logits, strict=True)]
        )
        if not np.isfinite(logits).any():
            return ends[0].particle
        return ends[draw(machine.env.chance, fold(machine.key, "answer"), logits)].particle

    def _without(self, machine: Machine, logits: Floats, k: int, word: str, step: int) -> list[int]:
        """K draws without replacement."""
        logits = logits.copy()
        out: list[int] = []
        for i in range(k):
            if not np.isfinite(logits).any():
                break
            out.append(draw(machine.env.chance, fold(machine.key, word, step, i), logits))
            logits[out[-1]] = -np.inf
        return out


def _length(p: Particle) -> int:
    """Tokens of its strings, and one for each other choice."""
    n = 0
    for e in p.trace.sites:
        if e.op == "sample":
            ids = e.value._ids if isinstance(e.value, Text) else None
            n += max(len(ids), 1) if ids is not None else 1
    return n


def _local(n: Node) -> float:
    """Mean log p of the step that made it."""
    if n.parent is None:
        return 0.0
    return n.log_p / max(_length(n.particle) - _length(n.parent.particle), 1)


def _future(n: Node, end: Node) -> float:
    """Mean log p of what was drawn after a node; of its own step when it is finished."""
    if end is n:
        return _local(n)
    if end.particle.dead:
        return -1e6
    more = _length(end.particle) - _length(n.particle)
    return (end.log_g - n.log_g) / max(more, 1)


def _shown(p: Particle) -> str:
    if p.dead:
        return ""
    return " ".join(str(e.value) for e in p.trace.sites if e.op == "sample")
