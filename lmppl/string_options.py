"""The checked arguments of a string distribution, made once for all equal calls."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

from lmppl.errors import BadArgument, excerpt
from lmppl.jobs import Draw
from lmppl.lm.base import LanguageModel, TokenLaw
from lmppl.lm.generate import Limit, StringLaw, StringState, text_of
from lmppl.random import hash_text
from lmppl.text import Text

Target = Literal["model", "proposal"]


class StringOptions:
    """Checked arguments of a string distribution, shared by all equal calls."""

    __slots__ = ("end", "fingerprint", "finishers", "law", "regex", "target")

    def __init__(self, law: StringLaw, regex: str | None, target: Target, end: bool) -> None:
        self.law = law
        self.regex = regex
        self.target = target
        self.end = end
        self.finishers: dict[int, Finisher] = {}
        shown = (law.max_tokens, law.stop, law.limit, law.token, law.power, regex, target, end)
        self.fingerprint = hash_text(repr(shown))


class Finisher:
    """Makes a draw of a finished string; one per model and options."""

    __slots__ = ("lm", "restricted", "scheme", "stop")

    def __init__(self, lm: LanguageModel, options: StringOptions) -> None:
        self.lm = lm
        self.stop = options.law.stop
        self.restricted = options.law.token.truncates and options.target == "model"
        self.scheme = hash_text(f"{lm.name}\0{self.stop!r}\0{options.regex!r}")

    def __call__(self, state: StringState) -> Draw:
        """The value, its log p (of the whole event) and its log q."""
        ids = state.ids
        text = Text.drawn(
            text_of(self.lm, ids, self.stop), ids, state.logps, state.finish, self.scheme
        )
        return Draw(text, state.logw + state.logq, state.logq, self.restricted)


@lru_cache(maxsize=4096)
def string_options(
    stop: str | tuple[str, ...] | None,
    max_tokens: int,
    limit: Limit,
    temperature: float,
    top_p: float,
    top_k: int,
    mixture: float,
    regex: str | None,
    target: Target,
    end: bool,
    target_temperature: float,
    power: float,
) -> StringOptions:
    """Check the arguments of `LM` and `Chat`; equal ones share the result."""
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if any(not isinstance(s, str) or not s for s in stops):
        raise BadArgument(
            "stop must be non-empty text", value=excerpt(stop), fix='write stop="\\n"'
        )
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise BadArgument(f"max_tokens must be a positive integer, got {max_tokens!r}")
    for name, t in (("temperature", temperature), ("tempered", target_temperature)):
        if t == 0:
            raise BadArgument(
                f"{name}=0 has no density, so its draws cannot be weighted",
                fix="use engine=Greedy() for greedy decoding, or a small positive temperature",
            )
        if not (isinstance(t, (int, float)) and 0 < t < math.inf):
            raise BadArgument(f"{name} must be a positive number, got {t!r}")
    if not 0.0 < top_p <= 1.0:
        raise BadArgument(f"top_p must be in (0, 1], got {top_p!r}")
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0:
        raise BadArgument(f"top_k must be a non-negative integer (0 = all), got {top_k!r}")
    if not 0.0 <= mixture <= 1.0:
        raise BadArgument(f"mixture must be in [0, 1], got {mixture!r}")
    if limit not in ("prefix", "eos", "kill"):
        raise BadArgument(f'limit must be "prefix", "eos" or "kill", got {limit!r}')
    if target not in ("model", "proposal"):
        raise BadArgument(f'target must be "model" or "proposal", got {target!r}')
    if not (isinstance(power, (int, float)) and math.isfinite(power)):
        raise BadArgument(f"power must be a finite number, got {power!r}")
    token = TokenLaw(
        float(temperature), float(top_p), top_k, float(mixture), float(target_temperature)
    )
    law = StringLaw(max_tokens, stops, limit, token, None, float(power), target == "proposal")
    return StringOptions(law, regex, target, end)
