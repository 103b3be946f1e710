"""Routers on seeded miniatures with a known answer, and the contextual bandit."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from lmppl.errors import BadArgument
from lmppl.inference.allocation.linucb import LinUCB
from lmppl.inference.allocation.routing import (
    Clusters,
    Logistic,
    advantage_targets,
    best_shift,
    keep_small,
    route,
    take_target,
)


def hybrid(n: int = 3000, seed: int = 0) -> tuple[Any, Any, Any]:
    """Questions of some difficulty: features, and 10 sampled qualities of a small and a large model."""
    rng = np.random.default_rng(seed)
    hard = rng.random(n)
    x = np.column_stack([hard + rng.normal(0, 0.15, n), rng.normal(size=n)])
    small = rng.random((n, 10)) < (1.0 - 0.7 * hard)[:, None]
    large = rng.random((n, 10)) < (0.95 - 0.2 * hard)[:, None]
    return x, small.astype(float), large.astype(float)


@pytest.mark.parametrize("kind", ["det", "prob", "trans"])
def test_hybrid_beats_chance_at_the_same_cost(kind: str, record_property: Any) -> None:
    """Fitted on half, measured on the other half; 20 % and 40 % fewer large calls."""
    x, small, large = hybrid()
    half = len(x) // 2
    router = Logistic.fit(x[:half], advantage_targets(small[:half], large[:half], kind))
    scores, s, b = router(x[half:]), small[half:].mean(axis=1), large[half:].mean(axis=1)
    rows = []
    for share in (0.2, 0.4):
        stays = keep_small(scores, share=share)
        got = float(np.where(stays, s, b).mean())
        chance = share * s.mean() + (1 - share) * b.mean()
        rows.append(f"{share:.0%} fewer: {got:.3f} (random {chance:.3f}, all large {b.mean():.3f})")
        assert got > chance + 0.02 and got > b.mean() - 0.03
    record_property("figure", f"hybrid router, r_{kind}: {'; '.join(rows)}")


def test_targets_by_hand() -> None:
    small, large = [[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 0.0]]
    assert advantage_targets(small, large, "det").tolist() == [0.0, 0.0]
    assert advantage_targets(small, large, "prob").tolist() == [0.5, 0.5]
    h = np.array([[-0.5], [-0.1], [0.2]])
    # at t = 0 the targets are 0, 0, 1 and at t = .1 they are 0, 1, 1: equally far, the first counts
    assert best_shift(h) == 0.0
    assert best_shift(np.array([[-0.5], [-0.1], [-0.1]])) == pytest.approx(0.1)


def test_logistic_is_at_its_optimum() -> None:
    """The gradient is zero, for soft targets too."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(200, 3)), rng.random(200)
    fit = Logistic.fit(x, y, ridge=0.5)
    gradient = x.T @ (fit(x) - y) + 0.5 * np.array(fit.weights)
    assert np.abs(gradient).max() < 1e-6 and abs((fit(x) - y).sum()) < 1e-6


def test_clusters_route_unseen_models(record_property: Any) -> None:
    """30 unseen models of 10 skills, 300 validation questions: most of the gain over the best one."""
    rng = np.random.default_rng(3)
    skills = rng.normal(0, 3.0, (10, 5))
    of = rng.integers(10, size=1300)
    x = skills[of] + rng.normal(size=(1300, 5)) * 0.7
    skill = rng.beta(1.2, 1.2, (30, 10))
    right = rng.random((30, 1300)) < skill[:, of]
    clusters = Clusters.fit(x[:300], 10)
    errors = clusters.errors(x[:300], ~right[:, :300])
    test = slice(300, None)
    picks = route(errors[:, clusters(x[test])])
    got = skill[picks, of[test]].mean()
    best = skill[skill[:, of[:300]].mean(axis=1).argmax()][of[test]].mean()
    oracle = skill[:, of[test]].max(axis=0).mean()
    gain = (got - best) / (oracle - best)
    record_property(
        "figure",
        f"cluster routing: {got:.3f}, best single {best:.3f}, oracle {oracle:.3f}: {gain:.1%}",
    )
    assert gain > 0.8


def test_clusters_do_not_depend_on_order() -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    first, second = Clusters.fit(x, 4), Clusters.fit(x[::-1], 4)
    assert np.array_equal(first.centres, second.centres)
    assert np.array_equal(first(x), second(x))


