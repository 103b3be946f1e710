"""Thirty ways in which a server fails, at the first, middle and last call of a run.

Of each it is asserted which error comes, or that the text is exactly the one without the fault;
how many requests were sent; and that nothing hangs. No fault gives a shortened text.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

pytest.importorskip("httpx2")

from lmppl import LM, program, sample  # noqa: E402
from lmppl.cli import cli  # noqa: E402
from lmppl.errors import CapabilityError, ContextOverflow, LmpplError  # noqa: E402
from lmppl.inference import Forward, Importance, infer, infer_many  # noqa: E402
from lmppl.inference.questions.rundir import read_results  # noqa: E402
from lmppl.lm.http import HTTPLM  # noqa: E402
from lmppl.lm.http.errors import (  # noqa: E402
    BadResponse,
    KeyRefused,
    NotServed,
    Redirected,
    RequestRefused,
    ResponseCut,
    ResponseTooLarge,
    ServerDown,
    ServerError,
    ServerTimeout,
    ServerUnreachable,
    TextFiltered,
)
from lmppl.lm.http.retry import Clock, Policy, retry_after  # noqa: E402
from lmppl.lm.table import TableLM  # noqa: E402

TOY = TableLM.random(["a", "b", " t", b"\xc3", b"\xa9", ".", "\u00e9", "<eos>"], seed=3, name="toy")
DEADLINE, PATIENT = 1.5, 20.0
HANGS = ("silent", "stall", "drip")
"""Faults that last until the deadline; where there is none, a slow machine needs patience."""
CALLS = 3


class Case(NamedTuple):
    """One fault."""

    number: int
    fault: str
    expected: type[Exception] | None
    """The error; None where the run goes on as if nothing had happened."""
    sent: int = 2
    """Attempts of the call that fails."""
    stream: bool = False
    paused: float | None = None
    """Seconds of pause that Retry-After asks for."""

    def __repr__(self) -> str:
        return f"{self.number}-{self.fault}"


CASES = (
    Case(5, "silent", None),
    Case(6, "stall", None),
    Case(7, "drip", None),
    Case(8, "reset", None),
    Case(9, "eof", None),
    Case(10, "sse:undone", None, stream=True),
    Case(11, "sse:unfinished", None, stream=True),
    Case(12, "sse:doubled", BadResponse, 1, stream=True),
    Case(13, "sse:bytes", None, 1, stream=True),
    Case(14, "status:429,2", None, paused=2.0),
    Case(14, "status:429,Wed, 21 Oct 2015 07:28:00 GMT", None, paused=0.0),
    Case(14, "status:429,99999", None),
    Case(14, "status:429,-1", None),
    Case(14, "status:429", None),
    Case(14, "status:429,soon", None),
    Case(15, "status:500", None),
    Case(15, "status:502", None),
    Case(15, "status:503", None),
    Case(15, "status:504", None),
    Case(15, "status:529", None),
    Case(16, "html", BadResponse, 1),
    Case(17, "edit:error", BadResponse, 1),
    Case(18, "status:400", ContextOverflow, 1),
    Case(19, "status:401", KeyRefused, 1),
    Case(20, "status:404", NotServed, 1),
    Case(21, "status:413", RequestRefused, 1),
    Case(22, "edit:cut", BadResponse, 1),
    Case(22, "edit:filter", TextFiltered, 1),
    Case(22, "edit:reason", BadResponse, 1),
    Case(23, "edit:model", BadResponse, 1),
    Case(24, "edit:choices", BadResponse, 1),
    Case(25, "edit:usage", None, 1),
    Case(26, "edit:absent", CapabilityError, 1),
    Case(26, "edit:shorter", CapabilityError, 1),
    Case(26, "edit:null", CapabilityError, 1),
    Case(26, "edit:nan", CapabilityError, 1),
    Case(26, "edit:positive", CapabilityError, 1),
    Case(26, "edit:floor", CapabilityError, 1),
    Case(27, "bomb:16", ResponseTooLarge, 1),
    Case(28, "endless", ResponseTooLarge, 1),
    Case(29, "redirect", Redirected, 1),
    Case(30, "swap", BadResponse, 1),
)
QUICK = {
    "5-silent-1", "6-stall-1", "8-reset-0", "9-eof-2", "10-sse:undone-1", "12-sse:doubled-1",
    "13-sse:bytes-1", "14-status:429,2-0", "14-status:429,99999-1", "15-status:503-1", "16-html-1",
    "18-status:400-1", "22-edit:cut-2", "23-edit:model-1", "26-edit:null-1", "27-bomb:16-1",
    "29-redirect-1", "30-swap-1",
}  # fmt: skip
"""The other cases are slow tests."""


def at_each_call() -> Iterator[Any]:
    for one in CASES:
        for call in range(CALLS):
            name = f"{one!r}-{call}"
            slow = [] if name in QUICK else [pytest.mark.slow]
            yield pytest.param(one, call, id=name, marks=slow)


class Still(Clock):
    """Pauses are noted and not waited for."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    def jitter(self, most: float) -> float:
        return most


