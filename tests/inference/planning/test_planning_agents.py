"""Tree search, receding horizon, bounded planners, results: against tables and known numbers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from lmppl import program, sample
from lmppl.errors import BadArgument
from lmppl.inference import Enumerate, infer
from lmppl.inference.planning import (
    OpenMDP,
    RecedingHorizon,
    TabularMDP,
    as_dataset,
    infer_goal_and_budget,
    level_k,
    plan,
)
from lmppl.inference.planning.bounded import backups
from lmppl.inference.planning.kinds import stages_value
from lmppl.inference.planning.mcts import as_world, search

LEFT, STAY, RIGHT = 0, 1, 2


def corridor() -> TabularMDP:
    """Cells 0 … 8; a wall at each end."""
    table = np.zeros((9, 3, 9))
    for x in range(9):
        for a, to in enumerate((max(x - 1, 0), x, min(x + 1, 8))):
            table[x, a, to] = 1.0
    return TabularMDP(9, ["left", "stay", "right"], table, 0.0 * np.ones(9), initial=4)


REWARD = np.zeros(9)
REWARD[2], REWARD[8] = 1.0, 5.0


@pytest.mark.parametrize(
    ("budget", "q"),
    [(2, [0.95, 0, 0]), (3, [1.8525, 0.9025, 0]), (4, [2.7099, 1.7599, 4.2869])],
)
def test_the_corridor(budget: int, q: list[float]) -> None:
    np.testing.assert_allclose(backups(corridor(), REWARD, budget)[-1, 4], q, atol=5e-5)


def test_goal_and_budget() -> None:
    """Right at the start: it plans four steps or more; 4, 6 and 8 cannot be told apart."""
    goals = {"both": REWARD, "near": np.eye(9)[2]}
    walk = [(4, "right"), (5, "right"), (6, "right"), (7, "right")]
    found = infer_goal_and_budget(corridor(), walk, goals, [2, 3, 4, 6, 8], 0.0)
    assert found["both", 4] == found["both", 6] == found["both", 8] == pytest.approx(1 / 3)
    assert found["both", 2] == found["both", 3] == found["near", 8] == 0.0
    left = infer_goal_and_budget(corridor(), [(4, "left")], goals, [2, 3, 4], 0.0)
    assert left["both", 4] == 0.0 and left["both", 2] == left["near", 4] == pytest.approx(0.2)
    with pytest.raises(BadArgument, match="explains"):
        infer_goal_and_budget(corridor(), [(4, "stay"), (3, "right")], {"near": np.eye(9)[2]}, [4], 0.0)  # fmt: skip


def test_the_posterior_is_bayes() -> None:
    prior = {("both", 2): 0.9, ("both", 4): 0.1}
    got = infer_goal_and_budget(corridor(), [(4, "right")], {"both": REWARD}, [2, 4], 1.0, prior=prior)  # fmt: skip
    q = backups(corridor(), REWARD, 4)[[1, 3], 4]
    law = np.exp(q[:, RIGHT]) / np.exp(q).sum(axis=1)
    joint = np.array([0.9, 0.1]) * law
    assert list(got.values()) == pytest.approx((joint / joint.sum()).tolist())


def test_levels() -> None:
    assert level_k(lambda x: 0.8 * x, 50.0, 4)[1:] == pytest.approx([40, 32, 25.6, 20.48])


def noisy(seed: int, timing: str = "state_action") -> TabularMDP:
    rng = np.random.default_rng(seed)
    reward = rng.normal(size=(3, 2) if timing == "state_action" else 3)
    return TabularMDP(3, 2, rng.dirichlet(np.ones(3), (3, 2)), reward, timing=timing)


@pytest.mark.parametrize("timing", ["state_action", "state", "successor"])
def test_a_simulated_table_is_the_table(timing: str) -> None:
    """The mean return of a policy that is fixed, against its value; z-test at 1e-6."""
    mdp = noisy(1, timing)
    world, rng = as_world(mdp, 3, None), np.random.default_rng(0)
    runs = []
    for _ in range(4000):
        at, total = world.start, 0.0
        while acts := world.actions(at):
            at, gained = world.step(at, acts[0], rng)
            total += gained
        runs.append(total)
    only = TabularMDP(3, 1, mdp.transition[:, :1], mdp.reward[:, 0] if timing != "state_action" else mdp.reward[:, :1], timing=timing)  # fmt: skip
    exact = stages_value(only.stages(3), "planning", 0.0)
    assert abs(np.mean(runs) - exact) / (np.std(runs) / np.sqrt(4000)) < 4.89


def test_tree_search_finds_the_best_action() -> None:
    """Ten problems with a gap of at least .2 between the two actions."""
    tried = 0
    for seed in range(40):
        mdp = noisy(seed)
        q = [stages_value(_after(mdp, a, 3), "planning", 0.0) for a in range(2)]
        if abs(q[0] - q[1]) < 0.2 or tried == 10:
            continue
        tried += 1
        found = search(
            as_world(mdp, 3, None), (0, 0), 3, simulations=1500, exploration=0.5, seed=seed
        )
        best = max(found.visits, key=found.visits.__getitem__)
        assert best == int(np.argmax(q))
        assert found.values[best] == pytest.approx(max(q), abs=0.35)
    assert tried == 10


def _after(mdp: TabularMDP, a: int, horizon: int) -> Any:
    """The first action fixed to a."""
    from dataclasses import replace

    stages = mdp.stages(horizon)
    first = np.zeros((1, *stages.reward.shape[1:])) - 1e6 * (np.arange(2) != a)
    return replace(stages, reward=np.concatenate([stages.reward[:1] + first, stages.reward[1:]]))


def test_open_states() -> None:
    """Texts that grow: no list of states exists; the right letter at each place wins."""

    def step(text: str, a: str, rng: np.random.Generator) -> tuple[str, float]:
        new = text + (a if rng.random() < 0.9 else "?")
        return new, float(new == "abc")

    world = OpenMDP("", lambda t: "" if len(t) == 3 else "abc", step)
    found = plan(world, horizon=3, simulations=800, exploration=0.3)
    assert found.method == "mcts" and found.value_kind == "estimate" and found.action == "a"
    assert found.policy(1, "a")["b"] == 1.0
    wide = plan(world, horizon=3, simulations=300, widening=(1.0, 0.5), leaf=lambda t, n: 0.1)
    assert wide.diagnostics["nodes"] < found.diagnostics["nodes"]
    for bad in ({"method": "dp"}, {"risk_aversion": 1.0}):
        with pytest.raises(BadArgument):
            plan(world, horizon=2, **bad)


def test_a_policy_is_a_distribution() -> None:
    pytest.importorskip("jax")
    found = plan(noisy(0), 0, 3, temperature=0.5)

    @program
    def acts() -> Any:
        return sample("a", found.law(0, 0))

    assert infer(acts, engine=Enumerate()).marginal()[1] == pytest.approx(found.action_probs[1])


def test_datasets_and_plots() -> None:
    pytest.importorskip("jax")
    pytest.importorskip("xarray")
    plt = pytest.importorskip("matplotlib.pyplot")
    from lmppl.inference.planning import results

    mdp = noisy(2)
    data = as_dataset(mdp, 4)
    total = (data["occupancy"] * mdp.stages(4).reward).sum()
    assert float(total) == pytest.approx(data.attrs["value"])
    np.testing.assert_allclose(data["occupancy"].sum(("state", "action")), 1.0)
    figure, axes = plt.subplots(2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results.plot_values(data, axes[0, 0])
        results.plot_policy(data, axes[0, 1])
        results.plot_occupancy(data, axes[1, 0])
        results.plot_kinds({"planning": [0, 1], "map": [1, 0]}, [0, 1], axes[1, 1])
    assert [a.get_title() for a in axes.ravel()] == ["value", "policy, t = 0", "occupancy", ""]
    plt.close(figure)


def test_a_plan_is_followed_for_a_while() -> None:
    pytest.importorskip("jax")
    agent = RecedingHorizon(noisy(3), lookahead=4, method="dp", replan_every=3)
    agent.act(0, 8)
    first = agent.last
    agent.act(1, 7)
    agent.act(2, 6)
    assert agent.last is first
    agent.act(0, 5)
    assert agent.last is not first
    agent.reset()
    assert agent.last is None


@pytest.mark.slow
def test_warm_starts_take_fewer_sweeps_and_act_alike() -> None:
    pytest.importorskip("jax")
    from lmppl.inference.planning import CPT, FactoredMDP, Reward

    rng = np.random.default_rng(0)
    names = [f"x{i}" for i in range(3)]
    mdp = FactoredMDP(
        dict.fromkeys(names, 2), 2,
        {n: CPT([n, names[(i + 1) % 3]], rng.dirichlet(np.ones(2) * 2, (2, 2, 2))) for i, n in enumerate(names)},
        [Reward([n], rng.normal(size=2)) for n in names],
    )  # fmt: skip
    warm = RecedingHorizon(mdp, 5, "vbp", warm_start=True)
    cold = RecedingHorizon(mdp, 5, "vbp")
    sweeps = {True: 0, False: 0}
    for t in range(4):
        state = {n: int(rng.integers(2)) for n in names}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert warm.act(state, 8 - t) == cold.act(state, 8 - t)
        for agent, key in ((warm, True), (cold, False)):
            assert agent.last is not None
            sweeps[key] += agent.last.diagnostics["sweeps"]
    assert sweeps[True] < sweeps[False]
