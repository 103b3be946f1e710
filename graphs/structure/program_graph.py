"""The graph of a program: which site's value went into which other site, as a networkx DAG.

`graph_of` runs the program on placeholders (or on the values of a trace), asks no model, and then
runs it again once per value it tries: with one value changed and all others held, a site that is
asked something else than before has an edge from the changed one. So every edge is a fact about
two runs; a missing edge says that no value that was tried, among several settings of the others,
made a difference, and no more.

Of an edge, `via` says how the value arrived: "text" (it stands in the prompt at `spans`), "value"
(the law or the weight changed), "control" (the site exists for some of its values only), "error"
(the program raised before it came to the site).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmppl.arguments import check_mapping
from lmppl.distributions import Distribution, fingerprint_of
from lmppl.errors import BadArgument, GraphError, excerpt
from lmppl.graphs.structure.replays import (
    KINDS,
    Event,
    Held,
    Replay,
    constants_of,
    listed,
    others,
    prompt_of,
)
from lmppl.handlers import condition
from lmppl.text import Span, Text
from lmppl.trace import Trace

CONTEXTS = 6
"""In how many further runs, with values at random, the sites are varied: an edge may show only
where other sites have certain values."""
MOST_WORK = 400_000
"""How many sites are run through before a large program gets fewer values and settings."""
MOST_SITES = 1_000
"""Sites of a program on placeholders."""
MOST_RUNS = 16
"""How many runs with different sites are taken as a basis."""
STRENGTH = {"text": 3, "value": 2, "control": 1, "error": 0}


def graph_of(
    program: Callable[..., Any],
    *args: Any,
    trace: Mapping[str, Any] | None = None,
    observations: Mapping[str, Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """The graph of a program before it is run: a `networkx.DiGraph` of its sites, in order.

    Nodes are addresses with `kind` ("latent", "observed", "deterministic", "effect", "factor",
    "param"), `law`, `value`, `prompt`, `plates` and `optional` (only some runs have the site).
    `graph.graph["returns"]` lists the sites that the result was made of, `"untested"` those of
    which no other value could be tried, `"work"` how many sites were run through for it all.

    Args:
        program: the function; any function with sites.
        args: its arguments.
        trace: values by address, or the trace of a run, where the program cannot do with
            placeholders (it parses a text, say).
        observations: values of sample sites to condition on.
        kwargs: keyword arguments of the program.

    Raises:
        GraphError: the program raised on the values it was given.

    >>> from lmppl import Bernoulli, observe, program, sample
    >>> @program
    ... def alarm():
    ...     rain = sample("rain", Bernoulli(0.2))
    ...     sprinkler = sample("sprinkler", Bernoulli(0.1 if rain else 0.4))
    ...     observe("wet", Bernoulli(0.99 if rain or sprinkler else 0.01), True)
    >>> sorted(graph_of(alarm).edges)
    [('rain', 'sprinkler'), ('rain', 'wet'), ('sprinkler', 'wet')]
    """
    import networkx

    check_mapping("graph_of", observations=observations, kwargs=kwargs)
    fn = condition(program, dict(observations)) if observations else program
    found = networkx.DiGraph(returns=[], untested=[], plates={}, program=_name(program), work=0)
    call = (fn, args, dict(kwargs or {}))
    hints = constants_of(program)
    bases: list[dict[str, Any]] = [_values(trace)]
    seen: set[frozenset[str]] = set()
    chance = random.Random(0)
    while bases and len(seen) < MOST_RUNS and found.graph["work"] <= MOST_WORK:
        base = _attempt(Held(bases.pop(0), derive=not seen), call)
        if base.raised is not None and not seen:
            base = _retried(_values(trace), call, base)
        if base.raised is not None or frozenset(base.events) in seen:
            continue
        _add_nodes(found, base, optional=bool(seen))
        contexts = CONTEXTS if not seen else 1
        seen.add(frozenset(base.events))
        _vary_all(found, base, bases, call, hints)
        settings = [
            *_alike(base),
            *(
                {a: chance.choice([e.value, *others(e, hints)]) for a, e in base.events.items()}
                for _ in range(contexts)
            ),
        ]
        for values in settings:
            if found.graph["work"] > MOST_WORK:
                break
            there = _attempt(Held(values), call)
            if there.raised is None:
                _vary_all(found, there, bases, call, hints)
    if not networkx.is_directed_acyclic_graph(found):
        cycle = [u for u, _ in networkx.find_cycle(found)]
        raise GraphError(
            f"the sites {', '.join(cycle)} read each other, each in some runs",
            why="their order depends on other values, so that no order serves all runs",
            fix="give the branches sites of different names",
        )
    return found


def _alike(base: Replay) -> list[dict[str, Any]]:
    """A setting with equal texts, if there are several: whether they agree shows nowhere else."""
    drawn = [e for e in base.events.values() if e.op == "sample" and isinstance(e.value, str)]
    free = [e for e in drawn if listed(e.law) is None]
    values = {a: e.value for a, e in base.events.items()}
    return [values | {e.address: free[0].value for e in free}] if len(free) > 1 else []


def _attempt(held: Held, call: tuple[Any, ...]) -> Replay:
    """A replay: it is given up where it has far more sites than the run whose values it has."""
    known = len(held.values)
    return Replay(held, most=3 * known + 50 if known else MOST_SITES).attempt(*call)


def _retried(values: dict[str, Any], call: tuple[Any, ...], first: Replay) -> Replay:
    """A run on placeholders whose effects give numbers in place of texts."""
    if isinstance(first.raised, (TypeError, ValueError, AttributeError)):
        for unknown in (1.0, 1):
            again = _attempt(Held(dict(values), derive=True, unknown=unknown), call)
            if again.raised is None:
                return again
    raise _unrunnable(first.raised, values)


def _values(trace: Mapping[str, Any] | None) -> dict[str, Any]:
    if trace is None:
        return {}
    if not isinstance(trace, Mapping):
        raise BadArgument(
            f"graph_of takes values by site, got {type(trace).__name__}",
            value=excerpt(trace, 60),
            fix="write graph_of(program, ..., trace=posterior.traces[0]), or a dict",
        )
    if isinstance(trace, Trace):
        return {e.address: e.value for e in trace.sites if e.op in KINDS and e.op != "factor"}
    return dict(trace)


def _name(program: Any) -> str:
    while not hasattr(program, "__name__") and hasattr(program, "fn"):
        program = program.fn
    return str(getattr(program, "__name__", type(program).__name__))


def _unrunnable(error: Exception | None, values: Mapping[str, Any]) -> GraphError:
    if isinstance(error, GraphError):
        return error
    made = GraphError(
        f"the program raised {type(error).__name__}: {excerpt(str(error), 200)}",
        why=None if values else "it was run on placeholders, without a model",
        fix='give values it can do with: graph_of(program, ..., trace={"site": value}), or the '
        "trace of a run",
    )
    made.__cause__ = error
    return made


def _add_nodes(found: Any, base: Replay, optional: bool) -> None:
    for address, event in base.events.items():
        if address not in found:
            found.add_node(
                address,
                kind=KINDS[event.op],
                law=law_name(event.law),
                value=event.scored if event.op in ("observe", "factor") else event.value,
                prompt=None if event.prompt is None else str(event.prompt),
                plates=plates_of(address, base),
                optional=optional,
            )
    for address, n in base.plates.items():
        found.graph["plates"].setdefault(address, n)
    for address in base.indexed - set(base.plates):
        inside = [a for a in base.events if a.startswith(f"{address}[")]
        last = [int(a[len(address) + 1 :].partition("]")[0]) for a in inside]
        if last:
            found.graph["plates"].setdefault(address, 1 + max(last))


def law_name(law: Any) -> str:
    """What a law is called in a picture."""
    if not isinstance(law, Distribution):
        return str(getattr(law, "__name__", "")) if callable(law) else ""
    inner = getattr(law, "dist", None)
    return law.kind if inner is None else type(inner).__name__


def plates_of(address: str, run: Replay) -> tuple[tuple[str, int], ...]:
    """The plates that a site is in, outermost first, each with its item."""
    parts = address.split("/")
    out = []
    for k in range(1, len(parts)):
        head, bracket, index = "/".join(parts[:k]).rpartition("[")
        if bracket and (head in run.plates or head in run.indexed):
            out.append((head, int(index.rstrip("]"))))
    return tuple(out)


def _vary_all(
    found: Any,
    base: Replay,
    bases: list[dict[str, Any]],
    call: tuple[Any, ...],
    hints: Sequence[Any],
) -> None:
    """Try other values of every site, one at a time, and add the edges that they show."""
    values = {a: e.value for a, e in base.events.items()}
    pool = [Text(e.value) for e in base.events.values() if isinstance(e.value, str)]
    most = max(1, MOST_WORK // max(1, len(base.events) ** 2))
    for source in list(base.events.values()):
        if source.op == "factor":
            continue
        ended = False
        for other in others(source, [*pool[:3], *hints])[:most]:
            held = Held(dict(values), changed=(source.address, other))
            run = _attempt(held, call)
            found.graph["work"] += len(run.events)
            if run.endless:
                continue
            ended = ended or run.raised is None
            _compare(found, base, run, source, other)
            if run.raised is None and set(run.events) - set(base.events):
                bases.append({**held.values, source.address: other})
            if run.raised is None and fingerprint_of(run.result) != fingerprint_of(base.result):
                if source.address not in found.graph["returns"]:
                    found.graph["returns"].append(source.address)
        if not ended and source.address not in found.graph["untested"]:
            found.graph["untested"].append(source.address)


def _compare(found: Any, base: Replay, run: Replay, source: Event, other: Any) -> None:
    for address, event in base.events.items():
        if address == source.address:
            continue
        again = run.events.get(address)
        if again is None:
            via = "control" if run.raised is None else "error"
            _add_edge(found, source.address, address, via, ())
            if run.raised is not None:
                return  # what comes later was not reached, and says nothing
        elif again.op != event.op or again.inputs != event.inputs or again.scored != event.scored:
            spans = _where(event, again, source, other)
            via = "text" if spans else "value"
            _add_edge(found, source.address, address, via, spans)
    new = [a for a in run.events if a not in base.events]
    if new:
        _add_nodes(found, run, optional=True)
    for address in new:
        _add_edge(found, source.address, address, "control", ())


def _add_edge(found: Any, u: str, v: str, via: str, spans: tuple[tuple[int, int], ...]) -> None:
    if found.has_edge(u, v):
        data = found.edges[u, v]
        if STRENGTH[via] > STRENGTH[data["via"]]:
            data["via"] = via
        data["spans"] = data["spans"] or spans
        return
    found.add_edge(u, v, via=via, spans=spans)


def _where(event: Event, again: Event, source: Event, other: Any) -> tuple[tuple[int, int], ...]:
    """The stretches of the prompt that are the source's text."""
    before, after = prompt_of(event.law), prompt_of(again.law)
    if before is None or after is None or before == after:
        return ()
    if isinstance(before, Text):
        kept = [(s.start, s.stop) for s in before.spans if _is(s, source)]
        if kept:
            return tuple(kept)
    old, new = str(source.value), str(other)
    for a, b in ((old, new), (old.strip(), new.strip())):
        pieces = str(after).split(b) if a and b else []
        if len(pieces) > 1 and a.join(pieces) == before:
            at, out = 0, []
            for piece in pieces[:-1]:
                at += len(piece)
                out.append((at, at + len(a)))
                at += len(a)
            return tuple(out)
    return ()


def _is(span: Span, source: Event) -> bool:
    return span.address == source.address
