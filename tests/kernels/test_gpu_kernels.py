"""The GPU kernels without a GPU: Triton's interpreter runs them on the CPU, number by number.

`make test-kernels` installs Triton beside the environment and runs this. What it cannot say is how
fast they are, and whether they compile: `tests/lmppl/test_torch_cuda.py` asks that of a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by `make test-kernels`", allow_module_level=True)

import torch

from lmppl.lm.torch import TorchLM, check, fused, kernels, noise
from lmppl.lm.torch.draw import normalise
from lmppl.lm.torch.noise import block_masses, gumbel_max
from lmppl.random import GumbelMax

pytestmark = pytest.mark.filterwarnings("ignore:divide by zero", "ignore:overflow encountered")
"""numpy warns of what the device computes without a word: log 0, and products that wrap."""


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are taken to run here."""
    for module in (check, noise):
        monkeypatch.setattr(module, "kernels_of", lambda device: kernels)


@pytest.fixture
def made(load_file: Callable[[Path], ModuleType], root: Path, tmp_path: Path) -> tuple[Path, Any]:
    """The folder of a random Llama, and that of transformers in memory."""
    files = load_file(root / "tests" / "lmppl" / "test_torch_llama.py")
    small = load_file(root / "tests" / "lmppl" / "test_torch_lm.py")
    plain = files.save(tmp_path, num_key_value_heads=2, head_dim=16, attention_bias=True)
    small.make_tokenizer().save_pretrained(tmp_path)
    return tmp_path, plain


def scores(width: int) -> Any:
    """Rows with forbidden ids, and a dead one."""
    x = torch.from_numpy(np.random.default_rng(width).normal(0, 3, (5, width)).astype(np.float32))
    x[:, 3] = -torch.inf
    x[2] = -torch.inf
    return x


@pytest.mark.parametrize("width", (1100, 1536))
def test_a_draw(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """The tokens of numpy's draw, from masses of blocks that agree with torch's."""
    x = scores(width)
    keys = np.random.default_rng(1).integers(0, 1 << 64, 5, dtype=np.uint64)
    plain = block_masses(x)
    expected = gumbel_max(keys, x, plain)
    host = GumbelMax().categorical(keys[[0, 1, 3, 4]], x[[0, 1, 3, 4]].double().numpy())
    monkeypatch.setattr(noise, "kernels_of", lambda device: kernels)
    ours = block_masses(x)
    torch.testing.assert_close(ours, plain, atol=2e-6, rtol=0.0)
    assert bool((ours[2] == -torch.inf).all()) and float(normalise(x).log_total[2]) == -torch.inf
    found = gumbel_max(keys, x, ours)
    assert found.tolist() == expected.tolist()
    assert found[[0, 1, 3, 4]].tolist() == host.tolist()
    some = torch.tensor([4, 0, 0])
    picked = gumbel_max(keys[:3], x, ours.index_select(0, some), some)
    assert picked.tolist() == gumbel_max(keys[:3], x[some], ours[some]).tolist()


def test_the_pieces_of_a_layer() -> None:
    rng = torch.Generator().manual_seed(0)
    x, more = (torch.randn(4, 20, generator=rng) for _ in range(2))
    weight, out = torch.randn(20, generator=rng), torch.zeros(4, 20)
    total = x + more
    norm = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + 1e-5) * weight
    kernels.add_norm[(4,)](x, more, weight, out, 1e-5, 20, ADD=True, SIZE=32)
    torch.testing.assert_close(out, norm)
    torch.testing.assert_close(x, total)  # in place
    both = torch.randn(4, 40, generator=rng)
    kernels.gate[(4, 2)](both, out, 20, SIZE=16)
    torch.testing.assert_close(out, torch.nn.functional.silu(both[:, :20]) * both[:, 20:])


@pytest.mark.parametrize("busy", (1, 4096), ids=["whole", "split"])
@pytest.mark.parametrize("seed", range(3))
def test_random_schedules(
    made: tuple[Path, Any],
    on_cpu: None,
    monkeypatch: pytest.MonkeyPatch,
    load_file: Callable[[Path], ModuleType],
    root: Path,
    seed: int,
    busy: int,
) -> None:
    """Forks, resamplings, joins and steps: every row is that of an uncached pass."""
    monkeypatch.setattr(fused, "BUSY", busy)
    lm = TorchLM.load(made[0], device="cpu", buckets=True)
    assert lm.network.fused is not None, lm.network.reasons
    steps = []
    real = fused.FusedLlama.step

    def counted(self: Any, block: Any, tokens: Any) -> Any:
        out = real(self, block, tokens)
        steps.append(out is not None)
        return out

    monkeypatch.setattr(fused.FusedLlama, "step", counted)
    paged = load_file(root / "tests" / "lmppl" / "test_torch_paged.py")
    paged.live(lm, made[1], seed, moves=20, most=6, longest=48)
    assert sum(steps) > 2


@pytest.mark.parametrize("broken", ("merge", "rotate_store", "gate"))
def test_kernels_that_compute_something_else_are_not_used(
    made: tuple[Path, Any], on_cpu: None, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Two steps are compared when a model is loaded; a kernel that does nothing is found out."""

    class Nothing:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *args, **options: None

    monkeypatch.setattr(kernels, broken, Nothing())
    lm = TorchLM.load(made[0], device="cpu", buckets=True)
    assert lm.network.fused is None and lm.network.buckets is not None
    assert any(
        reason.startswith("fused: log-probabilities differ") for reason in lm.network.reasons
    )


def test_large_batches_and_scattered_ones_step_in_other_ways(
    made: tuple[Path, Any], on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = TorchLM.load(made[0], device="cpu", buckets=True)
    rows = lm.open([(5, 6, 7), (8, 9)])
    block: Any = rows.block
    ours: Any = lm.network.fused
    tokens = np.array([4, 4])
    ours.most = 1
    assert ours.step(block, tokens) is None
    ours.most = 64
    monkeypatch.setattr(fused, "MOST", len(block.columns))
    assert ours.step(block, tokens) is None
    assert block.lens.tolist() == [3, 2]
