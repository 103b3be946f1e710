"""Value belief propagation, the linear bound and ARollout against tables and enumeration."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from lmppl.inference.planning import dp, vbp
from lmppl.inference.planning.factors import factors_of
from lmppl.inference.planning.mdp import CPT, ActionCost, FactoredMDP, Reward
from lmppl.inference.planning.planner import plan
from lmppl.inference.planning.rollout import arollout, reactive, simulate
from lmppl.inference.planning.sweeps import compiled
from lmppl.inference.planning.vbp import propagate
from lmppl.inference.planning.vilp import bound

pytest.importorskip("jax")
pytest.importorskip("scipy")


Rewards = list[Reward | ActionCost]


def modes() -> np.ndarray[Any, Any]:
    """mode: start -> risky or safe; back to start."""
    table = np.zeros((3, 2, 3))
    table[0, 0, 1] = table[0, 1, 2] = table[1:, :, 0] = 1.0
    return table


def win(safe: float) -> np.ndarray[Any, Any]:
    """win in {0, safe, 1}, of mode, coin and action."""
    table = np.zeros((3, 2, 2, 3))
    table[0, ..., 0] = table[2, ..., 1] = 1.0
    for coin, a in itertools.product(range(2), repeat=2):
        table[1, coin, a, 2 if a == coin else 0] = 1.0
    return table


FAIR = CPT([], [[0.5, 0.5]] * 2)


def f1() -> FactoredMDP:
    return FactoredMDP(
        {"mode": 3, "coin": 2, "win": 3},
        ["risky", "safe"],
        {"mode": CPT(["mode"], modes()), "coin": FAIR, "win": CPT(["mode", "coin"], win(0.6))},
        [Reward(["win"], [0, 0.6, 1])],
        timing="state",
    )


def f2b() -> FactoredMDP:
    mode = np.zeros((3, 2, 3))
    mode[0, 0, 1] = mode[0, 1, 2] = mode[1, :, 1] = mode[2, :, 2] = 1.0
    same = np.zeros((3, 2, 2))
    same[1], same[2] = np.eye(2), 0.8
    return FactoredMDP(
        {"mode": 3, "c": 2, "x1": 2, "x2": 2},
        2,
        {"mode": CPT(["mode"], mode), "c": FAIR, "x1": CPT(["c"], np.eye(2)),
         "x2": CPT(["c"], np.eye(2))},
        [Reward(["mode", "x1", "x2"], same)],
        timing="state",
    )  # fmt: skip


def f3(safe: float) -> FactoredMDP:
    return FactoredMDP(
        {"mode": 3, "c1": 2, "c2": 2, "w1": 3, "w2": 3},
        2,
        {"mode": CPT(["mode"], modes()), "c1": FAIR, "c2": FAIR,
         "w1": CPT(["mode", "c1"], win(safe)), "w2": CPT(["mode", "c2"], win(safe))},
        [Reward(["w1"], [0, safe, 1]), Reward(["w2"], [0, safe, 1])],
        timing="state",
    )  # fmt: skip


def network(seed: int, n: int = 3, a: int = 2, timing: str = "state_action") -> FactoredMDP:
    rng = np.random.default_rng(seed)
    names = [f"x{i}" for i in range(n)]
    cpts = {}
    for i, name in enumerate(names):
        pa = [names[i], names[(i + 1) % n]]
        cpts[name] = CPT(pa, rng.dirichlet(np.ones(2), (2, 2, a)))
    table = rng.normal(size=(2, a) if timing == "state_action" else 2)
    rewards: Rewards = [Reward([names[0]], table), Reward([names[1]], rng.normal(size=2)),
               Reward([names[0], names[2]], rng.normal(size=(2, 2))),
               ActionCost(rng.normal(size=a))]  # fmt: skip
    return FactoredMDP(dict.fromkeys(names, 2), a, cpts, rewards, timing=timing)


def codes(mdp: FactoredMDP) -> Any:
    return np.array([mdp.codes(mdp.initial)])


@pytest.mark.parametrize("timing", ["state", "successor"])
def test_one_variable_under_the_other_conventions(timing: str) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        cpt = CPT(["x"], rng.dirichlet(np.ones(3), (3, 2)))
        rewards: Rewards = [Reward(["x"], rng.normal(size=3)), ActionCost(rng.normal(size=2))]
        mdp = FactoredMDP({"x": 3}, 2, {"x": cpt}, rewards, timing=timing)
        got = propagate(factors_of(mdp, 5), temperature=1e-4, anneal=0, sweeps=2)
        assert got.value == pytest.approx(dp.solve(mdp, 5).value, abs=1e-3)
        assert bound(factors_of(mdp, 5)).value == pytest.approx(dp.solve(mdp, 5).value, abs=1e-7)


@pytest.mark.parametrize("lam", [0.0, 0.8, -0.8])
def test_one_variable_is_dynamic_programming(lam: float) -> None:
    """One sweep finds it; the second has the action messages under the new f, the third rests."""
    for seed in range(50):
        rng = np.random.default_rng(seed)
        cpt = CPT(["x"], rng.dirichlet(np.ones(3), (3, 2)))
        mdp = FactoredMDP({"x": 3}, 2, {"x": cpt}, [Reward(["x"], rng.normal(size=(3, 2)))])
        exact = dp.solve(mdp.flat(), 5, risk=lam)
        for sweeps in (1, 3):
            got = propagate(factors_of(mdp, 5), risk=lam, temperature=1e-4, anneal=0, sweeps=sweeps)
            assert got.converged == (sweeps == 3)
            assert got.value == pytest.approx(exact.value, abs=1e-3)
            assert got.action_probs.argmax() == exact.action_values[0, 0].argmax()


def test_without_rewards_the_forward_messages_are_the_filter() -> None:
    """Nothing to gain: actions are uniform, and f is the law of the state."""
    law = np.random.default_rng(1).dirichlet(np.ones(3), (3, 2))
    mdp = FactoredMDP({"x": 3}, 2, {"x": CPT(["x"], law)}, [Reward(["x"], np.zeros((3, 2)))])
    got = propagate(factors_of(mdp, 5), risk=0.8, temperature=1 / 0.8, anneal=0)
    now = np.eye(3)[0]
    for f in got.forward[:, 0]:
        assert f == pytest.approx(now, abs=1e-9)
        now = np.einsum("x,xay->y", now, law) / 2


@pytest.mark.slow
def test_at_temperature_one_it_is_sum_product() -> None:
    """Two variables that only look at themselves and share no action: a tree. By enumeration."""
    rng = np.random.default_rng(3)
    lam, horizon = 0.7, 3
    p, r = rng.dirichlet(np.ones(2), (2, 2)), rng.normal(size=(2, 2))
    side, worth = rng.dirichlet(np.ones(2), (2,)), rng.normal(size=2)
    mdp = FactoredMDP(
        {"x": 2, "y": 2}, 2, {"x": CPT(["x"], p), "y": CPT(["y"], side)},
        [Reward(["x"], r), Reward(["y"], worth)],
    )  # fmt: skip
    got = propagate(
        factors_of(mdp, horizon), risk=lam, temperature=1 / lam, anneal=0, tolerance=1e-9
    )
    assert got.converged
    x, y, q = np.zeros((horizon + 1, 2)), np.zeros((horizon + 1, 2)), np.zeros(2)
    for path in itertools.product(range(2), repeat=horizon):
        for acts in itertools.product(range(2), repeat=horizon):
            xs, mass, other = (0, *path), 1.0, 1.0
            for t in range(horizon):
                mass *= p[xs[t], acts[t], xs[t + 1]] * np.exp(lam * r[xs[t], acts[t]])
                other *= side[xs[t], xs[t + 1]] * np.exp(lam * worth[xs[t]])
            for t in range(horizon + 1):
                x[t, xs[t]] += mass
                y[t, xs[t]] += other
            q[acts[0]] += mass
    assert got.beliefs[:, 0] == pytest.approx(x / x.sum(axis=1, keepdims=True), abs=1e-5)
    assert got.beliefs[:, 1] == pytest.approx(y / y.sum(axis=1, keepdims=True), abs=1e-5)
    assert got.action_probs == pytest.approx(q / q.sum(), abs=1e-5)


@pytest.mark.parametrize("lam", [0.1, 0.3, 1.0])
def test_the_reactive_task(lam: float) -> None:
    mdp = f1()
    got = propagate(factors_of(mdp, 2), risk=lam)
    assert got.converged and got.action_probs.argmax() == 0
    assert bound(factors_of(mdp, 2)).action_values == pytest.approx([1.0, 0.6], abs=1e-8)
    assert arollout(factors_of(mdp, 2), codes(mdp))[0] == pytest.approx([0.5, 0.6])


def test_a_temperature_that_does_not_follow_lambda_leaves_the_wrong_action() -> None:
    """The mutant: ε = .01 in units of 1/λ, so α = .01/λ; the shipped floor follows the reward."""
    problem, lam = factors_of(f1(), 2), 0.1
    assert propagate(problem, risk=lam).action_probs[1] < 1e-6
    assert propagate(problem, risk=lam, temperature=0.01 / lam).action_probs[1] > 0.01


@pytest.mark.slow
def test_correlated_parents_mislead_belief_propagation() -> None:
    """A documented failure: right is action 0."""
    mdp = f2b()
    assert dp.solve(mdp, 2).action_values[0, 0] == pytest.approx([2.0, 1.6])
    assert bound(factors_of(mdp, 2)).action_values == pytest.approx([2.0, 1.6], abs=1e-8)
    assert arollout(factors_of(mdp, 2), codes(mdp))[0] == pytest.approx([1.5, 1.6])
    assert propagate(factors_of(mdp, 2)).action_probs.argmax() == 1
    joint = mdp.merge(["x1", "x2"])
    assert propagate(factors_of(joint, 2)).action_probs.argmax() == 0


@pytest.mark.slow
def test_one_action_that_serves_two_factors_is_split() -> None:
    """A documented failure: both are too optimistic about action 0."""
    mdp = f3(0.85)
    assert dp.solve(mdp, 2).action_values[0, 0] == pytest.approx([1.5, 1.7])
    assert bound(factors_of(mdp, 2)).action_values == pytest.approx([2.0, 1.7], abs=1e-8)
    assert propagate(factors_of(mdp, 2), risk=0.3).action_probs.argmax() == 0


@pytest.mark.parametrize("timing", ["state_action", "state", "successor"])
def test_the_bound_is_above_the_optimum(timing: str) -> None:
    for seed in range(15):
        mdp = network(seed, timing=timing)
        exact = dp.solve(mdp, 4)
        got = bound(factors_of(mdp, 4))
        assert (got.action_values >= exact.action_values[0, 0] - 1e-7).all()


def test_arollout_is_exact_where_nothing_is_left_to_approximate() -> None:
    """One step: no later action and, from a known state, no correlation in single rewards."""
    mdp = network(0)
    q = dp.solve(mdp, 1).action_values[0, 0]
    assert arollout(factors_of(mdp, 1), codes(mdp))[0] == pytest.approx(q)


def test_arollout_is_exact_where_parents_are_independent() -> None:
    """Uniform later actions; the parents have none, and no action moves both."""
    rng = np.random.default_rng(3)
    sizes = {"coin": 2, "die": 3, "sum": 4}
    laws = {v: CPT([], rng.dirichlet(np.ones(sizes[v]))) for v in ("coin", "die")}
    joint = CPT(["coin", "die"], rng.dirichlet(np.ones(4), (2, 3, 2)))
    wide = Reward(["die", "coin"], rng.normal(size=(3, 2, 2)))
    mdp = FactoredMDP(sizes, 2, laws | {"sum": joint}, [wide, Reward(["sum"], rng.normal(size=4))])
    policy = np.full((4, 24, 2), 0.5)
    for a, score in enumerate(arollout(factors_of(mdp, 4), codes(mdp))[0]):
        policy[0] = np.eye(2)[a]
        assert score == pytest.approx(dp.evaluate(mdp.flat().stages(4), policy))


def test_simulated_returns_have_the_exact_mean() -> None:
    """z < 4.9: false alarm rate 1e-6."""
    mdp = network(2, timing="successor")
    problem = factors_of(mdp, 4)
    flat = mdp.flat()
    policy = np.zeros((8, 2))
    policy[:, 1] = 1.0
    exact = dp.evaluate(flat.stages(4), policy)
    n = 4000
    u = np.random.default_rng(0).random((n, 4, 3))
    runs = simulate(problem, np.repeat(codes(mdp), n, axis=0), u, lambda t, s: np.ones(n, np.intp))
    assert abs(runs.mean() - exact) < 4.9 * runs.std() / np.sqrt(n)


def test_the_reactive_continuation_reacts() -> None:
    mdp = f1()
    problem = factors_of(mdp, 2)
    u = np.random.default_rng(0).random((50, 2, 3))
    start = np.repeat(codes(mdp), 50, axis=0)
    assert simulate(problem, start, u, reactive(problem), np.zeros(50, np.intp)).mean() == 1.0


@pytest.mark.slow
def test_flooding_oscillates_and_says_so() -> None:
    """Six variables that share one action, near-hard choices: in turn rests, at once does not."""
    rests = {"sequential": 0, "flooding": 0}
    for seed in range(6):
        problem = factors_of(network(seed, 6), 4)
        for schedule in rests:
            got = propagate(problem, schedule=schedule, sweeps=60, temperature=0.005)
            rests[schedule] += got.converged
            if got.converged:
                assert got.residual <= 1e-5 * problem.span
    assert rests["sequential"] > rests["flooding"]


def sharp(seed: int) -> FactoredMDP:
    """Nearly deterministic: every row has .99 on one value; four flags, three actions."""
    rng = np.random.default_rng(seed)
    names = [f"x{i}" for i in range(4)]
    cpts = {
        n: CPT([n, names[(i + 1) % 4]], (0.98 * np.eye(2) + 0.01)[rng.integers(0, 2, (2, 2, 3))])
        for i, n in enumerate(names)
    }
    rewards = [Reward([n], rng.normal(size=2)) for n in names]
    return FactoredMDP(dict.fromkeys(names, 2), 3, cpts, rewards)


@pytest.mark.slow
def test_nearly_deterministic_problems_do_not_rest_and_auto_is_not_fooled() -> None:
    """A documented failure: about half of the runs end unconverged, and say so."""
    rested, lost = [], {"vbp": 0.0, "auto": 0.0}
    for seed in range(20):
        mdp = sharp(seed)
        q = dp.solve(mdp, 5).action_values[0, 0]
        got = propagate(factors_of(mdp, 5), damping=0.3)
        rested.append(got.converged)
        lost["vbp"] += q.max() - q[got.action_probs.argmax()]
        checked = plan(mdp, horizon=5, exact_work=0.0)
        assert set(checked.diagnostics["candidates"]) == {"rollout", "lp"}
        lost["auto"] += q.max() - q[mdp.actions.index(checked.action)]
    assert 0.1 < np.mean(rested) < 0.9
    assert lost["auto"] < 0.25 * lost["vbp"]


@pytest.mark.slow
def test_memory_does_not_grow() -> None:
    """200 plans of other tables: nothing is kept. Bytes of live arrays, which no load changes."""
    import jax

    live = []
    for seed in range(200):
        propagate(factors_of(network(seed), 4), sweeps=2)
        live.append(sum(x.nbytes for x in jax.live_arrays()))  # type: ignore[no-untyped-call]
    assert live[-1] <= live[20]


def test_what_is_compiled_does_not_grow_with_the_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten and 80 variables are one program of as many operations, so it compiles as fast."""
    import jax

    lengths = []

    def trace(*given: Any) -> Any:
        lengths.append(str(jax.make_jaxpr(compiled(True, False))(*given)).count(" = "))
        raise InterruptedError

    monkeypatch.setattr(vbp, "compiled", lambda *_: trace)
    for n in (10, 80):
        with pytest.raises(InterruptedError):
            propagate(factors_of(network(0, n), 4))
    assert lengths[0] == lengths[1] > 100


def test_new_tables_do_not_compile_again() -> None:
    run = compiled(True, False)
    propagate(factors_of(network(0), 4))
    before = run._cache_size()  # type: ignore[attr-defined]
    for seed in range(1, 4):
        propagate(factors_of(network(seed), 4))
    assert run._cache_size() == before  # type: ignore[attr-defined]
