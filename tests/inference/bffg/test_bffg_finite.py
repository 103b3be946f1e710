"""Finite kernels: every path is enumerated, so that Σ q W = Z and Σ q W f = Σ γ f are exact."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy

from lmppl.inference import bffg  # noqa: E402
from lmppl.inference.bffg import forward as _forward  # noqa: E402, F401
from lmppl.inference.bffg.families.finite import Finite, FiniteLeaf, Sparse  # noqa: E402
from lmppl.inference.bffg.kernels import Guessed  # noqa: E402
from lmppl.inference.bffg.messages import Table  # noqa: E402

pytestmark = pytest.mark.usefixtures("float64")


def stoch(rng: np.random.Generator, *shape: int) -> Any:
    x = rng.gamma(1, size=shape) + 0.05
    return x / x.sum(-1, keepdims=True)


def all_paths(states: int, nodes: int) -> Any:
    return np.array(list(itertools.product(range(states), repeat=nodes)))


def scored(bf: Any, paths: Any) -> tuple[Any, Any]:
    """q and W of every path."""
    log_q, log_w = jax.vmap(lambda v: bffg.path_score(bf, v))(paths)
    return np.exp(np.asarray(log_q)), np.exp(np.asarray(log_w))


def a1() -> tuple[Any, Any, Any, Any, Any, Any]:
    """The tree of acceptance test A1: kernels, surrogates, leaves, their guesses, root."""
    rng = np.random.default_rng(0)
    P = [stoch(rng, 3, 3) for _ in range(6)]
    guess = [stoch(rng, 3, 3) for _ in range(6)]
    leaves = [stoch(rng, 3, 4)[:, j] for j in (1, 2, 0, 3)]
    pi = rng.dirichlet([1, 1, 1])
    wrong = [np.maximum(v * rng.uniform(0.5, 2, 3), 1e-3) for v in leaves]
    return P, guess, leaves, wrong, pi, [-1, 0, 1, 1, 2, 2, 3]


def a1_model(exact: bool) -> Any:
    P, guess, leaves, wrong, pi, parents = a1()
    none = np.zeros((3, 3))
    covariates = {"P": np.stack([none, *P]), "guess": np.stack([none, *guess])}
    at_leaves = {"E": np.stack(leaves)[:, :, None], "guess": np.stack(wrong)[:, :, None]}

    def kernel(p: Any, c: Any) -> Any:
        return Finite(c["P"]) if exact else Guessed(Finite(c["P"]), Finite(c["guess"]))

    def leaf(p: Any, c: Any) -> Any:
        return FiniteLeaf(c["E"], None if exact else c["guess"])

    return bffg.tree(
        parents, kernel, lambda p, c: Finite(p), [4, 5, 6, 3], leaf,
        covariates=covariates, leaf_covariates=at_leaves,
    )  # fmt: skip


def test_a_tree_of_wrong_surrogates_has_the_exact_evidence_and_marginals() -> None:
    P, _, leaves, _, pi, parents = a1()
    paths = all_paths(3, 7)
    joint = pi[paths[:, 0]]
    for s in range(1, 7):
        joint = joint * P[s - 1][paths[:, parents[s]], paths[:, s]]
    for node, column in zip((4, 5, 6, 3), leaves, strict=True):
        joint = joint * column[paths[:, node]]
    bf = bffg.backward(a1_model(False), np.zeros(4), jnp.array(pi))
    q, w = scored(bf, paths)
    assert np.isclose(q.sum(), 1.0, atol=1e-12)
    assert np.isclose((q * w).sum(), 0.0011879714632018, rtol=1e-12)
    assert np.allclose(q * w, joint, rtol=1e-11, atol=0)
    assert np.ptp(np.log(w)) > 0.1  # the guess is wrong, and the weights say so


def test_an_exact_guide_has_constant_weights() -> None:
    bf = bffg.backward(a1_model(True), np.zeros(4), jnp.array(a1()[4]))
    assert np.isclose(np.exp(bf.log_evidence), 0.0011879714632018, rtol=1e-12)
    out = bffg.forward(bf, 0, n=64)
    assert np.ptp(out.log_weights) <= 1e-12
    assert out.ess == pytest.approx(64) and out.pareto_k == -np.inf and not out.warnings


def last_child_only(patch: pytest.MonkeyPatch) -> None:
    """A node is guided by its last child alone."""

    def put(acc: Any, nodes: Any, messages: Any) -> Any:
        return jax.tree.map(lambda a, b: a.at[nodes].set(b, mode="drop"), acc, messages)

    patch.setattr(sys.modules["lmppl.inference.bffg.backward"], "scatter", put)


def rootless(patch: pytest.MonkeyPatch) -> None:
    """∫ π g of the root is no part of the weight."""
    patch.setattr(bffg.BackwardFilter, "log_evidence", property(lambda self: jnp.zeros(())))


@pytest.mark.parametrize("broken, ratio", [(last_child_only, 6.08), (rootless, 162.9)])
def test_traps_of_fusion_and_of_the_root_have_their_signatures(
    broken: Any, ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T1 and T2: E[W]/Z of the tree A1; the first depends on what is done with the scales of g."""
    jax.clear_caches()
    broken(monkeypatch)
    q, w = scored(bffg.backward(a1_model(False), np.zeros(4), jnp.array(a1()[4])), all_paths(3, 7))
    monkeypatch.undo()
    jax.clear_caches()
    assert (q * w).sum() / 0.0011879714632018 == pytest.approx(ratio, rel=2e-3)


