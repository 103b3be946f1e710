"""LoRA adapters by name: the law of the adapted model, its own cache, its own line in the ledger."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402

from lmppl import LM, Choice, observe, program, sample  # noqa: E402
from lmppl.errors import BadArgument, CorruptModel  # noqa: E402
from lmppl.inference import SMC, infer  # noqa: E402
from lmppl.lm.load import load  # noqa: E402
from lmppl.lm.torch import TorchLM  # noqa: E402

LAYERS = {
    "llama": ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"],
    "gpt2": ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_fc"],
}


def shape_of(model: Any, layer: str) -> tuple[int, int]:
    """(out, in) of a layer; GPT-2 stores the transpose."""
    module = model.get_submodule(layer)
    a, b = module.weight.shape
    return (a, b) if isinstance(module, torch.nn.Linear) else (b, a)


def write(folder: Path, model: Any, layers: list[str], seed: int, **settings: Any) -> Path:
    """A random adapter of rank 2 as PEFT saves it."""
    folder.mkdir()
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in layers:
        out, inner = shape_of(model, layer)
        key = f"base_model.model.{layer}.lora"
        tensors[f"{key}_A.weight"] = torch.randn(2, inner, generator=rng)
        tensors[f"{key}_B.weight"] = torch.randn(out, 2, generator=rng)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 1, "bias": "none", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def merged(model: Any, folder: Path, scale: float) -> Any:
    """A copy of a model with the adapter added to its weights: the reference."""
    from safetensors.torch import load_file

    out = copy.deepcopy(model)
    tensors = load_file(folder / "adapter_model.safetensors")
    for key in tensors:
        if key.endswith("_A.weight"):
            layer = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            change = scale * tensors[key.replace("_A.", "_B.")] @ tensors[key]
            module = out.get_submodule(layer)
            with torch.no_grad():
                module.weight += change if isinstance(module, torch.nn.Linear) else change.T
    return out


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("rank_stable", [False, True])
def test_rows_are_those_of_merged_weights(
    small: ModuleType, tmp_path: Path, kind: str, rank_stable: bool
) -> None:
    plain = small.make_model(kind)
    layers = LAYERS[kind]
    one = write(tmp_path / "one", plain, layers, 1, use_rslora=rank_stable)
    two = write(tmp_path / "two", plain, layers[:1], 2)
    lm = TorchLM(copy.deepcopy(plain), small.make_tokenizer(), adapters={"one": one, "two": two})
    scale = 1 / 2**0.5 if rank_stable else 1 / 2
    expected = {
        "default": plain,
        "one": merged(plain, one, scale),
        "two": merged(plain, two, 1 / 2),
    }
    rng = np.random.default_rng(0)
    contexts = [small.some_ids(rng, n) for n in (40, 3, 12)]
    models = lm.with_adapters()
    gaps = {}
    for name in ("default", "one", "two", "default", "one"):
        pair = small.Pair.__new__(small.Pair)
        pair.plain, pair.lm = expected[name], models[name]
        rows = models[name].open(contexts)
        pair.check(rows, contexts)
        rows.push(np.array([5, 6, 7]))
        grown = [(*c, t) for c, t in zip(contexts, (5, 6, 7), strict=True)]
        pair.check(rows, grown)
        rows.close()
        gaps[name] = pair.rows(contexts)[0][5]
    assert len({round(g, 3) for g in gaps.values()}) == 3, "three different laws"
    assert len({m.fingerprint for m in models.values()}) == 3


def test_alpha_by_layer(small: ModuleType, tmp_path: Path) -> None:
    plain = small.make_model("llama")
    folder = write(
        tmp_path / "a", plain, LAYERS["llama"][:1], 3, lora_alpha=9, alpha_pattern={"q_proj": 4}
    )
    lm = TorchLM(copy.deepcopy(plain), small.make_tokenizer(), adapters={"a": folder})
    pair = small.Pair.__new__(small.Pair)
    pair.plain, pair.lm = merged(plain, folder, 4 / 2), lm.adapter("a")
    context = (5, 6, 7, 8)
    pair.check(pair.lm.open([context]), [context])


def test_a_program_with_a_model_and_its_adapter(small: ModuleType, tmp_path: Path) -> None:
    """Proposer and judge over one copy of the weights: a ledger line each, one model's cache each."""
    plain = small.make_model("llama")
    folder = write(tmp_path / "judge", plain, LAYERS["llama"], 4)
    lm = TorchLM(plain, small.make_tokenizer(), name="tiny", adapters={"judge": folder})

    @program
    def judged() -> str:
        answer = sample("answer", LM("the cat", max_tokens=3))
        observe("verdict", Choice(f"the{answer} is", [" a", " b"], lm="judge"), " a")
        return str(answer)

    models = lm.with_adapters()
    found = infer(judged, engine=SMC(6), lm=models, seed=0)
    assert sorted(found.ledger.models) == ["tiny", "tiny+judge"]
    assert found.ledger.models["tiny"].tokens_out > 0
    assert found.ledger.models["tiny+judge"].calls == 12
    assert models["default"].usage.computed_tokens > 0 < models["judge"].usage.computed_tokens
    again = infer(judged, engine=SMC(6), lm=lm.with_adapters(), seed=0)
    assert again.marginal() == found.marginal()


def test_loaded_by_path(small: ModuleType, tmp_path: Path) -> None:
    plain = small.make_model("llama")
    plain.save_pretrained(tmp_path / "m")
    small.make_tokenizer().save_pretrained(tmp_path / "m")
    folder = write(tmp_path / "a", plain, LAYERS["llama"], 5)
    lm: Any = load(str(tmp_path / "m"), device="cpu", adapters={"a": str(folder)})
    assert lm.adapter("a").name == "m+a"
    with pytest.raises(BadArgument, match="no adapter 'b'"):
        lm.adapter("b")


WRONG: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "bias": {"bias": "all"},
    "saved": {"modules_to_save": ["lm_head"]},
    "other": {"peft_type": "IA3"},
}


@pytest.mark.parametrize("name", [*WRONG, "pickled", "damaged", "layer", "size", "config"])
def test_what_is_no_plain_adapter_is_refused(small: ModuleType, tmp_path: Path, name: str) -> None:
    plain = small.make_model("llama")
    folder = write(tmp_path / "a", plain, LAYERS["llama"], 6, **WRONG.get(name, {}))
    weights = folder / "adapter_model.safetensors"
    if name == "pickled":
        weights.rename(folder / "adapter_model.bin")
    elif name == "damaged":
        weights.write_bytes(weights.read_bytes()[:40])
    elif name == "config":
        (folder / "adapter_config.json").write_text("{")
    elif name in ("layer", "size"):
        layer = "model.layers.9.mlp.up_proj" if name == "layer" else LAYERS["llama"][0]
        wide = torch.zeros(2, 7)
        save_file(
            {
                f"base_model.model.{layer}.lora_A.weight": wide,
                f"base_model.model.{layer}.lora_B.weight": torch.zeros(32, 2),
            },
            weights,
        )
    with pytest.raises(CorruptModel, match="adapter 'a'"):
        TorchLM(plain, small.make_tokenizer(), adapters={"a": folder})
