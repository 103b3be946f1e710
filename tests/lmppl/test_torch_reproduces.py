"""Which differences between two ways of computing scores are rounding, and which are mistakes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from lmppl.lm import smollm2  # noqa: E402
from lmppl.lm.torch import TorchLM  # noqa: E402
from lmppl.lm.torch.llama import read  # noqa: E402
from lmppl.lm.torch.reproduces import different  # noqa: E402


def test_float32_is_held_to_rounding() -> None:
    scores = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    assert different(scores, scores + 7.0, torch.float32) is None  # a constant is no difference
    assert different(scores, scores + 1e-5 * scores, torch.float32) is None
    off = scores.clone()
    off[2, 17] += 0.01
    assert "differ by" in str(different(scores, off, torch.float32))
    assert different(scores, off, torch.bfloat16) is None
    assert "nan" in str(different(scores, torch.full_like(scores, torch.nan), torch.bfloat16))


@pytest.mark.slow
@pytest.mark.model
def test_half_precision_of_smollm2() -> None:
    """Untouched passes of other lengths are one law; a step that misses a token is another."""
    model = read(smollm2.locate().path, torch.bfloat16)
    assert model is not None
    ids = [(7919 * i + 11) % 49152 for i in range(12)]
    with torch.inference_mode():
        whole = model(torch.tensor([ids])).logits[0, 2:]
        alone = torch.stack(
            [model(torch.tensor([ids[: n + 1]])).logits[0, -1] for n in range(2, 12)]
        )
        missed = torch.stack(
            [
                model(torch.tensor([ids[: n - 1] + ids[n : n + 1]])).logits[0, -1]
                for n in range(2, 12)
            ]
        )
    assert different(whole, alone, torch.bfloat16) is None
    assert different(whole, alone, torch.float32) is not None
    assert different(whole, whole.roll(1, 0), torch.bfloat16) is not None
    assert different(whole, missed, torch.bfloat16) is not None


@pytest.mark.slow
@pytest.mark.model
def test_smollm2_runs_over_pages_in_bfloat16() -> None:
    """As on a GPU by default; it was once taken to be irreproducible, and ran without a cache."""
    lm = TorchLM.load(smollm2.locate().path, device="cpu", dtype="bfloat16", buckets=True)
    assert lm.network.engine == "slots" and lm.network.buckets is not None
    assert lm.self_check()["scoring"] < 0.2
