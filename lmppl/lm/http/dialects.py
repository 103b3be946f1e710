"""What one kind of server is asked, and how its answer is read.

An `Ask` says in neutral terms what is wanted; a `Dialect` writes it as one server wants it and
reads the `Reply`. Everything that could make an answer another one than it seems is checked here:
it belongs to this request and model, ends for a known reason, has a log-probability for each token,
and each is the logarithm of a probability.
"""

from __future__ import annotations

import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from lmppl.errors import CapabilityError, excerpt
from lmppl.lm.http.errors import BadResponse, ResponseCut, TextFiltered
from lmppl.types import Ids

ALL = -1
"""Log-probabilities of the whole vocabulary."""
FLOOR = -9000.0
"""Servers that write -9999 mean that they do not know."""
SLACK = 1e-4
"""Rounding above log 1."""


@dataclass(frozen=True)
class Ask:
    """One request, in neutral terms; equal ones have equal answers, up to the server's rounding."""

    prompt: Ids
    most: int = 1
    """Tokens to draw."""
    seed: int = 0
    """Of this draw alone: it keeps draws of equal prompts apart."""
    temperature: float = 1.0
    """0: the most probable token."""
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    ends: tuple[int, ...] = ()
    """Ids that end the text."""
    top: int = 0
    """How many log-probabilities of each position, most probable first; `ALL` for the whole row."""
    ids: Ids = ()
    """Ids whose log-probabilities are wanted."""
    scored_from: int | None = None
    """Score the tokens of the prompt from this one on."""
    forced: int | None = None
    """The token that is drawn whatever its probability."""


class Reply(NamedTuple):
    """What came of it."""

    tokens: Ids
    logps: tuple[float, ...]
    """Of each token; empty where the server gives none."""
    why: str
    """"length", "stop" (a stop text or id) or "eos"."""
    tops: tuple[Mapping[int, float], ...] = ()
    """Log-probabilities by id, for each token drawn."""
    scored: tuple[float, ...] = ()
    """Log-probabilities of the prompt's tokens that were to be scored."""
    text: str | None = None
    """What the server says the tokens are; the only thing there is where it gives no ids."""
    cached: int = 0
    """Tokens of the prompt that the server did not compute again."""
    gaps: tuple[int, ...] = ()
    """Places of tokens whose log-probability the server left out; it stands as nan in `logps`."""


@dataclass(frozen=True)
class Served:
    """A model of a server."""

    name: str
    max_context: int | None = None
    folder: str = ""
    """Where the server has it from: a name on the hub, or a folder of its machine."""


class Dialect(ABC):
    """One kind of server."""

    name: ClassVar[str]
    path: ClassVar[str]
    echo: ClassVar[bool] = False
    """Whether it scores the tokens of a prompt."""
    forces: ClassVar[bool] = False
    """Whether a token can be forced, and its log-probability stays the model's."""
    stops: ClassVar[bool] = True
    """Whether the tokens of a stop text come with their log-probabilities."""
    most_ids: ClassVar[int] = 0
    """Of `Ask.ids`."""
    seed_bits: ClassVar[int] = 63
    plain: int | None = None
    """A token of whole characters, for servers that say nothing of others."""

    @abstractmethod
    def body(self, ask: Ask, model: str, tag: str) -> dict[str, Any]:
        """The JSON of a request."""

    @abstractmethod
    def read(self, ask: Ask, model: str, tag: str, data: Any) -> Reply:
        """The answer in it."""

    @abstractmethod
    def merge(self, chunks: Sequence[Any], done: bool) -> Any:
        """The JSON of a stream."""

    def hides(self, word: bytes) -> bool:
        """Whether a token of these bytes, drawn alone, comes without its log-probability."""
        return False


def new_tag() -> str:
    """A name for one attempt, which a good server repeats in its answer."""
    return f"lmppl-{secrets.token_hex(8)}"


# -- reading, with every doubt an error ---------------------------------------------------------


@dataclass
class Reader:
    """Takes parts of one response, or says what is wrong with it."""

    server: str
    data: Any
    _path: list[str] = field(default_factory=list)

    def get(self, data: Any, name: str, kind: type | tuple[type, ...]) -> Any:
        """A part that must be there."""
        found = data.get(name) if isinstance(data, Mapping) else None
        if not isinstance(found, kind) or isinstance(found, bool):
            raise BadResponse(
                f"the response has no usable {name!r}",
                value=excerpt(data, 160),
                fix=f"it is not what {self.server} answers; is another kind of server there?",
            )
        return found

    def same(self, what: str, sent: object, got: object) -> None:
        """A part that must be what was sent, where the server repeats it."""
        if got is not None and got != sent:
            raise BadResponse(
                f"the response belongs to another request: its {what} differs",
                value=f"sent {excerpt(sent, 60)}, got {excerpt(got, 60)}",
                why="a proxy that mixes up responses would give one question another's text",
                fix="talk to the server directly, or correct the proxy",
            )

    def model(self, asked: str, got: object) -> None:
        """The model that answers must be the one that was asked."""
        if isinstance(got, str) and got != asked:
            raise BadResponse(
                f"{asked!r} was asked, and {got!r} answers",
                why="its probabilities are those of another model",
                fix=f"name it: http://host:port#{got}",
            )

    def reason(self, ask: Ask, why: object, tokens: int) -> None:
        """A text must have ended as it should."""
        if why is None or why == "":
            raise ResponseCut(
                "the response does not say why its text ends",
                why="it may have been cut off",
                fix="what had arrived is dropped",
            )
        if why == "content_filter":
            raise TextFiltered(
                "the server cut the text by a content filter",
                why="what is left has another law than the model's",
                fix="switch the filter off for this model, or use another server",
            )
        if why not in ("length", "stop", "eos"):
            raise BadResponse(
                f"the text ends for an unknown reason: {excerpt(why, 60)}",
                fix="nothing of it is used; look at the server's log",
            )
        if why == "length" and tokens < ask.most:
            raise BadResponse(
                f"the server stopped after {tokens} of {ask.most} tokens, and calls it their number",
                why="a limit of its own would cut texts silently",
                fix="raise the server's limit on new tokens, or lower max_tokens",
            )
        if tokens > ask.most:
            raise BadResponse(
                f"the server gives {tokens} tokens where {ask.most} were asked for",
                fix="nothing of it is used; look at the server's log",
            )

    def logps(self, values: Sequence[Any], tokens: int) -> tuple[float, ...]:
        """One log-probability per token."""
        if len(values) != tokens:
            raise CapabilityError(
                f"{self.server} gives {len(values)} log-probabilities for {tokens} tokens",
                why="a text without them has no weight",
                fix="use engine=Forward(), or another server",
            )
        return tuple(self.logp(v) for v in values)

    def logp(self, value: Any) -> float:
        """The logarithm of a probability, or an error: never a number that is none."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            x = float(value)
            if FLOOR < x <= SLACK and math.isfinite(x):
                return min(x, 0.0)
        raise CapabilityError(
            f"{self.server} reports the log-probability {excerpt(value, 40)}",
            why="a log-probability is a finite number of at most 0; any other would make a wrong weight",
            fix="look at the server's log; use engine=Forward(), or another server",
        )

    def table(self, pairs: Mapping[int, Any]) -> dict[int, float]:
        """Log-probabilities by id; -9999 and -inf mean zero probability in a whole row."""
        return {
            i: -math.inf if isinstance(v, float) and v <= FLOOR else self.logp(v)
            for i, v in pairs.items()
        }
