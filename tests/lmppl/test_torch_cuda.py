"""`TorchLM` on a GPU: the numbers of the CPU, graphs that replay, one wait per token.

The rest of the tests of `TorchLM` say what is right, on the CPU; these say that a GPU does the same,
in float32, where only the order of sums differs. They are skipped on a machine without one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
if not torch.cuda.is_available():
    pytest.skip("this machine has no CUDA device", allow_module_level=True)

from lmppl import LM, factor, program, sample  # noqa: E402
from lmppl.inference import SMC, Importance, infer, tokens  # noqa: E402
from lmppl.lm.base import TokenLaw  # noqa: E402
from lmppl.lm.torch import TorchLM  # noqa: E402
from lmppl.lm.torch.draw import Logits  # noqa: E402
from lmppl.lm.torch.noise import gumbels, uniforms  # noqa: E402
from lmppl.lm.torch.weights import law_weights  # noqa: E402
from lmppl.random import Argmax, GumbelMax, fold_array  # noqa: E402
from lmppl.random import uniforms as host_uniforms  # noqa: E402
from lmppl.token_potentials import AWRS, Exact, Matches, TopK  # noqa: E402

KINDS = ("llama", "gpt2", "mistral")
LAWS = (
    TokenLaw(),
    TokenLaw(temperature=0.7),
    TokenLaw(temperature=0.7, target_temperature=0.7),
    TokenLaw(top_k=5),
    TokenLaw(top_p=0.6, temperature=1.3),
    TokenLaw(top_k=40, top_p=0.9, mixture=0.1),
    TokenLaw(top_k=3, mixture=1.0),
)


@pytest.fixture
def llama(
    load_file: Callable[[Path], ModuleType], root: Path, small: ModuleType, tmp_path: Path
) -> Callable[..., tuple[TorchLM, Any]]:
    """A random Llama on the GPU by our own network and kernels, and that of transformers on the CPU."""
    files = load_file(root / "tests" / "lmppl" / "test_torch_llama.py")

    def make(dtype: str = "float32", **options: Any) -> tuple[TorchLM, Any]:
        shape = {"num_key_value_heads": 2, "head_dim": 16, "attention_bias": True}
        plain = files.save(tmp_path, **shape)
        small.make_tokenizer().save_pretrained(tmp_path)
        return TorchLM.load(tmp_path, device="cuda", dtype=dtype, **options), plain

    return make


@program
def story() -> str:
    """A string that is resampled inside."""
    return str(sample("story", LM("the cat", max_tokens=8)))


@program
def weighed() -> str:
    """Two strings, the first one weighed."""
    first = str(sample("first", LM("the", max_tokens=5)))
    factor("short", -0.1 * len(first))
    return str(sample("second", LM(f"a {first} the", max_tokens=5, temperature=0.8)))


def test_noise_has_the_bits_of_numpy() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 1 << 64, 64, dtype=np.uint64)
    counters = np.arange(300, dtype=np.uint64)
    on_device = torch.from_numpy(keys.view(np.int64)).cuda()[:, None]
    numbers = torch.arange(300, device="cuda")
    found = uniforms(on_device, numbers).cpu().numpy()
    expected = host_uniforms(keys[:, None], counters)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(
        gumbels(on_device, numbers).cpu().numpy(), -np.log(-np.log(expected)), atol=1e-13
    )


@pytest.mark.parametrize("width", (262, 5000))
@pytest.mark.parametrize("masked", (False, True))
def test_draws_and_weights_of_every_law(width: int, masked: bool) -> None:
    rng = np.random.default_rng(width)
    rows = 4 * len(LAWS)
    scores = rng.normal(0, 3, (rows, width)).astype(np.float32)
    scores[:, 3] = -np.inf
    laws = list(LAWS) * 4
    mask = rng.random((rows, width)) < 0.3 if masked else None
    keys = rng.integers(0, 1 << 64, rows, dtype=np.uint64)
    tilt = rng.normal(0, 1, (2, width))
    which = rng.integers(0, 2, rows)
    for chance in (GumbelMax(), Argmax()):
        pair = [Logits(torch.from_numpy(scores)), Logits(torch.from_numpy(scores).cuda())]
        every = np.arange(rows)
        tilted = [law_weights(one, laws).proposal.tilted(every, tilt, which) for one in pair]
        for ours in (
            [one.draw(keys, laws, mask, chance) for one in pair],
            [one.draw(every, keys, chance) for one in tilted],
        ):
            np.testing.assert_array_equal(ours[0][0], ours[1][0])
            np.testing.assert_allclose(ours[0][1], ours[1][1], atol=1e-5)
            np.testing.assert_allclose(ours[0][2], ours[1][2], atol=1e-5)
        sets = [(1, 2, 9)] * rows
        mass = [one.log_mass(sets, [law.temperature for law in laws]) for one in pair]
        np.testing.assert_allclose(mass[0], mass[1], atol=1e-5)


@pytest.mark.parametrize("buckets", (False, True))
@pytest.mark.parametrize("kind", (*KINDS, "mamba"))
@pytest.mark.parametrize("seed", range(3))
def test_random_schedules(
    small: ModuleType, paged: ModuleType, kind: str, seed: int, buckets: bool
) -> None:
    """Every row after every move, against uncached passes on the CPU."""
    if kind == "mamba" and buckets:
        pytest.skip("its steps cannot be padded")
    pair = small.Pair(kind, device="cuda", kv_bytes=(1 << 30, 6_000_000, 0)[seed], buckets=buckets)
    expected = "native" if kind == "mamba" else "slots"
    assert pair.lm.network.engine == expected, pair.lm.network.reasons
    if buckets:
        pair.lm.network.buckets.budget = 1 << 30
    paged.live(pair.lm, pair.plain, seed, moves=12, most=14, longest=80)


@pytest.mark.parametrize("busy", (1, 4096), ids=["whole", "split"])
@pytest.mark.parametrize("seed", range(4))
def test_random_schedules_by_our_kernels(
    llama: Callable[..., tuple[TorchLM, Any]],
    paged: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    busy: int,
) -> None:
    """With the slots of a row read by one program, and split among several."""
    from lmppl.lm.torch import fused

    monkeypatch.setattr(fused, "BUSY", busy)
    lm, plain = llama()
    assert lm.network.fused is not None, lm.network.reasons
    paged.live(lm, plain, seed, moves=40, most=14, longest=80)
    assert len(lm.network.fused.steps) > 1


def test_our_kernels_in_half_precision(llama: Callable[..., tuple[TorchLM, Any]]) -> None:
    lm, _ = llama("bfloat16")
    assert lm.network.fused is not None, lm.network.reasons
    assert lm.self_check("the cat sat")["scoring"] <= 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_is_captured_when_a_model_is_loaded(small: ModuleType, kind: str) -> None:
    lm = small.Pair(kind, device="cuda").lm
    assert lm.network.buckets is not None, lm.network.reasons
    assert len(lm.network.buckets) == 1


@pytest.mark.parametrize("asked", (story, weighed), ids=("story", "weighed"))
@pytest.mark.parametrize("buckets", (False, True))
def test_strings_are_those_of_the_cpu(small: ModuleType, asked: Any, buckets: bool) -> None:
    """Keyed draws differ at near ties alone: 2 x 24 strings of up to 10 tokens have none."""
    engine = SMC(24, resample_at=tokens(2))
    found = [
        infer(asked, engine=engine, lm=small.Pair("llama", **options).lm, seed=3)
        for options in ({}, {"device": "cuda", "buckets": buckets})
    ]
    assert [t.result for t in found[0].traces] == [t.result for t in found[1].traces]
    assert found[0].log_evidence == pytest.approx(found[1].log_evidence, abs=1e-4)


@pytest.mark.parametrize("sampler", (Exact(), AWRS(), TopK(200)), ids=lambda s: type(s).__name__)
def test_potentials_weigh_beside_the_logits(small: ModuleType, sampler: Any) -> None:
    @program
    def letters() -> str:
        law = LM("the", max_tokens=5, potential=Matches("[a-m]+"), sampler=sampler)
        return str(sample("word", law))

    found = [
        infer(
            letters, engine=SMC(16, resample_at=tokens(1)), lm=small.Pair("llama", **o).lm, seed=1
        )
        for o in ({}, {"device": "cuda"})
    ]
    assert [t["word"] for t in found[0].traces] == [t["word"] for t in found[1].traces]
    np.testing.assert_allclose(found[0].log_weights, found[1].log_weights, atol=1e-4)


def test_a_queue_that_does_not_fit(small: ModuleType) -> None:
    """Memory for a few strings: the others wait, join, and draw what they would have drawn."""
    few = small.Pair("llama", device="cuda", kv_bytes=20_000).lm
    many = small.Pair("llama", device="cuda").lm
    found = [infer(story, engine=Importance(40), lm=lm, seed=0) for lm in (few, many)]
    assert [t["story"] for t in found[0].traces] == [t["story"] for t in found[1].traces]
    assert few.usage.passes > many.usage.passes


@pytest.mark.parametrize("ours", (False, True), ids=["workspaces", "kernels"])
def test_a_token_waits_once(
    small: ModuleType, llama: Callable[..., tuple[TorchLM, Any]], ours: bool
) -> None:
    """One wait for the device per token: the three numbers of each row that come back."""
    lm: TorchLM = small.Pair("llama", 5000, device="cuda").lm
    if ours:
        lm, _ = llama()
    rows = lm.open([tuple(range(3, 12))] * 6)
    keys, laws = np.arange(6, dtype=np.uint64), [TokenLaw()] * 6
    drawn = rows.draw(keys, laws, None, GumbelMax())
    waits = []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        for step in range(1, 5):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                rows.push(drawn.tokens)
                drawn = rows.draw(fold_array(keys, step), laws, None, GumbelMax())
            waits.append(sum("synchroniz" in str(w.message) for w in caught))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert waits[-3:] == [1, 1, 1]


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision_says_how_far_off_it_is(small: ModuleType, dtype: Any) -> None:
    model = small.make_model("llama").to(dtype).to("cuda")
    lm = TorchLM(model, small.make_tokenizer(), name="half")
    assert lm.dtype == dtype and lm.network.engine == "slots"
    found = lm.self_check("the cat sat")
    assert 0.0 <= found["scoring"] <= 0.2 and found["batch"] == lm.batch_gap or found["batch"] < 0.2
    post = infer(story, engine=SMC(12, resample_at=tokens(1)), lm=lm, seed=0)
    assert len(post.traces) == 12 and np.isfinite(post.log_evidence)
