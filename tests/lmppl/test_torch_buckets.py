"""Steps in padded shapes: the same rows, whatever a batch has been through; nothing a graph forbids.

No GPU is here. What a captured graph would replay runs on the CPU as it is, under the same schedules
as the paged cache; and a step is watched for what stops a capture: values that the host looks at.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from lmppl import LM, program, sample  # noqa: E402
from lmppl.errors import CapabilityError  # noqa: E402
from lmppl.inference import SMC, infer, tokens  # noqa: E402
from lmppl.lm.torch.buckets import Buckets, bucket  # noqa: E402
from lmppl.lm.torch.tidy import fill  # noqa: E402

KINDS = ("llama", "gpt2", "mistral")


@program
def story() -> str:
    """A string that is resampled inside."""
    return str(sample("story", LM("the cat", max_tokens=6)))


def watch_fills(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by the rows of each workspace that is filled from pages."""
    filled: list[int] = []

    def watched(pages: Any, columns: Any, rows: Any) -> None:
        filled.append(len(rows))
        fill(pages, columns, rows)

    monkeypatch.setattr("lmppl.lm.torch.buckets.fill", watched)
    return filled


@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        pytest.param(kind, seed, marks=[pytest.mark.slow] * (seed > 1), id=f"{kind}-{seed}")
        for kind in KINDS
        for seed in range(12)
    ],
)
def test_random_schedules(
    small: ModuleType, paged: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str, seed: int
) -> None:
    pair = small.Pair(kind, kv_bytes=(1 << 30, 6_000_000)[seed % 2], buckets=True)
    filled = watch_fills(monkeypatch)
    paged.live(pair.lm, pair.plain, seed, moves=12, most=14, longest=80)
    assert filled  # the schedule did step in workspaces


def test_draws_are_those_without_buckets_and_of_deterministic_rows(small: ModuleType) -> None:
    """Keyed draws differ at near ties alone: 2 x 24 strings of 6 tokens have none."""
    engine = SMC(24, resample_at=tokens(2))
    found = [
        infer(story, engine=engine, lm=small.Pair("llama", **options).lm, seed=3)
        for options in ({"buckets": True}, {"buckets": False}, {"deterministic": True})
    ]
    texts = [[t["story"] for t in post.traces] for post in found]
    assert texts[0] == texts[1] == texts[2]
    assert found[0].log_evidence == pytest.approx(found[1].log_evidence, abs=1e-4)


def test_a_workspace_is_filled_once_per_batch_and_again_after_a_fork(
    small: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = small.Pair("llama", buckets=True).lm
    filled = watch_fills(monkeypatch)
    rows = lm.open([tuple(range(3, 12))] * 5)

    def step(count: int) -> None:
        for _ in range(count):
            rows.push(np.full(len(rows), 7))
            rows.log_mass([(5,)] * len(rows), [1.0] * len(rows))

    step(6)
    assert filled == [5]
    rows.select(np.array([0, 0, 1, 3, 4]))
    step(4)
    assert filled == [5, 5]
    rows.select(np.array([0, 1, 2]))  # another bucket of rows
    step(2)
    assert filled == [5, 5, 3]


def test_a_budget_bounds_the_workspaces(small: ModuleType) -> None:
    lm = small.Pair("llama", buckets=True).lm
    buckets = lm.network.buckets
    one = bucket(5, 4) * bucket(10, 64) * lm.network.layout.token_bytes
    lm.network.buckets = few = Buckets(buckets.compute, buckets.layout, one)
    for count in (5, 3, 5, 30):
        rows = lm.open([tuple(range(3, 12))] * count)
        rows.push(np.full(count, 7))
        expected = rows.log_probs()  # 30 rows exceed the budget: a plain step
        assert len(few) == 1
        lm.clear_cache()
        lm.network.buckets = None
        plain = lm.open([(*range(3, 12), 7)] * count).log_probs()
        lm.network.buckets = few
        finite = np.isfinite(plain)
        assert np.abs(expected[finite] - plain[finite]).max() < 1e-4


def test_an_adapter_has_workspaces_of_its_own(small: ModuleType) -> None:
    network = small.Pair("llama", buckets=True).lm.network
    twin = network.twin()
    assert twin.buckets is not network.buckets and twin.usage is not network.usage
    assert twin.buckets.budget == network.buckets.budget and twin.model is network.model


def test_only_passes_over_pages_are_padded(small: ModuleType) -> None:
    assert small.Pair("llama").lm.network.buckets is None  # "auto", without a GPU
    with pytest.raises(CapabilityError, match="cannot be padded"):
        small.Pair("mamba", buckets=True)
    with pytest.raises(CapabilityError, match="cannot be padded"):
        small.Pair("llama", buckets=True, deterministic=True)


class NoHost(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what a capture would: the host reads a value, or a shape depends on one."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.name().partition("::")[2].partition(".")[0].lstrip("_")
        if name in {f.lstrip("_") for f in self.FORBIDDEN}:
            raise RuntimeError(f"a captured step may not call {func.name()}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_the_host_looks_at_no_value_inside_a_step(
    small: ModuleType, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = small.Pair(kind, buckets=True).lm
    buckets, real = lm.network.buckets, lm.network.buckets.compute
    steps = []

    def watched(current: Any, ids: Any) -> Any:
        steps.append(tuple(ids.shape))
        with NoHost():  # type: ignore[no-untyped-call]
            return real(current, ids)

    monkeypatch.setattr(buckets, "compute", watched)
    rows = lm.open([(5, 6, 7), (8, 9)])
    for _ in range(2):
        rows.push(np.array([4, 5]))
        rows.log_probs()
    assert steps == [(4, 1), (4, 1)]
    with pytest.raises(RuntimeError, match="local_scalar"), NoHost():  # type: ignore[no-untyped-call]
        torch.ones(1).item()
