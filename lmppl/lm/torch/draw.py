"""Drawing and weighing one token per row, beside the logits.

`Logits` wraps the raw next-token scores [B, V] of a batch and remembers the normalisers it has
computed, so that a draw, the mass of an ending and a second law cost one pass over the vocabulary
each, or none. Only three numbers per row go to the host.

The law is that of `lmppl.lm.base.TokenLaw`; `lmppl.lm.table.token_law` is its reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmppl.errors import BadArgument, LmpplError
from lmppl.lm.base import Drawn, TokenLaw
from lmppl.lm.torch.noise import block_masses, gumbel_max
from lmppl.lm.torch.transfer import as_index, to_device, to_host
from lmppl.random import WIDE, Argmax, Chance, GumbelMax
from lmppl.types import Bools, Floats, Keys

NEG_INF = float("-inf")
FIRST_LOOK = 256
"""How many of the largest entries nucleus sampling sorts at first."""


class Normaliser(NamedTuple):
    """What one exp pass over rows of log-weights leaves behind."""

    log_total: Tensor
    """log Σ_v exp(x_v) [B], float64 (float32 on MPS); -inf for a dead row."""
    masses: Tensor | None
    """The same over each block of ids [B, ceil(V / BLOCK)], when V > WIDE."""

    def of(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Normalised log-weights of one token per row."""
        picked = x.gather(1, tokens[:, None])[:, 0]
        return picked.to(self.log_total.dtype) - self.log_total

    def select(self, rows: Tensor) -> Normaliser:
        """The same for these rows."""
        masses = None if self.masses is None else self.masses.index_select(0, rows)
        return Normaliser(self.log_total.index_select(0, rows), masses)


def normalise(x: Tensor) -> Normaliser:
    """One pass: row maximum, then exp, summed by blocks and in total."""
    if x.shape[1] <= WIDE:
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        return Normaliser(x.to(wide).logsumexp(dim=1), None)
    masses = block_masses(x)
    return Normaliser(masses.logsumexp(dim=1), masses)


