"""Learning: EM against numbers worked out apart from it, STaR's proposal, files for trainers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmppl import LM, Bernoulli, Chat, Choice, factor, loop, observe, param, program, sample
from lmppl.errors import BadArgument, DataError
from lmppl.inference import SMC, Enumerate, Importance, infer, infer_many
from lmppl.inference.learning import (
    Examples,
    Fit,
    Model,
    TabularLM,
    WeightedText,
    em,
    export_pairs,
    export_sft,
    refit,
    star,
)
from lmppl.lm.base import LanguageModel
from lmppl.lm.table import TableLM

ITEMS = ["x", "y", "z"]
"""Observed letters; the class of a question is one of `KINDS`."""
KINDS = ["A", "B"]
DATA = ["xxy", "xxx", "yxx", "zzy", "zzz", "zyz", "xxz", "zzx", "xyx", "yzz"]


@program
def classes(letters: str) -> str:
    """A latent class, then letters that are independent given it."""
    kind: str = sample("kind", LM("", max_tokens=1, regex="A|B"))
    for letter in letters:
        observe("letter", LM(kind, max_tokens=1, end=False), letter)
    return str(kind)


def start() -> TabularLM:
    """Where EM begins: the two classes differ a little."""
    mass = {(): [0.5, 0.5, 0, 0, 0], (0,): [0, 0, 0.4, 0.3, 0.3], (1,): [0, 0, 0.3, 0.3, 0.4]}
    return TabularLM([*KINDS, *ITEMS], mass)


def reference(rounds: int) -> tuple[list[float], Any, Any]:
    """EM for latent classes by its textbook equations, with numpy alone."""
    p, q = np.array([0.5, 0.5]), np.array([[0.4, 0.3, 0.3], [0.3, 0.3, 0.4]])
    counts = np.array([[text.count(item) for item in ITEMS] for text in DATA])
    evidence = []
    for _ in range(rounds + 1):
        joint = p * np.exp(counts @ np.log(np.maximum(q, 1e-300)).T)
        evidence.append(float(np.log(joint.sum(axis=1)).sum()))
        share = joint / joint.sum(axis=1, keepdims=True)
        last = p, q
        p = share.sum(axis=0) / len(DATA)
        q = share.T @ counts
        q = q / q.sum(axis=1, keepdims=True)
    return evidence, *last


def rows(lm: LanguageModel) -> tuple[Any, Any]:
    assert isinstance(lm, TabularLM)
    return np.array(lm.row()[:2]), np.array([lm.row(k)[2:] for k in KINDS])


# -- EM -----------------------------------------------------------------------------------------


def test_exact_em_is_the_textbook_one() -> None:
    """Log-likelihood of every round and the tables, to 1e-9; it never falls."""
    fit = em(classes, DATA, engine=Enumerate(), lm=start(), rounds=15)
    evidence, p, q = reference(15)
    assert fit.log_evidence == pytest.approx(evidence, abs=1e-9)
    assert all(b >= a - 1e-12 for a, b in zip(evidence, evidence[1:], strict=False))
    assert evidence[-1] - evidence[0] > 3
    found_p, found_q = rows(fit.lm)
    assert found_p == pytest.approx(p, abs=1e-9) and found_q == pytest.approx(q, abs=1e-9)
    assert not fit.warnings and [r.exact for r in fit.rounds] == [True] * 16
    assert [r.dead for r in fit.rounds] == [0] * 16


def test_smoothing_is_maximum_a_posteriori() -> None:
    """With a Dirichlet prior the evidence alone may fall; evidence times prior may not."""
    lm = TabularLM(
        [*KINDS, *ITEMS],
        {(): [0.4, 0.3, 0.1, 0.1, 0.1], (0,): [0.2, 0.2, 0.3, 0.2, 0.1]},
        smoothing=1.5,
    )
    fit = em(classes, DATA, engine=Enumerate(), lm=lm, rounds=12)
    objective = [r.objective for r in fit.rounds]
    assert all(b >= a - 1e-9 for a, b in zip(objective, objective[1:], strict=False))
    assert not fit.warnings
    assert fit.rounds[-1].log_prior == pytest.approx(
        1.5 / 5 * sum(math.log(x) for h in ("", *KINDS, *ITEMS) for x in fit.lm.row(h))
    )


def test_an_m_step_that_lowers_the_evidence_is_told() -> None:
    calls: list[int] = []

    def worse(examples: Examples, model: Model) -> Any:
        calls.append(1)
        return start() if len(calls) == 2 else refit(examples, model)

    fit = em(classes, DATA, engine=Enumerate(), lm=start(), rounds=3, m_step=worse)
    assert len(fit.warnings) == 1
    assert fit.warnings[0].startswith("round 2: the objective fell by ")


def test_monte_carlo_em_finds_the_same() -> None:
    """40 to 160 particles: 5 rounds of SMC end within 0.5 nats of exact EM."""
    options: dict[str, Any] = {"lm": start(), "seed": 1}
    fit = em(classes, DATA, engine=lambda r: SMC(particles=40 + 30 * r), rounds=5, **options)
    exact = em(classes, DATA, engine=Enumerate(), lm=fit.lm, rounds=0)
    assert exact.log_evidence[0] == pytest.approx(reference(5)[0][-1], abs=0.5)
    for now in fit.rounds:
        assert now.se > 0 and not now.exact
    assert abs(fit.log_evidence[-1] - exact.log_evidence[0]) < 5 * fit.rounds[-1].se
    again = em(classes, DATA, engine=lambda r: SMC(particles=40 + 30 * r), rounds=1, **options)
    assert again.log_evidence == fit.log_evidence[:2]


def test_parameters_of_the_run() -> None:
    """A noisy coin: θ ← mean of the posterior means, which is known."""

    @program
    def noisy(seen: bool) -> bool:
        side: bool = sample("side", Bernoulli(param("rate", 0.5)))
        observe("seen", Bernoulli(0.9 if side else 0.2), seen)
        return side

    data = [(True,)] * 7 + [(False,)] * 3

    def m_step(examples: Examples, model: Model) -> Any:
        heads = sum(t.weight for t in examples.traces() if t.trace["side"])
        return {"rate": heads / len(examples)}

    fit = em(noisy, data, engine=Enumerate(), m_step=m_step, params={"rate": 0.5}, rounds=60)
    # P(seen) = 0.9 θ + 0.2 (1 - θ) = 0.7 at the maximum of the likelihood
    assert fit.params["rate"] == pytest.approx(5 / 7, abs=1e-6)
    assert fit.log_evidence[-1] == pytest.approx(7 * math.log(0.7) + 3 * math.log(0.3), abs=1e-9)
    stopped = em(
        noisy, data, engine=Enumerate(), m_step=m_step, params={"rate": 0.5}, rounds=60, tol=1e-3
    )
    assert stopped.converged and len(stopped.rounds) < 50


def test_observations_of_each_question() -> None:
    @program
    def two(first: str) -> str:
        kind = sample("kind", LM("", max_tokens=1, regex="A|B"))
        sample("letter", LM(kind, max_tokens=1))
        return str(kind)

    seen = [{"letter": text[0]} for text in DATA]
    each = em(two, DATA, engine=Enumerate(), lm=start(), rounds=2, observations=seen)

    @program
    def one(first: str) -> str:
        kind = sample("kind", LM("", max_tokens=1, regex="A|B"))
        observe("letter", LM(kind, max_tokens=1), first[0])
        return str(kind)

    assert each.log_evidence == pytest.approx(
        em(one, DATA, engine=Enumerate(), lm=start(), rounds=2).log_evidence
    )
    same = em(two, DATA, engine=Enumerate(), lm=start(), rounds=0, observations={"letter": "x"})
    assert same.log_evidence[0] == pytest.approx(10 * math.log(0.35))


def test_from_base_and_two_models() -> None:
    """The M-step sees the first model; each model is fitted to its own texts."""
    seen: list[float] = []

    def m_step(examples: Examples, model: Model) -> Any:
        seen.append(rows(model.lms["a"])[0][0])
        return refit(examples, model)

    @program
    def pair(letter: str) -> str:
        kind = sample("kind", LM("", max_tokens=1, regex="A|B", lm="a"))
        observe("letter", LM(kind, max_tokens=1, end=False, lm="b"), letter)
        return str(kind)

    fit = em(
        pair, ["x", "z", "z"], engine=Enumerate(), lm={"a": start(), "b": start()}, rounds=3,
        m_step=m_step, from_base=True,
    )  # fmt: skip
    assert seen == [0.5, 0.5, 0.5]
    (_, first), (_, second), (_, begun) = (
        rows(fit.model.lms["a"]),
        rows(fit.model.lms["b"]),
        rows(start()),
    )
    assert first == pytest.approx(begun) and second != pytest.approx(begun)  # "a": no letters


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": -1}, "rounds must be"),
        ({"m_step": lambda e, m: 3}, "the M-step must return"),
        ({"observations": [{}]}, "1 mappings of observations for 10 questions"),
        ({"lm": TableLM([*KINDS, *ITEMS], {(): [0.2] * 5})}, "no model of this run can be fitted"),
    ],
)
def test_em_says_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        em(classes, DATA, **{"engine": Enumerate(), "lm": start(), "rounds": 1, **change})


# -- what a trace teaches -----------------------------------------------------------------------


@program
def story(question: str) -> str:
    """Sites in a loop and a plate-free scope, a chat, a choice, an observation."""

    def step(said: str, n: int) -> str:
        return said + str(sample("word", LM(said, max_tokens=1)))

    said: str = loop(step, question, 2)
    sample("chat", Chat([("user", said)], max_tokens=1))
    observe("seen", LM("c" + said, max_tokens=1, end=False), "a")
    return str(sample("pick", Choice(said, {"yes": ["a", "b"], "no": "c"})))


LETTERS = TabularLM.random(["a", "b", "c"], seed=3)


def test_prompts_are_found_without_the_model() -> None:
    posteriors = infer_many(story, ["a", "b"], engine=Importance(5), lm=LETTERS, seed=2)
    before = LETTERS.usage.computed_tokens
    found = list(Examples(story, ["a", "b"], posteriors).texts())
    assert LETTERS.usage.computed_tokens == before
    assert {t.site for t in found} == {"loop[0]/word", "loop[1]/word", "chat", "seen", "pick"}
    for site in ("loop[0]/word", "seen", "pick"):
        for n in (0, 1):
            mass = [t.weight for t in found if t.site == site and t.question == n]
            assert sum(mass) == pytest.approx(1.0)
    first = [t for t in found if t.site == "loop[0]/word" and t.question == 1]
    expected: dict[str, float] = {}
    for trace, weight in zip(posteriors[1].traces, posteriors[1].weights, strict=True):
        word = str(trace["loop[0]/word"])
        expected[word] = expected.get(word, 0.0) + float(weight)
    assert {t.completion: t.weight for t in first} == pytest.approx(expected)
    assert {t.prompt for t in first} == {"b"}
    second = next(t for t in found if t.site == "loop[1]/word" and t.question == 1)
    assert len(second.prompt) == 2 and second.prompt[0] == "b"
    chat = next(t for t in found if t.site == "chat")
    assert chat.messages == (("user", chat.prompt),)
    assert {t.completion for t in found if t.site == "pick"} <= {"a", "c"}
    assert {t.completion for t in found if t.site == "seen"} == {"a"}
    only = list(Examples(story, ["a", "b"], posteriors).texts(sites=["word"], observed=False))
    assert {t.site for t in only} == {"loop[0]/word", "loop[1]/word"}


def test_effects_are_not_run_again() -> None:
    from lmppl import effect

    calls: list[int] = []

    def run() -> str:
        calls.append(1)
        return "b"

    @program
    def tool() -> str:
        answer = effect("tool", run)
        return str(sample("said", LM(str(answer), max_tokens=1)))

    posterior = infer(tool, engine=Importance(3), lm=LETTERS)
    ran = len(calls)
    found = list(Examples(tool, [()], [posterior]).texts())
    assert len(calls) == ran and {t.prompt for t in found} == {"b"}


def test_rewards_are_not_asked_again() -> None:
    from lmppl.potentials import Factor, apply

    asked: list[str] = []

    def reward(text: str) -> float:
        asked.append(text)
        return 0.9 if text.endswith("b") else 0.2

    @program
    def say(word: str) -> str:
        first = sample("first", LM(word, max_tokens=1))
        return str(sample("second", LM(first, max_tokens=1)))

    judged = apply(say, Factor(reward, link="probability"))
    posteriors = infer_many(judged, ["a"], engine=Importance(20), lm=LETTERS)
    n = len(asked)
    texts = list(Examples(judged, ["a"], posteriors).texts())
    assert len(asked) == n > 0
    weight = sum(t.weight for t in texts if t.site == "first" and t.completion == "b")
    assert weight == pytest.approx(posteriors[0].marginal("first")["b"])


def test_plates_calls_chains_and_async_programs() -> None:
    from lmppl import call, markov, plate

    @program
    def inner(word: str) -> str:
        return str(sample("w", LM(word, max_tokens=1)))

    @program
    def outer(word: str) -> str:
        plate("pair", ["a", "b"], lambda start: sample("s", LM(start, max_tokens=1)))
        last = markov(lambda state, _: sample("m", LM(str(state), max_tokens=1)), "a", [1, 2])
        return str(call(inner, last))

    @program
    async def waiting(word: str) -> str:
        first = await sample("s", LM(word, max_tokens=1))
        return str(await sample("t", LM(first, max_tokens=1)))

    for tested in (outer, waiting):
        posteriors = infer_many(tested, ["a"], engine=SMC(5), lm=LETTERS)
        texts = list(Examples(tested, ["a"], posteriors).texts())
        for site in {t.site for t in texts}:
            assert sum(t.weight for t in texts if t.site == site) == pytest.approx(1.0)
        assert {t.site.rpartition("/")[2] for t in texts} == (
            {"s", "m", "w"} if tested is outer else {"s", "t"}
        )
        for text in texts:  # the prompt is the one that it was drawn after
            p = LETTERS.row(text.prompt)["abc".index(text.completion)]
            assert text.logp == pytest.approx(math.log(p))


def test_an_inner_run_is_not_found_again() -> None:
    @program
    def nested(word: str) -> str:
        found = infer(story, word, engine=Importance(2))
        return str(sample("said", LM(str(found.traces[0]["pick"])[0], max_tokens=1)))

    posteriors = infer_many(nested, ["a"], engine=Importance(1), lm=LETTERS)
    with pytest.raises(BadArgument, match="infers inside itself"):
        list(Examples(nested, ["a"], posteriors).texts())


# -- the table ----------------------------------------------------------------------------------


def test_a_table_by_counting() -> None:
    lm = TabularLM(["a", "b", "<eos>"]).fit([("ab", 2.0), ("a", 1.0), ("bb", 1.0)])
    assert lm.row() == pytest.approx([3 / 4, 1 / 4, 0])
    assert lm.row("a") == pytest.approx([0, 2 / 3, 1 / 3])
    assert lm.row("b") == pytest.approx([0, 1 / 4, 3 / 4])
    smooth = TabularLM(["a", "b", "<eos>"], smoothing=3.0).fit([("ab", 2.0), ("a", 1.0)])
    assert smooth.row("a") == pytest.approx([1 / 6, 3 / 6, 2 / 6])
    assert TabularLM(["a", "b", "<eos>"]).fit([]).row("a") == pytest.approx([1 / 3] * 3)


def test_shorter_histories_as_prior() -> None:
    """α → ∞ gives the shorter history's row; an unseen history gives it exactly."""
    texts = [("abab", 1.0), ("ba", 2.0)]
    lm = TabularLM(["a", "b", "<eos>"], order=2, smoothing=0.5, prior="shorter").fit(texts)
    assert lm.row("bb") == pytest.approx(lm.row("b"))  # "bb" never occurs
    # after "b" (in any place): a, a, a, end; after nothing at all 10 tokens a b a b . b a . b a .
    counts = {"b": (np.array([3.0, 0, 1]), "")}
    pooled = np.array([4.0, 4, 3])
    pooled = (pooled + 0.5 / 3) / (pooled.sum() + 0.5)
    want = (counts["b"][0] + 0.5 * pooled) / 4.5
    assert lm.row("b") == pytest.approx(want)
    with pytest.raises(BadArgument, match="prior must be"):
        TabularLM(["a"], prior="other")
    with pytest.raises(BadArgument, match="a weight must be"):
        lm.fit([("a", -1.0)])


