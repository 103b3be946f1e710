"""LoRA adapters: a folder of low-rank changes to the linear layers of a model.

    y = W x + s B A x,      A [r, in], B [out, r], s = alpha / r   (alpha / √r with use_rslora)

The weights of the model are not touched: a hook on each changed layer adds the second term while
the adapter is active, so one copy of the weights serves a model and any number of its adapters.
Folders are those that PEFT writes (`adapter_config.json`, `adapter_model.safetensors`).

Reference: Hu et al., LoRA: low-rank adaptation of large language models (2021); Kalajdzievski, A
rank stabilization scaling factor for fine-tuning with LoRA (2023).
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmppl.errors import CorruptModel, excerpt

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT writes before the path of a layer."""
PART = re.compile(r"(.+)\.lora_([AB])(?:\.\w+)?\.weight")
PLAIN: dict[str, Any] = {
    "bias": "none",
    "use_dora": False,
    "modules_to_save": None,
    "layer_replication": None,
    "trainable_token_indices": None,
}
"""Settings that must have these values (or be absent): others change more than linear layers."""


class Change(NamedTuple):
    """The change of one layer."""

    down: Tensor
    """A [r, in]."""
    up: Tensor
    """s B [out, r]."""


class Adapter(NamedTuple):
    """A set of changes."""

    name: str
    changes: dict[str, Change]
    """By the path of the layer."""
    digest: str


class _Active(threading.local):
    name: str | None = None


_ACTIVE = _Active()


@contextmanager
def active(name: str | None) -> Iterator[None]:
    """Passes in this block, on this thread, run with an adapter (None: with none)."""
    before, _ACTIVE.name = _ACTIVE.name, name
    try:
        yield
    finally:
        _ACTIVE.name = before


def read(name: str, folder: Path) -> Adapter:
    """The adapter of a folder, in float32 on the CPU.

    Raises:
        CorruptModel: it is not a plain LoRA adapter in safetensors.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _wrong(name, folder, f"{CONFIG} cannot be read: {excerpt(str(error))}") from error
    if config.get("peft_type") != "LORA":
        raise _wrong(name, folder, f"peft_type is {config.get('peft_type')!r}, not 'LORA'")
    for setting, plain in PLAIN.items():
        if config.get(setting) not in (plain, None, [], {}):
            raise _wrong(name, folder, f"{setting}={excerpt(config[setting])} is not supported")
    if not (folder / WEIGHTS).is_file():
        raise _wrong(name, folder, f"no {WEIGHTS} (pickled weights are not opened)")
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / WEIGHTS)
    except Exception as error:  # damaged files raise whatever their parser raises
        raise _wrong(name, folder, f"{WEIGHTS} is damaged: {type(error).__name__}") from error
    return Adapter(name, _changes(name, folder, config, tensors), _digest(tensors))


def _changes(
    name: str, folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]
) -> dict[str, Change]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = PART.fullmatch(key.removeprefix(PREFIX))
        if found is None:
            raise _wrong(name, folder, f"{key} is no LoRA weight of a linear layer")
        parts.setdefault(found[1], {})[found[2]] = tensor.float()
    out = {}
    for layer, pair in parts.items():
        down, up = pair.get("A"), pair.get("B")
        if down is None or up is None or down.ndim != 2 or up.shape[1:] != down.shape[:1]:
            raise _wrong(name, folder, f"the two matrices of {layer} do not fit")
        rank = len(down)
        scale = _alpha(config, layer) / (rank**0.5 if config.get("use_rslora") else rank)
        out[layer] = Change(down, up * scale)
    return out


def _alpha(config: dict[str, Any], layer: str) -> float:
    """Alpha of a layer: `alpha_pattern` names some by their endings."""
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return float(alpha)
    return float(config.get("lora_alpha", 8))


def install(model: Any, adapter: Adapter) -> None:
    """Hook the changes to the layers of a model; they act inside `active(adapter.name)`.

    Raises:
        CorruptModel: a layer that the adapter changes is not there, or has another size.
    """
    modules = dict(model.named_modules())
    for layer, change in adapter.changes.items():
        module = modules.get(layer)
        weight = getattr(module, "weight", None)
        sizes = (len(change.up), change.down.shape[1])
        if module is None or weight is None or sorted(weight.shape) != sorted(sizes):
            has = "no such layer" if weight is None else f"a layer of {tuple(weight.shape)}"
            raise CorruptModel(
                f"the adapter {adapter.name!r} is of another model",
                where=layer,
                value=f"it changes a layer of {sizes}, the model has {has}",
                fix="load the model that the adapter was trained on",
            )
        moved = Change(*(t.to(weight.device, weight.dtype) for t in change))
        module.register_forward_hook(_hook(adapter.name, moved))


def _hook(name: str, change: Change) -> Any:
    def add(module: Any, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        if _ACTIVE.name != name:
            return None
        small = torch.nn.functional.linear(args[0], change.down)
        return out + torch.nn.functional.linear(small, change.up)

    return add


def _digest(tensors: dict[str, Tensor]) -> str:
    seen = hashlib.blake2b(digest_size=6)
    for key in sorted(tensors):
        seen.update(key.encode())
        seen.update(tensors[key].float().numpy().tobytes())
    return seen.hexdigest()


def _wrong(name: str, folder: Path, what: str) -> CorruptModel:
    return CorruptModel(
        f"the adapter {name!r} cannot be used: {what}",
        where=str(folder),
        fix=f"give a folder with {CONFIG} and {WEIGHTS} of a plain LoRA adapter, as PEFT saves it",
    )
