"""Markov chains in continuous time, contact processes, compound Poisson: against enumeration."""

from __future__ import annotations

import itertools
from math import factorial
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
jnp = jax.numpy

from lmppl.inference import bffg  # noqa: E402
from lmppl.inference.bffg.families import ctmc as ctmc_file  # noqa: E402
from lmppl.inference.bffg.messages import Table  # noqa: E402

Q = np.array([[0, 0.6, 0.2, 0], [0.3, 0, 0.5, 0.1], [0, 0.4, 0, 0.9], [0.2, 0, 0.7, 0]])
GUESS = np.array([[0, 0.4, 0.4, 0], [0.5, 0, 0.3, 0.2], [0, 0.6, 0, 0.5], [0.1, 0, 0.9, 0]])
"""The same jumps are possible, at other rates."""
SEEN = np.array([0.1, 0.5, 0.2, 0.05])
"""P(what was seen) given each state at the end."""


pytestmark = pytest.mark.usefixtures("float64")


def closed(rates: Any) -> Any:
    """The generator of rates."""
    off = rates * (1 - np.eye(len(rates)))
    return off - np.diag(off.sum(1))


def expm(A: Any) -> Any:
    """exp(A) by 40 terms after 2⁻¹⁰, squared ten times."""
    A, out, term = A / 1024, np.eye(len(A)), np.eye(len(A))
    for k in range(1, 40):
        term = term @ A / k
        out = out + term
    for _ in range(10):
        out = out @ out
    return out


# -- chains in continuous time -------------------------------------------------------------------


def jukes_cantor(rate: Any, c: Any) -> Any:
    return bffg.ctmc(rate * jnp.ones((4, 4)), c["length"])


def phylogeny(kernel: Any = jukes_cantor) -> Any:
    """Root 0 with the children 1 and 4; 1 has 2 and 3; the leaves 2, 3 and 4 show a letter."""
    return bffg.tree(
        [-1, 0, 1, 1, 0], kernel, lambda p, c: bffg.Finite(jnp.full(4, 0.25)), [2, 3, 4],
        lambda p, c: bffg.FiniteLeaf(jnp.eye(4)),
        covariates={"length": np.array([0.0, 0.3, 0.7, 0.2, 1.1])},
    )  # fmt: skip


def by_all_states(rate: float, letters: Any) -> float:
    """Σ over all states of the tree, with the closed form of Jukes and Cantor (1969)."""
    lengths = [0, 0.3, 0.7, 0.2, 1.1]
    stay = [0.25 + 0.75 * np.exp(-4 * rate * t) for t in lengths]
    total = 0.0
    for x in itertools.product(range(4), repeat=5):
        if all(np.isnan(y) or x[s] == y for s, y in zip((2, 3, 4), letters, strict=True)):
            moves = [
                stay[s] if x[s] == x[u] else (1 - stay[s]) / 3
                for s, u in ((1, 0), (2, 1), (3, 1), (4, 0))
            ]
            total += 0.25 * float(np.prod(moves))
    return total


def test_a_phylogeny_is_exact_with_letters_missing() -> None:
    model = phylogeny()
    for letters in ([0, 0, 2], [1, np.nan, 3], [np.nan] * 3):
        bf = bffg.backward(model, np.array(letters, dtype=float), 0.8)
        truth = by_all_states(0.8, letters)
        assert float(jnp.exp(bf.log_evidence)) == pytest.approx(truth, rel=1e-12)
    assert bffg.is_exact(model, 0.8)


@pytest.mark.slow
def test_a_phylogeny_has_constant_weights_and_the_gradient_of_its_rate() -> None:
    model, letters = phylogeny(), np.array([1, np.nan, 3])
    out = bffg.forward(bffg.backward(model, letters, 0.8), 0, n=50)
    assert np.ptp(out.log_weights) < 1e-12
    assert (out.values[:, 2] == 1).all() and (out.values[:, 4] == 3).all()
    slope = jax.grad(lambda rate: bffg.backward(model, letters, rate).log_evidence)(0.8)
    up, down = (np.log(by_all_states(0.8 + h, letters)) for h in (1e-5, -1e-5))
    assert float(slope) == pytest.approx((up - down) / 2e-5, rel=1e-6)


