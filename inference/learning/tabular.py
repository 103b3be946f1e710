"""`TabularLM`: a table that learns by counting.

    p(v | h) = (c(h, v) + α m(v | h)) / (c(h) + α)

c are weighted counts of token v after history h, α the strength of a Dirichlet prior and m its
mean: uniform, or the row of the shorter history (MacKay and Peto, 1995). With α = 0 it is the
maximum of the likelihood, so EM with an exact E-step raises the evidence in every round (Dempster,
Laird and Rubin, 1977); a row without counts stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from lmppl.errors import BadArgument, excerpt
from lmppl.inference.learning.texts import WeightedText
from lmppl.lm.table import TableLM
from lmppl.types import Floats, Ids
from lmppl.weights import NEG_INF, log_sum_exp

PRIORS = ("uniform", "shorter")


class TabularLM(TableLM):
    """A `TableLM` that can be fitted to weighted texts.

    Args:
        tokens: the bytes or text of each id; `"<eos>"` ends a text.
        table: where it starts, as in `TableLM`; uniform when left out.
        order: how many tokens the next one depends on, 1 or 2.
        smoothing: α.
        prior: m, "uniform" or "shorter".
        name: what the ledger calls it.

    >>> lm = TabularLM(["a", "b", "<eos>"], smoothing=3.0).fit(["ab", "ab"])
    >>> [round(p, 2) for p in lm.row("a")]
    [0.2, 0.6, 0.2]
    """

    def __init__(
        self,
        tokens: Sequence[str | bytes],
        table: Mapping[tuple[int, ...], Sequence[float]] | None = None,
        *,
        order: int = 1,
        smoothing: float = 0.0,
        prior: str = "uniform",
        name: str = "tabular",
    ) -> None:
        """Check the arguments."""
        if not (math.isfinite(smoothing) and smoothing >= 0):
            raise BadArgument(f"smoothing must be a number ≥ 0, got {smoothing!r}")
        if prior not in PRIORS:
            raise BadArgument(f'prior must be "uniform" or "shorter", got {prior!r}')
        uniform = [1.0 / len(tokens)] * len(tokens)
        super().__init__(tokens, table or {(): uniform}, order=order, name=name)
        self.tokens = list(tokens)
        self.smoothing = float(smoothing)
        self.prior = prior

    @classmethod
    def random(cls, tokens: Sequence[str | bytes], **options: Any) -> TabularLM:
        """One with Dirichlet(1) rows, as `TableLM.random`: EM does not leave a uniform table."""
        more = {k: options.pop(k) for k in ("smoothing", "prior") if k in options}
        drawn = TableLM.random(tokens, **{"name": "tabular", **options})
        rows = np.exp(drawn.table)
        table = {h: rows[r].tolist() for h, r in drawn._row_of.items()}
        return cls(tokens, table, order=drawn.order, name=drawn.name, **more)

    def row(self, history: str = "") -> list[float]:
        """P(next token) after a text."""
        ids = self.spell(history)
        found: list[float] = np.exp(self.table[self._row_of[ids[-self.order :]]]).tolist()
        return found

    def counts(self, texts: Iterable[WeightedText | str | tuple[str, float]]) -> Floats:
        """Weighted counts [histories, V] of each token after each history.

        A completion that means several token sequences is shared among them by their present
        probabilities, and so is an unknown terminator: the E-step over what was not seen.
        """
        found = np.zeros_like(self.table)
        for item in texts:
            text = as_text(item)
            if not (math.isfinite(text.weight) and text.weight >= 0):
                raise BadArgument(
                    f"a weight must be a number ≥ 0, got {text.weight!r}",
                    value=excerpt(text.completion),
                )
            start = self._row_of[tuple(text.context(self)[-self.order :])]
            sequences = text.endings(self)
            if not sequences:
                raise BadArgument(
                    f"no token sequence of {self.name!r} is this completion under its law",
                    value=excerpt(text.completion),
                    where=f"site {text.site!r}" if text.site else None,
                )
            paths = [self._path(start, e.ids) for e in sequences]
            logps = [
                sum(float(self.table[r, v]) for r, v in path)
                + (self._mass(end, e.ends) if e.ends is not None else 0.0)
                for e, (path, end) in zip(sequences, paths, strict=True)
            ]
            total = log_sum_exp(logps)
            for e, (path, end), logp in zip(sequences, paths, logps, strict=True):
                share = 1 / len(logps) if total == NEG_INF else math.exp(logp - total)
                for r, v in path:
                    found[r, v] += text.weight * share
                if e.ends is not None:
                    ends = list(e.ends)
                    p = np.exp(self.table[end, ends])
                    p = p / p.sum() if p.sum() > 0 else np.full(len(ends), 1 / len(ends))
                    np.add.at(found, (end, ends), text.weight * share * p)
        return found

    def fit(self, texts: Iterable[WeightedText | str | tuple[str, float]]) -> TabularLM:
        """The table that these texts make most probable, under the prior.

        Args:
            texts: of `Examples.texts()`, or plain texts, or (text, weight).
        """
        counts = self.counts(texts)
        uniform = np.full(self.vocab_size, 1.0 / self.vocab_size)
        table: dict[tuple[int, ...], list[float]] = {}
        pooled = self._pooled(counts) if self.prior == "shorter" else counts
        for history, r in self._row_of.items():
            c = pooled[r] if len(history) < self.order else counts[r]
            mean = uniform
            if self.prior == "shorter" and history:
                mean = np.array(table[history[1:]])
            total = c.sum() + self.smoothing
            p = (c + self.smoothing * mean) / total if total > 0 else np.exp(self.table[r])
            table[history] = (p / p.sum()).tolist()
        return TabularLM(
            self.tokens, table, order=self.order, smoothing=self.smoothing, prior=self.prior,
            name=self.name,
        )  # fmt: skip

    @property
    def log_prior(self) -> float:
        """Σ α m(v) log p(v | h): what EM with smoothing maximises beside the evidence.

        Only a uniform prior is a fixed one; for "shorter" it is 0.
        """
        if self.smoothing == 0 or self.prior != "uniform":
            return 0.0
        return float(self.smoothing / self.vocab_size * self.table.sum())

    # -- inside ------------------------------------------------------------------------------

    def _pooled(self, counts: Floats) -> Floats:
        """Counts of shorter histories, with those of all longer ones that end like them."""
        pooled = counts.copy()
        for n in range(self.order, 0, -1):
            for history in product(range(self.vocab_size), repeat=n):
                pooled[self._row_of[history[1:]]] += pooled[self._row_of[history]]
        return pooled

    def _path(self, row: int, ids: Ids) -> tuple[list[tuple[int, int]], int]:
        path = []
        for v in ids:
            path.append((row, v))
            row = int(self._step[row, v])
        return path, row

    def _mass(self, row: int, ends: Sequence[int]) -> float:
        return log_sum_exp([float(self.table[row, v]) for v in ends])


def as_text(item: WeightedText | str | tuple[str, float]) -> WeightedText:
    """A plain text, with its end, as a weighted one."""
    if isinstance(item, WeightedText):
        return item
    if isinstance(item, str):
        return WeightedText("", item)
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
        return WeightedText("", item[0], float(item[1]))
    raise BadArgument(
        "a text to learn from is a WeightedText, a str, or (str, weight)", value=excerpt(item)
    )
