"""C14: every mistaken engine is rejected by the law that is there to reject it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from lmppl.inference import SMC, infer, tokens
from lmppl.testing import LawBroken, Weighting, assert_properly_weighted, check_keys

SHARED_SEED = 15
"""Exhaustion cannot see it, since Ẑ stays unbiased: the keys and the variance show it."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Mutants divide and subtract what they should not."""
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def exhaust(programs: ModuleType, **settings: Any) -> Weighting:
    engine = SMC(**{"particles": 2, "always": True, "guide": programs.rough, **settings})
    return assert_properly_weighted(
        programs.duel, engine=engine, lm=programs.AB, exact=programs.duel_by_hand(), atol=1e-10
    )


def barrier(mutant: Any) -> Any:
    """Half-made strings are shared only where they are resampled."""
    return tokens(1) if mutant.number == 10 else "factor"


def test_all_fifteen(mutants: ModuleType) -> None:
    assert sorted(m.number for m in mutants.MUTANTS) == list(range(1, 16))


@pytest.mark.parametrize("resample_at", ["factor", "site", tokens(1)], ids=str)
def test_the_engine_itself_passes(programs: ModuleType, resample_at: Any) -> None:
    assert exhaust(programs, resample_at=resample_at).error < 1e-14


def test_exhaustion_rejects(
    mutant: Any, programs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant.apply(monkeypatch)
    if mutant.number == SHARED_SEED:
        assert exhaust(programs, resample_at="factor").error < 1e-10
        return
    with pytest.raises(LawBroken, match="is not properly weighted"):
        exhaust(programs, resample_at=barrier(mutant))


def test_keys_reject_a_shared_seed(
    mutants: ModuleType, programs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SMC(particles=4, always=True)
    assert check_keys(programs.duel, engine=engine, lm=programs.AB) > 20
    next(m for m in mutants.MUTANTS if m.number == SHARED_SEED).apply(monkeypatch)
    with pytest.raises(LawBroken, match="used a random key again"):
        check_keys(programs.duel, engine=engine, lm=programs.AB)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("scheme", ["systematic", "stratified", "residual", "multinomial"])
def test_exhaustion_rejects_under_every_scheme(
    mutant: Any, programs: ModuleType, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    if mutant.number == SHARED_SEED:
        pytest.skip("exhaustion cannot see it")
    if scheme == "multinomial" and mutant.number == 10:
        pytest.skip("too many outcomes at every token; the other schemes show it")
    mutant.apply(monkeypatch)
    with pytest.raises(LawBroken, match="is not properly weighted"):
        exhaust(programs, resample_at=barrier(mutant), resampling=scheme)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_variance_rejects_a_shared_seed(
    mutants: ModuleType, programs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C7: Var Ẑ (N = 4) / Var Ẑ (N = 16) is near 4, and near 1 when all particles are one.

    20,000 runs: the ratio's standard error is about 0.06, so [3, 5.3] is 16 of them wide.
    """

    def ratio(runs: int) -> float:
        spread = []
        for n in (4, 16):
            z = [
                np.exp(infer(
                    programs.soft, engine=SMC(particles=n, always=True), lm=programs.AB, seed=seed
                ).log_evidence)
                for seed in range(runs)
            ]  # fmt: skip
            spread.append(float(np.var(z)))
        return spread[0] / spread[1]

    assert 3.0 <= ratio(20_000) <= 5.3
    next(m for m in mutants.MUTANTS if m.number == SHARED_SEED).apply(monkeypatch)
    assert not 3.0 <= ratio(1_000) <= 5.3