def test_several_tokenisations_share_a_text() -> None:
    """A string stopped by an unknown terminator counts it by its probability."""
    lm = TabularLM(["a", "\n", ";", "<eos>"], {(): [0.4, 0.3, 0.1, 0.2]})
    law = LM("", stop=["\n", ";"], max_tokens=3)
    (row,) = [lm.counts([WeightedText("", "", 1.0, law=law, value="")])[0]]
    assert row == pytest.approx([0, 3 / 6, 1 / 6, 2 / 6])


# -- STaR ---------------------------------------------------------------------------------------

WORDS = ["q", "r", "s", "1", "2", "H"]
"""q: the question; r, s: rationales; 1, 2: answers; H: the hint."""
TAUGHT: dict[tuple[int, ...], list[float]] = {
    (): [1 / 6] * 6,
    (0,): [0, 0.1, 0.9, 0, 0, 0],  # rationale r leads to 1, and is rare
    (5,): [0, 0.8, 0.2, 0, 0, 0],
    (1,): [0, 0, 0, 0.9, 0.1, 0],
    (2,): [0, 0, 0, 0.2, 0.8, 0],
}


@program
def reason(question: str) -> str:
    rationale = sample("rationale", LM(question, max_tokens=1))
    return str(sample("answer", LM(question + rationale, max_tokens=1)))


