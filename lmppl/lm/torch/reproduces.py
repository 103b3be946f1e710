"""Whether two ways to compute next-token scores give the same law, as far as their precision goes.

In float32 two ways differ by the order of their sums, some 1e-5 in log p; 1e-3 is allowed. In half
precision that order alone moves the log p of a token by tenths, more for an unlikely one: two passes
of SmolLM2 in bfloat16 over the same tokens, untouched, differ by up to 0.6, and by 0.06 in total
variation; a step that misses a token or takes another row's differs by some 0.5. So laws are compared
there, by their total variation

    TV(p, q) = ½ Σ_v |p_v − q_v|,

and its mean over the rows may be 0.15.
"""

from __future__ import annotations

import torch
from torch import Tensor

EXACT = 1e-3
"""Allowed difference of log p in float32, of tokens with log p > LIKELY."""
LIKELY = -12.0
HALF = 0.15
"""Allowed mean total variation in half precision."""


def different(reference: Tensor, scores: Tensor, dtype: torch.dtype) -> str | None:
    """Why scores [n, V] have not the law of a reference [n, V] (scores too), or None.

    Args:
        reference: of one way.
        scores: of another.
        dtype: in which both were computed.

    >>> different(torch.tensor([[0.0, 1.0]]), torch.tensor([[5.0, 6.0]]), torch.float32)
    >>> different(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.1]]), torch.float32)
    'log-probabilities differ by 0.0741'
    """
    p, q = torch.log_softmax(reference.float(), dim=1), torch.log_softmax(scores.float(), dim=1)
    if dtype == torch.float32:
        worst = (q - p)[p > LIKELY].abs().max().item()
        return None if worst <= EXACT else f"log-probabilities differ by {worst:.3g}"
    mean = (p.exp() - q.exp()).abs().sum(dim=1).mean().item() / 2
    return None if mean <= HALF else f"laws differ by {mean:.3g} in total variation"
