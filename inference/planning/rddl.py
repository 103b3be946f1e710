"""`from_rddl`: competition problems as factored ones (extra `rddl`: pyRDDLGym, rddlrepository).

pyRDDLGym parses and grounds. Non-fluents and the action are then folded into every formula, since
a formula names every object and guards most of them by a constant: after folding, what is still
read is a parent. Each formula is tabulated for all values of its parents at once. The reward, a sum,
is split into its terms. A joint action is a set of at most `max-nondef-actions` flags.

Reference: Sanner, Relational dynamic influence diagram language (2010); constant folding over
guards is partial evaluation: Jones, Gomard and Sestoft (1993).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmppl.errors import BadArgument, LmpplError, excerpt
from lmppl.inference.planning.mdp import CPT, ActionCost, Allowed, FactoredMDP, Reward
from lmppl.inference.planning.steps import _needed
from lmppl.inference.planning.tables import Array

WIDEST_FORMULA = 18
"""Flags that a formula may read: its table has a row for each of their values."""
NOOP = "noop"
ARITHMETIC: dict[str, Callable[..., Any]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide,
    ">=": np.greater_equal, "<=": np.less_equal, "<": np.less, ">": np.greater,
    "==": np.equal, "~=": np.not_equal, "min": np.minimum, "max": np.maximum, "pow": np.power,
    "abs": np.abs, "exp": np.exp, "ln": np.log, "sqrt": np.sqrt, "floor": np.floor, "ceil": np.ceil,
}  # fmt: skip
Node = tuple[Any, ...]
"""("const", value), ("var", name) or (operator, node, …)."""


class NoRDDL(LmpplError):
    """A problem that cannot be made a factored one, or a package that is missing."""


def from_rddl(domain: str, instance: str, **options: Any) -> FactoredMDP:
    """A problem of rddlrepository, or two files.

    Args:
        domain: a name such as "SysAdmin_MDP_ippc2011", or the path of a domain file.
        instance: its number, or the path of an instance file.
        options: of `FactoredMDP`, such as `one_hot` or `timing`.
    """
    model = ground(domain, instance)
    _only_flags(model)
    states = list(model.state_fluents)
    constants = {k: _plain(v) for k, v in model.non_fluents.items()}
    inner = {k: read(e[1] if isinstance(e, tuple) else e) for k, e in model.cpfs.items()}
    middle = {
        k: v for k, v in inner.items() if k in model.interm_fluents or k in model.derived_fluents
    }
    joint = _joint(list(model.action_fluents), model.max_allowed_actions)
    envs = {
        name: {**constants, **{f: f in on for f in model.action_fluents}}
        for name, on in joint.items()
    }
    allowed, masks = _preconditions(model, envs, middle)
    cpts = {}
    for state in states:
        node = inner[model.next_state[state]]
        parents, table = _tabulate(node, envs, middle, probability, state)
        parents, table = _needed(parents, table, 1)
        cpts[state] = CPT(parents, np.stack([1.0 - table, table], axis=-1))
    rewards: list[Reward | ActionCost] = []
    for term in _terms(read(model.reward), envs, middle):
        rewards.append(term)
    given = {
        "timing": "state_action",
        "initial": {k: bool(v) for k, v in model.state_fluents.items()},
        "allowed": allowed,
        "masks": masks,
        **options,
    }
    return FactoredMDP({s: (False, True) for s in states}, list(joint), cpts, rewards, **given)


def ground(domain: str, instance: str) -> Any:
    """The grounded model of pyRDDLGym."""
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    try:
        from pyRDDLGym.core.grounder import RDDLGrounder
        from pyRDDLGym.core.parser.parser import RDDLParser
        from pyRDDLGym.core.parser.reader import RDDLReader
    except ImportError:
        raise NoRDDL(
            "pyRDDLGym is not installed", fix="run: pip install 'lmppl-lang[rddl]'"
        ) from None
    if not os.path.exists(domain):
        try:
            from rddlrepository.core.manager import RDDLRepoManager
        except ImportError:
            raise NoRDDL(
                "rddlrepository is not installed", fix="run: pip install 'lmppl-lang[rddl]'"
            ) from None
        known = RDDLRepoManager()
        if domain not in (names := list(known.list_problems())):
            raise BadArgument(f"no problem is called {domain!r}", fix=f"known: {excerpt(names)}")
        problem = known.get_problem(domain)
        domain, instance = problem.get_domain(), problem.get_instance(str(instance))
    text = RDDLReader(domain, instance).rddltxt
    parser = RDDLParser(lexer=None, verbose=False)
    parser.build()
    return RDDLGrounder(parser.parse(text)).ground()


def _only_flags(model: Any) -> None:
    for kind, ranges in (("state", model.state_ranges), ("action", model.action_ranges)):
        for name, range_ in ranges.items():
            if range_ != "bool":
                raise NoRDDL(
                    f"{kind} fluent {name!r} is {range_}, not bool", fix="write compile_step"
                )
    if model.terminations:
        raise NoRDDL("the problem has a termination condition", fix="write terminal=[...] yourself")


def _joint(flags: Sequence[str], most: Any) -> dict[str, frozenset[str]]:
    """Names of the joint actions, and which flags each sets."""
    n = len(flags) if most is None else min(int(most), len(flags))
    joint = {NOOP: frozenset[str]()}
    for k in range(1, n + 1):
        for on in itertools.combinations(flags, k):
            joint["+".join(on)] = frozenset(on)
            if len(joint) > 4096:
                raise NoRDDL(f"more than 4,096 joint actions of {len(flags)} flags, {n} at a time")
    return joint


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


# -- formulas ----------------------------------------------------------------------------------


def read(expression: Any) -> Node:
    """pyRDDLGym's expression as plain tuples."""
    kind, name = expression.etype
    args = expression.args
    if kind == "constant":
        return ("const", args)
    if kind == "pvar":
        return ("var", args[0])
    if kind == "control" and name == "switch":
        raise NoRDDL("switch is not supported", fix="write compile_step")
    if kind in ("arithmetic", "boolean", "relational", "func", "randomvar", "control"):
        return ({"&": "^"}.get(name, name), *(read(a) for a in args))
    raise NoRDDL(f"formula of kind {kind} {name} is not supported", fix="write compile_step")