def test_route_trades_error_for_cost() -> None:
    errors = [[0.1, 0.4], [0.3, 0.3]]
    assert route(errors).tolist() == [0, 1]
    assert route(errors, [10.0, 1.0], trade=0.05).tolist() == [1, 1]


def test_steps(record_property: Any) -> None:
    """Reward at the same share of target steps: threshold < router < oracle, as published."""
    rng = np.random.default_rng(2)
    n = 20_000
    draft = rng.normal(0, 1, n)
    target = 0.5 * draft + rng.normal(0.5, 0.8, n)
    predicted = target - draft + rng.normal(0, 0.8, n)

    def reward(takes: list[bool]) -> float:
        return float(np.where(takes, target, draft).mean())

    for share in (0.2, 0.4, 0.6):
        cut = float(np.quantile(draft, share))
        adv, guess = (float(np.quantile(v, 1 - share)) for v in (target - draft, predicted))
        rows = {
            "threshold": reward([take_target(d, tau=cut) for d in draft]),
            "router": reward([take_target(d, predicted=p, tau=guess) for d, p in zip(draft, predicted, strict=True)]),
            "oracle": reward([take_target(d, t, tau=adv) for d, t in zip(draft, target, strict=True)]),
        }  # fmt: skip
        record_property("figure", f"steps at target share {share}: {rows}")
        assert rows["threshold"] < rows["router"] < rows["oracle"]
    with pytest.raises(BadArgument, match="not both"):
        take_target(0.1, 0.2, predicted=0.1, tau=0.0)


# -- the bandit ----------------------------------------------------------------------------------


def test_linucb_finds_the_best_arm(record_property: Any) -> None:
    """Five arms, six features, 600 rounds: over 90 % of the best arm in the last 200."""
    rng = np.random.default_rng(0)
    arms = [f"arm{i}" for i in range(5)]
    theta = rng.normal(size=(5, 6))
    bandit = LinUCB(arms, 6, c=0.5)
    got = best = random = 0.0
    for t in range(600):
        x = rng.normal(size=6)
        choice = bandit.ask(x.tolist())
        means = theta @ x
        bandit.tell(choice.id, float(means[arms.index(choice.arm)] + rng.normal() * 0.5))
        if t >= 400:
            got += means[arms.index(choice.arm)]
            best += means.max()
            random += means.mean()
    record_property(
        "figure", f"LinUCB: {got / best:.1%} of the best arm, random {random / best:.1%}"
    )
    assert got > 0.9 * best


def test_order_of_tells_and_resuming() -> None:
    rng = np.random.default_rng(1)
    contexts = rng.normal(size=(4, 2)).tolist()
    states = []
    for order in itertools.permutations(range(4)):
        bandit = LinUCB(["x", "y"], 2)
        choices = [bandit.ask(c) for c in contexts]
        for i in order:
            bandit.tell(choices[i].id, 0.1 * i)
            bandit.tell(choices[i].id, 0.1 * i)
        states.append(json.dumps(bandit.state()))
    assert len(set(states)) == 1
    again = LinUCB(["x", "y"], 2)
    again.load(json.loads(states[0]))
    assert again.scores([1.0, 2.0]) == bandit.scores([1.0, 2.0])
    with pytest.raises(BadArgument, match="another reward"):
        again.tell(1, 9.0)
    with pytest.raises(BadArgument, match="no choice"):
        again.tell(99, 1.0)


def test_a_batch_spreads() -> None:
    bandit = LinUCB(["x", "y", "z"], 1, c=1.0)
    assert {bandit.ask([1.0]).arm for _ in range(3)} == {"x", "y", "z"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: advantage_targets([[1.0]], [[1.0]], "odds"), "kind"),
        (lambda: keep_small([0.5]), "a threshold or a share"),
        (lambda: keep_small([0.5], share=2.0), "share must be"),
        (lambda: Clusters.fit([[1.0]], 2), "k must be"),
        (lambda: route([[0.1]], [1.0, 2.0]), "2 costs of 1"),
        (lambda: Logistic.fit([[1.0]], [0.5, 0.5]), "do not pair"),
        (lambda: LinUCB(["a", "a"], 1), "different names"),
        (lambda: LinUCB(["a"], 2).ask([1.0]), "2 numbers"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        call()
