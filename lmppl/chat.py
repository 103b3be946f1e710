"""`Chat`: a chat model's law of its answer to messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from lmppl.errors import BadArgument, excerpt, items_of
from lmppl.grammars import Grammar, grammar_of
from lmppl.lm.base import LanguageModel
from lmppl.lm.generate import Limit
from lmppl.random import fold
from lmppl.string_options import StringOptions, Target, as_stops, string_options
from lmppl.strings import StringDistribution
from lmppl.types import Ids

Message: TypeAlias = tuple[str, str] | Mapping[str, str]
Messages: TypeAlias = str | Sequence[Message]


class Chat(StringDistribution):
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
        self.messages = as_messages(messages)
        self._lm = lm
        self._options = string_options(
            as_stops(stop),
            max_tokens, limit, temperature, top_p, top_k, mixture,
            grammar_of(regex, json_schema, grammar, choices), target, end, 1.0, 1.0, potential, sampler,
        )  # fmt: skip

    def context(self, lm: LanguageModel) -> Ids:
        """The template's ids."""
        return lm.encode_chat(self.messages)

    def _with(self, options: StringOptions) -> Chat:
        new = Chat(self.messages, lm=self._lm)
        new._options = options
        return new

    def _longest(self) -> tuple[str | None, str]:
        n = max(range(len(self.messages)), key=lambda i: len(self.messages[i][1]))
        role, content = self.messages[n]
        return f"message {n} ({role}, {len(content):,} characters)", content

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
    for m in items_of(
        messages, "Chat needs text or a list of messages", 'write Chat([("user", "...")])'
    ):
        pair: tuple[Any, ...] = ()
        if isinstance(m, Mapping):
            pair = (m.get("role"), m.get("content"))
        elif isinstance(m, Sequence) and not isinstance(m, str):
            pair = tuple(m)
        if len(pair) != 2 or not all(isinstance(p, str) for p in pair):
            raise BadArgument(
                "a chat message is a role and a content, both text",
                value=excerpt(m),
                fix='write ("user", "...") or {"role": "user", "content": "..."}',
            )
        out.append((str(pair[0]), str(pair[1])))
    if not out:
        raise BadArgument(
            "a chat needs at least one message", fix='write Chat([("user", "...")]) or Chat("...")'
        )
    return tuple(out)
