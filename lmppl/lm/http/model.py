"""`HTTPLM`: a language model behind a server: vLLM, SGLang, llama.cpp, or one that speaks as they do.

    lm = HTTPLM("http://localhost:8000")            # or load("vllm:http://gpu1:8000#NAME")

Texts go by token ids, so that what is weighed is what was drawn. Whole strings are drawn by the
server's own loop, all strings of a batch at once; each with a seed that is a function of its draw.
What the server's log-probabilities mean is probed when the model is loaded; what it cannot give is
not declared, and asking for it is an error before anything is sent.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from lmppl.errors import BadArgument, CapabilityError, LmpplError
from lmppl.lm.base import Capabilities, LanguageModel, TokenLaw
from lmppl.lm.generate import StringLaw, StringState, advance_rows, end_ids
from lmppl.lm.http.client import Client, Post
from lmppl.lm.http.detect import identify
from lmppl.lm.http.dialects import ALL, Ask, Reply, new_tag
from lmppl.lm.http.draw import continue_strings
from lmppl.lm.http.memory import Memory
from lmppl.lm.http.probe import TEXT, probe
from lmppl.lm.http.retry import Clock, Policy
from lmppl.lm.http.rows import HTTPRows
from lmppl.lm.http.score import Part, assemble, parts
from lmppl.lm.http.url import parse
from lmppl.lm.http.vocabulary import find
from lmppl.lm.needs import require
from lmppl.lm.table import log_softmax
from lmppl.random import Argmax, Chance, GumbelMax
from lmppl.types import Floats, Ids

KEY = "LMPPL_API_KEY"
ROW_BYTES = 64 << 20


class HTTPLM(LanguageModel):
    """A model behind a server.

    Args:
        address: `http://host:port#MODEL`, with `vllm:`, `sglang:`, `llamacpp:` or `openai:` before
            it where the kind of server is not to be found out; see `lmppl.lm.http.url`.
        tokenizer: its tokenizer: a model, folder or name; None takes what the server says.
        model: which of its models; the same as after `#`.
        name: what the ledger calls it.
        key: the API key; LMPPL_API_KEY when left out.
        tolerance: the most that two ways to the same log-probability may differ by, in nats.
        stream: receive texts as they grow: for proxies that end silent connections.
        cache: a file that keeps answers, by draw, for later processes.
        clock: real time, or a test's.
        limits: those of `Policy`: concurrency, timeout, attempts, …
    """

    draws_strings = True

    def __init__(
        self,
        address: str,
        *,
        tokenizer: Any = None,
        model: str | None = None,
        name: str | None = None,
        key: str | None = None,
        tolerance: float = 1e-3,
        stream: bool = False,
        cache: str | Path | None = None,
        clock: Clock | None = None,
        **limits: Any,
    ) -> None:
        """Find the server, its model and tokenizer, and probe what its numbers mean."""
        where, inside = parse(address)
        own = {
            "tokenizer": tokenizer, "model": model, "name": name, "tolerance": tolerance,
            "stream": stream, "cache": cache,
        }  # fmt: skip
        given = {**own, **{k: v for k, v in inside.items() if k in own}}
        unknown = sorted(set(limits) - {f.name for f in fields(Policy)})
        if unknown:
            raise BadArgument(
                f"a server has no option {', '.join(unknown)}",
                fix=f"the limits are {', '.join(f.name for f in fields(Policy))}",
            )
        policy = Policy(**{**limits, **{k: v for k, v in inside.items() if k not in own}})
        self.client = Client(where, key=key or os.environ.get(KEY), policy=policy, clock=clock)
        try:
            self._begin(given, where.kind, given["model"] or where.model)
        except BaseException:
            self.client.close()
            raise

    def _begin(self, given: dict[str, Any], kind: str, model: str) -> None:
        self.dialect, self.served = identify(self.client, kind, model)
        self.vocabulary, width = find(given["tokenizer"], self.served.name, self.served.folder)
        super().__init__(
            name=given["name"] or short_name(self.served.name),
            vocab_size=width,
            max_context=self.served.max_context or 1 << 20,
            eos_ids=frozenset(self.vocabulary.eos_ids),
            bos_id=self.vocabulary.bos_id,
        )
        self.stream = bool(given["stream"])
        self._rows: OrderedDict[Ids, Floats] = OrderedDict()
        self._memory = Memory(f"{self.dialect.name}:{self.served.name}:{width}", given["cache"])
        self.dialect.plain = self.encode("a")[0] if self.encode("a") else None
        start = self.context(TEXT) or (min(set(range(width)) - self.special_ids),)
        self.probed = probe(
            lambda ask: self._ask([ask])[0],
            self.dialect,
            start[:8],
            lambda context, tokens: self.plain_scores([context], [tokens], [None])[0].tolist(),
            self.decode,
            float(given["tolerance"]),
        )
        found = self.probed
        self.capabilities = Capabilities(
            logprobs="none" if found.meaning == "none" else "model",
            scores_text=found.scores,
            masks=found.rows,
            full_rows=found.rows,
            weighs_proposals=found.rows or (found.meaning == "processed" and found.scores),
            token_ids=found.ids,
            batch_invariant=False,
        )

    # -- tokenizer ---------------------------------------------------------------------------

    def encode(self, text: str) -> Ids:
        """Canonical ids, of the tokenizer beside the server."""
        return self.vocabulary.encode(text)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token."""
        return self.vocabulary.token_bytes(token)

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> Ids:
        """The model's own template, rendered here."""
        return self.vocabulary.encode_chat(messages)

    @property
    def special_ids(self) -> frozenset[int]:
        """Control tokens."""
        return frozenset(self.vocabulary.special_ids)

    @property
    def fingerprint(self) -> str:
        """Kind of server, model, and a hash of the vocabulary; not the address."""
        return f"{self.dialect.name}:{short_name(self.served.name)}:{self.vocabulary_id}"

    # -- drawing -----------------------------------------------------------------------------

    def check_draw(self, law: StringLaw, chance: Chance) -> None:
        """Whole rows where the server's own loop does not do; and the mass of a forced end."""
        if not (self.capabilities.full_rows or self._by_server(law, chance)):
            raise self._cannot(law, chance)
        if law.limit == "eos":
            self.check_score([()], [end_ids(self, law.stop)], [law.target_temperature])

    def advance(self, states: Sequence[StringState], chance: Chance, limit: int | None) -> int:
        """Whole strings by the server's loop; by rows where a law needs them."""
        here = [s for s in states if not self._by_server(s.law, chance)]
        there = [s for s in states if self._by_server(s.law, chance)]
        passes = 0
        if here:
            self.check_draw(here[0].law, chance)
            passes += advance_rows(self, here, chance, limit)
        if there:
            passes += continue_strings(self, there, isinstance(chance, Argmax), limit)
        return passes

    def _by_server(self, law: StringLaw, chance: Chance) -> bool:
        if type(chance) not in (GumbelMax, Argmax) or law.constraint is not None:
            return False
        plain = law.token._replace(mixture=0.0) == TokenLaw()
        if plain or self.capabilities.full_rows:
            return plain
        meant = law.target_temperature == 1.0 and not law.target_is_proposal
        told = self.probed.meaning == "processed" and law.target_is_proposal
        return (meant or told) and law.token.mixture == 0.0

    def _cannot(self, law: StringLaw, chance: Chance) -> CapabilityError:
        what = (
            "a constraint" if law.constraint is not None
            else f"chance by {type(chance).__name__}" if type(chance) not in (GumbelMax, Argmax)
            else "a mixture" if law.token.mixture
            else "a target of another temperature or truncation"
        )  # fmt: skip
        return CapabilityError.between(
            what,
            self.name,
            needs="whole rows",
            has=f"full_rows=False (its log-probabilities: {self.probed.meaning})",
            fix="start the server so that it gives whole rows (vLLM: --max-logprobs -1), or leave "
            "it out",
        )

    # -- scoring, rows -----------------------------------------------------------------------

    def open(self, contexts: Sequence[Ids]) -> HTTPRows:
        """Rows, where the server gives whole ones."""
        self._need_rows("the next-token law")
        return HTTPRows(self, contexts)

    def _need_rows(self, asker: str) -> None:
        fix = "start the server so that it gives whole rows (vLLM: --max-logprobs -1)"
        require(self, "full_rows", asker, fix)

    def check_score(
        self,
        continuations: Sequence[Ids],
        ends: Sequence[Sequence[int] | None],
        temperatures: Sequence[float],
    ) -> None:
        """Whole rows where the server's way to score does not do; and what that way needs."""
        if any(t != 1.0 for t in temperatures) or not self.capabilities.scores_text:
            self._need_rows("scoring these texts")
            return
        for x, e in zip(continuations, ends, strict=True):
            parts(self.dialect, self.capabilities.full_rows, self._hidden, (), x, e)

    def score(
        self,
        contexts: Sequence[Ids],
        continuations: Sequence[Ids],
        ends: Sequence[Sequence[int] | None],
        temperatures: Sequence[float],
    ) -> list[Floats]:
        """By the server's way to score, all texts at once; see the base class."""
        if any(t != 1.0 for t in temperatures) or not self.capabilities.scores_text:
            return super().score(contexts, continuations, ends, temperatures)
        return self.plain_scores(contexts, continuations, ends)

    def plain_scores(
        self,
        contexts: Sequence[Ids],
        continuations: Sequence[Ids],
        ends: Sequence[Sequence[int] | None],
    ) -> list[Floats]:
        """`score` under the model's own law."""
        rows = self.capabilities.full_rows
        plans: list[list[Part]] = [
            parts(self.dialect, rows, self._hidden, c, x, e)
            for c, x, e in zip(contexts, continuations, ends, strict=True)
        ]
        every = list(dict.fromkeys(a for plan in plans for part in plan for a in part.asks))
        replies = dict(zip(every, self._ask(every), strict=True))
        wanted = [part.row for plan in plans for part in plan if part.row is not None]
        known = dict(zip(wanted, self.rows_of(wanted), strict=True))
        out = []
        for plan in plans:
            numbers: list[float] = []
            for part in plan:
                row = None if part.row is None else known[part.row]
                numbers += assemble(part, [replies[a] for a in part.asks], row)
            out.append(np.array(numbers, dtype=np.float64))
        return out

    def rows_of(self, contexts: Sequence[Ids]) -> list[Floats]:
        """Next-token log-probabilities after each context [V]."""
        missing = [c for c in dict.fromkeys(contexts) if c not in self._rows]
        found = {c: self._rows[c] for c in contexts if c in self._rows}
        for context, reply in zip(
            missing, self._ask([Ask(c, top=ALL) for c in missing]), strict=True
        ):
            row = np.full(self.vocab_size, -np.inf)
            ids = np.fromiter(reply.tops[0], dtype=np.int64)
            row[ids] = np.fromiter(reply.tops[0].values(), dtype=np.float64)
            found[context] = self._rows[context] = log_softmax(row)
        while len(self._rows) * 8 * self.vocab_size > ROW_BYTES:
            self._rows.popitem(last=False)
        return [found[c] for c in contexts]

    # -- the wire ----------------------------------------------------------------------------

    def _ask(self, asks: Sequence[Ask]) -> list[Reply]:
        """The replies, in order.

        Raises:
            LmpplError: the first that failed; the others are remembered, not paid again.
        """
        found, failure = self.try_all(asks)
        if failure is not None:
            raise failure
        return [r for r in found if r is not None]

    def try_all(self, asks: Sequence[Ask]) -> tuple[list[Reply | None], Exception | None]:
        """The replies that came, and the first failure."""
        known = {a: self._memory.get(a) for a in dict.fromkeys(asks)}
        new = [a for a, r in known.items() if r is None]
        found = self.client.ask([self._post(a) for a in new])
        fresh = [(a, r) for a, r in zip(new, found, strict=True) if isinstance(r, Reply)]
        self._memory.put(fresh)
        self.usage.passes += bool(new)
        for ask, reply in fresh:
            known[ask] = reply
            self.usage.cached_tokens += reply.cached
            self.usage.computed_tokens += len(ask.prompt) - reply.cached + len(reply.tokens)
        errors = [r for r in found if not isinstance(r, Reply)]
        grave = [e for e in errors if not isinstance(e, LmpplError)]
        return [known[a] for a in asks], (grave or errors or [None])[0]

    def _hidden(self, token: int) -> bool:
        return self.dialect.hides(self.token_bytes(token))

    def _post(self, ask: Ask) -> Post:
        dialect, model = self.dialect, self.served.name

        def make() -> tuple[dict[str, Any], Any]:
            tag = new_tag()
            body = dialect.body(ask, model, tag)
            if streaming:
                body |= {"stream": True, "stream_options": {"include_usage": True}}
            return body, lambda data: dialect.read(ask, model, tag, data)

        streaming = self.stream and ask.top == 0 and ask.scored_from is None and ask.most > 1
        return Post(dialect.path, make, dialect.merge if streaming else None)

    def close(self) -> None:
        """End the connections."""
        self.client.close()
        self._memory.close()


def short_name(served: str) -> str:
    """What a model is called here: of a file, its name without the folders.

    >>> short_name("/models/tiny.gguf"), short_name("owner/name")
    ('tiny.gguf', 'owner/name')
    """
    return Path(served).name if Path(served).is_absolute() else served
