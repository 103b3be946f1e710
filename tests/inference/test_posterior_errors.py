"""Standard errors say when they cannot be told."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lmppl.inference.posterior import History, Posterior
from lmppl.trace import Trace


def posterior(eves: list[int], resamplings: int) -> Posterior:
    n = len(eves)
    history = History(n)
    for _ in range(resamplings):
        history.record(1.0, 0.0, np.zeros(n, dtype=np.int64), eves)
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


def test_a_negative_estimate_of_the_variance_is_nan_and_not_certainty() -> None:
    """V = 1 - (8/7)^(r+1) (1 - 1/2) is below 0 for r = 9 with two families of four."""
    found = posterior([0] * 4 + [1] * 4, 9)
    assert math.isnan(found.log_evidence_se)
    assert math.isnan(found.log_evidence_interval().low)