def test_the_exponential_of_fast_slow_and_no_rates() -> None:
    for t in (1e-6, 0.7, 40.0, 3e4):
        for rates in (Q, 0.0 * Q, np.diag([1.0, 1.0, 1.0], 1)):
            P = np.asarray(bffg.ctmc(jnp.array(rates), t).P)
            assert np.allclose(P.sum(-1), 1, atol=1e-12) and (P >= 0).all()
            if t < 1:
                assert np.allclose(P, expm(closed(rates) * t), rtol=1e-10, atol=0)
    assert np.allclose(P[:, -1], 1)  # one after the other, and the last stays
    far = np.asarray(bffg.ctmc(jnp.array(Q), 3e4).P)
    assert np.allclose(far @ closed(Q), 0, atol=1e-9) and np.allclose(far, far[0], atol=1e-9)


def test_guided_rates_fulfil_the_formula_of_feynman_and_kac() -> None:
    """A10: E°[exp ∫ V dt] = h/g to 1e-8, by Runge-Kutta on du/dt = -Q° u - V u, u(T) = 1."""
    T, steps = 1.3, 400
    Qc, Gc = closed(Q), closed(GUESS)
    messages = np.stack([expm(Gc * (T * k / (2 * steps))) @ SEEN for k in range(2 * steps + 1)])
    tilted: Any = jax.vmap(
        lambda v: bffg.guided_rates(jnp.array(Q), jnp.array(GUESS), Table(jnp.log(v)))
    )
    generators, rates = (np.asarray(a) for a in tilted(jnp.array(messages)))
    A = generators + rates[:, :, None] * np.eye(4)  # at the time T k / (2 steps) before the end
    u, h = np.ones(4), T / steps
    for k in range(steps):
        k1 = A[2 * k] @ u
        k2 = A[2 * k + 1] @ (u + h / 2 * k1)
        k3 = A[2 * k + 1] @ (u + h / 2 * k2)
        k4 = A[2 * k + 2] @ (u + h * k3)
        u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    assert np.allclose(generators.sum(-1), 0, atol=1e-12)
    assert np.abs(u * messages[-1] / (expm(Qc * T) @ SEEN) - 1).max() < 1e-8
    assert np.abs(messages[-1] / (expm(Qc * T) @ SEEN) - 1).max() > 0.05  # the guide is not exact


def jumps(rates: Any, most: int = 30, T: float = 1.3) -> Any:
    return bffg.JumpProcess(jnp.asarray(T), None, jnp.array(GUESS), jnp.asarray(2.0), rates, most)


def scripted(patch: pytest.MonkeyPatch) -> None:
    """Noise is read as the choice itself."""
    patch.setattr(ctmc_file, "pick", lambda p, z: jnp.round(z).astype(int))


