"""String distributions: the laws of a language model over texts.

`LM(prompt)` and `Chat(messages)` mean the **model's own law** with a named stop rule. Sampling
parameters say how to draw: `temperature`, `top_p` and `top_k` are a *proposal*, corrected by
log p - log q, unless `target="proposal"` makes them the target. `Choice` is the model's law
conditioned on a list of options.

What is scored: a drawn `Text` by its own tokens; a given string by its canonical tokenisation,
followed by any terminator. The latter is a lower bound of the string's mass over all
tokenisations (Chirkova et al., 2023, find the gap mostly below 0.5 %).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from lmppl.distributions import Distribution
from lmppl.errors import (
    BadArgument,
    ContextOverflow,
    NotFinite,
    UnsupportedValue,
    excerpt,
)
from lmppl.grammars import Grammar, grammar_of
from lmppl.jobs import Draw, Env, Generate, Score, Step
from lmppl.lm.base import LanguageModel
from lmppl.lm.endings import canonical_endings, own_endings, weighed
from lmppl.lm.generate import Limit, StringLaw
from lmppl.lm.listing import every_string
from lmppl.lm.needs import require
from lmppl.random import MASK, MUL1, hash_text
from lmppl.string_options import (
    Finisher,
    StringOptions,
    Target,
    as_stops,
    bound_law,
    string_options,
)
from lmppl.text import Text
from lmppl.types import Floats, Ids, Key
from lmppl.weights import NEG_INF, log_sum_exp

_make = object.__new__
MAX_SUPPORT = 1_000_000
MARKS = 4096
"""Fingerprints of prompts that are kept."""


class StringDistribution(Distribution):
    """What `LM` and `Chat` share: everything but the context."""

    asks = True
    __slots__ = ("_lm", "_options")
    _lm: LanguageModel | str | None
    _options: StringOptions

    @abstractmethod
    def context(self, lm: LanguageModel) -> Ids:
        """The token ids before the string."""

    @abstractmethod
    def _with(self, options: StringOptions) -> StringDistribution:
        """The same context under other options."""

    @property
    @abstractmethod
    def _context_hash(self) -> int:
        """Of what stands before the string."""

    def tempered(self, temperature: float) -> StringDistribution:
        """Another **target**: per token softmax(logits / T), normalised."""
        string_options(None, 1, "prefix", 1.0, 1.0, 0, 0.0, None, "model", True, temperature, 1.0)
        token = self._options.law.token._replace(
            temperature=float(temperature), target_temperature=float(temperature)
        )
        return self._with(self._altered(self._options.law._replace(token=token)))

    def proposed(self, **settings: Any) -> StringDistribution:
        """The same target, drawn with other settings (temperature, top_p, top_k, mixture)."""
        o = self._options
        old = o.law.token
        unknown = sorted(set(settings) - {"temperature", "top_p", "top_k", "mixture"})
        if unknown:
            raise BadArgument(
                f"a proposal has no setting {', '.join(unknown)}",
                fix="use temperature, top_p, top_k and mixture; stop and max_tokens belong to the target",
            )
        token = old._replace(**settings)
        checked = string_options(
            None,
            1,
            "prefix",
            token.temperature,
            token.top_p,
            token.top_k,
            token.mixture,
            None,
            "model",
            True,
            1.0,
            1.0,
        )
        token = checked.law.token._replace(target_temperature=old.target_temperature)
        return self._with(self._altered(o.law._replace(token=token)))

    def bound(self, models: Mapping[str, LanguageModel]) -> StringDistribution:
        """With the model that it names."""
        lm = named(self._lm, models)
        if lm is self._lm:
            return self
        new = self._with(self._options)
        new._lm = lm
        return new

    def _altered(self, law: StringLaw) -> StringOptions:
        o = self._options
        return StringOptions(law, o.grammar, o.target, o.end)

    def law(self, lm: LanguageModel) -> StringLaw:
        """The law, with its constraint compiled for a model."""
        o = self._options
        if o.grammar is None and o.law.potential is None and o.law.sampler is None:
            return o.law
        return bound_law(lm, self.kind, o)

    def draw(self, key: Key, env: Env) -> Step[Draw]:
        """Ask for one string."""
        job = self.ask(env)
        job.key = key
        return job

    def ask(self, env: Env) -> Generate:
        """The job of one string; whoever runs it says where its key comes from."""
        lm: Any = self._lm
        if lm is None:
            lm = env.models.get("default")
        finisher = self._options.finishers.get(id(lm))
        if finisher is None or finisher.lm is not lm:
            lm = env.model(self._lm)
            finisher = self._drawn(lm)
        context = self.context(lm)
        if len(context) > finisher.room:
            finisher.check(self.kind, env)
            self._fits(lm, context, finisher.law.max_tokens)
        job = _make(Generate)  # its constructor, written out
        job.maker, job.context = finisher, context
        return job

    def _drawn(self, lm: LanguageModel) -> Finisher:
        finishers = self._options.finishers
        found = finishers.get(id(lm))
        if found is None or found.lm is not lm:
            found = finishers[id(lm)] = Finisher(lm, self._options, self.law(lm))
        return found

    def _scheme(self, lm: LanguageModel) -> int:
        """Equal for laws under which a text's own tokens mean the same."""
        return self._drawn(lm).scheme

    def score(self, value: Any, env: Env) -> Step[float]:
        """log p of a text, by its own tokens if it was drawn under the same stop rule."""
        lm = env.model(self._lm)
        if not isinstance(value, str):
            raise UnsupportedValue(
                f"{self.kind} scores text, got {type(value).__name__}",
                value=excerpt(value),
                fix="observe a str",
            )
        if not lm.capabilities.scores_text:
            require(lm, "scores_text", "a given text", "use a model that reports log-probabilities")
        law = self.law(lm)
        token = law.token
        temperature = law.target_temperature
        if law.target_is_proposal:
            mixed = token.mixture and token.temperature != token.target_temperature
            if token.top_p < 1 or token.top_k or mixed or law.constraint is not None:
                raise BadArgument(
                    'a text cannot be scored under a truncated or masked law with target="proposal"',
                    fix='leave target="model", so that truncation is only a proposal',
                )
        own = isinstance(value, Text) and value.scheme == self._scheme(lm)
        ids = value._ids if isinstance(value, Text) and own else None
        if ids is not None:
            found = own_endings(lm, law, tuple(ids))
            if not found:
                return NEG_INF
        else:
            found = canonical_endings(lm, law, value, self._options.end)
        context = self.context(lm)
        weights = weighed(lm, law, found)
        if not weights:
            return NEG_INF
        n = len(weights)
        self._fits(lm, context, max(len(e.ids) for e, _ in weights))

        def scored(rows: list[Floats]) -> float:
            logps = [float(row.sum()) for row in rows]
            if law.potential is not None:
                return log_sum_exp(
                    [law.power * x + phi for x, (_, phi) in zip(logps, weights, strict=True)]
                )
            return law.power * (logps[0] if n == 1 else log_sum_exp(logps))

        texts, ends = [e.ids for e, _ in weights], [e.ends for e, _ in weights]
        lm.check_score(texts, ends, [temperature] * n)
        return Score(lm, [context] * n, texts, ends, [temperature] * n, scored)

    def _fits(self, lm: LanguageModel, context: Ids, more: int) -> None:
        needed = len(context) + more
        if needed > lm.max_context:
            part, longest = self._longest()
            raise ContextOverflow(needed, lm.max_context, longest=longest, part=part)

    @abstractmethod
    def _longest(self) -> tuple[str | None, str]:
        """The longest part of what stands before the string, and where it came from."""

    def support(self, env: Env) -> list[tuple[Any, float]]:
        """Every token sequence with its log p, for a model whose rows are small."""
        lm = env.model(self._lm)
        if lm.vocab_size > 256:
            raise NotFinite(
                f"the strings of {lm.name!r} are too many to list ({lm.vocab_size:,} tokens to the "
                f"power of {self._options.law.max_tokens})",
                fix="use Choice, another engine, or a TableLM",
            )
        require(lm, "full_rows", "enumeration", "use Choice, or another engine")
        done = every_string(lm, self.law(lm), self.context(lm), MAX_SUPPORT)
        drawn = self._drawn(lm).finish
        return [(drawn(s).value, s.logw + s.logq) for s in done]

    @property
    def fingerprint(self) -> int:
        """Of context and options."""
        return (self._context_hash * MUL1 ^ self._options.fingerprint) & MASK


