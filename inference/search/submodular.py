"""Choosing a few candidates that are good and different: greedy facility location.

    F(S) = (1 - λ) Σ_{i ∈ S} u_i + λ Σ_j max_{i ∈ S} s_ij          s_ij ≥ 0, u_i ≥ 0

is monotone and submodular, so that adding the candidate of the largest gain k times reaches at least
1 - 1/e = 0.632 of the best set (Nemhauser, Wolsey and Fisher, 1978). u is the utility of each
candidate, s how well i stands for j: every candidate, chosen or not, should have one like it in S.

Reference: DynaAct, 2511.08043 (2025), for actions of a reasoning step.
"""

from __future__ import annotations

import numpy as np

from lmppl.errors import BadArgument
from lmppl.types import Floats


def submodular_pick(
    utilities: Floats, similarity: Floats, k: int, balance: float = 0.5
) -> list[int]:
    """The greedy choice of k candidates, in the order of their gains; ties to the smaller index.

    Args:
        utilities: u_i ≥ 0 [N].
        similarity: s_ij [N, N]; negative entries count as 0.
        k: how many.
        balance: λ in [0, 1].

    >>> submodular_pick([0.9, 0.8, 0.1], [[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]], 2)
    [0, 2]
    """
    u, s = _checked(utilities, similarity, balance)
    covered = np.zeros(len(u))
    chosen: list[int] = []
    for _ in range(min(k, len(u))):
        gains = (1.0 - balance) * u + balance * np.maximum(s - covered, 0.0).sum(axis=1)
        gains[chosen] = -np.inf
        best = int(np.argmax(gains))
        chosen.append(best)
        covered = np.maximum(covered, s[best])
    return chosen


def facility_value(
    chosen: list[int], utilities: Floats, similarity: Floats, balance: float = 0.5
) -> float:
    """F of a set."""
    u, s = _checked(utilities, similarity, balance)
    if not chosen:
        return 0.0
    return float((1.0 - balance) * u[chosen].sum() + balance * s[chosen].max(axis=0).sum())


def word_similarity(texts: list[str]) -> Floats:
    """Jaccard similarity of the words of texts [N, N]; equal to 1 for two without words."""
    bags = [set(t.lower().split()) for t in texts]
    out = np.ones((len(bags), len(bags)))
    for i, a in enumerate(bags):
        for j, b in enumerate(bags[:i]):
            both = len(a | b)
            out[i, j] = out[j, i] = len(a & b) / both if both else 1.0
    return out


def _checked(utilities: Floats, similarity: Floats, balance: float) -> tuple[Floats, Floats]:
    u = np.asarray(utilities, dtype=np.float64)
    s = np.maximum(np.asarray(similarity, dtype=np.float64), 0.0)
    if s.shape != (len(u), len(u)) or not 0.0 <= balance <= 1.0 or not (u >= 0.0).all():
        raise BadArgument(
            f"submodular_pick needs N utilities ≥ 0, N × N similarities and a balance in [0, 1]; got "
            f"{len(u)} utilities, similarities of shape {s.shape}, balance {balance!r}",
            fix="shift utilities so that the worst has 0",
        )
    return u, s
