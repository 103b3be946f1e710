"""What a language model must offer, and nothing more.

A model is two things: a *tokenizer* between text and token ids, and *rows*, a batch of token
sequences that advance together with the model's state (a cache, a table row) kept beside them.

    rows = lm.open(contexts)                 # prefill; shared prefixes are computed once
    drawn = rows.draw(keys, law, ...)        # one token per row, with log p and log q
    rows.push(drawn.tokens)                  # append it
    rows.select(keep)                        # keep, repeat and reorder rows
    rows.close()                             # give the state back to the model's prefix cache

The equation that ties them: after `open([c])` and pushes of v_1 … v_t, the next row is
log p(· | c, v_1 … v_t), normalised over the V ids of the model, whatever else is in the batch.

`draw` reports two numbers per token: `logp`, under the **target** law (the model, tempered if the
target is), and `logq`, under the law the token was actually **drawn** from (temperature, top-p,
top-k, mask). Their difference is the importance weight; full rows never leave the device.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np

from lmppl.errors import BadArgument, CapabilityError
from lmppl.random import Chance
from lmppl.types import Bools, Floats, Ids, Ints, Keys

if TYPE_CHECKING:
    from lmppl.lm.generate import StringLaw, StringState
    from lmppl.lm.token_weights import LawWeights


class TokenLaw(NamedTuple):
    """The law of one token: which distribution is meant, and which one is drawn from.

    With the model's next-token log-probabilities ℓ (natural log, normalised), per row:

    * target  log p = log_softmax(ℓ / target_temperature);
    * proposal log q = log_softmax of ℓ / temperature restricted to the `top_k` largest entries
      (0 = all) and then to the smallest set of largest entries with mass ≥ `top_p`, ties by id;
      then, if `mixture` = ε > 0, q ← (1 - ε) q + ε softmax(ℓ / target_temperature);
      then restricted to the mask, if there is one, and renormalised. A restriction that would
      leave no allowed id (top-k or top-p against a mask) falls back to the masked, untruncated
      row at `temperature`, so a feasible token is never lost to truncation.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    mixture: float = 0.0
    target_temperature: float = 1.0

    def settings(self) -> str:
        """What makes drawing another law than the target, as a user writes it."""
        found = []
        if self.temperature != self.target_temperature:
            found.append(f"temperature={self.temperature:g}")
        if self.top_p < 1.0:
            found.append(f"top_p={self.top_p:g}")
        if self.top_k > 0:
            found.append(f"top_k={self.top_k}")
        return ", ".join(found)

    @property
    def truncates(self) -> bool:
        """Whether some tokens of positive target probability can never be drawn."""
        return (self.top_p < 1.0 or self.top_k > 0) and self.mixture == 0.0


class Drawn(NamedTuple):
    """One token per row."""

    tokens: Ints  # [B]
    logp: Floats  # [B] log-probability under the target law, unmasked
    logq: Floats  # [B] log-probability under the law it was drawn from


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do; engines ask here before anything is computed."""

    logprobs: Literal["model", "none"] = "model"
    """"model": log-probabilities are the raw model's, before temperature, masks and penalties."""
    scores_text: bool = True
    masks: bool = True
    full_rows: bool = True
    weighs_proposals: bool = True
    """Whether `logq` is that of the law a token was drawn from: after temperature, top-p, top-k."""
    token_ids: bool = True
    """Whether texts go in and come out as token ids: then a string can stop in its middle (`tokens(k)`)."""
    batch_invariant: bool = True
    """Same tokens for every batch size (float32 on CPU), not merely up to near-ties."""
    empty_context: bool = False
    """Whether a text may start from no token at all."""


@dataclass
class Usage:
    """What a model has really computed since it was loaded."""

    passes: int = 0
    """Batched forward passes."""
    computed_tokens: int = 0
    """Token positions that went through the network."""
    cached_tokens: int = 0
    """Token positions that were served from the prefix cache."""


