"""`TableLM`: a tiny exact language model, the ground truth of tests and documentation.

The next-token law is a row of a table, chosen by the last `order` tokens (1 or 2). A table may hold
zero probabilities, tokens that are half a UTF-8 character, two tokens with the same bytes, and a
token that equals two others joined; everything about it can be enumerated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from lmppl.errors import BadArgument, ModelNotFound, UnsupportedValue, excerpt
from lmppl.lm.base import Capabilities, Drawn, LanguageModel, Rows, TokenLaw
from lmppl.lm.token_law import log_mass, log_softmax, tempered, token_law
from lmppl.random import Chance
from lmppl.types import Bools, Floats, Ids, Ints, Keys
from lmppl.weights import NEG_INF

__all__ = ["EOS", "TableLM", "TableRows", "log_softmax", "tempered", "token_law"]

EOS = "<eos>"


class TableLM(LanguageModel):
    """A language model given by a table.

    Args:
        tokens: the bytes or text of each id; the entry `"<eos>"` is the end-of-text token.
        table: for each history, probabilities over the ids [V]. A history is a tuple of the last
            `order` ids; shorter histories stand at the start of a text. A missing history falls
            back to its own last tokens, at last to the row of `()`.
        order: how many tokens the next one depends on, 1 or 2.
        name: what the ledger calls it.

    The prompt counts as history too: a context that ends in token 3 uses the row of `(…, 3)`.

    >>> lm = TableLM(["a", "b", "<eos>"], {(): [0.5, 0.25, 0.25]})
    >>> lm.enumerate(max_tokens=1)["a"]
    0.5
    """

    def __init__(
        self,
        tokens: Sequence[str | bytes],
        table: Mapping[tuple[int, ...], Sequence[float]],
        *,
        order: int = 1,
        name: str = "table",
    ) -> None:
        """Check the table and take logs."""
        words = [t.encode() if isinstance(t, str) else bytes(t) for t in tokens]
        eos = [i for i, t in enumerate(tokens) if t == EOS]
        if order not in (1, 2):
            raise BadArgument(f"order must be 1 or 2, got {order!r}")
        if () not in table:
            raise BadArgument(
                "the table has no row for the empty history ()", fix="add (): [p, ...]"
            )
        for i in eos:
            words[i] = b""
        super().__init__(
            name=name,
            vocab_size=len(words),
            max_context=1 << 20,
            eos_ids=frozenset(eos),
            capabilities=Capabilities(empty_context=True),
        )
        self.words = words
        self._surfaces = [w.decode("utf-8", "replace") for w in words]
        self.order = order
        self._by_bytes: dict[bytes, int] = {}
        for i, word in enumerate(words):
            if word:
                self._by_bytes.setdefault(word, i)
        self._longest = max((len(w) for w in words), default=0)
        self._specials = frozenset(i for i, w in enumerate(words) if not w)
        histories = [h for n in range(order + 1) for h in product(range(len(words)), repeat=n)]
        self._row_of = {h: r for r, h in enumerate(histories)}
        strange = [h for h in table if h not in self._row_of]
        if strange:
            raise BadArgument(
                f"the table has rows for {len(strange)} histories that cannot occur",
                value=excerpt(strange[:5]),
                fix=f"a history is a tuple of at most {order} ids below {len(words)}",
            )
        self.table = np.empty((len(histories), len(words)))
        """log-probabilities [histories, V]."""
        for history, row in self._row_of.items():
            key = history
            while key not in table:
                key = key[1:]
            p = np.asarray(table[key], dtype=np.float64)
            if p.shape != (len(words),) or not (p >= 0).all() or not abs(p.sum() - 1) < 1e-9:
                raise BadArgument(
                    f"row {key} of the table is no distribution over {len(words)} tokens",
                    value=excerpt(p.tolist()),
                    fix="give one non-negative number per token, with sum 1",
                )
            with np.errstate(divide="ignore"):
                self.table[row] = np.log(p / p.sum())
        # the row after appending token v to the history of row r
        step = np.empty((len(histories), len(words)), dtype=np.int64)
        for history, row in self._row_of.items():
            for v in range(len(words)):
                step[row, v] = self._row_of[(*history, v)[-order:]]
        self._step = step

    @classmethod
    def random(
        cls,
        tokens: Sequence[str | bytes],
        *,
        seed: int = 0,
        order: int = 1,
        zeros: float = 0.0,
        name: str = "table",
    ) -> TableLM:
        """A table with Dirichlet(1) rows; each entry is zero with probability `zeros`."""
        rng = np.random.default_rng(seed)
        table: dict[tuple[int, ...], list[float]] = {}
        for n in range(order + 1):
            for history in product(range(len(tokens)), repeat=n):
                p = rng.dirichlet(np.ones(len(tokens)))
                drop = rng.random(len(tokens)) < zeros
                if drop.all():
                    drop[:] = False
                p = np.where(drop, 0.0, p)
                table[history] = (p / p.sum()).tolist()
        return cls(tokens, table, order=order, name=name)

    @classmethod
    def from_json(cls, path: str | Path) -> TableLM:
        """Read `{"tokens": [...], "order": 1, "table": {"": [...], "0": [...], "0 1": [...]}}`."""
        try:
            data: Any = json.loads(Path(path).read_text("utf-8"))
            table = {tuple(map(int, k.split())): row for k, row in data["table"].items()}
            return cls(
                data["tokens"], table, order=data.get("order", 1), name=data.get("name", "table")
            )
        except FileNotFoundError:
            raise ModelNotFound(
                f"table:{path}", looked_for=[str(path)], fix="give the path of a JSON file"
            ) from None
        except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, BadArgument):
                error.add_where(str(path))
                raise
            raise ModelNotFound(
                f"table:{path}",
                looked_for=[f"a table in {path}: {type(error).__name__}: {error}"],
                fix='write {"tokens": [...], "order": 1, "table": {"": [p, ...], "0": [p, ...]}}',
            ) from None

    # -- tokenizer ---------------------------------------------------------------------------

    @property
    def special_ids(self) -> frozenset[int]:
        """The end-of-text token."""
        return self._specials

    @property
    def fingerprint(self) -> str:
        """Name and a hash of tokens and table."""
        seen = hashlib.blake2b(digest_size=6)
        for word in self.words:
            seen.update(len(word).to_bytes(8, "little") + word)
        seen.update(np.ascontiguousarray(self.table).tobytes())
        return f"{self.name}:{seen.hexdigest()}"

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token; empty for the end-of-text token."""
        return self.words[token]

    def encode(self, text: str) -> Ids:
        """Greedy longest match, the lower id among tokens with equal bytes.

        Characters that no token spells are skipped: prompts of a toy model may be written in
        plain words, of which it reads what it can.
        """
        raw = text.encode("utf-8", "surrogatepass")
        out, at = [], 0
        while at < len(raw):
            for n in range(min(self._longest, len(raw) - at), 0, -1):
                token = self._by_bytes.get(raw[at : at + n])
                if token is not None:
                    out.append(token)
                    at += n
                    break
            else:
                at += 1
        return tuple(out)

    def spell(self, text: str) -> Ids:
        """As `encode`, but every character must be there: a skipped one would change the value."""
        ids = self.encode(text)
        raw, spelled = text.encode("utf-8", "surrogatepass"), b"".join(self.words[i] for i in ids)
        if spelled != raw:
            raise UnsupportedValue(
                f"no tokens of {self.name!r} spell this text",
                value=excerpt(text),
                why="a toy model reads what it can of a prompt, but scores a value only as a whole",
                fix=f"its tokens are {excerpt(self.words, 80)}",
            )
        return ids

    def settled(self, text: str) -> int:
        """A longest match is final when no longer token would have reached beyond the text."""
        at, end = 0, len(text.encode("utf-8", "surrogatepass"))
        for token in self.encode(text):
            if at + self._longest > end:
                break
            at += len(self.words[token])
        return at

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; bytes that are not UTF-8 show as U+FFFD."""
        if len(ids) == 1:
            return self._surfaces[ids[0]]
        words = self.words
        return b"".join([words[i] for i in ids]).decode("utf-8", "replace")

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> Ids:
        """The contents one after the other: a toy model has no roles."""
        return tuple(i for _, content in messages for i in self.encode(content))

    # -- model -------------------------------------------------------------------------------

    def open(self, contexts: Sequence[Ids]) -> TableRows:
        """Find each context's row of the table."""
        order = self.order
        rows = np.array([self._row_of[tuple(c[-order:])] for c in contexts], dtype=np.int64)
        self.usage.computed_tokens += sum(map(len, contexts))
        return TableRows(self, rows)

    def score(
        self,
        contexts: Sequence[Ids],
        continuations: Sequence[Ids],
        ends: Sequence[Sequence[int] | None],
        temperatures: Sequence[float],
    ) -> list[Floats]:
        """Read the table: one gather for the whole batch."""
        out = []
        for context, tokens, end, temperature in zip(
            contexts, continuations, ends, temperatures, strict=True
        ):
            row = self._row_of[tuple(context[-self.order :])]
            logps = []
            for v in tokens:
                logps.append(float(tempered(self.table[row], temperature)[v]))
                row = int(self._step[row, v])
            if end is not None:
                logps.append(log_mass(tempered(self.table[row], temperature), end))
            out.append(np.array(logps, dtype=np.float64))
        self.usage.passes += 1
        self.usage.computed_tokens += sum(map(len, contexts)) + sum(map(len, continuations))
        return out

    def enumerate(self, context: Ids = (), *, max_tokens: int) -> dict[str, float]:
        """P(text) of every text of at most `max_tokens` tokens, cut there (limit="prefix").

        Summed over tokenisations; the probabilities add up to 1.
        """
        out: dict[str, float] = {}
        stack: list[tuple[tuple[int, ...], int, float]] = [
            ((), self._row_of[tuple(context[-self.order :])], 0.0)
        ]
        while stack:
            ids, row, logp = stack.pop()
            if len(ids) == max_tokens or (ids and ids[-1] in self.eos_ids):
                text = self.decode(ids)
                out[text] = out.get(text, 0.0) + float(np.exp(logp))
                continue
            for v in np.flatnonzero(self.table[row] > NEG_INF).tolist():
                stack.append(((*ids, v), int(self._step[row, v]), logp + float(self.table[row, v])))
        return out


