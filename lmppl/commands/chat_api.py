"""The OpenAI chat protocol, as far as a posterior can speak it: requests in, answers out, as JSON.

| of the protocol | here |
| --- | --- |
| the last user message | the program's question; an argument `messages` gets all of them |
| `n` | draws from the posterior; without it, or at temperature 0, the most probable answer |
| `logprobs`, `top_logprobs` | one entry: the answer with its log posterior probability, and the others |
| `seed` | of the inference; a fresh one each time when left out, and told in the response |
| `lmppl` in a response | the posterior over answers, log-evidence, ESS, costs, warnings |

Other settings of the protocol have no meaning for a program and are accepted and ignored, but
`tools`, which would change what an answer is.
"""

from __future__ import annotations

import inspect
import json
import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lmppl.data import Check, fits
from lmppl.errors import LmpplError
from lmppl.inference.results.posterior import Posterior
from lmppl.inference.results.summary import answers, posterior_summary
from lmppl.plainjson import readable

MOST_CHOICES = 128
MOST_TOP = 20
PIECE = 24
"""Characters of an answer in one chunk of a stream, at a space where there is one."""


class Refused(LmpplError):
    """A request that is not answered, with what the protocol says of it."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        """Keep the parts."""
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


@dataclass(frozen=True)
class Chat:
    """A checked request."""

    kwargs: Mapping[str, Any]
    n: int = 1
    best: bool = True
    """The most probable answer, not draws."""
    seed: int = 0
    stream: bool = False
    usage: bool = False
    """Whether a stream ends with the costs."""
    top: int | None = None
    """How many answers `logprobs` lists; None where it is not asked for."""


def error_json(message: str, kind: str, param: str | None = None, code: str | None = None) -> Any:
    """An error object of the protocol."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Arguments:
    """Makes the arguments of a program from messages."""

    def __init__(self, program: Callable[..., Any]) -> None:
        """Look at its signature."""
        parameters = inspect.signature(program).parameters.values()
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self._check: Check = fits(program)
        self._all = any(p.name == "messages" for p in named)
        self._needed = [p.name for p in named if p.default is p.empty and p.name != "messages"]
        self._names = [p.name for p in named]

    def of(self, messages: Any) -> dict[str, Any]:
        """The keyword arguments.

        Raises:
            Refused: the messages are none, or do not fit.
        """
        turns = _turns(messages)
        kwargs: dict[str, Any] = {"messages": turns} if self._all else {}
        asked = next((text for role, text in reversed(turns) if role == "user"), None)
        if asked is None:
            raise Refused("messages has no user message", param="messages")
        if len(self._needed) > 1:
            kwargs |= self._fields(asked)
        elif self._needed:
            kwargs[self._needed[0]] = asked
        elif self._names and not self._all:
            kwargs[self._names[0]] = asked
        if wrong := self._check(kwargs):
            raise Refused("; ".join(wrong), param="messages")
        return kwargs

    def _fields(self, text: str) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Refused(
                f"the program takes {', '.join(self._needed)}: write the message as a JSON object "
                "with these fields",
                param="messages",
            )
        return found


