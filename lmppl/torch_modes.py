"""torch's thread-local modes, kept apart for each suspended program.

`with torch.no_grad():` sets a mode of the *thread*. A program that suspends at a site inside such a
block would leave it on for the engine and for every other particle. So when a frame is left, its
modes are noted and those of whoever resumed it come back; when it is entered again, it gets its own.
Gradients, inference mode and autocast are kept; torch itself is never imported here.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

DEVICES = ("cpu", "cuda")
"""Where autocast is looked at."""


class Modes(NamedTuple):
    """What torch does in this thread just now."""

    grad: bool = True
    inference: bool = False
    autocast: tuple[bool, ...] = (False, False)


DEFAULT = Modes()


def _loaded() -> Any:
    """torch, where somebody has imported it to its end."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and hasattr(torch, "compile") else None


def modes() -> Modes:
    """Of this thread; the default where there is no torch."""
    torch = _loaded()
    if torch is None:
        return DEFAULT
    return Modes(
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        tuple(map(torch.is_autocast_enabled, DEVICES)),
    )


class Held:
    """The modes of a frame that was left."""

    __slots__ = ("dtypes", "guard", "own")

    def __init__(self, own: Modes, outer: Modes) -> None:
        """Note the frame's own, and bring the outer ones back."""
        torch = _loaded()
        self.own = own
        self.dtypes = tuple(map(torch.get_autocast_dtype, DEVICES)) if any(own.autocast) else ()
        self.guard: Any = None
        if own.inference != outer.inference:  # it has no setter: covered here, uncovered in `back`
            self.guard = torch.inference_mode(outer.inference)
            self.guard.__enter__()
        _set(torch, outer)

    def back(self) -> None:
        """Give the frame its own again."""
        torch = _loaded()
        if self.guard is not None:
            self.guard.__exit__(None, None, None)
        _set(torch, self.own)
        for device, dtype in zip(DEVICES, self.dtypes, strict=False):
            torch.set_autocast_dtype(device, dtype)


def _set(torch: Any, wanted: Modes) -> None:
    torch.set_grad_enabled(wanted.grad)
    for device, on in zip(DEVICES, wanted.autocast, strict=True):
        if torch.is_autocast_enabled(device) != on:
            torch.set_autocast_enabled(device, on)


def leave(outer: Modes) -> Held | None:
    """After a frame ran: what differs from the modes of who resumed it, which come back."""
    own = modes()
    return None if own == outer else Held(own, outer)
