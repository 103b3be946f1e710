"""A defensive guide, g + ε: exact, and of bounded weights where the plain guide has no variance."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy

from lmppl.errors import BadArgument  # noqa: E402
from lmppl.inference import bffg  # noqa: E402
from lmppl.inference.bffg.defensive import which  # noqa: E402

pytestmark = pytest.mark.usefixtures("float64")

R, Y, EPSILON = 0.01, 1.5, 0.1


def narrow(n: int = 3) -> Any:
    """A walk of unit steps from 0, seen at its end, whose guide takes the steps for a tenth."""

    def step(size: float) -> Any:
        return bffg.LinearGaussian(jnp.eye(1), jnp.zeros(1), size * jnp.eye(1))

    return bffg.chain(
        n, lambda p, c: bffg.Guessed(step(1.0), step(0.1)), lambda p, c: bffg.Point(jnp.zeros(1)),
        lambda p, c: bffg.GaussianLeaf(jnp.eye(1), R * jnp.eye(1)), observed=[n - 1],
    )  # fmt: skip


def evidence(n: int = 3) -> float:
    """log p(y) of the walk."""
    v = n - 1 + R
    return float(-0.5 * (Y * Y / v + np.log(2 * np.pi * v)))


@pytest.fixture(scope="module")
def guides() -> Any:
    """The filter of the walk, plain and defended, and the score of paths through given middles."""
    with jax.enable_x64(True):
        bf = bffg.backward(narrow(), np.array([[Y]]))
        both = {"plain": bf, "defended": bffg.defensive(bf, EPSILON)}

        def score(bf: Any, middle: Any, end: Any) -> Any:
            path = jnp.stack([jnp.zeros_like(middle), middle, end], axis=-1)[..., None]
            return jax.vmap(lambda x: bffg.path_score(bf, x))(path)

        return both, jax.jit(score)


def test_the_weights_are_bounded_where_the_plain_guide_has_no_variance(guides: Any) -> None:
    """E[W²] by sums over grids: it grows with the grid, beyond all bounds, unless there is an ε."""
    both, score = guides
    second = {}
    for name, bf in both.items():
        for half in (6.0, 9.0):
            x = np.linspace(-half, half, 241)
            middle, end = (a.ravel() for a in np.meshgrid(x, Y + 0.1 * x))
            log_q, log_w = (np.asarray(a) for a in score(bf, middle, end))
            cell = 2 * np.log(x[1] - x[0]) + np.log(0.1)
            assert np.logaddexp.reduce(log_q + log_w) + cell == pytest.approx(evidence(), abs=1e-4)
            second[name, half] = np.logaddexp.reduce(log_q + 2 * log_w) + cell - 2 * evidence()
    print(second)
    assert second["plain", 9.0] > second["plain", 6.0] + np.log(1e6)
    assert second["defended", 9.0] == pytest.approx(second["defended", 6.0], abs=0.05)


def test_which_of_two_leaves_the_normals_as_they_were() -> None:
    """Over equally likely normals: the share of the first, and the law of what is left of either."""
    z = jax.scipy.special.ndtri((jnp.arange(20_000) + 0.5) / 20_000)
    for p in (0.3, 0.9):
        first, left = jax.jit(jax.vmap(lambda z, p=p: which(z[None], jnp.asarray(p))))(z)
        first, left = np.asarray(first), np.asarray(left)[:, 0]
        assert first.mean() == pytest.approx(p, abs=1e-3)
        for part in (left[first], left[~first]):
            for power, moment in ((1, 0.0), (2, 1.0), (4, 3.0)):
                assert (part**power).mean() == pytest.approx(moment, abs=0.05)


def test_the_tail_of_the_weights_is_seen_to_be_mended(guides: Any) -> None:
    """E[W] = p(y) within 4.9 standard errors, and no warning, where the plain guide is far off."""
    both, _ = guides
    out = {name: bffg.forward(bf, 0, n=20_000) for name, bf in both.items()}
    w = np.exp(out["defended"].log_weights - evidence())
    assert abs(w.mean() - 1) < 4.9 * w.std() / np.sqrt(len(w))
    print(out["plain"].pareto_k, out["defended"].pareto_k, out["defended"].ess)
    assert out["plain"].pareto_k > 0.7 and out["plain"].warnings
    assert out["defended"].pareto_k < 0.5 and not out["defended"].warnings


# -- by enumeration --------------------------------------------------------------------------------

S = 3
GRAPHS: dict[str, tuple[list[tuple[int, ...]], list[int]]] = {
    "chain": ([(), (0,), (1,), (2,)], [1, 3]),
    "collider": ([(), (0,), (0,), (1, 2), (3,)], [3, 4]),
}


def stoch(rng: np.random.Generator, *shape: int) -> Any:
    x = rng.gamma(0.7, size=shape) + 0.05
    return x / x.sum(-1, keepdims=True)


@pytest.mark.parametrize("graph", ["chain", pytest.param("collider", marks=pytest.mark.slow)])
@pytest.mark.parametrize("guess", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_any_epsilon_is_exact_by_enumeration(graph: str, guess: bool) -> None:
    """Path by path, with leaves that the guide takes for others, too."""
    rng = np.random.default_rng(3)
    parents, seen = GRAPHS[graph]
    true = [stoch(rng, S), stoch(rng, S, S), stoch(rng, S, S, S)]
    wrong, E, other = [stoch(rng, *p.shape) for p in true[1:]], stoch(rng, S, S), stoch(rng, S, S)

    def edge(p: int) -> Any:
        return lambda params, c: bffg.Guessed(
            bffg.Finite(jnp.array(true[p])), bffg.Finite(jnp.array(wrong[p - 1]))
        )

    kernels = {"0": lambda p, c: bffg.Finite(jnp.array(true[0])), "1": edge(1), "2": edge(2)}
    model = bffg.dag(
        parents, kernels, [str(len(pa)) for pa in parents], seen,
        lambda p, c: bffg.FiniteLeaf(jnp.array(E), jnp.array(other) if guess else None),
    )  # fmt: skip
    x, data = np.array(list(itertools.product(range(S), repeat=len(parents)))), np.array([0, 2])
    joint = np.ones(len(x))
    for s, pa in enumerate(parents):
        joint = joint * true[len(pa)][tuple(x[:, u] for u in (*pa, s))]
    for s, y in zip(seen, data, strict=True):
        joint = joint * E[x[:, s], y]
    plain = bffg.backward(model, data)
    score = jax.jit(jax.vmap(bffg.path_score, in_axes=(None, 0)))
    before = np.exp(score(plain, jnp.asarray(x))[0])
    q, w = (np.exp(a) for a in score(bffg.defensive(plain, EPSILON), jnp.asarray(x)))
    assert q.sum() == pytest.approx(1, abs=1e-10)
    assert np.abs(q * w / joint - 1).max() < 1e-10
    assert np.abs(q - before).sum() > 0.01


@pytest.mark.slow
def test_resampling_is_unbiased() -> None:
    """200 filters of 50 particles on a walk of eight steps."""
    bf = bffg.defensive(bffg.backward(narrow(9), np.array([[Y]])), EPSILON)
    runs = [bffg.forward(bf, key, n=50, resample="ess:0.5").log_evidence for key in range(200)]
    z = np.exp(np.array(runs) - evidence(9))
    assert abs(z.mean() - 1) < 4.9 * z.std() / np.sqrt(len(z))


def test_what_cannot_be_defended_is_refused(guides: Any) -> None:
    both, _ = guides
    with pytest.raises(BadArgument, match="epsilon > 0"):
        bffg.defensive(both["plain"], 0.0)
    with pytest.raises(BadArgument, match="before the draw"):
        bffg.defensive(both["defended"])
