"""A* against dynamic programming: the exact MAP on 200 of 200 random problems."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lmppl import LM, Categorical, factor, program, sample
from lmppl.errors import BadArgument, LmpplError
from lmppl.inference import Enumerate, infer
from lmppl.inference.search.beam import Beam
from lmppl.inference.search.best_first import AStar, BestFirst
from lmppl.inference.search.found import Found
from lmppl.lm.table import TableLM
from lmppl.trace import Trace

LETTERS = "abcd"
STEPS = 5  # 4^5 = 1,024 strings
PROBLEMS = 200
Rows = dict[tuple[int, ...], Any]


def problem(seed: int) -> tuple[Rows, TableLM]:
    """A random language model of order 2 that never ends by itself."""
    rng = np.random.default_rng(seed)
    contexts: list[tuple[int, ...]] = [()]
    contexts += [(i,) for i in range(4)]
    contexts += [(i, j) for i in range(4) for j in range(4)]
    rows = {c: rng.dirichlet(np.full(4, 0.5)) for c in contexts}
    padded = {c: [*row, 0.0] for c, row in rows.items()}
    return rows, TableLM([*LETTERS, "<eos>"], padded, order=2, name=f"random {seed}")


@program
def writing(steps: int) -> Any:
    text = ""
    for _ in range(steps):
        text = text + sample("letter", LM(text, max_tokens=1))
    return text


def logs(row: Any) -> Any:
    with np.errstate(divide="ignore"):
        return np.log(row)


def viterbi(rows: Rows, steps: int) -> float:
    """The largest log-probability of a string, by dynamic programming over the last two letters."""
    best: dict[tuple[int, ...], float] = {(): 0.0}
    for _ in range(steps):
        after: dict[tuple[int, ...], float] = {}
        for context, lp in best.items():
            for token, q in enumerate(logs(rows[context])):
                key = (*context, token)[-2:]
                after[key] = max(after.get(key, -math.inf), lp + q)
        best = after
    return max(best.values())


def relaxed(rows: Rows, steps: int) -> Any:
    """The backward filter of the bigram relaxation in the max semiring: an upper bound.

    Each step may take the best of all contexts that end in its last letter.
    """
    bigram = np.array([[max(rows[i, j][k] for i in range(4)) for k in range(4)] for j in range(4)])
    bigram = np.maximum(bigram, [rows[(j,)] for j in range(4)])
    h = [np.zeros(4)]
    for _ in range(steps - 1):
        h.append((logs(bigram) + h[-1]).max(axis=1))

    def bound(trace: Trace) -> float:
        letters = list(trace.values())
        if not letters:
            return 0.0
        return float(h[steps - len(letters)][LETTERS.index(letters[-1])])

    return bound


def test_the_exact_map_on_every_problem_and_fewer_expansions_under_the_bound() -> None:
    uniform, guided, beams, right = 0, 0, 0, 0
    for seed in range(PROBLEMS):
        rows, lm = problem(seed)
        best = viterbi(rows, STEPS)
        bounded = infer(writing, STEPS, engine=AStar(guide=relaxed(rows, STEPS)), lm=lm)
        assert isinstance(bounded, Found)
        right += abs(bounded.map().log_joint - best) < 1e-9
        assert bounded.upper <= best + 1e-9
        guided += bounded.expansions
        if seed % 8 == 0:  # the slower ones on every eighth
            plain = infer(writing, STEPS, engine=AStar(), lm=lm)
            assert isinstance(plain, Found)
            assert abs(plain.map().log_joint - best) < 1e-9
            assert bounded.expansions <= plain.expansions
            uniform += plain.expansions
            beam = infer(writing, STEPS, engine=Beam(width=16), lm=lm)
            beams += abs(beam.map().log_joint - best) < 1e-9
    assert right == PROBLEMS
    assert guided / PROBLEMS < 0.75 * uniform / (PROBLEMS / 8)
    assert beams >= 0.9 * PROBLEMS / 8


def test_solutions_come_in_order() -> None:
    rows, lm = problem(3)
    post = infer(writing, 4, engine=AStar(guide=relaxed(rows, 4), solutions=7), lm=lm)
    exact = infer(writing, 4, engine=Enumerate(), lm=lm)
    best = sorted((t.log_joint for t in exact.traces), reverse=True)[:7]
    found = sorted((t.log_joint for t in post.traces), reverse=True)[:7]
    assert np.allclose(best, found, atol=1e-12)
    assert post.log_evidence < exact.log_evidence


def test_a_wave_changes_the_work_and_not_the_answer() -> None:
    rows, lm = problem(5)
    found = [
        infer(writing, STEPS, engine=AStar(guide=relaxed(rows, STEPS), wave=wave), lm=lm)
        for wave in (1, 3, 16)
    ]
    assert len({post.best for post in found if isinstance(post, Found)}) == 1


@program
def tied(n: int) -> Any:
    return tuple(sample("x", Categorical({"a": 0.5, "b": 0.5})) for _ in range(n))


def test_ties_are_broken_the_same_way_whatever_the_wave() -> None:
    answers = {infer(tied, 4, engine=AStar(wave=w)).map().result for w in (1, 2, 50)}
    assert len(answers) == 1


def test_everything_visited_is_exact() -> None:
    post = infer(tied, 3, engine=AStar(solutions=1000))
    assert post.exact
    assert post.log_evidence == pytest.approx(0.0, abs=1e-12)
    assert post.upper == -math.inf  # type: ignore[attr-defined]


def test_a_bound_of_zero_cuts_and_a_guide_of_zero_is_refused() -> None:
    def never_b(trace: Trace) -> float:
        return -math.inf if "b" in trace.values() else 0.0

    post = infer(tied, 3, engine=AStar(guide=never_b, solutions=100))
    # the guide is not asked about finished traces
    assert {t.result[:2] for t in post.traces} == {("a", "a")}
    with pytest.raises(LmpplError, match="the guide gave zero"):
        infer(tied, 3, engine=BestFirst(guide=never_b))


@program
def steep() -> Any:
    """The best of the first site is a dead end."""
    x = sample("x", Categorical({"a": 0.9, "b": 0.1}))
    factor("alive", x == "b")
    return x


def test_dead_branches_are_left() -> None:
    assert infer(steep, engine=AStar()).map().result == "b"


def test_a_spent_budget_finishes_the_best_partial_trace() -> None:
    post = infer(tied, 6, engine=AStar(budget=3))
    assert len(post) == 1
    assert len(post.map().result) == 6
    assert post.upper < 0  # type: ignore[attr-defined]


def test_sites_of_a_big_model_are_drawn() -> None:
    _, lm = problem(1)

    @program
    def words() -> Any:
        return sample("x", LM("", max_tokens=8)), sample("y", LM("a", max_tokens=8))

    post = infer(words, engine=BestFirst(expand=3, solutions=100), lm=lm)
    assert 1 < len(post) <= 9
    assert not post.exact
    with pytest.raises(BadArgument, match="children must be one of"):
        AStar(children="some")
