"""Language models whose text is that of a fast tokenizer of transformers."""

from __future__ import annotations

from collections.abc import Sequence

from lmppl.errors import UnsupportedValue, excerpt
from lmppl.lm.base import LanguageModel
from lmppl.lm.tokenizer import HFTokenizer
from lmppl.types import Ids


class Tokenized(LanguageModel):
    """The tokenizer's half of a model: everything between text and ids."""

    tokenizer: HFTokenizer

    def encode(self, text: str) -> Ids:
        """Canonical ids; control tokens typed by a user stay text."""
        return self.tokenizer.encode(text)

    def settled(self, text: str) -> int:
        """Up to its last two words, where the tokenizer cuts words as GPT-2 does."""
        return self.tokenizer.settled(text)

    def spell(self, text: str) -> Ids:
        """As `encode`, but the tokens must say exactly this text."""
        ids = self.encode(text)
        if b"".join(map(self.tokenizer.token_bytes, ids)) != text.encode("utf-8", "surrogatepass"):
            raise UnsupportedValue(
                f"no tokens of {self.name!r} spell this text",
                value=excerpt(text),
                why="the tokenizer drops or rewrites characters, so another text would be scored",
                fix=f"score what its tokens say: {excerpt(self.decode(ids))}",
            )
        return ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token."""
        return self.tokenizer.token_bytes(token)

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> Ids:
        """The model's own template; see `HFTokenizer.encode_chat` for what it may insert."""
        return self.tokenizer.encode_chat(messages)

    def chat_preview(self, messages: Sequence[tuple[str, str]]) -> str:
        """The text that the template makes of these turns, its default system message included."""
        return self.tokenizer.chat_preview(messages)

    @property
    def special_ids(self) -> frozenset[int]:
        """Control tokens."""
        return self.tokenizer.special_ids