def named(
    lm: LanguageModel | str | None, models: Mapping[str, LanguageModel]
) -> LanguageModel | str | None:
    """The model of a name, where it is known; no name means "default"."""
    return (
        models.get("default" if lm is None else lm, lm) if not isinstance(lm, LanguageModel) else lm
    )


class LM(StringDistribution):
    r"""The law of a language model over the texts that follow a prompt.

    P(text) = Π_t p(token_t | prompt, tokens before t), up to and including the terminator.

    Args:
        prompt: the text before.
        stop: text or texts at which the string ends; they are not part of the value. End-of-text
            tokens always end it.
        max_tokens: L, the most tokens drawn.
        limit: what reaching L means: "prefix", the model cut at L; "eos", the model conditioned
            on ending by then; "kill", an impossible string.
        temperature, top_p, top_k: how tokens are drawn (the proposal).
        mixture: ε; draw from (1 - ε) proposal + ε model, so that nothing is out of reach.
        regex: the string must match this expression (Rust's syntax); the weight is the product
            of the allowed masses.
        json_schema: or be JSON of this schema (a dict, its text, a pydantic class);
        grammar: or belong to this grammar (Lark);
        choices: or be one of these texts.
        potential: what multiplies the model's law: a `TokenPotential`, or a function of the text.
        sampler: how tokens are drawn under it: `AWRS()`, `TopK(k)`; exactly, when left out.
        target: "model", or "proposal" to make what is drawn the target too.
        end: whether scoring a text includes the event that it ends.
        lm: the model or its name; the run's default when left out.

    >>> from lmppl import LM
    >>> LM("2 + 2 =", stop="\n", max_tokens=4).kind
    'LM'
    """

    kind = "LM"
    __slots__ = ("prompt",)

    def __init__(
        self,
        prompt: str,
        *,
        stop: str | Sequence[str] | None = None,
        max_tokens: int = 64,
        limit: Limit = "prefix",
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        mixture: float = 0.0,
        regex: str | Grammar | None = None,
        json_schema: Any = None,
        grammar: str | Grammar | None = None,
        choices: Sequence[str] | None = None,
        potential: Any = None,
        sampler: Any = None,
        target: Target = "model",
        end: bool = True,
        lm: LanguageModel | str | None = None,
    ) -> None:
        """Check the arguments."""
        if not isinstance(prompt, str):
            raise BadArgument(
                f"the prompt must be text, got {type(prompt).__name__}",
                value=excerpt(prompt),
                fix="use Chat for a list of messages"
                if isinstance(prompt, (list, tuple, Mapping))
                else 'write LM(f"... {value} ...")',
            )
        self.prompt = prompt
        self._lm = lm
        self._options = string_options(
            stop if stop is None or type(stop) is str else as_stops(stop),
            max_tokens, limit, temperature, top_p, top_k, mixture,
            grammar_of(regex, json_schema, grammar, choices), target, end, 1.0, 1.0, potential, sampler,
        )  # fmt: skip

    def context(self, lm: LanguageModel) -> Ids:
        """The prompt's ids."""
        return lm.context(self.prompt)

    def _with(self, options: StringOptions) -> LM:
        new = LM(self.prompt, lm=self._lm)
        new._options = options
        return new

    def _longest(self) -> tuple[str | None, str]:
        spans = self.prompt.spans if isinstance(self.prompt, Text) else ()
        if not spans:
            return None, self.prompt
        span = max(spans, key=lambda s: s.stop - s.start)
        part = str(self.prompt)[span.start : span.stop]
        return f"site {span.address!r} ({len(part):,} characters)", part

    @property
    def _context_hash(self) -> int:
        return hash_text(self.prompt)

    @property
    def fingerprint(self) -> int:
        """Of prompt and options."""
        options, prompt = self._options, self.prompt
        found = options.marks.get(prompt)
        if found is None:
            found = (hash_text(prompt) * MUL1 ^ options.fingerprint) & MASK
            if len(options.marks) >= MARKS:
                options.marks.clear()
            options.marks[prompt] = found
        return found

    def __repr__(self) -> str:
        return f"LM({excerpt(str(self.prompt), 40)})"


def power(dist: StringDistribution, beta: float) -> StringDistribution:
    """A target ∝ p(text)^β over whole strings; drawn from p, weight (β - 1) log p.

    Unlike `tempered` it is not normalised per token: the evidence contains Σ p^β.
    """
    if not (isinstance(beta, (int, float)) and math.isfinite(beta)):
        raise BadArgument(
            f"power must be a finite number, got {beta!r}", fix="write power(dist, 2.0)"
        )
    if not isinstance(dist, StringDistribution):
        raise BadArgument(
            f"power is for LM and Chat, got {type(dist).__name__}",
            value=excerpt(dist),
            fix="write power(LM(prompt, ...), 2.0)",
        )
    law = dist._options.law
    return dist._with(dist._altered(law._replace(power=law.power * float(beta))))
