"""SGLang: its own `/generate`, which takes token ids and scores them.

Unless it was started with SGLANG_RETURN_ORIGINAL_LOGPROB=1, its log-probabilities are those after
the temperature; the start-up probe finds out which. It keeps its cache while it scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmppl.lm.http.dialects import ALL, Ask, Dialect, Reader, Reply
from lmppl.lm.http.errors import BadResponse, ResponseCut


class SGLang(Dialect):
    """SGLang 0.5."""

    name = "sglang"
    path = "/generate"
    echo = True
    most_ids = 1024

    def __init__(self, width: int = 1 << 20) -> None:
        """Of the vocabulary."""
        self.width = width

    def body(self, ask: Ask, model: str, tag: str) -> dict[str, Any]:
        """Ids in and out; ends are ours alone."""
        body: dict[str, Any] = {
            "input_ids": list(ask.prompt),
            "rid": tag,
            "sampling_params": {
                "max_new_tokens": ask.most,
                "temperature": ask.temperature,
                "top_p": ask.top_p,
                "top_k": ask.top_k or -1,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                "sampling_seed": ask.seed,
                "stop": list(ask.stop),
                "stop_token_ids": list(ask.ends),
                "ignore_eos": True,
                "n": 1,
            },
            "return_logprob": True,
            "top_logprobs_num": self.width if ask.top == ALL else ask.top,
        }
        if ask.scored_from is not None:
            body["logprob_start_len"] = max(0, ask.scored_from - 1)
        if ask.ids:
            body["token_ids_logprob"] = list(ask.ids)
        return body

    def read(self, ask: Ask, model: str, tag: str, data: Any) -> Reply:
        """The tokens with their log-probabilities."""
        r = Reader("SGLang", data)
        info = r.get(data, "meta_info", Mapping)
        r.same("id", tag, info.get("id"))
        r.same("number of prompt tokens", len(ask.prompt), info.get("prompt_tokens"))
        pairs = _pairs(r, info, "output_token_logprobs")
        tokens = tuple(i for _, i in pairs)
        given = data.get("output_ids")
        if isinstance(given, list) and given:
            r.same("list of tokens", list(tokens), given)
        finish = info.get("finish_reason")
        why = finish.get("type") if isinstance(finish, Mapping) else finish
        r.reason(ask, why, len(tokens))
        if why == "stop" and tokens and tokens[-1] in ask.ends:
            why = "eos"
        tops: list[dict[int, float]] = [{} for _ in tokens]
        for name in ("output_top_logprobs", "output_token_ids_logprobs"):
            for row, found in zip(tops, info.get(name) or (), strict=False):
                row |= r.table({int(e[1]): e[0] for e in found or ()})
        scored: tuple[float, ...] = ()
        if ask.scored_from is not None:
            wanted = ask.prompt[ask.scored_from :]
            rows = _pairs(r, info, "input_token_logprobs")[-len(wanted) :] if wanted else []
            r.same("list of scored tokens", list(wanted), [i for _, i in rows])
            scored = tuple(r.logp(x) for x, _ in rows)
        cached = info.get("cached_tokens")
        return Reply(
            tokens,
            tuple(r.logp(x) for x, _ in pairs),
            str(why),
            tuple(tops),
            scored,
            data.get("text"),
            cached if isinstance(cached, int) else 0,
        )

    def merge(self, chunks: Sequence[Any], done: bool) -> Any:
        """Its chunks are cumulative: the last one is the whole."""
        if not done:
            raise ResponseCut("the stream ends without [DONE]", fix="what had arrived is dropped")
        return chunks[-1]


def _pairs(r: Reader, info: Any, name: str) -> list[tuple[Any, int]]:
    rows = r.get(info, name, list)
    if not all(isinstance(e, (list, tuple)) and len(e) >= 2 for e in rows):
        raise BadResponse(
            f"the response has no usable {name!r}", fix="is another kind of server there?"
        )
    return [(e[0], int(e[1])) for e in rows]
