"""`lmppl serve`: a chat client's requests to a posterior, over a socket."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

httpx2 = pytest.importorskip("httpx2")
uvicorn = pytest.importorskip("uvicorn")

from lmppl import LM, Categorical, factor, observe, program, sample  # noqa: E402
from lmppl.commands.serve import Service, Settings, accepted_hosts  # noqa: E402
from lmppl.commands.serve_command import serve  # noqa: E402
from lmppl.errors import BadArgument  # noqa: E402
from lmppl.inference import SMC, Engine, Enumerate, infer  # noqa: E402
from lmppl.inference.questions.arrivals import Arrivals  # noqa: E402
from lmppl.lm.base import LanguageModel  # noqa: E402
from lmppl.lm.table import TableLM  # noqa: E402

NO_KEY = {"LMPPL_SERVE_KEY": ""}
TOY = TableLM.random(["a", "b", "?", ".", "<eos>"], seed=4, name="toy")


@program
def guess(question: str) -> Any:
    """An answer that the question's length makes more or less probable."""
    answer = sample("answer", Categorical({"yes": 0.6, "no": 0.3, "perhaps": 0.1}))
    observe(
        "length", Categorical({True: 0.9, False: 0.1}), (answer == "yes") == (len(question) > 5)
    )
    return answer


@program
def spoken(question: str, hint: str = "") -> str:
    return str(sample("text", LM(question, max_tokens=4)))


class Running:
    """A server in a thread."""

    def __init__(self, fn: Any, engine: Engine, lm: LanguageModel | None, **settings: Any) -> None:
        own = {k: settings.pop(k) for k in ("concurrency", "waiting") if k in settings}
        self.line = Arrivals(fn, engine=engine, lm=lm, **own)
        app = Service(fn, self.line, Settings("guess", **settings)).app()
        config = uvicorn.Config(app, port=0, log_level="critical", lifespan="off", ws="none")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.005)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20)

    def chat(self, text: str = "a question?", headers: Any = None, **more: Any) -> Any:
        body = {"model": "guess", "messages": [{"role": "user", "content": text}], **more}
        return self.http.post("/v1/chat/completions", json=body, headers=headers)

    def close(self) -> None:
        self.http.close()
        self.server.should_exit = True
        self.thread.join(10)
        self.line.close()


@pytest.fixture
def start() -> Iterator[Any]:
    running: list[Running] = []

    def make(fn: Any = guess, engine: Any = None, lm: Any = None, **settings: Any) -> Running:
        running.append(Running(fn, engine or Enumerate(), lm, **settings))
        return running[-1]

    yield make
    for one in running:
        one.close()


def test_an_answer_is_the_most_probable_one_with_its_posterior(start: Any) -> None:
    server = start()
    got = server.chat(logprobs=True, top_logprobs=2).json()
    exact = infer(guess, "a question?", engine=Enumerate()).marginal()
    assert got["object"] == "chat.completion" and got["model"] == "guess"
    (choice,) = got["choices"]
    assert choice["message"] == {"role": "assistant", "content": "yes"}
    assert choice["finish_reason"] == "stop"
    (token,) = choice["logprobs"]["content"]
    assert token["token"] == "yes" and len(token["top_logprobs"]) == 2
    told = {row["answer"]: row["probability"] for row in got["lmppl"]["posterior"]}
    assert told == pytest.approx(dict(exact))
    assert got["lmppl"]["log_evidence"] == pytest.approx(
        infer(guess, "a question?", engine=Enumerate()).log_evidence
    )


def test_choices_are_draws_of_the_posterior(start: Any) -> None:
    # one z-test at 1e-6 of 100 draws
    server = start()
    got = server.chat("short", n=100, temperature=1.0, seed=3).json()
    drawn = [c["message"]["content"] for c in got["choices"]]
    assert [c["index"] for c in got["choices"]] == list(range(100))
    p = infer(guess, "short", engine=Enumerate()).marginal()["no"]
    assert abs(drawn.count("no") - 100 * p) < 4.9 * (100 * p * (1 - p)) ** 0.5
    again = server.chat("short", n=100, temperature=1.0, seed=3).json()
    assert [c["message"]["content"] for c in again["choices"]] == drawn
    same = server.chat("short", n=3, temperature=0).json()["choices"]
    assert {c["message"]["content"] for c in same} == {"no"}


