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
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np

from lmppl.constraints import Constraint
from lmppl.distributions import Distribution
from lmppl.errors import BadArgument, NotFinite, UnsupportedValue, excerpt
from lmppl.jobs import Draw, Env, Generate, Score, Step
from lmppl.lm.base import LanguageModel, TokenLaw
from lmppl.lm.generate import Limit, StringLaw, StringState, end_ids, text_of
from lmppl.lm.table import token_law
from lmppl.random import MASK, MUL1, draw, fold, hash_text
from lmppl.text import Text
from lmppl.types import Floats, Ids, Key
from lmppl.weights import NEG_INF, log_sum_exp

Message: TypeAlias = tuple[str, str] | Mapping[str, str]
Messages: TypeAlias = str | Sequence[Message]
Target = Literal["model", "proposal"]
MAX_SUPPORT = 1_000_000


class _Options:
    """Checked arguments of a string distribution, shared by all equal calls."""

    __slots__ = ("end", "fingerprint", "finishers", "law", "regex", "target")

    def __init__(self, law: StringLaw, regex: str | None, target: Target, end: bool) -> None:
        self.law = law
        self.regex = regex
        self.target = target
        self.end = end
        self.finishers: dict[int, _Finisher] = {}
        shown = (law.max_tokens, law.stop, law.limit, law.token, law.power, regex, target, end)
        self.fingerprint = hash_text(repr(shown))


class _Finisher:
    """Makes a draw of a finished string; one per model and options."""

    __slots__ = ("lm", "restricted", "scheme", "stop")

    def __init__(self, lm: LanguageModel, options: _Options) -> None:
        self.lm = lm
        self.stop = options.law.stop
        self.restricted = options.law.token.truncates and options.target == "model"
        self.scheme = hash_text(f"{lm.name}\0{self.stop!r}\0{options.regex!r}")

    def __call__(self, state: StringState) -> Draw:
        ids = state.ids
        text = Text.drawn(
            text_of(self.lm, ids, self.stop), ids, state.logps, state.finish, self.scheme
        )
        return Draw(text, state.logw + state.logq, state.logq, self.restricted)


@lru_cache(maxsize=4096)
def _options(
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
) -> _Options:
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
    return _Options(law, regex, target, end)


@lru_cache(maxsize=256)
def _constraint(lm: LanguageModel, regex: str, stop: tuple[str, ...]) -> Constraint:
    return Constraint(lm, regex, stop)


