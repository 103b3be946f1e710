"""The type names that the whole project shares.

Letters in shape comments: `B` rows of a batch, `V` token ids, `N` particles, `T` tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ids: TypeAlias = tuple[int, ...]
"""Token ids of a text, in order."""

Key: TypeAlias = int
"""A 64-bit random key; see `lmppl.random`."""

Keys: TypeAlias = NDArray[np.uint64]
Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]

Program: TypeAlias = Callable[..., Any]
"""A function whose named random choices are the model."""
