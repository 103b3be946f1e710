"""`HTTPLM` against a stub whose law is a table: the same law, the same numbers, and honest limits."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("httpx2")

from lmppl import LM, Choice, load, observe, program, sample  # noqa: E402
from lmppl.errors import (  # noqa: E402
    BadArgument,
    CapabilityError,
    LmpplWarning,
    ModelNotFound,
    UnweightableProposal,
)
from lmppl.inference import SMC, Enumerate, Forward, Greedy, Importance, infer, infer_many  # noqa: E402
from lmppl.lm.generate import StringLaw, StringState  # noqa: E402
from lmppl.lm.http import HTTPLM  # noqa: E402
from lmppl.lm.http import url as http_url  # noqa: E402
from lmppl.lm.http.errors import KeyRefused  # noqa: E402
from lmppl.lm.table import TableLM  # noqa: E402
from lmppl.random import GumbelMax, fold  # noqa: E402
from lmppl.testing import check_language_model  # noqa: E402

WORDS: list[str | bytes] = ["a", "b", " t", b"\xc3", b"\xa9", ".", "<eos>"]
TOY = TableLM.random(WORDS, seed=3, name="toy")
KINDS = ("vllm", "sglang", "llamacpp")
Z = 4.9  # two-sided normal tail of 1e-6


@pytest.fixture
def served(http_stub: ModuleType) -> Iterator[Any]:
    """`served(kind, **options)`: a stub and a client of it; both end with the test."""
    import contextlib

    with contextlib.ExitStack() as stack:

        def make(kind: str = "vllm", lm: TableLM = TOY, **options: Any) -> tuple[Any, HTTPLM]:
            own = {k: options.pop(k) for k in list(options) if k in http_stub.Stub.__annotations__}
            stub = stack.enter_context(http_stub.Stub(lm, kind, **own).serve())
            client = HTTPLM(stub.address, tokenizer=lm, **options)
            stack.callback(client.close)
            return stub, client

        yield make


@pytest.mark.parametrize("kind", KINDS)
def test_the_laws_of_a_language_model_hold(served: Any, kind: str) -> None:
    _, lm = served(kind)
    assert lm.probed.meaning == "model" and lm.capabilities.full_rows
    check_language_model(lm, contexts=["a", "ab", "b."], texts=["ab", "a."], draws=8, atol=1e-9)


@pytest.mark.parametrize(
    "kind", ("vllm", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS[1:]))
)
def test_drawn_strings_have_the_law_of_the_table(served: Any, kind: str) -> None:
    # 30 texts at most are compared, each at 1e-6: a false alarm in 1 of 30,000 runs
    stub, lm = served(kind, rows=False)
    n, law = 400, StringLaw(max_tokens=3, stop=(".",))
    states = [StringState(law, lm.encode("ab"), fold(7, i)) for i in range(n)]
    lm.advance(states, GumbelMax(), None)
    exact = exact_texts(TOY, lm.encode("ab"), law)
    counts: dict[tuple[int, ...], int] = {}
    for s in states:
        counts[tuple(s.ids)] = counts.get(tuple(s.ids), 0) + 1
        assert s.logw == pytest.approx(0.0, abs=1e-9)
        assert s.logq == pytest.approx(exact[tuple(s.ids)], abs=1e-9)
    assert sum(map(math.exp, exact.values())) == pytest.approx(1.0)
    for ids, logp in exact.items():
        p = math.exp(logp)
        if n * p > 10:
            assert abs(counts.get(ids, 0) - n * p) < Z * math.sqrt(n * p * (1 - p)) + 1
    assert len({(b.get("seed"), str(b)) for b in stub.asked}) == len(stub.asked)


def exact_texts(
    lm: TableLM, context: tuple[int, ...], law: StringLaw
) -> dict[tuple[int, ...], float]:
    """Every token sequence of a law with its log-probability, by recursion."""
    out: dict[tuple[int, ...], float] = {}
    stack: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    while stack:
        ids, logp = stack.pop()
        ended = ids and (ids[-1] in lm.eos_ids or any(s in lm.decode(ids) for s in law.stop))
        if ended or len(ids) == law.max_tokens:
            out[ids] = logp
            continue
        row = lm.open([(*context, *ids)]).log_probs()[0]
        stack += [((*ids, v), logp + float(row[v])) for v in np.flatnonzero(row > -np.inf).tolist()]
    return out


@pytest.mark.parametrize(
    ("kind", "rows"),
    (("vllm", True), ("vllm", False), ("sglang", True), ("sglang", False), ("llamacpp", True)),
)
def test_given_texts_score_as_the_table_says(served: Any, kind: str, rows: bool) -> None:
    stub, lm = served(kind, rows=rows)
    contexts = [(0,), (0, 1), (2,), (1, 5), (0,)]
    texts = [(1, 2), (0,), (5, 5, 1), (), (4, 3)]
    ends = [None, (6,), (5, 6), (2, 5, 6), None]
    got = lm.score(contexts, texts, ends, [1.0] * 5)
    want = TOY.score(contexts, texts, ends, [1.0] * 5)
    for a, b in zip(got, want, strict=True):
        assert a == pytest.approx(b, abs=1e-9)
    before = len(stub.asked)
    lm.score(contexts, texts, ends, [1.0] * 5)
    assert len(stub.asked) == before  # known, and not asked again


@program
def story() -> Any:
    first = sample("first", LM("ab", max_tokens=1))
    verdict = Choice("ab" + str(first), ["a", "b"])
    observe("verdict", verdict, "a")
    return str(sample("last", LM("b" + str(first), max_tokens=2, limit="eos")))


def test_enumeration_gives_the_same_posterior(served: Any) -> None:
    _, lm = served()
    a, b = (infer(story, engine=Enumerate(), lm=m) for m in (lm, TOY))
    assert a.log_evidence == pytest.approx(b.log_evidence, abs=1e-9)
    for value, p in b.marginal().items():
        assert a.marginal()[value] == pytest.approx(p, abs=1e-9)


@pytest.mark.parametrize(
    "kind", ("vllm", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS[1:]))
)
def test_evidence_is_unbiased(served: Any, kind: str) -> None:
    # one z-test at 1e-6
    _, lm = served(kind, rows=False)
    exact = infer(story, engine=Enumerate(), lm=TOY).log_evidence
    runs = infer_many(story, [()] * 40, engine=SMC(3), lm=lm, seed=5, concurrency=40)
    found = np.exp([r.log_evidence - exact for r in runs])
    error = found.std(ddof=1) / math.sqrt(len(found))
    assert abs(found.mean() - 1) < Z * error


def test_a_regex_is_exact_with_whole_rows_and_refused_without(served: Any) -> None:
    law = LM("ab", regex="[ab]{2}", max_tokens=2)
    _, lm = served()
    a, b = (infer(lambda: str(sample("x", law)), engine=Importance(40), lm=m) for m in (lm, TOY))
    assert a.log_evidence == pytest.approx(b.log_evidence, abs=1e-9)
    assert a.marginal() == pytest.approx(b.marginal(), abs=1e-9)
    stub, poor = served(rows=False)
    before = stub.drawn
    with pytest.raises(CapabilityError, match="masks"):
        infer(lambda: str(sample("x", law)), engine=Importance(4), lm=poor)
    with pytest.raises(CapabilityError, match="whole rows"):
        infer(lambda: sample("x", LM("ab").tempered(0.5)), engine=Importance(4), lm=poor)
    with pytest.raises(UnweightableProposal):
        infer(lambda: sample("x", LM("ab", temperature=0.5)), engine=Importance(4), lm=poor)
    assert stub.drawn == before  # not a token was paid for


def test_a_large_end_set_is_asked_for_in_parts_or_refused(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, lm = served(rows=False)
    monkeypatch.setattr(type(lm.dialect), "most_ids", 2)
    ends = (0, 2, 3, 5, 6)
    want = TOY.score([(0, 1)], [(1,)], [ends], [1.0])[0]
    assert lm.score([(0, 1)], [(1,)], [ends], [1.0])[0] == pytest.approx(want, abs=1e-9)
    monkeypatch.setattr(type(lm.dialect), "most_ids", 0)
    with pytest.raises(CapabilityError, match="5 tokens"):
        lm.score([(0, 1)], [(2,)], [ends], [1.0])


@pytest.mark.parametrize(
    ("mode", "meaning"),
    (("model", "model"), ("tempered", "tempered"), ("processed", "processed")),
)
def test_the_probe_finds_out_which_law_a_server_reports(
    served: Any, mode: str, meaning: str
) -> None:
    _, lm = served("sglang" if mode == "tempered" else "vllm", mode=mode)
    assert lm.probed.meaning == meaning
    # with whole rows, every setting is weighed here
    law = LM("ab", temperature=0.5, top_k=3, mixture=0.1, max_tokens=3)
    a, b = (infer(lambda: sample("x", law), engine=Importance(8), lm=m) for m in (lm, TOY))
    assert a.log_evidence == pytest.approx(b.log_evidence, abs=1e-9)


def test_a_processed_number_is_log_q_and_log_p_is_scored(served: Any) -> None:
    _, lm = served(mode="processed", rows=False)
    assert lm.capabilities.weighs_proposals and not lm.capabilities.full_rows
    law = LM("ab", temperature=0.5, max_tokens=3)
    post = infer(lambda: sample("x", law), engine=Importance(50), lm=lm, seed=2)
    weights = [log_ratio(t["x"]) for t in post.traces]
    found = np.asarray(post.log_weights) - np.logaddexp.reduce(post.log_weights)
    assert found == pytest.approx(np.array(weights) - np.logaddexp.reduce(weights), abs=1e-8)
    assert np.ptp(weights) > 0.1


def log_ratio(text: Any) -> float:
    """log p - log q of a text that was drawn at temperature 1/2 after "ab"."""
    context, out = TOY.encode("ab"), 0.0
    for token in text._ids:
        row = TOY.open([context]).log_probs()[0]
        out += row[token] - (row[token] / 0.5 - np.logaddexp.reduce(row / 0.5))
        context = (*context, token)
    return float(out)


def test_two_ways_that_disagree_give_no_weights(served: Any) -> None:
    with pytest.warns(LmpplWarning, match="two ways"):
        stub, lm = served(shift=-0.02)
    assert lm.capabilities.logprobs == "none" and not lm.capabilities.scores_text
    before = stub.drawn
    with pytest.raises(CapabilityError):
        infer(lambda: sample("x", LM("ab")), engine=SMC(2), lm=lm)
    assert stub.drawn == before
    assert len(infer(lambda: sample("x", LM("ab")), engine=Forward(2), lm=lm)) == 2
    _, lm = served(shift=-0.02, tolerance=0.05)
    assert lm.capabilities.scores_text


def test_a_server_without_ids_gives_texts_without_weights(served: Any) -> None:
    words: list[str | bytes] = ["a", "b", ".", "<eos>"]
    _, lm = served("openai", TableLM.random(words, seed=1, name="words"))
    assert lm.capabilities.logprobs == "none"
    law = LM("ab", max_tokens=4, temperature=0.7)
    post = infer(lambda: str(sample("x", law)), engine=Forward(5), lm=lm)
    assert all(set(v) <= set("ab.") for v in post.marginal())
    with pytest.raises(CapabilityError, match="logprobs"):
        infer(lambda: sample("x", law), engine=SMC(2), lm=lm)


def test_draws_of_one_prompt_are_many_and_a_repeated_run_is_free(
    served: Any, tmp_path: Path
) -> None:
    stub, lm = served(cache=tmp_path / "replies.db", rows=False)
    model = program(lambda: str(sample("x", LM("ab", max_tokens=4))))
    first = infer(model, engine=Importance(64), lm=lm, seed=1)
    seeds = [b["seed"] for b in stub.asked[-64:]]
    assert len(set(seeds)) == 64 and len(first.marginal()) > 5
    before = len(stub.asked)
    again = infer(model, engine=Importance(64), lm=lm, seed=1)
    assert len(stub.asked) == before and again.marginal() == first.marginal()
    other = infer(model, engine=Importance(64), lm=lm, seed=2)
    assert len(stub.asked) == before + 64 and other.marginal() != first.marginal()
    # a later process pays for none of it, not even for the probe
    later = HTTPLM(stub.address, tokenizer=TOY, cache=tmp_path / "replies.db")
    try:
        before = stub.drawn
        third = infer(model, engine=Importance(64), lm=later, seed=1)
        assert stub.drawn <= before + 3 and third.marginal() == first.marginal()
    finally:
        later.close()


def test_requests_go_out_together_up_to_the_limit(served: Any) -> None:
    stub, lm = served(concurrency=6, rows=False, delay=0.1)
    stub.most_at_once = 0
    infer(lambda: sample("x", LM("ab", max_tokens=2)), engine=Importance(30), lm=lm)
    assert 2 < stub.most_at_once <= 6


def test_greedy_and_barriers(served: Any) -> None:
    _, lm = served(rows=False)
    model = program(lambda: str(sample("x", LM("ab", max_tokens=5))))
    greedy, exact = (infer(model, engine=Greedy(), lm=m) for m in (lm, TOY))
    assert greedy.marginal() == exact.marginal()
    states = [StringState(StringLaw(max_tokens=5), TOY.encode("ab"), i) for i in range(6)]
    lm.advance(states, GumbelMax(), 2)
    assert all(s.finish or len(s.ids) == 2 for s in states)


def test_each_model_has_its_line_in_the_ledger(served: Any) -> None:
    _, draft = served(name="draft")
    _, judge = served("llamacpp", name="judge")

    @program
    def judged() -> Any:
        word = sample("word", LM("ab", max_tokens=2))
        observe("verdict", Choice("a" + str(word), ["a", "b"], lm="judge"), "a")
        return str(word)

    post = infer(judged, engine=SMC(4), lm={"default": draft, "judge": judge})
    assert sorted(post.ledger.models) == ["draft", "judge"]
    assert post.ledger.models["draft"].tokens_out > 0 == post.ledger.models["judge"].tokens_out
    assert post.ledger.models["judge"].calls == 8


def test_a_key_opens_the_server_and_is_shown_nowhere(http_stub: ModuleType) -> None:
    with http_stub.Stub(TOY, key="hidden-key").serve() as stub:
        lm = HTTPLM(stub.address, tokenizer=TOY, key="hidden-key")
        assert "hidden-key" not in f"{lm!r} {lm.client!r} {lm.fingerprint} {vars(lm)}"
        assert set(stub.keys_seen) == {"Bearer hidden-key"}
        lm.close()
        with pytest.raises(KeyRefused, match="LMPPL_API_KEY") as caught:
            HTTPLM(stub.address, tokenizer=TOY, key="wrong-key")
        assert "wrong-key" not in str(caught.value)


def test_load_takes_addresses(served: Any, tmp_path: Path) -> None:
    words = ["a", "b", "<eos>"]
    table: dict[tuple[int, ...], list[float]] = {(): [0.5, 0.3, 0.2]}
    file = tmp_path / "toy.json"
    file.write_text(json.dumps({"tokens": words, "table": {"": table[()]}}))
    stub, _ = served(lm=TableLM(words, table))
    url = f"http://127.0.0.1:{stub.port}/v1?tokenizer=table:{file}&concurrency=3"
    lm = load(url)
    assert isinstance(lm, HTTPLM)
    assert lm.dialect.name == "vllm" and lm.client.policy.concurrency == 3
    lm.close()
    with pytest.raises(ModelNotFound, match="toy"):
        load(f"vllm:http://127.0.0.1:{stub.port}#other")
    with pytest.raises(BadArgument, match="no option"):
        load(url + "&beams=3")


def test_an_adapter_is_a_model_with_the_tokenizer_of_its_base(
    http_stub: ModuleType, tmp_path: Path
) -> None:
    table: dict[tuple[int, ...], list[float]] = {(): [0.5, 0.3, 0.2]}
    file = tmp_path / "toy.json"
    file.write_text(json.dumps({"tokens": ["a", "b", "<eos>"], "table": {"": table[()]}}))
    lm = TableLM(["a", "b", "<eos>"], table)
    with http_stub.Stub(lm, root=f"table:{file}", adapter="sums").serve() as stub:
        with pytest.raises(ModelNotFound, match="toy, sums"):
            load(stub.address)
        adapter, base = load(f"{stub.address}#sums"), load(f"{stub.address}#toy")
        assert (adapter.name, base.name) == ("sums", "toy")
        assert {b["model"] for b in stub.asked} == {"sums", "toy"}
        for one in (adapter, base):
            assert isinstance(one, HTTPLM) and one.max_context == 4096
            one.close()


def test_addresses() -> None:
    where, options = http_url.parse("sglang:http://gpu1:3000/v1#owner/name?timeout=9")
    assert (where.base, where.kind, where.model) == ("http://gpu1:3000", "sglang", "owner/name")
    assert options == {"timeout": 9.0}
    assert http_url.parse("vllm:owner/name")[0].base == "http://localhost:8000"
    assert not http_url.is_server("owner/name") and not http_url.is_server("table:x.json")
    with pytest.raises(BadArgument, match="password"):
        http_url.parse("http://user:secret@host:1")
