"""Everything that a report shows, as plain JSON: version 1 of the run state.

| key | |
| --- | --- |
| `strings` | every text, once; other parts refer to it by number, 0 is the empty text |
| `nodes` | the tree in columns: `up` (how far back the parent is), `site`, `text`, `logp`, … |
| `sites` | [operation, address] |
| `particles` | `leaf` (a node), `lw`, `w`, `answer`, `eve`, in columns |
| `steps` | an object per barrier: n, ess, logz, eves, parents, lw, at (the node of each particle) |
| `last` | as `particles`, of the barriers' final population where that is another |
| `answers` | [text, probability, standard error] |
| `costs`, `models` | by site, by model |
| `graphs` | recorded thought graphs, by node |
| `edges` | of the program's graph: pairs of addresses |

Numbers have as many digits as a person reads; null is -inf. Nothing in it is markup: texts are
text, and whoever shows them must keep them so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lmppl.graphs.thoughts.record import GraphRecord, is_recorded
from lmppl.inference.view.bands import in_order, named_answers
from lmppl.inference.view.forest import Forest, shown
from lmppl.ledger import SiteCost
from lmppl.text import Text
from lmppl.weights import normalize

if TYPE_CHECKING:
    from lmppl.inference.results.history import History
    from lmppl.inference.results.posterior import Posterior

VERSION = 1
ANSWERS = 200
"""Answers that are listed; the others are one."""
PARTICLES = 4_000
"""The heaviest particles that are told; all of them count in the answers."""

Put = Callable[[str], int]
Row = Callable[[Any, float], int]


def run_state(
    posterior: Posterior, *, title: str = "", forest: Forest | None = None
) -> dict[str, Any]:
    """The state of a posterior, of any engine."""
    from lmppl import __version__

    strings: dict[str, int] = {"": 0}

    def put(text: str) -> int:
        return strings.setdefault(text, len(strings))

    forest = Forest() if forest is None else forest
    kept = told(posterior)
    leaves = [forest.add(posterior.traces[i]) for i in kept]
    low, high = posterior.log_evidence_interval()
    table, rows = _answers(posterior, put)
    of_particle = [rows(t, w) for t, w in zip(posterior.traces, posterior.weights, strict=True)]
    last = _last(posterior.history, forest, rows)
    steps = _steps(posterior, forest, kept, leaves, last)
    for head in getattr(posterior, "tried", ()):  # what a search has given up
        forest.stand(head)
    book = posterior.ledger
    state: dict[str, Any] = {
        "version": VERSION,
        "package": __version__,
        "title": title,
        "engine": posterior.engine,
        "seed": None if posterior.seed is None else str(posterior.seed),
        "exact": posterior.exact,
        "dead": posterior.dead,
        "size": len(posterior),
        "log_evidence": number(posterior.log_evidence, 7),
        "interval": [number(low, 7), number(high, 7)],
        "ess": number(posterior.ess),
        "ancestors": posterior.unique_ancestors,
        "tokens": [book.tokens_in, book.tokens_out],
        "seconds": number(book.seconds),
        "warnings": list(posterior.warnings),
        "deaths": [[site, n] for site, n in posterior.deaths.items()],
        "death_examples": [str(e)[:400] for e in posterior.death_examples],
        "target": posterior.target,
        "particles": {
            "index": kept,
            "leaf": leaves,
            "lw": [number(posterior.log_weights[i], 6) for i in kept],
            "w": [number(posterior.weights[i]) for i in kept],
            "eve": [int(posterior.eves[i]) for i in kept],
            "answer": [of_particle[i] for i in kept],
        },
        "answers": table,
        "steps": steps,
        "whose": "" if posterior.history is None else posterior.history.whose,
        "last": last,
        "told": bool(steps) and "lw" in steps[-1],
        "costs": _costs(posterior),
        "models": [
            [name, m.calls, m.passes, m.tokens_in, m.tokens_out] for name, m in book.models.items()
        ],
        "effects": [book.effects, number(book.effect_seconds), book.replayed],
        "nodes": _nodes(forest, put),
        "sites": [],
        "graphs": _graphs(forest, put),
        "edges": [],
    }
    state["sites"] = state["nodes"].pop("sites")
    state["strings"] = list(strings)
    return state


def told(posterior: Posterior) -> list[int]:
    """The particles that a report tells of, in order."""
    if len(posterior) <= PARTICLES:
        return list(range(len(posterior)))
    heaviest = sorted(range(len(posterior)), key=lambda i: -posterior.weights[i])[:PARTICLES]
    return sorted(heaviest)


def number(value: float, digits: int = 4) -> float | None:
    """A number with few digits; None for -inf and what is no number.

    >>> number(0.123456), number(float("-inf"))
    (0.1235, None)
    """
    value = float(value)
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def stencil(address: str) -> str:
    """The site that an address is a repetition of.

    >>> stencil("facts[3]/true")
    'facts[i]/true'
    """
    return re.sub(r"\[\d+\]", "[i]", address)


def _answers(posterior: Posterior, put: Put) -> tuple[list[list[Any]], Row]:
    """Rows of answers, and which row a trace of a weight has; -1 has none, dead ones."""
    if posterior.dead:
        return [], lambda trace, weight: -1
    found, name = named_answers(posterior)
    listed = in_order(found, name)
    rows = [[put(shown(v)), number(p), number(found.se.get(v, 0.0))] for v, p in listed[:ANSWERS]]
    place = {v: min(k, ANSWERS) for k, (v, _) in enumerate(listed)}
    if len(listed) > ANSWERS:
        rest = math.fsum(p for _, p in listed[ANSWERS:])
        rows.append([put(f"{len(listed) - ANSWERS:,} other answers"), number(rest), None])
    return rows, lambda trace, w: place.get(name(trace.result), -1) if w > 0 else -1


def _last(history: History | None, forest: Forest, row: Row) -> dict[str, Any] | None:
    """The final population of barriers that are not the posterior's own."""
    if history is None or history.last is None or len(history.last.traces) > PARTICLES:
        return None
    traces, lw = history.last
    weights = normalize(lw)
    return {
        "leaf": [forest.add(t) for t in traces],
        "lw": [number(v, 6) for v in lw],
        "w": [number(v) for v in weights],
        "answer": [row(t, w) for t, w in zip(traces, weights, strict=True)],
    }


