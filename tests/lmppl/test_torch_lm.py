"""`TorchLM` on small random models: every way to reach a row gives the uncached row."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: E402

from lmppl.errors import BadArgument, ContextOverflow, CorruptModel, LmpplError  # noqa: E402
from lmppl.lm.base import LanguageModel, TokenLaw  # noqa: E402
from lmppl.lm.load import load  # noqa: E402
from lmppl.lm.table import token_law  # noqa: E402
from lmppl.lm.tokenizer import byte_alphabet  # noqa: E402
from lmppl.lm.torch import TorchLM  # noqa: E402
from lmppl.lm.torch.cache import Block  # noqa: E402
from lmppl.lm.torch.draw import Logits  # noqa: E402
from lmppl.random import Argmax, GumbelMax, fold_array  # noqa: E402
from lmppl.testing import check_language_model  # noqa: E402
from lmppl.types import Floats, Ids, Ints, Keys  # noqa: E402

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOLERANCE = 2e-5
"""Of log-probabilities in float32."""
KINDS = ("llama", "gpt2", "mistral", "mamba")


def make_tokenizer() -> Any:
    """Byte-level BPE: three specials, 256 bytes, a few merges; 262 tokens."""
    letters = sorted(byte_alphabet(), key=lambda c: byte_alphabet()[c])
    merges = [("t", "h"), ("th", "e"), ("\u0120", "a")]
    words = [*SPECIALS, *letters, *(a + b for a, b in merges)]
    backend = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    fast.chat_template = TEMPLATE
    return fast


def make_model(kind: str, width: int = 270) -> Any:
    """A random model of a few thousand weights."""
    torch.manual_seed(sum(map(ord, kind)))
    common: dict[str, Any] = {
        "vocab_size": width,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "bos_token_id": None,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    attention: dict[str, Any] = {
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
    }
    if kind == "llama":
        config = transformers.LlamaConfig(**common, **attention)
    elif kind == "mistral":
        config = transformers.MistralConfig(**common, **attention, sliding_window=5)
    elif kind == "mamba":
        config = transformers.MambaConfig(**common, state_size=4)
    elif kind == "gpt_oss":  # attention sinks
        config = transformers.GptOssConfig(
            **common, **attention, head_dim=8, num_local_experts=4, sliding_window=5
        )
    elif kind == "bloom":  # positions by biases
        config = transformers.BloomConfig(vocab_size=width, hidden_size=32, n_layer=2, n_head=4)
    elif kind == "gpt_neo":  # a local window of 256 that is in no layer_types
        config = transformers.GPTNeoConfig(
            **common,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=96,
        )
    else:
        config = transformers.GPT2Config(
            vocab_size=width, n_embd=32, n_layer=2, n_head=4, n_positions=96, eos_token_id=2
        )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # far from uniform, so that errors show
            if parameter.ndim == 2:
                parameter.mul_(3.0)
    return model.eval()


class Pair:
    """A `TorchLM` and the untouched model that it must agree with."""

    def __init__(self, kind: str, width: int = 270, device: str = "cpu", **options: Any) -> None:
        plain = make_model(kind, width)
        self.plain = copy.deepcopy(plain)
        self.lm = TorchLM(plain.to(device), make_tokenizer(), name=kind, **options)

    def rows(self, contexts: list[Ids]) -> Floats:
        """Uncached log-probabilities, one context at a time."""
        out = []
        for context in contexts:
            with torch.no_grad():
                scores = self.plain(input_ids=torch.tensor([context]), use_cache=False).logits[
                    0, -1
                ]
            scores = scores.double()
            if self.lm._absent is not None:
                scores[self.lm._absent.cpu()] = -torch.inf
            out.append(torch.log_softmax(scores, dim=0).numpy())
        return np.array(out)

    def check(self, rows: Any, contexts: list[Ids]) -> None:
        expected = self.rows(contexts)
        got = rows.log_probs()
        finite = np.isfinite(expected)
        assert (np.isfinite(got) == finite).all()
        assert np.abs(got[finite] - expected[finite]).max() < TOLERANCE


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(request.param)


@pytest.fixture
def llama() -> Pair:
    return Pair("llama")


def some_ids(rng: np.random.Generator, n: int) -> Ids:
    return tuple(rng.integers(3, 262, n).tolist())


# -- rows ----------------------------------------------------------------------------------------


def test_engines() -> None:
    engines = {kind: Pair(kind).lm.network.engine for kind in KINDS}
    assert engines == {"llama": "slots", "gpt2": "slots", "mistral": "slots", "mamba": "native"}


@pytest.mark.parametrize("kind", ["gpt_oss", "bloom", "gpt_neo"])
def test_unusual_attention_is_run_by_the_model_itself(kind: str) -> None:
    pair = Pair(kind)
    assert pair.lm.network.engine == "native"
    rng = np.random.default_rng(0)
    contexts = [some_ids(rng, n) for n in (3, 12, 12, 20)]
    rows = pair.lm.open(contexts)
    rows.push(np.array([5, 6, 7, 8]))
    contexts = [(*c, t) for c, t in zip(contexts, (5, 6, 7, 8), strict=True)]
    pair.check(rows, contexts)
    rows.select(np.array([1, 1, 3]))
    pair.check(rows, [contexts[i] for i in (1, 1, 3)])


def test_two_prompts_with_one_suffix(pair: Pair) -> None:
    """The defect of genlm-backend 0.3.1: cached prompts are keyed by the whole prefix."""
    rng = np.random.default_rng(0)
    suffix = some_ids(rng, 4)
    heads = [some_ids(rng, 7), some_ids(rng, 7), some_ids(rng, 3)]
    pair.lm.open(heads).close()
    contexts = [head + suffix for head in heads]
    rows = pair.lm.open(contexts)
    pair.check(rows, contexts)
    rows.close()
    pair.check(pair.lm.open([contexts[1], contexts[0]]), [contexts[1], contexts[0]])


def test_random_life(pair: Pair) -> None:
    """Open, push, select, close in random order: always the uncached rows."""
    rng = np.random.default_rng(1)
    base = some_ids(rng, 40)
    contexts = [base[:5] + some_ids(rng, int(n)) for n in rng.integers(1, 8, 5)]
    rows = pair.lm.open(contexts)
    for _ in range(40):
        action = rng.integers(4)
        if action == 0:
            tokens = rng.integers(3, 262, len(contexts))
            rows.push(tokens)
            contexts = [c + (int(t),) for c, t in zip(contexts, tokens, strict=True)]
        elif action == 1:
            index = rng.integers(0, len(contexts), int(rng.integers(1, 9)))
            rows.select(index)
            contexts = [contexts[i] for i in index]
        elif action == 2:
            rows.close()
            grow = [some_ids(rng, int(n)) for n in rng.integers(0, 3, len(contexts))]
            contexts = [c + g for c, g in zip(contexts, grow, strict=True)]
            contexts = [contexts[i] for i in rng.permutation(len(contexts))]
            if rng.random() < 0.3:
                contexts = [*contexts, base[: int(rng.integers(1, 40))], base[:38]]
            contexts = [c if len(c) < 60 else base[:6] for c in contexts]
            rows = pair.lm.open(contexts)
        else:
            pair.check(rows, contexts)
    pair.check(rows, contexts)


@pytest.mark.parametrize("engine", ["slots", "native", "recompute"])
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_each_engine_gives_the_same_rows(kind: str, engine: Any) -> None:
    pair = Pair(kind, engine=engine)
    rng = np.random.default_rng(2)
    contexts = [some_ids(rng, n) for n in (3, 9, 9, 12)]
    rows = pair.lm.open(contexts)
    pair.check(rows, contexts)
    for _ in range(3):
        tokens = rng.integers(3, 262, 4)
        rows.push(tokens)
        contexts = [c + (int(t),) for c, t in zip(contexts, tokens, strict=True)]
    rows.select(np.array([3, 0, 0]))
    contexts = [contexts[3], contexts[0], contexts[0]]
    pair.check(rows, contexts)


def test_a_long_shared_prefix_is_stored_once(llama: Pair) -> None:
    rng = np.random.default_rng(3)
    prefix = some_ids(rng, 50)
    contexts = [prefix + some_ids(rng, n) for n in (1, 1, 2, 5, 5, 9)]
    contexts.append(contexts[0])
    rows = llama.lm.open(contexts)
    assert table(rows)[0] == (1, 50)  # one row of pages for the seven rows of the batch
    assert llama.lm.usage.computed_tokens == 50 + 23
    assert llama.lm.usage.cached_tokens == sum(map(len, contexts)) - 73
    llama.check(rows, contexts)
    for step in range(36):  # beyond the spare slots, so buffers grow
        tokens = rng.integers(3, 262, 7)
        rows.push(tokens)
        contexts = [c + (int(t),) for c, t in zip(contexts, tokens, strict=True)]
        if step % 13 == 0:
            llama.check(rows, contexts)
    rows.close()
    llama.check(llama.lm.open(contexts[::-1]), contexts[::-1])


def table(rows: Any) -> list[tuple[int, int]]:
    """(rows of the pages, slots in use) of each column of a page table."""
    assert isinstance(rows.block, Block)
    return [(c.pages.rows, c.longest) for c in rows.block.columns]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_every_question_is_stored_once(kind: str) -> None:
    """Particles of three questions, interleaved: each prompt is stored once, rows stay right."""
    pair = Pair(kind)
    rng = np.random.default_rng(20)
    start = some_ids(rng, 5)
    prompts = [start + some_ids(rng, n) for n in (40, 45, 38)]
    contexts = [prompts[i % 3] for i in range(27)]
    rows = pair.lm.open(contexts)
    assert table(rows) == [(3, 50)]
    assert pair.lm.usage.computed_tokens == 43 + 45 + 50
    for turn in range(6):
        pair.check(rows, contexts)
        tokens = rng.integers(3, 262, len(contexts))
        rows.push(tokens)
        contexts = [c + (int(t),) for c, t in zip(contexts, tokens, strict=True)]
        index = rng.integers(0, len(contexts), 27)
        if turn % 2:
            rows.select(index)
            contexts = [contexts[i] for i in index]
        else:
            rows.close()
            contexts = [contexts[i] + some_ids(rng, int(rng.integers(0, 3))) for i in index]
            rows = pair.lm.open(contexts)
        assert table(rows)[0] == (3, 50)
    pair.check(rows, contexts)


def test_a_batch_that_goes_on_writes_in_its_old_pages(llama: Pair) -> None:
    """Close and open of the same rows, in another order: nothing is copied or computed."""
    rng = np.random.default_rng(21)
    contexts = [some_ids(rng, 40)] * 5
    rows = llama.lm.open(contexts)
    for _ in range(3):
        tokens = rng.integers(3, 262, 5)
        rows.push(tokens)
        contexts = [c + (int(t),) for c, t in zip(contexts, tokens, strict=True)]
    rows.log_probs()
    assert isinstance(rows.block, Block)
    before = rows.block.columns[-1].pages
    rows.close()
    contexts = [contexts[i] for i in (3, 1, 4, 0, 2)]
    rows = llama.lm.open(contexts)
    assert isinstance(rows.block, Block)
    last = rows.block.columns[-1].pages
    assert last is before and last.writer is rows.block.token
    llama.check(rows, contexts)
    again = llama.lm.open(contexts)  # the pages are being written: these rows get others
    assert isinstance(again.block, Block) and again.block.columns[-1].pages is not last
    for batch, token in ((again, 9), (rows, 8)):
        batch.push(np.full(5, token))
        llama.check(batch, [(*c, token) for c in contexts])
    for batch, token in ((again, 9), (rows, 8)):
        batch.push(np.full(5, 7))
        llama.check(batch, [(*c, token, 7) for c in contexts])


def test_a_beginning_inside_old_pages_is_reused(llama: Pair) -> None:
    """A new question shares 34 tokens with a retained prompt of 60: it points to its pages."""
    rng = np.random.default_rng(23)
    preamble = some_ids(rng, 34)
    old, new = preamble + some_ids(rng, 26), preamble + some_ids(rng, 20)
    rows = llama.lm.open([old] * 12)
    assert table(rows) == [(1, 60)]
    rows.close()
    before = llama.lm.usage.computed_tokens
    contexts = [old[:55], new, new + (9,), new + (10,), old + (9,)]
    rows = llama.lm.open(contexts)
    llama.check(rows, contexts)
    assert llama.lm.usage.computed_tokens == before + 1 + 20 + 1 + 1 + 1


def test_a_context_that_begins_all_others(llama: Pair) -> None:
    """Its scores are wanted in the middle of what a retained row already knows."""
    rng = np.random.default_rng(24)
    first = some_ids(rng, 40)
    longer = first + some_ids(rng, 10)
    llama.lm.open([longer]).close()
    contexts = [first, longer + (5,), longer + (6,), first[:35]]
    llama.check(llama.lm.open(contexts), contexts)


def test_rows_that_grew_together_are_stored_once() -> None:
    pair = Pair("llama")
    pair.lm.max_context = 400  # more than the model was made for, which does not matter here
    pair.lm.network.max_context = 400
    rng = np.random.default_rng(22)
    prompt = some_ids(rng, 34)
    rows = pair.lm.open([prompt] * 9)
    assert table(rows) == [(1, 34)]
    history = prompt
    for _ in range(70):
        rows.push(np.full(9, 5 + len(history)))
        history += (5 + len(history),)
    rows.log_mass([(5,)] * 9, [1.0] * 9)
    rows.close()
    contexts = [history + some_ids(rng, 1) for _ in range(9)]
    rows = pair.lm.open(contexts)
    assert sum(used for count, used in table(rows) if count == 1) == 104
    assert pair.lm.usage.computed_tokens == 34 + 9 * 70 + 9
    pair.check(rows, contexts)


@pytest.mark.parametrize("seed", range(4))
def test_random_life_of_many_questions(seed: int) -> None:
    """Long prompts, many rows, all moves: always the uncached rows."""
    pair = Pair(("llama", "mistral")[seed % 2], kv_bytes=(1 << 30, 3_000_000)[seed // 2])
    rng = np.random.default_rng(100 + seed)
    preamble = some_ids(rng, int(rng.integers(0, 40)))
    prompts = [preamble + some_ids(rng, int(n)) for n in rng.integers(3, 45, 4)]

    def fresh() -> list[Ids]:
        chosen = rng.choice(4, int(rng.integers(1, 4)), replace=False)
        out = [prompts[q] for q in chosen for _ in range(int(rng.integers(1, 12)))]
        return [out[i] for i in rng.permutation(len(out))]

    contexts = fresh()
    rows = pair.lm.open(contexts)
    for turn in range(30):
        action = rng.integers(6)
        if action <= 1:
            tokens = rng.integers(3, 262, len(contexts))
            rows.push(tokens)
            contexts = [c + (int(t),) for c, t in zip(contexts, tokens, strict=True)]
        elif action == 2:
            index = rng.integers(0, len(contexts), int(rng.integers(1, 20)))
            rows.select(index)
            contexts = [contexts[i] for i in index]
        elif action == 3:
            rows.close()
            index = rng.integers(0, len(contexts), int(rng.integers(1, 20)))
            contexts = [contexts[i] + some_ids(rng, int(rng.integers(0, 4))) for i in index]
            rows = pair.lm.open(contexts)
        elif action == 4:
            rows.close()
            contexts = (contexts + fresh())[-24:]
            rows = pair.lm.open(contexts)
        else:
            tails = [some_ids(rng, int(n)) for n in rng.integers(0, 4, len(contexts))]
            scores = pair.lm.score(contexts, tails, [(2,)] * len(tails), [1.0] * len(tails))
            expected = pair.rows(contexts)
            for row, (score, tail) in enumerate(zip(scores, tails, strict=True)):
                first = tail[0] if tail else 2
                assert score[0] == pytest.approx(expected[row, first], abs=TOLERANCE)
        if max(map(len, contexts)) > 88:
            rows.close()
            contexts = fresh()
            rows = pair.lm.open(contexts)
        if turn % 3 == 0:
            pair.check(rows, contexts)
    pair.check(rows, contexts)


def test_groups_are_computed_once(llama: Pair) -> None:
    rng = np.random.default_rng(4)
    first, second = some_ids(rng, 30), some_ids(rng, 40)
    contexts = [head + some_ids(rng, 2) for head in (first, second) for _ in range(5)]
    rows = llama.lm.open([contexts[i] for i in rng.permutation(10)])
    assert llama.lm.usage.computed_tokens == 30 + 40 + 20
    rows.close()
    llama.check(llama.lm.open(contexts), contexts)


def test_a_resample_computes_nothing(llama: Pair) -> None:
    rng = np.random.default_rng(5)
    prompt = some_ids(rng, 40)
    contexts = [prompt] * 6
    rows = llama.lm.open(contexts)
    for _ in range(4):
        tokens = rng.integers(3, 262, 6)
        rows.push(tokens)
        contexts = [c + (int(t),) for c, t in zip(contexts, tokens, strict=True)]
    rows.log_mass([(5,)] * 6, [1.0] * 6)
    rows.close()
    usage = copy.copy(llama.lm.usage)
    again = [contexts[i] for i in (0, 0, 3, 3, 3, 5)]
    rows = llama.lm.open(again)
    llama.check(rows, again)
    assert llama.lm.usage.passes == usage.passes
    assert llama.lm.usage.computed_tokens == usage.computed_tokens
    assert llama.lm.usage.cached_tokens == usage.cached_tokens + 6 * 44


def test_the_last_push_costs_no_pass(llama: Pair) -> None:
    rows = llama.lm.open([(5, 6, 7)])
    passes = llama.lm.usage.passes
    rows.push(np.array([8]))
    rows.close()
    assert llama.lm.usage.passes == passes
    again = llama.lm.open([(5, 6, 7, 8)])
    again.log_mass([(5,)], [1.0])  # who asks for scores pays for them
    assert llama.lm.usage.computed_tokens == 4
    llama.check(again, [(5, 6, 7, 8)])


def test_dropped_rows_serve_later_prefixes(llama: Pair) -> None:
    """A string that ends early is dropped by select, and its text begins the next prompt."""
    rng = np.random.default_rng(6)
    contexts = [some_ids(rng, 9) for _ in range(4)]
    rows = llama.lm.open(contexts)
    rows.select(np.array([0, 2]))
    rows.close()
    before = llama.lm.usage.computed_tokens
    longer = [c + (9, 10) for c in contexts]
    llama.check(llama.lm.open(longer), longer)
    assert llama.lm.usage.computed_tokens == before + 8


def test_retention_has_a_budget() -> None:
    pair = Pair("llama", kv_bytes=200_000)
    rng = np.random.default_rng(7)
    for _ in range(30):
        contexts = [some_ids(rng, 12) for _ in range(3)]
        rows = pair.lm.open(contexts)
        pair.check(rows, contexts)
        rows.close()
        assert len(pair.lm.store) == 1 or pair.lm.store.nbytes <= 200_000
    assert len(pair.lm.store.index) >= 3
    pair.lm.clear_cache()
    assert len(pair.lm.store.index) == 0 and pair.lm.store.nbytes == 0


def test_decoding_passes_have_one_token_per_row(llama: Pair) -> None:
    """genlm-backend 0.3.1 sent (4, 4) … (4, 9) through the network where (4, 1) is enough."""
    shapes: list[tuple[int, ...]] = []
    llama.lm.network.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    rows = llama.lm.open([(5, 6, 7), (8, 9), (5,), (6,)])
    for step in range(3):
        rows.draw(np.arange(4, dtype=np.uint64), [TokenLaw()] * 4, None, GumbelMax())
        rows.push(np.array([9, 8, 7, 6 + step]))
    rows.log_probs()
    assert shapes[-3:] == [(4, 1)] * 3


def test_the_same_tokens_in_any_batch(llama: Pair) -> None:
    """Batches of 1, 2, 3, 8, 64: each string draws the tokens it draws alone."""
    rng = np.random.default_rng(8)
    contexts = [some_ids(rng, int(n)) for n in rng.integers(1, 20, 64)]
    keys = rng.integers(0, 2**63, 64).astype(np.uint64)
    laws = [TokenLaw(temperature=float(t)) for t in rng.uniform(0.5, 1.5, 64)]

    def tokens(size: int) -> Ints:
        llama.lm.clear_cache()
        out = []
        for lo in range(0, 64, size):
            part = slice(lo, lo + size)
            rows = llama.lm.open(contexts[part])
            drawn = []
            for step in range(6):
                one = rows.draw(fold_array(keys[part], step), laws[part], None, GumbelMax())
                drawn.append(one.tokens)
                rows.push(one.tokens)
            rows.close()
            out.append(np.array(drawn).T)
        return np.concatenate(out)

    alone = tokens(1)
    for size in (2, 3, 8, 64):
        assert (tokens(size) == alone).all()


# -- draws ---------------------------------------------------------------------------------------


class Recorder:
    """A chance that keeps the rows it is asked about and takes the last possible index."""

    def __init__(self) -> None:
        self.rows: list[Floats] = []

    def categorical(self, keys: Keys, log_weights: Floats) -> Ints:
        self.rows.append(log_weights)
        last: Ints = np.array([np.flatnonzero(np.isfinite(r))[-1] for r in log_weights])
        return last

    def offsets(self, keys: Keys, breakpoints: Sequence[Floats] | None = None) -> Floats:
        return np.full(len(keys), 0.5)


def random_law(rng: np.random.Generator) -> TokenLaw:
    def maybe(value: float, otherwise: float) -> float:
        return value if rng.random() < 0.5 else otherwise

    return TokenLaw(
        temperature=maybe(rng.uniform(0.3, 2.0), 1.0),
        top_p=maybe(rng.uniform(0.1, 0.99), 1.0),
        top_k=int(maybe(float(rng.integers(1, 40)), 0)),
        mixture=maybe(rng.uniform(0.01, 0.3), 0.0),
        target_temperature=maybe(rng.uniform(0.5, 1.5), 1.0),
    )


@pytest.mark.parametrize("width", [270, 1500])
@pytest.mark.parametrize("masked", [False, True])
def test_the_token_law(width: int, masked: bool) -> None:
    """Log p, log q and the drawn token are those of the reference on the host."""
    pair = Pair("llama", width)
    rng = np.random.default_rng(9)
    contexts = [some_ids(rng, int(n)) for n in rng.integers(1, 9, 16)]
    rows = pair.lm.open(contexts)
    log_model = rows.log_probs()
    index = np.arange(16)
    for _ in range(12):
        laws = [random_law(rng) for _ in contexts]
        mask = None
        if masked:
            mask = rng.random((16, width)) < rng.choice([0.01, 0.5])
            mask[index, rng.integers(3, 262, 16)] = True
        parts = [
            token_law(log_model[[b]], law, None if mask is None else mask[[b]])
            for b, law in enumerate(laws)
        ]
        logp = np.concatenate([p for p, _ in parts])
        logq = np.concatenate([q for _, q in parts])
        recorder = Recorder()
        drawn = rows.draw(np.arange(16, dtype=np.uint64), laws, mask, recorder)
        same_support = np.isfinite(recorder.rows[0]) == np.isfinite(logq)
        assert same_support.all()
        seen = np.isfinite(logq)
        assert np.abs(recorder.rows[0][seen] - logq[seen]).max() < TOLERANCE
        assert np.abs(drawn.logp - logp[index, drawn.tokens]).max() < TOLERANCE
        assert np.abs(drawn.logq - logq[index, drawn.tokens]).max() < TOLERANCE
        keys = rng.integers(0, 2**64, 16, dtype=np.uint64)
        for chance in (GumbelMax(), Argmax()):
            drawn = rows.draw(keys, laws, mask, chance)
            assert (drawn.tokens == chance.categorical(keys, logq)).all()
            assert np.abs(drawn.logq - logq[index, drawn.tokens]).max() < TOLERANCE


@pytest.mark.parametrize("width", [40, 2000])
def test_ties_go_to_the_smaller_id(width: int) -> None:
    """Scores on a coarse grid: top-k and top-p must cut inside a tie as the reference does."""
    rng = np.random.default_rng(15)
    scores = np.round(rng.normal(0, 2, (12, width)) * 2) / 2
    log_model = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    logits = Logits(torch.from_numpy(scores).float())
    for top_k, top_p in ((1, 1.0), (7, 1.0), (0, 0.33), (30, 0.7), (width, 0.91)):
        law = TokenLaw(top_k=top_k, top_p=top_p)
        _, logq = token_law(log_model, law, None)
        recorder = Recorder()
        logits.draw(np.arange(12, dtype=np.uint64), [law] * 12, None, recorder)
        assert (np.isfinite(recorder.rows[0]) == np.isfinite(logq)).all()
    drawn = logits.draw(np.arange(12, dtype=np.uint64), [TokenLaw()] * 12, None, Argmax())
    assert (drawn.tokens == scores.argmax(axis=1)).all()


def test_noise_is_that_of_numpy() -> None:
    from lmppl.lm.torch.noise import uniforms
    from lmppl.random import uniforms as reference

    rng = np.random.default_rng(10)
    keys = rng.integers(0, 2**64, 500, dtype=np.uint64)
    counters = rng.integers(0, 200_000, 500, dtype=np.uint64)
    got = uniforms(torch.from_numpy(keys.view(np.int64)), torch.from_numpy(counters.view(np.int64)))
    assert (got.numpy() == reference(keys, counters)).all()


@pytest.mark.parametrize("width", [270, 1500])
def test_draws_follow_the_model(width: int) -> None:
    """4,000 draws of one row: chi-square over 20 bins, false alarm below 1e-6 (bound 69.7)."""
    pair = Pair("llama", width)
    rows = pair.lm.open([(5, 9, 30)] * 4000)
    p = np.exp(rows.log_probs()[0])
    keys = fold_array(np.arange(4000, dtype=np.uint64), 1)
    tokens = rows.draw(keys, [TokenLaw()] * 4000, None, GumbelMax()).tokens
    order = np.argsort(-p)
    bins = np.minimum(np.cumsum(p[order]) * 20, 19.999).astype(int)
    expected = np.bincount(bins, weights=p[order], minlength=20) * 4000
    rank = np.argsort(order)
    observed = np.bincount(bins[rank[tokens]], minlength=20)
    used = expected > 5
    assert used.sum() > 5
    assert ((observed - expected) ** 2 / np.maximum(expected, 1e-9))[used].sum() < 69.7


def test_a_dead_row_is_reported(llama: Pair) -> None:
    rows = llama.lm.open([(5, 6), (7, 8)])
    mask = np.zeros((2, 270), dtype=bool)
    mask[0, 265] = True  # an id that no token has: probability zero
    mask[1, 40] = True
    for chance in (GumbelMax(), Argmax(), Recorder()):
        drawn = rows.draw(np.arange(2, dtype=np.uint64), [TokenLaw()] * 2, mask, chance)
        assert drawn.tokens.tolist() == [-1, 40]
        assert drawn.logq.tolist() == [-np.inf, 0.0]
        assert drawn.logp[0] == -np.inf and np.isfinite(drawn.logp[1])


def test_ids_beyond_the_tokenizer_are_impossible(llama: Pair) -> None:
    assert llama.lm.vocab_size == 270 and llama.lm.tokenizer.size == 262
    rows = llama.lm.open([(5,)])
    assert np.isneginf(rows.log_probs()[0, 262:]).all()
    assert llama.lm.token_bytes(265) == b""
    assert rows.log_mass([tuple(range(270))], [1.0])[0] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 2.0])
def test_log_mass(llama: Pair, temperature: float) -> None:
    rows = llama.lm.open([(5, 6), (7,), (8, 9, 10)])
    sets = [(4, 5, 6), (9,), ()]
    got = rows.log_mass(sets, [temperature, 1.0, temperature])
    p = np.exp(rows.log_probs() / np.array([[temperature], [1.0], [temperature]]))
    p /= p.sum(axis=1, keepdims=True)
    assert got[:2] == pytest.approx([np.log(p[0, [4, 5, 6]].sum()), np.log(p[1, 9])], abs=1e-5)
    assert got[2] == -np.inf


def test_nan_scores_are_an_error() -> None:
    pair = Pair("llama")
    with torch.no_grad():
        pair.lm.network.model.model.norm.weight.fill_(torch.nan)
    rows = pair.lm.open([(5,)])
    with pytest.raises(LmpplError, match="nan"):
        rows.draw(np.zeros(1, dtype=np.uint64), [TokenLaw()], None, GumbelMax())


# -- scoring -------------------------------------------------------------------------------------


def test_score_is_the_token_by_token_score(pair: Pair) -> None:
    rng = np.random.default_rng(11)
    shared = some_ids(rng, 45)
    contexts = [shared, shared, shared + (7,), some_ids(rng, 4), shared[:5], shared, (9,)]
    tails = [some_ids(rng, n) for n in (1, 6, 3, 2, 0, 0, 5)]
    tails[4] = shared[5:9]
    ends: list[Any] = [None, (2,), (2, 5), None, (7, 8), (4,), None]
    temperatures = [1.0, 0.7, 1.0, 2.0, 1.0, 1.0, 1.0]
    got = pair.lm.score(contexts, tails, ends, temperatures)
    again = pair.lm.score(contexts, tails, ends, temperatures)
    expected = LanguageModel.score(pair.lm, contexts, tails, ends, temperatures)
    for a, b, c in zip(got, expected, again, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max(initial=0.0) < TOLERANCE
        assert np.abs(c - b).max(initial=0.0) < TOLERANCE


def test_score_agrees_with_the_uncached_model(llama: Pair) -> None:
    context, tail = (5, 6, 7), (8, 9)
    rows = llama.rows([context, (*context, 8)])
    got = llama.lm.score([context], [tail], [None], [1.0])[0]
    assert got == pytest.approx([rows[0, 8], rows[1, 9]], abs=TOLERANCE)


def test_one_token_options_are_one_row(llama: Pair) -> None:
    context = some_ids(np.random.default_rng(12), 20)
    scores = llama.lm.score([context] * 3, [(4,), (5,), (6,)], [None] * 3, [1.0] * 3)
    assert llama.lm.usage.computed_tokens == 20 and llama.lm.usage.passes == 1
    rows = llama.rows([context])[0]
    assert np.concatenate(scores) == pytest.approx(rows[[4, 5, 6]], abs=TOLERANCE)


def test_a_large_scoring_is_cut_into_passes(llama: Pair) -> None:
    from lmppl.lm.torch.prefill import Limits

    rng = np.random.default_rng(13)
    contexts = [some_ids(rng, int(n)) for n in rng.integers(1, 30, 20)]
    tails = [some_ids(rng, int(n)) for n in rng.integers(0, 30, 20)]
    ends = [(2,)] * 20
    whole = llama.lm.score(contexts, tails, ends, [1.0] * 20)
    llama.lm.clear_cache()
    llama.lm.limits = Limits(tokens=24, scores=10, waste=4)
    cut = llama.lm.score(contexts, tails, ends, [1.0] * 20)
    assert np.abs(np.concatenate(cut) - np.concatenate(whole)).max() < TOLERANCE
    llama.lm.clear_cache()
    llama.check(llama.lm.open(contexts), contexts)


def test_a_scoring_larger_than_memory_is_done_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(14)
    preamble = some_ids(rng, 40)
    contexts = [preamble + some_ids(rng, int(n)) for n in rng.integers(1, 9, 30)]
    tails = [some_ids(rng, int(n)) for n in rng.integers(0, 5, 30)]
    whole = Pair("llama")
    expected = whole.lm.score(contexts, tails, [(2,)] * 30, [1.0] * 30)
    pair = Pair("llama", kv_bytes=2_000)
    monkeypatch.setattr(
        "lmppl.lm.torch.model.LEAST_BYTES", 200 * pair.lm.network.layout.token_bytes
    )
    largest = 0
    add = pair.lm.store.add

    def watch(retained: Any, keys: Any) -> None:
        nonlocal largest
        largest = max(largest, len(retained.block.lens))
        add(retained, keys)

    monkeypatch.setattr(pair.lm.store, "add", watch)
    got = pair.lm.score(contexts, tails, [(2,)] * 30, [1.0] * 30)
    assert 1 < largest <= 5
    assert np.abs(np.concatenate(got) - np.concatenate(expected)).max() < TOLERANCE
    assert pair.lm.usage.computed_tokens == whole.lm.usage.computed_tokens  # the preamble once


# -- limits and errors ---------------------------------------------------------------------------


def test_context_overflow_comes_before_computing(llama: Pair) -> None:
    with pytest.raises(ContextOverflow, match="97"):
        llama.lm.open([(5,), (5,) * 97])
    with pytest.raises(ContextOverflow):
        llama.lm.score([(5,) * 90], [(6,) * 8], [None], [1.0])
    assert llama.lm.usage.passes == 0
    rows = llama.lm.open([(5,) * 96])
    llama.check(rows, [(5,) * 96])
    with pytest.raises(ContextOverflow):
        rows.push(np.array([5]))


def test_bad_arguments(llama: Pair) -> None:
    with pytest.raises(BadArgument, match="at least one token"):
        llama.lm.open([()])
    with pytest.raises(BadArgument, match="270"):
        llama.lm.open([(270,)])
    rows = llama.lm.open([(5,)])
    with pytest.raises(BadArgument, match="dead"):
        rows.push(np.array([-1]))
    with pytest.raises(BadArgument, match="temperature"):
        rows.draw(np.zeros(1, dtype=np.uint64), [TokenLaw(temperature=0.0)], None, GumbelMax())
    rows.close()
    with pytest.raises(BadArgument, match="closed"):
        rows.log_probs()


def test_threads_are_set_for_a_pass_only() -> None:
    before = torch.get_num_threads()
    pair = Pair("llama", threads=before + 1)
    seen = []
    pair.lm.network.model.register_forward_pre_hook(
        lambda module, args: seen.append(torch.get_num_threads())
    )
    pair.lm.open([(5,)])
    assert seen == [before + 1] and torch.get_num_threads() == before


def test_self_check(llama: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    found = llama.lm.self_check("the cat sat on a mat")
    assert found["scoring"] < 1e-4 and found["batch"] < 1e-4
    right = llama.lm.score
    monkeypatch.setattr(llama.lm, "score", lambda *a: [x + 0.01 for x in right(*a)])
    with pytest.raises(LmpplError, match="token by token"):
        llama.lm.self_check("the cat sat on a mat")


# -- folders -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    make_model("llama").save_pretrained(out)
    make_tokenizer().save_pretrained(out)
    return out


def test_load_by_path(folder: Path) -> None:
    lm = load(str(folder), device="cpu")
    assert isinstance(lm, TorchLM)
    assert lm.eos_ids == {2} and lm.bos_id is None and lm.max_context == 96
    assert lm.fingerprint == load(str(folder), device="cpu").fingerprint
    assert lm.fingerprint.startswith(f"{folder.name}:float32:")
    assert not lm.capabilities.batch_invariant and 0 <= lm.batch_gap < 1e-4
    assert load(str(folder), device="cpu", deterministic=True).capabilities.batch_invariant
    half = load(str(folder), device="cpu", dtype="bfloat16")
    assert isinstance(half, TorchLM)
    assert half.batch_gap < 0.2 and half.fingerprint != lm.fingerprint


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"not opened")
    with pytest.raises(CorruptModel, match="pytorch_model.bin"):
        load(str(tmp_path))


def test_damaged_weights_are_reported(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CorruptModel, match="cannot be read"):
        load(str(tmp_path))


def test_obeys_the_laws_of_language_models(pair: Pair) -> None:
    """The public kit, on every architecture: rows, scores, masks, draws by keyed noise."""
    contexts: list[str | Ids] = ["the cat", "a", "the dog the"]
    check_language_model(pair.lm, contexts, texts=["the cat", "é<|im_end|>"], atol=1e-4, draws=16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:99"}, "CUDA devices"),
        ({"device": "gpu0"}, "is no device of torch"),
        ({"dtype": "float99"}, "is no float type"),
        ({"devise": "cpu"}, "did you mean 'device'"),
        ({"colour": 3}, "the options are: adapters"),
    ],
    ids=str,
)
def test_options_that_are_none(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        load(str(folder), **options)