@program
def chain() -> str:
    """Three calls, each with the text of the one before."""
    text = "ab"
    for n in range(CALLS):
        text += str(sample(f"part{n}", LM(text, max_tokens=6)))
    return text


@pytest.fixture(scope="module")
def faulty(http_stub: ModuleType, http_faults: ModuleType) -> Any:
    """`faulty(lm)`: a stub that fails as its `fault` says."""
    return partial(http_stub.Stub, breaks=http_faults.fail)


@pytest.fixture(scope="module")
def sound(faulty: Any, http_faults: ModuleType) -> tuple[int, str]:
    """The bomb is packed before clocks run; and a seed whose three texts have several tokens each, and the answer without a fault."""
    http_faults.bomb(16)
    with faulty(TOY).serve() as stub:
        lm = HTTPLM(stub.address, tokenizer=TOY)
        try:
            for seed in range(200):
                post = infer(chain, engine=Importance(1), lm=lm, seed=seed)
                texts = [post.traces[0][f"part{n}"] for n in range(CALLS)]
                if all(len(t._ids) >= 3 for t in texts):
                    return seed, str(post.traces[0].result)
        finally:
            lm.close()
    raise LookupError("no seed has three long texts")


@pytest.mark.parametrize(("one", "call"), list(at_each_call()))
def test_a_fault_is_an_error_or_nothing(
    faulty: Any, sound: tuple[int, str], one: Case, call: int
) -> None:
    seed, text = sound
    clock = Still()
    deadline = DEADLINE if one.fault in HANGS else PATIENT
    with faulty(TOY).serve() as stub, faulty(TOY).serve() as elsewhere:
        stub.other = elsewhere.port
        lm = HTTPLM(
            stub.address,
            tokenizer=TOY,
            key="my-key",
            clock=clock,
            timeout=deadline,
            stream=one.stream,
            max_bytes=1 << 20,
        )
        try:
            before = len(stub.asked)
            stub.fault = lambda n, body: one.fault if n == before + call else None
            began = time.monotonic()
            try:
                post = infer(chain, engine=Importance(1), lm=lm, seed=seed)
                error: Exception | None = None
            except LmpplError as caught:
                error = caught
            spent = time.monotonic() - began
        finally:
            lm.close()
        assert spent < deadline + 2
        if one.expected is None:
            assert error is None
            assert str(post.traces[0].result) == text
            assert len(stub.asked) - before == CALLS - 1 + one.sent
        else:
            assert type(error) is one.expected, error
            assert len(stub.asked) - before == call + one.sent
            assert "server http://127.0.0.1" in str(error) and "fix:" in str(error)
            assert "my-key" not in str(error)
        assert lm.client.traffic.retried == one.sent - 1
        if one.paused is not None:
            assert clock.pauses == [one.paused]
        elif one.sent > 1:
            assert clock.pauses == [1.0]  # full jitter at its largest: 0.5 * 2
        assert elsewhere.asked == [] and elsewhere.keys_seen == []


# -- 1 to 4: nothing was sent ---------------------------------------------------------------------


def unreachable(address: str, **limits: Any) -> tuple[ServerError, float, Still]:
    clock = Still()
    began = time.monotonic()
    with pytest.raises(ServerError) as caught:
        HTTPLM(address, tokenizer=TOY, clock=clock, **limits)
    return caught.value, time.monotonic() - began, clock


def test_1_connection_refused() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    error, spent, clock = unreachable(f"vllm:http://127.0.0.1:{port}")
    assert type(error) is ServerUnreachable and not error.paid and spent < 3
    assert "attempt 5" in str(error) and clock.pauses == [1.0, 2.0, 4.0, 8.0]


def test_2_no_such_host() -> None:
    error, _, clock = unreachable("vllm:http://no-such-host.invalid:8000", connect=1.0, timeout=2.0)
    assert type(error) in (ServerUnreachable, ServerTimeout) and len(clock.pauses) == 4


def test_3_no_tls_there(faulty: Any) -> None:
    with faulty(TOY).serve() as stub:
        error, spent, _ = unreachable(f"vllm:https://127.0.0.1:{stub.port}")
    assert type(error) is ServerUnreachable and spent < 3


def test_4_a_connection_that_is_never_accepted() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        full = []
        for _ in range(4):  # the queue of connections fills up, the next one waits
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(deaf.getsockname())
            full.append(one)
        address = f"vllm:http://127.0.0.1:{deaf.getsockname()[1]}"
        error, spent, _ = unreachable(address, connect=0.2, timeout=0.4, attempts=2)
        for one in full:
            one.close()
    assert type(error) in (ServerUnreachable, ServerTimeout) and spent < 2 * 0.4 + 2


