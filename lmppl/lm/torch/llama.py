"""The Llama network by itself, for models that are nothing else.

Importing the models of transformers takes longer than loading a small model and drawing its first
token. Llama is most small models' network, and short:

    x ← x + O attention(rotated Q x̂, rotated K x̂, V x̂),    x̂ = x / rms(x) · w
    x ← x + D (silu(G x̂) · U x̂)

The numbers, and the names of the layers, are those of `LlamaForCausalLM`, so weights and adapters
fit. `read` gives None for every folder that says anything which is not known here; transformers then
runs it.

Reference: Touvron et al., LLaMA: open and efficient foundation language models (2023); Su et al.,
RoFormer: enhanced transformer with rotary position embedding (2021).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, scaled_dot_product_attention, silu

from lmppl.lm.torch.attend import ACTIVE, NAME, attend

FIXED: dict[str, tuple[Any, ...]] = {
    "architectures": (["LlamaForCausalLM"],),
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "pretraining_tp": (1,),
    "rope_scaling": (None,),
    "use_cache": (True, False),
}
"""What these settings must be, where they are given."""
SIZES = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "vocab_size",
)
"""What must be given."""
OTHERS = {
    "attention_bias", "attention_dropout", "bos_token_id", "dtype", "eos_token_id", "head_dim",
    "initializer_range", "is_llama_config", "mlp_bias", "pad_token_id", "rope_interleaved",
    "rope_parameters", "rope_theta", "tie_word_embeddings", "torch_dtype", "transformers.js_config",
    "transformers_version",
}  # fmt: skip
"""What is read here, or changes no number."""


class Output(NamedTuple):
    """What a pass gives."""

    logits: Tensor


class Linear(nn.Module):
    """y = W x + b."""

    def __init__(self, weights: dict[str, Tensor], name: str, bias: bool) -> None:
        """Take the matrix, and the bias."""
        super().__init__()
        self.weight = nn.Parameter(weights.pop(f"{name}.weight"), requires_grad=False)
        b = weights.pop(f"{name}.bias") if bias else None
        self.bias = None if b is None else nn.Parameter(b, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """One product."""
        return linear(x, self.weight, self.bias)


class Embedding(nn.Module):
    """Rows of a matrix."""

    def __init__(self, weights: dict[str, Tensor], name: str) -> None:
        """Take the matrix."""
        super().__init__()
        self.weight = nn.Parameter(weights.pop(f"{name}.weight"), requires_grad=False)

    def forward(self, ids: Tensor) -> Tensor:
        """One gather."""
        return embedding(ids, self.weight)


class Norm(nn.Module):
    """x / rms(x) · w, the root mean square in float32."""

    def __init__(self, weights: dict[str, Tensor], name: str, eps: float) -> None:
        """Take w."""
        super().__init__()
        self.weight = nn.Parameter(weights.pop(f"{name}.weight"), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last axis."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(
        self, config: SimpleNamespace, weights: dict[str, Tensor], name: str, layer: int
    ) -> None:
        """Take four matrices."""
        super().__init__()
        self.config, self.layer_idx = config, layer
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            Linear(weights, f"{name}.{part}_proj", config.attention_bias) for part in "qkvo"
        )

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], cache: Any) -> Tensor:
        """Of new tokens [b, Q, hidden], over themselves or the pages of a pass."""
        split = (*x.shape[:-1], -1, self.config.head_dim)
        query, key, value = (
            project(x).view(split).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotated(query, *turn), rotated(key, *turn)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        if self.config._attn_implementation == NAME and ACTIVE.current is not None:
            out, _ = attend(self, query, key, value, None)
        else:
            grouped = query.shape[1] != key.shape[1]
            out = scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=grouped
            )
            out = out.transpose(1, 2)
        return self.o_proj(out.reshape(*x.shape[:-1], -1))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """The gated feed-forward layer."""

    def __init__(self, config: SimpleNamespace, weights: dict[str, Tensor], name: str) -> None:
        """Take three matrices."""
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (
            Linear(weights, f"{name}.{part}_proj", config.mlp_bias)
            for part in ("gate", "up", "down")
        )

    def forward(self, x: Tensor) -> Tensor:
        """D (silu(G x) · U x)."""
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention and feed-forward, each beside the residual."""

    def __init__(self, config: SimpleNamespace, weights: dict[str, Tensor], number: int) -> None:
        """Take the weights of one layer."""
        super().__init__()
        name, eps = f"model.layers.{number}", config.rms_norm_eps
        self.self_attn = Attention(config, weights, f"{name}.self_attn", number)
        self.mlp = MLP(config, weights, f"{name}.mlp")
        self.input_layernorm = Norm(weights, f"{name}.input_layernorm", eps)
        self.post_attention_layernorm = Norm(weights, f"{name}.post_attention_layernorm", eps)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], cache: Any) -> Tensor:
        """x after the layer."""
        x = x + self.self_attn(self.input_layernorm(x), turn, cache)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Stack(nn.Module):
    """Everything below the head."""

    def __init__(self, config: SimpleNamespace, weights: dict[str, Tensor]) -> None:
        """Take the weights of all layers."""
        super().__init__()
        self.embed_tokens = Embedding(weights, "model.embed_tokens")
        self.layers = nn.ModuleList(
            Layer(config, weights, n) for n in range(config.num_hidden_layers)
        )
        self.norm = Norm(weights, "model.norm", config.rms_norm_eps)


