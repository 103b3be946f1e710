"""The engine `Elimination`: equal to enumeration, to the sweeps of BFFG, and properly weighted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lmppl import Bernoulli, Categorical, deterministic, effect, factor, observe, program, sample
from lmppl.errors import AllParticlesDead, BadArgument, NotFinite
from lmppl.inference import Enumerate, infer
from lmppl.inference.elimination import Eliminated, Elimination
from lmppl.testing import assert_properly_weighted

NOT_A_TABLE = {"nested"}
"""It nests an engine that samples."""


def test_equals_enumeration(case: Any) -> None:
    """Evidence, every site, and what is returned, to 1e-10."""
    options = {"lm": case.lm, "on_dead": "return"}
    if case.name in NOT_A_TABLE:
        with pytest.raises(BadArgument, match="draws at random"):
            infer(case.program, *case.args, engine=Elimination(), **options)
        return
    found = infer(case.program, *case.args, engine=Elimination(draws=4, probes=32), **options)
    exact = infer(case.program, *case.args, engine=Enumerate(), **options)
    assert found.dead == exact.dead
    if exact.dead:
        with pytest.raises(AllParticlesDead):
            found.marginal()
        return
    assert isinstance(found, Eliminated) and found.tables.proven and not found.warnings
    assert found.log_evidence == pytest.approx(exact.log_evidence, abs=1e-10)
    assert np.ptp(found.log_weights) < 1e-10  # the program's own weights of the draws agree
    assert found.log_weights[0] == pytest.approx(exact.log_evidence, abs=1e-10)
    for of in [None, *found.tables.graph.domains]:
        p, q = found.marginal(of), exact.marginal(of)
        assert p.total_variation(q) < 1e-10, of


@pytest.mark.parametrize(
    "name",
    ["cascade", "observed", "soft", "branching", "hard", "early_return", "chosen", "hidden_loop"],
)
def test_draws_are_properly_weighted(programs: Any, name: str) -> None:
    """Every outcome of its two draws, enumerated."""
    case = next(c for c in programs.CASES if c.name == name)
    assert_properly_weighted(
        case.program,
        *case.args,
        engine=Elimination(draws=2, probes=8),
        lm=case.lm,
        exact=case.by_hand(),
        atol=1e-10,
    )


@pytest.mark.parametrize("name", ["soft", "shared_parent", "early_return", "hidden_loop"])
def test_guided_draws_are_properly_weighted(programs: Any, name: str) -> None:
    """Where no table may be as large as needed, loopy propagation guides and weights correct."""
    case = next(c for c in programs.CASES if c.name == name)
    engine = Elimination(draws=1, probes=8, most=2)
    assert_properly_weighted(
        case.program, *case.args, engine=engine, lm=case.lm, exact=case.by_hand(), atol=1e-10
    )
    found = infer(case.program, *case.args, engine=engine, lm=case.lm)
    assert "loopy" in found.warnings[0]


def test_a_missed_dependence_is_seen_and_corrected() -> None:
    """What two probes miss shows in the weights of the draws, and these are right nevertheless."""

    @program
    def needle() -> Any:
        x = [sample(f"x{i}", Categorical({0: 0.1, 1: 0.9})) for i in range(7)]
        factor("f", 0.0 if all(x[i] == 1 for i in range(7)) else -1.0)

    post = infer(needle, engine=Elimination(draws=400, probes=1, exhaustive=0), seed=0)
    assert isinstance(post, Eliminated)
    assert len(post.tables.scopes.get("f", ())) < 7
    assert any("missed" in w for w in post.warnings)
    exact = 0.9**7 + (1 - 0.9**7) * math.exp(-1.0)
    w = np.exp(post.log_weights)
    assert abs(w.mean() - exact) < 4.89 * w.std() / 20  # a false alarm in a million
    sure = infer(needle, engine=Elimination(draws=4))
    assert sure.log_evidence == pytest.approx(math.log(exact), abs=1e-10) and not sure.warnings


def test_long_chain_equals_the_sweeps_of_bffg() -> None:
    """A hidden Markov model of 16 steps: 43 million traces, far beyond enumeration."""
    jax = pytest.importorskip("jax")
    from lmppl import loop
    from lmppl.inference import bffg

    rng = np.random.default_rng(0)
    move, show = rng.dirichlet(np.ones(3), 3), rng.dirichlet(np.ones(3), 3)
    ys = [int(y) for y in rng.integers(0, 3, 16)]

    @program
    def hmm(ys: Any) -> Any:
        def step(x: int, t: int) -> int:
            x = sample("x", Categorical([0, 1, 2], move[x].tolist()))
            observe("y", Categorical([0, 1, 2], show[x].tolist()), ys[t])
            return x

        return loop(step, 0, n=len(ys))

    found = infer(hmm, ys, engine=Elimination(draws=2, probes=64))
    alpha = np.eye(3)[0]
    log_z = 0.0
    for y in ys:
        alpha = (alpha @ move) * show[:, y]
        log_z += math.log(alpha.sum())
        alpha = alpha / alpha.sum()
    assert found.log_evidence == pytest.approx(log_z, abs=1e-10)
    for k in range(3):
        assert found.marginal()[k] == pytest.approx(float(alpha[k]), abs=1e-10)
    with jax.enable_x64(True):
        made = bffg.from_program(hmm, ys)
        swept = bffg.backward(made.model, made.data)
        assert float(swept.log_evidence) == pytest.approx(log_z, abs=1e-10)


def test_derived_values_effects_and_expectations() -> None:
    calls: list[int] = []

    def double(n: int) -> int:
        calls.append(n)
        return 2 * n

    @program
    def tool() -> Any:
        n = sample("n", Categorical({1: 0.5, 2: 0.3, 3: 0.2}))
        m = effect("double", double, n)
        big = deterministic("big", m > 3)
        observe("seen", Bernoulli(0.9 if big else 0.2), True)
        return m

    found = infer(tool, engine=Elimination(draws=500))
    exact = infer(tool, engine=Enumerate())
    assert sorted(set(calls[:3])) == [1, 2, 3]
    assert found.expectation("n").value == pytest.approx(exact.expectation("n").value, abs=1e-12)
    assert found.expectation("n").se == 0.0
    assert found.marginal().total_variation(exact.marginal()) < 1e-12
    z = (found.marginal("big")[True] - exact.marginal("big")[True]) / found.marginal("big").se[True]
    assert abs(z) < 4.89  # a false alarm in a million
    assert found.log_evidence_se == 0.0 and "Elimination" in found.engine
    assert found.map()["n"] in (1, 2, 3) and len(found) == 500


@pytest.mark.parametrize("engine", [Elimination(draws=4), Enumerate()], ids=["sums", "traces"])
def test_an_expectation_of_a_text_is_refused(engine: Any) -> None:
    @program
    def model() -> str:
        return str(sample("word", Categorical(["up", "down"], [0.4, 0.6])))

    found = infer(model, engine=engine)
    with pytest.raises(BadArgument, match="an expectation needs numbers") as caught:
        found.expectation("word")
    assert caught.value.fields["where"] == "site 'word'"
    assert "'down'" in caught.value.fields["value"]
    assert "lambda t: len(t['word'])" in caught.value.fields["fix"]


def test_conditions_params_and_refusals() -> None:
    @program
    def two() -> Any:
        a = sample("a", Bernoulli(0.3))
        return sample("b", Bernoulli(0.9 if a else 0.2))

    found = infer(two, engine=Elimination(), observations={"b": True})
    assert found.marginal("a")[True] == pytest.approx(0.27 / 0.41, abs=1e-12)
    assert found.log_evidence == pytest.approx(math.log(0.41), abs=1e-12)

    @program
    def continuous() -> Any:
        import numpyro.distributions as dist

        return sample("x", dist.Normal(0.0, 1.0))

    pytest.importorskip("numpyro")
    with pytest.raises(NotFinite, match="Normal"):
        infer(continuous, engine=Elimination())
    with pytest.raises(BadArgument):
        Elimination(draws=0)
    with pytest.raises(BadArgument):
        Elimination(most=1)
    assert "summed variable by variable" in Elimination().target()


def test_a_tree_equals_the_sweeps_of_bffg() -> None:
    """Mutation along a phylogeny of seven nodes, observed at its leaves."""
    jax = pytest.importorskip("jax")
    import jax.numpy as jnp

    from lmppl.inference.bffg import backward, tree
    from lmppl.inference.bffg.families.finite import Finite, FiniteLeaf

    parents = [-1, 0, 0, 1, 1, 2, 2]
    rng = np.random.default_rng(3)
    moves, root = rng.dirichlet(np.ones(3), (7, 3)), rng.dirichlet(np.ones(3))
    shows = rng.dirichlet(np.ones(3), 3)
    seen = {3: 0, 4: 2, 5: 1, 6: 1}

    @program
    def phylogeny() -> Any:
        x: list[int] = []
        for i, u in enumerate(parents):
            law = root if u < 0 else moves[i, x[u]]
            x.append(sample(f"x{i}", Categorical([0, 1, 2], law.tolist())))
            if i in seen:
                observe(f"y{i}", Categorical([0, 1, 2], shows[x[i]].tolist()), seen[i])
        return x[0]

    found = infer(phylogeny, engine=Elimination(draws=2))
    with jax.enable_x64(True):
        likelihood = np.stack([shows[:, seen[i]] for i in seen])
        model = tree(
            parents,
            lambda p, c: Finite(c),
            lambda p, c: Finite(jnp.asarray(root)),
            list(seen),
            lambda p, c: FiniteLeaf(c[:, None]),
            covariates=moves,
            leaf_covariates=likelihood,
        )
        swept = backward(model, jnp.zeros(len(seen)))
        assert found.log_evidence == pytest.approx(float(swept.log_evidence), abs=1e-10)
    exact = infer(phylogeny, engine=Enumerate())
    assert found.marginal().total_variation(exact.marginal()) < 1e-12


def test_a_thought_graph_is_summed_too() -> None:
    """Its nodes are sites, its edges scopes; the record of the run is no site."""
    from lmppl.graphs import Node, graph, graph_of, tables_of

    @program
    def thoughts() -> Any:
        def root() -> str:
            return str(sample("t", Categorical({"a": 0.3, "b": 0.7})))

        def left(root: str) -> str:
            return str(sample("t", Categorical({"a": 0.9 if root == "a" else 0.2, "b": 0.5})))

        def right(root: str) -> str:
            return str(sample("t", Categorical({"a": 0.6 if root == "a" else 0.1, "b": 0.5})))

        def merge(left: str, right: str) -> str:
            observe("same", Bernoulli(0.9 if left == right else 0.2), True)
            return left + right

        nodes = [
            Node("root", root),
            Node("left", left, ("root",)),
            Node("right", right, ("root",)),
            Node("merge", merge, ("left", "right")),
        ]
        return graph("plan", nodes)["merge"]

    want = {("root", "left"), ("root", "right"), ("left", "merge"), ("right", "merge")}
    ends = {"root": "root/t", "left": "left/t", "right": "right/t", "merge": "merge/same"}
    assert set(graph_of(thoughts).edges) == {
        (f"plan/{ends[u]}", f"plan/{ends[v]}") for u, v in want
    }
    assert tables_of(thoughts).scopes["plan/merge/same"] == ("plan/left/t", "plan/right/t")
    found, exact = infer(thoughts, engine=Elimination(draws=4)), infer(thoughts, engine=Enumerate())
    assert found.log_evidence == pytest.approx(exact.log_evidence, abs=1e-12)
    assert found.marginal().total_variation(exact.marginal()) < 1e-12
