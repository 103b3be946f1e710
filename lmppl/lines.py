"""Lines of the user's program, for messages: file:line of a stack frame or of an error."""

from __future__ import annotations

import os
import sys
import sysconfig
from types import FrameType

_STANDARD = (*(sysconfig.get_path(name) for name in ("stdlib", "platstdlib")), "<frozen")


def caller() -> str:
    """file:line of the nearest frame outside of this package."""
    return user_line(sys._getframe(1)) or "unknown line"


def user_line(frame: FrameType | None) -> str | None:
    """file:line of a stack frame, or of the nearest one below it that is not of this package."""
    while frame is not None:
        if not _ours(frame):
            return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"
        frame = frame.f_back
    return None


def line_of(error: BaseException) -> str | None:
    """file:line of the user's code that raised an error, as deep as it goes; no library's."""
    found, trace = None, error.__traceback__
    while trace is not None:
        if not _ours(trace.tb_frame) and not _library(trace.tb_frame.f_code.co_filename):
            found = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def _library(file: str) -> bool:
    return file.startswith(_STANDARD) or "site-packages" in file or "dist-packages" in file


def _ours(frame: FrameType) -> bool:
    name: str = frame.f_globals.get("__name__", "")
    return name.startswith("lmppl.") and not frame.f_code.co_filename.startswith("<doctest")