class Llama(nn.Module):
    """A causal language model; called as transformers' are.

    Args:
        config: settings by their names in config.json.
        weights: tensors by their names in the files, all of one dtype; emptied.

    Raises:
        KeyError: a tensor is missing.
        ValueError: one is left over.
    """

    def __init__(self, config: SimpleNamespace, weights: dict[str, Tensor]) -> None:
        """Take the weights."""
        super().__init__()
        self.config = config
        self.generation_config: Any = None
        if config.tie_word_embeddings:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        self.model = Stack(config, weights)
        self.lm_head = Linear(weights, "lm_head", bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        if weights:
            raise ValueError(f"no layer for {next(iter(weights))}")
        base, dim = config.rope_parameters["rope_theta"], config.head_dim
        powers = torch.arange(0, dim, 2, dtype=torch.float) / dim
        self.register_buffer("frequencies", 1.0 / (base**powers), persistent=False)

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.lm_head.weight.dtype

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_attn_implementation(self, name: str) -> None:
        """`NAME` for the pages of a pass, any other for the tokens themselves."""
        self.config._attn_implementation = name

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool = False,
        past_key_values: Any = None,
    ) -> Output:
        """Next-token scores of tokens [b, Q]; nothing is masked but what is to come.

        `past_key_values` takes what `torch/attend` calls a cache, never one of transformers.
        """
        if use_cache and past_key_values is None:
            raise NotImplementedError("this network has no cache of its own")
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        x = self.model.embed_tokens(input_ids)
        angles = position_ids[..., None].float() * self.get_buffer("frequencies")
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        turn = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in self.model.layers:
            x = layer(x, turn, past_key_values)
        return Output(self.lm_head(self.model.norm(x)))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair (x_i, x_{i + d/2}) of [b, heads, Q, d], turned by the angle of its position."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


def settings(config: Mapping[str, Any]) -> SimpleNamespace | None:
    """The settings of a config.json that describes this network and no other; else None."""
    known = {*FIXED, *SIZES, *OTHERS}
    if not (set(SIZES) | {"architectures", "model_type"} <= set(config) <= known):
        return None
    if not all(isinstance(config[name], (int, float)) for name in SIZES):
        return None
    if any(config.get(name, values[0]) not in values for name, values in FIXED.items()):
        return None
    rope = dict(config.get("rope_parameters") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    if rope.setdefault("rope_type", "default") != "default" or len(rope) > 2:
        return None
    if config.get("rope_interleaved"):
        return None
    found = SimpleNamespace(**config, _attn_implementation="sdpa")
    found.rope_parameters = rope
    found.head_dim = config.get("head_dim") or found.hidden_size // found.num_attention_heads
    for name in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
        setattr(found, name, bool(config.get(name, False)))
    return found


def read(folder: Path, dtype: torch.dtype) -> Llama | None:
    """The model of a folder, or None where it is for transformers to read, or to refuse."""
    try:
        config = settings(json.loads((folder / "config.json").read_text("utf-8")))
        if config is None:
            return None
        from safetensors.torch import load_file

        weights: dict[str, Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            weights |= load_file(file)
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
        model = Llama(config, weights)
    except Exception:  # damaged files raise whatever their parser raises; transformers says why
        return None
    generation = folder / "generation_config.json"
    if generation.is_file():
        model.generation_config = SimpleNamespace(**json.loads(generation.read_text("utf-8")))
    return model