class Rows(ABC):
    """B token sequences that advance together."""

    @abstractmethod
    def draw(
        self, keys: Keys, laws: Sequence[TokenLaw], mask: Bools | None, chance: Chance
    ) -> Drawn:
        """Draw one token for each row, beside the logits.

        Args:
            keys: one random key per row [B].
            laws: one `TokenLaw` per row [B].
            mask: allowed ids [B, V], or None when all are; every row allows at least one id.
            chance: who chooses; `GumbelMax` and `Argmax` run on the device, any other is asked
                on the host with the rows of log q (tests enumerate this way).

        A row whose allowed ids all have probability zero reports token -1 and log q = -inf.
        """

    def weights(self, laws: Sequence[TokenLaw]) -> LawWeights:
        """Rows of log p and log q for samplers that look at a few tokens, where the scores are.

        This default takes whole rows to the host; a backend with scores on a device overrides it.
        """
        from lmppl.lm.token_weights import host_weights

        return host_weights(self.log_probs(), laws)

    @abstractmethod
    def log_mass(self, sets: Sequence[Sequence[int]], temperatures: Sequence[float]) -> Floats:
        """Log Σ_{v ∈ sets[b]} p(v | row b) [B]: the mass of an event, such as "the text ends here"."""

    @abstractmethod
    def push(self, tokens: Ints) -> None:
        """Append one token to each row [B]."""

    @abstractmethod
    def select(self, rows: Ints) -> None:
        """Replace the batch by these rows, in this order, repeats allowed [B']."""

    def join(self, contexts: Sequence[Ids]) -> None:
        """Add rows at these contexts, after those that are here, in the middle of a generation."""
        raise CapabilityError(
            f"{type(self).__name__} take no new rows while they run",
            fix="open the contexts as a batch of their own",
        )

    @abstractmethod
    def log_probs(self) -> Floats:
        """The next-token log-probabilities [B, V] on the host: for enumeration and tests only."""

    @abstractmethod
    def close(self) -> None:
        """End the batch; its state may serve later prefixes."""