def _steps(
    posterior: Posterior,
    forest: Forest,
    kept: Sequence[int],
    leaves: Sequence[int],
    last: dict[str, Any] | None,
) -> list[dict[str, Any]]:
    """The barriers, the end as the last one; where particles are left out, only their totals."""
    history = posterior.history
    if history is None:
        return []
    sizes = history.sizes
    if history.whose:
        whole, end = last is not None, last
    else:
        whole = len(kept) == sizes[-1] == len(posterior)
        end = {"leaf": leaves, "lw": [number(w, 6) for w in posterior.log_weights]}
    out = []
    for t, parents in enumerate(history.ancestors):
        step: dict[str, Any] = {
            "n": sizes[t],
            "ess": number(history.ess[t]),
            "logz": number(history.log_evidence[t], 6),
            "eves": int(history.eves[t]),
            "resampled": parents is not None,
        }
        if whole and parents is not None:
            step["parents"] = [int(a) for a in parents]
        if whole and t < len(history.log_weights):
            step["lw"] = [number(w) for w in history.log_weights[t]]
        if whole and t < len(history.heads):
            step["at"] = [forest.stand(h) for h in history.heads[t]]
        if end is not None and whole and t == len(history.ess) - 1:
            step["lw"], step["at"] = list(end["lw"]), list(end["leaf"])
        out.append(step)
    return out


def _nodes(forest: Forest, put: Put) -> dict[str, Any]:
    sites: dict[tuple[str, str], int] = {("", ""): 0}
    columns: dict[str, list[Any]] = {
        "up": [0], "site": [0], "text": [0], "logp": [0], "logw": [0], "tokens": [0],
    }  # fmt: skip
    for node in range(1, len(forest)):
        entry = forest.entries[node]
        if entry is None:
            continue
        columns["up"].append(node - forest.parents[node])
        columns["site"].append(sites.setdefault((entry.op, entry.address), len(sites)))
        columns["text"].append(put(forest.texts[node]))
        columns["logp"].append(number(entry.logp))
        columns["logw"].append(number(entry.logw))
        columns["tokens"].append(entry.value.tokens if isinstance(entry.value, Text) else 0)
    return {**columns, "sites": [list(pair) for pair in sites]}


def _costs(posterior: Posterior) -> list[list[Any]]:
    """Site, strings, tokens in and out, seconds; repetitions of a site are one row."""
    found: dict[str, SiteCost] = {}
    for address, cost in posterior.ledger.sites.items():
        found.setdefault(stencil(address), SiteCost()).add(cost)
    return [
        [site, c.calls, c.tokens_in, c.tokens_out, number(c.seconds)] for site, c in found.items()
    ]


def _graphs(forest: Forest, put: Put) -> dict[str, Any]:
    """Recorded thought graphs by node: their name, and each thought as a row."""
    out = {}
    for node, entry in enumerate(forest.entries):
        if entry is None or entry.op != "deterministic" or not is_recorded(entry.value):
            continue
        graph = GraphRecord.from_dict({"name": entry.address, "nodes": entry.value["nodes"]})
        place = {n.id: k for k, n in enumerate(graph.nodes)}
        critical = set(graph.critical_path(lambda n: n.span_tokens or n.span_calls or 1e-9))
        rows = [
            [
                put(n.id), put(shown(n.text)), [place[p] for p in n.parents if p in place],
                put(n.kind), put(n.status), place.get(n.spawned_by or "", -1),
                place.get(n.becomes or "", -1), put(shown(n.reason or "")), n.attempts,
                number(n.weight), number(n.logp), n.calls, n.tokens, n.effects,
                int(n.id in critical),
            ]
            for n in graph.nodes
        ]  # fmt: skip
        totals = [graph.total_tokens, graph.critical_tokens, graph.sequential_rounds, graph.rounds]
        out[str(node)] = {"name": entry.address, "rows": rows, "totals": totals}
    return out
