"""`Choice`: a language model's law over a list of options."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmppl.chat import Message, as_messages
from lmppl.distributions import Distribution
from lmppl.errors import BadArgument, ContextOverflow, UnsupportedValue, excerpt, items_of
from lmppl.jobs import Draw, Env, Score, Step
from lmppl.lm.base import LanguageModel
from lmppl.lm.endings import Ending, canonical_endings
from lmppl.lm.generate import StringLaw
from lmppl.lm.needs import require
from lmppl.random import draw, fold, hash_text
from lmppl.string_options import as_stops
from lmppl.strings import named
from lmppl.text import Text
from lmppl.types import Floats, Key
from lmppl.weights import NEG_INF, log_sum_exp

MANY = 1 << 20
"""More tokens than any option has."""


class Choice(Distribution):
    """The model's law conditioned on a list of options.

    P(k) = Σ_{s ∈ surfaces(k)} p(s | prompt) / Σ_j Σ_{s ∈ surfaces(j)} p(s | prompt)

    Args:
        prompt: the text before, or chat messages.
        options: texts; or a mapping from a value to its surface forms, over which it is summed.
        end: whether each option must also end there (stop or end-of-text). Write `True` when one
            option is the beginning of another.
        stop: terminators for `end`.
        lm: the model or its name.

    The value is the option (the key of the mapping), drawn exactly: its weight is 0.
    """

    kind = "Choice"
    __slots__ = ("_lm", "end", "messages", "prompt", "stop", "surfaces", "values")

    def __init__(
        self,
        prompt: str | Sequence[Message],
        options: Sequence[str] | Mapping[Any, str | Sequence[str]],
        *,
        end: bool = False,
        stop: str | Sequence[str] | None = None,
        lm: LanguageModel | str | None = None,
    ) -> None:
        """Check the options."""
        self.prompt: str | None = prompt if isinstance(prompt, str) else None
        self.messages = None if isinstance(prompt, str) else as_messages(prompt)
        fix = 'write Choice(prompt, [" yes", " no"]), or {"yes": [" yes", " Yes"], "no": " no"}'
        self.values: tuple[Any, ...] = tuple(
            items_of(options, "Choice needs a non-empty list of options", fix)
        )
        if isinstance(options, Mapping):
            self.surfaces = tuple(
                (s,) if isinstance(s, str) else tuple(items_of(s, "surface forms are texts", fix))
                for s in options.values()
            )
        else:
            self.surfaces = tuple((s,) for s in self.values)
        if not self.values:
            raise BadArgument("Choice needs a non-empty list of options", fix=fix)
        flat = [s for group in self.surfaces for s in group]
        if any(not isinstance(s, str) or not s for s in flat) or len(set(flat)) < len(flat):
            raise BadArgument(
                "options must be different, non-empty texts",
                value=excerpt(options),
                fix=fix,
            )
        self.end = end
        stops = as_stops(stop)
        self.stop = () if stops is None else (stops,) if isinstance(stops, str) else stops
        if any(not isinstance(s, str) or not s for s in self.stop):
            raise BadArgument(
                "stop must be non-empty text", value=excerpt(stop), fix='write stop="\\n"'
            )
        self._lm = lm

    def bound(self, models: Mapping[str, LanguageModel]) -> Choice:
        """With the model that it names."""
        new = copy.copy(self)
        new._lm = named(self._lm, models)
        return new

    def _log_probs(self, env: Env, go_on: Any) -> Score:
        lm = env.model(self._lm)
        require(lm, "scores_text", "Choice", "use a model that reports log-probabilities")
        context = (
            lm.context(self.prompt)
            if self.prompt is not None
            else lm.encode_chat(self.messages or ())
        )
        rows: list[Ending] = []
        owner: list[int] = []
        law = StringLaw(max_tokens=MANY, stop=self.stop)
        for k, group in enumerate(self.surfaces):
            for surface in group:
                found = canonical_endings(lm, law, surface, self.end)
                rows += found
                owner += [k] * len(found)
        if not self.end:
            _check_disjoint(lm, rows)
        longest = max(len(e.ids) for e in rows)
        if len(context) + longest > lm.max_context:
            raise ContextOverflow(
                len(context) + longest, lm.max_context, longest=str(self.prompt or self.messages)
            )

        def scored(found: list[Floats]) -> Any:
            parts: list[list[float]] = [[] for _ in self.values]
            for k, row in zip(owner, found, strict=True):
                parts[k].append(float(row.sum()))
            lw = np.array([log_sum_exp(part) for part in parts])
            return go_on(lw - log_sum_exp(lw) if (lw > NEG_INF).any() else lw)

        n, texts, ends = len(rows), [e.ids for e in rows], [e.ends for e in rows]
        lm.check_score(texts, ends, [1.0] * n)
        return Score(lm, [context] * n, texts, ends, [1.0] * n, scored)

    def draw(self, key: Key, env: Env) -> Step[Draw]:
        """Score all options in one batch, then draw exactly."""

        def pick(logp: Floats) -> Draw:
            if not (logp > NEG_INF).any():
                return Draw(self.values[0], NEG_INF, 0.0)
            k = draw(env.chance, key, logp)
            return Draw(self._value(k), float(logp[k]), float(logp[k]))

        return self._log_probs(env, pick)

    def _value(self, k: int) -> Any:
        value = self.values[k]
        return Text(value) if isinstance(value, str) and not isinstance(value, Text) else value

    def score(self, value: Any, env: Env) -> Step[float]:
        """log P of one of the options."""
        if value not in self.values:
            raise UnsupportedValue(
                "the value is none of the options",
                value=excerpt(value),
                fix=f"the options are {excerpt(self.values)}",
            )
        k = self.values.index(value)
        return self._log_probs(env, lambda logp: float(logp[k]))

    def support(self, env: Env) -> Step[list[tuple[Any, float]]]:
        """The options of positive probability."""
        return self._log_probs(
            env,
            lambda logp: [(self._value(k), float(lp)) for k, lp in enumerate(logp) if lp > NEG_INF],
        )

    @property
    def fingerprint(self) -> int:
        """Of prompt and options."""
        before = self.prompt if self.prompt is not None else repr(self.messages)
        return fold(
            hash_text(before), hash_text(repr((self.values, self.surfaces, self.end, self.stop)))
        )

    def __repr__(self) -> str:
        return (
            f"Choice({excerpt(self.prompt or self.messages, 40)}, {excerpt(list(self.values), 60)})"
        )


def _check_disjoint(lm: LanguageModel, rows: Sequence[Ending]) -> None:
    """No option's tokens begin another's: their probabilities would count the same texts twice."""
    ordered = sorted(e.ids for e in rows)
    for shorter, longer in zip(ordered, ordered[1:], strict=False):
        if longer[: len(shorter)] == shorter:
            raise BadArgument(
                f"option {lm.decode(shorter)!r} is the beginning of option {lm.decode(longer)!r}",
                why="every text that begins with the longer one counts for both",
                fix='write Choice(..., end=True, stop="\\n"), so that each option must also end there',
            )