def _turns(messages: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(messages, list) or not messages:
        raise Refused("messages must be a list with at least one message", param="messages")
    turns = []
    for m in messages:
        role = m.get("role") if isinstance(m, dict) else None
        content = m.get("content") if isinstance(m, dict) else None
        if isinstance(content, list):
            kinds = {p.get("type") if isinstance(p, dict) else None for p in content}
            if kinds - {"text"}:
                raise Refused("only text parts of a message are understood", param="messages")
            content = "".join(str(p.get("text", "")) for p in content)
        if not isinstance(role, str) or not isinstance(content, str):
            raise Refused("a message needs a role and a content, both text", param="messages")
        turns.append((role, content))
    return tuple(turns)


def checked(data: Any, model: str, arguments: Arguments, seed: int | None) -> Chat:
    """The request in a body.

    Args:
        data: the body.
        model: the only one there is.
        arguments: of the program.
        seed: for requests that name none; None makes one.

    Raises:
        Refused: with the field that is wrong.
    """
    if not isinstance(data, dict):
        raise Refused("the body must be a JSON object")
    asked = data.get("model", model)
    if asked != model:
        raise Refused(
            f"the model {asked!r} does not exist; this server has {model!r}",
            status=404,
            param="model",
            code="model_not_found",
        )
    if data.get("tools") or data.get("functions"):
        raise Refused("a program has tools of its own; tools is not understood", param="tools")
    n = _number(data, "n", int, 1, MOST_CHOICES)
    temperature = _number(data, "temperature", float, 0.0, 2.0)
    top: int | None = None
    if data.get("logprobs"):
        wanted = _number(data, "top_logprobs", int, 0, MOST_TOP)
        top = MOST_TOP if wanted is None else int(wanted)
    found = _number(data, "seed", int, -(2**63), 2**63 - 1)
    if found is None:
        found = secrets.randbits(31) if seed is None else seed
    options = data.get("stream_options")
    return Chat(
        arguments.of(data.get("messages")),
        n=int(n or 1),
        best=temperature == 0 or (n is None and temperature is None),
        seed=int(found),
        stream=bool(data.get("stream")),
        usage=isinstance(options, dict) and bool(options.get("include_usage")),
        top=top,
    )


def _number(data: Any, name: str, kind: type, low: float, high: float) -> float | None:
    value = data.get(name)
    if value is None:
        return None
    good = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if not good or not low <= value <= high:
        raise Refused(
            f"{name} must be {'an integer' if kind is int else 'a number'} from {low:g} to {high:g}",
            param=name,
        )
    return value  # type: ignore[no-any-return]


# -- answers --------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """An answer as the content of a message: text as it is, anything else as JSON."""
    if isinstance(value, str):
        return str(value)
    return json.dumps(readable(value), ensure_ascii=False)


def response(chat: Chat, posterior: Posterior, model: str, name: str) -> dict[str, Any]:
    """The whole answer."""
    table = answers(posterior)
    if chat.best:
        best = next(iter(table))
        values = [best] * chat.n
    else:
        values = [t.result for t in posterior.sample(chat.n, seed=chat.seed)]
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": shown(value)},
            "finish_reason": "stop",
            "logprobs": None if chat.top is None else _logprobs(value, table, chat.top),
        }
        for i, value in enumerate(values)
    ]
    return {
        "id": name,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": choices,
        "usage": _usage(posterior),
        "lmppl": extension(posterior, chat.seed),
    }


def extension(posterior: Posterior, seed: int) -> dict[str, Any]:
    """The posterior, for clients that know what one is."""
    summary = posterior_summary(posterior)
    rows = [
        {"answer": answer, "probability": p, "standard_error": error}
        for answer, p, error in summary["posterior"]
    ]
    kept = ("log_evidence", "log_evidence_se", "ess", "particles", "ledger", "warnings")
    return {
        "posterior": rows,
        "engine": posterior.engine,
        "seed": seed,
        **{k: summary[k] for k in kept},
    }


def _usage(posterior: Posterior) -> dict[str, int]:
    book = posterior.ledger
    return {
        "prompt_tokens": book.tokens_in,
        "completion_tokens": book.tokens_out,
        "total_tokens": book.tokens,
    }


def _logprobs(value: Any, table: Mapping[Any, float], top: int) -> dict[str, Any]:
    """An answer as if it were one token: its log posterior probability, beside the others'."""

    def entry(v: Any, p: float) -> dict[str, Any]:
        text = shown(v)
        logp = math.log(p) if p > 0 else -9999.0
        return {"token": text, "logprob": logp, "bytes": list(text.encode("utf-8", "replace"))}

    own = value if value in table else repr(value)
    others = [entry(v, p) for v, p in list(table.items())[:top]]
    return {"content": [{**entry(value, table[own]), "top_logprobs": others}], "refusal": None}


def chunks(chat: Chat, whole: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The same answer as a stream: the content of each choice in pieces."""
    head = {k: whole[k] for k in ("id", "created", "model")} | {"object": "chat.completion.chunk"}

    def chunk(index: int, delta: Any, reason: str | None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return {**head, "choices": [choice]}

    last = len(whole["choices"]) - 1
    for choice in whole["choices"]:
        i = choice["index"]
        yield chunk(i, {"role": "assistant", "content": ""}, None)
        for piece in pieces(choice["message"]["content"]):
            yield chunk(i, {"content": piece}, None)
        end = chunk(i, {}, "stop", choice["logprobs"])
        yield {**end, "lmppl": whole["lmppl"]} if i == last else end
    if chat.usage:
        yield {**head, "choices": [], "usage": whole["usage"]}


def pieces(text: str) -> Iterator[str]:
    """A text cut after spaces, never inside a word that fits.

    >>> list(pieces("one two three four five six seven"))
    ['one two three four five ', 'six seven']
    """
    while len(text) > PIECE:
        cut = text.rfind(" ", 0, PIECE) + 1 or PIECE
        yield text[:cut]
        text = text[cut:]
    if text:
        yield text
