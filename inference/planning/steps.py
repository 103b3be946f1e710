"""`compile_step`: a factored problem from a function of one step.

    def step(s, a):                                    # s.name reads a variable, a is the action
        reward("up", s.one + s.two)
        return {"one": lambda: sample("one", Bernoulli(0.9 if a == "fix one" else 0.5 * s.one)), …}

The function is run for every value of what it reads and of what it draws. Each function in the
returned mapping is run on its own, and the variables that it read under any value become the
parents of its table; what makes no difference is dropped again. Plain values in the mapping are
worked out together, from everything that the body reads: good for few variables, and an error
where they are not independent given their parents.

Reference: read tracking as in automatic sparsity detection, Griewank and Walther (2008), chapter 7.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmppl.batches import run_now
from lmppl.eager import EagerContext
from lmppl.errors import BadArgument, BadProgram, excerpt
from lmppl.inference.planning.mdp import CPT, ActionCost, FactoredMDP, Reward
from lmppl.inference.planning.tables import Array, find, labels
from lmppl.lm.load import as_models
from lmppl.messages import Message
from lmppl.roles import Controlled, Utility
from lmppl.trace import entries

MOST_ROWS = 1 << 16


class State:
    """What a step reads: `s.name` or `s["name"]`; every read is noted."""

    __slots__ = ("_read",)

    def __init__(self, read: Callable[[str], Any]) -> None:
        """Keep the reader."""
        object.__setattr__(self, "_read", read)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._read(name)

    def __getitem__(self, name: str) -> Any:
        return self._read(name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise BadProgram(
            f"a step must not set {name!r}", fix="return the next values: return {name: value, ...}"
        )


@dataclass(frozen=True)
class _Leaf:
    """One way through a step: what was read, its probability, what came out."""

    reads: dict[str, int]
    p: float
    values: dict[str, Any]
    rewards: dict[str, float]


class _Walk(EagerContext):
    """One run of a step whose reads and draws follow a script."""

    def __init__(self, script: list[int], domains: Mapping[str, Any], models: Any) -> None:
        super().__init__(0, models=models)
        self.script, self.taken = script, 0
        self.widths: list[int] = []
        self.domains = domains
        self.reads: dict[str, int] = {}
        self.p = 1.0
        self.drawn: list[str] = []

    def pick(self, width: int) -> int:
        at = self.script[self.taken] if self.taken < len(self.script) else 0
        self.taken += 1
        self.widths.append(width)
        return at

    def read(self, name: str) -> Any:
        find("variable", name, tuple(self.domains))
        known = self.domains[name]
        if name not in self.reads:
            self.reads[name] = self.pick(len(known))
        return known[self.reads[name]]

    def answer(self, message: Message) -> None:
        if message.op in ("observe", "factor"):
            raise BadProgram(
                f"{message.op} {message.address!r} in a step that is compiled",
                why="a step says what happens next; evidence is about what has happened, and a "
                "reward scored as evidence makes the agent believe in good luck",
                fix="write reward(name, value); or run the whole program: "
                "infer(program, engine=Planning())",
            )
        super().answer(message)

    def _sample(self, message: Message) -> None:
        if isinstance(message.dist, Controlled):
            raise BadProgram(
                f"choose {message.address!r} in a step that is compiled",
                fix="the action is the second argument of the step: list them in actions=[...]",
            )
        if message.done:
            super()._sample(message)
            return
        support = run_now(message.dist.support(self.env), self.env, self.ledger)
        value, logp = support[self.pick(len(support))]
        self.p *= float(np.exp(logp))
        self.drawn.append(message.address)
        message.value, message.logp, message.logq = value, logp, logp
        self._record(message, 0.0)


def compile_step(
    step: Callable[..., Any],
    domains: Mapping[str, Any],
    actions: Any,
    *,
    lm: Any = None,
    expected_rewards: bool = False,
    **options: Any,
) -> FactoredMDP:
    """Tabulate a step.

    Args:
        step: of the state and the action; calls `sample` and `reward`, returns a mapping from each
            variable to its next value, or to a function without arguments that draws it.
        domains: variable -> labels, or how many values.
        actions: labels, or how many.
        lm: the language model of its string sites, which must have a finite support (`Choice`).
        expected_rewards: allow rewards that depend on chance drawn in the step, and take their
            mean, which is right at risk 0 alone.
        options: of `FactoredMDP`: timing, initial, allowed, terminal, one_hot.

    >>> from lmppl import Bernoulli, reward, sample
    >>> def step(s, a):
    ...     reward("lit", s.on)
    ...     return {"on": lambda: 1 - s.on if a == "press" else s.on, "noise": s.noise}
    >>> mdp = compile_step(step, {"on": 2, "noise": 2}, ["wait", "press"])
    >>> mdp.transitions["on"].parents, mdp.rewards[0].scope
    (('on',), ('on',))
    """
    known = {k: labels(f"domains[{k!r}]", v) for k, v in domains.items()}
    acts = labels("actions", actions)
    models = as_models(lm)
    first = _start(step, known, acts, models)
    lazy = [k for k, v in first.items() if callable(v)]
    cpts: dict[str, CPT] = {}
    rewards: list[Reward | ActionCost] = []
    for piece in (None, *lazy):
        eager = [k for k in known if k not in lazy] if piece is None else [piece]
        leaves = {a: list(_walks(step, known, a, models, piece, bool(lazy))) for a in acts}
        parents = [
            v for v in known if any(v in leaf.reads for ls in leaves.values() for leaf in ls)
        ]
        cells = _cells(leaves, parents, known, eager, acts)
        for name in eager:
            table = _table(cells, parents, known, name, acts)
            keep, table = _needed(parents, table, 2)
            cpts[name] = CPT(keep, table)
        _check_product(cells, eager, cpts, parents, known, acts)
        rewards += _rewards(cells, parents, known, acts, piece, expected_rewards)
    return FactoredMDP(known, acts, {k: cpts[k] for k in known}, rewards, **options)


def _start(step: Any, known: Any, acts: Any, models: Any) -> dict[str, Any]:
    """What the step returns for the first values: which variables are lazy."""
    walk = _Walk([], known, models)
    out = walk.enter(step, (State(walk.read), acts[0]), {})
    if not isinstance(out, Mapping) or set(out) != set(known):
        raise BadProgram(
            "a step must return a mapping from every variable to its next value",
            value=excerpt(sorted(out) if isinstance(out, Mapping) else out),
            fix=f"return {{{', '.join(f'{k!r}: ...' for k in known)}}}",
        )
    return dict(out)


def _walks(
    step: Any, known: Any, action: Any, models: Any, piece: str | None, any_lazy: bool
) -> Iterator[_Leaf]:
    """Every way through the body (and one function), depth first."""
    script: list[int] = []
    for count in itertools.count():
        if count >= MOST_ROWS:
            raise BadArgument(
                f"the step has more than {MOST_ROWS:,} ways for {piece or 'its plain values'!r}",
                why="its table would have a row for each",
                fix="return functions, {'x': lambda: ...}, each of which reads few variables; or "
                "split the variable",
            )
        walk = _Walk(script, known, models)
        marks: list[int] = []

        def run(walk: _Walk = walk, marks: list[int] = marks) -> Any:
            out = step(State(walk.read), action)
            if any_lazy and walk.drawn:
                raise BadProgram(
                    f"site {walk.drawn[0]!r} is drawn in the body of a step that returns functions",
                    why="every function would see its own draw of it",
                    fix="draw inside the functions, or return plain values only",
                )
            marks.append(len(entries(walk.head)))
            if piece is None:
                return {k: v for k, v in out.items() if not callable(v)}
            return {piece: out[piece]()}

        values = walk.enter(run, (), {})
        sites = entries(walk.head)
        own = sites if piece is None else sites[marks[0] :]
        rewards = {e.address: float(e.value) for e in own if isinstance(e.value, Utility)}
        yield _Leaf(walk.reads, walk.p, values, rewards)
        script = (script + [0] * len(walk.widths))[: len(walk.widths)]
        while script and script[-1] + 1 >= walk.widths[len(script) - 1]:
            script.pop()
        if not script:
            return
        script[-1] += 1


Cells = dict[tuple[tuple[int, ...], int], list[tuple[float, dict[str, int], dict[str, float]]]]


def _cells(
    leaves: dict[Any, list[_Leaf]], parents: list[str], known: Any, names: list[str], acts: Any
) -> Cells:
    """All outcomes for every value of the parents and the action."""
    rows = int(np.prod([len(known[v]) for v in parents], dtype=object)) * len(acts)
    if rows > MOST_ROWS:
        raise BadArgument(
            f"the table of {', '.join(names) or 'the rewards'} has {rows:,} rows, at most {MOST_ROWS:,}",
            value=f"it reads {', '.join(parents)}",
            fix="return functions, each of which reads few variables; or split the variable",
        )
    cells: Cells = {}
    for k, a in enumerate(acts):
        for leaf in leaves[a]:
            coded = {n: find(f"value of {n!r}", leaf.values[n], known[n]) for n in names}
            ranges = [[leaf.reads[v]] if v in leaf.reads else range(len(known[v])) for v in parents]
            for at in itertools.product(*ranges):
                cells.setdefault((at, k), []).append((leaf.p, coded, leaf.rewards))
    return cells


def _shape(parents: list[str], known: Any, acts: Any) -> tuple[int, ...]:
    return (*(len(known[v]) for v in parents), len(acts))


def _table(cells: Cells, parents: list[str], known: Any, name: str, acts: Any) -> Array:
    table = np.zeros((*_shape(parents, known, acts), len(known[name])))
    for (at, k), found in cells.items():
        for p, coded, _ in found:
            table[(*at, k, coded[name])] += p
    return table


def _needed(parents: list[str], table: Array, own: int) -> tuple[list[str], Array]:
    """Without the parents that make no difference; the last `own` axes are not parents."""
    keep = list(parents)
    for name in parents:
        axis = keep.index(name)
        if table.ndim > own and np.ptp(table, axis=axis).max() < 1e-12:
            table = np.asarray(table.take(0, axis=axis))
            keep.remove(name)
    return keep, table


def _check_product(
    cells: Cells, names: list[str], cpts: Any, parents: list[str], known: Any, acts: Any
) -> None:
    """Plain values must be independent given what was read."""
    if len(names) < 2:
        return
    for (at, k), found in cells.items():
        joint: dict[tuple[int, ...], float] = {}
        for p, coded, _ in found:
            key = tuple(coded[n] for n in names)
            joint[key] = joint.get(key, 0.0) + p
        for key, p in joint.items():
            product = 1.0
            for n, v in zip(names, key, strict=True):
                place = tuple(at[parents.index(q)] for q in cpts[n].parents)
                product *= cpts[n].table[(*place, k, v)]
            if abs(product - p) > 1e-9:
                where = {q: known[q][i] for q, i in zip(parents, at, strict=True)}
                raise BadProgram(
                    f"the next values of {', '.join(names)} depend on one another",
                    where=f"state {excerpt(where)}, action {acts[k]!r}",
                    value=f"P{key} = {p:g}, the product of their own laws is {product:g}",
                    why="a factored problem draws each variable by itself",
                    fix="make one variable of them, with pairs as labels",
                )


def _rewards(
    cells: Cells, parents: list[str], known: Any, acts: Any, piece: str | None, mean: bool
) -> list[Reward | ActionCost]:
    names = dict.fromkeys(n for found in cells.values() for _, _, r in found for n in r)
    made: list[Reward | ActionCost] = []
    for name in names:
        table = np.zeros(_shape(parents, known, acts))
        square = np.zeros_like(table)
        for (at, k), found in cells.items():
            for p, _, r in found:
                table[(*at, k)] += p * r.get(name, 0.0)
                square[(*at, k)] += p * r.get(name, 0.0) ** 2
        if not mean and np.abs(square - table**2).max() > 1e-9:
            raise BadProgram(
                f"reward {name!r} depends on what the step draws",
                why="its mean is the same only for the expected utility",
                fix="make what it depends on a variable and reward that, or expected_rewards=True",
            )
        scope, table = _needed(parents, table, 1)
        if not scope:
            made.append(ActionCost(-table))
        elif np.ptp(table, axis=-1).max() < 1e-12:
            made.append(Reward(scope, table[..., 0]))
        else:
            made.append(Reward(scope, table))
    return made
