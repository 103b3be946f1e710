"""`explain`: in words, which rung each kind of edge uses, and what it costs.

Everything but the warnings about zeros is decided by types, in JAX's abstract evaluation: no number
is computed.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from lmppl.inference.bffg.backward import BackwardFilter, prior_path, source
from lmppl.inference.bffg.forward import exact_leaves, forward, noise_shapes
from lmppl.inference.bffg.kernels import RUNGS, before_draw, resolve, rung
from lmppl.inference.bffg.messages import Array, Table
from lmppl.inference.bffg.model import Bucket, Model, Point


def _edge_types(model: Model, bucket: Bucket, params: Any) -> dict[str, Any]:
    """Kernel, surrogate, family and rung of a bucket."""
    found: dict[str, Any] = {}
    p = bucket.parents.shape[1]

    def look(params: Any) -> Any:
        at = prior_path(model, params)
        pa = bucket.parents[0]
        anchor: Array = source() if p == 0 else at[pa[0]] if p == 1 else at[pa]
        cov = model.covariate(int(bucket.nodes[0]))
        made = model.kernels[bucket.kind](params, cov)
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
    edges = all(_edge_types(model, bucket, params)["exact"] for bucket in model.buckets)
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
    seen: set[tuple[str, int]] = set()
    for bucket in model.buckets:
        p = bucket.parents.shape[1]
        if (bucket.kind, p) in seen:
            continue
        seen.add((bucket.kind, p))
        t = _edge_types(model, bucket, params)
        count = sum(
            len(b.nodes) for b in model.buckets if (b.kind, b.parents.shape[1]) == (bucket.kind, p)
        )
        noise = int(np.prod(shapes[bucket.kind][1:], dtype=int))
        told = [
            f"{bucket.kind} ({count} x, {p} parent{'s' if p != 1 else ''})",
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
            told.append("collider: one factor per parent, corrected once")
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
        end += f"; ESS pilot {guided.ess / pilot:.2f}, unguided {unguided_ess(bf, pilot):.2f}"
    return "\n".join([*lines, end])


def unguided_ess(bf: BackwardFilter, n: int = 100) -> float:
    """ESS / n of forward simulation weighted by the likelihood: what the guide has to beat."""
    from lmppl.inference.bffg.unguided import unguided

    return unguided(bf.model, bf.data, bf.params, 0, n).ess / n