def show(prompt: str, answer: str) -> str:
    return prompt + "H"


P_RIGHT = 0.1 * 0.9 + 0.9 * 0.2
P_R = 0.1 * 0.9 / P_RIGHT
"""P(rationale r | answer 1), by hand."""


def taught(fit: Fit) -> float:
    """The weight of rationale r in the last E-step."""
    return sum(t.weight for t in fit.examples.traces() if t.trace["rationale"] == "r")


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_hint_is_weighted(share: float) -> None:
    """With p / q the E-step has the posterior of the program without hint; z-test at 1e-6."""
    n = 3000
    fit = star(
        reason, ["q"], ["1"], lm=TabularLM(WORDS, TAUGHT), hint=show, share=share, samples=n, rounds=0
    )  # fmt: skip
    (posterior,) = fit.examples.posteriors
    assert abs(fit.log_evidence[0] - math.log(P_RIGHT)) < 4.9 * fit.rounds[0].se
    estimate = posterior.expectation(lambda t: t["rationale"] == "r")
    assert abs(estimate.value - P_R) < 4.9 * estimate.se
    assert {t.prompt for t in fit.examples.texts(sites=["rationale"])} == {"q"}  # no hint in it


def test_the_published_weights_have_another_law() -> None:
    """Weight 1 for hinted rationales: P(r) is that of the proposal, far from the posterior."""
    hinted = 0.45  # (0.1 + 0.8) / 2 of rationale r
    right = hinted * 0.9 + (1 - hinted) * 0.2
    lm = TabularLM(WORDS, TAUGHT)
    fit = star(reason, ["q"], ["1"], lm=lm, hint=show, weighted=False, samples=3000, rounds=0)
    assert taught(fit) == pytest.approx(hinted * 0.9 / right, abs=0.05)
    assert abs(hinted * 0.9 / right - P_R) > 0.4