class TableRows(Rows):
    """Rows of a table: the state of a sequence is one integer."""

    def __init__(self, lm: TableLM, rows: Ints) -> None:
        """Start at these rows [B]."""
        self.lm = lm
        self.rows = rows

    def draw(
        self, keys: Keys, laws: Sequence[TokenLaw], mask: Bools | None, chance: Chance
    ) -> Drawn:
        """Draw on the host, by the equations of `TokenLaw`."""
        self.lm.usage.passes += 1
        log_model = self.lm.table[self.rows]
        first = laws[0]
        if all(law is first or law == first for law in laws):
            logp, logq = token_law(log_model, first, mask)
        else:
            logp, logq = np.empty_like(log_model), np.empty_like(log_model)
            for i, law in enumerate(laws):
                part = slice(i, i + 1)
                logp[part], logq[part] = token_law(
                    log_model[part], law, None if mask is None else mask[part]
                )
        index = np.arange(len(logq))
        dead = ~(logq > NEG_INF).any(axis=1)
        if dead.any():
            tokens = np.full(len(logq), -1, dtype=np.int64)
            alive = np.flatnonzero(~dead)
            if len(alive):
                tokens[alive] = chance.categorical(keys[alive], logq[alive])
            return Drawn(
                tokens,
                np.where(dead, NEG_INF, logp[index, tokens]),
                np.where(dead, NEG_INF, logq[index, tokens]),
            )
        tokens = chance.categorical(keys, logq)
        return Drawn(tokens, logp[index, tokens], logq[index, tokens])

    def log_mass(self, sets: Sequence[Sequence[int]], temperatures: Sequence[float]) -> Floats:
        """Log Σ over each set."""
        table = self.lm.table
        return np.array(
            [
                log_mass(tempered(table[row], t), ids)
                for row, ids, t in zip(self.rows.tolist(), sets, temperatures, strict=True)
            ]
        )

    def push(self, tokens: Ints) -> None:
        """One gather."""
        self.lm.usage.computed_tokens += len(tokens)
        self.rows = self.lm._step[self.rows, tokens]

    def select(self, rows: Ints) -> None:
        """One gather."""
        self.rows = self.rows[rows]

    def log_probs(self) -> Floats:
        """The rows [B, V]."""
        return self.lm.table[self.rows]

    def close(self) -> None:
        """Nothing to give back."""