CASINO = {
    "K": np.array([[0.95, 0.05], [0.85, 0.15]]),
    "E": np.array([[1 / 6] * 6, [0.1] * 5 + [0.5]]),
    "y": np.array([6, 6, 6, 1, 2, 6, 6, 3, 6, 6]) - 1.0,
}


def casino(kernel: Callable[..., Any]) -> Any:
    root = np.array([0.5, 0.5])
    return bffg.chain(
        10, kernel, lambda p, c: Finite(jnp.array(root)), lambda p, c: FiniteLeaf(CASINO["E"])
    )


def test_the_casino_with_and_without_missing_throws() -> None:
    traced = []

    def kernel(p: Any, c: Any) -> Any:
        traced.append(1)
        return Finite(p)

    model = casino(kernel)
    bf = bffg.backward(model, CASINO["y"], CASINO["K"])
    assert float(bf.log_evidence) == pytest.approx(-16.48374558290807, abs=1e-12)
    q, w = scored(bf, all_paths(2, 10))
    fair = (q * w)[all_paths(2, 10)[:, 0] == 0].sum() / (q * w).sum()
    assert fair == pytest.approx(0.2141372287, abs=1e-10)
    before = len(traced)
    missing = np.where(np.isin(np.arange(10), [2, 3]), np.nan, CASINO["y"])
    bf = bffg.backward(model, missing, CASINO["K"])
    assert float(bf.log_evidence) == pytest.approx(-13.02034997113302, abs=1e-12)
    bffg.backward(model, missing, CASINO["K"][::-1])
    assert len(traced) == before  # other data and parameters, the same compilation


def test_sparse_equals_dense() -> None:
    rng = np.random.default_rng(2)
    p = stoch(rng, 4, 2)
    child = np.array([[0, 1], [1, 2], [2, 3], [3, 0]])
    P = np.zeros((4, 4))
    np.put_along_axis(P, child, p, axis=1)
    g = Table(jnp.log(jnp.array(rng.uniform(0.1, 1, 4))))
    dense, sparse = Finite(jnp.array(P)), Sparse(jnp.array(child), jnp.array(p))
    assert np.allclose(dense.pullback(g, 0).log_g, sparse.pullback(g, 0).log_g, atol=1e-14)
    for x in range(4):
        assert np.isclose(dense.log_kg(g, x), sparse.log_kg(g, x))
        for y in range(4):
            assert np.isclose(dense.log_prob(x, y), sparse.log_prob(x, y))
    draws = [int(sparse.draw(g, 3, z)) for z in np.linspace(-3, 3, 7)]
    assert set(draws) <= {3, 0}


