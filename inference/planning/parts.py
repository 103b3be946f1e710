"""What a factored problem is made of: transitions, rewards, costs, masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CPT:
    """P(x' | parents, action) as [parents…, A, x'], or [parents…, x'] for all actions alike."""

    parents: Sequence[str]
    table: Any


@dataclass(frozen=True)
class Reward:
    """A reward of some variables: [scope…], or [scope…, A] with timing "state_action"."""

    scope: Sequence[str]
    table: Any


@dataclass(frozen=True)
class ActionCost:
    """What each action costs, [A]: a positive number is subtracted from the utility."""

    cost: Any


@dataclass(frozen=True)
class Allowed:
    """Which actions may be taken where: [scope…, A] of true and false."""

    scope: Sequence[str]
    table: Any
