"""A Hugging Face tokenizer as the language needs it: text is text, and bytes are exact.

Three rules, each broken by some other tool (spec/correctness.md, 5.1):

* **Text never becomes a control token.** `encode` switches special parsing off; a user who types
  `<|im_end|>` gets the ordinary tokens of those characters.
* **Bytes, not strings.** `token_bytes` inverts the byte alphabet of byte-level BPE and the `▁` and
  `<0x0A>` of SentencePiece, so half a character is a value like any other.
* **Nothing is added.** No BOS, no space in front: `token_bytes` of `encode(text)`, joined, is the
  text, except for what the model's own tokenizer changes: some normalise Unicode, some drop
  characters that their vocabulary cannot spell (SmolLM2: rare control characters). So a
  SentencePiece model sees a text without the usual dummy space; write it where it should be.

The chat template is rendered with a placeholder for each content; the scaffolding around the
placeholders may contain control tokens, the contents are encoded as text. What is put in front of
the messages is the template's own business: SmolLM2 and Qwen2 insert a default system message
unless the first message is one. `chat_preview` shows it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

from lmppl.errors import CapabilityError, TokenizerMismatch, excerpt
from lmppl.types import Ids

SPACE = "\u2581"  # the visible space of SentencePiece
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PLACEHOLDER = "\ue000{}\ue001"  # private-use characters: no template tests for them


@lru_cache(maxsize=1)
def byte_alphabet() -> Mapping[str, int]:
    """The printable character that byte-level BPE shows each byte as, inverted."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in shown]
    return {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}


class HFTokenizer:
    """The tokenizer of a transformers model.

    Args:
        fast: a tokenizer of transformers with a `tokenizers` backend.
        width: the number of ids the model scores; ids without a token have no bytes.
        eos: ids that end a text according to the model's configuration.
    """

    def __init__(self, fast: Any, width: int, eos: Sequence[int] = ()) -> None:
        """Copy the backend without its prefixes, and list the bytes of every id."""
        from tokenizers import Tokenizer

        backend = getattr(fast, "backend_tokenizer", None)
        if backend is None:
            raise CapabilityError(
                f"{type(fast).__name__} has no fast tokenizer",
                fix="use a model folder with a tokenizer.json",
            )
        self.fast = fast
        self.width = width
        spec = _plain_spec(json.loads(backend.to_str()))
        self._spec = json.dumps(spec, ensure_ascii=False)
        self._text = Tokenizer.from_str(self._spec)
        self._text.encode_special_tokens = True
        self.size = int(self._text.get_vocab_size(with_added_tokens=True))
        added = {int(t["id"]): str(t["content"]) for t in spec["added_tokens"]}
        marked = {int(t["id"]) for t in spec["added_tokens"] if t["special"]}
        named = {int(i) for i in fast.all_special_ids if i is not None}
        self.eos_ids = frozenset({*map(int, eos), *_maybe(fast.eos_token_id)} & set(range(width)))
        self.special_ids = frozenset(marked | named | self.eos_ids)
        # Only a vocabulary without bytes needs its unknown token, for characters it lacks.
        unknown = set() if _byte_level(spec) else set(_maybe(fast.unk_token_id)) - self.eos_ids
        self._never = self.special_ids - unknown
        self.bos_id = _leading_bos(fast)
        token_of = {i: t for t, i in self._text.get_vocab(with_added_tokens=True).items()}
        shown = list(map(token_of.get, range(width)))
        self._bytes = _all_bytes(shown, _byte_level(spec), added, self.special_ids)
        self.missing_ids = [i for i, token in enumerate(shown) if token is None]
        """Ids that the model scores and no token has."""
        self._special_text = {i: self._text.id_to_token(i) or "" for i in self.special_ids}
        if self.size > width:
            raise TokenizerMismatch(
                f"the tokenizer has {self.size:,} tokens, the model scores {width:,}",
                fix="use the tokenizer that was saved with the model",
            )
        self._check_round_trip()

    # -- text --------------------------------------------------------------------------------

    def encode(self, text: str) -> Ids:
        """Canonical ids of a text; never a special one."""
        raw = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        ids = tuple(self._text.encode(raw, add_special_tokens=False).ids)
        if self._never.isdisjoint(ids):
            return ids
        return self._split_encode(raw)

    def _split_encode(self, text: str) -> Ids:
        """Encode around control tokens that a tokenizer still found in the text.

        Some vocabularies hold a control token as an ordinary piece too; the text is then cut
        inside it, after its first character.
        """
        for token in sorted(self._never):
            surface = self._special_text[token]
            at = text.find(surface) if len(surface) > 1 else -1
            if at >= 0:
                return self.encode(text[: at + 1]) + self.encode(text[at + 1 :])
        raise TokenizerMismatch(
            "the tokenizer turns plain text into a control token", value=excerpt(text)
        )

    @cached_property
    def _marked(self) -> Any:
        """The same tokenizer with its control tokens; made for the first chat."""
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self._spec)

    def encode_marked(self, text: str) -> Ids:
        """Ids of a text of ours (a template), control tokens included."""
        return tuple(self._marked.encode(text, add_special_tokens=False).ids)

    @cached_property
    def _cuts(self) -> bool:
        """Whether texts are cut into words as GPT-2 does it, perhaps digit by digit.

        Then only the last two words of a text can change when it goes on ("'" + "l" before "'ll"),
        and a word is cut into tokens by itself.
        """
        spec = json.loads(self._spec)
        parts = [spec.get("pre_tokenizer") or {}]
        parts = parts[0].get("pretokenizers", parts)
        kinds = [part.get("type") for part in parts]
        return (
            spec.get("normalizer") is None
            and all(t["special"] for t in spec["added_tokens"])
            and kinds in (["ByteLevel"], ["Digits", "ByteLevel"])
            and all(part.get("use_regex", True) for part in parts)
            and not any(part.get("add_prefix_space", False) for part in parts)
        )

    def settled(self, text: str) -> int:
        """How many bytes of a text are cut for good; see `LanguageModel.settled`."""
        if not self._cuts or not self._never.isdisjoint(
            self._text.encode(text, add_special_tokens=False).ids
        ):
            return 0
        words = self._text.pre_tokenizer.pre_tokenize_str(text)
        return sum(len(word) for word, _ in words[:-2])

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token; empty for control tokens and ids without a token."""
        return self._bytes[token]

    @property
    def words(self) -> tuple[bytes, ...]:
        """The bytes of every id, in order."""
        return self._bytes

    # -- chat --------------------------------------------------------------------------------

    def chat_preview(self, messages: Sequence[tuple[str, str]]) -> str:
        """The whole prompt that the template makes of these turns, as a string."""
        return self._render([{"role": r, "content": c} for r, c in messages])

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> Ids:
        """Ids of (role, content) turns, ready for the answer; contents are never control tokens.

        Contents go in verbatim: a template's own trimming does not reach them.
        """
        turns = [
            {"role": role, "content": _PLACEHOLDER.format(n)}
            for n, (role, _) in enumerate(messages)
        ]
        text = self._render(turns)
        ids: list[int] = []
        for piece in re.split("(\ue000[0-9]+\ue001)", text):
            if piece.startswith("\ue000"):
                ids += self.encode(messages[int(piece[1:-1])][1])
            elif piece:
                ids += self.encode_marked(piece)
        missing = [n for n in range(len(messages)) if _PLACEHOLDER.format(n) not in text]
        if missing:
            raise CapabilityError(
                f"the chat template drops message {missing[0]} (role {messages[missing[0]][0]!r})",
                fix="use the roles that the template knows; chat_preview(messages) shows its text",
            )
        return tuple(ids)

    def _render(self, turns: Sequence[Mapping[str, str]]) -> str:
        if not getattr(self.fast, "chat_template", None):
            raise CapabilityError(
                "this model has no chat template",
                fix="use LM(prompt) with a plain prompt, or an instruction-tuned model",
            )
        from jinja2 import TemplateError

        try:
            text = self.fast.apply_chat_template(
                list(turns), tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            roles = ", ".join(t["role"] for t in turns)
            raise CapabilityError(
                f"the chat template refuses these messages: {error}",
                value=f"roles {roles}",
                fix="change the order or the names of the roles",
            ) from error
        return str(text)

    # -- checks ------------------------------------------------------------------------------

    def _check_round_trip(self) -> None:
        text = "Q: 12 + 30 = 42.\n\tA  caf\u00e9 \u4f60"
        ids = self.encode(text)
        got = b"".join(self._bytes[i] for i in ids)
        unknown = self.fast.unk_token_id
        if got != text.encode() and unknown not in ids and self._text.normalizer is None:
            raise TokenizerMismatch(
                "the bytes of this tokenizer's tokens do not add up to the text",
                value=excerpt(got),
                fix="only byte-level BPE and SentencePiece vocabularies are understood",
            )


def _maybe(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]


def _leading_bos(fast: Any) -> int | None:
    """The BOS id, if the tokenizer itself puts it in front of a text."""
    bos = fast.bos_token_id
    ids = list(fast("a").input_ids)
    return int(bos) if bos is not None and ids and ids[0] == bos else None


def _plain_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer without everything that adds or cuts: prefix space, BOS, padding, truncation."""
    spec["post_processor"] = None
    spec["padding"] = None
    spec["truncation"] = None
    for part in ("normalizer", "pre_tokenizer"):
        spec[part] = _without_prefix(spec.get(part))
    return spec


