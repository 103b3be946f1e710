"""Automata of texts, and the filter as a token-level potential, by enumeration."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

from lmppl import LM, program, sample  # noqa: E402
from lmppl.errors import BadArgument  # noqa: E402
from lmppl.inference import SMC, Enumerate, Importance, bffg, infer, tokens  # noqa: E402
from lmppl.inference.bffg import (  # noqa: E402
    HMM,
    HMMAutomaton,
    TextAutomaton,
    containing,
    matching,
)
from lmppl.lm.table import TableLM  # noqa: E402
from lmppl.testing import assert_potential_laws, assert_properly_weighted  # noqa: E402
from lmppl.token_potentials import Lookahead, Matches  # noqa: E402
from lmppl.token_potentials.samplers import next_rows  # noqa: E402

MODEL = TableLM.random(["a", "b", "ab", "<eos>"], seed=3, order=1)
"""Two tokenisations of "ab"."""


def wrong_hmm(tokens: int, seed: int = 0, states: int = 2) -> HMM:
    rng = np.random.default_rng(seed)
    ones = np.ones(states)
    B = rng.dirichlet(np.ones(tokens), states)
    return HMM(rng.dirichlet(ones), rng.dirichlet(ones, states), B)


RULES: dict[str, tuple[TextAutomaton, Callable[[str], bool]]] = {
    "one of": (
        bffg.containing("aba", "bb", "ba"),
        lambda x: any(w in x for w in ("aba", "bb", "ba")),
    ),
    "begins": (bffg.starting("ab", "ba", "abb"), lambda x: x.startswith(("ab", "ba"))),
    "crossed": (bffg.starting("aab", "b a"), lambda x: x.startswith(("aab", "b a"))),
    "ends": (bffg.ending("aab", "b", " a"), lambda x: x.endswith(("aab", "b", " a"))),
    "short": (bffg.length(2, 4), lambda x: 2 <= len(x) <= 4),
    "long": (bffg.length(3), lambda x: len(x) >= 3),
    "two words": (bffg.words(2, 2), lambda x: len(x.split()) == 2),
    "some words": (bffg.words(1), lambda x: len(x.split()) >= 1),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_that_of_the_text(name: str) -> None:
    """All texts of at most six characters, one of them of two bytes."""
    rule, truth = RULES[name]
    for n in range(7):
        for letters in itertools.product("ab é"[: 4 if n < 5 else 3], repeat=n):
            text = "".join(letters)
            assert rule(text) == truth(text), text


def test_rules_have_no_state_too_many() -> None:
    """Myhill and Nerode: as many as there are classes of texts."""
    assert len(bffg.containing("ab", "abb").table) == 3  # whatever holds "abb" holds "ab"
    assert len((containing("ab") & ~containing("ab")).table) == 1
    assert len((bffg.length(0, 3) & bffg.length(2, 8)).table) == 5
    both = bffg.jointly(containing("a"), containing("b"), bffg.length(1))
    assert len(both.table) == 5  # nothing, another letter, a, b, both
    for wrong in ((), ("a", "")):
        with pytest.raises(BadArgument, match="empty word"):
            bffg.ending(*wrong)
    with pytest.raises(BadArgument, match="most"):
        bffg.words(3, 2)


def test_rules_can_be_weighed_side_by_side() -> None:
    """τ of which rules hold: Σ p τ by enumeration, whatever the surrogate."""
    rules = [containing("a"), containing("bb"), bffg.length(2, 3)]
    dfa = bffg.jointly(*rules).over(MODEL)

    def worth(holds: Any) -> float:
        return float(0.25 + sum(holds) + 3.0 * (holds[0] and not holds[2]))

    tau = dfa.terminal(lambda s: worth(s.holds))
    filter_ = HMMAutomaton(wrong_hmm(4), dfa, 3, tau)
    truth = sum(
        p * worth([rule(x) for rule in rules]) for x, p in MODEL.enumerate(max_tokens=3).items()
    )
    found = infer(writer(bffg.string_potential(filter_), 3), engine=Enumerate(), lm=MODEL)
    assert np.exp(found.log_evidence) == pytest.approx(truth, rel=1e-12)


def test_words_and_their_logic() -> None:
    rule = containing("aba") & ~containing("bb") | containing("ccc")
    for n in range(7):
        for letters in itertools.product("abc", repeat=n):
            text = "".join(letters)
            assert rule(text) == (("aba" in text and "bb" not in text) or "ccc" in text)
    with pytest.raises(BadArgument, match="empty word"):
        containing("")


@pytest.mark.parametrize(
    ("regex", "states"),
    [
        (r"a(bc|bd)*e?", 5),
        (r"[a-c]{2,9}x", 12),
        (r"[a-e]*(cat|[cC]ab)[a-e]*", None),
        (r"(a|b)*a(a|b)(a|b)", 9),  # its states are told apart by questions of their own
    ],
)
def test_an_automaton_learnt_from_the_grammar_is_that_of_the_expression(
    regex: str, states: int | None
) -> None:
    found = matching(regex)
    rng = np.random.default_rng(0)
    letters = list("abcdext")
    texts = ["".join(rng.choice(letters, n)) for n in rng.integers(0, 12, 3000)]
    texts += ["".join(rng.choice(["a", "b"], n)) for n in rng.integers(0, 12, 1000)]
    texts += ["abcbde", "ae", "aaaaaaaaax", "aaaaaaaaaax", "abcatde", "abCab", "acab", "aCabcat"]
    assert [found(t) for t in texts] == [re.fullmatch(regex, t) is not None for t in texts]
    if states is not None:
        assert len(found.accepts) == states  # no two of them are the same


def test_schemas_and_what_is_no_regular_grammar() -> None:
    found = matching(json_schema={"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2})
    assert [found(t) for t in ("[1, 2]", "[]", "[1", "[1, 2, 1]")] == [True, True, False, False]
    nested = matching(grammar='start: "a" start "b" | "c"')  # no automaton has it whole
    assert nested("acb") and nested("aacbb") and not nested("aacb")
    with pytest.raises(BadArgument, match="more than 5 states"):
        matching(r"[a-d]{3,8}", most=5)


@pytest.mark.slow
def test_a_schema_of_some_hundred_states() -> None:
    names = {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "maximum": 120},
    }
    tags = {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3}
    schema = {
        "type": "object",
        "properties": {**names, "tags": tags},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    found = matching(json_schema=schema)
    assert 200 < len(found.table) < 500
    for text, ok in {
        '{"name": "Bob", "age": 12}': True,
        '{"name": "Bob", "age": 121}': False,
        '{"name": "Bob", "age": -7, "tags": ["red", "blue"]}': True,
        '{"name": "Bob", "age": 1, "tags": ["red", "blue", "red", "red"]}': False,
        '{"name": "Bob", "age": 1, "tags": ["grey"]}': False,
        '{"age": 12}': False,
        f'{{"name": "{"b" * 20}", "age": 12}}': True,
        f'{{"name": "{"b" * 21}", "age": 12}}': False,
    }.items():
        assert found(text) == ok, text


def test_over_tokens_it_reads_every_tokenisation() -> None:
    dfa = containing("ab").over(MODEL)
    for n in range(4):
        for ids in itertools.product(range(3), repeat=n):
            s = 0
            for v in ids:
                s = int(dfa.delta[s, v])
            assert dfa.states[s].accepts == ("ab" in MODEL.decode(ids))
            over = dfa.states[dfa.delta[s, 3]]
            assert over.ended and over.accepts == dfa.states[s].accepts
            assert not dfa.states[dfa.delta[dfa.delta[s, 3], 0]].accepts


def guide(most: int, seed: int = 0) -> HMMAutomaton:
    dfa = containing("ab").over(MODEL)
    return HMMAutomaton(wrong_hmm(4, seed), dfa, most, dfa.terminal(lambda s: 1.5 * s.accepts))


def writer(potential: Any, most: int) -> Any:
    @program
    def write() -> str:
        return str(sample("x", LM("", potential=potential, max_tokens=most)))

    return write


def test_the_filter_is_a_potential() -> None:
    assert assert_potential_laws(bffg.string_potential(guide(5)), MODEL, max_tokens=3) == 40
    plain = bffg.string_potential(guide(5), rule=False)
    assert assert_potential_laws(plain, MODEL) == assert_potential_laws(Lookahead(plain), MODEL)


def test_strings_are_looked_at_together() -> None:
    """Rows of many states are those of each: of two filters, two lengths, dead ends, products."""
    start = bffg.string_potential(guide(5)).start(MODEL)
    other = bffg.string_potential(guide(4, 1), rule=False).start(MODEL)
    dfa = (~containing("ba")).over(MODEL)
    hard = HMMAutomaton(wrong_hmm(4), dfa, 5, dfa.terminal(lambda s: s.accepts))
    lost = bffg.string_potential(hard).start(MODEL).advance(1).advance(0)
    assert lost.log_prefix == -np.inf
    states = [start, start.advance(0), start.advance(0).advance(1), other.advance(2), other, lost]
    product = bffg.string_potential(guide(5)) * Matches("[ab]{2}")
    both = [product.start(MODEL).advance(v) for v in (0, 1, 2)]
    for some in (states, both, [*states, *both]):
        rows, which = next_rows([*some, some[0]])
        assert which[-1] == 0
        assert np.allclose(rows, [s.log_next() for s in some], atol=1e-12)
        assert np.allclose(rows[:, [3, 1]], [s.log_next([3, 1]) for s in some], atol=1e-12)


def test_as_a_potential_it_has_the_target_of_the_rule() -> None:
    """Σ p τ whatever the surrogate, by enumeration of the program and of the texts."""
    truth = sum(1.5 * p for x, p in MODEL.enumerate(max_tokens=3).items() if "ab" in x)
    for seed in (0, 1):
        law = writer(bffg.string_potential(guide(3, seed)), 3)
        found = infer(law, engine=Enumerate(), lm=MODEL)
        assert np.exp(found.log_evidence) == pytest.approx(truth, rel=1e-12)
    plain = writer(bffg.string_potential(guide(3), rule=False), 3)
    assert infer(plain, engine=Enumerate(), lm=MODEL).log_evidence == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "engine", [Importance(2), SMC(2, always=True, resample_at=tokens(1))], ids=["IS", "SMC"]
)
def test_engines_weigh_it_properly(engine: Any) -> None:
    """All outcomes: E[Ẑ W(x)] = p(x) τ(x) to 1e-10, with tokens drawn from q ∝ p g."""
    for rule in (True, False):
        potential = bffg.string_potential(guide(2), rule=rule)
        assert_properly_weighted(writer(potential, 2), engine=engine, lm=MODEL, atol=1e-10)


def test_with_the_exact_surrogate_every_estimate_is_z_and_no_string_is_lost() -> None:
    """The weight of a token is known before it is drawn: the model reads living strings alone."""
    rows = np.exp(MODEL.table)
    A = rows[1:].copy()
    A[3] = np.eye(4)[3]  # the end is absorbing
    exact = HMM(rows[0], A, np.eye(4))
    dfa = containing("ab").over(MODEL)
    filter_ = HMMAutomaton(exact, dfa, 4, dfa.terminal(lambda s: s.accepts))
    law = writer(bffg.string_potential(filter_), 4)
    truth = sum(p for x, p in MODEL.enumerate(max_tokens=4).items() if "ab" in x)
    for seed in range(3):
        post = infer(law, engine=SMC(8, resample_at=tokens(1)), lm=MODEL, seed=seed)
        assert np.exp(post.log_evidence) == pytest.approx(truth, rel=1e-10)
        assert post.ess == pytest.approx(8, rel=1e-10) and not post.deaths


def test_what_cannot_be_drawn_says_so() -> None:
    with pytest.raises(BadArgument, match="horizon 2"):
        potential = bffg.string_potential(guide(2))
        infer(writer(potential, 4), engine=Importance(20), lm=MODEL, seed=0)
    with pytest.raises(BadArgument, match="a filter over 4 tokens"):
        other = TableLM(["a", "<eos>"], {(): [0.5, 0.5]})
        infer(writer(bffg.string_potential(guide(2)), 2), engine=Importance(2), lm=other)


def test_counting_tokens() -> None:
    dfa = bffg.counting(containing("ab").over(MODEL), 3, np.array([1, 1, 1, 0]))
    s = 0
    for v in (2, 0, 3, 3):
        s = int(dfa.delta[s, v])
    state, count = dfa.states[s]
    assert state.accepts and state.ended and count == 2
    with pytest.raises(BadArgument, match="floor"):
        bffg.string_potential(guide(2), floor=0.0)


def test_distilling_a_model_by_what_it_writes() -> None:
    """Clusters put tokens together that rise and fall together, and the surrogate has its laws."""
    rows = {(): [0.25, 0.25, 0.2, 0.2, 0.1], (0,): [0.05, 0.05, 0.5, 0.3, 0.1]}
    rows[(1,)] = rows[(0,)]
    lm = TableLM(["a", "A", "b", "B", "<eos>"], rows)
    found = bffg.token_clusters(lm, [(), (0,), (1,), (2,), (3,)], 3)
    assert found.of[0] == found.of[1] != found.of[2] == found.of[3] != found.of[4]
    assert np.bincount(found.of, found.share) == pytest.approx(np.ones(3))
    x = bffg.written(lm, (), 400, 5, 0)
    assert all(over[over.argmax() :].all() for over in x == 4 if over.any())
    hmm = bffg.fit_ngram(x, 2, 5, clusters=found)
    assert hmm.tokens == 5 and hmm.B.shape == (3, 3)
    k = found.of
    assert hmm.A[k[0], k[2]] == pytest.approx(0.8, abs=0.06)
    dfa = containing("b").over(lm)
    tau = dfa.terminal(lambda s: s.accepts)
    guide_ = HMMAutomaton(hmm, dfa, 5, tau)
    truth = sum(p for t, p in lm.enumerate(max_tokens=5).items() if "b" in t)
    assert np.exp(guide_.log_g(guide_.start())[0]) == pytest.approx(truth, abs=0.1)
