"""Dynamic programming and linear programmes against brute force over policies."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from lmppl.errors import BadArgument
from lmppl.inference.planning import dp
from lmppl.inference.planning.kinds import certainty_equivalent, stages_value
from lmppl.inference.planning.lp import occupancy, value_programme
from lmppl.inference.planning.mdp import Stages, TabularMDP
from lmppl.inference.planning.tables import Array

pytest.importorskip("jax")
pytest.importorskip("scipy")


def problem(seed: int, horizon: int = 3) -> Stages:
    """Two states, two actions, tables that are sharp in half of the cases, a mask in a third."""
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(2, (0.2, 1.0)[seed % 2]), (2, 2))
    allowed = np.ones((2, 2), bool)
    allowed[0, seed % 2] = seed % 3 > 0
    mdp = TabularMDP(
        2, 2, table, rng.normal(size=(2, 2)), final=rng.normal(size=2), allowed=allowed,
        initial=rng.dirichlet(np.ones(2)),
    )  # fmt: skip
    return mdp.stages(horizon)


def policies(st: Stages) -> Iterator[Array]:
    """All deterministic Markov policies."""
    h, s, a = st.reward.shape
    for choice in itertools.product(range(a), repeat=h * s):
        pi = np.eye(a)[np.array(choice)].reshape(h, s, a)
        if not (pi * ~st.allowed).any():
            yield pi


def utility_law(st: Stages, pi: Array) -> tuple[Array, Array]:
    """Probability and utility of every path of states under a deterministic policy."""
    h, s, _ = st.reward.shape
    acts = pi.argmax(axis=2)
    p, u = [], []
    for path in itertools.product(range(s), repeat=h + 1):
        mass, total = st.initial[path[0]], st.final[path[-1]]
        for t in range(h):
            a = acts[t, path[t]]
            mass *= st.transition[path[t], a, path[t + 1]]
            total += st.reward[t, path[t], a]
        p.append(mass)
        u.append(total)
    return np.array(p), np.array(u)


def best_with_memory(st: Stages, lam: float) -> float:
    """The best policy whose action may depend on the whole history, two steps, by enumeration."""
    h, s, a = st.reward.shape
    histories = [x for t in range(h) for x in itertools.product(range(s), repeat=t + 1)]
    best = -np.inf
    for choice in itertools.product(range(a), repeat=len(histories)):
        act = dict(zip(histories, choice, strict=True))
        if not all(st.allowed[x[-1], u] for x, u in act.items()):
            continue
        p, u = [], []
        for path in itertools.product(range(s), repeat=h + 1):
            mass, total = st.initial[path[0]], st.final[path[-1]]
            for t in range(h):
                c = act[path[: t + 1]]
                mass *= st.transition[path[t], c, path[t + 1]]
                total += st.reward[t, path[t], c]
            p.append(mass)
            u.append(total)
        best = max(best, float(certainty_equivalent(np.array(p), np.array(u), lam)))
    return best


@pytest.mark.parametrize("lam", [0.0, 1.2, -0.9])
def test_everything_equals_brute_force(lam: float) -> None:
    """200 problems: all Markov policies by their paths, and for T = 3 those with memory."""
    for seed in range(200):
        st = problem(seed, 2)
        found = dp.solve_stages(st, risk=lam)
        brute = max(float(certainty_equivalent(*utility_law(st, pi), lam)) for pi in policies(st))
        assert found.value == pytest.approx(brute, abs=1e-10)
        assert dp.evaluate(st, found.policy, risk=lam) == pytest.approx(brute, abs=1e-10)
        assert stages_value(st, "planning", lam) == pytest.approx(brute, abs=1e-10)
        if seed % 4 == 0:
            assert best_with_memory(st, lam) == pytest.approx(brute, abs=1e-10)
        if lam == 0.0:
            assert occupancy(st)[0] == pytest.approx(brute, abs=1e-10)
            assert value_programme(st)[0] == pytest.approx(brute, abs=1e-10)


def test_the_occupancy_is_that_of_the_policy() -> None:
    st = problem(5, 6)
    value, q = occupancy(st)
    mass = st.initial
    for t in range(6):
        assert q[t].sum(axis=1) == pytest.approx(mass, abs=1e-10)
        assert not q[t][~st.allowed].any()
        mass = np.einsum("xa,xay->y", q[t], st.transition)
    assert value == pytest.approx(float((q * st.reward).sum() + mass @ st.final), abs=1e-10)


def test_the_variational_functional_is_largest_at_the_tilted_law() -> None:
    """λ E_q R - Σ KL(q(x'|x,a) ‖ P) at q ∝ P e^{λV} is λF; random q are never above."""
    rng = np.random.default_rng(0)
    st = problem(4, 3)
    lam = 1.1
    found = dp.solve_stages(st, risk=lam)

    def functional(first: Array, moves: Array, pi: Array) -> float:
        mass, total = first, -float((first * np.log(first / st.initial)).sum())
        for t in range(3):
            joint = mass[:, None] * pi[t]
            kl = (moves[t] * np.log(moves[t] / st.transition)).sum(axis=-1)
            total += float((joint * (lam * st.reward[t] - kl)).sum())
            mass = np.einsum("xa,xay->y", joint, moves[t])
        return (total + lam * float(mass @ st.final)) / lam

    tilt = st.transition[None] * np.exp(lam * found.values[1:, None, None, :])
    tilt /= tilt.sum(axis=-1, keepdims=True)
    first = st.initial * np.exp(lam * found.values[0])
    first /= first.sum()
    assert functional(first, tilt, found.policy) == pytest.approx(found.value, abs=1e-10)
    for _ in range(500):
        pi = rng.dirichlet(np.ones(2), (3, 2)) * st.allowed
        pi /= pi.sum(axis=-1, keepdims=True)
        moves = rng.dirichlet(np.ones(2), (3, 2, 2))
        assert functional(rng.dirichlet(np.ones(2)), moves, pi) <= found.value + 1e-12


def test_temperature_softens_and_vanishes() -> None:
    st = problem(7, 4)
    hard = dp.solve_stages(st, risk=0.4)
    soft = dp.solve_stages(st, risk=0.4, temperature=1e-4)
    assert soft.value == pytest.approx(hard.value, abs=4 * 1e-4 * np.log(2) + 1e-9)
    assert soft.policy == pytest.approx(hard.policy, abs=1e-3)
    marginal = dp.solve_stages(st, risk=0.4, temperature=1 / 0.4)
    assert marginal.value == pytest.approx(stages_value(st, "marginal", 0.4), abs=1e-10)


@pytest.mark.parametrize("risk", [0.0, 0.5, -0.5, -2000.0])
@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_small_problems_in_numpy_are_the_compiled_ones(
    risk: float, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = [dp.solve_stages(problem(s, 4), risk=risk, temperature=temperature) for s in range(4)]
    monkeypatch.setattr(dp, "SMALL", 0)
    for seed, one in enumerate(small):
        two = dp.solve_stages(problem(seed, 4), risk=risk, temperature=temperature)
        assert one.values == pytest.approx(two.values, abs=1e-9)
        assert one.action_values == pytest.approx(two.action_values, abs=1e-9)
        if temperature:
            assert one.policy == pytest.approx(two.policy, abs=1e-7)


def test_new_tables_do_not_compile_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp, "SMALL", 0)
    dp.solve_stages(problem(0, 5), risk=0.5)
    run = dp.compiled(False, True, False)
    before = run._cache_size()  # type: ignore[attr-defined]
    for seed in range(6):
        dp.solve_stages(problem(seed, 5), risk=0.1 + seed)
    assert run._cache_size() == before  # type: ignore[attr-defined]


def test_a_steep_utility_stays_finite() -> None:
    st = problem(2, 4)
    far = dp.solve_stages(st, risk=-2000.0)
    assert np.isfinite(far.value)
    assert far.value == pytest.approx(stages_value(st, "planning", -2000.0), abs=1e-9)


def test_a_tiny_risk_in_single_precision_is_refused_and_would_be_wrong() -> None:
    rng = np.random.default_rng(1)
    table = rng.dirichlet(np.ones(10), (10, 3))
    st = TabularMDP(10, 3, table, rng.normal(size=(10, 3))).stages(40)
    exact = dp.solve_stages(st).value
    with pytest.raises(BadArgument, match="too small for float32"):
        dp.solve_stages(st, risk=1e-6, dtype="float32")
    run = dp.compiled(False, True, False)
    single = [np.asarray(x, np.float32) for x in (st.transition, st.reward, st.final)]
    trapped, _, _ = run(*single, st.allowed, np.float32(1e-6), np.float32(0))
    assert abs(float(trapped[0][0]) - exact) > 1e-2
    assert dp.solve_stages(st, risk=1e-6).value == pytest.approx(exact, abs=1e-3)
    assert dp.solve_stages(st, dtype="float32").value == pytest.approx(exact, abs=1e-3)
