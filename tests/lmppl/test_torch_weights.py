"""Samplers that look at a few tokens, beside the logits of `TorchLM`: no row comes to the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from lmppl import LM, program, sample  # noqa: E402
from lmppl.errors import LmpplError  # noqa: E402
from lmppl.inference import SMC, infer, tokens  # noqa: E402
from lmppl.lm.base import LanguageModel, Rows, TokenLaw  # noqa: E402
from lmppl.lm.token_weights import HostWeights, host_weights  # noqa: E402
from lmppl.lm.torch.draw import Logits  # noqa: E402
from lmppl.lm.torch.rows import TorchRows  # noqa: E402
from lmppl.lm.torch.weights import TorchWeights, law_weights  # noqa: E402
from lmppl.random import Argmax, GumbelMax  # noqa: E402
from lmppl.token_potentials import AWRS, Exact, Matches, OnText, TokenState, TopK  # noqa: E402
from lmppl.types import Floats, Ints, Keys  # noqa: E402

WIDTHS = (7, 1500)
"""One block of ids, and six with a short one at the end."""
CHANCES = (GumbelMax(), Argmax())
SAMPLERS = (Exact(), AWRS(), AWRS(0), AWRS(2), AWRS(None), TopK(3), TopK(2000))


class Keyed:
    """A chance that is asked on the host, with the rows."""

    def categorical(self, keys: Keys, log_weights: Floats) -> Ints:
        """As in production."""
        return GumbelMax().categorical(keys, log_weights)

    def offsets(self, keys: Keys, breakpoints: Sequence[Floats] | None = None) -> Floats:
        """Not asked."""
        raise AssertionError


class Fixed(TokenState):
    """A potential whose next-token weights are given."""

    def __init__(self, weights: Floats) -> None:
        self.weights = weights

    log_prefix = log_complete = 0.0

    def advance(self, token: int) -> Fixed:
        """Not asked."""
        raise AssertionError

    def log_next(self, tokens: Sequence[int] | None = None) -> Floats:
        """Some of them, or all."""
        return self.weights if tokens is None else self.weights[list(tokens)]


def made(width: int, rows: int = 8) -> tuple[Floats, Any]:
    """Scores on the host and on the device."""
    x = np.random.default_rng(width).normal(0, 2, (rows, width)).astype(np.float32)
    x[:, 3] = -np.inf
    return x.astype(np.float64), torch.from_numpy(x)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("chance", (*CHANCES, Keyed()), ids=lambda c: type(c).__name__)
def test_rows_of_the_device_are_those_of_the_host(width: int, chance: Any) -> None:
    host, scores = made(width)
    host -= np.log(np.exp(host).sum(axis=1, keepdims=True))
    ours, theirs = TorchWeights(scores), HostWeights(host)
    rows = np.array([5, 0, 5, 2])
    keys = np.arange(4, dtype=np.uint64)
    assert ours.width == theirs.width == width
    np.testing.assert_array_equal(ours.largest(4), theirs.largest(4))
    tilt = np.random.default_rng(1).normal(0, 1, (2, width))
    tilt[1, ::2] = -np.inf
    which = np.array([0, 1, 1, 0])
    some = np.array([0, 3, 1, 0])
    pairs: list[tuple[Any, Any, Ints]] = [
        (ours, theirs, rows),
        (ours.select(rows), theirs.select(rows), some),
        (ours.tilted(rows, tilt, which), theirs.tilted(rows, tilt, which), some),
    ]
    cut_ours, cut_theirs = ours.select(np.arange(8)), theirs.select(np.arange(8))
    for n in range(6):
        for q in (cut_ours, cut_theirs):
            q.take_out(rows, theirs.largest(6)[rows, n])
    pairs.append((cut_ours, cut_theirs, rows))
    pairs.append((ours.outside(rows, cut_ours), theirs.outside(rows, cut_theirs), some))
    for one, two, asked in pairs:
        np.testing.assert_allclose(one.log_mass(asked), two.log_mass(asked), atol=2e-6)
        drawn, logs, mass = one.draw(asked, keys, chance)
        expected, expected_logs, expected_mass = two.draw(asked, keys, chance)
        np.testing.assert_array_equal(drawn, expected)
        np.testing.assert_allclose(logs, expected_logs, atol=4e-6)
        np.testing.assert_allclose(mass, expected_mass, atol=2e-6)
        held = np.maximum(drawn, 0)
        np.testing.assert_allclose(one.at(asked, held), two.at(asked, held), atol=4e-6)


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_left_of_a_certain_token_does_not_underflow(width: int) -> None:
    """The likeliest token has all but exp(-200) of the mass: next to it float32 sums show none."""
    scores = torch.zeros(2, width)
    scores[:, 1] = 200.0
    q = TorchWeights(scores).select(np.arange(2))
    q.take_out(np.arange(2), np.array([1, 1]))
    np.testing.assert_allclose(q.log_mass(np.arange(2)), np.log(width - 1) - 200.0, atol=1e-4)
    drawn, *_ = q.draw(np.arange(2), np.arange(2, dtype=np.uint64), GumbelMax())
    assert (drawn >= 0).all() and (drawn != 1).all()
    for token in range(width):
        q.take_out(np.zeros(1, dtype=np.int64), np.array([token]))
    drawn, logs, masses = q.draw(np.arange(2), np.arange(2, dtype=np.uint64), GumbelMax())
    assert drawn[0] == -1 and logs[0] == masses[0] == -np.inf and drawn[1] >= 0


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
@pytest.mark.parametrize("width", WIDTHS)
def test_samplers_draw_the_same(width: int, sampler: Any) -> None:
    laws = [
        TokenLaw(),
        TokenLaw(temperature=0.7),
        TokenLaw(top_k=2),
        TokenLaw(top_p=0.5, target_temperature=1.4),
        TokenLaw(top_k=2, mixture=0.2),
    ] * 8
    rng = np.random.default_rng(width + 1)
    rows = len(laws)
    logits = Logits(made(width, rows)[1])
    allowed = rng.random((6, width)) < np.array([0.05, 0.1, 0.3, 0.5, 0.9, 0.0])[:, None]
    if sampler == AWRS(None):
        allowed[5, :7] = True  # else it rejects every token
    kinds = [Fixed(np.where(one, rng.normal(0, 1, width), -np.inf)) for one in allowed]
    states = [kinds[b % 6] for b in range(rows)]
    keys = rng.integers(0, 2**63, rows).astype(np.uint64)
    ours, theirs = law_weights(logits, laws), host_weights(logits.log_probs(), laws)
    assert (ours.warm is None) == (theirs.warm is None)
    for one, two in ((ours.target, theirs.target), (ours.proposal, theirs.proposal)):
        at = np.arange(rows), two.largest(1)[:, 0]
        np.testing.assert_allclose(one.at(*at), two.at(*at), atol=4e-6)
    got = sampler.draw(ours, states, keys, GumbelMax())
    expected = sampler.draw(theirs, states, keys, GumbelMax())
    assert [p.token for p in got] == [p.token for p in expected]
    assert any(p.token >= 0 for p in got)
    assert any(p.token < 0 for p in got) or sampler == AWRS(None)
    alive = [b for b in range(rows) if got[b].token >= 0]
    np.testing.assert_allclose(
        [got[b].logq for b in alive], [expected[b].logq for b in alive], atol=2e-5
    )


@pytest.fixture
def crossed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the size of every tensor that becomes numbers of Python or numpy."""
    found: list[int] = []

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def method(tensor: Any, *args: Any) -> Any:
            found.append(tensor.numel())
            return real(tensor, *args)

        return method

    for name in ("numpy", "tolist", "item", "__array__"):
        monkeypatch.setattr(torch.Tensor, name, watched(getattr(torch.Tensor, name)))
    return found