# -- colliders -----------------------------------------------------------------------------------


def diamond(adaptive: bool = False, seed: int = 5) -> tuple[Any, Any, Any, Any]:
    """0 -> 1, 2 -> 3 -> 4: a collider at 3; wrong tables everywhere."""
    rng = np.random.default_rng(seed)
    true = {"one": stoch(rng, 2, 2), "two": stoch(rng, 2, 2, 2), "root": stoch(rng, 2)}
    wrong = {"one": stoch(rng, 2, 2), "two": stoch(rng, 2, 2, 2)}
    E = stoch(rng, 2, 3)
    parents = [(), (0,), (0,), (1, 2), (3,)]
    model = bffg.dag(
        parents,
        {
            "root": lambda p, c: Finite(jnp.array(true["root"])),
            "one": lambda p, c: Guessed(Finite(jnp.array(true["one"])), Finite(jnp.array(wrong["one"]))),
            "two": lambda p, c: Guessed(Finite(jnp.array(true["two"])), Finite(jnp.array(wrong["two"]))),
        },
        ["root", "one", "one", "two", "one"],
        [3, 4],
        lambda p, c: FiniteLeaf(jnp.array(E)),
        adaptive=adaptive,
    )  # fmt: skip
    x = all_paths(2, 5)
    joint = true["root"][x[:, 0]] * true["one"][x[:, 0], x[:, 1]] * true["one"][x[:, 0], x[:, 2]]
    joint = joint * true["two"][x[:, 1], x[:, 2], x[:, 3]] * true["one"][x[:, 3], x[:, 4]]
    data = np.array([1, 2])
    joint = joint * E[x[:, 3], data[0]] * E[x[:, 4], data[1]]
    return model, data, x, joint


def error(adaptive: bool = False) -> float:
    """Largest relative error of q W against the joint, over all paths of the diamond."""
    model, data, paths, joint = diamond(adaptive)
    q, w = scored(bffg.backward(model, data), paths)
    return float(np.max(np.abs(q * w / joint - 1)))


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_collider_is_exact(adaptive: bool) -> None:
    """A12: path by path, so that the evidence and all marginals are."""
    assert error(adaptive) < 1e-10


def test_the_last_parent_of_a_collider_may_be_guided_by_the_other() -> None:
    """The two guides differ, and so do their ESS: .770 and .780 on another diamond of §1.3."""
    sizes = {}
    for adaptive in (False, True):
        model, data, paths, joint = diamond(adaptive)
        q, w = scored(bffg.backward(model, data), paths)
        assert q.sum() == pytest.approx(1)
        sizes[adaptive] = joint.sum() ** 2 / np.sum(q * w**2)
    assert 0 < abs(sizes[True] - sizes[False]) < 0.2 and min(sizes.values()) > 0.3


def no_denominator(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sys.modules["lmppl.inference.bffg.forward"], "stored", lambda m, x: 0.0)


def no_normaliser(patch: pytest.MonkeyPatch) -> None:
    """The scale of a message is divided out and forgotten."""
    whole = Table.normalize
    patch.setattr(Table, "normalize", lambda g: (0.0 * whole(g)[0], whole(g)[1]))


def one_parent_only(patch: pytest.MonkeyPatch) -> None:
    """At the collider, only the first parent's message is divided out."""
    from lmppl.inference.bffg.messages import PerParent

    def first(self: Any, x: Any) -> Any:
        return jax.tree.map(lambda a: a[0], self.parts).log_value(x[0])

    patch.setattr(PerParent, "log_value", first)