# -- many at once ---------------------------------------------------------------------------------


def test_a_failure_ends_its_question_and_no_other(faulty: Any) -> None:
    with faulty(TOY).serve() as stub:
        lm = HTTPLM(stub.address, tokenizer=TOY, clock=Still())
        try:
            before = len(stub.asked)
            stub.fault = lambda n, body: "edit:filter" if n == before + 2 else None
            found = infer_many(
                chain, [()] * 6, engine=Importance(2), lm=lm, on_question_error="return"
            )
        finally:
            lm.close()
    # the failed text is asked for once more when its question runs alone, and then it comes
    assert all(not isinstance(r, Exception) for r in found)
    seeds = [b["seed"] for b in stub.asked[before:]]
    assert len(seeds) == 6 * 2 * CALLS + 1 and len(set(seeds)) == len(seeds) - 1


def test_responses_of_two_requests_are_never_exchanged(faulty: Any) -> None:
    with faulty(TOY).serve() as stub:
        lm = HTTPLM(stub.address, tokenizer=TOY, clock=Still())
        try:
            first = len(stub.asked)
            stub.fault = lambda n, body: "swap" if first <= n < first + 8 else None
            law = LM("ab", max_tokens=6)
            with pytest.raises(BadResponse, match="another request"):
                infer(lambda: str(sample("x", law)), engine=Importance(8), lm=lm)
        finally:
            lm.close()


def test_twenty_failures_in_a_row_suspend_the_run(faulty: Any) -> None:
    with faulty(TOY).serve() as stub:
        lm = HTTPLM(stub.address, tokenizer=TOY, clock=Still(), concurrency=4)
        try:
            before = len(stub.asked)
            stub.fault = lambda n, body: "status:503"
            with pytest.raises(ServerDown, match="--resume"):
                infer_many(chain, [()] * 30, engine=Forward(1), lm=lm)
            assert len(stub.asked) - before <= 20 + 4
            with pytest.raises(ServerDown):  # at once, without a request
                infer(chain, engine=Forward(1), lm=lm)
            stub.fault = lambda n, body: None
            lm.client.breaker._since = time.monotonic() - 61
            assert len(infer(chain, engine=Forward(1), lm=lm)) == 1
        finally:
            lm.close()


def test_what_may_have_been_paid_is_sent_again_only_if_that_is_wanted(
    faulty: Any,
) -> None:
    with faulty(TOY).serve() as stub:
        lm = HTTPLM(stub.address, tokenizer=TOY, clock=Still(), on_unknown="raise")
        try:
            before = len(stub.asked)
            stub.fault = lambda n, body: "reset"
            with pytest.raises(ResponseCut):
                infer(lambda: sample("x", LM("ab", max_tokens=9)), engine=Forward(1), lm=lm)
            assert len(stub.asked) == before + 1 and lm.client.traffic.unknown == 1
        finally:
            lm.close()


def test_retry_after_dates_and_limits() -> None:
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after("nan") is None and retry_after("inf") is None
    with pytest.raises(LmpplError, match="concurrency"):
        Policy(concurrency=0)


def test_a_run_whose_server_is_down_ends_with_75_and_goes_on_later(
    faulty: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, row = ["a", "b", "<eos>"], [0.5, 0.3, 0.2]
    (tmp_path / "toy.json").write_text(json.dumps({"tokens": words, "table": {"": row}}))
    (tmp_path / "one.py").write_text(
        "from lmppl import LM, program, sample\n\n\n@program\ndef one(text):\n"
        "    return str(sample('x', LM(text, max_tokens=3)))\n"
    )
    lines = [json.dumps({"id": i, "text": "ab"}) + "\n" for i in range(30)]
    (tmp_path / "data.jsonl").write_text("".join(lines))
    monkeypatch.chdir(tmp_path)
    table: dict[tuple[int, ...], list[float]] = {(): row}
    with faulty(TableLM(words, table)).serve() as stub:
        url = f"{stub.address}?tokenizer=table:toy.json&attempts=1&cache=replies.db"
        command = ["run", "one.py", "--data", "data.jsonl", "--out", "out", "--lm", url]
        command += ["--engine", "importance:particles=2", "--concurrency", "2"]
        stub.fault = lambda n, body: "status:503" if n > 20 else None
        with pytest.raises(SystemExit) as first:
            cli.main(command)
        assert first.value.code == 75
        kept = len((tmp_path / "out" / "results.jsonl").read_text().splitlines())
        assert 0 < kept < 30
        stub.fault = lambda n, body: None
        before = len(stub.asked)
        with pytest.raises(SystemExit) as second:
            cli.main([*command, "--resume", "--retry-failed"])
        assert second.value.code == 0
        assert len(stub.asked) - before < 60  # what was answered is not asked again
    records, _ = read_results(tmp_path / "out")
    assert len(records) == 30 and not any(r.error for r in records)
