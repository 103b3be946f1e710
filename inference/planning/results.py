"""Results of planning in the common shapes: an xarray dataset, and four plots of it.

`as_dataset(mdp, horizon)` has `value` [time, state], `action_value`, `policy` and `occupancy`
[time, state, action]. The plots draw into given axes and return them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmppl.inference.planning.kinds import as_table
from lmppl.inference.planning.mdp import FactoredMDP, Stages, TabularMDP
from lmppl.inference.planning.tables import Array


def occupancy(stages: Stages, policy: Array) -> Array:
    """How probable it is to be in x and take a at time t under a policy, [H, S, A]."""
    law, found = stages.initial, []
    for pi in np.broadcast_to(policy, stages.reward.shape):
        found.append(law[:, None] * pi)
        law = np.einsum("xa,xay->y", found[-1], stages.transition)
    return np.stack(found)


def as_dataset(
    mdp: TabularMDP | FactoredMDP,
    horizon: int,
    *,
    state: Any = None,
    risk_aversion: float = 0.0,
    temperature: float = 0.0,
) -> Any:
    """Values, policy and occupancies of the exact plan as an `xarray.Dataset`."""
    import xarray as xr

    from lmppl.inference.planning.dp import solve_stages

    flat = as_table(mdp)
    stages = flat.stages(horizon, state)
    found = solve_stages(stages, risk=-risk_aversion, temperature=temperature)
    n = len(flat.states)
    dims = ("time", "state", "action")
    return xr.Dataset(
        {
            "value": (("stage", "state"), found.values[:, :n]),
            "action_value": (dims, found.action_values[:, :n]),
            "policy": (dims, found.policy[:, :n]),
            "occupancy": (dims, occupancy(stages, found.policy)[:, :n]),
        },
        coords={
            "stage": np.arange(horizon + 1),
            "time": np.arange(horizon),
            "state": [str(x) for x in flat.states],
            "action": [str(a) for a in flat.actions],
        },
        attrs={"value": found.value, "risk_aversion": risk_aversion, "temperature": temperature},
    )


def _grid(axes: Any, table: Any, rows: str, columns: str, title: str, **style: Any) -> Any:
    image = axes.imshow(np.asarray(table), aspect="auto", origin="lower", **style)
    axes.set_yticks(range(table.sizes[rows]), [str(v) for v in table[rows].values])
    axes.set_xticks(range(table.sizes[columns]), [str(v) for v in table[columns].values])
    axes.set_xlabel(columns)
    axes.set_ylabel(rows)
    axes.set_title(title)
    axes.figure.colorbar(image, ax=axes)
    return axes


def plot_values(data: Any, axes: Any) -> Any:
    """The value landscape: V_t(x)."""
    return _grid(axes, data["value"].T, "state", "stage", "value")


def plot_policy(data: Any, axes: Any, time: int = 0) -> Any:
    """π_t(a | x)."""
    return _grid(axes, data["policy"].isel(time=time), "state", "action", f"policy, t = {time}", vmin=0, vmax=1)  # fmt: skip


def plot_occupancy(data: Any, axes: Any) -> Any:
    """Where the run is, by time."""
    return _grid(axes, data["occupancy"].sum("action").T, "state", "time", "occupancy", vmin=0, vmax=1)  # fmt: skip


def plot_kinds(rows: Mapping[str, Sequence[float]], noise: Sequence[float], axes: Any) -> Any:
    """A number of each kind of inference against stochasticity."""
    for kind, values in rows.items():
        axes.plot(
            noise, values, "--" if kind == "marginal_uniform" else "-", marker="o", label=kind
        )
    axes.set_xlabel("share of noise in the dynamics")
    axes.legend()
    return axes
