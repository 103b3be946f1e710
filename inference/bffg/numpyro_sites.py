"""A backward-filtered model inside a NumPyro model: noise sites, and a factor.

    z = bffg.sample_noise("z", model, params)          standard normal sites, one per kind
    bffg.factor("y", model, data, params, z)           log W(z): E over z is p(data | params)

NUTS then explores (params, z) jointly. Where every surrogate is exact, log W is the same for every
z: `sample_noise` makes no site, and the factor is the log evidence (collapse).
"""

from __future__ import annotations

from typing import Any

import numpyro
from numpyro import distributions as dist

from lmppl.errors import BadArgument
from lmppl.inference.bffg.backward import backward
from lmppl.inference.bffg.explain import is_exact
from lmppl.inference.bffg.forward import log_weight, noise_shapes
from lmppl.inference.bffg.messages import Array
from lmppl.inference.bffg.model import Model


def _collapses(model: Model, params: Any, collapse: str | bool, inflate: Any) -> bool:
    if collapse not in ("auto", True, False):
        raise BadArgument(f'collapse must be "auto", True or False, got {collapse!r}')
    exact = isinstance(inflate, (int, float)) and inflate == 0 and is_exact(model, params)
    if collapse is True and not exact:
        raise BadArgument(
            "collapse=True, and the guide is not exact: its evidence is not that of the model",
            fix='write collapse="auto", and give the factor the noise of sample_noise',
        )
    return exact and bool(collapse)


def sample_noise(
    name: str,
    model: Model,
    params: Any = None,
    *,
    collapse: str | bool = "auto",
    inflate: float | Array = 0.0,
) -> dict[str, Array] | None:
    """Sites `name/kind` of standard normal noise; None where the model collapses."""
    if _collapses(model, params, collapse, inflate):
        return None
    out = {}
    for kind, shape in noise_shapes(model, params).items():
        size = 1
        for k in shape:
            size *= k
        if size:
            law = dist.Normal(0.0, 1.0).expand(shape).to_event(len(shape))
            out[kind] = numpyro.sample(f"{name}/{kind}", law)
        else:
            import jax.numpy as jnp

            out[kind] = jnp.zeros(shape)
    return out


def factor(
    name: str,
    model: Model,
    data: Any,
    params: Any,
    noise: dict[str, Array] | None,
    *,
    anchors: Any = None,
    inflate: float | Array = 0.0,
    collapse: str | bool = "auto",
) -> Array:
    """Multiply the density by W; returns its logarithm.

    Args:
        name: of the factor site.
        model: the model.
        data: as in `backward`.
        params: as in `backward`; the guide follows them.
        noise: of `sample_noise`; None where it collapsed.
        anchors: as in `backward`.
        inflate: as in `backward`.
        collapse: as in `sample_noise`.
    """
    if noise is None:
        if not _collapses(model, params, collapse, inflate):
            raise BadArgument("the factor needs noise", fix="pass what sample_noise returned")
        level = backward(model, data, params, anchors=anchors).log_evidence
    else:
        level = log_weight(model, data, params, noise, anchors=anchors, inflate=inflate)
    numpyro.factor(name, level)
    return level
