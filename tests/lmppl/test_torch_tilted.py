"""Potentials beside the logits of `TorchLM`: the draws and weights of the rows on the host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from lmppl import LM, program, sample  # noqa: E402
from lmppl.inference import SMC, infer, tokens  # noqa: E402
from lmppl.lm.base import TokenLaw  # noqa: E402
from lmppl.lm.token_law import token_law  # noqa: E402
from lmppl.lm.torch.draw import Logits  # noqa: E402
from lmppl.lm.torch.rows import TorchRows  # noqa: E402
from lmppl.random import Argmax, GumbelMax  # noqa: E402
from lmppl.token_potentials import AWRS, Matches, OnText  # noqa: E402
from lmppl.token_potentials.samplers import Exact  # noqa: E402

LAWS = (
    TokenLaw(),
    TokenLaw(temperature=0.7),
    TokenLaw(top_k=3),
    TokenLaw(top_p=0.6, temperature=1.4),
    TokenLaw(top_k=2, mixture=0.2),
    TokenLaw(temperature=0.5, target_temperature=0.5),
)


@pytest.fixture
def small(load_file: Callable[[Path], ModuleType], root: Path) -> ModuleType:
    """The tiny random models of `test_torch_lm.py`."""
    return load_file(root / "tests" / "lmppl" / "test_torch_lm.py")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the rows of each batch whose rows come to the host."""
    found: list[int] = []
    real = TorchRows.log_probs

    def watched(rows: TorchRows) -> Any:
        found.append(len(rows))
        return real(rows)

    monkeypatch.setattr(TorchRows, "log_probs", watched)
    return found


@pytest.mark.parametrize("width", (7, 1500))
def test_a_tilted_draw_is_that_of_the_host(width: int) -> None:
    rng = np.random.default_rng(width)
    rows, laws = 60, [LAWS[b % len(LAWS)] for b in range(60)]
    logits = Logits(torch.tensor(rng.normal(0, 2, (rows, width)), dtype=torch.float32))
    weights = np.where(rng.random((4, width)) < 0.5, -np.inf, rng.normal(0, 1, (4, width)))
    weights[3] = -np.inf  # nothing is allowed
    which = rng.integers(0, 4, rows)
    keys = rng.integers(0, 2**63, rows).astype(np.uint64)
    drawn = logits.draw_tilted(keys, laws, weights, which, GumbelMax())
    dead = which == 3
    assert (drawn.tokens[dead] == -1).all() and (drawn.logq[dead] == -np.inf).all()
    for b in np.flatnonzero(~dead).tolist():
        logp, logq = token_law(logits.log_probs()[b : b + 1], laws[b], None)
        tilted = logq[0] + weights[which[b]]
        if tilted.max() == -np.inf:  # truncation gives way, as under a mask
            plain = laws[b]._replace(top_k=0, top_p=1.0, mixture=0.0)
            tilted = token_law(logits.log_probs()[b : b + 1], plain, None)[1][0] + weights[which[b]]
        tilted -= np.logaddexp.reduce(tilted)
        v = int(drawn.tokens[b])
        assert v == int(GumbelMax().categorical(keys[b : b + 1], tilted[None])[0])
        assert drawn.logq[b] == pytest.approx(tilted[v], abs=2e-5)
        assert drawn.logp[b] == pytest.approx(logp[0, v], abs=2e-5)
    one = logits.draw_tilted(keys, laws, weights[:1], np.zeros(rows, dtype=np.int64), Argmax())
    assert (weights[0, one.tokens] > -np.inf).all()


@pytest.mark.parametrize("sampler", (None, Exact()))
@pytest.mark.parametrize("settings", ({}, {"temperature": 0.7, "top_k": 20}, {"top_p": 0.9}))
def test_strings_are_those_of_the_host(
    small: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    asked: list[int],
    settings: dict[str, Any],
    sampler: Any,
) -> None:
    """Keyed draws differ at near ties alone: 12 strings of 6 tokens have none."""
    short = OnText(lambda text: -0.3 * len(text), lambda text: -0.3 * len(text))
    potential = Matches("[a-z ]*") * short

    @program
    def story() -> str:
        law = LM("the cat", max_tokens=6, potential=potential, sampler=sampler, **settings)
        return str(sample("story", law))

    lm = small.Pair("llama").lm
    asked.clear()
    engine = SMC(12, resample_at=tokens(2))
    beside = infer(story, engine=engine, lm=lm, seed=5)
    assert not asked
    monkeypatch.setattr(TorchRows, "tilts", False)
    host = infer(story, engine=engine, lm=lm, seed=5)
    assert asked
    assert [t["story"] for t in beside.traces] == [t["story"] for t in host.traces]
    assert beside.log_weights == pytest.approx(host.log_weights, abs=1e-4)
    assert beside.log_evidence == pytest.approx(host.log_evidence, abs=1e-4)


def test_samplers_that_look_at_a_few_tokens_take_the_rows(
    small: ModuleType, asked: list[int]
) -> None:
    lm = small.Pair("llama").lm
    asked.clear()
    law = LM("the cat", max_tokens=3, potential=Matches("[a-z ]*"), sampler=AWRS())
    infer(lambda: sample("x", law), engine=SMC(4), lm=lm)
    assert asked