def test_rejection_e_step() -> None:
    """Without a hint weights are 0 or 1, and exact enumeration agrees."""
    lm = TabularLM(WORDS, TAUGHT)
    exact = star(reason, ["q"], ["1"], lm=lm, engine=Enumerate(), rounds=4, from_base=False)
    assert exact.log_evidence[0] == pytest.approx(math.log(P_RIGHT))
    assert all(
        b >= a - 1e-12 for a, b in zip(exact.log_evidence, exact.log_evidence[1:], strict=False)
    )
    assert exact.log_evidence[-1] == pytest.approx(0.0, abs=1e-9)  # it answers right for sure
    plain = star(reason, ["q"], ["1"], lm=lm, samples=4000, rounds=0)
    assert taught(plain) == pytest.approx(P_R, abs=0.06)
    assert len({round(t.weight, 12) for t in plain.examples.traces()}) == 1


def test_a_question_that_is_never_right_is_counted() -> None:
    lm = TabularLM(WORDS, TAUGHT)
    fit = star(reason, ["q", "q"], ["1", "r"], lm=lm, samples=50, rounds=2)
    assert [r.dead for r in fit.rounds] == [1, 1, 1]
    assert fit.log_evidence[-1] > fit.log_evidence[0]
    with pytest.raises(BadArgument, match="1 answers for 2 questions"):
        star(reason, ["q", "q"], ["1"], lm=lm)


