"""Allocators: order does not matter, states are plain data, batches spread; the laws of their draws."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lmppl.errors import BadArgument
from lmppl.inference.search.abmcts import ABMCTS_A
from lmppl.inference.search.abmcts_mixed import ABMCTS_M
from lmppl.inference.search.allocator import Stats, quantum
from lmppl.inference.search.draws import betas, normals, polar, student
from lmppl.inference.search.hierarchical import Groups, Prior, ScalePosterior
from lmppl.inference.search.priors import NIX2, BetaPrior, Relative
from lmppl.inference.search.results import ResultTree
from lmppl.inference.search.wider_deeper import WiderDeeper

Make = Callable[[int], ResultTree]
MAKERS: dict[str, Make] = {
    "nix2": lambda seed: ABMCTS_A(("a", "b"), seed=seed),
    "beta": lambda seed: ABMCTS_A(("a", "b"), seed=seed, prior=BetaPrior()),
    "relative": lambda seed: ABMCTS_A(("a", "b"), seed=seed, prior=Relative()),
    "mixed": lambda seed: ABMCTS_M(("a", "b"), seed=seed),
    "stack": lambda seed: ABMCTS_A(("a", "b"), seed=seed, choose="stack"),
    "ucb": lambda seed: ABMCTS_A(("a", "b"), seed=seed, choose="ucb", prune=True),
    "mixed stack": lambda seed: ABMCTS_M(("a", "b"), seed=seed, choose="stack", prune=True),
    "wider_deeper": lambda seed: WiderDeeper(("a", "b"), seed=seed),
}


@pytest.fixture(params=list(MAKERS))
def make(request: pytest.FixtureRequest) -> Make:
    return MAKERS[request.param]


def score(id: int) -> float:
    return float(np.random.default_rng(id).uniform())


def grow(tree: ResultTree, waves: int, order: int) -> ResultTree:
    rng = np.random.default_rng(order)
    for _ in range(waves):
        trials = tree.ask(6)
        for i in rng.permutation(len(trials)):
            tree.tell(trials[i].id, f"state {trials[i].id}", score(trials[i].id))
    return tree


def test_order_of_telling_changes_nothing(make: Make) -> None:
    one, two = grow(make(3), 8, order=1), grow(make(3), 8, order=2)
    assert json.dumps(one.state()) == json.dumps(two.state())
    assert [t[:3] for t in one.ask(10)] == [t[:3] for t in two.ask(10)]
    assert one.top(3) == two.top(3)


def test_the_state_is_plain_data_and_goes_on_exactly(make: Make) -> None:
    tree = grow(make(5), 5, order=0)
    left = tree.ask(4)
    tree.tell(left[2].id, "late", 0.25)
    again = make(0)
    again.load(json.loads(json.dumps(tree.state())))
    assert again.state() == tree.state()
    pickled: ResultTree = pickle.loads(pickle.dumps(tree))
    for other in (again, pickled):
        for trial in left[:2]:
            other.tell(trial.id, "state", 0.5)
    for trial in left[:2]:
        tree.tell(trial.id, "state", 0.5)
    asked = [t[:3] for t in tree.ask(20)]
    assert [t[:3] for t in again.ask(20)] == asked
    assert [t[:3] for t in pickled.ask(20)] == asked


@pytest.mark.parametrize("choose", ["thompson", "ucb", "stack"])
def test_the_better_action_is_chosen_more_often(choose: str) -> None:
    """Action b makes better results: it gets most of the trials, a gets some."""
    tree, rng = ABMCTS_A(("a", "b"), seed=1, choose=choose), np.random.default_rng(0)
    for _ in range(20):
        for trial in tree.ask(4):
            got = float(rng.uniform(0.5, 1.0) if trial.action == "b" else rng.uniform(0.0, 0.5))
            tree.tell(trial.id, got, got)
    assert 0 < tree.arms["a"].n < 0.4 * tree.arms["b"].n


def test_bounds_count_what_is_outstanding() -> None:
    """UCB by hand: two actions tried once each, then the one of the larger bound."""
    tree = ABMCTS_A(("a", "b"), seed=0, choose="ucb")
    one, two = tree.ask(2)
    assert [one.action, two.action] == ["a", "b"]
    tree.tell(one.id, "x", 0.2)
    tree.tell(two.id, "y", 0.3)
    # 0.3 + √2 √(ln 2) is larger; once outstanding, a has 0.2 + √2 √(ln 3) against half of that
    assert [t.action for t in tree.ask(2)] == ["b", "a"]


@pytest.mark.parametrize("make_tree", [ABMCTS_A, ABMCTS_M])
def test_a_subtree_of_equal_scores_is_not_entered(make_tree: Callable[..., ResultTree]) -> None:
    """All refinements of a good answer score as it does: without pruning the tree stays there."""

    def below(prune: bool) -> int:
        tree, rng = make_tree(seed=2, prune=prune), np.random.default_rng(0)
        for i in range(48):
            (trial,) = tree.ask()
            got = 0.8 if trial.node or not i else float(rng.uniform(0.0, 0.4))
            tree.tell(trial.id, i, got)
        first = min(tree.nodes[0].children)
        assert tree.nodes[first].settled is prune
        return tree.nodes[first].own.n

    assert below(True) == 4 < below(False)


def test_the_incremental_sums_are_those_of_the_whole_tree() -> None:
    """After any history: own, GEN, CONT and every row of laws, computed afresh from the scores."""
    tree = grow(ABMCTS_A(seed=4), 12, order=3)
    left = tree.ask(3)
    tree.tell(left[1].id, "x", 0.5)
    tree.ask(1)  # counts the outstanding ones

    def subtree(i: int) -> list[int]:
        return [j for j in tree.told if i in lineage(j)]

    def lineage(j: int) -> list[int]:
        out = []
        while j > 0:
            out.append(j)
            j = tree.nodes[j].parent
        return [*out, 0]

    guesses = {i: p for i, p in tree.pending.items() if i not in tree._uncounted}
    for i, node in tree.nodes.items():
        scores = [tree.told[j] for j in subtree(i)]
        scores += [lie for at, _, lie in guesses.values() if i in lineage(at)]
        assert (node.own.n, node.own.s1) == (len(scores), sum(scores))
        direct = [tree.told[c] for c in node.children]
        direct += [lie for at, _, lie in guesses.values() if at == i]
        assert (node.gen.n, node.gen.s1) == (len(direct), sum(direct))
        assert node.cont.n == len(scores) - len(direct) - (i > 0)
        tree._refresh(node)
        for k, c in enumerate(node.children):
            assert tuple(node.laws[:, k]) == tree._law(tree.nodes[c].own)


def test_telling_twice_and_wrongly(make: Make) -> None:
    tree = make(1)
    (trial,) = tree.ask()
    tree.tell(trial.id, "x", 0.5)
    before = tree.state()
    tree.tell(trial.id, "x", 0.5)
    assert tree.state() == before
    with pytest.raises(BadArgument, match="another score"):
        tree.tell(trial.id, "x", 0.6)
    with pytest.raises(BadArgument, match="there is no trial 99"):
        tree.tell(99, 0.5)
    (trial,) = tree.ask()
    for bad in (math.nan, math.inf, "1"):
        with pytest.raises(BadArgument, match="a score must be a number"):
            tree.tell(trial.id, "x", bad)


def test_outstanding_trials_leave_no_trace(make: Make) -> None:
    """Virtual scores are taken back to the last bit: asking one by one or ahead, told the same."""
    tree = make(2)
    trials = tree.ask(5)
    for trial in reversed(trials):
        tree.tell(trial.id, None, score(trial.id))
    fresh = make(0)
    fresh.load(json.loads(json.dumps(tree.state())))
    for a, b in ((tree.nodes[i], fresh.nodes[i]) for i in tree.nodes):
        for name in ("own", "gen", "cont"):
            x, y = getattr(a, name), getattr(b, name)
            assert (x.n, x.s1, x.s2) == (y.n, y.s1, y.s2)
        assert a.children == b.children and not a.expected


def test_a_virtual_loss_widens_and_the_mean_does_not() -> None:
    """A negative result: counting outstanding trials as losses shrinks what is known of children,
    so that batches grow wider, not deeper. The mean is the default for that reason."""

    def width(virtual: Any) -> int:
        found = 0
        for seed in range(12):
            tree, rng = ABMCTS_A(seed=seed, virtual=virtual), np.random.default_rng(seed)
            for _ in range(8):
                for trial in tree.ask(8):
                    got = (trial.state or 0.0) + rng.normal(0.05, 0.05)
                    tree.tell(trial.id, got, got)
            found += len(tree.nodes[0].children)
        return found

    assert width("mean") < 0.7 * width(-1.0)


def test_exact_sums() -> None:
    values = np.random.default_rng(0).normal(size=500) * 10.0 ** np.arange(500).clip(0, 5)
    one, two = Stats(), Stats()
    for v in values:
        one.add(quantum(v))
    for v in values[::-1]:
        two.add(quantum(v))
    assert one.moments() == two.moments()
    n, mean, spread = one.moments()
    assert n == 500 and mean == pytest.approx(values.mean())
    assert spread == pytest.approx(((values - values.mean()) ** 2).sum())


def test_the_posterior_of_a_mean_is_students_t() -> None:
    """The formulas of the paper against the law of μ by drawing σ² and μ."""
    scores = np.array([0.2, 0.9, 0.4])
    prior = NIX2(0.1, 2.0, 3.0, 0.2)
    n, mean = len(scores), scores.mean()
    spread = ((scores - mean) ** 2).sum()
    loc, scale, df = prior.posterior(n, mean, spread)
    kappa, nu = prior.kappa + n, prior.nu + n
    square = prior.nu * prior.tau2 + spread + n * prior.kappa * (prior.m - mean) ** 2 / kappa
    rng = np.random.default_rng(0)
    sigma2 = square / rng.chisquare(nu, 200_000)
    mu = (prior.kappa * prior.m + n * mean) / kappa + np.sqrt(sigma2 / kappa) * rng.normal(
        size=200_000
    )
    (logs,), (cosines,) = polar(np.array([7], dtype=np.uint64), 0, 200_000)
    t = np.sqrt(df * np.expm1(-2.0 / df * logs)) * cosines
    drawn = loc + scale * t
    grid = np.linspace(0.05, 0.95, 19)
    # two-sample quantiles: false alarm below 1e-6 for each of 19 (z = 5 at n = 200,000)
    below = (drawn[:, None] < np.quantile(mu, grid)).mean(axis=0)
    assert np.all(abs(below - grid) < 5 * np.sqrt(2 * grid * (1 - grid) / 200_000))
    assert student(7, 11, df) == pytest.approx(float(t[11]))


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (0.5, 3.5), (4.0, 1.5), (30.0, 70.0)])
def test_keyed_beta_draws(a: float, b: float) -> None:
    n = 40_000
    x = betas(np.arange(n, dtype=np.uint64), np.full(n, a), np.full(n, b))
    mean, var = a / (a + b), a * b / ((a + b) ** 2 * (a + b + 1))
    assert abs(x.mean() - mean) < 5 * math.sqrt(var / n)
    assert x.var() == pytest.approx(var, rel=0.06)
    assert abs(normals(np.arange(n, dtype=np.uint64)).mean()) < 5 / math.sqrt(n)


GROUPS = {
    "one": [[0.7]],
    "two": [[0.3, 0.4, 0.2], [0.9]],
    "four": [[0.1], [0.5, 0.55], [0.8, 0.7, 0.9, 0.8], [0.45] * 2],
    "equal": [[0.5, 0.5], [0.5]],
    "many": [list(0.5 + 0.3 * np.sin(np.arange(3) + j)) for j in range(8)],
}


def groups_of(scores: list[list[float]]) -> Groups:
    arrays = [np.array(s) for s in scores]
    return Groups(
        np.array([float(len(s)) for s in arrays]),
        np.array([s.mean() for s in arrays]),
        np.array([((s - s.mean()) ** 2).sum() for s in arrays]),
    )


def brute(scores: list[list[float]], prior: Prior, which: int | None, at: Any) -> Any:
    """The predictive density by plain matrices: joint normal of scores and the new one, σ on a grid."""
    a = np.exp(np.linspace(math.log(2e-3), math.log(6 * prior.between), 40))
    y = np.exp(np.linspace(math.log(2e-3), math.log(6 * prior.within), 40))
    owner = np.array([j for j, s in enumerate(scores) for _ in s])
    values = np.concatenate([np.array(s) for s in scores]) - prior.mean
    same = owner[:, None] == owner[None, :]
    mine = np.zeros(len(owner)) if which is None else (owner == which).astype(float)
    out, total = np.zeros(len(at)), 0.0
    logs, parts = [], []
    for sa in a:
        for sy in y:
            cov = prior.mean_sd**2 + sa**2 * same + sy**2 * np.eye(len(owner))
            chol = np.linalg.cholesky(cov)
            z = np.linalg.solve(chol, values)
            log = -0.5 * z @ z - np.log(np.diag(chol)).sum()
            log += math.log(sa * sy) - 0.5 * (sa / prior.between) ** 2
            log -= 0.5 * (sy / prior.within) ** 2
            cross = prior.mean_sd**2 + sa**2 * mine
            w = np.linalg.solve(chol, cross)
            logs.append(log)
            var = prior.mean_sd**2 + sa**2 + sy**2 - w @ w
            parts.append((prior.mean + w @ z, var))
    weights = np.exp(np.array(logs) - max(logs))
    for weight, (centre, var) in zip(weights, parts, strict=True):
        out += weight * np.exp(-0.5 * (at - centre) ** 2 / var) / math.sqrt(2 * math.pi * var)
        total += weight
    return out / total


@pytest.mark.parametrize("name", list(GROUPS))
def test_the_collapsed_posterior_against_brute_force(name: str) -> None:
    """The predictive law of an old and of a new group: total variation at most 0.02."""
    scores, prior = GROUPS[name], Prior()
    at = np.linspace(-1.0, 2.0, 601)
    fit = ScalePosterior(groups_of(scores), prior)
    old = fit.density(float(len(scores[0])), float(np.mean(scores[0])), at)
    for density, which in ((old, 0), (fit.density(0.0, 0.0, at), None)):
        exact = brute(scores, prior, which, at)
        distance = 0.5 * np.abs(density - exact).sum() * (at[1] - at[0])
        # with equal scores the law of a new score is nearly a spike, which the grid of points cuts
        assert distance < (0.05 if name == "equal" else 0.02)


def test_draws_have_the_predictive_law() -> None:
    fit = ScalePosterior(groups_of(GROUPS["four"]), Prior())
    n = 40_000
    ids = np.arange(n, dtype=np.uint64)
    at = np.linspace(-2.5, 3.5, 2_401)
    for size, mean in ((4.0, 0.8), (0.0, 0.0)):
        drawn = fit.predict(np.full(n, size), np.full(n, mean), 5, ids)
        cdf = np.cumsum(fit.density(size, mean, at)) * (at[1] - at[0])
        # Kolmogorov-Smirnov: sqrt(n) D > 2.6 has probability 2 exp(-2 · 2.6²) = 2.7e-6
        d = np.abs(np.interp(np.sort(drawn), at, cdf) - (np.arange(n) + 0.5) / n).max()
        assert d * math.sqrt(n) < 2.7
