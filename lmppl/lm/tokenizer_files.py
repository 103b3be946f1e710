"""The tokenizer of a folder, without the transformers package where its files say all there is to say.

Importing the tokenizers of transformers and building one takes a second; of most of them `HFTokenizer`
needs the file tokenizer.json and a few names. A folder that says more, or does not have that file, is
read by transformers, and so is the chat template, when the first chat is encoded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes that take tokenizer.json as it is."""
KNOWN = {
    "backend", "chat_template", "clean_up_tokenization_spaces", "model_max_length", "padding_side",
    "tokenizer_class", "truncation_side", *(f"{name}_token" for name in NAMED),
}  # fmt: skip
"""What tokenizer_config.json may say; anything else may change what transformers makes of a text."""


def read_tokenizer(folder: str | Path) -> Any:
    """The fast tokenizer of a folder or hub name, as `HFTokenizer` takes it.

    Raises:
        Exception: whatever the parsers of damaged or absent files raise.
    """
    return _plain(Path(folder)) or _by_transformers(folder)


def _by_transformers(folder: str | Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)


class PlainTokenizer:
    """What `HFTokenizer` asks of a tokenizer of transformers, from two files.

    Args:
        folder: where they are.
        backend: the tokenizer of tokenizer.json.
        names: the control tokens that have a name, such as `{"eos": "</s>"}`.
    """

    def __init__(self, folder: Path, backend: Any, names: dict[str, str]) -> None:
        """Look the ids up."""
        self.folder = folder
        self.backend_tokenizer = backend
        ids = {name: backend.token_to_id(token) for name, token in names.items()}
        self.bos_token_id, self.eos_token_id, self.unk_token_id = map(ids.get, NAMED[:3])
        self.all_special_ids = [i for i in ids.values() if i is not None]

    def __call__(self, text: str) -> SimpleNamespace:
        """The ids of a text with what the tokenizer itself puts around it."""
        return SimpleNamespace(input_ids=self.backend_tokenizer.encode(text).ids)

    def __len__(self) -> int:
        """How many tokens there are."""
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    @cached_property
    def _whole(self) -> Any:
        return _by_transformers(self.folder)

    @property
    def chat_template(self) -> str | None:
        """The template, if the model has one."""
        found: str | None = self._whole.chat_template
        return found

    def apply_chat_template(self, turns: Sequence[Any], **options: Any) -> Any:
        """The text of a chat, by transformers."""
        return self._whole.apply_chat_template(turns, **options)


def _plain(folder: Path) -> PlainTokenizer | None:
    """From the files alone; None where they leave something to transformers."""
    file, more = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not (file.is_file() and more.is_file()) or (folder / "special_tokens_map.json").exists():
        return None
    config = json.loads(more.read_text("utf-8"))
    if config.get("tokenizer_class") not in PLAIN or not set(config) <= KNOWN:
        return None
    names = {name: config.get(f"{name}_token") for name in NAMED}
    names = {name: token for name, token in names.items() if token is not None}
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(file))
    backend.no_truncation()
    backend.no_padding()
    known = all(isinstance(t, str) and backend.token_to_id(t) is not None for t in names.values())
    return PlainTokenizer(folder, backend, names) if known else None
