"""A `BayesNet` as a Pyro model whose discrete sites are enumerated (pyro, torch)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lmppl.graphs.bayes_nets.bayes_net import BayesNet


def pyro_model(net: BayesNet) -> Callable[..., dict[str, Any]]:
    """The network as a Pyro model; its sites hold the index of a value.

    Each site is marked `infer={"enumerate": "parallel"}`. The model takes `given`, a mapping from
    variable to value, which it observes.
    """

    def model(given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        import pyro
        import pyro.distributions as dist
        import torch
        from pyro.ops import indexing

        vindex: Any = indexing.vindex
        at: dict[str, Any] = {}
        for v in net.variables:
            table = torch.tensor(v.table, dtype=torch.float64)
            rows = vindex(table, (*(at[p] for p in v.parents), slice(None))) if v.parents else table
            obs = None
            if given is not None and v.name in given:
                obs = torch.tensor(v.values.index(given[v.name]))
            at[v.name] = pyro.sample(
                v.name,
                dist.Categorical(probs=rows),
                obs=obs,
                infer={} if obs is not None else {"enumerate": "parallel"},
            )
        return at

    return model


def pyro_marginals(
    net: BayesNet, given: Mapping[str, Any] | None = None
) -> dict[str, dict[Any, float]]:
    """P(variable | given) of every other variable, by Pyro's exact enumeration."""
    from pyro import infer

    def guide(given: Any = None) -> None:
        """Nothing is left to guess: all sites are enumerated."""

    evidence = dict(given or {})
    enumeration: Any = infer.TraceEnum_ELBO
    found = enumeration(max_plate_nesting=0).compute_marginals(pyro_model(net), guide, evidence)
    return {
        name: dict(zip(net[name].values, law.probs.reshape(-1).tolist(), strict=True))
        for name, law in found.items()
    }