def harmonic(patch: pytest.MonkeyPatch) -> None:
    """The denominator is k~g at the parents, found anew, in place of what was sent."""
    sent = Finite.pullback_many

    def other(self: Any, g: Any, anchor: Any) -> Any:
        m = sent(self, g, anchor)
        return Table(m.log_g.at[:, 0].add(0.3))

    from lmppl.inference.bffg.messages import PerParent

    patch.setattr(Finite, "pullback_many", other)

    def unsent(self: Any, x: Any) -> Any:
        shifts = jnp.where(x == 0, 0.3, 0.0).sum()
        return sum(self.parts.log_g[i, x[i]] for i in range(2)) - shifts

    patch.setattr(PerParent, "log_value", unsent)


def promise_kept(patch: pytest.MonkeyPatch) -> None:
    """At an adaptive collider, the factor of the first parent is not divided out."""
    from lmppl.inference.bffg.adaptive import Known

    patch.setattr(Known, "log_value", lambda self, x: self.whole.log_value(x[self.last]))


def test_a_mutant_of_the_adaptive_weight_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    jax.clear_caches()
    promise_kept(monkeypatch)
    assert error(adaptive=True) > 1e-3
    monkeypatch.undo()
    jax.clear_caches()


@pytest.mark.parametrize("broken", [no_denominator, no_normaliser, one_parent_only, harmonic])
def test_mutants_are_rejected(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    jax.clear_caches()
    broken(monkeypatch)
    assert error() > 1e-3
    monkeypatch.undo()
    jax.clear_caches()


def test_any_positive_message_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the last broken: a strange message that is sent and divided out is exact."""
    sent = Finite.pullback_many

    def other(self: Any, g: Any, anchor: Any) -> Any:
        return Table(sent(self, g, anchor).log_g.at[:, 0].add(0.3))

    jax.clear_caches()
    monkeypatch.setattr(Finite, "pullback_many", other)
    assert error() < 1e-10
    monkeypatch.undo()
    jax.clear_caches()


# -- laws of messages ----------------------------------------------------------------------------


def test_fuse_is_commutative_and_associative_and_normalize_keeps_the_function() -> None:
    rng = np.random.default_rng(3)
    a, b, c = (Table(jnp.array(rng.normal(size=3))) for _ in range(3))
    for x in range(3):
        total = a.log_value(x) + b.log_value(x) + c.log_value(x)
        assert np.isclose(a.fuse(b.fuse(c)).log_value(x), total)
        assert np.isclose(c.fuse(a).fuse(b).log_value(x), total)
    scale, unit = a.normalize()
    assert np.allclose(scale + unit.log_g, a.log_g) and float(unit.log_g.max()) == 0.0
    assert np.allclose(a.fuse(a.one()).log_g, a.log_g)


def test_pullback_is_a_tower() -> None:
    """Through two kernels at once, or one after the other."""
    rng = np.random.default_rng(4)
    P, Q = stoch(rng, 3, 3), stoch(rng, 3, 3)
    g = Table(jnp.array(rng.normal(size=3)))
    twice = Finite(jnp.array(P)).pullback(Finite(jnp.array(Q)).pullback(g, 0), 0)
    assert np.allclose(twice.log_g, Finite(jnp.array(P @ Q)).pullback(g, 0).log_g, atol=1e-14)


@pytest.mark.slow
def test_a_long_chain_in_single_precision() -> None:
    """200,000 steps: within 0.05 nats of double precision, where a running sum loses 6."""
    rng = np.random.default_rng(6)
    P, E = stoch(rng, 3, 3), stoch(rng, 3, 4)
    y = rng.integers(0, 4, 200_000)
    found = {}
    for dtype in (np.float64, np.float32):
        with jax.enable_x64(dtype is np.float64):
            K, L = jnp.array(P, dtype), jnp.array(E, dtype)

            def kernel(p: Any, c: Any, K: Any = K) -> Any:
                return Finite(K)

            def root(p: Any, c: Any, K: Any = K) -> Any:
                return Finite(K[0])

            def leaf(p: Any, c: Any, L: Any = L) -> Any:
                return FiniteLeaf(L)

            bf = bffg.backward(bffg.chain(200_000, kernel, root, leaf), y)
            found[dtype] = float(bf.log_evidence)
    assert abs(found[np.float32] - found[np.float64]) <= 0.05
