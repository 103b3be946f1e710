"""Freed memory stays in the process, unless the user has decided otherwise."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator

import pytest

from lmppl.lm.torch import memory as torch_memory

GLIBC = sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc"


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in torch_memory.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    torch_memory.keep_freed_memory.cache_clear()
    yield
    torch_memory.keep_freed_memory.cache_clear()


@pytest.mark.skipif(not GLIBC, reason="mallopt is glibc's")
def test_thresholds_are_taken() -> None:
    assert torch_memory.keep_freed_memory()


@pytest.mark.parametrize("name", torch_memory.VARIABLES)
def test_a_user_who_sets_them_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "131072")
    assert not torch_memory.keep_freed_memory()


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("no library is opened")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", never)
    assert not torch_memory.keep_freed_memory()
