"""What is made of a model once, however many threads ask for it, and goes when the model goes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from lmppl.lm.base import LanguageModel

T = TypeVar("T")


class OncePerModel(Generic[T]):
    """`make(lm)`, remembered; what it makes may not refer to the model.

    >>> from lmppl.lm.table import TableLM
    >>> words = OncePerModel(lambda lm: [lm.token_bytes(i) for i in range(lm.vocab_size)])
    >>> lm = TableLM(["a", "b"], {(): [0.5, 0.5]})
    >>> words(lm) is words(lm)
    True
    """

    def __init__(self, make: Callable[[LanguageModel], T]) -> None:
        """Nothing is made yet."""
        self._make = make
        self._made: WeakKeyDictionary[LanguageModel, T] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def __call__(self, lm: LanguageModel) -> T:
        """That of a model."""
        with self._lock:
            found = self._made.get(lm)
            if found is None:
                found = self._made[lm] = self._make(lm)
            return found