def test_a_request_is_the_inference_that_its_seed_says(start: Any) -> None:
    server = start(spoken, SMC(8), TOY)
    got = server.chat("ab", seed=11).json()
    post = infer(spoken, engine=SMC(8), lm=TOY, seed=11, kwargs={"question": "ab"})
    assert got["lmppl"]["seed"] == 11
    told = {row["answer"]: row["probability"] for row in got["lmppl"]["posterior"]}
    assert told == pytest.approx({str(k): v for k, v in post.marginal().items()})
    assert got["usage"]["completion_tokens"] == post.ledger.tokens_out > 0
    seeds = {server.chat("ab").json()["lmppl"]["seed"] for _ in range(3)}
    assert len(seeds) == 3  # fresh ones


def events(text: str) -> list[Any]:
    lines = [line for line in text.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_a_stream_spells_the_same_answer(start: Any) -> None:
    @program
    def wordy(question: str) -> str:
        return "a long answer of many words, " * 4 + question

    server = start(wordy)
    whole = server.chat("why?").json()["choices"][0]["message"]["content"]
    got = server.chat("why?", stream=True, stream_options={"include_usage": True})
    assert got.headers["content-type"].startswith("text/event-stream")
    found = events(got.text)
    parts = [c["choices"][0]["delta"].get("content", "") for c in found if c["choices"]]
    assert "".join(parts) == whole and len(parts) > 5
    assert found[-2]["choices"][0]["finish_reason"] == "stop"
    assert found[-2]["lmppl"]["posterior"][0]["answer"] == whole
    assert found[-1]["choices"] == [] and "total_tokens" in found[-1]["usage"]
    assert all(c["object"] == "chat.completion.chunk" for c in found)


class Gated(TableLM):
    """Waits before its first batch until the gate opens; counts the rows of each."""

    gate: threading.Event
    sizes: list[int]

    def open(self, contexts: Any) -> Any:
        self.gate.wait(20)
        self.sizes.append(len(contexts))
        return super().open(contexts)


def gated() -> Gated:
    lm = Gated(["a", "b", "<eos>"], {(): [0.5, 0.3, 0.2]})
    lm.gate, lm.sizes = threading.Event(), []
    return lm


def until(ready: Any) -> None:
    end = time.monotonic() + 20
    while not ready() and time.monotonic() < end:
        time.sleep(0.005)


def test_concurrent_requests_share_batches(start: Any) -> None:
    lm = gated()
    server = start(spoken, SMC(4), lm)
    threads = [threading.Thread(target=server.chat, args=("ab",)) for _ in range(6)]
    for t in threads:
        t.start()
    until(lambda: server.line.running + server.line.waiting == 6)
    lm.gate.set()
    for t in threads:
        t.join()
    assert sum(lm.sizes) == 24 and len(lm.sizes) <= 3


def test_models_and_health(start: Any) -> None:
    server = start()
    (entry,) = server.http.get("/v1/models").json()["data"]
    assert entry["id"] == "guess" and entry["owned_by"] == "lmppl"
    assert server.http.get("/v1/models/guess").json() == entry
    assert server.http.get("/v1/models/other").status_code == 404
    assert server.http.get("/health").json()["status"] == "ok"


BAD: tuple[tuple[dict[str, Any], int, str | None], ...] = (
    ({"model": "gpt-4"}, 404, "model"),
    ({"messages": []}, 400, "messages"),
    ({"messages": [{"role": "user"}]}, 400, "messages"),
    ({"messages": [{"role": "system", "content": "x"}]}, 400, "messages"),
    ({"messages": "hello"}, 400, "messages"),
    ({"n": 0}, 400, "n"),
    ({"n": 1000}, 400, "n"),
    ({"n": True}, 400, "n"),
    ({"temperature": "hot"}, 400, "temperature"),
    ({"seed": 0.5}, 400, "seed"),
    ({"tools": [{"type": "function"}]}, 400, "tools"),
)


def test_mistakes_are_errors_of_the_protocol(start: Any) -> None:
    server = start(max_body=2000)
    for more, status, param in BAD:
        got = server.chat(**more)
        assert got.status_code == status, more
        error = got.json()["error"]
        assert error["param"] == param and error["message"] and error["type"]
    url = "/v1/chat/completions"
    json_type = {"content-type": "application/json"}
    assert server.http.post(url, content=b"{", headers=json_type).status_code == 400
    assert server.http.post(url, content=b"[]", headers=json_type).status_code == 400
    assert server.http.post(url, content=b"{}").status_code == 415
    assert server.chat("x" * 3000).status_code == 413
    assert server.http.get(url).status_code == 405
    assert server.http.get("/nothing").json()["error"]["type"] == "invalid_request_error"


def test_a_key_is_asked_for_and_compared(start: Any) -> None:
    server = start(key="open-sesame")
    assert server.chat().status_code == 401
    assert server.chat(headers={"authorization": "Bearer open-sesamo"}).status_code == 401
    assert server.http.get("/v1/models").status_code == 401
    assert server.chat(headers={"authorization": "Bearer open-sesame"}).status_code == 200


def test_web_pages_are_kept_out_without_a_key(start: Any) -> None:
    server = start(hosts=("127.0.0.1:1",))
    assert server.chat(headers={"host": "evil.example"}).status_code == 400
    assert server.chat().status_code == 400  # another port
    good = {"host": "127.0.0.1:1"}
    assert server.chat(headers=good).status_code == 200
    assert server.chat(headers={**good, "origin": "http://evil.example"}).status_code == 403
    assert server.chat(headers={**good, "sec-fetch-site": "cross-site"}).status_code == 403
    assert accepted_hosts("0.0.0.0", 80) == ()
    assert "localhost:80" in accepted_hosts("127.0.0.1", 80)


def test_a_program_that_fails_is_an_error_and_the_next_request_is_not(start: Any) -> None:
    @program
    def touchy(question: str) -> str:
        if question == "bad":
            raise ValueError("secret of the program")
        factor("hard", question != "impossible")
        return question

    server = start(touchy, SMC(2))
    got = server.chat("bad")
    assert got.status_code == 500 and got.json()["error"]["type"] == "server_error"
    dead = server.chat("impossible")
    assert dead.status_code == 422 and dead.json()["error"]["code"] == "all_particles_dead"
    streamed = events(server.chat("impossible", stream=True).text)
    assert streamed[-1]["error"]["code"] == "all_particles_dead"
    assert server.chat("fine").json()["choices"][0]["message"]["content"] == "fine"


def test_too_many_requests_are_told_to_come_back(start: Any) -> None:
    lm = gated()
    server = start(spoken, SMC(2), lm, concurrency=1, waiting=1)
    threads = [threading.Thread(target=server.chat, args=("ab",)) for _ in range(2)]
    threads[0].start()
    until(lambda: server.line.running == 1)
    threads[1].start()
    until(lambda: server.line.waiting == 1)
    got = server.chat("ab")
    assert got.status_code == 429 and got.headers["retry-after"]
    lm.gate.set()
    for t in threads:
        t.join()


def test_what_a_program_takes_comes_from_the_messages(start: Any) -> None:
    @program
    def both(question: str, options: list[str]) -> str:
        return f"{question}:{len(options)}"

    server = start(both)
    got = server.chat(json.dumps({"question": "q", "options": ["a", "b"]}))
    assert got.json()["choices"][0]["message"]["content"] == "q:2"
    assert "JSON object" in server.chat("q").json()["error"]["message"]

    @program
    def talk(messages: Any) -> Any:
        return [role for role, _ in messages]

    server = start(talk)
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    got = server.http.post("/v1/chat/completions", json={"messages": turns})
    assert json.loads(got.json()["choices"][0]["message"]["content"]) == ["system", "user"]


def test_the_command_opens_nothing_to_others_without_a_key(tmp_path: Path) -> None:
    file = tmp_path / "guess.py"
    file.write_text("from lmppl import program\n\n@program\ndef guess(question):\n    return 1\n")
    run = CliRunner()
    got = run.invoke(serve, [str(file), "--lm", "none", "--host", "0.0.0.0"], env=NO_KEY)
    assert isinstance(got.exception, BadArgument) and "LMPPL_SERVE_KEY" in str(got.exception)
    got = run.invoke(serve, [str(file), "--lm", "none", "--engine", "smcc"], env=NO_KEY)
    assert isinstance(got.exception, BadArgument) and "smc" in str(got.exception)


def test_the_command_serves(tmp_path: Path) -> None:
    file = tmp_path / "guess.py"
    file.write_text("from lmppl import program\n\n@program\ndef guess(question):\n    return 7\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "lmppl",
        "serve",
        str(file),
        "--lm",
        "none",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None and f":{port}/v1" in process.stderr.readline()
        body = {"messages": [{"role": "user", "content": "?"}]}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        got = httpx2.post(url, json=body, trust_env=False, timeout=20)  # it listens by now
        assert got.json()["choices"][0]["message"]["content"] == "7"
    finally:
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=30)
    assert "Traceback" not in rest
