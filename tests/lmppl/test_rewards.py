"""Reward models: functions, a language model's yes or no, classifiers, an endpoint on this machine."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from lmppl import LM, LmpplError, Reward, Uniform, handlers, plate, potentials, program, sample
from lmppl.errors import BadArgument, NoLanguageModel
from lmppl.inference import SMC, Enumerate, Importance, infer, infer_many
from lmppl.lm.table import TableLM
from lmppl.potentials import Factor, Prefix
from lmppl.testing import assert_properly_weighted, check_keys

JUDGE = TableLM(
    ["a", "b", "+", "-", "<eos>"],
    {
        (): [0.3, 0.3, 0.2, 0.1, 0.1],
        (0,): [0.1, 0.1, 0.6, 0.1, 0.1],  # after an a: + is 6 times as likely as -
        (1,): [0.1, 0.1, 0.1, 0.5, 0.2],
    },
    name="judge",
)
YES = {"a": 6 / 7, "b": 1 / 6}


@program
def letters() -> Any:
    return sample("x", Uniform(["a", "b"])) + sample("y", Uniform(["a", "b"]))


EXACT = {x + y: 0.25 * YES[x] * YES[y] for x in "ab" for y in "ab"}


def judged(lm: Any = None) -> Reward:
    return Reward.yes_no("{text}", lm=lm, yes="+", no="-")


@pytest.mark.parametrize("engine", [Enumerate(), Importance(2), SMC(2, always=True)], ids=repr)
@pytest.mark.parametrize("driver", ["greenlet", "eager"])
def test_yes_no_is_a_target(engine: Any, driver: str) -> None:
    """p · Π P(yes | step), by enumeration."""
    rewarded = potentials.apply(letters, Factor(judged(), link="probability", of="last"))
    assert_properly_weighted(rewarded, engine=engine, lm=JUDGE, exact=EXACT, driver=driver)


def test_yes_no_finds_its_model() -> None:
    for reward, lm in ((judged(JUDGE), None), (judged(), JUDGE), (judged("j"), {"j": JUDGE})):
        assert reward("a", lm=lm) == pytest.approx(YES["a"], abs=1e-12)
        rewarded = potentials.apply(letters, Factor(reward, link="probability", of="last"))
        found = infer(rewarded, engine=Enumerate(), lm=lm)
        assert math.exp(found.log_evidence) == pytest.approx(sum(EXACT.values()), abs=1e-12)
    inner = potentials.apply(letters, Factor(judged(), link="probability", of="last"))
    found = infer(handlers.using(inner, JUDGE), engine=Enumerate())
    assert math.exp(found.log_evidence) == pytest.approx(sum(EXACT.values()), abs=1e-12)
    with pytest.raises(NoLanguageModel):
        infer(inner, engine=SMC(2))


def test_yes_no_is_one_batch_per_wave() -> None:
    before = JUDGE.usage.passes
    rewarded = potentials.apply(letters, Prefix(judged(), link="ratio", of="last"))
    post = infer(rewarded, engine=SMC(particles=8, always=True), lm=JUDGE, seed=3)
    assert JUDGE.usage.passes - before == post.ledger.passes == 2
    assert post.ledger.reward_calls == 16
    assert post.ledger.models["judge"].calls == 32  # two answers for each question
    prompts = Reward.yes_no(lambda steps: steps[-1], lm=JUDGE, yes=["+"], no="-")
    assert prompts(("b", "a")) == pytest.approx(YES["a"], abs=1e-12)


def test_batches_join_questions_branches_and_nested_inference() -> None:
    asked: list[int] = []

    def count(texts: list[str]) -> list[float]:
        asked.append(len(texts))
        return [len(t) / 4 for t in texts]

    reward = Reward.of(count, batched=True)

    @program
    def one(question: str) -> Any:
        with Prefix(reward, link="ratio"):
            return sample("x", Uniform([f"{question}a", f"{question}bb"]))

    many = infer_many(one, ["p", "q", "r"], engine=Importance(particles=4), seed=1)
    assert len(asked) == 1
    assert [post.ledger.reward_calls for post in many] == [4, 4, 4]
    assert [post.ledger.reward_passes for post in many] == [1, 1, 1]
    asked.clear()

    @program
    def both() -> Any:
        return plate("p", ["s", "t"], one)

    infer(both, engine=Importance(particles=4))
    assert len(asked) == 1
    asked.clear()

    @program
    def outer() -> Any:
        y = sample("y", Uniform(["s", "t"]))
        return infer(one, y, engine=Enumerate()).marginal()[f"{y}bb"]

    for driver in ("greenlet", "eager"):
        found = infer(outer, engine=SMC(particles=4, always=True), driver=driver)
        assert found.marginal().best == pytest.approx(3 / 5)


def test_functions() -> None:
    class Counting:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, text: str) -> bool:
            self.calls += 1
            return "a" in text

    counting = Counting()
    rewarded = potentials.apply(letters, Factor(counting, link="probability"))
    post = infer(rewarded, engine=Importance(particles=64), seed=0)
    assert counting.calls == 4  # what differs: a and b, then aa and ab: a run with b is dead
    assert post.ledger.reward_calls > 64
    assert post.marginal().best in ("aa", "ab")
    assert Reward.of(Reward.of(counting)).name == "Counting"
    assert Reward.of(lambda text: 1).name == "reward"
    assert check_keys(rewarded, engine=SMC(4)) > 0


def test_a_short_answer_is_an_error() -> None:
    rewarded = potentials.apply(
        letters, Factor(Reward.of(lambda ts: [0.5], batched=True), link="exp")
    )
    with pytest.raises(BadArgument, match="1 outputs for 2 inputs"):
        infer(rewarded, engine=Importance(particles=16))


# -- classifiers ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_torch_classifiers() -> None:
    import torch

    class Tiny(torch.nn.Module):
        """Logits from how many a and b a text has."""

        def __init__(self, classes: int) -> None:
            super().__init__()
            self.classes = classes
            self.dropout = torch.nn.Dropout(0.9)
            self.sizes: list[int] = []

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            self.sizes.append(len(input_ids))
            a = ((input_ids == 1) * attention_mask).sum(-1).double()
            b = ((input_ids == 2) * attention_mask).sum(-1).double()
            rows = torch.stack([b, a], -1)
            return SimpleNamespace(logits=self.dropout(rows if self.classes == 2 else rows[:, 1:]))

    def tokenizer(texts: list[str], **options: Any) -> dict[str, Any]:
        assert options["padding"]
        longest = max(map(len, texts))
        ids = [[1 + "ab".index(c) for c in t] + [0] * (longest - len(t)) for t in texts]
        rows = torch.tensor(ids)
        return {"input_ids": rows, "attention_mask": (rows > 0).long()}

    two, one = Tiny(2), Tiny(1)
    assert Reward.classifier(two, tokenizer)("aab") == pytest.approx(1 / (1 + math.exp(-1)))
    assert Reward.classifier(two, tokenizer, label=0)("aab") == pytest.approx(1 / (1 + math.e))
    assert Reward.classifier(one, tokenizer)("aab") == pytest.approx(1 / (1 + math.exp(-2)))
    logits = Reward.classifier(two, tokenizer, probability=False)
    assert logits("aaab") == pytest.approx(2.0)
    assert not two.training
    plain = Reward.classifier(lambda texts: torch.tensor([[float(len(t))] for t in texts]))
    assert plain("ab") == pytest.approx(1 / (1 + math.exp(-2)))

    two.sizes.clear()
    reward = Reward.classifier(two, tokenizer, batch_size=3)
    rewarded = potentials.apply(letters, Prefix(reward, link="ratio"))
    exact = {
        x + y: 0.25 / (1 + math.exp((x + y).count("b") - (x + y).count("a")))
        for x in "ab"
        for y in "ab"
    }
    assert_properly_weighted(rewarded, engine=SMC(2, always=True), exact=exact, atol=1e-10)
    assert max(two.sizes) <= 3


# -- an endpoint ---------------------------------------------------------------------------------


class Endpoint:
    """A reward server that fails as often as it is told to."""

    def __init__(self) -> None:
        self.fail: list[int] = []
        self.answer: Any = None
        self.before: Callable[[], Any] = lambda: None
        self.requests: list[tuple[Any, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                given = json.loads(self.rfile.read(size))
                outer.requests.append((given, self.headers.get("Authorization")))
                outer.before()
                if outer.fail:
                    self.send_error(outer.fail.pop(0))
                    return
                scores = [0.75 if t.endswith("a") else 0.25 for t in given.get("inputs", [])]
                body = json.dumps(scores if outer.answer is None else outer.answer).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server: HTTPServer = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/score"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """A server on a free port."""
    found = Endpoint()
    yield found
    found.server.shutdown()
    found.server.server_close()


def test_http_is_one_request_per_wave(endpoint: Endpoint) -> None:
    reward = Reward.http(endpoint.url, headers={"Authorization": "Bearer secret"})
    rewarded = potentials.apply(letters, Factor(reward, link="probability"))
    post = infer(rewarded, engine=Importance(particles=16), seed=2)
    assert [sorted(given["inputs"]) for given, _ in endpoint.requests] == [
        ["a", "b"],
        ["aa", "ab", "ba", "bb"],
    ]
    assert {key for _, key in endpoint.requests} == {"Bearer secret"}
    assert "secret" not in repr(reward)
    assert (post.ledger.reward_calls, post.ledger.reward_passes) == (32, 2)
    exact = infer(rewarded, engine=Enumerate()).marginal()
    assert exact["aa"] == pytest.approx(0.5625)


def test_http_requests_run_at_the_same_time(endpoint: Endpoint) -> None:
    """Two inputs, one a request: the server answers none before both are there."""
    together = threading.Barrier(2, timeout=20.0)
    endpoint.before = together.wait
    reward = Reward.http(endpoint.url, batch_size=1, retries=0)
    rewarded = potentials.apply(letters, Factor(reward, link="probability", at="y"))
    post = infer(rewarded, engine=Importance(particles=32), seed=2)
    assert sorted(given["inputs"] for given, _ in endpoint.requests) == [["a"], ["b"]]
    assert post.ledger.reward_passes == 2


def test_model_batches_do_not_wait_for_a_request(endpoint: Endpoint) -> None:
    """The server answers once another branch of the plate has been scored in a model batch."""
    scored = threading.Event()

    def answer() -> None:
        assert scored.wait(20.0)

    def judge(text: str) -> float:
        scored.set()
        return 0.5

    endpoint.before = answer

    @program
    def branches() -> Any:
        return plate("side", ["far", "near"], lambda at: sample(at, Uniform(["a", "b"])))

    far = Factor(Reward.http(endpoint.url, retries=0), link="probability", at="far", of="last")
    near = Factor(judge, link="probability", at="near", of="last")
    rewarded = potentials.apply(potentials.apply(branches, far), near)
    post = infer(rewarded, engine=Importance(particles=4), seed=0)
    assert len(post) == 4 and len(endpoint.requests) == 1


def test_a_failing_endpoint_fails_its_own_question(endpoint: Endpoint) -> None:
    endpoint.answer = {"nothing": 1}
    rewarded = potentials.apply(letters, Factor(Reward.http(endpoint.url), link="probability"))
    with pytest.raises(BadArgument, match="did not send a list of numbers"):
        infer(rewarded, engine=Importance(particles=4), seed=0)


def test_http_tries_again(endpoint: Endpoint) -> None:
    endpoint.fail = [503, 429]
    assert Reward.http(endpoint.url, pause=0.01)("a") == 0.75
    assert len(endpoint.requests) == 3
    endpoint.fail = [503, 503]
    with pytest.raises(LmpplError, match="status 503") as caught:
        Reward.http(endpoint.url, pause=0.01, retries=1)("a")
    assert "try 2 of 2" in str(caught.value)
    endpoint.requests.clear()
    endpoint.fail = [404]
    with pytest.raises(LmpplError, match="status 404"):
        Reward.http(endpoint.url, pause=0.01)("a")
    assert len(endpoint.requests) == 1  # no use in asking again


def test_http_speaks_other_formats(endpoint: Endpoint) -> None:
    endpoint.answer = {"scores": [0.5]}
    assert Reward.http(endpoint.url)("a") == 0.5
    endpoint.answer = {"data": [{"score": 0.125}]}
    reward = Reward.http(
        endpoint.url,
        body=lambda texts: {"text": texts},
        parse=lambda answer: [row["score"] for row in answer["data"]],
    )
    assert reward("a") == 0.125
    assert endpoint.requests[-1][0] == {"text": ["a"]}
    with pytest.raises(BadArgument, match="did not send a list of numbers"):
        Reward.http(endpoint.url)("a")


def test_http_without_a_server(endpoint: Endpoint) -> None:
    endpoint.server.shutdown()
    endpoint.server.server_close()
    with pytest.raises(LmpplError, match="the reward endpoint"):
        Reward.http(endpoint.url, pause=0.01, retries=1, timeout=2)("a")
    endpoint.server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # for the fixture
    threading.Thread(target=endpoint.server.serve_forever, daemon=True).start()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Reward.of(3), "must be a function"),
        (lambda: Reward.yes_no("Is it right?"), "no place for the text"),
        (lambda: Reward.classifier(3), "must be a torch module"),
        (lambda: Reward.classifier(len, batch_size=0), "batch_size"),
        (lambda: Reward.http("localhost:80"), "http address"),
        (lambda: Reward.http("http://localhost", retries=-1), "retries"),
        (lambda: Reward.http("http://localhost", timeout=0), "timeout"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        make()


def test_a_text_with_braces_is_no_template() -> None:
    reward = Reward.yes_no("{text}", lm=JUDGE, yes="+", no="-")
    table = TableLM(["{", "}", "+", "-", "<eos>"], {(): [0.2] * 5}, name="braces")
    assert Reward.yes_no("{text}", lm=table, yes="+", no="-")("{}") == pytest.approx(0.5)
    assert reward.fingerprint == judged().fingerprint


def test_strings_of_a_language_model() -> None:
    """Half-drawn strings are no steps: the score comes when the string has ended."""

    @program
    def two() -> Any:
        return sample("x", LM("", max_tokens=2, lm=JUDGE))

    rewarded = potentials.apply(two, Prefix(lambda t: 0.9 if "a" in t else 0.1, link="ratio"))
    post = infer(rewarded, engine=SMC(particles=8, always=True), seed=0)
    assert post.ledger.reward_calls == 8