class _String(Distribution):
    """What `LM` and `Chat` share: everything but the context."""

    __slots__ = ("_lm", "_options")
    _lm: LanguageModel | str | None
    _options: _Options

    @abstractmethod
    def context(self, lm: LanguageModel) -> Ids:
        """The token ids before the string."""

    @abstractmethod
    def _with(self, options: _Options) -> _String:
        """The same context under other options."""

    @property
    @abstractmethod
    def _context_hash(self) -> int:
        """Of what stands before the string."""

    def tempered(self, temperature: float) -> _String:
        """Another **target**: per token softmax(logits / T), normalised."""
        token = self._options.law.token._replace(
            temperature=float(temperature), target_temperature=float(temperature)
        )
        _options(None, 1, "prefix", 1.0, 1.0, 0, 0.0, None, "model", True, float(temperature), 1.0)
        return self._with(self._altered(self._options.law._replace(token=token)))

    def proposed(self, **settings: Any) -> _String:
        """The same target, drawn with other settings (temperature, top_p, top_k, mixture)."""
        o = self._options
        old = o.law.token
        unknown = sorted(set(settings) - {"temperature", "top_p", "top_k", "mixture"})
        if unknown:
            raise BadArgument(f"a proposal has no setting {', '.join(unknown)}")
        token = old._replace(**settings)
        checked = _options(
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

    def _altered(self, law: StringLaw) -> _Options:
        o = self._options
        return _Options(law, o.regex, o.target, o.end)

    def law(self, lm: LanguageModel) -> StringLaw:
        """The law, with its constraint compiled for a model."""
        o = self._options
        if o.regex is None:
            return o.law
        return o.law._replace(constraint=_constraint(lm, o.regex, o.law.stop))

    def draw(self, key: Key, env: Env) -> Step[Draw]:
        """Ask for one string."""
        lm = env.model(self._lm)
        state = StringState(self.law(lm), self.context(lm), key)
        return Generate(lm, state, self._drawn(lm))

    def _drawn(self, lm: LanguageModel) -> _Finisher:
        finishers = self._options.finishers
        found = finishers.get(id(lm))
        if found is None or found.lm is not lm:
            found = finishers[id(lm)] = _Finisher(lm, self._options)
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
        law = self.law(lm)
        token = law.token
        temperature = token.target_temperature
        if law.target_is_proposal:
            if token.top_p < 1 or token.top_k or law.constraint is not None:
                raise BadArgument(
                    'a text cannot be scored under a truncated or masked law with target="proposal"',
                    fix='leave target="model", so that truncation is only a proposal',
                )
            temperature = token.temperature
        if (
            isinstance(value, Text)
            and value.token_ids is not None
            and value.scheme == self._scheme(lm)
        ):
            ids: Ids = tuple(value.token_ids.tolist())
            forced = value.finish == "length" and law.limit == "eos"
            ends: Sequence[int] | None = end_ids(lm, law.stop) if forced else None
        else:
            ids, ends = self._canonical(lm, law, value)

        def scored(rows: list[Floats]) -> float:
            return law.power * float(rows[0].sum())

        return Score(lm, [self.context(lm)], [ids], [ends], [temperature], scored)

    def _canonical(
        self, lm: LanguageModel, law: StringLaw, value: str
    ) -> tuple[Ids, Sequence[int] | None]:
        """Canonical ids of a given string and the set of ids that may end it."""
        for stop in law.stop:
            if (at := value.find(stop)) >= 0:
                raise UnsupportedValue(
                    f"the text contains its own stop string {stop!r} at position {at}",
                    value=excerpt(value),
                    why="such a text has probability zero",
                    fix="give the text without its terminator, or another stop",
                )
        ids = lm.encode(value)
        if len(ids) > law.max_tokens and self._options.end:
            raise UnsupportedValue(
                f"the text has {len(ids)} tokens, max_tokens is {law.max_tokens}",
                value=excerpt(value),
                why="under this law no text is that long",
                fix=f"write max_tokens={len(ids)} or more, or end=False to score it as a prefix",
            )
        ends: Sequence[int] | None = end_ids(lm, law.stop)
        if law.constraint is not None:
            state = law.constraint.start()
            for n, token in enumerate(ids):
                if not state.mask[token]:
                    at = len(lm.decode(ids[:n]))
                    raise UnsupportedValue(
                        f"the text leaves the regex at position {at}",
                        value=excerpt(value),
                        fix="change one of them",
                    )
                state = state.advance(token)
            ends = [v for v in ends or () if state.mask[v]] if not state.finished else None
        if not self._options.end or (len(ids) == law.max_tokens and law.limit == "prefix"):
            ends = None
        return ids, ends

    def support(self, env: Env) -> list[tuple[Any, float]]:
        """Every token sequence with its log p, for a model whose rows are small."""
        lm = env.model(self._lm)
        if lm.vocab_size > 256:
            raise NotFinite(
                f"the strings of {lm.name!r} are too many to list ({lm.vocab_size:,} tokens to the "
                f"power of {self._options.law.max_tokens})",
                fix="use Choice, another engine, or a TableLM",
            )
        law = self.law(lm)
        live = [StringState(law, self.context(lm), 0)]
        done: list[StringState] = []
        while live:
            rows = lm.open([s.context + tuple(s.ids) for s in live])
            log_model = rows.log_probs()
            rows.close()
            grown: list[StringState] = []
            for s, row in zip(live, log_model, strict=True):
                mask = None if s.automaton is None else s.automaton.mask[None, :]
                logp, logq = token_law(row[None, :], law.token, mask)
                local = (logq if law.target_is_proposal else logp)[0]
                allowed = local > NEG_INF if mask is None else (local > NEG_INF) & mask[0]
                for token in np.flatnonzero(allowed).tolist():
                    child = s.fork(0)
                    child.extend(lm, token, float(local[token]), 0.0)
                    if child.awaits_end:
                        child.finish_length(_end_mass(lm, child))
                    if child.logw > NEG_INF:
                        (grown if child.finish is None else done).append(child)
            if len(done) + len(grown) > MAX_SUPPORT:
                raise NotFinite(f"more than {MAX_SUPPORT:,} strings", fix="lower max_tokens")
            live = grown
        drawn = self._drawn(lm)
        return [(drawn(s).value, s.logw) for s in done]

    @property
    def fingerprint(self) -> int:
        """Of context and options."""
        return (self._context_hash * MUL1 ^ self._options.fingerprint) & MASK


def _end_mass(lm: LanguageModel, s: StringState) -> float:
    rows = lm.open([s.context + tuple(s.ids)])
    mass = float(rows.log_mass([end_ids(lm, s.law.stop)], [s.law.token.target_temperature])[0])
    rows.close()
    return mass


class LM(_String):
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
        target: "model", or "proposal" to make what is drawn the target too.
        end: whether scoring a text includes the event that it ends.
        lm: the model or its name; the run's default when left out.

    >>> from lmppl import LM
    >>> LM("2 + 2 =", stop="\n", max_tokens=4).kind
    'LM'
    """

    kind = "LM"
    __slots__ = ("_hash", "prompt")

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
        regex: str | None = None,
        target: Target = "model",
        end: bool = True,
        lm: LanguageModel | str | None = None,
    ) -> None:
        """Check the arguments."""
        if not isinstance(prompt, str):
            raise BadArgument(
                f"the prompt must be text, got {type(prompt).__name__}",
                value=excerpt(prompt),
                fix="use Chat for a list of messages",
            )
        self.prompt = prompt
        self._hash: int | None = None
        self._lm = lm
        self._options = _options(
            stop if stop is None or isinstance(stop, str) else tuple(stop),
            max_tokens, limit, temperature, top_p, top_k, mixture, regex, target, end, 1.0, 1.0,
        )  # fmt: skip

    def context(self, lm: LanguageModel) -> Ids:
        """The prompt's ids."""
        return lm.context(self.prompt)

    def _with(self, options: _Options) -> LM:
        new = LM(self.prompt, lm=self._lm)
        new._options = options
        return new

    @property
    def _context_hash(self) -> int:
        return hash_text(self.prompt)

    def __repr__(self) -> str:
        return f"LM({excerpt(str(self.prompt), 40)})"


class Chat(_String):
    """The law of a chat model's answer to messages, in the model's own template.

    Args:
        messages: (role, content) pairs or mappings with those keys; a plain text is one user
            turn. Contents are tokenised as text: no control token comes out of them.

    The other arguments are those of `LM`. Some templates insert a default system message when
    the first message is none; `docs/backends.md` says which.
    """

    kind = "Chat"
    __slots__ = ("messages",)

    def __init__(
        self,
        messages: Messages,
        *,
        stop: str | Sequence[str] | None = None,
        max_tokens: int = 64,
        limit: Limit = "prefix",
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        mixture: float = 0.0,
        regex: str | None = None,
        target: Target = "model",
        end: bool = True,
        lm: LanguageModel | str | None = None,
    ) -> None:
        """Check the arguments."""
        self.messages = as_messages(messages)
        self._lm = lm
        self._options = _options(
            stop if stop is None or isinstance(stop, str) else tuple(stop),
            max_tokens, limit, temperature, top_p, top_k, mixture, regex, target, end, 1.0, 1.0,
        )  # fmt: skip

    def context(self, lm: LanguageModel) -> Ids:
        """The template's ids."""
        return lm.encode_chat(self.messages)

    def _with(self, options: _Options) -> Chat:
        new = Chat(self.messages, lm=self._lm)
        new._options = options
        return new

    @property
    def _context_hash(self) -> int:
        return fold(len(self.messages), *(part for m in self.messages for part in m))

    def __repr__(self) -> str:
        return f"Chat({excerpt(self.messages, 60)})"


def as_messages(messages: Messages) -> tuple[tuple[str, str], ...]:
    """Check (role, content) messages."""
    if isinstance(messages, str):
        return (("user", messages),)
    out = []
    for m in messages:
        pair = (m.get("role"), m.get("content")) if isinstance(m, Mapping) else tuple(m)
        if len(pair) != 2 or not all(isinstance(p, str) for p in pair):
            raise BadArgument(
                "a chat message is a role and a content, both text",
                value=excerpt(m),
                fix='write ("user", "...") or {"role": "user", "content": "..."}',
            )
        out.append((str(pair[0]), str(pair[1])))
    if not out:
        raise BadArgument("a chat needs at least one message")
    return tuple(out)


def power(dist: _String, beta: float) -> _String:
    """A target ∝ p(text)^β over whole strings; drawn from p, weight (β - 1) log p.

    Unlike `tempered` it is not normalised per token: the evidence contains Σ p^β.
    """
    if not (isinstance(beta, (int, float)) and math.isfinite(beta)):
        raise BadArgument(f"power must be a finite number, got {beta!r}")
    law = dist._options.law
    return dist._with(dist._altered(law._replace(power=law.power * float(beta))))


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
        if isinstance(options, str) or not options:
            raise BadArgument(
                "Choice needs a non-empty list of options",
                value=excerpt(options),
                fix='write Choice(prompt, [" yes", " no"])',
            )
        if isinstance(options, Mapping):
            self.values: tuple[Any, ...] = tuple(options)
            self.surfaces = tuple(
                (s,) if isinstance(s, str) else tuple(s) for s in options.values()
            )
        else:
            self.values = tuple(options)
            self.surfaces = tuple((s,) for s in options)
        flat = [s for group in self.surfaces for s in group]
        if any(not isinstance(s, str) or not s for s in flat) or len(set(flat)) < len(flat):
            raise BadArgument("options must be different, non-empty texts", value=excerpt(options))
        self.end = end
        self.stop = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
        self._lm = lm

    def _log_probs(self, env: Env, go_on: Any) -> Score:
        lm = env.model(self._lm)
        context = (
            lm.context(self.prompt)
            if self.prompt is not None
            else lm.encode_chat(self.messages or ())
        )
        texts = [lm.encode(s) for group in self.surfaces for s in group]
        ends = end_ids(lm, self.stop) if self.end else None

        def scored(rows: list[Floats]) -> Any:
            flat = iter(float(r.sum()) for r in rows)
            lw = np.array([log_sum_exp([next(flat) for _ in group]) for group in self.surfaces])
            return go_on(lw - log_sum_exp(lw) if (lw > NEG_INF).any() else lw)

        return Score(
            lm, [context] * len(texts), texts, [ends] * len(texts), [1.0] * len(texts), scored
        )

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