def fold(node: Node, env: Mapping[str, Any]) -> Node:
    """The formula with constants put in, and what no longer matters left out."""
    op = node[0]
    if op == "const":
        return node
    if op == "var":
        return ("const", env[node[1]]) if node[1] in env else node
    if op == "if":
        test = fold(node[1], env)
        if test[0] == "const":
            return fold(node[2] if test[1] else node[3], env)
        return ("if", test, fold(node[2], env), fold(node[3], env))
    parts = [fold(n, env) for n in node[1:]]
    if op in ("^", "|"):
        decided = op == "|"
        if any(p[0] == "const" and bool(p[1]) == decided for p in parts):
            return ("const", decided)
        parts = [p for p in parts if p[0] != "const"]
        return (
            ("const", not decided) if not parts else parts[0] if len(parts) == 1 else (op, *parts)
        )
    if op == "=>":
        return fold(("|", ("~", parts[0]), parts[1]), {})
    if op == "*" and any(p[0] == "const" and p[1] == 0 for p in parts):
        return ("const", 0)
    if op in ("+", "*") and len(parts) > 1:
        neutral = 0 if op == "+" else 1
        # a flag alone must stay a number, not become a truth value: it is one when it is added
        parts = [p for p in parts if not (p[0] == "const" and p[1] == neutral)] or [
            ("const", neutral)
        ]
        if len(parts) == 1:
            return parts[0]
    if all(p[0] == "const" for p in parts) and op not in RANDOM:
        return ("const", _plain(value((op, *parts), {})))
    return (op, *parts)


RANDOM = ("Bernoulli", "KronDelta", "DiracDelta")


def value(node: Node, at: Mapping[str, Any]) -> Any:
    """A formula without chance, for arrays of values."""
    op = node[0]
    if op == "const":
        return node[1]
    if op == "var":
        return at[node[1]]
    if op == "if":
        return np.where(value(node[1], at), value(node[2], at), value(node[3], at))
    if op in RANDOM:
        raise NoRDDL(f"{op} inside a formula: its value would have to be drawn twice")
    parts = [value(n, at) for n in node[1:]]
    if op == "~":
        return np.logical_not(parts[0])
    if op in ("^", "|"):
        join = np.logical_and if op == "^" else np.logical_or
        found = parts[0]
        for p in parts[1:]:
            found = join(found, p)
        return np.asarray(found, bool)
    if op == "=>":
        return np.logical_or(np.logical_not(parts[0]), parts[1])
    if op == "<=>":
        return np.asarray(parts[0], bool) == np.asarray(parts[1], bool)
    if op not in ARITHMETIC:
        raise NoRDDL(f"operator {op!r} is not supported", fix="write compile_step")
    parts = [np.asarray(p, float) for p in parts]
    if op == "-" and len(parts) == 1:
        return -parts[0]
    found = parts[0]
    if len(parts) == 1:
        return ARITHMETIC[op](found) if op not in ("+", "*") else found
    for p in parts[1:]:
        found = ARITHMETIC[op](found, p)
    return found


