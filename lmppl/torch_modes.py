"""torch's thread-local modes, kept apart for each suspended program.

`with torch.no_grad():` sets a mode of the *thread*. A program that suspends at a site inside such a
block would leave it on for the engine and for every other particle. So when a frame is left, its
modes are noted and those of whoever resumed it come back; when it is entered again, it gets its own.
Gradients, inference mode and autocast are kept; torch itself is never imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

DEVICES = ("cpu", "cuda")
"""Where autocast is looked at."""


LOADED = sys.modules
"""Without torch in it there is nothing to keep apart."""


class Modes(NamedTuple):
    """What torch does in this thread just now."""

    grad: bool = True
    inference: bool = False
    autocast: tuple[bool, ...] = (False, False)


DEFAULT = Modes()


_asks: tuple[Callable[..., bool], ...] = ()
"""torch's own functions, once it is there: they are asked at every switch of frames."""


def modes() -> Modes:
    """Of this thread; the default where there is no torch."""
    if not _asks and not _find():
        return DEFAULT
    grad, inference, autocast = _asks
    cpu, cuda = autocast("cpu"), autocast("cuda")
    if grad() and not (cpu or cuda or inference()):
        return DEFAULT
    return Modes(grad(), inference(), (cpu, cuda))


def _find() -> bool:
    global _asks
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "compile"):  # absent, or in the middle of its import
        return False
    _asks = (torch.is_grad_enabled, torch.is_inference_mode_enabled, torch.is_autocast_enabled)
    return True


class Held:
    """The modes of a frame that was left."""

    __slots__ = ("dtypes", "guard", "own")

    def __init__(self, own: Modes, outer: Modes) -> None:
        """Note the frame's own, and bring the outer ones back."""
        torch: Any = sys.modules["torch"]
        self.own = own
        self.dtypes = tuple(map(torch.get_autocast_dtype, DEVICES)) if any(own.autocast) else ()
        self.guard: Any = None
        if own.inference != outer.inference:  # it has no setter: covered here, uncovered in `back`
            self.guard = torch.inference_mode(outer.inference)
            self.guard.__enter__()
        _set(torch, outer)

    def back(self) -> None:
        """Give the frame its own again."""
        torch: Any = sys.modules["torch"]
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
    return None if own is outer or own == outer else Held(own, outer)
