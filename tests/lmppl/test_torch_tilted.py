"""A draw under a potential beside the logits is that of rows on the host; strings: test_torch_weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lmppl.lm.base import TokenLaw  # noqa: E402
from lmppl.lm.token_law import token_law  # noqa: E402
from lmppl.lm.torch.draw import Logits  # noqa: E402
from lmppl.lm.torch.weights import law_weights  # noqa: E402
from lmppl.random import Argmax, GumbelMax  # noqa: E402
from lmppl.token_potentials import Exact, TokenState  # noqa: E402
from lmppl.token_potentials.samplers import NONE  # noqa: E402
from lmppl.types import Floats  # noqa: E402

LAWS = (
    TokenLaw(),
    TokenLaw(temperature=0.7),
    TokenLaw(top_k=3),
    TokenLaw(top_p=0.6, temperature=1.4),
    TokenLaw(top_k=2, mixture=0.2),
    TokenLaw(temperature=0.5, target_temperature=0.5),
)


class Row(TokenState):
    """A potential whose next-token weights are given."""

    log_prefix = log_complete = 0.0

    def __init__(self, weights: Floats) -> None:
        self.weights = weights

    def advance(self, token: int) -> Row:
        """Not asked."""
        raise AssertionError

    def log_next(self, tokens: Sequence[int] | None = None) -> Floats:
        """All of them."""
        return self.weights


@pytest.mark.parametrize("width", (7, 1500))
def test_a_tilted_draw_is_that_of_the_host(width: int) -> None:
    rng = np.random.default_rng(width)
    rows, laws = 60, [LAWS[b % len(LAWS)] for b in range(60)]
    logits = Logits(torch.tensor(rng.normal(0, 2, (rows, width)), dtype=torch.float32))
    weights = np.where(rng.random((4, width)) < 0.5, -np.inf, rng.normal(0, 1, (4, width)))
    weights[3] = -np.inf  # nothing is allowed
    which = rng.integers(0, 4, rows)
    keys = rng.integers(0, 2**63, rows).astype(np.uint64)
    found = law_weights(logits, laws)
    drawn = Exact().draw(found, [Row(weights[u]) for u in which], keys, GumbelMax())
    dead = which == 3
    assert all(drawn[b] == NONE for b in np.flatnonzero(dead))
    for b in np.flatnonzero(~dead).tolist():
        logp, logq = token_law(logits.log_probs()[b : b + 1], laws[b], None)
        tilted = logq[0] + weights[which[b]]
        if tilted.max() == -np.inf:  # truncation gives way, as under a mask
            plain = laws[b]._replace(top_k=0, top_p=1.0, mixture=0.0)
            tilted = token_law(logits.log_probs()[b : b + 1], plain, None)[1][0] + weights[which[b]]
        tilted -= np.logaddexp.reduce(tilted)
        v, density = drawn[b]
        assert v == int(GumbelMax().categorical(keys[b : b + 1], tilted[None])[0])
        assert density == pytest.approx(tilted[v], abs=2e-5)
        (log,) = found.target.at(np.array([b]), np.array([v]))
        assert log == pytest.approx(logp[0, v], abs=2e-5)
    best = Exact().draw(found, [Row(weights[0])] * rows, keys, Argmax())
    assert all(weights[0, picked.token] > -np.inf for picked in best)
