"""Checks of the tables and labels that a user gives, each with an error that says what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lmppl.errors import BadArgument, excerpt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
TIMINGS = ("state_action", "state", "successor")


def labels(name: str, given: Any) -> tuple[Any, ...]:
    """A tuple of different labels; a number means 0 … n-1."""
    found = tuple(range(given)) if isinstance(given, int) else tuple(given)
    if not found or len(set(found)) < len(found):
        raise BadArgument(
            f"{name} must be different labels, at least one", value=excerpt(given), fix='["a", "b"]'
        )
    return found


def find(kind: str, label: Any, known: tuple[Any, ...]) -> int:
    """The place of a label."""
    if label not in known:
        raise BadArgument(f"no {kind} is called {label!r}", fix=f"known: {excerpt(known)}")
    return known.index(label)


def numbers(name: str, given: Any) -> Array:
    """An array of finite numbers."""
    found = np.asarray(given, np.float64)
    if not np.isfinite(found).all():
        raise BadArgument(
            f"{name} has a value that is not finite",
            fix="rule actions out by `allowed`, not by a reward of -inf",
        )
    return found


def spread(name: str, given: Any, shape: tuple[int, ...], wanted: str) -> Any:
    """An array broadcast to its shape."""
    try:
        return np.broadcast_to(given, shape).copy()
    except ValueError:
        raise BadArgument(f"{name}: expected {wanted} = {shape}, got {given.shape}") from None


def law(name: str, given: Any, shape: tuple[int, ...]) -> Array:
    """Rows of probabilities that sum to one."""
    found = numbers(name, given)
    if found.shape != shape:
        raise BadArgument(f"{name}: expected shape {shape}, got {found.shape}")
    off = np.abs(found.sum(axis=-1) - 1.0)
    if (found < 0).any() or off.max() > 1e-6:
        at = tuple(int(i) for i in np.unravel_index(int(off.argmax()), off.shape))
        raise BadArgument(
            f"{name}: each row must be probabilities that sum to 1",
            where=f"row {at}",
            value=excerpt(found[at].tolist()),
        )
    return np.asarray(found / found.sum(axis=-1, keepdims=True))


def check_timing(timing: str) -> None:
    """One of the module's table."""
    if timing not in TIMINGS:
        raise BadArgument(f"timing must be one of {', '.join(TIMINGS)}, got {timing!r}")


def check_horizon(horizon: int) -> None:
    """How many actions."""
    if not isinstance(horizon, int) or horizon < 1:
        raise BadArgument(
            f"horizon must be at least 1, got {horizon!r}", fix="it counts actions, not states"
        )
