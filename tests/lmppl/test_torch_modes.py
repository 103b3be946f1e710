"""A program inside `torch.no_grad()` suspends there, and nobody else is without gradients."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from lmppl import Bernoulli, factor, program, sample  # noqa: E402
from lmppl.inference import SMC, Enumerate, Importance, infer  # noqa: E402
from lmppl.torch_modes import DEFAULT, Modes, modes  # noqa: E402

BLOCKS = {
    "no_grad": (torch.no_grad, Modes(grad=False)),
    "inference_mode": (torch.inference_mode, Modes(grad=False, inference=True)),
    "autocast": (
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        Modes(autocast=(True, False)),
    ),
}


def watched(block: Any, inside: Modes, driver: str) -> Any:
    """Half of the particles suspend in the block; every one checks its modes at every step."""

    def check(wanted: Modes) -> None:
        if modes() != wanted:
            raise RuntimeError(f"{modes()} in place of {wanted}")

    @program
    def model() -> Any:
        check(DEFAULT)
        x = sample("x", Bernoulli(0.5))
        check(DEFAULT)
        if x:
            with block():
                check(inside)
                y = sample("y", Bernoulli(0.5))
                factor("kept", 0.2)
                check(inside)
                if y:
                    with torch.enable_grad():
                        sample("z", Bernoulli(0.5))
                        check(inside._replace(grad=True))
                check(inside)
        else:
            y = sample("y", Bernoulli(0.5))
            factor("kept", 0.2)
        check(DEFAULT)
        sample("last", Bernoulli(0.5))
        return x, y

    @program
    async def awaited() -> Any:
        check(DEFAULT)
        x = await sample("x", Bernoulli(0.5))
        with block() if x else torch.enable_grad():
            check(inside if x else DEFAULT)
            y = await sample("y", Bernoulli(0.5))
            await factor("kept", 0.2)
            check(inside if x else DEFAULT)
        check(DEFAULT)
        return x, y

    return awaited if driver == "coroutine" else model


ENGINES = (Importance(24), SMC(24, always=True, resampling="multinomial"), Enumerate())


@pytest.mark.parametrize("engine", ENGINES, ids=repr)
@pytest.mark.parametrize("driver", ["greenlet", "coroutine", "eager"])
@pytest.mark.parametrize("name", BLOCKS)
def test_modes_do_not_leak(name: str, driver: str, engine: Any) -> None:
    block, inside = BLOCKS[name]
    post = infer(watched(block, inside, driver), engine=engine, driver=driver, seed=1)
    assert len(post.marginal()) >= 3
    assert modes() == DEFAULT


@pytest.mark.parametrize("name", BLOCKS)
def test_killed_inside_a_block(name: str) -> None:
    """Frames that are unwound leave their blocks, and that changes nothing out here."""
    block, inside = BLOCKS[name]

    @program
    def model() -> Any:
        with block():
            x = sample("x", Bernoulli(0.5))
            factor("only true", bool(x))
            if modes() != inside:
                raise RuntimeError(str(modes()))
            return sample("y", Bernoulli(0.5))

    infer(model, engine=SMC(8), seed=0)
    assert modes() == DEFAULT


def test_who_infers_without_gradients_stays_so() -> None:
    @program
    def model() -> Any:
        with torch.enable_grad():
            sample("x", Bernoulli(0.5))
            if not torch.is_grad_enabled():
                raise RuntimeError("the program's own block is lost")
        if torch.is_grad_enabled():
            raise RuntimeError("the block around infer is lost")
        return sample("y", Bernoulli(0.5))

    with torch.no_grad():
        infer(model, engine=SMC(4, always=True), seed=0)
        assert not torch.is_grad_enabled()


def test_gradients_work_across_sites() -> None:
    """Another particle's `no_grad` does not cut this one's graph."""

    @program
    def model() -> Any:
        weight = torch.ones((), requires_grad=True)
        x = sample("x", Bernoulli(0.5))
        if x:
            with torch.no_grad():
                sample("y", Bernoulli(0.5))
                return (weight * 2).requires_grad
        sample("y", Bernoulli(0.5))
        return (weight * 2).requires_grad

    post = infer(model, engine=Importance(16), seed=0)
    assert all(t.result is not t["x"] for t in post.traces)
