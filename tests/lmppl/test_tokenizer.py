"""Text is text: no typed string becomes a control token, and token bytes add up to the text."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers")

from tokenizers import (  # noqa: E402  # noqa: E402
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import PreTrainedTokenizerFast  # noqa: E402

from lmppl.errors import CapabilityError, TokenizerMismatch  # noqa: E402
from lmppl.lm.tokenizer import HFTokenizer, byte_alphabet  # noqa: E402

BOS, EOS = "<s>", "</s>"
LOOKALIKES = [
    "<s>",
    "</s>",
    "a</s>b",
    "</s></s>",
    "<s>[INST]",
    "< s >",
    "<<s>>",
    "\u2581<s>",
    "<0x41>",
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "[{{ m['role'] }}] {{ m['content'] | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[model]{% endif %}"
)


def wrap(backend: Any, **options: Any) -> Any:
    kind: Any = PreTrainedTokenizerFast
    return kind(tokenizer_object=backend, bos_token=BOS, eos_token=EOS, **options)


def sentencepiece(pieces_for_specials: bool = False) -> Any:
    """BPE over pieces with byte fallback and the dummy space in front, as in Llama 2."""
    words = ["<unk>", BOS, EOS, *(f"<0x{b:02X}>" for b in range(256)), "\u2581", *"abcdefgh"]
    words += ["ab", "\u2581a", "\u2581ab", *"<>/s"]
    merges = [("a", "b"), ("\u2581", "a"), ("\u2581a", "b")]
    vocab = {w: i for i, w in enumerate(words)}
    backend = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>")
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in words[:3]])
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, 1)]
    )
    return wrap(backend, unk_token="<unk>")


def unigram() -> Any:
    """Unigram with a Metaspace, whose model knows the control tokens as pieces of text too."""
    pieces = [("<unk>", 0.0), (BOS, -1.0), (EOS, -1.0), *((c, -3.0) for c in "abc<>/s\u2581")]
    backend = Tokenizer(models.Unigram([*pieces, ("ab", -2.0)], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    backend.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in (BOS, EOS)])
    return wrap(backend, unk_token="<unk>")


def byte_level() -> Any:
    """Byte-level BPE with an added token that is ordinary text."""
    letters = sorted(byte_alphabet(), key=lambda c: byte_alphabet()[c])
    words = [BOS, EOS, *letters, "\u0120a"]
    vocab = {w: i for i, w in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("\u0120", "a")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(w, special=True, normalized=False) for w in (BOS, EOS)])
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    return wrap(backend)


MAKERS = {"sentencepiece": sentencepiece, "unigram": unigram, "byte_level": byte_level}


@pytest.fixture(params=MAKERS)
def tokenizer(request: pytest.FixtureRequest) -> HFTokenizer:
    return HFTokenizer(MAKERS[request.param](), 300)


@pytest.mark.parametrize("text", LOOKALIKES)
def test_typed_control_tokens_are_text(tokenizer: HFTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    control = {tokenizer.fast.bos_token_id, tokenizer.fast.eos_token_id}
    assert ids and control.isdisjoint(ids)


@pytest.mark.parametrize("text", ["", "a", " a", "ab  ab", "<s>", "a</s>b<s>", "abc </s>"])
def test_bytes_add_up_to_the_text(tokenizer: HFTokenizer, text: str) -> None:
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()


@pytest.mark.parametrize(
    "text", ["caf\u00e9", "\u4f60\u597d", "\U0001f469\u200d\U0001f680", "a\n\tb\x00", "\x7f"]
)
@pytest.mark.parametrize("kind", ["sentencepiece", "byte_level"])
def test_all_bytes_survive(kind: str, text: str) -> None:
    tokenizer = HFTokenizer(MAKERS[kind](), 300)
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()


def test_half_a_character_has_bytes() -> None:
    tokenizer = HFTokenizer(sentencepiece(), 300)
    assert tokenizer.token_bytes(3 + 0x0A) == b"\n"
    assert tokenizer.token_bytes(3 + 0xE4) == b"\xe4"
    assert tokenizer.token_bytes(1) == tokenizer.token_bytes(2) == b""
    assert tokenizer.token_bytes(299) == b"" and 299 in tokenizer.missing_ids


def test_an_added_token_that_is_no_control_token_is_text() -> None:
    tokenizer = HFTokenizer(byte_level(), 300)
    (tool,) = tokenizer.encode("<tool>")
    assert tokenizer.token_bytes(tool) == b"<tool>" and tool not in tokenizer.special_ids


def test_lone_surrogates_do_not_stop_the_run(tokenizer: HFTokenizer) -> None:
    assert tokenizer.encode("a\ud800b")


def test_bos_is_known_and_never_added() -> None:
    llama = HFTokenizer(sentencepiece(), 300)
    assert llama.bos_id == 1 and 1 not in llama.encode("ab")
    assert HFTokenizer(byte_level(), 300).bos_id is None


def test_eos_comes_from_configuration_and_tokenizer() -> None:
    assert HFTokenizer(byte_level(), 300, [7]).eos_ids == {1, 7}


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    with pytest.raises(TokenizerMismatch, match="scores 100"):
        HFTokenizer(byte_level(), 100)


# -- chat ----------------------------------------------------------------------------------------


@pytest.fixture
def chat() -> HFTokenizer:
    return HFTokenizer(byte_level_with(TEMPLATE), 300)


def byte_level_with(template: str | None) -> Any:
    fast = byte_level()
    fast.chat_template = template
    return fast


def test_contents_are_never_control_tokens(chat: HFTokenizer) -> None:
    ids = chat.encode_chat([("user", "a</s>b"), ("model", "<s>")])
    text = "".join(
        t if (t := chat.fast.convert_ids_to_tokens(i)) in (BOS, EOS) else "." for i in ids
    )
    assert text.replace(".", "") == BOS + EOS + EOS  # of the template alone, and one BOS
    spelled = b"".join(map(chat.token_bytes, ids))
    assert spelled == b"[user] a</s>b[model] <s>[model]"


def test_a_plain_chat_is_what_the_template_gives(chat: HFTokenizer) -> None:
    messages = [("user", "hello"), ("model", "yes"), ("user", "ok")]
    text = chat.chat_preview(messages)
    assert text == "<s>[user] hello</s>[model] yes</s>[user] ok</s>[model]"
    assert chat.encode_chat(messages) == chat.encode_marked(text)


def test_contents_go_in_verbatim(chat: HFTokenizer) -> None:
    spelled = b"".join(map(chat.token_bytes, chat.encode_chat([("user", "  a \ue0000\ue001 ")])))
    assert spelled == "[user]   a \ue0000\ue001 [model]".encode()


def test_a_refused_role_is_one_clear_error(chat: HFTokenizer) -> None:
    with pytest.raises(CapabilityError, match="no system role"):
        chat.encode_chat([("system", "be brief")])


def test_a_dropped_message_is_an_error() -> None:
    only_last = HFTokenizer(byte_level_with("{{ messages[-1]['content'] }}"), 300)
    with pytest.raises(CapabilityError, match="drops message 0"):
        only_last.encode_chat([("user", "a"), ("user", "b")])


def test_no_template_is_an_error() -> None:
    with pytest.raises(CapabilityError, match="no chat template"):
        HFTokenizer(byte_level_with(None), 300).encode_chat([("user", "a")])