# -- files for trainers -------------------------------------------------------------------------


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_export_for_fine_tuning(tmp_path: Path) -> None:
    posteriors = infer_many(story, ["a", "b"], engine=Importance(5), lm=LETTERS, seed=2)
    file = tmp_path / "sft.jsonl"
    n = export_sft(iter(posteriors), file, program=story, data=["a", "b"], ids=["first", "second"])
    found = lines(file)
    assert len(found) == n > 8
    for name, posterior in zip(("first", "second"), posteriors, strict=True):
        mine = [r for r in found if r["question"] == name]
        for site in ("loop[0]/word", "chat", "pick"):
            assert sum(r["weight"] for r in mine if r["site"] == site) == pytest.approx(1.0)
        assert {r["log_evidence"] for r in mine} == {posterior.log_evidence}
    word = next(r for r in found if r["site"] == "loop[0]/word")
    assert set(word) == {
        "prompt", "completion", "weight", "question", "site", "log_prob", "log_evidence",
    }  # fmt: skip
    p = LETTERS.row(word["prompt"])["abc".index(word["completion"])]
    assert word["log_prob"] == pytest.approx(math.log(p))
    chat = next(r for r in found if r["site"] == "chat")
    assert chat["messages"][0]["role"] == "user" and "prompt" not in chat
    heavy = export_sft(posteriors, file, program=story, data=["a", "b"], min_weight=0.5)
    assert 0 < heavy < n
    assert all(r["weight"] >= 0.5 for r in lines(file))