@pytest.fixture
def lm(load_file: Callable[[Path], ModuleType], root: Path) -> LanguageModel:
    """A tiny random model with more than one block of ids, most of which no token has."""
    small = load_file(root / "tests" / "lmppl" / "test_torch_lm.py")
    model: LanguageModel = small.Pair("llama", width=1100).lm
    return model


@pytest.mark.parametrize("sampler", (None, *SAMPLERS[:5], TopK(200)), ids=repr)
@pytest.mark.parametrize("settings", ({}, {"temperature": 0.7, "top_k": 5}), ids=["plain", "cut"])
def test_no_row_leaves_the_device(
    lm: LanguageModel,
    crossed: list[int],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    sampler: Any,
) -> None:
    """And the strings and weights are those of rows on the host."""
    short = OnText(lambda text: -0.3 * len(text), lambda text: -0.3 * len(text))

    @program
    def story() -> str:
        law: dict[str, Any] = {"potential": Matches("[a-z ]*") * short, "sampler": sampler}
        return str(sample("story", LM("the cat", max_tokens=5, **law, **settings)))

    engine = SMC(4, resample_at=tokens(2))
    crossed.clear()
    beside = infer(story, engine=engine, lm=lm, seed=5)
    assert crossed and max(crossed) < lm.vocab_size
    monkeypatch.setattr(TorchRows, "weights", Rows.weights)
    crossed.clear()
    host = infer(story, engine=engine, lm=lm, seed=5)
    assert max(crossed) >= lm.vocab_size
    assert [t["story"] for t in beside.traces] == [t["story"] for t in host.traces]
    assert beside.log_weights == pytest.approx(host.log_weights, abs=1e-4)
    assert beside.log_evidence == pytest.approx(host.log_evidence, abs=1e-4)


def test_nan_is_refused() -> None:
    with pytest.raises(LmpplError, match="contain nan"):
        scores = torch.full((1, 7), float("nan"))
        TorchWeights(scores).draw(np.zeros(1, dtype=np.int64), np.zeros(1, np.uint64), GumbelMax())
