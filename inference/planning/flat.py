"""A factored problem as one table: every joint state, with its law, reward and mask.

P(x' | x, a) = Π_e P_e(x'_e | x_pa(e), a),   R(x, a) = Σ_r R_r(x_scope, a)

A problem makes its table once (`FactoredMDP.flat`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lmppl.errors import BadArgument
from lmppl.inference.planning.mdp import MOST_STATES, FactoredMDP, TabularMDP
from lmppl.inference.planning.parts import ActionCost


def flat(mdp: FactoredMDP) -> TabularMDP:
    """The table; a problem with too many joint states is refused."""
    if mdp.size > MOST_STATES:
        raise BadArgument(
            f"{mdp.size:,} joint states are too many for one table ({MOST_STATES:,})",
            fix='use method="vbp", "lp" or "rollout"',
        )
    names, values = list(mdp.states), list(mdp.states.values())
    codes = np.stack([c.ravel() for c in np.indices([len(v) for v in values])], axis=1)
    n, a = len(codes), len(mdp.actions)

    def rows(scope: Sequence[str]) -> tuple[npt.NDArray[np.intp], ...]:
        return tuple(codes[:, names.index(v)] for v in scope)

    table = np.ones((n, a, 1))
    for name in names:
        cpt = mdp.transitions[name]
        law = cpt.table[rows(cpt.parents)]
        law = np.broadcast_to(law, (n, a, law.shape[-1]))
        table = (table[..., :, None] * law[..., None, :]).reshape(n, a, -1)
    reward, cost = np.zeros((n, a)), np.zeros(a)
    for r in mdp.rewards:
        if isinstance(r, ActionCost):
            cost = cost + r.cost
        else:
            reward = reward + r.table[rows(r.scope)]
    mask = np.broadcast_to(mdp.allowed, (n, a)).copy()
    for m in mdp.masks:
        mask &= m.table[rows(m.scope)]
    over = np.zeros(n, bool)
    for t in mdp.terminal:
        over |= t.table[..., 0][rows(t.scope)] > 0
    mask[over] = True
    joint = [tuple(v[c] for v, c in zip(values, row, strict=True)) for row in codes]
    return TabularMDP(
        joint,
        mdp.actions,
        table,
        reward if mdp.timing == "state_action" else reward[:, 0],
        action_cost=cost,
        timing=mdp.timing,
        allowed=mask,
        terminal=[x for x, end in zip(joint, over, strict=True) if end],
        initial=tuple(mdp.initial.values()),
    )
