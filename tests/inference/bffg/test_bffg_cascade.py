"""Messages between string sites: exact with any tables, on a tree and at a collider (test A12)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

from lmppl import LM, factor, program, sample  # noqa: E402
from lmppl.errors import BadArgument  # noqa: E402
from lmppl.inference import SMC, bffg, infer, tokens  # noqa: E402
from lmppl.lm.table import TableLM  # noqa: E402
from lmppl.testing import assert_properly_weighted, enumerate_exact  # noqa: E402

MODEL = TableLM(
    ["a", "b"], {(): [0.6, 0.4], (0,): [0.7, 0.3], (1,): [0.4, 0.6]}, name="two letters"
)
SURROGATE = bffg.HMM(
    np.array([0.5, 0.5]), np.array([[0.6, 0.4], [0.3, 0.7]]), np.eye(2) * 0.6 + 0.2
)
LETTERS = bffg.automaton(lambda s, v: "ab"[v], "", 2)
"""The state is the last letter: the abstraction of a text."""


def guided(message: Any, length: int) -> Any:
    """A filter over the tokens of a step, whose terminal weights are the fused message."""
    tau = LETTERS.terminal(lambda s: message.get(s, 0.7))
    filter_ = bffg.HMMAutomaton(SURROGATE, LETTERS, length, tau)
    return bffg.string_potential(filter_, rule=False)


LEFT, RIGHT = {"a": 0.3, "b": 0.9}, {"a": 1.4, "b": 0.2}
LEAF = {"a": 0.1, "b": 1.0}
FUSED = {s: LEFT[s] * RIGHT[s] for s in "ab"}


@program
def tree() -> Any:
    """A text, two that go on from it, and a check of each of these."""
    x = sample("x", LM("", max_tokens=2, potential=guided(FUSED, 2)))
    left = sample("left", LM(str(x), max_tokens=1, potential=guided(LEAF, 1)))
    right = sample("right", LM(str(x), max_tokens=1))
    factor("left ok", float(np.log(LEAF[left[-1]])))
    factor("right ok", -1.0 if right == x[0] else 0.0)
    return x + left + right


@program
def collider() -> Any:
    """Two texts, and one that goes on from both."""
    x = sample("x", LM("", max_tokens=1, potential=guided(LEFT, 1)))
    y = sample("y", LM("", max_tokens=1, potential=guided(RIGHT, 1)))
    z = sample("z", LM(f"{y}{x}", max_tokens=1, potential=guided(LEAF, 1)))
    factor("z ok", -1.5 if z == "a" else 0.0)
    return x + y + z


def read(table: dict[str, float]) -> Any:
    return lambda text: table[text[-1]]


GUIDES = {
    "tree": bffg.step_guide(
        [
            bffg.StepMessage("x", "left", read(LEFT)),
            bffg.StepMessage("x", "right", read(RIGHT)),
            bffg.StepMessage("left", "left ok", read(LEAF)),
        ]
    ),
    "collider": bffg.step_guide(
        [
            bffg.StepMessage("x", "z", read(LEFT)),
            bffg.StepMessage("y", "z", read(RIGHT)),
            bffg.StepMessage("z", "z ok", read(LEAF)),
        ]
    ),
}


@pytest.mark.parametrize("resample_at", ["site", pytest.param(tokens(1), marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "model", [pytest.param(tree, marks=pytest.mark.slow), collider], ids=["tree", "collider"]
)
def test_wrong_tables_leave_the_posterior_as_it_is(model: Any, resample_at: Any) -> None:
    """All outcomes: E[Ẑ W] = γ to 1e-10, with fused messages as terminal weights of the tokens."""
    guide = GUIDES[model.__name__]
    engine = SMC(2, always=True, resample_at=resample_at, guide=guide)
    assert_properly_weighted(model, engine=engine, lm=MODEL, atol=1e-10)


def test_exact_messages_and_surrogates_leave_no_variance() -> None:
    """x, then y after it, pinned at b: tables that are right, and the model as its own surrogate."""
    exact = bffg.HMM(np.array([0.6, 0.4]), np.array([[0.7, 0.3], [0.4, 0.6]]), np.eye(2))
    after = {s: float(np.exp(MODEL.table[i + 1])[1]) for i, s in enumerate("ab")}
    filter_ = bffg.HMMAutomaton(exact, LETTERS, 2, LETTERS.terminal(lambda s: after.get(s, 0.4)))

    @program
    def pinned() -> Any:
        x = sample("x", LM("", max_tokens=2, potential=bffg.string_potential(filter_, rule=False)))
        y = sample("y", LM(str(x), max_tokens=1, choices=["b"]))
        return x + y

    guide = bffg.step_guide([bffg.StepMessage("x", "y", read(after))])
    z = enumerate_exact(pinned, lm=MODEL).z
    for seed in range(3):
        post = infer(pinned, engine=SMC(6, always=True, guide=guide), lm=MODEL, seed=seed)
        assert np.exp(post.log_evidence) == pytest.approx(z, rel=1e-10)


def test_messages_from_plain_runs() -> None:
    pairs = [("a", "b")] * 6 + [("a", "a")] * 2 + [("b", "a")] * 4
    found = bffg.step_message(pairs, {"a": 0.0, "b": 1.0}, smoothing=2.0, classes="abc")
    assert found == pytest.approx({"a": 7 / 10, "b": 1 / 6, "c": 0.5})
    with pytest.raises(BadArgument, match="does not know"):
        bffg.step_message([("a", "x")], {"b": 1.0})
    with pytest.raises(BadArgument, match="not all zero"):
        bffg.step_message(pairs, {"a": 0.0, "b": 0.0})
