"""Paths: what a particle was at each barrier, so that a later run can fork from there.

A path is an immutable, persistent list of nodes, newest first; paths of one population share their
beginnings. A node is a snapshot, a fork without a frame: it costs O(1), computes nothing, and holds
half-drawn strings, plates and nested inferences as they were. So the reference of a conditional
filter replays nothing and calls no language model: at barrier t it *is* its t-th node.

`Script` answers sample sites with given values, scored in place of drawn:

    value given:  Draw(value, log p(value), log q(value))
    otherwise:    a fresh draw, noted in `fresh`; with `strict`, the particle dies

log q is the density of the law that a site is *drawn* from, which is not its target where sampling
settings or a proposal are given; `drawn_law` says which distribution scores it. Where none does
(top-p, masks of a regex, a model that scores no text), a value cannot be kept in another context, and
is drawn anew.

With barriers inside strings, what happens between two of them is a *chunk* of each string: its next
tokens, and whether it ended. `Given.chunks` has chunks in place of values, and a string takes their
tokens in the loop that would have drawn them (`lmppl.given`), whatever its law.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lmppl.choice import Choice
from lmppl.distributions import Categorical, Distribution, after, gather
from lmppl.errors import BadArgument, LmpplError, excerpt
from lmppl.inference.machine.answers import Stop
from lmppl.inference.machine.particles import Particle
from lmppl.inference.machine.population import Jobs, Machine
from lmppl.jobs import Draw, Env, Generate
from lmppl.messages import Message
from lmppl.messengers import placed
from lmppl.mixture import Mixture
from lmppl.numpyro import NumPyro
from lmppl.strands import Strand
from lmppl.strings import StringDistribution
from lmppl.text import Text
from lmppl.trace import Entry, Trace, entries
from lmppl.types import Ids, Key
from lmppl.weights import NEG_INF


class Node(NamedTuple):
    """A particle at a barrier, and where it was before."""

    state: Particle
    prev: Node | None
    depth: int
    """Barriers passed."""
    logw: float
    """log γ / q of the trace so far, unfinished strings included; no resampling enters it."""

    @property
    def trace(self) -> Trace:
        """What has happened."""
        return self.state.trace

    @property
    def logq(self) -> float:
        """Σ log q of what was drawn: log γ = logw + logq."""
        return log_q(self.state)


def root(machine: Machine, key: Key) -> Node:
    """A particle that has not started."""
    return Node(Particle(Strand(machine.launch), key, 0), None, 0, 0.0)


def grown(machine: Machine, p: Particle, prev: Node) -> Node:
    """The node of a particle that has passed one more barrier."""
    snapshot = machine.fork(p, p.key, p.index, frames=False)
    return Node(snapshot, prev, prev.depth + 1, p.log_weight)


def history(node: Node) -> list[Node]:
    """The nodes of a path by depth, the root included."""
    out = []
    at: Node | None = node
    while at is not None:
        out.append(at)
        at = at.prev
    out.reverse()
    return out


def recorded(p: Particle) -> Iterator[Entry]:
    """All entries of a particle, those of running plate branches included."""
    strands = [p.strand]
    while strands:
        s = strands.pop()
        yield from entries(s.head)
        strands += s.branches or ()


def sampled(p: Particle) -> dict[str, Entry]:
    """The sample sites that have a value, by address."""
    return {e.address: e for e in recorded(p) if e.op == "sample"}


def drawing(p: Particle) -> Iterator[Generate]:
    """The strings that are half drawn."""
    for leaf in p.strand.leaves():
        if isinstance(leaf.job, Generate):
            yield leaf.job


def log_gamma(p: Particle) -> float:
    """log γ of the trace so far: Σ (log w + log q); a filter's shifts have no part in it."""
    total = sum(e.logw + (e.logq if e.op == "sample" else 0.0) for e in recorded(p))
    return float(total) + sum(job.state.logw + job.state.logq for job in drawing(p))


def log_q(p: Particle) -> float:
    """Σ log q of what was drawn."""
    total = sum(e.logq for e in recorded(p) if e.op == "sample")
    return float(total) + sum(job.state.logq for job in drawing(p))


# -- chunks of strings ---------------------------------------------------------------------------


class Chunk(NamedTuple):
    """Tokens of a string: what one stretch between barriers adds, or all of it."""

    ids: Ids
    ended: bool


def strings(p: Particle) -> dict[str, Chunk]:
    """The strings of a particle as far as they are drawn, by address."""
    found = {a: c for a, e in sampled(p).items() if (c := whole(e.value)) is not None}
    for leaf in p.strand.leaves():
        if isinstance(leaf.job, Generate) and leaf.pending is not None:
            found[leaf.pending.address] = Chunk(tuple(leaf.job.state.ids), False)
    return found


def whole(value: Any) -> Chunk | None:
    """A text by its own tokens; None for a value that has none."""
    ids = value.token_ids if isinstance(value, Text) else None
    return None if ids is None else Chunk(tuple(ids.tolist()), True)


def added(before: Mapping[str, Chunk], after: Mapping[str, Chunk]) -> dict[str, Chunk]:
    """What each string has more than before."""
    return {
        a: Chunk(c.ids[len(before[a].ids) :] if a in before else c.ids, c.ended)
        for a, c in after.items()
        if before.get(a) != c
    }


# -- given values --------------------------------------------------------------------------------


