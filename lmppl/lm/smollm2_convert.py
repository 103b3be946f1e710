"""The GGUF file of SmolLM2 as a folder that transformers loads: float32 safetensors + tokenizer.

Only what this one file needs: a Llama with tied embeddings, a byte-level BPE vocabulary. Blocks of
4-bit weights (Q4_1: w = scale · q + minimum) become the float32 numbers they stand for.

Two things are easy to get wrong and are pinned by the golden values of `tests/lmppl/test_smollm2`:
GGUF stores the rows of the query and key projections in interleaved order, while transformers
rotates halves; and the vocabulary was trained with every digit apart, which the file only names
("smollm") and does not spell out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
CONTROL = 3
"""The token type of control tokens in GGUF."""


def convert(gguf: Path, out: Path) -> None:
    """Read `gguf` and write config, weights, tokenizer and chat template to the folder `out`."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = GGUFReader(str(gguf))
    facts = {name: field.contents() for name, field in reader.fields.items()}
    heads = {
        "attn_q": int(facts["llama.attention.head_count"]),
        "attn_k": int(facts["llama.attention.head_count_kv"]),
    }
    weights: dict[str, Array] = {}
    for tensor in reader.tensors:
        array = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        name, part = _rename(str(tensor.name))
        weights[name] = _deinterleave(array, heads[part]) if part in heads else array
    _save_model(facts, weights, out)
    _save_tokenizer(facts, out)


def _rename(name: str) -> tuple[str, str]:
    """The transformers name of a GGUF tensor, and its part of the layer."""
    stem = name.removesuffix(".weight")
    if stem in WHOLE:
        return f"{WHOLE[stem]}.weight", stem
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{LAYER[part]}.weight", part


def _deinterleave(array: Array, heads: int) -> Array:
    """Rows (2i, 2i + 1) of each head go to (i, i + d/2): the pairs that are rotated together."""
    rows, columns = array.shape
    cube = array.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(cube.swapaxes(1, 2).reshape(rows, columns))


def _save_model(facts: dict[str, Any], weights: dict[str, Array], out: Path) -> None:
    import transformers
    from safetensors.numpy import save_file

    hf: Any = transformers

    special: dict[str, Any] = {
        "bos_token_id": int(facts["tokenizer.ggml.bos_token_id"]),
        "eos_token_id": int(facts["tokenizer.ggml.eos_token_id"]),
        "pad_token_id": int(facts["tokenizer.ggml.padding_token_id"]),
    }
    config = hf.LlamaConfig(
        vocab_size=int(facts["llama.vocab_size"]),
        hidden_size=int(facts["llama.embedding_length"]),
        intermediate_size=int(facts["llama.feed_forward_length"]),
        num_hidden_layers=int(facts["llama.block_count"]),
        num_attention_heads=int(facts["llama.attention.head_count"]),
        num_key_value_heads=int(facts["llama.attention.head_count_kv"]),
        max_position_embeddings=int(facts["llama.context_length"]),
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": float(facts["llama.rope.freq_base"]),
        },
        tie_word_embeddings=True,
        dtype="float32",
        architectures=["LlamaForCausalLM"],
        **special,
    )
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    config.save_pretrained(str(out))
    hf.GenerationConfig(**special).save_pretrained(str(out))


def _save_tokenizer(facts: dict[str, Any], out: Path) -> None:
    import transformers
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    hf: Any = transformers

    tokens = [str(t) for t in facts["tokenizer.ggml.tokens"]]
    pairs = (str(m).partition(" ") for m in facts["tokenizer.ggml.merges"])
    merges = [(left, right) for left, _, right in pairs]
    bpe = models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = [int(k) for k in facts["tokenizer.ggml.token_type"]]
    control = [t for t, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[facts["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[facts["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[facts["tokenizer.ggml.padding_token_id"]],
        unk_token=tokens[facts["tokenizer.ggml.unknown_token_id"]],
        model_max_length=int(facts["llama.context_length"]),
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = str(facts["tokenizer.chat_template"])
    fast.save_pretrained(str(out))