def _without_prefix(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    kind = node.get("type")
    if kind == "Prepend":
        return None
    if kind == "Sequence":
        key = "normalizers" if "normalizers" in node else "pretokenizers"
        kept = [n for n in map(_without_prefix, node[key]) if n is not None]
        return {**node, key: kept} if kept else None
    node = dict(node)
    if kind == "Metaspace":
        node["prepend_scheme"] = "never"
    if kind == "ByteLevel":
        node["add_prefix_space"] = False
    return node


def _kinds(node: Any) -> set[str]:
    """Types of all parts inside a component of the tokenizer."""
    if isinstance(node, list):
        return set().union(*map(_kinds, node)) if node else set()
    if not isinstance(node, dict):
        return set()
    return {str(node.get("type"))} | set().union(*map(_kinds, node.values()))


def _byte_level(spec: Mapping[str, Any]) -> bool:
    return "ByteLevel" in _kinds(spec.get("decoder")) | _kinds(spec.get("pre_tokenizer"))


def _all_bytes(
    shown: Sequence[str | None],
    byte_level: bool,
    added: Mapping[int, str],
    special: frozenset[int],
) -> tuple[bytes, ...]:
    """The bytes of every id, from how the vocabulary shows it."""
    byte_of = byte_alphabet().__getitem__
    out: list[bytes] = []
    for i, token in enumerate(shown):
        if token is None or i in special:
            out.append(b"")
        elif i in added:
            out.append(added[i].encode())
        elif byte_level:
            try:
                out.append(bytes(map(byte_of, token)))
            except KeyError:  # a character outside of the alphabet stands for itself
                out.append(token.encode())
        elif match := BYTE_TOKEN.fullmatch(token):
            out.append(bytes([int(match[1], 16)]))
        else:
            out.append(token.replace(SPACE, " ").encode())
    return tuple(out)