@dataclass(eq=False)
class LanguageModel(ABC):
    """A causal language model with its tokenizer.

    `encode` and `decode` treat text as text: no text, whatever it contains, encodes to a special
    token. Special ids enter by `encode_chat` and `bos_id` alone.
    """

    name: str
    vocab_size: int
    """V, the width of a row (it may exceed the number of tokens of the tokenizer)."""
    max_context: int
    eos_ids: frozenset[int]
    bos_id: int | None = None
    capabilities: Capabilities = field(default_factory=Capabilities)
    usage: Usage = field(default_factory=Usage)
    _contexts: dict[str, Ids] = field(default_factory=dict, repr=False)

    draws_strings: ClassVar[bool] = False
    """Whether whole strings are drawn elsewhere, by `advance`: a server has a loop of its own."""

    bounded: ClassVar[bool] = False
    """Whether `fits` may say no: then `advance` takes what does not fit through a queue."""

    # -- tokenizer ---------------------------------------------------------------------------

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """The canonical token ids of a text; no special ids, no BOS."""

    def spell(self, text: str) -> Ids:
        """The ids of a text that is to be scored.

        Raises:
            UnsupportedValue: the model's tokens cannot spell it.
        """
        return self.encode(text)

    def settled(self, text: str) -> int:
        """How many bytes of a text are cut into tokens for good, whatever is written after it.

        A token that begins before this border is a token of every text that begins with this one,
        and a text may be cut anew from the end of such a token. 0 when nothing is known.
        """
        return 0

    def context(self, text: str) -> Ids:
        """The ids of a prompt: a BOS if the model wants one, then the text.

        Raises:
            BadArgument: nothing is left, and the model cannot start from nothing.
        """
        found = self._contexts.get(text)
        if found is None:
            found = self.encode(text)
            if self.bos_id is not None:
                found = (self.bos_id, *found)
            if not found and not self.capabilities.empty_context:
                raise BadArgument(
                    f"the prompt is empty, and {self.name!r} has no token to start from",
                    fix="write at least one character",
                )
            if len(self._contexts) >= 4096:
                self._contexts.clear()
            self._contexts[text] = found
        return found

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for; empty for special ids and padding of the vocabulary."""

    @abstractmethod
    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> Ids:
        """Token ids of (role, content) turns in the model's own template, ready for its answer."""

    @property
    @abstractmethod
    def special_ids(self) -> frozenset[int]:
        """Ids that are control tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; bytes that are not UTF-8 show as U+FFFD."""
        return b"".join(self.token_bytes(i) for i in ids).decode("utf-8", "replace")

    @property
    def fingerprint(self) -> str:
        """A short stable name of model and tokenizer: goes into run files."""
        return self.name

    @cached_property
    def vocabulary_id(self) -> str:
        """Equal for models whose ids mean the same bytes: then one can read the other's tokens."""
        digest = hashlib.blake2b(repr(sorted(self.eos_ids)).encode(), digest_size=8)
        for token in range(self.vocab_size):
            word = self.token_bytes(token)
            digest.update(len(word).to_bytes(4, "little") + word)
        return digest.hexdigest()

    # -- model -------------------------------------------------------------------------------

    @abstractmethod
    def open(self, contexts: Sequence[Ids]) -> Rows:
        """Start a batch at these contexts [B], each at least one token long."""

    def fits(
        self,
        contexts: Sequence[Ids],
        tokens: Sequence[int],
        running: Rows | None = None,
        growth: int = 0,
    ) -> int:
        """How many of these contexts, in order, fit in memory at once, each to grow by `tokens`.

        Args:
            contexts: token ids of each.
            tokens: how many tokens each may still draw.
            running: a batch that is there already.
            growth: how many tokens the rows of that batch may still draw, in all.
        """
        return len(contexts)

    def advance(self, states: Sequence[StringState], chance: Chance, limit: int | None) -> int:
        """Where `draws_strings` or `bounded`: advance unfinished strings in place, as `lm.generate.advance`."""
        raise NotImplementedError

    def check_draw(self, law: StringLaw, chance: Chance) -> None:  # noqa: B027  # most draw all
        """Refuse strings that it cannot draw; asked at a site, before its batch is sent.

        Raises:
            CapabilityError: what the law needs, and what there is.
        """

    def check_score(  # noqa: B027
        self,
        continuations: Sequence[Ids],
        ends: Sequence[Sequence[int] | None],
        temperatures: Sequence[float],
    ) -> None:
        """Refuse texts that `score` could not score; asked at a site, before its batch is sent.

        Raises:
            CapabilityError: what they need, and what there is.
        """

    def score(
        self,
        contexts: Sequence[Ids],
        continuations: Sequence[Ids],
        ends: Sequence[Sequence[int] | None],
        temperatures: Sequence[float],
    ) -> list[Floats]:
        """Log p(x_t | context, x_<t) for each token of each continuation.

        Where `ends[b]` is a set of ids, one more entry follows: the log-mass of that set after the
        continuation. So row b is an array [T_b] or [T_b + 1]. This default feeds the tokens one by
        one; a backend overrides it by one batched prefill.
        """
        out: list[list[float]] = [[] for _ in contexts]
        alive = [b for b in range(len(contexts)) if continuations[b] or ends[b] is not None]
        if not alive:
            return [np.zeros(0) for _ in contexts]
        rows = self.open([contexts[b] for b in alive])
        step = 0
        while alive:
            sets = [
                (continuations[b][step],) if step < len(continuations[b]) else ends[b] or ()
                for b in alive
            ]
            masses = rows.log_mass(sets, [temperatures[b] for b in alive])
            for b, mass in zip(alive, masses.tolist(), strict=True):
                out[b].append(mass)
            keep = [
                i
                for i, b in enumerate(alive)
                if step + 1 < len(continuations[b])
                or (step < len(continuations[b]) and ends[b] is not None)
            ]
            if not keep:
                break
            if len(keep) < len(alive):
                rows.select(np.array(keep, dtype=np.int64))
            alive = [alive[i] for i in keep]
            rows.push(np.array([continuations[b][step] for b in alive], dtype=np.int64))
            step += 1
        rows.close()
        return [np.array(row, dtype=np.float64) for row in out]
