"""Servers of `/v1/completions`: vLLM with its extensions, and others with what they have.

vLLM takes and gives token ids. Its log-probabilities are the raw model's unless it was started
with another `--logprobs-mode`; the start-up probe finds that out. It gives whole rows if started
with `--max-logprobs -1`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmppl.lm.http.dialects import Ask, Dialect, Reader, Reply
from lmppl.lm.http.errors import BadResponse, ResponseCut

MARK = "token_id:"


class OpenAI(Dialect):
    """The common part; without token ids its texts are only texts."""

    name = "openai"
    path = "/v1/completions"
    stops = False

    def body(self, ask: Ask, model: str, tag: str) -> dict[str, Any]:
        """Only fields that every server of this kind knows."""
        return {
            "model": model,
            "prompt": list(ask.prompt),
            "max_tokens": ask.most,
            "temperature": ask.temperature,
            "top_p": ask.top_p,
            "seed": ask.seed,
            "n": 1,
            "logprobs": 1,
            **({"stop": list(ask.stop[:4])} if ask.stop else {}),
        }

    def read(self, ask: Ask, model: str, tag: str, data: Any) -> Reply:
        """Ids where the server gives them, and the text."""
        r = Reader(self.name, data)
        r.model(model, data.get("model") if isinstance(data, Mapping) else None)
        choices = r.get(data, "choices", list)
        if len(choices) != 1:
            raise BadResponse(
                f"the response has {len(choices)} texts where 1 was asked for",
                fix="nothing of it is used; look at the server's log",
            )
        choice = choices[0]
        self._belongs(r, ask, tag, data, choice)
        why = choice.get("finish_reason")
        info = choice.get("logprobs")
        info = info if isinstance(info, Mapping) else {}
        tokens = self._ids(choice, info)
        text = r.get(choice, "text", str)
        if tokens is None:
            r.reason(Ask(ask.prompt, most=0), why, 0)
            return Reply((), (), str(why), text=text)
        r.reason(ask, why, len(tokens))
        usage = data.get("usage")
        usage = usage if isinstance(usage, Mapping) else {}
        r.same("number of tokens", len(tokens), usage.get("completion_tokens"))
        r.same("number of prompt tokens", len(ask.prompt), usage.get("prompt_tokens"))
        given = info.get("token_logprobs")
        logps = r.logps(given, len(tokens)) if isinstance(given, list) else ()
        if why == "stop" and choice.get("stop_reason") is None and tokens:
            why = "eos"
        return Reply(
            tokens,
            logps,
            str(why),
            self._tops(r, info, len(tokens)),
            self._scored(r, ask, choice),
            text,
            _cached(usage),
        )

    def _belongs(self, r: Reader, ask: Ask, tag: str, data: Any, choice: Any) -> None:
        """Nothing that every server would repeat."""

    def _ids(self, choice: Mapping[str, Any], info: Mapping[str, Any]) -> tuple[int, ...] | None:
        given = choice.get("token_ids")
        if isinstance(given, list) and all(isinstance(t, int) for t in given):
            return tuple(given)
        words = info.get("tokens")
        if isinstance(words, list) and words and all(_is_id(w) for w in words):
            return tuple(int(w[len(MARK) :]) for w in words)
        return None

    def _tops(self, r: Reader, info: Mapping[str, Any], n: int) -> tuple[dict[int, float], ...]:
        tops = info.get("top_logprobs")
        if not isinstance(tops, list) or len(tops) != n:
            return ()
        out = []
        for row in tops:
            if not isinstance(row, Mapping) or not all(map(_is_id, row)):
                return ()
            out.append(r.table({int(w[len(MARK) :]): v for w, v in row.items()}))
        return tuple(out)

    def _scored(self, r: Reader, ask: Ask, choice: Mapping[str, Any]) -> tuple[float, ...]:
        return ()

    def merge(self, chunks: Sequence[Any], done: bool) -> Any:
        """One response of all chunks; without its end it is none."""
        whole: dict[str, Any] = {}
        text = ""
        ids: list[Any] = []
        words: list[Any] = []
        logps: list[Any] = []
        tops: list[Any] = []
        choice: dict[str, Any] = {}
        for chunk in chunks:
            if not isinstance(chunk, Mapping):
                raise ResponseCut("a chunk of the stream is no object", fix="it is dropped")
            whole |= {k: v for k, v in chunk.items() if k != "choices" and v is not None}
            for part in chunk.get("choices") or ():
                text += part.get("text") or ""
                ids += part.get("token_ids") or []
                info = part.get("logprobs") or {}
                words += info.get("tokens") or []
                logps += info.get("token_logprobs") or []
                tops += info.get("top_logprobs") or []
                choice |= {k: v for k, v in part.items() if v is not None}
        if not done or choice.get("finish_reason") is None:
            missing = "its reason to end" if done else "[DONE]"
            raise ResponseCut(
                f"the stream ends without {missing}", fix="what had arrived is dropped"
            )
        choice |= {"text": text}
        if ids:
            choice["token_ids"] = ids
        if logps or words:
            choice["logprobs"] = {"tokens": words, "token_logprobs": logps, "top_logprobs": tops}
        return {**whole, "choices": [choice]}


class VLLM(OpenAI):
    """vLLM 0.32: every field is sent, since missing ones come from the model's own defaults."""

    name = "vllm"
    echo = True
    stops = True
    most_ids = 128

    def body(self, ask: Ask, model: str, tag: str) -> dict[str, Any]:
        """With ids in and out, and ends that are ours alone."""
        body: dict[str, Any] = {
            "model": model,
            "prompt": list(ask.prompt),
            "max_tokens": ask.most,
            "temperature": ask.temperature,
            "top_p": ask.top_p,
            "top_k": ask.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": ask.seed,
            "n": 1,
            "ignore_eos": True,
            "stop": list(ask.stop),
            "stop_token_ids": list(ask.ends),
            "logprobs": ask.top,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "request_id": tag,
        }
        if ask.ids:
            body["logprob_token_ids"] = list(ask.ids)
        if ask.scored_from is not None:
            body["prompt_logprobs"] = 0
        if ask.forced is not None:
            body["allowed_token_ids"] = [ask.forced]
        return body

    def _belongs(self, r: Reader, ask: Ask, tag: str, data: Any, choice: Any) -> None:
        """It repeats the name of the request and the prompt."""
        got = data.get("id")
        if isinstance(got, str) and "lmppl-" in got and tag not in got:
            r.same("id", tag, got)
        r.same("prompt", list(ask.prompt), choice.get("prompt_token_ids"))

    def _ids(self, choice: Mapping[str, Any], info: Mapping[str, Any]) -> tuple[int, ...] | None:
        found = super()._ids(choice, info)
        if found is None:
            raise BadResponse(
                "the response has no token ids",
                fix="vLLM gives them from version 0.10.2 on; for older ones write openai:http://…",
            )
        return found

    def _scored(self, r: Reader, ask: Ask, choice: Mapping[str, Any]) -> tuple[float, ...]:
        if ask.scored_from is None:
            return ()
        rows = choice.get("prompt_logprobs")
        if not isinstance(rows, list) or len(rows) != len(ask.prompt):
            raise BadResponse(
                "the response does not score the tokens of the prompt",
                fix="this server has no prompt_logprobs; texts cannot be scored by it",
            )
        out = []
        for token, row in list(zip(ask.prompt, rows, strict=True))[ask.scored_from :]:
            entry = row.get(str(token)) if isinstance(row, Mapping) else None
            out.append(r.logp(entry.get("logprob") if isinstance(entry, Mapping) else None))
        return tuple(out)


def _is_id(word: Any) -> bool:
    return isinstance(word, str) and word.startswith(MARK) and word[len(MARK) :].isdigit()


def _cached(usage: Mapping[str, Any]) -> int:
    details = usage.get("prompt_tokens_details")
    found = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return found if isinstance(found, int) else 0
