"""Answers counted over an equivalence: classes with their mass, its error, and what was dropped.

    m_c = Σ_{i ∈ c} W_i / (1 - d)            d = mass of answers that `keep` refuses
    se(m_c)² = Σ_k ( Σ_{i ∈ family k} W_i 1[kept] (1[i ∈ c] - m_c) / (1 - d) )²

The equivalence is the user's: `key(answer)`, whose equal values are one class, or `same(a, b)`,
of which the transitive closure is taken, so that classes do not depend on the order of answers.
Families are those of `Posterior`; plain answers are families of one, as independent draws are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lmppl.arguments import as_array, check_functions
from lmppl.errors import BadArgument, excerpt
from lmppl.inference.results.estimates import Marginal
from lmppl.inference.results.posterior import Posterior
from lmppl.inference.results.summary import hashable
from lmppl.types import Floats, Ints

Key = Callable[[Any], Any]
Same = Callable[[Any, Any], bool]


@dataclass(frozen=True)
class Tally:
    """Classes of answers, the heaviest first; ties stand in the order of their `repr`."""

    answers: tuple[Any, ...]
    """The heaviest member of each class stands for it."""
    mass: tuple[float, ...]
    se: tuple[float, ...]
    counts: tuple[int, ...]
    """Answers of positive weight in each class, whatever their weights."""
    members: tuple[tuple[Any, ...], ...]
    """The distinct answers of each class, the heaviest first."""
    dropped: float
    """Mass of the answers that `keep` refused; the others share 1."""
    of: tuple[int, ...]
    """The class of each answer given, in their order; -1 where it was dropped or has no weight."""

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def table(self) -> Marginal:
        """Mass and its error by answer."""
        names = [hashable(a) for a in self.answers]
        return Marginal(
            dict(zip(names, self.mass, strict=True)), dict(zip(names, self.se, strict=True))
        )

    @property
    def entropy(self) -> float:
        """-Σ m log m over classes, in nats: the semantic entropy."""
        return max(0.0, -math.fsum(m * math.log(m) for m in self.mass if m > 0.0))


class _Source(NamedTuple):
    values: list[Any]
    weights: Floats
    families: Ints | None
    """None where the weights are given numbers, of which nobody knows the error."""
    given: Mapping[Any, float]
    """Errors that came with the weights."""
    exact: bool


def tally(
    answers: Posterior | Mapping[Any, float] | Sequence[Any],
    *,
    of: Any = None,
    key: Key | None = None,
    same: Same | None = None,
    keep: Callable[[Any], bool] | None = None,
) -> Tally:
    """Count answers over an equivalence.

    Args:
        answers: a posterior; a mapping from answer to weight; or answers of equal weight.
        of: of a posterior, which site or function of the trace is the answer; the result when
            left out.
        key: answers of equal key are one class.
        same: answers that are the same are one class; symmetric, its transitive closure is taken.
        keep: which answers count at all, such as `lambda a: a is not None`.

    >>> tally(["4", " 4", "5", None], key=str.strip, keep=lambda a: a is not None).mass
    (0.6666666666666666, 0.3333333333333333)
    """
    if key is not None and same is not None:
        raise BadArgument("key and same are two ways to say one thing", fix="give one of them")
    check_functions("tally", key=key, same=same, keep=keep)
    source = _source(answers, of)
    w = source.weights
    kept = [
        i for i, v in enumerate(source.values) if w[i] > 0.0 and (keep is None or bool(keep(v)))
    ]
    if not kept:
        raise BadArgument(
            "there is no answer to decide between",
            value=excerpt(source.values[:5]),
            why="all were refused by keep, or there were none",
            fix="give answers that keep accepts",
        )
    total = math.fsum(w[kept].tolist())
    distinct: dict[Any, list[int]] = {}
    for i in kept:
        distinct.setdefault(hashable(source.values[i]), []).append(i)
    weight = {name: math.fsum(w[ix].tolist()) for name, ix in distinct.items()}
    # a canonical order: nothing below depends on the order of the answers
    names = sorted(distinct, key=lambda n: (-round(weight[n] / total, 12), repr(n)))
    groups = _classes([source.values[distinct[n][0]] for n in names], key, same)
    rows = []
    for group in groups:
        members = [names[j] for j in group]
        indices = sorted(i for n in members for i in distinct[n])
        rows.append((math.fsum(w[indices].tolist()) / total, members, indices))
    rows.sort(key=lambda row: (-round(row[0], 12), repr(row[1][0])))
    of_answer = [-1] * len(source.values)
    for c, (_, _, indices) in enumerate(rows):
        for i in indices:
            of_answer[i] = c
    return Tally(
        answers=tuple(source.values[distinct[m[0]][0]] for _, m, _ in rows),
        mass=tuple(mass for mass, _, _ in rows),
        se=tuple(_error(source, kept, ix, mass, total, m) for mass, m, ix in rows),
        counts=tuple(len(ix) for _, _, ix in rows),
        members=tuple(tuple(source.values[distinct[n][0]] for n in m) for _, m, _ in rows),
        dropped=max(0.0, 1.0 - total),
        of=tuple(of_answer),
    )


def _source(answers: Any, of: Any) -> _Source:
    if isinstance(answers, Posterior):
        answers._alive()
        return _Source(answers.values(of), answers.weights, answers.eves, {}, answers.exact)
    if of is not None:
        raise BadArgument(
            "of names a part of a trace: it needs a posterior",
            value=excerpt(of),
            fix="leave it out: these answers have no traces",
        )
    if isinstance(answers, Mapping):
        values = list(answers)
        w = as_array("tally", weights=list(answers.values()))
        fine = w.ndim == 1 and np.isfinite(w).all() and (w >= 0.0).all() and w.sum() > 0.0
        if not fine:
            raise BadArgument(
                "weights of answers must be finite, not negative, and not all zero",
                value=excerpt(dict(answers)),
                fix='give a mapping such as {"a": 0.75, "b": 0.25}',
            )
        return _Source(values, w / w.sum(), None, getattr(answers, "se", {}), False)
    if isinstance(answers, str) or not isinstance(answers, Sequence):
        raise BadArgument(
            f"answers must be a posterior, a mapping or a list, got {type(answers).__name__}",
            value=excerpt(answers),
            fix='give infer(...), {"a": 0.75, "b": 0.25} or ["a", "a", "b"]',
        )
    n = len(answers)
    return _Source(list(answers), np.full(n, 1.0 / max(n, 1)), np.arange(n), {}, False)


def _error(
    source: _Source, kept: list[int], inside: list[int], mass: float, total: float, names: list[Any]
) -> float:
    if source.exact:
        return 0.0
    if source.families is None:
        untouched = len(names) == 1 and len(kept) == len(source.values)
        return float(source.given.get(names[0], math.nan)) if untouched else math.nan
    if len({int(source.families[i]) for i in kept}) < 2:
        return math.nan  # one family says nothing about the spread between families
    f = np.zeros(len(source.values))
    f[kept] = -mass
    f[inside] += 1.0
    groups = np.zeros(int(source.families.max()) + 1)
    np.add.at(groups, source.families, source.weights * f / total)
    return math.sqrt(float(groups @ groups))


def _classes(values: list[Any], key: Key | None, same: Same | None) -> list[list[int]]:
    """Classes of values, as lists of indices that rise."""
    if same is None:
        found: dict[Any, list[int]] = {}
        for i, v in enumerate(values):
            found.setdefault(hashable(v if key is None else key(v)), []).append(i)
        return list(found.values())
    root = list(range(len(values)))

    def top(i: int) -> int:
        while root[i] != i:
            i = root[i]
        return i

    for j in range(len(values)):
        for i in range(j):
            a, b = top(i), top(j)
            if a != b and same(values[i], values[j]):
                root[max(a, b)] = min(a, b)
    joined: dict[int, list[int]] = {}
    for i in range(len(values)):
        joined.setdefault(top(i), []).append(i)
    return list(joined.values())