class Logits:
    """Next-token scores [B, V] in float32, `-inf` at ids that no token has."""

    def __init__(self, scores: Tensor) -> None:
        """Keep the scores; nothing is computed yet."""
        self.scores = scores
        self._plain: Normaliser | None = None

    def __len__(self) -> int:
        """B."""
        return len(self.scores)

    def select(self, rows: Tensor) -> Logits:
        """These rows, in this order."""
        out = Logits(self.scores.index_select(0, rows))
        out._plain = None if self._plain is None else self._plain.select(rows)
        return out

    @classmethod
    def stack(cls, parts: Sequence[Logits]) -> Logits:
        """The rows of several batches, in order."""
        return cls(torch.cat([p.scores for p in parts]))

    def plain(self) -> Normaliser:
        """The normaliser of the model's own law, computed once."""
        if self._plain is None:
            self._plain = normalise(self.scores)
        return self._plain

    def tempered(self, temperatures: Sequence[float]) -> tuple[Tensor, Normaliser]:
        """Scores divided by one temperature per row (or one for all), with their normaliser."""
        if all(t == 1.0 for t in temperatures):
            return self.scores, self.plain()
        if min(temperatures) <= 0.0:
            raise BadArgument(
                f"a temperature must be positive, got {min(temperatures)}",
                fix="for greedy decoding use the chance Argmax at temperature 1",
            )
        scale = 1.0 / np.asarray(temperatures, dtype=np.float64)
        x = self.scores * to_device(scale.astype(np.float32), self.scores.device)[:, None]
        return x, normalise(x)

    def log_probs(self) -> Floats:
        """log p of every token, on the host, float64."""
        x = self.scores.cpu().double()
        return np.asarray(torch.log_softmax(x, dim=1).numpy(), dtype=np.float64)

    def log_mass(self, sets: Sequence[Sequence[int]], temperatures: Sequence[float]) -> Floats:
        """log Σ_{v ∈ sets[b]} p(v)^(1/T) / Z of each row."""
        x, norm = self.tempered(temperatures)
        width = max(1, max(map(len, sets)))
        ids = np.zeros((len(sets), width), dtype=np.int64)
        pad = np.ones((len(sets), width), dtype=bool)
        for b, one in enumerate(sets):
            ids[b, : len(one)] = one
            pad[b, : len(one)] = False
        picked = x.gather(1, to_device(ids, x.device)).to(norm.log_total.dtype)
        picked = picked.masked_fill(to_device(pad, x.device), NEG_INF)
        return to_host(torch.logsumexp(picked, dim=1) - norm.log_total)

    def draw(
        self, keys: Keys, laws: Sequence[TokenLaw], mask: Bools | None, chance: Chance
    ) -> Drawn:
        """One token per row with its log p and log q; see `Rows.draw`."""
        blocked = None if mask is None else to_device(~mask, self.scores.device)
        kinds = _kinds(laws)
        target, target_norm = self.tempered([law.target_temperature for law in kinds])
        x = self._proposal(laws, kinds, blocked, target, target_norm)
        norm = target_norm if x is target else normalise(x)
        tokens = self._choose(x, norm, keys, chance)
        logq = norm.of(x, tokens)
        logp = logq if x is target else target_norm.of(target, tokens)
        dead = norm.log_total == NEG_INF
        tokens = tokens.to(logq.dtype).masked_fill(dead, -1.0)
        logs = torch.stack([logp, logq]).masked_fill(dead, NEG_INF)
        host = to_host(torch.cat([tokens[None], logs]))
        refuse_nan(host)
        return Drawn(host[0].astype(np.int64), host[1], host[2])

    def unrestricted(self, laws: Sequence[TokenLaw]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Unnormalised log p and log q [B, V], and log q without truncation where there is any."""
        kinds = _kinds(laws)
        target, norm = self.tempered([law.target_temperature for law in kinds])
        x = self._proposal(laws, kinds, None, target, norm)
        if not any(law.truncates for law in kinds):
            return target, x, None
        free = [law._replace(top_k=0, top_p=1.0) for law in laws]
        return target, x, self._proposal(free, _kinds(free), None, target, norm)

    # -- the proposal ------------------------------------------------------------------------

    def _proposal(
        self,
        laws: Sequence[TokenLaw],
        kinds: Sequence[TokenLaw],
        blocked: Tensor | None,
        target: Tensor,
        target_norm: Normaliser,
    ) -> Tensor:
        """Unnormalised log q [B, V]; the target tensor itself when both laws are the same.

        `kinds` are the laws of the rows, or the one law of all; `blocked` are the forbidden ids [B, V].
        """
        if all(law.temperature == law.target_temperature for law in kinds):
            warm = target
        else:
            warm, _ = self.tempered([law.temperature for law in kinds])
        x = warm
        cut: list[int] = []
        mixed: list[int] = []
        if any(_truncates(law, warm.shape[1]) for law in kinds):
            cut = [b for b, law in enumerate(laws) if _truncates(law, warm.shape[1])]
        if cut:
            x = truncate(warm, cut, [laws[b] for b in cut])
        if any(law.mixture > 0.0 for law in kinds):
            mixed = [b for b, law in enumerate(laws) if law.mixture > 0.0]
        if mixed:
            x = _mix(x, mixed, [laws[b].mixture for b in mixed], target, target_norm)
        if blocked is not None:
            inside = x.masked_fill(blocked, NEG_INF)
            if cut:  # a truncation that excludes every allowed id gives way
                lost = inside.amax(dim=1, keepdim=True) == NEG_INF
                inside = torch.where(lost, warm.masked_fill(blocked, NEG_INF), inside)
            x = inside
        return x

    def _choose(self, x: Tensor, norm: Normaliser, keys: Keys, chance: Chance) -> Tensor:
        if type(chance) is Argmax:
            return x.argmax(dim=1)
        if type(chance) is GumbelMax:
            return gumbel_max(keys, x, norm.masses)
        rows = to_host(x.to(norm.log_total.dtype) - norm.log_total[:, None])
        alive = np.flatnonzero((rows > NEG_INF).any(axis=1))
        tokens = np.zeros(len(rows), dtype=np.int64)
        if len(alive):
            tokens[alive] = chance.categorical(keys[alive], rows[alive])
        return to_device(tokens, x.device)


def _kinds(laws: Sequence[TokenLaw]) -> Sequence[TokenLaw]:
    """The laws of the rows, or the one law of all."""
    # compared by identity first: one look for all
    return laws[:1] if list(laws).count(laws[0]) == len(laws) else laws


def _truncates(law: TokenLaw, width: int) -> bool:
    return law.top_p < 1.0 or 0 < law.top_k < width


def truncate(x: Tensor, rows: Sequence[int], laws: Sequence[TokenLaw]) -> Tensor:
    """Top-k, then top-p of these rows; the others pass through.

    Both restrictions keep the n largest entries, ties by id, for some n of the row; n is counted
    on a sorted head of the row, which doubles until it holds the nucleus.
    """
    index = as_index(np.array(rows), x.device)
    part = x.index_select(0, index)
    width = part.shape[1]
    k = as_index(
        np.array([law.top_k if 0 < law.top_k < width else width for law in laws]), x.device
    )
    p = to_device(np.array([law.top_p for law in laws], dtype=np.float32), x.device)
    nucleus = any(law.top_p < 1.0 for law in laws)
    largest_k = max((law.top_k for law in laws if 0 < law.top_k < width), default=1)
    all_cut = all(0 < law.top_k < width for law in laws)
    head = min(width, largest_k if all_cut else max(largest_k, FIRST_LOOK))
    total = torch.logsumexp(part, dim=1)
    while True:
        values = part.topk(head, dim=1).values
        count = k.clamp(max=head)
        if not nucleus:
            break
        place = torch.arange(head, device=x.device)
        inside = values.masked_fill(place >= k[:, None], NEG_INF)
        scale = torch.where(k < width, torch.logsumexp(inside, dim=1), total)
        mass = (inside - scale[:, None]).exp().cumsum(dim=1)
        short = (mass < p[:, None]).sum(dim=1)  # entries before the one that reaches p
        enough = (short < head) | (k <= head) | (p >= 1.0)
        if head == width or bool(enough.all()):
            count = torch.where(p < 1.0, torch.minimum(short + 1, k), k).clamp(max=width)
            break
        head = min(width, head * 8)
    kept = _keep_largest(part, values, count)
    return x.index_copy(0, index, kept)


def _keep_largest(part: Tensor, values: Tensor, count: Tensor) -> Tensor:
    """`part` with `-inf` outside the `count` largest entries of each row, ties to smaller ids."""
    edge = values.gather(1, (count - 1).clamp(min=0, max=values.shape[1] - 1)[:, None])
    everything = (count >= part.shape[1])[:, None]
    edge = torch.where(everything, NEG_INF, edge)
    keep = part >= edge
    if part.device.type != "cpu" or bool((keep.sum(dim=1) > count).any()):
        above = part > edge
        tie = keep & ~above
        room = count[:, None] - above.sum(dim=1, keepdim=True)
        keep = above | (tie & (tie.cumsum(dim=1) <= room)) | everything
    return part.masked_fill(~keep, NEG_INF)


def _mix(
    x: Tensor, rows: Sequence[int], weights: Sequence[float], target: Tensor, norm: Normaliser
) -> Tensor:
    """(1 - ε) q + ε p for these rows, the others unchanged."""
    index = as_index(np.array(rows), x.device)
    ours = torch.log_softmax(x.index_select(0, index), dim=1)
    share = np.asarray(weights)[:, None]
    log_total = norm.log_total.index_select(0, index)[:, None]
    p = (target.index_select(0, index).to(log_total.dtype) - log_total).to(ours.dtype)
    with np.errstate(divide="ignore"):  # ε may be 1
        logs = np.log(np.stack([1.0 - share, share])).astype(np.float32)
    rest, part = to_device(logs, x.device)
    mixed = torch.logaddexp(ours + rest, p + part)
    return x.index_copy(0, index, mixed)


def refuse_nan(drawn: Floats) -> None:
    """Numbers [n, B] of what was drawn from each row.

    Raises:
        LmpplError: one of them is nan.
    """
    if np.isnan(drawn).any():
        raise LmpplError(
            "the model's next-token scores contain nan",
            where=f"row {int(np.isnan(drawn).any(axis=0).argmax())} of the batch",
            fix="load the model with dtype=torch.float32; half precision may have overflowed",
        )
