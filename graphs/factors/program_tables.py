"""The tables of a finite program: one factor per site, over the values that the site depends on.

    γ(x) = Π_sites table_site(x_scope)

`lmppl.graphs.structure.scopes` finds the scopes by replay; here every setting of a scope is visited, its law
listed or its observation scored, all prompts of the whole program in one batch. So a language
model is asked once per distinct prompt, not once per trace: the sum of the tables, where
enumeration needs their product.

A variable whose site some runs do not have takes the value `ABSENT` in these. `to_networkx` gives
the scopes as a networkx graph.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.arguments import check_integers, check_mapping, check_seed
from lmppl.errors import LmpplError
from lmppl.graphs.factors.elimination import MOST_ENTRIES, CliqueTree, TooWide
from lmppl.graphs.factors.factor import Factor, FactorGraph
from lmppl.graphs.structure.scopes import RESULT, Id, Program, Run, Scopes, identity
from lmppl.ledger import Ledger
from lmppl.program import check_program
from lmppl.weights import NEG_INF, check_log_weight

MOST_SETTINGS = 20_000
"""The most settings of one scope."""


class Absent:
    """The value of a site that a run does not have."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = Absent()


@dataclass(frozen=True, eq=False)
class Tables:
    """A finite program as tables.

    Args:
        graph: a variable per sample site, a table per site.
        scopes: by site, the variables that its law depends on.
        results: what the program returns, by the indices of the values of its scope,
            `scopes[RESULT]`; empty where there are too many settings.
        proven: whether all assignments were visited, so that no dependence can have been missed.
        runs: replays of the program.
        ledger: what the models were asked.
    """

    graph: FactorGraph
    scopes: Mapping[str, tuple[str, ...]]
    results: Mapping[tuple[int, ...], Any]
    proven: bool
    runs: int
    ledger: Ledger

    def to_networkx(self) -> Any:
        """The graph of sites, an edge from each member of a scope (networkx)."""
        import networkx

        found = networkx.DiGraph()
        for site in self.scopes:
            if site != RESULT:
                found.add_node(site, kind="latent" if site in self.graph.domains else "factor")
        for site, scope in self.scopes.items():
            if site != RESULT:
                found.add_edges_from((v, site) for v in scope)
        return found


