"""Model folders into memory: safetensors only, never pickled weights, never remote code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from lmppl.errors import BadArgument, CorruptModel
from lmppl.lm.tokenizer_files import read_tokenizer
from lmppl.lm.torch import llama
from lmppl.lm.torch.network import Engine

Auto = Literal["auto"]


def read(
    folder: Path,
    device: str | None,
    dtype: torch.dtype | str | None,
    engine: Engine | Auto = "auto",
) -> tuple[Any, Any]:
    """The model, on its device, and the tokenizer of a folder.

    A model that is a Llama and nothing else is run by our own network, unless it is to be run in one
    of its own ways; importing that of transformers takes seconds.

    Raises:
        CorruptModel: the weights are pickled, damaged, or of an architecture that transformers
            does not implement itself.
    """
    check(folder)
    where = _device(device)
    kind = _dtype(dtype, where)
    try:
        tokenizer = read_tokenizer(folder)
        model: Any = llama.read(folder, kind) if engine in ("auto", "slots") else None
        if model is None:
            model = _by_transformers(folder, kind)
    except Exception as error:  # damaged files raise whatever their parser raises
        raise CorruptModel(
            "the model cannot be read",
            where=str(folder),
            value=f"{type(error).__name__}: {str(error)[:300]}",
            fix="download it again; only causal models that transformers itself implements work",
        ) from error
    return model.to(where), tokenizer


def _by_transformers(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    with _quiet():
        return AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, use_safetensors=True, trust_remote_code=False
        )


def check(folder: Path) -> None:
    """Refuse a folder whose weights are pickled, before anything opens them."""
    if any(folder.glob("*.safetensors")):
        return
    kinds = ("*.bin", "*.pt", "*.pth", "*.ckpt")
    pickled = [path.name for kind in kinds for path in sorted(folder.glob(kind))]
    raise CorruptModel(
        "no safetensors file" + (f", only {pickled[0]}" if pickled else ""),
        where=str(folder),
        why="pickled weights can run code when they are opened",
        fix="convert the weights with safetensors, or take a repository that has them",
    )


def best_device() -> str:
    """cuda, mps or cpu: the first that this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _device(device: str | None) -> torch.device:
    """The device of this name, if this machine has it."""
    name = device or best_device()
    fix = f'write device="{best_device()}", or leave it out: the best that is here is taken'
    try:
        found = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise BadArgument(f"{name!r} is no device of torch", fix=fix) from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise BadArgument(
            f"device={name!r}: torch sees {torch.cuda.device_count()} CUDA devices", fix=fix
        )
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise BadArgument(f"device={name!r}: this machine has none", fix=fix)
    return found


def _dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise BadArgument(f"{dtype!r} is no float type", fix='write "float32" or "bfloat16"')
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of transformers; its setting is restored."""
    from transformers.utils import logging as hf_logging

    logging: Any = hf_logging

    on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if on:
            logging.enable_progress_bar()


def eos_of(model: Any) -> list[int]:
    """The ids that end a text, as its settings say."""
    found: list[int] = []
    for config in (getattr(model, "generation_config", None), model.config):
        value = getattr(config, "eos_token_id", None)
        if value is not None:
            found += [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return found