def test_export_is_whole_or_not_there(tmp_path: Path) -> None:
    posteriors = infer_many(story, ["a", "b"], engine=Importance(2), lm=LETTERS)
    file = tmp_path / "sft.jsonl"
    file.write_text("before\n")

    def broken() -> Any:
        yield posteriors[0]
        raise RuntimeError("the run broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        export_sft(broken(), file, program=story, data=["a", "b"])
    assert file.read_text() == "before\n"
    assert [f.name for f in tmp_path.iterdir()] == ["sft.jsonl"]
    with pytest.raises(BadArgument, match="which one, on which questions"):
        export_sft(posteriors, file)
    with pytest.raises(DataError, match="cannot write"):
        export_sft(posteriors, tmp_path / "no" / "x", program=story, data=["a", "b"])


def test_export_of_pairs(tmp_path: Path) -> None:
    """Completions of one prompt: the heavier one is chosen; a dead one has weight 0."""

    @program
    def judged(word: str) -> str:
        said = sample("said", LM(word, max_tokens=1))
        factor("good", {"a": 0.0, "b": math.log(0.2), "c": -math.inf}[said])
        return str(said)

    lm = TableLM(["a", "b", "c"], {(): [1 / 3] * 3})
    posteriors = infer_many(judged, ["a"], engine=Importance(400), lm=lm)
    file = tmp_path / "pairs.jsonl"
    assert export_pairs(posteriors, file, program=judged, data=["a"]) == 1
    (row,) = lines(file)
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("a", "a", "c")
    assert row["rejected_weight"] == 0 and row["margin"] is None
    weights = posteriors[0].marginal()
    assert row["chosen_weight"] == pytest.approx(weights["a"])
    two = TableLM(["a", "b", "c"], {(): [0.5, 0.5, 0]})
    fit = em(judged, ["a"], engine=Enumerate(), lm=two, rounds=0)
    assert export_pairs(fit.examples, file) == 1
    (row,) = lines(file)
    assert (row["chosen"], row["rejected"]) == ("a", "b")
    assert row["margin"] == pytest.approx(math.log(5))
    assert export_pairs(fit.examples, file, min_margin=2.0) == 0