def drawn_law(dist: Distribution, proposal: Distribution | None) -> Distribution | None:
    """The distribution whose `score` is the log q of a site's draws; None where there is none."""
    source = dist if proposal is None else proposal
    if isinstance(source, (Categorical, Choice, NumPyro)):
        return source
    if isinstance(source, Mixture):
        exact = all(drawn_law(c, None) is c for c in source.components)
        return source if exact else None
    if not isinstance(source, StringDistribution):
        return None
    law, token = source._options.law, source._options.law.token
    flat = token.top_p < 1 or token.top_k or token.mixture
    if (
        flat
        or source._options.grammar is not None
        or law.potential is not None
        or law.limit == "eos"
    ):
        return None
    if law.power == 1.0 and (
        law.target_is_proposal or token.temperature == token.target_temperature
    ):
        return source
    token = token._replace(target_temperature=token.temperature)
    return source._with(source._altered(law._replace(token=token, power=1.0)))


def scores(law: Distribution, env: Env) -> bool:
    """Whether the model that a law is about scores given texts."""
    if isinstance(law, Mixture):
        return all(scores(c, env) for c in law.components)
    if isinstance(law, StringDistribution):
        return env.model(law._lm).capabilities.scores_text
    return True


@dataclass
class Given:
    """What one particle is given, and what it drew by itself."""

    values: Mapping[str, Any]
    strict: bool = False
    """Whether a site that is not given kills the particle."""
    chunks: Mapping[str, Chunk] | None = None
    """The next tokens of strings, where barriers are inside them: before their values."""
    anew: Collection[str] = ()
    """Sites that are drawn anew although they have a value."""
    used: set[str] = field(default_factory=set)
    fresh: set[str] = field(default_factory=set)


class Script:
    """Answers of sample sites, by particle: set as `machine.draws`."""

    def __init__(self, machine: Machine) -> None:
        """Nothing is given yet."""
        self.machine = machine
        self.given: dict[Particle, Given] = {}
        self.rigid: dict[int, bool] = {}
        """By fingerprint of a law: whether its values cannot be kept in another context."""

    def __call__(self, p: Particle, m: Message, key: Key) -> Any:
        """The value that is given, scored; else a draw."""
        law = drawn_law(m.dist, m.proposal)
        rigid = self.rigid[m.fingerprint()] = law is None or not scores(law, self.machine.env)
        given = self.given.get(p)
        if given is None:
            return self.machine.draw_site(p, m, key)
        address = m.address
        source = m.dist if m.proposal is None else m.proposal
        if given.chunks is not None and isinstance(source, StringDistribution):
            return self._followed(p, m, key, given, given.chunks.get(address))
        keeps = address in given.values and address not in given.anew
        if keeps and (given.strict or not rigid):
            given.used.add(address)
            return self._scored(m, law, given.values[address])
        if given.strict:
            return Draw(None, NEG_INF, 0.0)
        given.fresh.add(address)
        return self.machine.draw_site(p, m, key)

    def _followed(
        self, p: Particle, m: Message, key: Key, given: Given, chunk: Chunk | None
    ) -> Any:
        """The string's own draw, its first tokens given."""
        if chunk is None:
            if m.address in given.values:
                raise BadArgument(
                    f"site {m.address!r} was given a text without tokens",
                    value=excerpt(given.values[m.address]),
                    why="with barriers inside strings, its tokens say where they are",
                    fix='give a text of an earlier run, trace["..."], or write resample_at="site"',
                )
            return Draw(None, NEG_INF, 0.0)
        given.used.add(m.address)
        step = self.machine.draw_site(p, m, key)
        step.given = chunk.ids
        return step

    def _scored(self, m: Message, law: Distribution | None, value: Any) -> Any:
        if law is None:
            raise LmpplError(
                f"the value of site {m.address!r} cannot be kept in another context",
                why="top_p, top_k, mixtures, a regex or limit='eos' draw it from a law that scores "
                "no given text",
                fix="leave ancestor_sampling and start out, or draw the site from its own law",
            )
        env, value = self.machine.env, placed(value, m.address)
        if law is m.dist:
            return after(law.score(value, env), lambda logp: Draw(value, logp, logp))

        def both(scores: list[float]) -> Draw:
            return Draw(value, scores[0], scores[1] if scores[1] > NEG_INF else 0.0)

        return gather([lambda: m.dist.score(value, env), lambda: law.score(value, env)], both)


def script_of(machine: Machine) -> Script:
    """The script of a run, made and installed when first asked for."""
    found = machine.draws
    if not isinstance(found, Script):
        found = machine.draws = Script(machine)
    return found


def forced(
    machine: Machine, values: Mapping[str, Any], stop: Stop, limit: int | None = None
) -> Jobs:
    """The path whose sample sites have given values: where a chain starts.

    Args:
        machine: the run.
        values: one for each sample site.
        stop: the barriers, as in `Machine.advance`.
        limit: tokens between barriers inside strings, which are then given as texts with tokens.

    Raises:
        BadArgument: a site has no value, a value has no site, or γ is zero there.
    """
    script = script_of(machine)
    node = root(machine, machine.key)
    p = machine.fork(node.state, machine.key, 0, frames=False)
    given = script.given[p] = Given(values, strict=True)
    if limit is not None:
        given.chunks = {a: c for a, v in values.items() if (c := whole(v)) is not None}
    while not p.finished:
        yield from machine.advance([p], stop, limit)
        if not p.dead:
            node = grown(machine, p, node)
    del script.given[p]
    found = strings(p)
    missed = set(values) - given.used
    missed |= {a for a, c in (given.chunks or {}).items() if found.get(a) != c}
    if p.dead or missed:
        where = p.death or (", ".join(sorted(missed)), "no such sample site, or no such text")
        raise BadArgument(
            "a chain cannot start at these values",
            where=f"site {where[0]}",
            value=where[1],
            fix="give every sample site a value of positive probability, and no other",
        )
    return node
