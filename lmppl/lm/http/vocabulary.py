"""The tokenizer of a model that runs elsewhere.

A server takes and gives token ids, and what they mean must be known here: where does a text end,
which bytes is a token, what does a text look like in the model's template. So the tokenizer is
loaded beside the server, by the transformers package (no weights, no torch): from the name or
folder that the server says its model came from, or from `tokenizer=`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from lmppl.errors import ModelNotFound
from lmppl.lm.base import LanguageModel
from lmppl.types import Ids


class Vocabulary(Protocol):
    """What is needed of a tokenizer; a `LanguageModel` has it too."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a text."""
        ...

    @property
    def bos_id(self) -> int | None:
        """The id that a prompt begins with, if any."""
        ...

    @property
    def special_ids(self) -> frozenset[int]:
        """Control tokens."""
        ...

    def encode(self, text: str) -> Ids:
        """Canonical ids."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes of an id."""
        ...

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> Ids:
        """Ids of messages in the template."""
        ...


def find(source: Any, model: str, folder: str) -> tuple[Vocabulary, int]:
    """The tokenizer, and how many ids it has.

    Args:
        source: a `LanguageModel`, "smollm2", "table:FILE.json", a folder, a name on the hub; None
            takes what the server says.
        model: what the server calls its model.
        folder: where the server has it from.

    Raises:
        ModelNotFound: with the option that names it.
    """
    if isinstance(source, LanguageModel):
        return source, source.vocab_size
    names = [source] if source else [folder, model]
    tried = []
    for name in names:
        if not name:
            continue
        if str(name).startswith("table:"):
            from lmppl.lm.table import TableLM

            table = TableLM.from_json(str(name).removeprefix("table:"))
            return table, table.vocab_size
        found = _read(str(name))
        if not isinstance(found, str):
            return found
        tried.append(f"a tokenizer of {name} ({found})")
    raise ModelNotFound(
        model,
        looked_for=tried or ["a tokenizer: the server does not say where its model comes from"],
        fix="name a folder or hub name that has tokenizer.json: http://host:port?tokenizer=NAME",
    )


def _read(name: str) -> tuple[Vocabulary, int] | str:
    """The tokenizer of a name, or why there is none."""
    if find_spec("transformers") is None:
        return 'the Python package transformers is missing: pip install "lmppl-lang[http]"'
    from lmppl.lm import hub, smollm2
    from lmppl.lm.tokenizer import HFTokenizer
    from lmppl.lm.tokenizer_files import read_tokenizer

    path: Path | str = Path(name).expanduser()
    if name == smollm2.NAME:
        path = smollm2.locate().path
    elif not Path(path).is_dir():
        if name.count("/") != 1:
            return "no such folder"
        path = hub.cached(name) or name
    try:
        fast = read_tokenizer(path)
    except Exception as error:  # damaged and absent files raise whatever their parser raises
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
    configs = [_json(Path(path) / f) for f in ("generation_config.json", "config.json")]
    eos: list[int] = []
    for config in configs:
        value = config.get("eos_token_id")
        eos += [value] if isinstance(value, int) else list(value or ())
    width = max(len(fast), int(configs[1].get("vocab_size") or 0))
    return HFTokenizer(fast, width, eos), width


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