def tables_of(
    program: Callable[..., Any],
    *args: Any,
    lm: Any = None,
    observations: Mapping[str, Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    probes: int = 200,
    exhaustive: int = 256,
    seed: int = 0,
) -> Tables:
    """The tables of a program all of whose sample sites are finite.

    Args:
        program: the function; effects run once per list of arguments.
        args: its arguments.
        lm: its language model, or models by name.
        observations: values of sample sites to condition on.
        kwargs: keyword arguments of the program.
        probes: replays at random, in a row, that must show no new dependence.
        exhaustive: visit every assignment where there are at most so many: then `proven`.
        seed: of the replays at random.

    Raises:
        NotFinite: a site has no list of values.
        TooWide: a site depends on too many values at once.

    >>> from lmppl import Bernoulli, observe, program, sample
    >>> @program
    ... def alarm():
    ...     rain = sample("rain", Bernoulli(0.2))
    ...     sprinkler = sample("sprinkler", Bernoulli(0.1 if rain else 0.4))
    ...     observe("wet", Bernoulli(0.99 if rain or sprinkler else 0.01), True)
    >>> found = tables_of(alarm)
    >>> found.scopes["wet"], round(math.exp(CliqueTree(found.graph).log_z), 5), found.proven
    (('rain', 'sprinkler'), 0.5196, True)
    """
    check_program(program)
    check_mapping("tables_of", observations=observations, kwargs=kwargs)
    check_integers("tables_of", probes=probes)
    check_integers("tables_of", 0, exhaustive=exhaustive)
    source = Program(program, args, kwargs, lm, observations)
    return tables_from(source, probes=probes, exhaustive=exhaustive, seed=check_seed(seed))


def tables_from(source: Program, *, probes: int, exhaustive: int, seed: int) -> Tables:
    """The tables of a program that is set up already."""
    found = Scopes(source, probes=probes, exhaustive=exhaustive, seed=seed)
    while True:
        before = len(found.runs), sum(map(len, found.domains.values()))
        for site in list(found.scopes):
            try:
                _fill(found, site)
            except TooWide:
                if site != RESULT:
                    raise
                del found.scopes[RESULT], found.known[RESULT]
                found.ignored.add(RESULT)
        if (len(found.runs), sum(map(len, found.domains.values()))) == before:
            graph, holes = _graph(found)
            if not _visit_holes(found, graph, holes):
                break
    spots = {v: {x: i for i, x in enumerate(ids)} for v, ids in found.domains.items()}
    results = {
        tuple(spots[v][x] for v, x in zip(found.scopes[RESULT], key, strict=True)): run.result
        for key, run in found.known.get(RESULT, {}).items()
    }
    place = {v: i for i, v in enumerate(found.domains)}
    scopes = {
        s: tuple(v) if s == RESULT else tuple(sorted(v, key=place.__getitem__))
        for s, v in found.scopes.items()
    }
    return Tables(graph, scopes, results, found.whole, source.runs, source.ledger)


def _settings(found: Scopes, site: str) -> list[tuple[Id, ...]]:
    scope = found.scopes[site]
    n = math.prod(len(found.domains[v]) for v in scope)
    if n > MOST_SETTINGS:
        raise TooWide(
            f"site {site!r} depends on {len(scope)} values with {n:,} settings",
            why="a table has an entry for each of them",
            fix="use SMC or another sampling engine, or let the site depend on a summary",
        )
    return list(itertools.product(*(list(found.domains[v]) for v in scope)))


def _fill(found: Scopes, site: str) -> None:
    """Visit every setting of a scope that can be reached from runs that are known."""
    known = found.known[site]
    for key in _settings(found, site):
        if key in known:
            continue
        scope = list(found.scopes[site])
        wanted = {v: x for v, x in zip(scope, key, strict=True) if x is not None}
        for base in _witnesses(found, scope, key):
            found.visit({**base, **wanted})
            if found.scopes[site] != scope:
                return _fill(found, site)
            known = found.known[site]
            if key in known:
                break


def _witnesses(found: Scopes, scope: list[str], key: tuple[Id, ...]) -> list[dict[str, Id]]:
    """Where to start from: nowhere, or a run that has one of the values."""
    out: list[dict[str, Id]] = [{}]
    for v, x in zip(scope, key, strict=True):
        run = next((r for r in found.runs.values() if r.values.get(v) == x and not r.dead), None)
        if run is not None and run.values not in out:
            out.append(run.values)
    return out[:4]


def _graph(found: Scopes) -> tuple[FactorGraph, list[tuple[str, tuple[Id, ...]]]]:
    """The tables of what was visited, and the settings that were not."""
    source = found.program
    asked: dict[Any, Callable[[], Any]] = {}
    for site, known in found.known.items():
        for run in known.values():
            if (event := run.events.get(site)) is not None and site != RESULT:
                if event.op == "sample" and not event.fixed:
                    asked["support", event.law.fingerprint] = _support(source, event.law)
                elif event.op in ("sample", "observe") and not event.masked:
                    asked[_score_key(event)] = source.term(event)
    source.memory.all(asked)
    domains = {
        v: tuple(ABSENT if x is None else source.values[x] for x in ids)
        for v, ids in found.domains.items()
    }
    place = {v: {x: i for i, x in enumerate(ids)} for v, ids in found.domains.items()}
    factors: list[Factor] = []
    holes: list[tuple[str, tuple[Id, ...]]] = []
    for site in found.scopes:
        if site == RESULT:
            continue
        scope = tuple(found.scopes[site])
        shape = [len(domains[v]) for v in scope]
        own = site in domains
        if own:
            shape.append(len(domains[site]))
        table = np.zeros(shape)
        for key in _settings(found, site):
            at = tuple(place[v][x] for v, x in zip(scope, key, strict=True))
            visited = found.known[site].get(key)
            if visited is None:
                holes.append((site, key))
            elif own:
                table[at] = _row(found, site, visited, place)
            else:
                table[at] = _term(found, site, visited)
        if own or table.any():
            factors.append(Factor((*scope, site) if own else scope, table, site))
    return FactorGraph(domains, tuple(factors)), holes


def _support(source: Program, law: Any) -> Callable[[], Any]:
    return lambda: law.support(source.env)


def _score_key(event: Any) -> tuple[Any, ...]:
    value = event.scored if event.op == "observe" else event.value
    return ("score", event.law.fingerprint, identity(value))


def _term(found: Scopes, site: str, run: Run) -> float:
    """What a site without a variable adds to the log joint."""
    event = run.events.get(site)
    if event is None or event.op not in ("sample", "observe", "factor"):
        return 0.0
    if event.op == "factor":
        return float(event.scored)
    if event.masked and event.op == "observe":
        return 0.0
    logp = found.program.memory.found[_score_key(event)]
    scale = 1.0 if event.masked else event.scale
    return check_log_weight(logp, site=site, term="log-probability") * scale


def _row(found: Scopes, site: str, run: Run, place: Mapping[str, Mapping[Id, int]]) -> Any:
    """The law of a variable: log p per value."""
    row = np.full(len(place[site]), NEG_INF)
    event = run.events.get(site)
    if event is None:
        row[place[site][None]] = 0.0
        return row
    if event.op != "sample" or event.fixed:
        row[place[site][identity(event.value)]] = _term(found, site, run)
        return row
    scale = 1.0 if event.masked else event.scale
    for value, logp in found.program.memory.found["support", event.law.fingerprint]:
        i = place[site][identity(value)]
        row[i] = np.logaddexp(row[i], logp * scale)
    return row


def _visit_holes(
    found: Scopes, graph: FactorGraph, holes: list[tuple[str, tuple[Id, ...]]]
) -> bool:
    """Visit settings that no known run leads to, though some assignment does; whether any was.

    Unvisited entries of the tables are 1, so an assignment of positive product that has one is a
    run that the program can make; where there is none, the entry does not matter.
    """
    seen = len(found.runs)
    names = list(graph.domains)
    ids = {v: list(found.domains[v]) for v in names}
    values = found.program.values
    for site, key in holes:
        scope = found.scopes[site]
        given = {v: ABSENT if x is None else values[x] for v, x in zip(scope, key, strict=True)}
        try:
            tree = CliqueTree(graph.given(given), most=MOST_ENTRIES)
        except TooWide:
            raise TooWide(
                f"whether site {site!r} can be reached in all settings is too wide to tell",
                fix="use SMC or another sampling engine",
            ) from None
        if tree.log_z == NEG_INF:
            continue
        drawn = {**given, **tree.draw(0)}
        found.visit({v: ids[v][graph.index(v, drawn[v])] for v in names if drawn[v] is not ABSENT})
        if len(found.runs) > seen:
            return True
        raise LmpplError(
            f"site {site!r} is not as its tables say",
            why="a run that they allow led elsewhere: a dependence was missed",
            fix="write a larger probes=, or another seed=",
        )
    return False
