"""A server of a `TableLM` in a thread, that answers as vLLM, SGLang, llama.cpp or OpenAI do.

It draws by the table, with the seed of the request, so what comes through HTTP has a law that is
known exactly. `fault(n, request)` may name what goes wrong with the n-th text that is asked for, and
`breaks` answers in its place: `tests/http_faults.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmppl.lm.base import TokenLaw
from lmppl.lm.table import TableLM, token_law

PATHS = {"/v1/completions": "completions", "/completion": "llama", "/generate": "sglang"}


@dataclass
class Stub:
    """One server; `with Stub(lm).serve() as stub: HTTPLM(stub.address, tokenizer=lm)`."""

    lm: TableLM
    kind: str = "vllm"
    mode: str = "model"
    """Which law its log-probabilities are of: "model", "tempered", "processed"."""
    rows: bool = True
    """Whether it gives whole rows."""
    scores: bool = True
    key: str | None = None
    max_context: int = 4096
    shift: float = 0.0
    """Added to log-probabilities of scored texts: two ways that disagree."""
    fault: Callable[[int, dict[str, Any]], str | None] = lambda n, body: None
    breaks: Callable[..., Awaitable[bool]] | None = None
    """breaks(stub, name of the fault, writer, body, path): whether the connection goes on."""
    model: str = "toy"
    root: str = ""
    """Where it has the model from."""
    adapter: str = ""
    """A second model, made of the first."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of requests for texts, in order of arrival."""
    drawn: int = 0
    """Tokens drawn: what a client would pay."""
    most_at_once: int = 0
    _running: int = 0
    port: int = 0
    other: int = 0
    """A port that a redirect points to."""
    keys_seen: list[str | None] = field(default_factory=list)
    delay: float = 0.0

    @property
    def address(self) -> str:
        """For `HTTPLM`."""
        return f"{self.kind}:http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def serve(self) -> Iterator[Stub]:
        """Run until the block ends."""
        ready = threading.Event()
        loop = asyncio.new_event_loop()
        servers: list[asyncio.Server] = []

        async def main() -> None:
            server = await asyncio.start_server(self._client, "127.0.0.1", 0)
            servers.append(server)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()

        def run() -> None:
            asyncio.set_event_loop(loop)
            loop.create_task(main())
            loop.run_forever()
            for server in servers:
                server.close()
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        ready.wait(5)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(5)

    # -- HTTP ------------------------------------------------------------------------------------

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                first = await reader.readexactly(1)
                if first == b"\x16":  # a TLS handshake
                    break
                head = first + await reader.readuntil(b"\r\n\r\n")
                lines = head.decode().split("\r\n")
                method, path, _ = lines[0].split(" ")
                headers = {
                    k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:]) if v
                }
                raw = await reader.readexactly(int(headers.get("content-length", 0)))
                body = json.loads(raw) if raw else {}
                self.keys_seen.append(headers.get("authorization"))
                if not await self._answer(writer, method, path, body, headers):
                    break
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            pass
        finally:
            with contextlib.suppress(ConnectionError):
                writer.close()

    async def _answer(
        self,
        writer: asyncio.StreamWriter,
        method: str,
        path: str,
        body: dict[str, Any],
        headers: dict[str, str],
    ) -> bool:
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            return await self.send(writer, 401, {"error": {"message": "Invalid API Key"}})
        if path not in PATHS:
            found = self._described(path)
            return await self.send(writer, 200 if found else 404, found or {"error": "not found"})
        n = len(self.asked)
        self.asked.append(body)
        name = self.fault(n, body)
        self._running += 1
        self.most_at_once = max(self.most_at_once, self._running)
        try:
            await asyncio.sleep(self.delay)
            if name is None:
                data = self.reply(path, body)
                if data is None:
                    return await self.send(writer, 400, {"error": {"message": "not supported"}})
                if body.get("stream"):
                    return await self.stream(writer, self.chunks(data))
                return await self.send(writer, 200, data)
            if self.breaks is None:
                raise LookupError(f"a stub that breaks nothing is to fail by {name}")
            return await self.breaks(self, name, writer, body, path)
        finally:
            self._running -= 1

    def reply(self, path: str, body: dict[str, Any]) -> Any:
        """What is answered at a path; None where this server cannot."""
        return getattr(self, f"_{PATHS[path]}")(body)

    def _described(self, path: str) -> Any:
        model = {"id": self.model, "object": "model", "owned_by": self.kind}
        if path == "/v1/models":
            first = {**model, "max_model_len": self.max_context, "root": self.root}
            adapter = {**model, "id": self.adapter, "parent": self.model, "root": "elsewhere"}
            return {"data": [first, adapter] if self.adapter else [first]}
        if path == "/props" and self.kind == "llamacpp":
            return {"default_generation_settings": {"n_ctx": self.max_context}}
        return None

    # -- texts -----------------------------------------------------------------------------------

    def _row(self, ids: list[int]) -> Any:
        rows = self.lm.open([tuple(ids)])
        return rows.log_probs()[0]

    def draw(self, ids: list[int], body: dict[str, Any], most: int, ends: list[int]) -> Any:
        """Tokens, their reported log-probabilities, the rows these are of, and why they end."""
        t = body.get("temperature", 1.0)
        law = TokenLaw(max(t, 1e-3), body.get("top_p", 1.0), max(0, body.get("top_k", 0)))
        rng = np.random.default_rng(body.get("seed") or body.get("sampling_seed") or 0)
        tokens: list[int] = []
        logps: list[float] = []
        rows = []
        why = "length"
        bias = dict(map(tuple, body.get("logit_bias") or ()))
        for _ in range(most):
            raw = self._row([*ids, *tokens])
            _, q = token_law(raw[None], law, None)
            token = int((q[0] + rng.gumbel(size=len(raw))).argmax())
            if bias:
                token = int(next(iter(bias)))
            told = {
                "model": raw, "tempered": token_law(raw[None], TokenLaw(law.temperature), None)[1][0],
                "processed": q[0],
            }[self.mode]  # fmt: skip
            tokens.append(token)
            logps.append(float(told[token]))
            rows.append(told)
            self.drawn += 1
            if token in ends:
                why = "stop"
                break
            text = self.lm.decode(tokens)
            if any(s in text for s in body.get("stop") or ()):
                why = "text"
                break
        return tokens, logps, rows, why

    def _tops(self, row: Any, top: int, ids: list[int], token: int) -> dict[int, float]:
        if top < 0 or top >= len(row):
            chosen = list(range(len(row)))
        else:
            chosen = [int(i) for i in np.argsort(-row)[:top]]
        chosen += [i for i in [*ids, token] if i not in chosen]
        return {i: max(float(row[i]), -9999.0) for i in chosen}

    def _completions(self, body: dict[str, Any]) -> Any:
        prompt = body["prompt"]
        full = self.kind == "vllm"
        if body["logprobs"] == -1 and not self.rows:
            return None
        if "prompt_logprobs" in body and not self.scores:
            return None
        ends = body.get("stop_token_ids") if full else sorted(self.lm.eos_ids)
        tokens, logps, rows, why = self.draw(prompt, body, body["max_tokens"], ends or [])
        text = self.lm.decode(tokens)
        if why == "text":
            text = text[: min(text.find(s) for s in body["stop"] if s in text)]
        choice: dict[str, Any] = {
            "index": 0,
            "text": text,
            "finish_reason": "length" if why == "length" else "stop",
            "logprobs": None,
        }
        if full:
            asked = body.get("logprob_token_ids") or []
            tops = [
                self._tops(r, body["logprobs"], asked, t) for r, t in zip(rows, tokens, strict=True)
            ]
            marked = [{f"token_id:{i}": x for i, x in t.items()} for t in tops]
            choice |= {
                "token_ids": tokens,
                "prompt_token_ids": prompt,
                "stop_reason": tokens[-1]
                if why == "stop"
                else body["stop"]
                if why == "text"
                else None,
                "logprobs": {
                    "tokens": [f"token_id:{t}" for t in tokens],
                    "token_logprobs": logps,
                    "top_logprobs": marked,
                },
            }
            if "prompt_logprobs" in body:
                scored: list[Any] = [None]
                for n in range(1, len(prompt)):
                    x = float(self._row(prompt[:n])[prompt[n]])
                    scored.append({str(prompt[n]): {"logprob": max(x, -9999.0) + self.shift}})
                choice["prompt_logprobs"] = scored
        return {
            "id": f"cmpl-{body.get('request_id', 'x')}",
            "model": body["model"],
            "choices": [choice],
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(tokens)},
        }

    def _llama(self, body: dict[str, Any]) -> Any:
        ids = body["prompt"]
        tokens, logps, rows, why = self.draw(ids, body, body["n_predict"], sorted(self.lm.eos_ids))
        shown = [
            {
                "id": t,
                "logprob": x,
                "top_logprobs": [
                    {"id": i, "logprob": y}
                    for i, y in self._tops(r, body["n_probs"] if self.rows else 1, [], t).items()
                ],
            }
            for t, x, r in zip(tokens, logps, rows, strict=True)
        ]
        return {
            "content": self.lm.decode(tokens),
            "tokens": tokens,
            "stop": True,
            "model": self.model,
            "tokens_predicted": len(tokens),
            "tokens_evaluated": len(ids),
            "generation_settings": {"seed": body["seed"]},
            "stop_type": "eos" if why == "stop" else "limit",
            "completion_probabilities": shown,
        }

    def _sglang(self, body: dict[str, Any]) -> Any:
        settings = body["sampling_params"]
        ids = body["input_ids"]
        if body["top_logprobs_num"] > len(self.lm.words) and not self.rows:
            return None
        tokens, logps, rows, why = self.draw(
            ids, settings, settings["max_new_tokens"], settings["stop_token_ids"]
        )
        info: dict[str, Any] = {
            "id": body["rid"],
            "prompt_tokens": len(ids),
            "completion_tokens": len(tokens),
            "finish_reason": {"type": "length" if why == "length" else "stop"},
            "output_token_logprobs": [[x, t, None] for x, t in zip(logps, tokens, strict=True)],
            "output_top_logprobs": [
                [[x, i, None] for i, x in self._tops(r, body["top_logprobs_num"], [], t).items()]
                for r, t in zip(rows, tokens, strict=True)
            ],
            "output_token_ids_logprobs": [
                [[max(float(r[i]), -9999.0), i, None] for i in body.get("token_ids_logprob") or ()]
                for r in rows
            ],
        }
        if "logprob_start_len" in body:
            start = body["logprob_start_len"]
            info["input_token_logprobs"] = [
                [None if n == start else float(self._row(ids[:n])[ids[n]]), ids[n], None]
                for n in range(start, len(ids))
            ]
        return {"text": self.lm.decode(tokens), "output_ids": tokens, "meta_info": info}

    def chunks(self, data: Any) -> list[bytes]:
        """The events of a stream, one token each."""
        if self.kind == "llamacpp":
            parts = [
                {"content": "", "tokens": [t], "stop": False, "completion_probabilities": [p]}
                for t, p in zip(data["tokens"], data["completion_probabilities"], strict=True)
            ]
            last = {**data, "tokens": [], "completion_probabilities": [], "content": ""}
            parts[0]["content"] = data["content"]
            return [event(p) for p in [*parts, last]]
        choice = data["choices"][0]
        n = len(choice["token_ids"])
        out = []
        for i in range(n):
            info = {k: v[i : i + 1] for k, v in choice["logprobs"].items()}
            part = {
                "index": 0,
                "text": choice["text"] if i == 0 else "",
                "token_ids": choice["token_ids"][i : i + 1],
                "logprobs": info,
                "finish_reason": choice["finish_reason"] if i == n - 1 else None,
            }
            out.append(event({"id": data["id"], "model": data["model"], "choices": [part]}))
        usage = {"id": data["id"], "model": data["model"], "choices": [], "usage": data["usage"]}
        return [*out, event(usage), b"data: [DONE]\n\n"]

    # -- the socket -----------------------------------------------------------------------------

    @staticmethod
    async def send(
        writer: asyncio.StreamWriter, status: int, data: Any, more: dict[str, str] | None = None
    ) -> bool:
        """One whole response."""
        raw = json.dumps(data).encode()
        lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json"]
        lines += [f"{k}: {v}" for k, v in (more or {}).items()]
        lines += [f"Content-Length: {len(raw)}", "", ""]
        writer.write("\r\n".join(lines).encode() + raw)
        await writer.drain()
        return True

    @staticmethod
    async def stream(writer: asyncio.StreamWriter, events: list[bytes], piece: int = 0) -> bool:
        """Events, in pieces of some bytes where given; then the end of the connection."""
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
        )
        whole = b"".join(events)
        if not piece:
            writer.write(whole)
        for i in range(0, len(whole) if piece else 0, piece or 1):
            writer.write(whole[i : i + piece])
            if i % 16 == 0:
                await writer.drain()
                await asyncio.sleep(0)
        await writer.drain()
        return False


def event(data: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"
