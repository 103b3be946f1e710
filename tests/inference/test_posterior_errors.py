"""Standard errors say when they cannot be told."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lmppl.inference.results.history import History
from lmppl.inference.results.posterior import Posterior
from lmppl.trace import Trace


def posterior(eves: list[int], resamplings: int) -> Posterior:
    n = len(eves)
    history = History(n)
    for _ in range(resamplings):
        history.record(n / 2, 0.0, np.zeros(n, dtype=np.int64), eves)
    traces = [Trace(None, i) for i in range(n)]
    return Posterior(traces, np.zeros(n), 0.0, history=history, eves=eves)


def test_without_resampling_it_is_the_importance_sampling_error() -> None:
    n, lw = 50, np.log(np.linspace(1.0, 2.0, 50))
    found = Posterior([Trace(None, i) for i in range(n)], lw, 0.0)
    w = np.exp(lw)
    by_hand = math.sqrt(w.var(ddof=1) / n) / w.mean()
    assert found.log_evidence_se == pytest.approx(by_hand, rel=1e-9)


def test_equal_weights_without_resampling_have_no_error() -> None:
    assert posterior(list(range(8)), 0).log_evidence_se == pytest.approx(0.0, abs=1e-7)


def test_few_surviving_families_are_a_large_error_and_not_certainty() -> None:
    """Two families of four: groups 8/7 (1/2 - 1/8); nine resamplings at ESS 4: 9 (1/4 - 1/8)."""
    few = posterior([0] * 4 + [1] * 4, 0)
    assert few.log_evidence_se == pytest.approx(math.sqrt(8 / 7 * (1 / 2 - 1 / 8)))
    assert posterior([0] * 4 + [1] * 4, 9).log_evidence_se == pytest.approx(math.sqrt(9 / 8))


def test_an_ancestor_of_all_leaves_no_error_of_a_marginal() -> None:
    """Also when others are there but carry no weight: their spread is not 0, it is not known."""
    n, eves = 4, [0, 0, 1, 1]
    lw = np.array([0.0, 0.0, -np.inf, -np.inf])
    found = Posterior([Trace(None, i % 2) for i in range(n)], lw, 0.0, eves=eves)
    assert math.isnan(found.marginal().se[0])
