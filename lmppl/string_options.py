"""The checked arguments of a string distribution, made once for all equal calls."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal

from lmppl.constraints import compiled
from lmppl.errors import BadArgument, UnweightableProposal, excerpt, items_of
from lmppl.grammars import Grammar
from lmppl.jobs import Draw, Env
from lmppl.lm.base import LanguageModel, TokenLaw
from lmppl.lm.generate import Limit, StringLaw, StringState, text_of
from lmppl.lm.needs import FIXES, require
from lmppl.lm.wave import is_whole
from lmppl.random import hash_text
from lmppl.text import Text

Target = Literal["model", "proposal"]


class StringOptions:
    """Checked arguments of a string distribution, shared by all equal calls."""

    __slots__ = ("end", "fingerprint", "finishers", "grammar", "law", "marks", "target")

    def __init__(self, law: StringLaw, grammar: Grammar | None, target: Target, end: bool) -> None:
        self.law = law
        self.grammar = grammar
        self.target = target
        self.end = end
        self.finishers: dict[int, Finisher] = {}
        self.marks: dict[str, int] = {}
        """Fingerprints of the distribution by its prompt: particles often share one."""
        shown = (law.max_tokens, law.stop, law.limit, law.token, law.power, grammar, target, end)
        more = () if (law.potential, law.sampler) == (None, None) else (law.potential, law.sampler)
        self.fingerprint = hash_text(repr(shown + more))


_new = tuple.__new__
"""Makes a named tuple in half the time of its own constructor."""


class Finisher:
    """How strings are drawn from one model under one set of options, and made draws of."""

    __slots__ = (
        "constrained",
        "law",
        "lm",
        "restricted",
        "room",
        "scheme",
        "stop",
        "unweightable",
        "whole",
    )

    def __init__(self, lm: LanguageModel, options: StringOptions, law: StringLaw) -> None:
        self.lm = lm
        self.law = law
        """With the constraint compiled for the model."""
        self.room = lm.max_context - law.max_tokens
        """The most tokens of a context; none where every draw needs a closer look."""
        own = law.token.settings()
        self.unweightable = ""
        """The settings under which the model cannot say how probable a draw was."""
        if own and options.target == "model" and not lm.capabilities.weighs_proposals:
            self.unweightable = own
        if self.unweightable or lm.draws_strings or lm.capabilities.logprobs == "none":
            self.room = -1
        self.whole = is_whole(law)
        """Whether its strings can be drawn without a state of their own."""
        self.stop = options.law.stop
        self.restricted = options.law.token.truncates and options.target == "model"
        self.constrained = options.grammar is not None
        self.scheme = hash_text(f"{lm.vocabulary_id}\0{self.stop!r}")

    def check(self, kind: str, env: Env) -> None:
        """Refuse what the model cannot draw or weigh, before anything is sent to it."""
        if env.weighted:
            require(self.lm, "logprobs", kind, FIXES["logprobs"])
            if self.unweightable:
                raise UnweightableProposal(kind, self.lm.name, self.unweightable)
        self.lm.check_draw(self.law, env.chance)

    def finish(self, state: StringState) -> Draw:
        """The value, its log p (of the whole event) and its log q."""
        return self.made(state.ids, state.logps, state.logw, state.logq, state.finish)

    def made(
        self, ids: list[int], logps: list[float], logw: float, logq: float, why: str | None
    ) -> Draw:
        """The same of a string that was drawn without a state."""
        value = text_of(self.lm, ids, self.stop, self.constrained)
        text = Text.drawn(value, ids, logps, why, self.scheme)
        return _new(Draw, (text, logw + logq, logq, self.restricted))


def bound_law(lm: LanguageModel, kind: str, options: StringOptions) -> StringLaw:
    """The law with its grammar compiled, and its potential started, for a model."""
    law, grammar = options.law, options.grammar
    constraint = None
    if grammar is not None:
        fix = "use another model, or check the text in a factor"
        require(lm, "masks", f"{kind}({grammar.kind}=...)", fix)
        constraint = compiled(lm, grammar, law.stop)
    if law.potential is None and law.sampler is None:
        return law._replace(constraint=constraint)
    from lmppl.token_potentials.operators import ProductState, as_potential
    from lmppl.token_potentials.texts import MatchState

    fix = "use a model that runs in this process, or a factor on the finished text"
    require(lm, "full_rows", f"{kind}(potential=...)", fix)
    states = [] if law.potential is None else [as_potential(law.potential).start(lm, law.stop)]
    if constraint is not None:
        states.insert(0, MatchState(lm, constraint.start()))
    start = states[0] if len(states) == 1 else ProductState(lm, tuple(states))
    return law._replace(constraint=constraint, potential=start)


def check_weighting(potential: Any, sampler: Any) -> None:
    """Refuse what is no potential, or no sampler."""
    from lmppl.token_potentials.operators import as_potential
    from lmppl.token_potentials.samplers import Sampler

    if potential is not None:
        as_potential(potential)
    if not (sampler is None or (isinstance(sampler, Sampler) and not isinstance(sampler, type))):
        raise BadArgument(
            f"sampler must be a sampler of tokens, got {sampler!r}",
            fix="write sampler=AWRS() or sampler=TopK(50), of lmppl.token_potentials",
        )


def as_stops(stop: Any) -> str | tuple[str, ...] | None:
    """The terminators as they are given, hashable."""
    if stop is None or isinstance(stop, str):
        return stop
    return tuple(items_of(stop, "stop must be text or a list of texts", 'write stop="\\n"'))


_seen: tuple[Any, ...] = (None,) * 6
_found: Any = None
"""The last arguments and their options: particles come to a site one after the other."""


def string_options(*arguments: Any) -> StringOptions:
    """Check the arguments of `LM` and `Chat`; equal ones share the result."""
    global _seen, _found
    if arguments == _seen and arguments[1] is _seen[1] and arguments[5] is _seen[5]:
        return _found  # type: ignore[no-any-return]  # (an integer is not True, though equal)
    try:
        options = _checked(*arguments)
    except TypeError:
        raise BadArgument(
            "a sampling setting is of the wrong type",
            value=excerpt(arguments),
            fix='write LM(prompt, stop="\\n", max_tokens=64, temperature=0.7, top_p=0.95, regex=r"...")',
        ) from None
    _seen, _found = arguments, options
    return options


@lru_cache(maxsize=4096, typed=True)
def _checked(
    stop: str | tuple[str, ...] | None,
    max_tokens: int,
    limit: Limit,
    temperature: float,
    top_p: float,
    top_k: int,
    mixture: float,
    grammar: Grammar | None,
    target: Target,
    end: bool,
    target_temperature: float,
    power: float,
    potential: Any = None,
    sampler: Any = None,
) -> StringOptions:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if any(not isinstance(s, str) or not s for s in stops):
        raise BadArgument(
            "stop must be non-empty text", value=excerpt(stop), fix='write stop="\\n"'
        )
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise BadArgument(
            f"max_tokens must be a positive integer, got {max_tokens!r}",
            why="a string without a limit may never end" if max_tokens is None else None,
            fix="write max_tokens=64, or as many tokens as the longest value needs",
        )
    for name, t in (("temperature", temperature), ("tempered", target_temperature)):
        if t == 0:
            raise BadArgument(
                f"{name}=0 has no density, so its draws cannot be weighted",
                fix="use engine=Greedy() for greedy decoding, or a small positive temperature",
            )
        if not (isinstance(t, (int, float)) and 0 < t < math.inf):
            raise BadArgument(
                f"{name} must be a positive number, got {t!r}", fix=f"write {name}=0.7"
            )
    if not (isinstance(top_p, (int, float)) and 0.0 < top_p <= 1.0):
        raise BadArgument(
            f"top_p must be in (0, 1], got {top_p!r}", fix="write top_p=0.95, or 1 for no cut"
        )
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0:
        raise BadArgument(
            f"top_k must be a non-negative integer, got {top_k!r}",
            fix="write top_k=40, or 0 for no cut",
        )
    if not (isinstance(mixture, (int, float)) and 0.0 <= mixture <= 1.0):
        raise BadArgument(
            f"mixture must be in [0, 1], got {mixture!r}",
            fix="write mixture=0.1: a tenth of the draws come from the model itself",
        )
    if target == "proposal" and not (potential is None and sampler is None):
        raise BadArgument(
            'a potential or a sampler belongs to target="model"',
            why='with target="proposal" the law is what is drawn, and weights would be lost',
            fix='leave target="model"',
        )
    if limit not in ("prefix", "eos", "kill"):
        raise BadArgument(
            f'limit must be "prefix", "eos" or "kill", got {limit!r}',
            fix='write limit="prefix": the model cut at max_tokens',
        )
    if target not in ("model", "proposal"):
        raise BadArgument(
            f'target must be "model" or "proposal", got {target!r}',
            fix='write target="model": sampling settings are then only a proposal',
        )
    if target == "proposal" and limit == "eos" and (top_p < 1 or top_k or mixture or grammar):
        raise BadArgument(
            'limit="eos" with target="proposal" takes a temperature only',
            why="the mass of the end under a truncated, mixed or masked law is not known",
            fix='leave target="model", or use limit="prefix"',
        )
    if not (isinstance(power, (int, float)) and math.isfinite(power)):
        raise BadArgument(f"power must be a finite number, got {power!r}")
    token = TokenLaw(
        float(temperature), float(top_p), top_k, float(mixture), float(target_temperature)
    )
    if potential is not None or sampler is not None:
        check_weighting(potential, sampler)
    law = StringLaw(
        max_tokens,
        stops,
        limit,
        token,
        None,
        float(power),
        target == "proposal",
        potential,
        sampler,
    )
    return StringOptions(law, grammar, target, end)
