"""The server of llama.cpp: its own `/completion`, which knows token ids, seeds and samplers.

Its log-probabilities are the raw model's, before its samplers, over the whole vocabulary if asked.
It scores no given text; but a token whose logit is raised by 1000 is drawn for certain, and its
log-probability stays the model's: one request for each token scores a text. The tokens of a stop
text come without log-probabilities, so stop texts are looked for here and not there. So do tokens
that end inside a character; theirs are read from whole rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lmppl.lm.http.dialects import ALL, Ask, Dialect, Reader, Reply
from lmppl.lm.http.errors import BadResponse, ResponseCut

BIAS = 1000.0
WIDEST = 1 << 20
"""More entries than any vocabulary has: the whole row."""
REASONS = {"limit": "length", "eos": "eos", "word": "stop"}


class LlamaCpp(Dialect):
    """llama-server, and xllamacpp's server."""

    name = "llamacpp"
    path = "/completion"
    forces = True
    stops = False
    seed_bits = 32

    def __init__(self, width: int = WIDEST) -> None:
        """Of the vocabulary."""
        self.width = width

    def body(self, ask: Ask, model: str, tag: str) -> dict[str, Any]:
        """Samplers in our order: temperature, then top-k, then top-p, and no other."""
        samplers = ["temperature"]
        samplers += ["top_k"] if ask.top_k else []
        samplers += ["top_p"] if ask.top_p < 1.0 else []
        body: dict[str, Any] = {
            "prompt": list(ask.prompt),
            "n_predict": ask.most,
            "n_probs": self.width if ask.top == ALL else max(1, ask.top),
            "samplers": samplers,
            "temperature": ask.temperature,
            "top_k": ask.top_k,
            "top_p": ask.top_p,
            "min_p": 0.0,
            "repeat_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": ask.seed,
            "cache_prompt": True,
            "return_tokens": True,
        }
        drawn = self.plain if ask.forced is None and ask.top == ALL else ask.forced
        if drawn is not None:
            body["logit_bias"] = [[drawn, BIAS]]
        return body

    def read(self, ask: Ask, model: str, tag: str, data: Any) -> Reply:
        """The tokens with their raw log-probabilities."""
        r = Reader("llama.cpp", data)
        r.model(model, data.get("model") if isinstance(data, Mapping) else None)
        tokens = tuple(r.get(data, "tokens", list))
        settings = data.get("generation_settings")
        if isinstance(settings, Mapping):
            r.same("seed", ask.seed, settings.get("seed"))
        r.same("number of prompt tokens", len(ask.prompt), data.get("tokens_evaluated"))
        r.same("number of tokens", len(tokens), data.get("tokens_predicted"))
        if data.get("truncated"):
            raise BadResponse(
                "the server cut the prompt to fit it into its context",
                fix="give the server a larger context (-c), and lower max_tokens",
            )
        why = REASONS.get(str(data.get("stop_type")), data.get("stop_type"))
        r.reason(ask, None if why == "none" else why, len(tokens))
        rows = data.get("completion_probabilities")
        rows = list(rows) if isinstance(rows, list) else []
        logps, tops, gaps = [], [], []
        for at, token in enumerate(tokens):
            if rows and _of(rows[0], "id") == token:
                row = rows.pop(0)
                logps.append(r.logp(_of(row, "logprob")))
                entries = _of(row, "top_logprobs") or ()
                tops.append(r.table({int(e["id"]): e["logprob"] for e in entries}))
            else:
                logps.append(math.nan)
                tops.append({})
                gaps.append(at)
        if rows or len(gaps) == len(tokens) > 1:
            raise BadResponse(
                "the log-probabilities are not those of the tokens",
                fix="nothing of it is used; look at the server's log",
            )
        if ask.forced is not None:
            r.same("forced token", (ask.forced,), tokens)
        text = data.get("content")
        timings = data.get("timings")
        cached = timings.get("cache_n") if isinstance(timings, Mapping) else 0
        return Reply(
            tokens,
            tuple(logps),
            str(why),
            tuple(tops),
            text=text if isinstance(text, str) else None,
            cached=cached if isinstance(cached, int) else 0,
            gaps=tuple(gaps),
        )

    def merge(self, chunks: Sequence[Any], done: bool) -> Any:
        """The last chunk, with the tokens of all of them; it says itself that it is the last."""
        last = chunks[-1]
        if not isinstance(last, Mapping) or last.get("stop") is not True:
            raise ResponseCut("the stream ends without its end", fix="what had arrived is dropped")
        whole: dict[str, Any] = {"content": "", "tokens": [], "completion_probabilities": []}
        for chunk in chunks:
            for name, value in whole.items():
                whole[name] = value + (chunk.get(name) or type(value)())
        return {**last, **whole}

    def hides(self, word: bytes) -> bool:
        """A character that begins in it and does not end."""
        tail = word[-4:]
        for n in range(1, min(4, len(tail)) + 1):
            byte = tail[-n]
            if byte & 0xC0 == 0x80:
                continue
            return byte >= 0xC0 and n < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
        return False


def _of(row: Any, name: str) -> Any:
    return row.get(name) if isinstance(row, Mapping) else None