def probability(node: Node, at: Mapping[str, Any]) -> Any:
    """P(true) of a formula that draws a flag."""
    op = node[0]
    if op == "if":
        return np.where(value(node[1], at), probability(node[2], at), probability(node[3], at))
    if op == "Bernoulli":
        return np.clip(np.asarray(value(node[1], at), float), 0.0, 1.0)
    if op in ("KronDelta", "DiracDelta"):
        return np.asarray(value(node[1], at), float)
    return np.asarray(np.asarray(value(node, at), bool), float)


def names_in(node: Node) -> list[str]:
    """The variables of a formula, in the order of their first use."""
    found: dict[str, None] = {}
    todo = [node]
    while todo:
        n = todo.pop()
        if n[0] == "var":
            found[n[1]] = None
        elif n[0] != "const":
            todo += reversed(n[1:])
    return list(found)


def _inline(node: Node, middle: Mapping[str, Node], env: Mapping[str, Any]) -> Node:
    """Folded, with intermediate fluents replaced by their formulas."""
    node = fold(node, env)
    while inside := [n for n in names_in(node) if n in middle]:
        node = fold(_put(node, {n: _settled(n, middle[n]) for n in inside}), env)
    return node


def _settled(name: str, node: Node) -> Node:
    if node[0] in ("KronDelta", "DiracDelta"):
        return node[1]  # type: ignore[no-any-return]
    if node[0] == "if":
        return ("if", node[1], _settled(name, node[2]), _settled(name, node[3]))
    if node[0] == "Bernoulli":
        raise NoRDDL(f"intermediate fluent {name!r} is drawn", fix="make it a state fluent")
    return node


def _put(node: Node, what: Mapping[str, Node]) -> Node:
    if node[0] == "const":
        return node
    if node[0] == "var":
        return what.get(node[1], node)
    return (node[0], *(_put(n, what) for n in node[1:]))


def _tabulate(
    node: Node,
    envs: Mapping[str, Any],
    middle: Mapping[str, Node],
    law: Callable[..., Any],
    name: str,
) -> tuple[list[str], Array]:
    """The variables that a formula reads under some action, and its values [parents…, A]."""
    folded = [_inline(node, middle, env) for env in envs.values()]
    parents = list(dict.fromkeys(n for f in folded for n in names_in(f)))
    if len(parents) > WIDEST_FORMULA:
        raise NoRDDL(
            f"the formula of {name!r} reads {len(parents)} flags, at most {WIDEST_FORMULA}",
            why="a table has a row for each of their values; a decision diagram would not",
            fix="take a smaller instance, or write compile_step with merged variables",
        )
    grid = np.indices((2,) * len(parents)).astype(bool) if parents else np.zeros((0, 1), bool)
    at = {n: grid[i] for i, n in enumerate(parents)}
    shape = (2,) * len(parents)
    return parents, np.stack(
        [np.broadcast_to(np.asarray(law(f, at), float), shape) for f in folded], axis=-1
    )


def _terms(
    node: Node, envs: Mapping[str, Any], middle: Mapping[str, Node]
) -> list[Reward | ActionCost]:
    """The reward as a sum of small tables."""
    small: dict[tuple[str, ...], Array] = {}
    for sign, part in _summands(node, 1.0):
        scope, table = _tabulate(part, envs, middle, value, "reward")
        scope, table = _needed(scope, sign * table, 1)
        order = sorted(scope)
        table = np.transpose(table, (*(scope.index(n) for n in order), len(scope)))
        key = tuple(order)
        small[key] = small[key] + table if key in small else table
    found: list[Reward | ActionCost] = []
    for key, table in small.items():
        if not key:
            found.append(ActionCost(-table))
        elif np.ptp(table, axis=-1).max() == 0.0:
            found.append(Reward(key, table[..., 0]))
        else:
            found.append(Reward(key, table))
    return found


def _summands(node: Node, sign: float) -> list[tuple[float, Node]]:
    if node[0] == "+":
        return [x for n in node[1:] for x in _summands(n, sign)]
    if node[0] == "-":
        head = _summands(node[1], sign if len(node) > 2 else -sign)
        return head + [x for n in node[2:] for x in _summands(n, -sign)]
    if node[0] == "*" and len(node) == 3 and node[1][0] == "const":
        return [(s * float(node[1][1]), n) for s, n in _summands(node[2], sign)]
    return [(sign, node)]


def _preconditions(
    model: Any, envs: Mapping[str, Any], middle: Mapping[str, Node]
) -> tuple[list[bool], list[Allowed]]:
    """Which joint actions are legal: always, or by state."""
    allowed = np.ones(len(envs), bool)
    masks = []
    for expression in model.preconditions:
        scope, table = _tabulate(read(expression), envs, middle, value, "precondition")
        scope, table = _needed(scope, table, 1)
        if scope:
            masks.append(Allowed(scope, table > 0))
        else:
            allowed &= table > 0
    return allowed.tolist(), masks
