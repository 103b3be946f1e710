"""`explain`: in words, which rung each kind of edge uses, and what it costs.

Everything but the warnings about zeros is decided by types, in JAX's abstract evaluation: no number
is computed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmppl.inference.bffg.backward import BackwardFilter
from lmppl.inference.bffg.forward import forward, noise_shapes
from lmppl.inference.bffg.kernels import RUNGS, before_draw, resolve, rung
from lmppl.inference.bffg.messages import Table
from lmppl.inference.bffg.model import Model, Point, exact_leaves
from lmppl.inference.bffg.paths import parent_rows, prior_path


def _alike(model: Model) -> dict[tuple[str, int], list[int]]:
    """Nodes of the same kind and number of parents."""
    found: dict[tuple[str, int], list[int]] = {}
    for s, (kind, pa) in enumerate(zip(model.kinds, model.parents, strict=True)):
        found.setdefault((kind, len(pa)), []).append(s)
    return found


def _edge_types(model: Model, node: int, params: Any) -> dict[str, Any]:
    """Kernel, surrogate, family and rung of a node."""
    found: dict[str, Any] = {}
    kind, p = model.kinds[node], len(model.parents[node])

    def look(params: Any) -> Any:
        pa = jnp.asarray(model.parents[node], dtype=int)
        anchor = parent_rows(prior_path(model, params), pa)
        cov = model.covariate(node)
        made = model.kernels[kind](params, cov)
        kernel, k_tilde = resolve(made, anchor)
        # a fixed root has no family of its own, and none is needed: its weight is 1
        g = None if isinstance(k_tilde, Point) else k_tilde.one()
        found.update(
            kernel=type(kernel).__name__,
            surrogate=type(k_tilde).__name__,
            family="value" if g is None else type(g).__name__,
            rung=1 if g is None else rung(kernel, k_tilde, g),
            exact=k_tilde is kernel is made and p < 2,
            early=g is None or before_draw(kernel, rung(kernel, k_tilde, g)),
        )
        return 0

    jax.eval_shape(look, params)
    return found


def is_exact(model: Model, params: Any = None) -> bool:
    """Whether the weights are constant by construction, so that noise need not be explored."""
    edges = all(_edge_types(model, nodes[0], params)["exact"] for nodes in _alike(model).values())
    return edges and exact_leaves(model, params)


def explain(
    model: Model, params: Any = None, bf: BackwardFilter | None = None, pilot: int = 0
) -> str:
    """One line per kind of edge, and one for the model.

    Args:
        model: the model.
        params: as in `backward`; abstract shapes suffice without `bf`.
        bf: a backward filter, to look for zeros of the guide.
        pilot: paths of a pilot run with and without guide, whose ESS are shown (needs `bf`).
    """
    lines = []
    shapes = noise_shapes(model, params)
    for (kind, p), nodes in _alike(model).items():
        t = _edge_types(model, nodes[0], params)
        noise = int(np.prod(shapes[kind][1:], dtype=int))
        told = [
            f"{kind} ({len(nodes)} x, {p} parent{'s' if p != 1 else ''})",
            f"{t['kernel']} <- {t['surrogate']}",
            f"message {t['family']}",
            f"rung {t['rung']} ({RUNGS[t['rung']]})",
            f"noise {noise}",
            "weight 1"
            if t["exact"]
            else "weight before draw"
            if t["early"]
            else "weight after draw",
        ]
        if p > 1:
            told.append(
                "collider: the last parent is guided by the others"
                if model.adaptive
                else "collider: one factor per parent, corrected once"
            )
        lines.append("  ".join(told))
    if model.leaf is not None and len(model.observed):
        exact = exact_leaves(model, params)
        lines.append(
            f"leaf ({len(model.observed)} x)  {'exact' if exact else 'approximate, corrected by log l - log l~'}"
        )
    if bf is not None and isinstance(bf.g, Table):
        zeros = int(np.isneginf(np.asarray(bf.g.log_g)).sum())
        if zeros:
            lines.append(
                f"WARNING zeros in g: {zeros} states; where the likelihood is positive there, mass is lost"
            )
    total = sum(int(np.prod(s, dtype=int)) for s in shapes.values())
    exact = is_exact(model, params)
    end = f"model: {'collapsible, weights are constant' if exact else 'not collapsible'}; {total} noise numbers"
    if bf is not None and pilot:
        guided = forward(bf, 0, n=pilot)
        with_guide, without = guided.ess / pilot, unguided_ess(bf, pilot)
        end += f"; ESS pilot {with_guide:.2f}, unguided {without:.2f}"
        if with_guide < without:
            lines.append(
                "WARNING the guide is worse than none: it is too sure of itself; use inflate="
            )
    return "\n".join([*lines, end])


def unguided_ess(bf: BackwardFilter, n: int = 100) -> float:
    """ESS / n of forward simulation weighted by the likelihood: what the guide has to beat."""
    from lmppl.inference.bffg.unguided import unguided

    return unguided(bf.model, bf.data, bf.params, 0, n).ess / n