def test_paths_inside_an_edge_are_exact_by_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Σ q W = h over every number of candidates and every path, with the law q by numpy."""
    most, T, R, x0 = 5, 0.02, 2.0, 1
    kernel = jumps(lambda t, p: jnp.array(Q), most=most, T=T)
    U, V = np.eye(4) + closed(Q) / R, np.eye(4) + closed(GUESS) / R
    G = [np.linalg.matrix_power(V, n) @ SEEN for n in range(most + 1)]
    poisson = [np.exp(-R * T) * (R * T) ** n / factorial(n) for n in range(most + 1)]
    paths = [(n, x) for n in range(most + 1) for x in itertools.product(range(4), repeat=n)]
    noise = np.zeros((len(paths), 1 + 2 * most))
    q = np.zeros(len(paths))
    for i, (n, x) in enumerate(paths):
        noise[i, 0] = n
        noise[i, 1 + most : 1 + most + n] = x
        law = np.array([poisson[k] * G[k][x0] for k in range(most + 1)])
        q[i] = law[n] / law.sum()
        for k, (a, b) in enumerate(itertools.pairwise((x0, *x))):
            q[i] *= U[a, b] * G[n - k - 1][b] / (U[a] @ G[n - k - 1])
    scripted(monkeypatch)
    g = Table(jnp.log(jnp.array(SEEN)))
    run = jax.jit(jax.vmap(lambda z: bffg.jump_path(kernel, g, jnp.asarray(x0), z)))
    found = run(jnp.array(noise))
    assert (np.asarray(found.states)[-1] == [x0, *paths[-1][1]]).all()
    w = np.where(q > 0, np.exp(np.asarray(found.log_kg)), 0)
    assert q.sum() == pytest.approx(1, abs=1e-12)
    assert (q * w).sum() == pytest.approx((expm(closed(Q) * T) @ SEEN)[x0], rel=1e-8)  # P(N > 5)
    truth = sum(poisson[n] * (np.linalg.matrix_power(U, n) @ SEEN)[x0] for n in range(most + 1))
    assert (q * w).sum() == pytest.approx(truth, rel=1e-12)
    assert np.ptp(w[q > 0]) > 0.01


@pytest.mark.slow
def test_paths_inside_an_edge_with_rates_of_the_guide_have_weight_one() -> None:
    """And an exact pin: every path ends in state 3, at rates that are right."""
    model = bffg.chain(
        2, lambda p, c: jumps(lambda t, p: jnp.array(GUESS)), lambda p, c: bffg.Point(jnp.array(0)),
        lambda p, c: bffg.FiniteLeaf(jnp.eye(4)), observed=[1],
    )  # fmt: skip
    out = bffg.forward(bffg.backward(model, np.array([3.0])), 0, n=200)
    assert (out.values[:, 1] == 3).all() and np.ptp(out.log_weights) < 1e-10
    assert np.exp(out.log_evidence) == pytest.approx(expm(closed(GUESS) * 1.3)[0, 3], rel=1e-9)
    assert "weight after draw" in bffg.explain(model)


def changing(t: Any, p: Any) -> Any:
    """Rates that do not commute with those of another time."""
    return jnp.array(Q) * (1.2 - t) + jnp.array(Q.T) * t


@pytest.mark.slow
def test_rates_that_change_within_the_edge() -> None:
    """Unbiased by a z-test at 1e-6; too little room, or too small a bound, is nan."""

    def model(bound: float, most: int, guess: Any) -> Any:
        def kernel(p: Any, c: Any) -> Any:
            return bffg.JumpProcess(
                jnp.asarray(1.0), None, jnp.array(guess), jnp.asarray(bound), changing, most
            )

        return bffg.chain(
            2, kernel, lambda p, c: bffg.Point(jnp.array(0)),
            lambda p, c: bffg.FiniteLeaf(jnp.eye(4)), observed=[1],
        )  # fmt: skip

    y, n, guess = np.array([3.0]), 4000, 0.5 * (GUESS + GUESS.T)
    out = bffg.forward(bffg.backward(model(3.0, 30, guess), y), 0, n=n)
    truth = np.eye(4)[3]
    for k in reversed(range(100)):
        t = (k + 0.5) / 100
        truth = expm(closed(Q * (1.2 - t) + Q.T * t) / 100) @ truth
    w = np.exp(out.log_weights) / truth[0]
    assert abs(w.mean() - 1) < 4.9 * w.std() / np.sqrt(n)
    assert out.ess > 0.5 * n and np.ptp(out.log_weights) > 0.1
    # too little room, a bound below an exit rate, and a guide without the jump from 0 to 3
    for bound, most, wrong in ((3.0, 8, guess), (0.7, 30, guess), (3.0, 30, GUESS)):
        lost = bffg.forward(bffg.backward(model(bound, most, wrong), y), 0, n=2)
        assert np.isnan(lost.log_weights).all()


# -- contact processes ---------------------------------------------------------------------------


PATH = np.diag(np.ones(4), 1) + np.diag(np.ones(4), -1)
CONTACT = {"neighbours": PATH, "infect": 1.1, "recover": 0.6, "tau": 0.5, "spark": 0.0}
SIR = {
    "neighbours": np.ones((3, 3)) - np.eye(3),
    "infect": 1.5, "recover": 0.6, "wane": 0.3, "tau": 0.4, "spark": 0.01,
}  # fmt: skip


def epidemic(theta: Any, start: Any, E: Any) -> Any:
    n = len(start)

    def kernel(p: Any, c: Any) -> Any:
        true = bffg.Interacting(theta, n, bffg.sir_law)
        return bffg.Guessed(true, bffg.sir_profile(c["infected"], theta))

    profile = np.random.default_rng(1).uniform(0.2, 2, (3, n))
    return bffg.chain(
        3, kernel, lambda p, c: bffg.Point(jnp.array(start)),
        lambda p, c: bffg.ParticleLeaf(jnp.array(E)), observed=[1, 2],
        covariates={"infected": profile},
    )  # fmt: skip


def enumerated(theta: Any, start: Any, E: Any, y: Any) -> tuple[float, float, float, float]:
    """Σ q, Σ q W over all paths of two steps; h by the matrix of all states; h of the guide."""
    n, S = len(start), len(E)
    states = np.array(list(itertools.product(range(S), repeat=n)))
    laws = np.array([bffg.sir_law(jnp.array(x), theta) for x in states])
    K = np.array([[np.prod(r[range(n), x]) for x in states] for r in laws])
    seen = [
        np.prod([E[states[:, i], int(o)] for i, o in enumerate(ys) if o == o], axis=0) for ys in y
    ]
    first = int(np.flatnonzero((states == start).all(1))[0])
    h = float((K[first] * seen[0]) @ K @ seen[1])
    bf = bffg.backward(epidemic(theta, start, E), y)
    pairs = list(itertools.product(range(len(states)), repeat=2))
    paths = np.array([[start, states[a], states[b]] for a, b in pairs])
    log_q, log_w = jax.jit(jax.vmap(lambda x: bffg.path_score(bf, x)))(jnp.array(paths))
    possible = np.array([K[first, a] * K[a, b] > 0 for a, b in pairs])
    q, w = np.exp(log_q)[possible], np.exp(log_w)[possible]
    return float(q.sum()), float((q * w).sum()), h, float(jnp.exp(bf.log_evidence))


CONTACT_ARGUMENTS: Any = (
    CONTACT, np.array([0, 0, 1, 0, 0]), np.array([[0.9, 0.1], [0.2, 0.8]]),
    np.array([[0, np.nan, 1, np.nan, 0], [np.nan, 1, np.nan, 0, 0]]),
)  # fmt: skip
SIR_ARGUMENTS: Any = (
    SIR, np.array([1, 0, 0]), np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.2, 0.7]]),
    np.array([[0, np.nan, 1], [1, 1, np.nan]]),
)  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(CONTACT_ARGUMENTS, id="contact"),
        pytest.param(SIR_ARGUMENTS, id="sirs", marks=pytest.mark.slow),
    ],
)
def test_contact_processes_are_exact_by_enumeration(arguments: Any) -> None:
    """A10, with 2⁵ and 3³ states, unseen particles and any profile: g E[W] = h to 1e-12."""
    total, mean, h, guess = enumerated(*arguments)
    assert total == pytest.approx(1, abs=1e-12)
    assert mean == pytest.approx(h, rel=1e-12)
    assert abs(guess / h - 1) > 0.05  # without weights the frozen profile is wrong


def test_without_wane_the_particles_have_two_states_and_no_spark_no_fire() -> None:
    law = bffg.sir_law(jnp.array([0, 0, 0, 1, 0]), CONTACT)
    assert law.shape == (5, 2) and np.allclose(law.sum(-1), 1)
    assert np.allclose(law[:2, 1], 0) and float(law[2, 1]) == pytest.approx(1 - np.exp(-0.55))
    assert float(law[3, 0]) == pytest.approx(1 - np.exp(-0.3))


# -- compound Poisson ----------------------------------------------------------------------------

JUMPS = np.array([0.5, 0.2, 0.3])
TOP, DELTA, GUESSED = 7, 0.4, 1.5


def compound_law(mean: float) -> Any:
    """P(sum = k) by adding up convolutions: jumps are at least 1, so that k of them suffice."""
    f = np.zeros(TOP + 1)
    f[1 : 1 + len(JUMPS)] = JUMPS
    out, power = np.zeros(TOP + 1), np.eye(TOP + 1)[0]
    for n in range(TOP + 1):
        out += np.exp(-mean) * mean**n / factorial(n) * power
        power = np.convolve(power, f)[: TOP + 1]
    return out


def compound(rate: Any, E: Any, jumps: Any = JUMPS) -> Any:
    def kernel(p: Any, c: Any) -> Any:
        return bffg.CompoundPoisson(
            jnp.asarray(DELTA), p, jnp.asarray(GUESSED), jnp.array(jumps), rate, TOP
        )

    return bffg.chain(
        4, kernel, lambda p, c: bffg.Point(jnp.asarray(0)),
        lambda p, c: bffg.FiniteLeaf(jnp.array(E)), observed=[2, 3],
    )  # fmt: skip


def test_compound_poisson_increments_are_exact_by_enumeration() -> None:
    """Any λ(x), a noisy look and a pin: Σ q W = p over all paths; λ = λ~ gives constant W."""
    E = np.eye(TOP + 1)
    model = compound(lambda x, p: p * (1 + 0.3 * x), E)
    y = np.array([np.nan, 5.0])
    bf = bffg.backward(model, y, 0.9)
    paths = np.array([[0, a, b, 5] for a in range(6) for b in range(a, 6)])
    log_q, log_w = jax.jit(jax.vmap(lambda x: bffg.path_score(bf, x)))(jnp.array(paths))
    assert np.exp(log_q).sum() == pytest.approx(1, abs=1e-12)
    exact = sum(
        np.prod([compound_law(0.9 * (1 + 0.3 * a) * DELTA)[b - a] for a, b in itertools.pairwise(x)])
        for x in paths.tolist()
    )  # fmt: skip
    assert np.exp(log_q + log_w).sum() == pytest.approx(exact, rel=1e-12)
    assert np.ptp(log_w) > 0.1
    bf = bffg.backward(compound(lambda x, p: p + 0 * x, E), y, GUESSED)
    log_w = jax.jit(jax.vmap(lambda x: bffg.path_score(bf, x)[1]))(jnp.array(paths))
    assert np.ptp(log_w) < 1e-12
    assert np.exp(log_w[0]) == pytest.approx(compound_law(3 * GUESSED * DELTA)[5], rel=1e-12)


def test_the_last_state_stands_for_all_counts_from_there_on() -> None:
    row = bffg.CompoundPoisson(
        jnp.asarray(DELTA), None, jnp.asarray(1.0), jnp.array(JUMPS), lambda x, p: 2.0 + 0 * x, TOP
    ).row(jnp.asarray(3))  # fmt: skip
    law = compound_law(2.0 * DELTA)
    assert np.allclose(row[3:TOP], law[: TOP - 3], atol=1e-14) and (row[:3] == 0).all()
    assert float(row[TOP]) == pytest.approx(1 - law[: TOP - 3].sum(), abs=1e-14)


@pytest.mark.slow
def test_jumps_of_size_one_are_a_poisson_process() -> None:
    rate = lambda x, p: p * (1 + 0.5 * x)  # noqa: E731
    model = compound(rate, np.eye(TOP + 1), np.array([1.0]))
    bf = bffg.backward(model, np.array([np.nan, 4.0]), 0.9)

    def kernel(p: Any, c: Any) -> Any:
        return bffg.PoissonProcess(jnp.asarray(DELTA), p, jnp.asarray(GUESSED), rate, TOP)

    pinned = bffg.chain(
        4, kernel, lambda p, c: bffg.Point(jnp.asarray(0.0)),
        lambda p, c: bffg.PinnedLeaf(jnp.asarray(GUESSED), True), observed=[3],
    )  # fmt: skip
    other = bffg.backward(pinned, np.array([4.0]), 0.9, anchors=bffg.refine(0))
    assert float(bf.log_evidence) == pytest.approx(float(other.log_evidence), rel=1e-12)
    path = jnp.array([0, 1, 1, 4])
    here, there = bffg.path_score(bf, path), bffg.path_score(other, path.astype(float))
    assert np.allclose(here, there, atol=1e-12)
