"""`TokenWeights` beside the logits: rows of log-weights on the device.

A row wider than `WIDE` is drawn by its blocks (`lmppl.random`), so the log-mass of every block is
kept; a token that is taken out costs the sum of one block. Each block is summed from its own maximum:
what is left when the likeliest tokens are gone does not underflow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lmppl.lm.base import TokenLaw
from lmppl.lm.token_weights import LawWeights, TokenWeights
from lmppl.lm.torch.draw import Logits, refuse_nan
from lmppl.lm.torch.noise import gumbel_max
from lmppl.lm.torch.transfer import as_index, to_device, to_host
from lmppl.random import BLOCK, WIDE, Argmax, Chance, GumbelMax
from lmppl.types import Floats, Ints, Keys
from lmppl.weights import NEG_INF


class TorchWeights(TokenWeights):
    """Rows in a tensor, up to one constant each.

    Args:
        x: log-weights [B, V] before the constant is subtracted.
        shift: the constant of each row, float64 (float32 on MPS); None normalises the rows.
        masses: log Σ exp x over each block, where it is known.
    """

    @torch.inference_mode()
    def __init__(
        self, x: Tensor, shift: Tensor | None = None, masses: Tensor | None = None
    ) -> None:
        """Sum the blocks."""
        self.x = x
        self.width = x.shape[1]
        self.wide = torch.float32 if x.device.type == "mps" else torch.float64
        self.masses = self._summed() if masses is None else masses
        self.shift = self.masses.logsumexp(dim=1) if shift is None else shift

    def _summed(self) -> Tensor:
        if self.width <= WIDE:  # one block
            return self.x.to(self.wide).logsumexp(dim=1, keepdim=True)
        whole = self.width // BLOCK * BLOCK
        masses = self.x[:, :whole].view(len(self.x), -1, BLOCK).logsumexp(dim=2)
        if whole < self.width:
            rest = self.x[:, whole:].logsumexp(dim=1, keepdim=True)
            masses = torch.cat([masses, rest], dim=1)
        return masses.to(self.wide)

    def _index(self, rows: Ints) -> Tensor:
        return as_index(rows, self.x.device)

    @torch.inference_mode()
    def select(self, rows: Ints) -> TorchWeights:
        """See the base class."""
        index = self._index(rows)
        x, shift, masses = (t.index_select(0, index) for t in (self.x, self.shift, self.masses))
        return TorchWeights(x, shift, masses)

    @torch.inference_mode()
    def at(self, rows: Ints, tokens: Ints) -> Floats:
        """See the base class."""
        return to_host(self._at(self._index(rows), self._index(tokens)))

    def _at(self, rows: Tensor, tokens: Tensor) -> Tensor:
        return self.x[rows, tokens].to(self.wide) - self.shift[rows]

    @torch.inference_mode()
    def log_mass(self, rows: Ints) -> Floats:
        """See the base class."""
        index = self._index(rows)
        return to_host(self.masses.index_select(0, index).logsumexp(dim=1) - self.shift[index])

    @torch.inference_mode()
    def largest(self, k: int) -> Ints:
        """See the base class."""
        ids = self.x.topk(min(k, self.width), dim=1).indices.sort(dim=1).values
        return np.asarray(ids.cpu().numpy(), dtype=np.int64)

    @torch.inference_mode()
    def draw(self, rows: Ints, keys: Keys, chance: Chance) -> tuple[Ints, Floats, Floats]:
        """See the base class."""
        index = self._index(rows)
        masses = self.masses.index_select(0, index)
        if type(chance) is Argmax:
            tokens = self.x.index_select(0, index).argmax(dim=1)
        elif type(chance) is GumbelMax:
            tokens = gumbel_max(keys, self.x, masses, index)
        else:
            tokens = self._asked(index, keys, chance)
        logw = self._at(index, tokens)
        dead = masses.amax(dim=1) == NEG_INF
        tokens, logw = tokens.masked_fill(dead, -1), logw.masked_fill(dead, NEG_INF)
        mass = masses.logsumexp(dim=1) - self.shift[index]
        host = to_host(torch.stack([tokens.to(logw.dtype), logw, mass]))
        refuse_nan(host)
        return host[0].astype(np.int64), host[1], host[2]

    def _asked(self, index: Tensor, keys: Keys, chance: Chance) -> Tensor:
        """Any other chance is asked on the host, with the rows."""
        part = to_host(self.x.index_select(0, index).to(self.wide) - self.shift[index][:, None])
        tokens = np.zeros(len(part), dtype=np.int64)
        alive = np.flatnonzero((part > NEG_INF).any(axis=1))
        if len(alive):
            tokens[alive] = chance.categorical(keys[alive], part[alive])
        return self._index(tokens)

    @torch.inference_mode()
    def take_out(self, rows: Ints, tokens: Ints) -> None:
        """See the base class."""
        index, ids = self._index(rows), self._index(tokens)
        self.x[index, ids] = NEG_INF
        if self.width <= WIDE:
            self.masses[index, 0] = self.x[index].to(self.wide).logsumexp(dim=1)
            return
        block = ids // BLOCK
        inside = block[:, None] * BLOCK + torch.arange(BLOCK, device=ids.device)
        part = self.x[index[:, None], inside.clamp(max=self.width - 1)]
        part = part.masked_fill(inside >= self.width, NEG_INF)
        self.masses[index, block] = part.logsumexp(dim=1).to(self.wide)

    @torch.inference_mode()
    def tilted(self, rows: Ints, weights: Floats, which: Ints) -> TorchWeights:
        """See the base class."""
        index = self._index(rows)
        tilt = to_device(weights.astype(np.float32, copy=False), self.x.device)
        x = self.x.index_select(0, index) + tilt.index_select(0, self._index(which))
        return TorchWeights(x, self.shift[index])

    @torch.inference_mode()
    def outside(self, rows: Ints, other: TokenWeights) -> TorchWeights:
        """See the base class."""
        if not isinstance(other, TorchWeights):
            raise TypeError(f"rows of a device beside {type(other).__name__}")
        index = self._index(rows)
        inside = other.x.index_select(0, index) > NEG_INF
        return TorchWeights(
            self.x.index_select(0, index).masked_fill(inside, NEG_INF), self.shift[index]
        )


@torch.inference_mode()
def law_weights(logits: Logits, laws: Sequence[TokenLaw]) -> LawWeights:
    """The rows of one law per string, from next-token scores."""
    p, q, free = logits.unrestricted(laws)
    target = TorchWeights(p)
    proposal = target if q is p else TorchWeights(q)
    return LawWeights(target, proposal, None if free is None else TorchWeights(free))
